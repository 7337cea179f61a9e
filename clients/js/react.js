/** React hooks over the client: a component renders when what it shows has changed, and at most every 200 ms. */

import { useMemo, useSyncExternalStore } from "react";
import { blank, sharedClient, subscribe } from "./client.js";

export const RENDER_MS = 200;

/** @typedef {import("./client.js").View} View */
/** @typedef {import("./client.js").Workspaces} Workspaces */
/** @typedef {import("./client.js").SubscribeOptions} SubscribeOptions */

/**
 * A project with its standing, version, age and health. It changes with each heartbeat, too.
 * @param {string | null | undefined} project Nothing is followed while there is none.
 * @param {SubscribeOptions} [options]
 * @returns {View}
 */
export function useProject(project, { client, url, batchMs = RENDER_MS } = {}) {
  const store = useMemo(() => storeOf(project ?? "", { client, url, batchMs }), [project, client, url, batchMs]);
  return useSyncExternalStore(store.subscribe, store.view, store.blank);
}

/**
 * A project's workspaces alone, null until the first snapshot. A workspace that did not change is the very same object,
 * so that a memoized row is not rendered again.
 * @param {string | null | undefined} project
 * @param {SubscribeOptions} [options]
 * @returns {Workspaces | null}
 */
export function useWorkspaces(project, { client, url, batchMs = RENDER_MS } = {}) {
  const store = useMemo(() => storeOf(project ?? "", { client, url, batchMs }), [project, client, url, batchMs]);
  return useSyncExternalStore(store.subscribe, () => store.view().workspaces, () => null);
}

/** @param {string} project @param {SubscribeOptions} options */
function storeOf(project, options) {
  const nothing = blank(project);
  /** @type {View | undefined} */
  let view;
  return {
    /** @param {() => void} listener */
    subscribe(listener) {
      if (!project) return () => {};
      const client = options.client ?? sharedClient(options.url);
      view = client.view(project) ?? view;
      return subscribe(
        project,
        (now) => {
          view = now;
          listener();
        },
        options,
      );
    },
    view: () => view ?? options.client?.view(project) ?? nothing,
    blank: () => nothing,
  };
}
