// A small gateway on npm's engine.io, for tests with real connections: it echoes on every channel
// and keeps its sessions, as docs/protocol.md has it. Middleboxes stand between it and the client.

import { createServer } from 'node:http';
import { connect, createServer as createTcpServer } from 'node:net';
import { Server } from 'engine.io';
import * as frames from '../../src/frames.js';
import { Inbox, Outbox } from '../../src/replay.js';

const listening = (server) =>
  new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server.address().port)));

class EchoSession {
  outbox = new Outbox();
  inbox = new Inbox();
  socket = null;
  texts = [];

  constructor(id) {
    this.id = id;
  }

  attach(socket, resume) {
    this.socket?.close(true);
    this.socket = socket;
    if (resume) this.outbox.rewind(resume.received);
    const received = this.inbox.received;
    socket.send(frames.control('welcome', {
      session: this.id, token: 't', epoch: 'e', resumed: Boolean(resume), received, grace: 15000,
    }));
    this.flush();
  }

  receive(data) {
    const frame = frames.decode(data);
    if (frame.kind === 'ack') {
      this.outbox.acknowledge(frame.count);
      return this.flush();
    }
    if (frame.kind === 'bye') return (this.bye = true);
    this.inbox.count(1, 0);
    this.answer(frame);
    this.socket.send(frames.ack(this.inbox.received));
    return this.flush();
  }

  answer({ kind, channel, fields, text, data }) {
    if (kind === 'open') this.push(frames.control('accept', { protocol: fields.protocols[0] ?? '' }, channel));
    else if (kind === 'close') this.push(frames.control('close', fields, channel));
    else if (kind === 'text') {
      this.texts.push(text);
      this.push(frames.text(channel, text));
    } else this.push(frames.binary(channel, data));
  }

  push(frame) {
    this.outbox.push({ frame, size: 1, channel: 0 });
  }

  flush() {
    for (const { frame } of this.outbox.take(Infinity)) this.socket.send(frame);
  }
}

/** `{port, sessions, byes, close()}`; options go to engine.io. */
export async function startGateway(options = {}) {
  const http = createServer();
  const engine = new Server({ pingInterval: 10_000, pingTimeout: 10_000, cors: { origin: true }, ...options });
  engine.attach(http, { path: '/_gateway/engine/' });
  const sessions = new Map();
  engine.on('connection', (socket) => {
    let session = null;
    socket.on('message', (data) => {
      if (session) return session.socket === socket && session.receive(data);
      const hello = frames.decode(data).fields;
      const known = sessions.get(hello.session);
      session = known ?? new EchoSession(`s${sessions.size + 1}`);
      sessions.set(session.id, session);
      return session.attach(socket, known ? hello : null);
    });
  });
  const port = await listening(http);
  const close = () => {
    engine.close();
    http.closeAllConnections();
    return new Promise((resolve) => http.close(resolve));
  };
  return { port, sessions, engine, http, close };
}

const UPGRADE = /\r\nupgrade: websocket\r\n/i;

/**
 * A TCP middlebox in front of `port`. `treat(client, upstream, head)` handles a connection that asks
 * for a WebSocket, once its first bytes are here; everything else passes.
 */
export async function startMiddlebox(port, treat) {
  const open = new Set();
  const server = createTcpServer((client) => {
    const upstream = connect(port, '127.0.0.1');
    for (const socket of [client, upstream]) {
      open.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        open.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    client.once('data', (head) => {
      if (UPGRADE.test(head)) return treat(client, upstream, head);
      return pass(client, upstream, head);
    });
  });
  const own = await listening(server);
  const close = () => {
    for (const socket of open) socket.destroy();
    return new Promise((resolve) => server.close(resolve));
  };
  return { port: own, close };
}

export function pass(client, upstream, head) {
  upstream.write(head);
  client.pipe(upstream);
  upstream.pipe(client);
}

/** What to do with WebSockets, by name. */
export const TREATMENTS = {
  passes: pass,
  'is never answered': () => {},
  'is refused with 403': (client) => {
    client.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
  },
  'is answered 200': (client) => {
    client.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok');
  },
  'is accepted, then silent': (client, upstream, head) => {
    upstream.write(head);
    // Only the 101 comes through.
    upstream.once('data', (answer) => {
      client.write(answer.subarray(0, answer.indexOf('\r\n\r\n') + 4));
      upstream.on('data', () => {});
    });
  },
  'is accepted, then reset': (client, upstream, head) => {
    upstream.write(head);
    upstream.once('data', (answer) => {
      client.write(answer, () => client.resetAndDestroy());
    });
  },
  // After the head the client sends `2probe`, then `5`, which does not arrive.
  'dies with the 5': (client, upstream, head) => {
    upstream.write(head);
    upstream.pipe(client);
    let pieces = 0;
    client.on('data', (piece) => {
      pieces += 1;
      if (pieces === 2) client.resetAndDestroy();
      else upstream.write(piece);
    });
  },
  // FIN and not RST, which may overtake the answer: the client has to read it, and to pause polling.
  'ends with the answer to the probe': (client, upstream, head) => {
    upstream.write(head);
    client.on('data', (piece) => upstream.write(piece));
    let answers = 0;
    upstream.on('data', (answer) => {
      answers += 1;
      client.write(answer);
      if (answers === 2) client.end();
    });
  },
};
