/** React hooks over the client: a component renders when what it shows has changed, and at most every 200 ms. */
export declare const RENDER_MS = 200;
export type View = import("./client.js").View;
export type Workspaces = import("./client.js").Workspaces;
export type SubscribeOptions = import("./client.js").SubscribeOptions;
/** @typedef {import("./client.js").View} View */
/** @typedef {import("./client.js").Workspaces} Workspaces */
/** @typedef {import("./client.js").SubscribeOptions} SubscribeOptions */
/**
 * A project with its standing, version, age and health. It changes with each heartbeat, too.
 * @param {string | null | undefined} project Nothing is followed while there is none.
 * @param {SubscribeOptions} [options]
 * @returns {View}
 */
export declare function useProject(project: string | null | undefined, { client, url, batchMs }?: SubscribeOptions): View;
/**
 * A project's workspaces alone, null until the first snapshot. A workspace that did not change is the very same object,
 * so that a memoized row is not rendered again.
 * @param {string | null | undefined} project
 * @param {SubscribeOptions} [options]
 * @returns {Workspaces | null}
 */
export declare function useWorkspaces(project: string | null | undefined, { client, url, batchMs }?: SubscribeOptions): Workspaces | null;
