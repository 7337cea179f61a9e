import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { age, applyDelta, blank, canonical, judge, merge, stateHash, statusOf } from "../client.js";
import { entry } from "./kit.js";

const snapshot = (workspaces, version = 1) => ({ type: "snapshot", id: 1, epoch: "e1", version, complete: true, workspaces });
const delta = (from, to, patch, epoch = "e1") => ({ type: "delta", id: 1, epoch, from, to, patch });
const held = (workspaces) => applyDelta(undefined, snapshot(workspaces));

test("a delta leaves what it does not name with its identity, and changes no argument", () => {
  const before = held({ w1: entry("one", { git: { files: 1, ahead: 2 } }), w2: entry("two") });
  const after = applyDelta(before, delta(1, 2, { w1: { git: { files: 2 } } }));
  assert.equal(after.version, 2);
  assert.deepEqual(after.workspaces.w1.git, { files: 2, ahead: 2 });
  assert.equal(before.workspaces.w1.git.files, 1);
  assert.equal(after.workspaces.w2, before.workspaces.w2);
  assert.equal(after.workspaces.w1.life, before.workspaces.w1.life);
});

test("a delta that says what is so already leaves even the workspaces as they are", () => {
  const before = held({ w1: entry("one", { git: { files: 1 } }) });
  const after = applyDelta(before, delta(1, 2, { w1: { git: { files: 1, ahead: null } }, w9: null }));
  assert.equal(after.version, 2);
  assert.equal(after.workspaces, before.workspaces);
});

test("a snapshot keeps the identity of all that is equal in it", () => {
  const before = held({ w1: entry("one"), w2: entry("two") });
  const after = applyDelta(before, { ...snapshot({ w1: entry("one"), w2: entry("changed") }), epoch: "e2" });
  assert.equal(after.epoch, "e2");
  assert.equal(after.workspaces.w1, before.workspaces.w1);
  assert.equal(after.workspaces.w2.status, before.workspaces.w2.status);
  assert.equal(after.workspaces.w2.life.name, "changed");
});

test("what does not fit leaves the very same object, and judge says why", () => {
  const before = held({ w1: entry("one") });
  for (const [frame, verdict] of [
    [delta(2, 3, { w1: null }), "gap"],
    [delta(0, 1, { w1: null }), "old"],
    [delta(1, 2, { w1: null }, "e2"), "epoch"],
  ]) {
    assert.equal(judge(before, frame), verdict);
    assert.equal(applyDelta(before, frame), before);
  }
  assert.equal(judge(undefined, delta(0, 1, {})), "epoch");
  assert.equal(applyDelta(before, { type: "heartbeat" }), before);
  assert.equal(applyDelta(null, delta(0, 1, {})), null);
});

test("the body of the HTTP snapshot is a state that deltas go on from", () => {
  const fetched = { project: "web", epoch: "e1", version: 7, hash: "…", complete: true, workspaces: { w1: entry("one") } };
  const after = applyDelta(fetched, delta(7, 8, { w1: { git: { files: 3 } } }));
  assert.deepEqual(after, { epoch: "e1", version: 8, complete: true, workspaces: { w1: entry("one", { git: { files: 3 } }) } });
});

test("nobody can change a state by accident", () => {
  const state = applyDelta(held({ w1: entry("one") }), delta(1, 2, { w1: { git: { files: 1 } } }));
  assert.throws(() => (state.workspaces.w1.git.files = 2), TypeError);
  assert.throws(() => delete state.workspaces.w1, TypeError);
});

test("a key that every object has is a key like any other", () => {
  const state = held(JSON.parse('{"__proto__": {"life": {"name": "odd"}}, "constructor": {"life": {"name": "odder"}}}'));
  const after = applyDelta(state, delta(1, 2, JSON.parse('{"__proto__": {"git": {"files": 1}}, "toString": {"git": {}}}')));
  assert.deepEqual(Object.keys(after.workspaces).sort(), ["__proto__", "constructor", "toString"]);
  assert.equal(Object.getPrototypeOf(after.workspaces), Object.prototype);
  assert.equal({}.git, undefined);
});

test("a merge patch is RFC 7396, with its own examples", () => {
  for (const [target, patch, result] of [
    [{ a: "b" }, { a: "c" }, { a: "c" }], [{ a: "b" }, { b: "c" }, { a: "b", b: "c" }], [{ a: "b" }, { a: null }, {}],
    [{ a: "b", b: "c" }, { a: null }, { b: "c" }], [{ a: ["b"] }, { a: "c" }, { a: "c" }], [{ a: "c" }, { a: ["b"] }, { a: ["b"] }],
    [{ a: { b: "c" } }, { a: { b: "d", c: null } }, { a: { b: "d" } }], [{ a: [{ b: "c" }] }, { a: [1] }, { a: [1] }],
    [["a", "b"], ["c", "d"], ["c", "d"]], [{ a: "b" }, ["c"], ["c"]], [{ a: "foo" }, null, null], [{ a: "foo" }, "bar", "bar"],
    [{ e: null }, { a: 1 }, { e: null, a: 1 }], [[1, 2], { a: "b", c: null }, { a: "b" }], [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
  ]) {
    assert.deepEqual(merge(target, patch), result);
  }
});

test("the hash is SHA-256's, for texts of every length around a block", () => {
  for (let length = 0; length < 200; length++) {
    const name = "x".repeat(length) + "ü";
    const digest = createHash("sha256").update(`[${JSON.stringify(name)},{}]`).digest("hex").slice(0, 16);
    assert.equal(stateHash({ [name]: {} }), digest);
  }
});

test("keys are in the order of code points, which is not that of UTF-16", () => {
  assert.equal(canonical({ "\u{1f680}": 1, "\uff5e": 2, a: 3, aa: 4 }), '{"a":3,"aa":4,"\uff5e":2,"\u{1f680}":1}');
});

test("one entry under two names counts as two", () => {
  const same = Object.freeze(entry("one"));
  assert.equal(stateHash({ a: same, b: same }), stateHash({ a: entry("one"), b: entry("one") }));
});

test("only what changed is encoded again", (t) => {
  const state = held(Object.fromEntries(Array.from({ length: 300 }, (_, n) => ["w" + n, entry("task-" + n)])));
  stateHash(state.workspaces);
  const after = applyDelta(state, delta(1, 2, { w7: { git: { files: 1 } } }));
  const encoded = t.mock.method(TextEncoder.prototype, "encode");
  const hash = stateHash(after.workspaces);
  assert.equal(encoded.mock.callCount(), 1);
  assert.equal(hash, stateHash(structuredClone(after.workspaces)));
});

test("a status of a later release is shown as unknown", () => {
  assert.deepEqual(statusOf(entry("one")), { code: "agent_working", column: "working", needs_user: false });
  assert.deepEqual(statusOf({ status: { code: "levitating", column: "ceiling", needs_user: true } }), { code: "unknown", column: "unknown", needs_user: true });
  assert.deepEqual(statusOf(undefined), { code: "unknown", column: null, needs_user: false });
  assert.deepEqual(statusOf({ status: { code: "archived" } }), { code: "archived", column: null, needs_user: false });
});

test("the age of a view is how long ago the server confirmed it", () => {
  assert.equal(age(blank("web")), null);
  assert.equal(age({ ...blank("web"), heard: 1000 }, 3500), 2500);
  assert.equal(age({ ...blank("web"), heard: 1000 }, 500), 0);
});
