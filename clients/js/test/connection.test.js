import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { Treewire, connect, subscribe, stateHash } from "../client.js";
import { FakeSocket, entry, settle } from "./kit.js";

/** @type {Treewire[]} */
let open = [];
let errors = [];

function client(on = {}, options = {}) {
  const made = new Treewire("http://test/", { error: (error) => errors.push(error), ...on }, { WebSocket: FakeSocket, ...options });
  open.push(made);
  return made;
}

/** A client that follows `web`, as far as its first snapshot. */
function live(workspaces = { w1: entry("one") }, batchMs = 0) {
  const calls = [];
  const made = client();
  made.subscribe("web", (view, frames) => calls.push({ view, frames }), { batchMs });
  FakeSocket.last.welcome().snapshot(workspaces);
  FakeSocket.last.said();
  return { made, calls, view: () => calls.at(-1).view };
}

beforeEach((t) => {
  FakeSocket.made = [];
  errors = [];
  t.mock?.timers?.reset();
});
afterEach(() => open.splice(0).forEach((one) => one.close()));

const timers = (t) => t.mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });

test("an address may be the server's or the stream's", () => {
  client();
  assert.equal(FakeSocket.last.url, "ws://test/v1/stream");
  assert.deepEqual(FakeSocket.last.protocols, ["treewire.v1"]);
  open.push(connect({ url: "https://far.example/board/#token=x", WebSocket: FakeSocket }));
  assert.equal(FakeSocket.last.url, "wss://far.example/board/v1/stream");
  assert.throws(() => connect({ WebSocket: FakeSocket }), /give it, as connect\(\{ url \}\)/);
  assert.throws(() => connect({ url: "http://test" }), /there is no WebSocket here/);
});

test("a project goes from connecting over loading to live, and says how far it is proven", async (t) => {
  timers(t);
  const made = client();
  const views = [];
  made.subscribe("web", (view) => views.push(view));
  await settle();
  FakeSocket.last.welcome();
  FakeSocket.last.say({ type: "loading", id: 1 });
  FakeSocket.last.snapshot({ w1: entry("one") }, 5);
  FakeSocket.last.delta(5, 6, { w1: { git: { files: 1 } } });
  FakeSocket.last.heartbeat(1, { 1: { version: 6, hash: stateHash(made.view("web").workspaces) } });
  assert.deepEqual(views.map((view) => [view.state, view.version, view.verified]), [
    ["connecting", null, null], ["loading", null, null], ["loading", null, null], ["live", 5, 5], ["live", 6, 5], ["live", 6, 6],
  ]);
  assert.equal(views.at(-1).workspaces, views.at(-2).workspaces);
  assert.equal(views.at(-1).heard, Date.now());
});

test("several projects share a socket, several callers a project; the last one to leave unsubscribes", async () => {
  const made = client();
  const seen = [];
  const ends = ["web", "api", "web"].map((project, n) => made.subscribe(project, (view, frames) => seen.push([n, view.project, frames.length])));
  FakeSocket.last.welcome();
  assert.deepEqual(FakeSocket.last.said("subscribe").map((one) => [one.id, one.project]), [[1, "web"], [2, "api"]]);
  FakeSocket.last.snapshot({ w1: entry("one") });
  seen.length = 0;
  FakeSocket.last.delta(1, 2, { w1: { git: { files: 1 } } });
  assert.deepEqual(seen, [[0, "web", 1], [2, "web", 1]]);
  ends[0]();
  assert.deepEqual(FakeSocket.last.said(), []);
  ends[2]();
  ends[2]();
  assert.deepEqual(FakeSocket.last.said(), [{ type: "unsubscribe", id: 1 }]);
  FakeSocket.last.delta(2, 3, { w1: null });
  FakeSocket.last.say({ type: "end", id: 1, code: "unsubscribed" });
  assert.equal(seen.length, 2);
  assert.equal(FakeSocket.made.length, 1);
});

test("who comes late is told at once what is known, as a snapshot to go on from", async () => {
  const { made } = live();
  const calls = [];
  made.subscribe("web", (view, frames) => calls.push([view.state, frames.map((frame) => [frame.type, frame.version])]));
  await settle();
  assert.deepEqual(calls, [["live", [["snapshot", 1]]]]);
});

test("a burst is one call at once and one when the batch is due; who needs the user does not wait", async (t) => {
  timers(t);
  const { calls } = live({ w1: entry("one"), w2: entry("two") }, 60_000);
  assert.equal(calls.length, 2); // loading, live
  for (let n = 1; n <= 20; n++) FakeSocket.last.delta(n, n + 1, { w1: { git: { files: n } } });
  assert.equal(calls.length, 2);
  FakeSocket.last.delta(21, 22, { w2: { status: { code: "needs_answer", column: "waiting", needs_user: true } } });
  assert.equal(calls.length, 3);
  assert.equal(calls[2].frames.length, 21);
  assert.equal(calls[2].view.version, 22);
  FakeSocket.last.delta(22, 23, { w1: { git: { files: 99 } } });
  assert.equal(calls.length, 3);
  t.mock.timers.tick(60_000);
  assert.deepEqual(calls.slice(3).map((call) => call.view.workspaces?.w1.git.files), [99]);
});

test("a burst without end does not gather frames without end", () => {
  const { calls } = live({ w1: entry("one") }, 3_600_000);
  for (let n = 1; n <= 1000; n++) FakeSocket.last.delta(n, n + 1, { w1: { git: { files: n } } });
  assert.ok(calls.length > 10);
  assert.ok(Math.max(...calls.map((call) => call.frames.length)) < 100);
});

test("a lost connection shows as stale, is made again with jitter, and goes on from the cursor", (t) => {
  timers(t);
  const { view } = live();
  FakeSocket.last.drop();
  assert.equal(view().state, "stale");
  assert.deepEqual(view().workspaces, { w1: entry("one") });
  t.mock.timers.tick(249);
  assert.equal(FakeSocket.made.length, 1);
  t.mock.timers.tick(751);
  assert.equal(FakeSocket.made.length, 2);
  FakeSocket.last.welcome();
  assert.deepEqual(FakeSocket.last.said("subscribe"), [{ type: "subscribe", id: 1, project: "web", epoch: "e1", version: 1 }]);
  assert.equal(view().state, "stale");
  FakeSocket.last.delta(1, 1, {});
  assert.equal(view().state, "live");
});

test("it tries for ever, at most every fifteen seconds, and a greeting alone does not make it hasty", (t) => {
  timers(t);
  t.mock.method(Math, "random", () => 1);
  client();
  const waits = [];
  for (let n = 0; n < 8; n++) {
    const made = FakeSocket.made.length;
    FakeSocket.last.welcome().drop(4006, "not ready");
    let waited = 0;
    for (; FakeSocket.made.length === made; waited += 250) t.mock.timers.tick(250);
    waits.push(waited);
  }
  assert.deepEqual(waits, [1000, 2000, 4000, 8000, 15_000, 15_000, 15_000, 15_000]);
  FakeSocket.last.welcome().heartbeat(1);
  FakeSocket.last.drop();
  const made = FakeSocket.made.length;
  t.mock.timers.tick(1000);
  assert.equal(FakeSocket.made.length, made + 1);
});

for (const [code, again] of [[1006, true], [1000, true], [4000, true], [4002, true], [4499, true], [4500, false], [4506, false], [4999, false], [5000, true]]) {
  test(`after code ${code} it ${again ? "tries again" : "is refused and stays away"}`, (t) => {
    timers(t);
    const told = [];
    const made = client({ connection: (state, detail) => told.push([state, detail]) });
    let view;
    made.subscribe("web", (now) => (view = now));
    FakeSocket.last.welcome().drop(code, "because");
    t.mock.timers.tick(60_000);
    assert.equal(FakeSocket.made.length > 1, again);
    if (!again) {
      assert.deepEqual(told.at(-1), ["refused", "because"]);
      assert.deepEqual([view.state, view.problem], ["refused", { code, message: "because" }]);
    }
  });
}

test("where no heartbeat comes for too long, the line is taken for dead", (t) => {
  timers(t);
  const { view } = live();
  const first = FakeSocket.last;
  for (let n = 1; n <= 5; n++) {
    t.mock.timers.tick(10_000);
    first.heartbeat(n);
  }
  assert.equal(FakeSocket.made.length, 1);
  for (let second = 0; second < 27; second++) {
    t.mock.timers.tick(1000);
    if (!first.ended) first.delta(1, 1, {}); // other frames are no heartbeat
  }
  assert.ok(first.ended);
  assert.equal(view().state, "stale");
  t.mock.timers.tick(1000);
  assert.equal(FakeSocket.made.length, 2);
  first.snapshot({}); // whatever it still says is not heard
  assert.notDeepEqual(view().workspaces, {});
});

test("who slept looks at once: nothing came, so the line is dead", (t) => {
  timers(t);
  live();
  t.mock.timers.setTime(Date.now() + 20_000); // asleep: no timer ran
  t.mock.timers.tick(1000);
  assert.equal(FakeSocket.made.length, 1);
  t.mock.timers.tick(500);
  assert.equal(FakeSocket.made.length, 2);
});

test("who slept looks at once: what came meanwhile is heard first, and the line stays", (t) => {
  timers(t);
  live();
  t.mock.timers.setTime(Date.now() + 20_000);
  t.mock.timers.tick(1000);
  FakeSocket.last.heartbeat(1);
  t.mock.timers.tick(5000);
  assert.equal(FakeSocket.made.length, 1);
});

test("when the network comes back it does not wait", (t) => {
  timers(t);
  const listeners = new Map();
  globalThis.addEventListener = (name, listener) => listeners.set(name, listener);
  globalThis.removeEventListener = (name) => listeners.delete(name);
  try {
    const made = client();
    FakeSocket.last.drop();
    listeners.get("online")();
    assert.equal(FakeSocket.made.length, 2);
    listeners.get("pageshow")(); // one that is being made is not made twice
    assert.equal(FakeSocket.made.length, 2);
    made.close();
    assert.equal(listeners.size, 0);
  } finally {
    delete globalThis.addEventListener;
    delete globalThis.removeEventListener;
  }
});

test("a malformed frame is counted and answered with a resync, and the stream goes on", () => {
  const bad = [
    { type: "delta", id: 1, epoch: "e1", from: 1, to: 2, patch: { w1: 7 } },
    { type: "delta", id: 1, epoch: "e1", from: 3, to: 2, patch: {} },
    { type: "delta", id: 1, epoch: "e1", from: 1, to: "2", patch: {} },
    { type: "snapshot", id: 1, epoch: "e1", version: 1.5, hash: "", workspaces: {} },
    { type: "snapshot", id: 1, epoch: "e1", version: 2, hash: "", workspaces: { w1: [] } },
  ];
  for (const frame of bad) {
    const { made, view } = live();
    FakeSocket.last.say(frame);
    assert.deepEqual(FakeSocket.last.said(), [{ type: "resync", id: 1, reason: "gap", version: 1 }]);
    assert.equal(made.malformed, 1);
    FakeSocket.last.delta(1, 2, { w1: { git: { files: 8 } } });
    assert.equal(view().workspaces.w1.git.files, 8);
  }
  const { made, view } = live();
  const deep = '{"type":"delta","id":1,"epoch":"e1","from":1,"to":2,"patch":{"w1":' + '{"a":'.repeat(50_000) + "1" + "}".repeat(50_002);
  for (const text of ["", "nonsense", "[]", '"heartbeat"', '{"type":7}', '{"type":"heartbeat","n":"x"}', '{"type":"delta","id":{}}', deep]) FakeSocket.last.say(text);
  FakeSocket.last.onmessage({ data: new ArrayBuffer(3) });
  assert.equal(made.malformed, 9);
  assert.equal(view().version, 1);
  assert.deepEqual(errors, []);
});

test("a state that is wrong each time is not asked for at the speed of the line", (t) => {
  timers(t);
  const { view } = live();
  for (let n = 0; n < 10; n++) FakeSocket.last.snapshot({ w1: entry("one") }, 2 + n, { hash: "0000000000000000" });
  assert.equal(view().state, "degraded");
  assert.deepEqual(FakeSocket.last.said().map((one) => [one.type, one.reason, one.version]), [["resync", "hash", 2], ["resync", "hash", 3], ["resync", "hash", undefined]]);
  t.mock.timers.tick(15_000);
  assert.equal(FakeSocket.last.said("resync").length, 1);
  FakeSocket.last.snapshot({ w1: entry("one") }, 20);
  assert.deepEqual([view().state, view().verified], ["live", 20]);
  t.mock.timers.tick(15_000);
  assert.deepEqual(FakeSocket.last.said("resync"), []);
});

test("a resync that is never answered is repeated by the second heartbeat after it", () => {
  live();
  const asked = [];
  for (let n = 1; n <= 3; n++) {
    FakeSocket.last.heartbeat(n, { 1: { version: 2, hash: "" } });
    asked.push(FakeSocket.last.said("resync").length);
  }
  assert.deepEqual(asked, [1, 0, 1]);
});

test("an answer that is malformed itself is asked for once more", () => {
  live();
  FakeSocket.last.delta(5, 6, {});
  FakeSocket.last.say({ type: "delta", id: 1, epoch: "e1", from: 1, to: 6, patch: [] });
  assert.deepEqual(FakeSocket.last.said().map((one) => [one.type, one.version]), [["resync", 1], ["resync", 1]]);
});

test("a callback that throws, at once or later, is reported and ends nothing", async () => {
  const made = client({ change: () => { throw new Error("hook"); }, health: () => { throw new Error("health"); } });
  made.subscribe("web", () => { throw new Error("callback"); });
  made.subscribe("web", async () => { throw new Error("promise"); });
  const seen = [];
  made.subscribe("web", (view) => seen.push(view.version));
  FakeSocket.last.welcome().snapshot({ w1: entry("one") });
  FakeSocket.last.heartbeat(1, { 1: { version: 1, hash: stateHash({ w1: entry("one") }) } });
  await settle();
  assert.deepEqual(new Set(errors.map((error) => error.message)), new Set(["hook", "health", "callback", "promise"]));
  assert.equal(FakeSocket.last.said("ack").length, 1);
  assert.equal(made.malformed, 0);
  assert.equal(seen.at(-1), 1);
});

test("a callback that ends its own subscription, or makes another, disturbs nobody", () => {
  const made = client();
  const seen = [];
  const end = made.subscribe("web", (view) => { if (view.version) { end(); made.subscribe("api", () => {}); } });
  made.subscribe("web", (view) => seen.push(view.version));
  FakeSocket.last.welcome().snapshot({ w1: entry("one") });
  FakeSocket.last.delta(1, 2, { w1: { git: { files: 1 } } });
  assert.equal(seen.at(-1), 2);
  assert.deepEqual(FakeSocket.last.said("subscribe").map((one) => one.project), ["web", "api"]);
});

for (const frame of [{ type: "end", code: "not_found" }, { type: "end", code: "revoked" }, { type: "error", code: "not_found", message: "no such project" }, { type: "error", code: "forbidden", message: "no" }]) {
  test(`a project is gone after ${frame.type} ${frame.code}, and may be asked for anew`, async () => {
    const { made, calls, view } = live();
    FakeSocket.last.say({ id: 1, ...frame });
    assert.deepEqual([view().state, view().workspaces, view().problem.code], ["gone", null, frame.code]);
    const told = calls.length;
    FakeSocket.last.delta(1, 2, { w1: null });
    FakeSocket.last.drop();
    assert.equal(calls.length, told);
    const again = client();
    again.subscribe("web");
    assert.equal(made.view("web"), undefined);
  });
}

test("a project too many is refused with the server's words, and the others go on", (t) => {
  timers(t);
  const { made, view } = live();
  let refused;
  made.subscribe("api", (now) => (refused = now));
  FakeSocket.last.say({ type: "error", id: 2, code: "too_many", message: "at most 1" });
  assert.deepEqual([refused.state, refused.problem], ["refused", { code: "too_many", message: "at most 1" }]);
  FakeSocket.last.delta(1, 2, { w1: { git: { files: 1 } } });
  assert.equal(view().state, "live");
  FakeSocket.last.drop();
  t.mock.timers.tick(1000);
  FakeSocket.last.welcome(); // there may be room on this one
  assert.deepEqual([refused.state, refused.problem], ["loading", null]);
});

test("a stale aggregator is told, and is over when a heartbeat says so", () => {
  const { view } = live();
  const mark = { 1: { version: 1, hash: stateHash({ w1: entry("one") }) } };
  FakeSocket.last.heartbeat(1, mark, { aggregator: "stale" });
  assert.deepEqual([view().state, view().health], ["stale", { aggregator: "stale" }]);
  FakeSocket.last.heartbeat(2, mark);
  assert.equal(view().state, "live");
});

test("each connection gets a fresh ticket, and one that cannot be had is tried for again", async (t) => {
  timers(t);
  const tickets = [new Error("offline"), "t1", "t2"];
  const told = [];
  client({ connection: (state, detail) => told.push([state, detail]) }, {
    ticket: async () => {
      const next = tickets.shift();
      if (next instanceof Error) throw next;
      return next;
    },
  });
  await settle();
  assert.deepEqual([FakeSocket.made.length, told.at(-1)], [0, ["waiting", "no ticket: offline"]]);
  t.mock.timers.tick(1000);
  await settle();
  FakeSocket.last.welcome();
  assert.deepEqual(FakeSocket.last.said("hello"), [{ type: "hello", ticket: "t1" }]);
  FakeSocket.last.drop(4002, "ticket expired");
  t.mock.timers.tick(2000);
  await settle();
  FakeSocket.last.open();
  assert.deepEqual(FakeSocket.last.said("hello"), [{ type: "hello", ticket: "t2" }]);
});

test("after close nothing is called, sent or made any more", (t) => {
  timers(t);
  const { made, calls } = live();
  made.subscribe("api", () => calls.push("api"));
  const told = calls.length;
  const socket = FakeSocket.last;
  made.close();
  made.close();
  assert.ok(socket.ended);
  socket.delta(1, 2, { w1: null });
  socket.drop();
  t.mock.timers.tick(600_000);
  assert.equal(calls.length, told);
  assert.equal(FakeSocket.made.length, 1);
});

test("subscribe shares one connection, and the last one to leave closes it", async () => {
  globalThis.WebSocket = FakeSocket;
  try {
    const ends = ["web", "api"].map((project) => subscribe(project, () => {}, { url: "http://shared/" }));
    assert.equal(FakeSocket.made.length, 1);
    ends[0]();
    ends[1]();
    const again = subscribe("web", () => {}, { url: "http://shared/" }); // in the same turn, as when a component is mounted anew
    await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal(FakeSocket.made.length, 1);
    assert.equal(FakeSocket.last.ended, false);
    again();
    await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal(FakeSocket.last.ended, true);
    const refused = subscribe("web", () => {}, { url: "http://shared/" });
    FakeSocket.last.welcome().drop(4501, "unauthenticated");
    const anew = subscribe("web", () => {}, { url: "http://shared/" }); // somebody signed in meanwhile
    assert.equal(FakeSocket.made.length, 3);
    refused();
    anew();
    await new Promise((resolve) => setTimeout(resolve, 5));
  } finally {
    delete globalThis.WebSocket;
  }
});
