// socket.io with connection state recovery: one event per change, to every client.  node socketio.mjs RATE SIZE; a line begins it.
import { createServer } from "node:http";
import { createRequire } from "node:module";
const { Server } = createRequire(process.env.PEERS + "/")("socket.io");
const [rate, size] = process.argv.slice(2).map(Number);

const http = createServer();
const io = new Server(http, { connectionStateRecovery: {}, serveClient: false });
http.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => console.log(http.address().port));
const change = () => {
  const body = { type: "delta", name: `t${process.hrtime.bigint()}`, rest: "" };
  body.rest = " ".repeat(Math.max(0, size - JSON.stringify(body).length));
  return body;
};
process.stdin.once("data", () => {
  let due = performance.now();
  setInterval(() => {
    for (; due <= performance.now(); due += 1000 / rate) io.emit("delta", change());
  }, Math.max(1, Math.min(20, 1000 / rate / 2)));
});
