/**
 * The client of the treewire protocol, version 1, without dependencies: see docs/protocol.md and docs/clients.md.
 *
 * - `subscribe(project, callback, options)` follows a project; all callers of a page share one connection.
 * - `connect({url, ticket, WebSocket})` makes a connection of its own: for another origin, or for Node.
 * - `applyDelta(cached, frame)` brings any cached state forward by one frame; `judge(cached, frame)` says if it fits.
 * - `stateHash`, `canonical`, `merge` are the parts that prove a state; `statusOf` and `age` are for showing one.
 * - `Treewire` is the connection. `new Treewire(url, {change, connection, health})` tells its hooks of every project
 *   at once: `change(project, view)`; `connection(state, detail)` with connecting, open, waiting or refused;
 *   `health(parts)` with each heartbeat; `error(error)` for what a callback threw.
 *
 * The rules it keeps:
 *
 * 1. What it shows is what the server confirmed. Values are frozen, and what did not change keeps its identity.
 * 2. `from` above its version, another epoch, or another hash at the same version: it asks for a resync. `to` not above
 *    its version: old news. Three resyncs within a minute: it drops its cursor and says degraded.
 * 3. A frame that is malformed is counted and answered with a resync. Types and fields of a later server are ignored.
 *    Neither such a frame nor a callback that throws ends the stream.
 * 4. A lost connection is made again, for ever, with full jitter, at once when the network or the page comes back; only
 *    a close code that says so ends it. What was shown stays, as stale.
 * 5. Who slept looks at once whether anything came meanwhile.
 */
export type Life = {
    readonly name?: string;
    readonly phase?: string;
    readonly branch?: string;
    readonly base?: string;
    readonly changed_at?: number;
};
export type Git = {
    readonly head?: string;
    readonly branch?: string;
    readonly files?: number;
    readonly insertions?: number;
    readonly deletions?: number;
    readonly staged?: number;
    readonly unstaged?: number;
    readonly untracked?: number;
    readonly conflicted?: number;
    readonly ahead?: number;
    readonly behind?: number;
    readonly operation?: string;
    readonly changed_at?: number;
};
export type Pr = {
    readonly number?: number;
    readonly url?: string;
    readonly state?: string;
    readonly review?: string;
    readonly mergeable?: string;
    readonly health?: string;
    readonly changed_at?: number;
};
export type Ci = {
    readonly state?: string;
    readonly passed?: number;
    readonly failed?: number;
    readonly pending?: number;
    readonly health?: string;
    readonly changed_at?: number;
};
export type Ratchet = {
    readonly enabled?: boolean;
    readonly state?: string;
    readonly stalled?: boolean;
    readonly iterating?: boolean;
    readonly changed_at?: number;
};
export type Terminal = {
    readonly active?: boolean;
    readonly last_output?: number;
    readonly changed_at?: number;
};
export type Run = {
    readonly state?: string;
    readonly port?: number;
    readonly changed_at?: number;
};
export type Session = {
    readonly provider?: string;
    readonly name?: string;
    readonly model?: string;
    readonly state?: string;
    readonly waiting_for?: string;
    readonly crashed?: boolean;
    readonly changed_at?: number;
};
export type Status = {
    readonly code?: string;
    readonly column?: string;
    readonly needs_user?: boolean;
    readonly changed_at?: number;
};
export type Entry = {
    life?: Life;
    git?: Git;
    pr?: Pr;
    ci?: Ci;
    ratchet?: Ratchet;
    terminal?: Terminal;
    run?: Run;
    sessions?: Readonly<Record<string, Session>>;
    status?: Status;
};
export type Workspaces = Readonly<Record<string, Readonly<Entry>>>;
export type State = {
    epoch: string;
    version: number;
    /**
     * False while workspaces are left out for want of room.
     */
    complete: boolean;
    workspaces: Workspaces;
};
export type Snapshot = {
    readonly type: "snapshot";
    readonly id: number;
    readonly epoch: string;
    readonly version: number;
    readonly hash: string;
    readonly reason: string;
    readonly complete: boolean;
    readonly workspaces: Workspaces;
};
export type Delta = {
    readonly type: "delta";
    readonly id: number;
    readonly epoch: string;
    readonly from: number;
    readonly to: number;
    readonly patch: Readonly<Record<string, any>>;
};
export type Frame = Snapshot | Delta;
export type Standing = "connecting" | "loading" | "live" | "stale" | "degraded" | "gone" | "refused";
export type View = {
    project: string;
    state: Standing;
    /**
     * Null until the first snapshot, and when it is gone.
     */
    workspaces: Workspaces | null;
    /**
     * Null, as the version, while there is no state to go on from.
     */
    epoch: string | null;
    version: number | null;
    complete: boolean;
    /**
     * The last version whose hash was found equal to the server's.
     */
    verified: number | null;
    /**
     * When the server last said something of this project; wall clock, for `age`.
     */
    heard: number | null;
    /**
     * Of the parts behind the server; an absent part is well.
     */
    health: Readonly<Record<string, any>>;
    /**
     * Why it is gone or refused.
     */
    problem: {
        readonly code: string | number;
        readonly message: string;
    } | null;
};
export type Callback = (view: View, frames: readonly Frame[]) => unknown;
export type SubscribeOptions = {
    /**
     * Least distance of two calls, 0 if not given. The first change, a changed standing and
     * whoever begins or ceases to need the user do not wait.
     */
    batchMs?: number;
    /**
     * The connection to use.
     */
    client?: Treewire;
    /**
     * The server, if it is not the page's own.
     */
    url?: string;
};
export type ConnectOptions = {
    /**
     * The server's address; the page's own if not given.
     */
    url?: string | URL;
    /**
     * Called before each connection, for pages of another origin.
     */
    ticket?: () => string | Promise<string>;
    /**
     * The class to use where there is no global one.
     */
    WebSocket?: any;
    /**
     * How long no heartbeat may come.
     */
    silenceMs?: number;
};
export type Hooks = {
    change?: (project: string, view: View) => unknown;
    connection?: (state: "connecting" | "open" | "waiting" | "refused", detail: string) => unknown;
    health?: (parts: Readonly<Record<string, any>>) => unknown;
    error?: (error: unknown) => unknown;
};
/**
 * Apply a JSON Merge Patch (RFC 7396); neither argument is changed. What is untouched keeps its identity, also where
 * the patch says what is so already.
 * @param {any} target
 * @param {any} patch
 * @returns {any}
 */
export declare function merge(target: any, patch: any): any;
/**
 * What a delta is to whoever holds `held`: it can be applied, is old, or something lies between.
 * @param {State | null | undefined} held
 * @param {Delta} delta
 * @returns {"applied" | "old" | "gap" | "epoch"}
 */
export declare function judge(held: State | null | undefined, delta: Delta): "applied" | "old" | "gap" | "epoch";
/**
 * The one function that brings a cached state forward. What does not fit (see `judge`) or is no state leaves it as it
 * is: the very same object.
 * @template {State | null | undefined} Cached
 * @param {Cached} cached
 * @param {{ readonly type: string }} frame
 * @returns {Cached | State}
 */
export declare function applyDelta<Cached extends State | null | undefined>(cached: Cached, frame: {
    readonly type: string;
}): Cached | State;
/**
 * Sorted keys (by code point), no nulls, no empty objects: the form that is hashed.
 * @param {any} value
 * @returns {string}
 */
export declare function canonical(value: any): string;
/**
 * The state hash of a project: 16 hex digits. Entries that came by `applyDelta` and did not change cost an addition.
 * @param {Readonly<Record<string, any>>} workspaces
 * @returns {string}
 */
export declare function stateHash(workspaces: Readonly<Record<string, any>>): string;
/**
 * An entry's status in words that this release knows; any other is "unknown". Without a column it is on none.
 * @param {Readonly<Entry> | undefined} entry
 * @returns {{ code: string, column: string | null, needs_user: boolean }}
 */
export declare function statusOf(entry: Readonly<Entry> | undefined): {
    code: string;
    column: string | null;
    needs_user: boolean;
};
/**
 * How long ago the server last confirmed a view, in milliseconds; null if it never did.
 * @param {View} view
 * @param {number} [now]
 * @returns {number | null}
 */
export declare function age(view: View, now?: number): number | null;
declare class Subscription {
    id: number;
    project: string;
    /** @type {State | null} */
    held: State | null;
    /** @type {Set<Listener>} */
    listeners: Set<Listener>;
    /** @type {number | null} */
    verified: number | null;
    /** @type {number | null} */
    heard: number | null;
    /** @type {{ code: string | number, message: string } | null} */
    problem: {
        code: string | number;
        message: string;
    } | null;
    gone: boolean;
    answered: boolean;
    cursor: boolean;
    /** @type {{ reason: string, sent: boolean, beats: number } | null} */
    asked: {
        reason: string;
        sent: boolean;
        beats: number;
    } | null;
    /** @type {number[]} */
    resyncs: number[];
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    later: ReturnType<typeof setTimeout> | undefined;
    /** @type {View} */
    view: View;
    /** @param {number} id @param {string} project */
    constructor(id: number, project: string);
    lost(): void;
}
/**
 * The view of a project of which nothing is known yet.
 * @param {string} project
 * @returns {View}
 */
export declare function blank(project: string): View;
/** Calls a callback: at once if it can be, and else when its time has come. */
declare class Listener {
    callback: Callback;
    batchMs: number;
    report: (error: unknown) => void;
    /** @type {Frame[]} */
    frames: Frame[];
    /** @type {View | null} */
    view: View | null;
    /** @type {View | null} */
    shown: View | null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    timer: ReturnType<typeof setTimeout> | undefined;
    last: number;
    ended: boolean;
    /** @param {Callback} callback @param {number} batchMs @param {(error: unknown) => void} report */
    constructor(callback: Callback, batchMs: number, report: (error: unknown) => void);
    /** @param {View} view @param {readonly Frame[]} frames */
    offer(view: View, frames: readonly Frame[]): void;
    deliver(): void;
    end(): void;
}
/** One connection, for ever: it reconnects by itself and resumes from where it was. */
export declare class Treewire {
    url: string;
    on: Hooks;
    options: Omit<ConnectOptions, "url">;
    Socket: any;
    /** @type {Map<string, Subscription>} */
    projects: Map<string, Subscription>;
    /** @type {Map<number, Subscription>} */
    subscriptions: Map<number, Subscription>;
    next: number;
    tries: number;
    heartbeatMs: number;
    /** How many frames were not what the protocol says. */
    malformed: number;
    /** @type {Readonly<Record<string, any>>} */
    health: Readonly<Record<string, any>>;
    /** @type {any} */
    socket: any;
    generation: number;
    opening: boolean;
    greeted: boolean;
    stopped: boolean;
    /** @type {{ code: number, message: string } | null} */
    refused: {
        code: number;
        message: string;
    } | null;
    clock: () => number;
    beat: number;
    ticked: number;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    retry: ReturnType<typeof setTimeout> | undefined;
    wake: () => void;
    report: (error: unknown) => void;
    ticker: number;
    /**
     * @param {string | URL} url Of the stream, `ws://…/v1/stream`, or of the server.
     * @param {Hooks} [on]
     * @param {Omit<ConnectOptions, "url">} [options]
     */
    constructor(url: string | URL, on?: Hooks, options?: Omit<ConnectOptions, "url">);
    /**
     * Follow a project; returns a function that ends it. The callback is called soon with what is known, and then with
     * each change; after state gone it is not called any more.
     * @param {string} project
     * @param {Callback} [callback]
     * @param {Pick<SubscribeOptions, "batchMs">} [options]
     * @returns {() => void}
     */
    subscribe(project: string, callback?: Callback, { batchMs }?: Pick<SubscribeOptions, "batchMs">): () => void;
    /** What is known of a project at the moment. @param {string} project @returns {View | undefined} */
    view(project: string): View | undefined;
    /** End it all. */
    close(): void;
    /** @private */
    private open;
    /** @private @param {number} mine @param {string | undefined} ticket */
    private dial;
    /** @private @param {number} code @param {string} reason @param {boolean} [atOnce] */
    private closed;
    /** @private How long after a heartbeat the next one is overdue. */
    private get missed();
    /** @private */
    private tick;
    /** @private @param {number} limit @param {boolean} [atOnce] */
    private check;
    /** @private @param {"connecting" | "open" | "waiting" | "refused"} state @param {string} detail */
    private told;
    /** @private @param {object} message */
    private send;
    /** @private @param {Subscription} one */
    private ask;
    /** @private @param {Subscription} one */
    private leave;
    /** @private @param {unknown} data */
    private take;
    /**
     * Count a malformed frame. If it tells whose it is, ask again for what it may have said; else the next heartbeat
     * shows whether anything was lost.
     * @private @param {Subscription | undefined} one
     */
    private mistrust;
    /** @private @param {any} frame */
    private understand;
    /** @private @param {Subscription} one @param {Snapshot} frame */
    private snapshot;
    /** @private @param {Subscription} one @param {Delta} frame */
    private delta;
    /** @private @param {Subscription} one @param {{ type: string, code: string, message?: unknown }} frame */
    private over;
    /** @private @param {{ n: number, subscriptions: Record<string, { version: number, hash: string, complete?: boolean }>, health?: Record<string, any> }} frame */
    private heartbeat;
    /** @private @param {Subscription} one @param {{ version: number, hash: string, complete?: boolean }} mark @param {string} hash */
    private compare;
    /** @private @param {Subscription} one */
    private recent;
    /** @private @param {Subscription} one @param {"gap" | "hash"} reason */
    private resync;
    /** @private @param {Subscription} one @returns {Standing} */
    private standing;
    /** @private @param {Subscription} one @returns {View} */
    private look;
    /** @private @param {Subscription} one @param {readonly Frame[]} [frames] */
    private changed;
}
/**
 * A connection of its own.
 * @param {ConnectOptions & { on?: Hooks }} [options]
 * @returns {Treewire}
 */
export declare function connect({ url, on, ...options }?: ConnectOptions & {
    on?: Hooks;
}): Treewire;
/**
 * The connection that everybody shares who asks for this server.
 * @param {string | URL} [url]
 * @returns {Treewire}
 */
export declare function sharedClient(url?: string | URL): Treewire;
/**
 * Follow a project; returns a function that ends it. Callers share one connection, which ends with the last of them.
 * @param {string} project
 * @param {Callback} callback
 * @param {SubscribeOptions} [options]
 * @returns {() => void}
 */
export declare function subscribe(project: string, callback: Callback, { client, url, batchMs }?: SubscribeOptions): () => void;
export {};
