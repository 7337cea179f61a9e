/** The adapter for react-query: a query whose data is the project's state, kept up to date by the stream. */

import { applyDelta, subscribe } from "./client.js";

export const RENDER_MS = 200;

/** @typedef {import("./client.js").State} State */
/** @typedef {import("./client.js").View} View */
/** @typedef {import("./client.js").Frame} Frame */

/**
 * What is used of a QueryClient.
 * @typedef {{ setQueryData(key: readonly unknown[], update: (cached: State | null | undefined) => State | null | undefined): unknown }} Cache
 */

/**
 * Keep the query of a project up to date. `options` is for `useQuery`: its data is the state, or null once the project
 * is gone; `end` ends it.
 * @param {Cache} queryClient
 * @param {string} project
 * @param {import("./client.js").SubscribeOptions & { queryKey?: readonly unknown[] }} [options]
 */
export function followQuery(queryClient, project, { queryKey = ["treewire", project], batchMs = RENDER_MS, ...options } = {}) {
  const end = subscribe(
    project,
    (view, frames) => {
      queryClient.setQueryData(queryKey, (cached) => forward(cached, view, frames));
    },
    { ...options, batchMs },
  );
  return {
    options: {
      queryKey,
      queryFn: (/** @type {{ signal?: AbortSignal }} */ context) => first(project, options, context?.signal),
      staleTime: Infinity, // the stream says when it is not
    },
    end,
  };
}

/**
 * What to cache after these frames: the cached state brought forward; if it was not the one that they continue (it was
 * collected or fetched elsewhere), the view's own.
 * @param {State | null | undefined} cached
 * @param {View} view
 * @param {readonly Frame[]} frames
 * @returns {State | null | undefined}
 */
export function forward(cached, view, frames) {
  if (view.state === "gone") return null;
  if (view.version === null) return cached; // loading, or about to be fetched anew
  const next = frames.reduce((state, frame) => applyDelta(state, frame), cached ?? undefined);
  const fits = next?.epoch === view.epoch && next.version === view.version && next.complete === view.complete;
  return fits ? next : stateOf(view);
}

/** @param {View} view @returns {State} */
function stateOf({ epoch, version, complete, workspaces }) {
  return /** @type {State} */ (Object.freeze({ epoch, version, complete, workspaces }));
}

/** @param {string} project @param {import("./client.js").SubscribeOptions} options @param {AbortSignal} [signal] @returns {Promise<State | null>} */
function first(project, options, signal) {
  return new Promise((resolve, reject) => {
    const end = subscribe(
      project,
      (view) => {
        if (view.state === "refused") reject(new Error("treewire refused: " + view.problem?.message));
        else if (view.state === "gone") resolve(null);
        else if (view.version !== null) resolve(stateOf(view));
        else return;
        end();
      },
      options,
    );
    signal?.addEventListener("abort", () => {
      end();
      reject(signal.reason);
    });
  });
}
