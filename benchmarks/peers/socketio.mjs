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
// What is overdue goes out ten changes at a time: within one turn of the loop nothing else would be sent or read.
process.stdin.once("data", () => {
  let due = performance.now();
  const turn = () => {
    for (let n = 0; n < 10 && due <= performance.now(); n++, due += 1000 / rate) io.emit("delta", change());
    const early = due - performance.now();
    early > 0 ? setTimeout(turn, early) : setImmediate(turn);
  };
  turn();
});
