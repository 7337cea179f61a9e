import assert from "node:assert/strict";
import { after, beforeEach, test } from "node:test";
import { StrictMode, createElement, memo } from "react";
import { act, create } from "react-test-renderer";
import { QueryClient, QueryClientProvider, useQuery } from "@tanstack/react-query";
import { Treewire, applyDelta } from "../client.js";
import { followQuery } from "../query.js";
import { useProject, useWorkspaces } from "../react.js";
import { FakeSocket, entry, settle } from "./kit.js";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;
const complain = console.error;
console.error = (...said) => String(said[0]).includes("react-test-renderer is deprecated") || complain(...said);
after(() => (console.error = complain));

let client;
let renders = [];
const Row = memo(({ id, entry: { git } }) => {
  renders.push(id);
  return createElement("li", null, `${id} ${git?.files ?? "?"}`);
});

function List({ project, batchMs = 0 }) {
  const workspaces = useWorkspaces(project, { client, batchMs });
  renders.push("list");
  if (workspaces === null) return createElement("p", null, "loading");
  return createElement("ul", null, Object.entries(workspaces).map(([id, one]) => createElement(Row, { key: id, id, entry: one })));
}

function Line({ project }) {
  const view = useProject(project, { client, batchMs: 0 });
  return createElement("p", null, `${view.state} ${view.version} ${view.verified}`);
}

async function render(element) {
  let root;
  await act(async () => {
    root = create(element);
  });
  return root;
}

const text = (root) => JSON.stringify(root.toJSON(), (key, value) => (key === "props" ? undefined : value)).replaceAll(/"type":"\w+"|[{}[\]":,]|children|null/g, " ").replaceAll(/ +/g, " ").trim();
async function shows(root, expected) {
  for (let n = 0; n < 200 && text(root) !== expected; n++) await act(() => new Promise((resolve) => setTimeout(resolve, 5)));
  assert.equal(text(root), expected);
}
const say = (work) => act(async () => { work(); await settle(); });

beforeEach((t) => {
  client?.close();
  client = new Treewire("ws://test/v1/stream", {}, { WebSocket: FakeSocket });
  renders = [];
});
after(() => client.close());

test("a skeleton, then the list; and only the row that changed is rendered again", async () => {
  const root = await render(createElement(List, { project: "web" }));
  assert.equal(text(root), "loading");
  await say(() => FakeSocket.last.welcome().snapshot({ w1: entry("one"), w2: entry("two") }));
  assert.equal(text(root), "w1 ? w2 ?");
  renders = [];
  await say(() => FakeSocket.last.delta(1, 2, { w1: { git: { files: 3 } } }));
  assert.equal(text(root), "w1 3 w2 ?");
  assert.deepEqual(renders, ["list", "w1"]);
  renders = [];
  await say(() => FakeSocket.last.heartbeat(1, { 1: { version: 2, hash: "0000000000000000" } }));
  assert.deepEqual(renders, []); // a heartbeat is none of its business
  await act(async () => root.unmount());
  assert.deepEqual(FakeSocket.last.said("unsubscribe"), [{ type: "unsubscribe", id: 1 }]);
});

test("a burst renders twice: at once, and when the batch is due", async () => {
  const root = await render(createElement(List, { project: "web", batchMs: 150 }));
  await say(() => FakeSocket.last.welcome().snapshot({ w1: entry("one") }));
  await act(() => new Promise((resolve) => setTimeout(resolve, 200)));
  renders = [];
  for (let n = 1; n <= 50; n++) await say(() => FakeSocket.last.delta(n, n + 1, { w1: { git: { files: n } } }));
  const during = renders.filter((one) => one === "list").length;
  await act(() => new Promise((resolve) => setTimeout(resolve, 200)));
  assert.equal(text(root), "w1 50");
  assert.ok(during < 10, `${during} renders for 50 deltas`);
  await act(async () => root.unmount());
});

test("the standing of a project is there for whoever wants to show it", async () => {
  const root = await render(createElement(Line, { project: "web" }));
  assert.equal(text(root), "connecting");
  await say(() => FakeSocket.last.welcome().snapshot({ w1: entry("one") }));
  assert.equal(text(root), "live 1 1");
  await say(() => FakeSocket.last.drop());
  assert.equal(text(root), "stale 1 1");
  await act(async () => root.unmount());
});

test("strict mode, another project, and none at all", async () => {
  const tree = (project) => createElement(StrictMode, null, createElement(List, { project }));
  const root = await render(tree("web"));
  await say(() => FakeSocket.last.welcome());
  const asked = FakeSocket.last.said("subscribe");
  assert.equal(asked.length, 1);
  await say(() => FakeSocket.last.snapshot({ w1: entry("one") }, 1, { id: asked[0].id }));
  assert.equal(text(root), "w1 ?");
  await act(async () => root.update(tree("api")));
  assert.equal(text(root), "loading");
  assert.deepEqual(FakeSocket.last.said().map((one) => [one.type, one.project]), [["unsubscribe", undefined], ["subscribe", "api"]]);
  await act(async () => root.update(tree(null)));
  assert.equal(text(root), "loading");
  assert.deepEqual(FakeSocket.last.said().map((one) => one.type), ["unsubscribe"]);
  await act(async () => root.unmount());
});

test("a second component that is mounted later has the list at once", async () => {
  const first = await render(createElement(List, { project: "web" }));
  await say(() => FakeSocket.last.welcome().snapshot({ w1: entry("one") }));
  renders = [];
  const second = await render(createElement(List, { project: "web" }));
  assert.deepEqual(renders, ["list", "w1"]); // no skeleton in between
  await act(async () => { first.unmount(); second.unmount(); });
});

test("react-query: a query loads from the stream, follows it, and is null once the project is gone", async () => {
  const queryClient = new QueryClient();
  const followed = followQuery(queryClient, "web", { client, batchMs: 0 });
  function Board() {
    const { data, isPending } = useQuery(followed.options);
    renders.push("board");
    if (isPending) return createElement("p", null, "loading");
    if (data === null) return createElement("p", null, "gone");
    return createElement("ul", null, Object.entries(data.workspaces).map(([id, one]) => createElement(Row, { key: id, id, entry: one })));
  }
  const root = await render(createElement(QueryClientProvider, { client: queryClient }, createElement(Board)));
  await shows(root, "loading");
  await say(() => FakeSocket.last.welcome().snapshot({ w1: entry("one"), w2: entry("two") }));
  await shows(root, "w1 ? w2 ?");
  renders = [];
  await say(() => FakeSocket.last.delta(1, 2, { w1: { git: { files: 3 } } }));
  await shows(root, "w1 3 w2 ?");
  assert.ok(!renders.includes("w2"));
  assert.equal(queryClient.getQueryData(["treewire", "web"]).version, 2);
  // A refetch brings nothing from the past, and a cache that was emptied is filled again.
  await act(() => queryClient.refetchQueries({ queryKey: ["treewire", "web"] }));
  assert.equal(queryClient.getQueryData(["treewire", "web"]).version, 2);
  await say(() => queryClient.setQueryData(["treewire", "web"], { epoch: "e0", version: 1, complete: true, workspaces: {} }));
  await say(() => FakeSocket.last.delta(2, 3, { w2: { git: { files: 9 } } }));
  await shows(root, "w1 3 w2 9");
  await say(() => FakeSocket.last.say({ type: "end", id: 1, code: "not_found" }));
  await shows(root, "gone");
  followed.end();
  await act(async () => root.unmount());
  queryClient.clear();
});

test("react-query: without the adapter it is one line", async () => {
  const queryClient = new QueryClient();
  const key = ["mine"];
  const end = client.subscribe("web", (view, frames) => queryClient.setQueryData(key, (cached) => frames.reduce(applyDelta, cached)));
  FakeSocket.last.welcome().snapshot({ w1: entry("one") });
  FakeSocket.last.delta(1, 2, { w1: { git: { files: 3 } } });
  assert.deepEqual(queryClient.getQueryData(key).workspaces, client.view("web").workspaces);
  end();
  queryClient.clear();
});
