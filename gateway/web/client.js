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

const SUBPROTOCOL = "treewire.v1";
const OPEN = 1;
const RECONNECT_MIN_MS = 250;
const RECONNECT_FIRST_MS = 1000;
const RECONNECT_MAX_MS = 15_000;
const SILENCE_MS = 25_000;
const SILENT_BEATS = 2.5;
const MISSED_BEATS = 1.5;
const TICK_MS = 1000;
const LATE_MS = 3000;
const GRACE_MS = 500;
const MINUTE_MS = 60_000;
const RESYNCS_PER_MINUTE = 3;
const FRAMES_KEPT = 64;

/**
 * @typedef {{ readonly name?: string, readonly phase?: string, readonly branch?: string, readonly base?: string, readonly changed_at?: number }} Life
 * @typedef {{ readonly head?: string, readonly branch?: string, readonly files?: number, readonly insertions?: number, readonly deletions?: number, readonly staged?: number, readonly unstaged?: number, readonly untracked?: number, readonly conflicted?: number, readonly ahead?: number, readonly behind?: number, readonly operation?: string, readonly changed_at?: number }} Git
 * @typedef {{ readonly number?: number, readonly url?: string, readonly state?: string, readonly review?: string, readonly mergeable?: string, readonly health?: string, readonly changed_at?: number }} Pr
 * @typedef {{ readonly state?: string, readonly passed?: number, readonly failed?: number, readonly pending?: number, readonly health?: string, readonly changed_at?: number }} Ci
 * @typedef {{ readonly enabled?: boolean, readonly state?: string, readonly stalled?: boolean, readonly iterating?: boolean, readonly changed_at?: number }} Ratchet
 * @typedef {{ readonly active?: boolean, readonly last_output?: number, readonly changed_at?: number }} Terminal
 * @typedef {{ readonly state?: string, readonly port?: number, readonly changed_at?: number }} Run
 * @typedef {{ readonly provider?: string, readonly name?: string, readonly model?: string, readonly state?: string, readonly waiting_for?: string, readonly crashed?: boolean, readonly changed_at?: number }} Session
 * @typedef {{ readonly code?: string, readonly column?: string, readonly needs_user?: boolean, readonly changed_at?: number }} Status
 *
 * @typedef {object} Entry One workspace. A group or field that is absent is not known.
 * @property {Life} [life]
 * @property {Git} [git]
 * @property {Pr} [pr]
 * @property {Ci} [ci]
 * @property {Ratchet} [ratchet]
 * @property {Terminal} [terminal]
 * @property {Run} [run]
 * @property {Readonly<Record<string, Session>>} [sessions]
 * @property {Status} [status]
 *
 * @typedef {Readonly<Record<string, Readonly<Entry>>>} Workspaces By their ids.
 *
 * @typedef {object} State What is cached: the body of `GET /v1/projects/{project}/snapshot` is one, too.
 * @property {string} epoch
 * @property {number} version
 * @property {boolean} complete False while workspaces are left out for want of room.
 * @property {Workspaces} workspaces
 *
 * @typedef {{ readonly type: "snapshot", readonly id: number, readonly epoch: string, readonly version: number, readonly hash: string, readonly reason: string, readonly complete: boolean, readonly workspaces: Workspaces }} Snapshot
 * @typedef {{ readonly type: "delta", readonly id: number, readonly epoch: string, readonly from: number, readonly to: number, readonly patch: Readonly<Record<string, any>> }} Delta
 * @typedef {Snapshot | Delta} Frame
 *
 * @typedef {"connecting" | "loading" | "live" | "stale" | "degraded" | "gone" | "refused"} Standing
 *   connecting, loading: nothing to show yet. live: confirmed. stale: shown, but the server or what it follows has not
 *   been heard since. degraded: it had to be fetched again and again. gone: there is no such project, or not for you.
 *   refused: the server does not want this client, and it does not try again.
 *
 * @typedef {object} View A project as it can be shown; never changed, always replaced.
 * @property {string} project
 * @property {Standing} state
 * @property {Workspaces | null} workspaces Null until the first snapshot, and when it is gone.
 * @property {string | null} epoch Null, as the version, while there is no state to go on from.
 * @property {number | null} version
 * @property {boolean} complete
 * @property {number | null} verified The last version whose hash was found equal to the server's.
 * @property {number | null} heard When the server last said something of this project; wall clock, for `age`.
 * @property {Readonly<Record<string, any>>} health Of the parts behind the server; an absent part is well.
 * @property {{ readonly code: string | number, readonly message: string } | null} problem Why it is gone or refused.
 *
 * @callback Callback
 * @param {View} view The project as it is now.
 * @param {readonly Frame[]} frames What has been applied since the last call, for `applyDelta`. Empty if only the
 *   view's standing changed.
 * @returns {unknown}
 *
 * @typedef {object} SubscribeOptions
 * @property {number} [batchMs] Least distance of two calls, 0 if not given. The first change, a changed standing and
 *   whoever begins or ceases to need the user do not wait.
 * @property {Treewire} [client] The connection to use.
 * @property {string} [url] The server, if it is not the page's own.
 *
 * @typedef {object} ConnectOptions
 * @property {string | URL} [url] The server's address; the page's own if not given.
 * @property {() => string | Promise<string>} [ticket] Called before each connection, for pages of another origin.
 * @property {any} [WebSocket] The class to use where there is no global one.
 * @property {number} [silenceMs] How long no heartbeat may come.
 *
 * @typedef {object} Hooks
 * @property {(project: string, view: View) => unknown} [change]
 * @property {(state: "connecting" | "open" | "waiting" | "refused", detail: string) => unknown} [connection]
 * @property {(parts: Readonly<Record<string, any>>) => unknown} [health]
 * @property {(error: unknown) => unknown} [error]
 */

// ── state: pure ──────────────────────────────────────────────────────────────────────────────────

/** @type {Readonly<Record<string, any>>} */
const NOTHING = Object.freeze({});

/** @param {unknown} value @returns {value is Record<string, any>} */
function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

/** @param {Readonly<Record<string, any>>} object @param {string} key @returns {any} */
function own(object, key) {
  return Object.hasOwn(object, key) ? object[key] : undefined;
}

/** @param {unknown} a @param {unknown} b */
function same(a, b) {
  return Object.is(a, b) || (Array.isArray(a) && Array.isArray(b) && JSON.stringify(a) === JSON.stringify(b));
}

/**
 * Apply a JSON Merge Patch (RFC 7396); neither argument is changed. What is untouched keeps its identity, also where
 * the patch says what is so already.
 * @param {any} target
 * @param {any} patch
 * @returns {any}
 */
export function merge(target, patch) {
  if (!isObject(patch)) return same(target, patch) ? target : patch;
  const held = isObject(target) ? target : NOTHING;
  let changed = !isObject(target);
  const result = new Map(Object.entries(held)); // a Map knows no `__proto__`
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) {
      changed = result.delete(key) || changed;
      continue;
    }
    const before = result.get(key);
    const after = merge(before, value);
    if (before !== undefined && Object.is(before, after)) continue;
    result.set(key, after);
    changed = true;
  }
  return changed ? Object.freeze(Object.fromEntries(result)) : target;
}

/**
 * `fresh`, with the identity of everything in `old` that is equal to it.
 * @param {any} old
 * @param {any} fresh
 * @returns {any}
 */
function reuse(old, fresh) {
  if (!isObject(fresh)) return same(old, fresh) ? old : fresh;
  const held = isObject(old) ? old : NOTHING;
  const pairs = Object.entries(fresh).map(([key, value]) => [key, reuse(own(held, key), value)]);
  const equal = isObject(old) && pairs.length === Object.keys(old).length;
  if (equal && pairs.every(([key, value]) => Object.is(value, own(old, key)))) return old;
  return Object.freeze(Object.fromEntries(pairs));
}

/**
 * What a delta is to whoever holds `held`: it can be applied, is old, or something lies between.
 * @param {State | null | undefined} held
 * @param {Delta} delta
 * @returns {"applied" | "old" | "gap" | "epoch"}
 */
export function judge(held, delta) {
  if (!held || held.epoch !== delta.epoch) return "epoch";
  if (delta.to <= held.version) return "old";
  return delta.from > held.version ? "gap" : "applied";
}

/**
 * The one function that brings a cached state forward. What does not fit (see `judge`) or is no state leaves it as it
 * is: the very same object.
 * @template {State | null | undefined} Cached
 * @param {Cached} cached
 * @param {{ readonly type: string }} frame
 * @returns {Cached | State}
 */
export function applyDelta(cached, frame) {
  if (frame.type === "snapshot") {
    const { epoch, version, complete = true, workspaces } = /** @type {Snapshot} */ (frame);
    return Object.freeze({ epoch, version, complete, workspaces: reuse(cached?.workspaces, workspaces) });
  }
  const delta = /** @type {Delta} */ (frame);
  if (frame.type !== "delta" || !cached || judge(cached, delta) !== "applied") return cached;
  const { epoch, complete, workspaces } = cached;
  return Object.freeze({ epoch, version: delta.to, complete, workspaces: merge(workspaces, delta.patch) });
}

/**
 * Sorted keys (by code point), no nulls, no empty objects: the form that is hashed.
 * @param {any} value
 * @returns {string}
 */
export function canonical(value) {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return "[" + value.map(canonical).join(",") + "]";
  const parts = [];
  for (const key of Object.keys(value).sort(byCodePoint)) {
    const inner = value[key];
    if (inner === null || inner === undefined) continue;
    const text = canonical(inner);
    if (text !== "{}") parts.push(JSON.stringify(key) + ":" + text);
  }
  return "{" + parts.join(",") + "}";
}

/** @param {string} a @param {string} b */
function byCodePoint(a, b) {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at++) {
    const difference = rank(a.charCodeAt(at)) - rank(b.charCodeAt(at));
    if (difference) return difference;
  }
  return a.length - b.length;
}

/** UTF-16 has the surrogates below U+E000, although they stand for what lies above U+FFFF. @param {number} unit */
function rank(unit) {
  return unit < 0xd800 ? unit : unit < 0xe000 ? unit + 0x2000 : unit - 0x800;
}

/** @type {WeakMap<object, { workspace: string, share: bigint }>} */
const shares = new WeakMap(); // entries never change, so each is hashed once

/** @param {string} workspace @param {any} entry */
function share(workspace, entry) {
  const found = isObject(entry) && Object.isFrozen(entry) ? shares.get(entry) : undefined;
  if (found?.workspace === workspace) return found.share;
  const counted = sha256Head("[" + JSON.stringify(workspace) + "," + canonical(entry) + "]");
  if (isObject(entry) && Object.isFrozen(entry)) shares.set(entry, { workspace, share: counted });
  return counted;
}

/**
 * The state hash of a project: 16 hex digits. Entries that came by `applyDelta` and did not change cost an addition.
 * @param {Readonly<Record<string, any>>} workspaces
 * @returns {string}
 */
export function stateHash(workspaces) {
  let sum = 0n;
  for (const [workspace, entry] of Object.entries(workspaces)) sum += share(workspace, entry);
  return BigInt.asUintN(64, sum).toString(16).padStart(16, "0");
}

const COLUMNS = ["working", "waiting", "done"];
const CODES = new Set([
  "archiving", "archived", "merged", "pr_closed", "needs_plan_approval", "needs_answer", "needs_permission",
  "needs_auth", "session_error", "setting_up", "setup_failed", "agent_working", "starting_session", "auto_iterating",
  "ratchet_stalled", "fixing_merge_conflict", "merge_conflict", "waiting_for_ci", "fixing_review_comments",
  "fixing_ci_failures", "ci_failed", "checking_pr", "ready_to_merge", "ready_for_review", "session_unknown",
  "no_session_started", "ready_for_next_prompt",
]);

/**
 * An entry's status in words that this release knows; any other is "unknown". Without a column it is on none.
 * @param {Readonly<Entry> | undefined} entry
 * @returns {{ code: string, column: string | null, needs_user: boolean }}
 */
export function statusOf(entry) {
  const { code = "unknown", column = null, needs_user = false } = entry?.status ?? {};
  return {
    code: CODES.has(code) ? code : "unknown",
    column: column === null || COLUMNS.includes(column) ? column : "unknown",
    needs_user: needs_user === true,
  };
}

/**
 * How long ago the server last confirmed a view, in milliseconds; null if it never did.
 * @param {View} view
 * @param {number} [now]
 * @returns {number | null}
 */
export function age(view, now = Date.now()) {
  return view.heard === null ? null : Math.max(0, now - view.heard);
}

// ── SHA-256 (FIPS 180-4): the browser's own is missing where a page came by plain http ───────────

const ROUNDS = Int32Array.from(
  (
    "428a2f98 71374491 b5c0fbcf e9b5dba5 3956c25b 59f111f1 923f82a4 ab1c5ed5 d807aa98 12835b01 243185be 550c7dc3 72be5d74 80deb1fe " +
    "9bdc06a7 c19bf174 e49b69c1 efbe4786 0fc19dc6 240ca1cc 2de92c6f 4a7484aa 5cb0a9dc 76f988da 983e5152 a831c66d b00327c8 bf597fc7 " +
    "c6e00bf3 d5a79147 06ca6351 14292967 27b70a85 2e1b2138 4d2c6dfc 53380d13 650a7354 766a0abb 81c2c92e 92722c85 a2bfe8a1 a81a664b " +
    "c24b8b70 c76c51a3 d192e819 d6990624 f40e3585 106aa070 19a4c116 1e376c08 2748774c 34b0bcb5 391c0cb3 4ed8aa4a 5b9cca4f 682e6ff3 " +
    "748f82ee 78a5636f 84c87814 8cc70208 90befffa a4506ceb bef9a3f7 c67178f2"
  ).split(" "),
  (word) => Number.parseInt(word, 16),
);
const START = [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
const encoder = new TextEncoder();
const schedule = new Int32Array(64);

/** The first 8 bytes of SHA-256 over the text's UTF-8, as a big-endian number. @param {string} text */
function sha256Head(text) {
  const bytes = encoder.encode(text);
  const blocks = (bytes.length + 9 + 63) >> 6;
  const padded = new Uint8Array(blocks * 64);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(padded.length - 8, BigInt(bytes.length) * 8n);
  const hash = Int32Array.from(START);
  for (let block = 0; block < blocks; block++) {
    for (let i = 0; i < 16; i++) schedule[i] = view.getInt32(block * 64 + i * 4);
    for (let i = 16; i < 64; i++) {
      const x = schedule[i - 15], y = schedule[i - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      schedule[i] = schedule[i - 16] + s0 + schedule[i - 7] + s1;
    }
    let [a, b, c, d, e, f, g, h] = hash;
    for (let i = 0; i < 64; i++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUNDS[i] + schedule[i]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
    }
    const mixed = [a, b, c, d, e, f, g, h];
    for (let i = 0; i < 8; i++) hash[i] += mixed[i];
  }
  return (BigInt(hash[0] >>> 0) << 32n) | BigInt(hash[1] >>> 0);
}

// ── what a frame must be to be believed; what more it holds is ignored ───────────────────────────

/** @param {unknown} value */
const isName = (value) => typeof value === "string";
/** @param {unknown} value */
const isCount = (value) => Number.isSafeInteger(value) && Number(value) >= 0;
/** @param {unknown} value */
const isFlag = (value) => value === undefined || typeof value === "boolean";
/** @param {unknown} value */
const isMark = (value) => isObject(value) && isCount(value.version) && isName(value.hash) && isFlag(value.complete);
/** @param {unknown} value */
const isEntries = (value) => isObject(value) && Object.values(value).every(isObject);
/** @param {unknown} value */
const isPatch = (value) => isObject(value) && Object.values(value).every((one) => one === null || isObject(one));

/** @type {Record<string, (frame: Record<string, any>) => boolean>} */
const FORMS = {
  welcome: () => true,
  loading: (f) => isCount(f.id),
  snapshot: (f) => isCount(f.id) && isName(f.epoch) && isCount(f.version) && isName(f.hash) && isFlag(f.complete) && isEntries(f.workspaces),
  delta: (f) => isCount(f.id) && isName(f.epoch) && isCount(f.from) && isCount(f.to) && f.from <= f.to && isPatch(f.patch),
  heartbeat: (f) => isCount(f.n) && isObject(f.subscriptions) && Object.values(f.subscriptions).every(isMark) && (f.health === undefined || isObject(f.health)),
  end: (f) => isCount(f.id) && isName(f.code),
  error: (f) => isCount(f.id) && isName(f.code),
};

// ── one project on one connection ────────────────────────────────────────────────────────────────

class Subscription {
  /** @param {number} id @param {string} project */
  constructor(id, project) {
    this.id = id;
    this.project = project;
    /** @type {State | null} */
    this.held = null;
    /** @type {Set<Listener>} */
    this.listeners = new Set();
    /** @type {number | null} */
    this.verified = null;
    /** @type {number | null} */
    this.heard = null;
    /** @type {{ code: string | number, message: string } | null} */
    this.problem = null;
    this.gone = false;
    this.answered = false; // on this connection
    this.cursor = true; // whether `held` counts as a place to go on from
    /** @type {{ reason: string, sent: boolean, beats: number } | null} */
    this.asked = null; // a resync that was not answered yet
    /** @type {number[]} */
    this.resyncs = [];
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.later = undefined;
    /** @type {View} */
    this.view = blank(project);
  }

  lost() {
    this.answered = false;
    this.asked = null;
    clearTimeout(this.later);
  }
}

/**
 * The view of a project of which nothing is known yet.
 * @param {string} project
 * @returns {View}
 */
export function blank(project) {
  return Object.freeze({
    project, state: "connecting", workspaces: null, epoch: null, version: null, complete: true, verified: null,
    heard: null, health: NOTHING, problem: null,
  });
}

/** Calls a callback: at once if it can be, and else when its time has come. */
class Listener {
  /** @param {Callback} callback @param {number} batchMs @param {(error: unknown) => void} report */
  constructor(callback, batchMs, report) {
    this.callback = callback;
    this.batchMs = batchMs;
    this.report = report;
    /** @type {Frame[]} */
    this.frames = [];
    /** @type {View | null} */
    this.view = null;
    /** @type {View | null} */
    this.shown = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.last = -Infinity;
    this.ended = false;
  }

  /** @param {View} view @param {readonly Frame[]} frames */
  offer(view, frames) {
    if (this.ended) return;
    this.view = view;
    this.frames.push(...frames);
    const wait = this.last + this.batchMs - performance.now();
    if (wait <= 0 || this.frames.length > FRAMES_KEPT || isUrgent(this.shown, view)) this.deliver();
    else this.timer ??= setTimeout(() => this.deliver(), wait);
  }

  deliver() {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.ended || this.view === null) return;
    const frames = this.frames;
    this.frames = [];
    this.shown = this.view;
    this.last = performance.now();
    const { callback, shown } = this;
    attempt(() => callback(shown, frames), this.report);
  }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
  }
}

/** Whether somebody should see this before the batch is due. @param {View | null} shown @param {View} view */
function isUrgent(shown, view) {
  if (shown === null || shown.state !== view.state) return true;
  const before = shown.workspaces ?? NOTHING, after = view.workspaces ?? NOTHING;
  if (before === after) return false;
  for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
    const was = own(before, name), is = own(after, name);
    if (was !== is && (was?.status?.needs_user === true) !== (is?.status?.needs_user === true)) return true;
  }
  return false;
}

/** Run somebody else's code: whatever it throws, now or later, is reported and nothing more. @param {() => unknown} work @param {(error: unknown) => void} report */
function attempt(work, report) {
  try {
    const result = work();
    if (result instanceof Promise) result.catch(report);
  } catch (error) {
    report(error);
  }
}

/** Milliseconds that pass also while the host sleeps, and never run backwards. */
function makeClock() {
  let passed = 0, steady = performance.now(), wall = Date.now();
  return () => {
    const [steadyNow, wallNow] = [performance.now(), Date.now()];
    passed += Math.max(0, steadyNow - steady, wallNow - wall);
    [steady, wall] = [steadyNow, wallNow];
    return passed;
  };
}

/** @param {number} most */
function jitter(most) {
  return RECONNECT_MIN_MS + Math.random() * (most - RECONNECT_MIN_MS);
}

// ── the connection ───────────────────────────────────────────────────────────────────────────────

/** One connection, for ever: it reconnects by itself and resumes from where it was. */
export class Treewire {
  /**
   * @param {string | URL} url Of the stream, `ws://…/v1/stream`, or of the server.
   * @param {Hooks} [on]
   * @param {Omit<ConnectOptions, "url">} [options]
   */
  constructor(url, on = {}, options = {}) {
    this.url = streamUrl(url);
    this.on = on;
    this.options = options;
    this.Socket = options.WebSocket ?? globalThis.WebSocket;
    if (!this.Socket) throw new TypeError("there is no WebSocket here: give one, as connect({ WebSocket })");
    /** @type {Map<string, Subscription>} */
    this.projects = new Map();
    /** @type {Map<number, Subscription>} */
    this.subscriptions = new Map();
    this.next = 1;
    this.tries = 0;
    this.heartbeatMs = 0;
    /** How many frames were not what the protocol says. */
    this.malformed = 0;
    /** @type {Readonly<Record<string, any>>} */
    this.health = NOTHING;
    /** @type {any} */
    this.socket = null;
    this.generation = 0; // of sockets: whatever an older one still says is not heard
    this.opening = false;
    this.greeted = false;
    this.stopped = false;
    /** @type {{ code: number, message: string } | null} */
    this.refused = null;
    this.clock = makeClock();
    this.beat = this.ticked = this.clock();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.retry = undefined;
    this.wake = () => {
      if (globalThis.document?.visibilityState === "hidden" || this.stopped || this.refused) return;
      if (this.greeted) setTimeout(() => this.check(this.missed, true), GRACE_MS);
      else if (!this.socket && !this.opening) this.open();
    };
    globalThis.addEventListener?.("online", this.wake);
    globalThis.addEventListener?.("pageshow", this.wake);
    globalThis.document?.addEventListener("visibilitychange", this.wake);
    globalThis.document?.addEventListener("resume", this.wake);
    this.report = (/** @type {unknown} */ error) => {
      if (this.on.error) attempt(() => this.on.error?.(error), console.error);
      else if (globalThis.reportError) globalThis.reportError(error);
      else console.error(error);
    };
    this.open();
    this.ticker = setInterval(() => this.tick(), TICK_MS);
  }

  /**
   * Follow a project; returns a function that ends it. The callback is called soon with what is known, and then with
   * each change; after state gone it is not called any more.
   * @param {string} project
   * @param {Callback} [callback]
   * @param {Pick<SubscribeOptions, "batchMs">} [options]
   * @returns {() => void}
   */
  subscribe(project, callback = () => {}, { batchMs = 0 } = {}) {
    let one = this.projects.get(project);
    if (!one) {
      one = new Subscription(this.next++, project);
      this.projects.set(project, one);
      this.subscriptions.set(one.id, one);
      one.view = this.look(one);
      if (this.greeted) this.ask(one);
    }
    const followed = one;
    const listener = new Listener(callback, batchMs, this.report);
    followed.listeners.add(listener);
    queueMicrotask(() => {
      if (listener.shown === null) listener.offer(followed.view, followed.held ? [asSnapshot(followed)] : []);
    });
    return () => {
      listener.end();
      if (followed.listeners.delete(listener) && followed.listeners.size === 0) this.leave(followed);
    };
  }

  /** What is known of a project at the moment. @param {string} project @returns {View | undefined} */
  view(project) {
    return this.projects.get(project)?.view;
  }

  /** End it all. */
  close() {
    this.stopped = true;
    globalThis.removeEventListener?.("online", this.wake);
    globalThis.removeEventListener?.("pageshow", this.wake);
    globalThis.document?.removeEventListener("visibilitychange", this.wake);
    globalThis.document?.removeEventListener("resume", this.wake);
    clearTimeout(this.retry);
    clearInterval(this.ticker);
    for (const one of this.subscriptions.values()) {
      one.lost();
      for (const listener of one.listeners) listener.end();
    }
    this.projects.clear();
    this.subscriptions.clear();
    this.generation++;
    this.socket?.close(1000);
    this.socket = null;
    this.greeted = false;
  }

  // ── connecting ─────────────────────────────────────────────────────────────────────────────────

  /** @private */
  open() {
    clearTimeout(this.retry);
    const mine = ++this.generation;
    this.opening = true;
    this.beat = this.clock();
    this.told("connecting", "");
    const { ticket } = this.options;
    if (!ticket) {
      this.dial(mine, undefined);
      return;
    }
    Promise.resolve().then(ticket).then(
      (given) => mine === this.generation && this.dial(mine, given),
      (error) => mine === this.generation && this.closed(0, "no ticket: " + (error?.message ?? error)),
    ).catch(this.report);
  }

  /** @private @param {number} mine @param {string | undefined} ticket */
  dial(mine, ticket) {
    const socket = new this.Socket(this.url, [SUBPROTOCOL]);
    this.socket = socket;
    this.opening = false;
    socket.onopen = () => {
      if (mine === this.generation) this.send(ticket === undefined ? { type: "hello" } : { type: "hello", ticket });
    };
    socket.onmessage = (/** @type {{ data: unknown }} */ event) => {
      if (mine === this.generation) this.take(event.data);
    };
    socket.onclose = (/** @type {{ code: number, reason: string }} */ event) => {
      if (mine === this.generation) this.closed(event.code, event.reason);
    };
    socket.onerror = () => {}; // a close follows
  }

  /** @private @param {number} code @param {string} reason @param {boolean} [atOnce] */
  closed(code, reason, atOnce = false) {
    this.generation++;
    this.socket = null;
    this.opening = false;
    this.greeted = false;
    if (this.stopped) return;
    for (const one of this.subscriptions.values()) one.lost();
    if (code >= 4500 && code <= 4999) {
      this.refused = { code, message: reason || "code " + code };
      this.told("refused", this.refused.message);
    } else if (atOnce) {
      this.open();
    } else {
      const most = Math.min(RECONNECT_MAX_MS, RECONNECT_FIRST_MS * 2 ** Math.min(this.tries++, 10));
      this.retry = setTimeout(() => this.open(), jitter(most));
      this.told("waiting", reason);
    }
    for (const one of this.subscriptions.values()) this.changed(one);
  }

  /** @private How long after a heartbeat the next one is overdue. */
  get missed() {
    return Math.max(MISSED_BEATS * this.heartbeatMs, TICK_MS);
  }

  /** @private */
  tick() {
    const now = this.clock();
    const slept = now - this.ticked > LATE_MS;
    this.ticked = now;
    // What came during a sleep is delivered before it is judged.
    if (slept) this.wake();
    else this.check(Math.max(this.options.silenceMs ?? SILENCE_MS, SILENT_BEATS * this.heartbeatMs));
  }

  /** @private @param {number} limit @param {boolean} [atOnce] */
  check(limit, atOnce = false) {
    if (this.stopped || !(this.socket || this.opening) || this.clock() - this.beat <= limit) return;
    const socket = this.socket;
    this.closed(0, "nothing was heard", atOnce);
    if (socket?.terminate) socket.terminate(); // a closing handshake would wait for somebody who is not there
    else socket?.close();
  }

  /** @private @param {"connecting" | "open" | "waiting" | "refused"} state @param {string} detail */
  told(state, detail) {
    attempt(() => this.on.connection?.(state, detail), this.report);
  }

  // ── talking ────────────────────────────────────────────────────────────────────────────────────

  /** @private @param {object} message */
  send(message) {
    if (this.socket?.readyState === OPEN) this.socket.send(JSON.stringify(message));
  }

  /** @private @param {Subscription} one */
  ask(one) {
    const cursor = one.held && one.cursor ? { epoch: one.held.epoch, version: one.held.version } : {};
    this.send({ type: "subscribe", id: one.id, project: one.project, ...cursor });
  }

  /** @private @param {Subscription} one */
  leave(one) {
    one.lost();
    if (this.subscriptions.delete(one.id) && this.greeted) this.send({ type: "unsubscribe", id: one.id });
    if (this.projects.get(one.project) === one) this.projects.delete(one.project);
  }

  /** @private @param {unknown} data */
  take(data) {
    /** @type {any} */
    let frame;
    try {
      frame = JSON.parse(/** @type {string} */ (data));
      if (!isObject(frame) || !isName(frame.type)) this.mistrust(undefined);
      else if (!Object.hasOwn(FORMS, frame.type)) return; // of a later protocol
      else if (FORMS[frame.type](frame)) this.understand(frame);
      else this.mistrust(this.subscriptions.get(frame.id));
    } catch {
      this.mistrust(this.subscriptions.get(frame?.id)); // not JSON, or nested beyond all measure
    }
  }

  /**
   * Count a malformed frame. If it tells whose it is, ask again for what it may have said; else the next heartbeat
   * shows whether anything was lost.
   * @private @param {Subscription | undefined} one
   */
  mistrust(one) {
    this.malformed++;
    if (!one) return;
    if (one.asked?.sent) one.asked = null; // this may have been the answer
    this.resync(one, "gap");
  }

  /** @private @param {any} frame */
  understand(frame) {
    if (frame.type === "welcome") {
      this.greeted = true;
      this.heartbeatMs = isCount(frame.heartbeat_ms) ? frame.heartbeat_ms : 0;
      this.beat = this.clock();
      this.told("open", "");
      for (const one of this.subscriptions.values()) {
        one.problem = null;
        this.ask(one);
        this.changed(one);
      }
      return;
    }
    this.tries = 0; // who is spoken to is connected; a greeting alone is not enough
    if (frame.type === "heartbeat") {
      this.heartbeat(frame);
      return;
    }
    const one = this.subscriptions.get(frame.id);
    if (!one) return;
    one.heard = Date.now();
    if (frame.type === "snapshot") this.snapshot(one, frame);
    else if (frame.type === "delta") this.delta(one, frame);
    else if (frame.type === "loading") this.changed(one);
    else this.over(one, frame);
  }

  /** @private @param {Subscription} one @param {Snapshot} frame */
  snapshot(one, frame) {
    const held = /** @type {State} */ (applyDelta(one.held, frame));
    one.held = held;
    one.cursor = one.answered = true;
    one.asked = one.problem = one.verified = null;
    clearTimeout(one.later);
    if (stateHash(held.workspaces) === frame.hash) one.verified = frame.version;
    else this.resync(one, "hash");
    this.changed(one, [asSnapshot(one, frame)]);
  }

  /** @private @param {Subscription} one @param {Delta} frame */
  delta(one, frame) {
    const verdict = one.cursor ? judge(one.held, frame) : "epoch";
    if (verdict === "gap" || verdict === "epoch") {
      this.resync(one, "gap");
      return;
    }
    const before = one.held;
    one.held = applyDelta(before, frame);
    one.answered = true;
    one.problem = null;
    if (one.asked?.reason === "gap") one.asked = null;
    this.changed(one, verdict === "applied" ? [Object.freeze(frame)] : []);
  }

  /** @private @param {Subscription} one @param {{ type: string, code: string, message?: unknown }} frame */
  over(one, frame) {
    const message = isName(frame.message) ? String(frame.message) : frame.code;
    if (frame.type === "end" && frame.code === "unsubscribed") return;
    one.problem = { code: frame.code, message };
    if (frame.type === "end" || frame.code === "not_found" || frame.code === "forbidden") {
      one.gone = true;
      one.held = null;
      this.changed(one);
      one.lost();
      this.subscriptions.delete(one.id);
      this.projects.delete(one.project);
    } else {
      this.changed(one);
    }
  }

  /** @private @param {{ n: number, subscriptions: Record<string, { version: number, hash: string, complete?: boolean }>, health?: Record<string, any> }} frame */
  heartbeat(frame) {
    this.beat = this.clock();
    this.health = Object.freeze(frame.health ?? {});
    attempt(() => this.on.health?.(this.health), this.report);
    /** @type {Record<string, { version: number, hash: string }>} */
    const subscriptions = {};
    for (const one of this.subscriptions.values()) {
      const mark = own(frame.subscriptions, String(one.id));
      if (one.held !== null) {
        const mine = { version: one.held.version, hash: stateHash(one.held.workspaces) };
        subscriptions[one.id] = mine;
        if (mark) this.compare(one, mark, mine.hash);
      } else if (mark) {
        this.compare(one, mark, "");
      }
      if (mark) one.heard = Date.now();
      this.changed(one);
    }
    this.send({ type: "ack", n: frame.n, subscriptions });
  }

  /** @private @param {Subscription} one @param {{ version: number, hash: string, complete?: boolean }} mark @param {string} hash */
  compare(one, mark, hash) {
    if (one.asked && (!one.asked.sent || one.asked.beats++ === 0)) return; // the answer may be behind it
    one.asked = null;
    if (!one.held || !one.cursor || mark.version > one.held.version) {
      this.resync(one, "gap");
    } else if (mark.version < one.held.version || mark.hash !== hash) {
      // A mark below what is held is of another epoch: a snapshot was lost.
      one.verified = null;
      this.resync(one, "hash");
    } else {
      one.verified = mark.version;
      const complete = mark.complete !== false;
      if (one.held.complete !== complete) one.held = Object.freeze({ ...one.held, complete });
    }
  }

  /** @private @param {Subscription} one */
  recent(one) {
    const now = this.clock();
    return one.resyncs.filter((at) => now - at < MINUTE_MS);
  }

  /** @private @param {Subscription} one @param {"gap" | "hash"} reason */
  resync(one, reason) {
    if (one.asked || !this.greeted) return; // a new connection asks anyway
    one.resyncs = [...this.recent(one), this.clock()].slice(-RESYNCS_PER_MINUTE - 1);
    if (one.resyncs.length >= RESYNCS_PER_MINUTE) {
      one.cursor = false;
      this.changed(one);
    }
    /** @type {NonNullable<Subscription["asked"]>} */
    const asked = { reason: one.cursor ? reason : "hash", sent: false, beats: 0 };
    one.asked = asked;
    const version = one.cursor && one.held ? { version: one.held.version } : {};
    const send = () => {
      asked.sent = true;
      this.send({ type: "resync", id: one.id, reason: asked.reason, ...version });
    };
    // A state that is wrong each time it comes is not asked for at the speed of the line.
    if (one.resyncs.length > RESYNCS_PER_MINUTE) one.later = setTimeout(send, jitter(RECONNECT_MAX_MS));
    else send();
  }

  // ── showing ────────────────────────────────────────────────────────────────────────────────────

  /** @private @param {Subscription} one @returns {Standing} */
  standing(one) {
    if (one.gone) return "gone";
    if (this.refused || (one.problem && !one.answered)) return "refused";
    if (one.held === null) return this.greeted ? "loading" : "connecting";
    if (!this.greeted || !one.answered || this.health.aggregator === "stale") return "stale";
    return one.cursor ? "live" : "degraded";
  }

  /** @private @param {Subscription} one @returns {View} */
  look(one) {
    const { project, held, verified, heard } = one;
    const cursor = one.cursor ? held : null;
    return Object.freeze({
      project, state: this.standing(one), workspaces: held?.workspaces ?? null, epoch: cursor?.epoch ?? null,
      version: cursor?.version ?? null, complete: held?.complete ?? true, verified, heard, health: this.health,
      problem: one.problem ?? this.refused,
    });
  }

  /** @private @param {Subscription} one @param {readonly Frame[]} [frames] */
  changed(one, frames = []) {
    one.view = this.look(one);
    attempt(() => this.on.change?.(one.project, one.view), this.report);
    for (const listener of [...one.listeners]) listener.offer(one.view, frames);
  }
}

/** @param {Subscription} one @param {Snapshot} [frame] @returns {Snapshot} */
function asSnapshot(one, frame) {
  const held = /** @type {State} */ (one.held);
  const hash = frame?.hash ?? stateHash(held.workspaces);
  return Object.freeze({ type: "snapshot", id: one.id, hash, reason: frame?.reason ?? "initial", ...held });
}

/** @param {string | URL} url */
function streamUrl(url) {
  const found = new URL(url, globalThis.location?.href);
  found.protocol = found.protocol.replace("http", "ws");
  found.hash = "";
  if (!found.pathname.endsWith("/v1/stream")) found.pathname = found.pathname.replace(/\/*$/, "/v1/stream");
  return found.href;
}

// ── for pages and programs ───────────────────────────────────────────────────────────────────────

/**
 * A connection of its own.
 * @param {ConnectOptions & { on?: Hooks }} [options]
 * @returns {Treewire}
 */
export function connect({ url, on, ...options } = {}) {
  const address = url ?? globalThis.location?.href;
  if (!address) throw new TypeError("there is no page to take the server's address from: give it, as connect({ url })");
  return new Treewire(url ?? new URL("/", address), on, options);
}

/** @type {Map<string, Treewire>} */
const shared = new Map();

/**
 * The connection that everybody shares who asks for this server.
 * @param {string | URL} [url]
 * @returns {Treewire}
 */
export function sharedClient(url) {
  const key = String(url ?? "");
  const found = shared.get(key);
  if (found && !found.stopped && !found.refused) return found;
  const made = connect({ url });
  shared.set(key, made);
  return made;
}

/**
 * Follow a project; returns a function that ends it. Callers share one connection, which ends with the last of them.
 * @param {string} project
 * @param {Callback} callback
 * @param {SubscribeOptions} [options]
 * @returns {() => void}
 */
export function subscribe(project, callback, { client, url, batchMs } = {}) {
  if (client) return client.subscribe(project, callback, { batchMs });
  const used = sharedClient(url);
  const end = used.subscribe(project, callback, { batchMs });
  return () => {
    end();
    // A component that is mounted anew does so in the same turn.
    setTimeout(() => {
      if (used.subscriptions.size > 0) return;
      if (shared.get(String(url ?? "")) === used) shared.delete(String(url ?? ""));
      used.close();
    }, 0);
  };
}
