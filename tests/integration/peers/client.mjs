// An engine.io-client that does one thing and says in JSON lines what it saw.
//
//   node client.mjs URL TRANSPORTS exchange COUNT   sends COUNT messages, checks that each comes back
//   node client.mjs URL TRANSPORTS leave            closes after the first answer
//   node client.mjs URL TRANSPORTS stay             waits until it is closed
//
// Knows the messages of test_engine_clients.py, which computes the same ones.

import { Socket } from "engine.io-client";

const [url, transports, scenario, count = "0"] = process.argv.slice(2);

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const KINDS = [
  (i) => `${i} text`,
  (i) => `${i} \u{1f600} é \u{1d11e}`,
  (i) => `${i} \u0000 and \\ and "`,
  (i) => ` ${i}`,
  (i) => `"${i}"`,
  (i) => `-${i}.50`,
  (i) => `[${i},null,"\u{1f600}"]`,
  (i) => `{"i":${i}}`,
  (i) => `{"i":${i}`,
  (i) => Buffer.from([0, 0x1e, 0xff, i & 255, (i >> 8) & 255]),
];

const message = (i) => KINDS[i % KINDS.length](i);

const same = (a, b) =>
  typeof b === "string" ? a === b : Buffer.isBuffer(a) && Buffer.compare(a, b) === 0;

const socket = new Socket(url, { path: "/engine.io/", transports: transports.split(",") });
let received = 0;
let wrong = 0;

const exchange = (data) => {
  if (!same(data, message(received)) && wrong++ < 3) {
    say({ at: received, wanted: message(received), got: data });
  }
  received += 1;
  if (received === Number(count)) {
    say({ received, wrong, transport: socket.transport.name });
    socket.close();
  }
};

socket.on("open", () => {
  say({ open: socket.transport.name });
  if (scenario === "exchange") {
    for (let i = 0; i < Number(count); i += 1) socket.send(message(i));
  } else if (transports !== "polling,websocket") {
    socket.send("hello");
  }
});
socket.on("upgrade", (transport) => {
  say({ upgrade: transport.name });
  if (scenario !== "exchange") socket.send("hello");
});
socket.on("message", (data) => {
  if (scenario === "exchange") exchange(data);
  else say({ message: data });
  if (scenario === "leave") socket.close();
});
socket.on("close", (reason) => say({ close: reason }));
socket.on("error", (error) => say({ error: String(error) }));
