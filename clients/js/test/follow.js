/** Follow a project and write each view as a line of JSON: `node follow.js URL TOKEN PROJECT`. A program for tests. */

import { writeSync } from "node:fs";
import WebSocket from "ws";
import { connect, stateHash } from "../../../gateway/web/client.js";

const [url, token, project] = process.argv.slice(2);

class Authenticated extends WebSocket {
  constructor(address, protocols) {
    super(address, protocols, { headers: { Authorization: "Bearer " + token } });
  }
}

const client = connect({ url, WebSocket: Authenticated });
client.subscribe(project, (view, frames) => {
  const line = {
    kind: frames.some((frame) => frame.type === "snapshot") ? "snapshot" : frames.length ? "delta" : "status",
    state: view.state, epoch: view.epoch, version: view.version, hash: view.workspaces && stateHash(view.workspaces),
    verified: view.version !== null && view.verified === view.version,
    workspaces: view.workspaces && Object.keys(view.workspaces).length, malformed: client.malformed,
  };
  writeSync(1, JSON.stringify(line) + "\n");
});
process.on("SIGTERM", () => {
  client.close();
  process.exitCode = 0;
});
