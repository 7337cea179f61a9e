/** The adapter for react-query: a query whose data is the project's state, kept up to date by the stream. */
export declare const RENDER_MS = 200;
export type State = import("./client.js").State;
export type View = import("./client.js").View;
export type Frame = import("./client.js").Frame;
export type Cache = {
    setQueryData(key: readonly unknown[], update: (cached: State | null | undefined) => State | null | undefined): unknown;
};
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
export declare function followQuery(queryClient: Cache, project: string, { queryKey, batchMs, ...options }?: import("./client.js").SubscribeOptions & {
    queryKey?: readonly unknown[];
}): {
    options: {
        queryKey: readonly unknown[];
        queryFn: (/** @type {{ signal?: AbortSignal }} */ context: {
            signal?: AbortSignal;
        }) => Promise<import("./client.js").State | null>;
        staleTime: number;
    };
    end: () => void;
};
/**
 * What to cache after these frames: the cached state brought forward; if it was not the one that they continue (it was
 * collected or fetched elsewhere), the view's own.
 * @param {State | null | undefined} cached
 * @param {View} view
 * @param {readonly Frame[]} frames
 * @returns {State | null | undefined}
 */
export declare function forward(cached: State | null | undefined, view: View, frames: readonly Frame[]): State | null | undefined;
