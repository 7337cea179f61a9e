/**
 * A page with real React on it, for a browser: the hooks on the left, the react-query adapter on the right. What was
 * committed is counted by row, so that a test can say what was rendered in vain.
 */

import { StrictMode, createElement as h, memo, useEffect } from "react";
import { createRoot } from "react-dom/client";
import { QueryClient, QueryClientProvider, useQuery } from "@tanstack/react-query";
import { stateHash } from "../client.js";
import { followQuery } from "../query.js";
import { useProject, useWorkspaces } from "../react.js";

const commits = {};

function useCount(name) {
  useEffect(() => {
    commits[name] = (commits[name] ?? 0) + 1;
  });
}

const Row = memo(({ of, id, entry }) => {
  useCount(of + ":" + id);
  return h("li", { "data-id": id }, `${entry.life?.name} ${entry.git?.insertions ?? 0}`);
});

function List({ of, workspaces }) {
  useCount(of);
  if (workspaces === null) return h("p", { id: of }, "loading");
  const rows = Object.entries(workspaces).map(([id, entry]) => h(Row, { key: id, of, id, entry }));
  return h("ul", { id: of, "data-hash": stateHash(workspaces) }, rows);
}

function Hooked({ project }) {
  return h(List, { of: "hook", workspaces: useWorkspaces(project) });
}

function Standing({ project }) {
  const { state, version, verified } = useProject(project);
  useCount("standing");
  return h("p", { id: "standing" }, `${state} ${version === verified ? "verified" : "unverified"}`);
}

function Queried({ options }) {
  const { data } = useQuery(options);
  return h(List, { of: "query", workspaces: data?.workspaces ?? null });
}

let root, followed, queryClient;

globalThis.board = {
  commits,
  start(project) {
    queryClient = new QueryClient();
    followed = followQuery(queryClient, project);
    document.body.replaceChildren(document.createElement("main"));
    root = createRoot(document.querySelector("main"));
    const query = h(QueryClientProvider, { client: queryClient }, h(Queried, { options: followed.options }));
    root.render(h(StrictMode, null, h(Hooked, { project }), h(Standing, { project }), query));
  },
  stop() {
    root.unmount();
    followed.end();
    queryClient.clear();
  },
};
