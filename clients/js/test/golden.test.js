/** The golden frames and hashes, replayed: the Python client makes the same of them. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Treewire, canonical, stateHash } from "../client.js";
import { FakeSocket } from "./kit.js";

const golden = (name) => JSON.parse(readFileSync(new URL("../../../tests/golden/" + name, import.meta.url), "utf8"));
const VIEWS = { connecting: "loading", stale: "live" }; // whether somebody is there is not what the file is about
const byText = (a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1);

for (const { about, state, canonical: texts, hash } of golden("hash.json")) {
  test(`the hash of ${about}`, () => {
    assert.equal(stateHash(state), hash);
    for (const [name, text] of Object.entries(texts)) assert.equal(canonical(state[name]), text);
  });
}

for (const { about, steps } of golden("frames.json").sequences) {
  test(about, (t) => {
    t.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
    const client = new Treewire("ws://test/v1/stream", {}, { WebSocket: FakeSocket });
    let view;
    client.on.change = (_, now) => (view = now);
    client.subscribe("web");
    for (const [number, step] of steps.entries()) {
      if (step.do === "connect") FakeSocket.last.open();
      if (step.do === "lose") {
        FakeSocket.last.drop();
        t.mock.timers.tick(15_000);
      } else {
        FakeSocket.last.say(step.text ?? step.frame);
      }
      const said = FakeSocket.last.said().map((one) => {
        if (one.type !== "ack") return one;
        for (const mark of Object.values(one.subscriptions)) assert.equal(mark.hash, stateHash(view.workspaces));
        return { type: one.type, n: one.n };
      });
      assert.deepEqual(said.sort(byText), [...step.says].sort(byText), `step ${number} of: ${about}`);
      assert.deepEqual(
        {
          view: VIEWS[view.state] ?? view.state, epoch: view.epoch, version: view.version,
          complete: view.workspaces && view.complete, hash: view.workspaces && stateHash(view.workspaces),
          workspaces: view.workspaces,
        },
        step.then,
        `step ${number} of: ${about}`,
      );
    }
    client.close();
  });
}
