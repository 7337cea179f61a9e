/** A WebSocket whose other end is the test, and a server that says what the test wants said. */

import { setImmediate as immediate } from "node:timers/promises";
import { stateHash } from "../client.js";

export class FakeSocket {
  /** @type {FakeSocket[]} */
  static made = [];

  constructor(url, protocols) {
    Object.assign(this, { url, protocols, readyState: 0, sent: [], ended: false });
    FakeSocket.made.push(this);
  }

  static get last() {
    return FakeSocket.made.at(-1);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.ended = true;
    this.readyState = 3;
  }

  // ── the server's side ──

  open() {
    this.readyState = 1;
    this.onopen?.({});
    return this;
  }

  say(frame) {
    this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }

  welcome(heartbeat_ms = 10_000) {
    this.open().say({ type: "welcome", protocol: 1, epoch: "e1", heartbeat_ms, limits: {} });
    return this;
  }

  snapshot(workspaces, version = 1, more = {}) {
    this.say({ type: "snapshot", id: 1, epoch: "e1", version, hash: stateHash(workspaces), reason: "initial", complete: true, workspaces, ...more });
  }

  delta(from, to, patch, more = {}) {
    this.say({ type: "delta", id: 1, epoch: "e1", from, to, patch, ...more });
  }

  heartbeat(n, subscriptions = {}, health = { aggregator: "ok" }) {
    this.say({ type: "heartbeat", n, subscriptions, health });
  }

  drop(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  /** What the client has said since this was last asked. */
  said(type) {
    const said = this.sent.splice(0);
    return type ? said.filter((one) => one.type === type) : said;
  }
}

/** Let what was promised happen. */
export async function settle() {
  await immediate();
}

/** @param {string} name */
export function entry(name, more = {}) {
  return { life: { name, phase: "ready" }, status: { code: "agent_working", column: "working", needs_user: false }, ...more };
}
