// The `ws` package: one JSON text per change, sent to every client.  node ws.mjs RATE SIZE; a line begins it.
import { createRequire } from "node:module";
const { WebSocketServer } = createRequire(process.env.PEERS + "/")("ws");
const [rate, size] = process.argv.slice(2).map(Number);

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => console.log(server.address().port));
const change = () => {
  const text = `{"type":"delta","name":"t${process.hrtime.bigint()}"`;
  return text + " ".repeat(size - text.length - 1) + "}";
};
// What is overdue goes out ten changes at a time: within one turn of the loop nothing else would be sent or read.
process.stdin.once("data", () => {
  let due = performance.now();
  const turn = () => {
    for (let n = 0; n < 10 && due <= performance.now(); n++, due += 1000 / rate) {
      const text = change();
      for (const client of server.clients) if (client.readyState === 1) client.send(text);
    }
    const early = due - performance.now();
    early > 0 ? setTimeout(turn, early) : setImmediate(turn);
  };
  turn();
});
