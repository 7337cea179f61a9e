// The client of the treewire protocol, version 1, without dependencies: see docs/protocol.md.

const RECONNECT_MIN_MS = 250;
const RECONNECT_MAX_MS = 15_000;
const SILENCE_MS = 25_000;
const SILENT_BEATS = 2.5;
const RESYNCS_PER_MINUTE = 3;

/** Apply a JSON Merge Patch (RFC 7396); neither argument is changed. What is untouched keeps its identity. */
export function merge(target, patch) {
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const result = new Map(Object.entries(target !== null && typeof target === "object" ? target : {}));
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) result.delete(key);
    else result.set(key, merge(result.get(key), value));
  }
  return Object.fromEntries(result);
}

/** Sorted keys (by code point), no nulls, no empty objects: the form that is hashed. */
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

function byCodePoint(a, b) {
  const left = [...a], right = [...b];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const difference = left[i].codePointAt(0) - right[i].codePointAt(0);
    if (difference) return difference;
  }
  return left.length - right.length;
}

const encoder = new TextEncoder();
const shares = new WeakMap(); // entries never change, so each is hashed once

async function share(workspace, entry) {
  let found = shares.get(entry);
  if (found === undefined) {
    const text = "[" + JSON.stringify(workspace) + "," + canonical(entry) + "]";
    const digest = await crypto.subtle.digest("SHA-256", encoder.encode(text));
    found = new DataView(digest).getBigUint64(0);
    shares.set(entry, found);
  }
  return found;
}

/** The state hash of a project: 16 hex digits. Null where the browser cannot hash (no secure context). */
export async function stateHash(workspaces) {
  if (!globalThis.crypto?.subtle) return null;
  const all = await Promise.all(Object.entries(workspaces).map(([name, entry]) => share(name, entry)));
  return (all.reduce((sum, one) => sum + one, 0n) & 0xffffffffffffffffn).toString(16).padStart(16, "0");
}

/**
 * One connection, for ever: it reconnects by itself and resumes from where it was.
 * `on.change(project, view)` on every change of a project's view, `on.connection(state, detail)` with
 * connecting, open, waiting or refused; `on.health(health)` with each heartbeat.
 * A view is {workspaces, epoch, version, complete, state, verified}: state is loading, live, gone or degraded;
 * `workspaces` is null until the first snapshot; `verified` is the last version whose hash was found equal.
 */
export class Treewire {
  constructor(url, on = {}) {
    this.url = url;
    this.on = on;
    this.subscriptions = new Map();
    this.next = 1;
    this.attempt = 0;
    this.heartbeatMs = 0;
    this.socket = null;
    this.stopped = false;
    this.timers = { silence: 0, reconnect: 0 };
    this.wake = () => {
      if (!this.socket && !this.stopped && document.visibilityState === "visible") this.connect();
    };
    globalThis.addEventListener?.("online", this.wake);
    globalThis.document?.addEventListener("visibilitychange", this.wake);
    this.connect();
  }

  /** Follow a project; returns a function that ends it. */
  subscribe(project) {
    const one = {
      id: this.next++, project, epoch: null, version: null, workspaces: null,
      complete: true, state: "loading", verified: null, resyncs: [],
    };
    this.subscriptions.set(one.id, one);
    if (this.greeted) this.ask(one);
    return () => {
      this.subscriptions.delete(one.id);
      if (this.greeted) this.send({ type: "unsubscribe", id: one.id });
    };
  }

  close() {
    this.stopped = true;
    globalThis.removeEventListener?.("online", this.wake);
    globalThis.document?.removeEventListener("visibilitychange", this.wake);
    clearTimeout(this.timers.reconnect);
    clearTimeout(this.timers.silence);
    this.socket?.close(1000);
  }

  connect() {
    clearTimeout(this.timers.reconnect);
    this.greeted = false;
    this.on.connection?.("connecting", "");
    const socket = new WebSocket(this.url, ["treewire.v1"]);
    this.socket = socket;
    socket.onopen = () => this.send({ type: "hello" });
    socket.onmessage = (event) => {
      if (socket === this.socket) this.take(event.data);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.closed(event.code, event.reason);
    };
    this.listen();
  }

  closed(code, reason) {
    clearTimeout(this.timers.silence);
    this.socket = null;
    this.greeted = false;
    if (this.stopped) return;
    if (code >= 4500 && code <= 4999) {
      this.on.connection?.("refused", reason || "code " + code);
      return;
    }
    const most = Math.min(RECONNECT_MAX_MS, RECONNECT_MIN_MS * 2 ** this.attempt++);
    this.timers.reconnect = setTimeout(() => this.connect(), RECONNECT_MIN_MS + Math.random() * (most - RECONNECT_MIN_MS));
    this.on.connection?.("waiting", reason);
  }

  listen() {
    clearTimeout(this.timers.silence);
    this.timers.silence = setTimeout(() => {
      const socket = this.socket;
      if (!socket) return;
      socket.onclose = null;
      socket.close();
      this.closed(1006, "nothing was heard");
    }, Math.max(SILENCE_MS, SILENT_BEATS * this.heartbeatMs));
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  ask(one) {
    const cursor = one.version === null ? {} : { epoch: one.epoch, version: one.version };
    this.send({ type: "subscribe", id: one.id, project: one.project, ...cursor });
  }

  take(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return;
    }
    if (message.type === "welcome") {
      this.greeted = true;
      this.attempt = 0;
      this.heartbeatMs = message.heartbeat_ms ?? 0;
      this.on.connection?.("open", "");
      this.listen();
      for (const one of this.subscriptions.values()) this.ask(one);
    } else if (message.type === "heartbeat") {
      this.listen();
      this.on.health?.(message.health ?? {});
      this.heartbeat(message);
    } else {
      const one = this.subscriptions.get(message.id);
      if (one) this.apply(one, message);
    }
  }

  apply(one, message) {
    switch (message.type) {
      case "loading":
        if (one.workspaces === null) one.state = "loading";
        break;
      case "snapshot":
        Object.assign(one, {
          workspaces: message.workspaces, epoch: message.epoch, version: message.version,
          complete: message.complete, state: "live", asked: false,
        });
        break;
      case "delta":
        if (one.workspaces === null || message.epoch !== one.epoch || message.from > one.version) {
          this.resync(one, "gap");
          return;
        }
        if (message.to > one.version) {
          one.workspaces = merge(one.workspaces, message.patch);
          one.version = message.to;
        }
        one.state = "live";
        one.asked = false;
        break;
      case "end":
      case "error":
        if (message.type === "error" && message.code !== "not_found" && message.code !== "forbidden") return;
        this.subscriptions.delete(one.id);
        Object.assign(one, { workspaces: null, state: "gone" });
        break;
      default:
        return; // of a later protocol
    }
    this.on.change?.(one.project, one);
  }

  async heartbeat(message) {
    // What the marks speak of is what we hold now: take it before hashing lets other messages in.
    const held = [];
    for (const [id, mark] of Object.entries(message.subscriptions ?? {})) {
      const one = this.subscriptions.get(Number(id));
      if (!one || one.workspaces === null || one.asked) continue;
      if (mark.version > one.version) this.resync(one, "gap");
      else if (mark.version === one.version) held.push([one, mark, one.workspaces]);
    }
    const subscriptions = {};
    for (const [one, mark, workspaces] of held) {
      const hash = await stateHash(workspaces);
      if (hash === null) continue;
      subscriptions[one.id] = { version: mark.version, hash };
      if (hash !== mark.hash) {
        one.verified = null;
        this.resync(one, "hash");
        continue;
      }
      one.verified = mark.version;
      one.complete = mark.complete !== false;
      this.on.change?.(one.project, one);
    }
    this.send({ type: "ack", n: message.n, subscriptions });
  }

  resync(one, reason) {
    if (one.asked) return;
    one.asked = true;
    const now = performance.now();
    one.resyncs = [...one.resyncs.filter((at) => now - at < 60_000), now];
    if (one.resyncs.length >= RESYNCS_PER_MINUTE) {
      one.version = one.epoch = null;
      one.state = "degraded";
      this.on.change?.(one.project, one);
      reason = "hash";
    }
    const version = one.version === null ? {} : { version: one.version };
    this.send({ type: "resync", id: one.id, reason, ...version });
  }
}
