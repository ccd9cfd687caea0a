// A small gateway on npm's engine.io, for tests with real connections: it echoes on every channel
// and keeps its sessions, as docs/protocol.md has it. Middleboxes stand between it and the client.

import { createServer } from 'node:http';
import { connect, createServer as createTcpServer } from 'node:net';
import { Server } from 'engine.io';
import * as frames from '../../src/frames.js';
import { FRAME_COST } from '../../src/queues.js';
import { Inbox, Outbox } from '../../src/replay.js';

const WINDOW = 1_048_576;

const listening = (server) =>
  new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(server.address().port)));

class EchoSession {
  outbox = new Outbox();
  inbox = new Inbox();
  socket = null;
  texts = [];
  // Bytes of each channel that are not granted again yet.
  used = new Map();

  constructor(id) {
    this.id = id;
  }

  attach(socket, resume) {
    this.socket?.close(true);
    this.socket = socket;
    if (resume && resume.received === undefined) this.startAnew();
    else if (resume) this.outbox.rewind(resume.received);
    const received = this.inbox.received;
    socket.send(frames.control('welcome', {
      session: this.id, token: 't', epoch: 'e', resumed: Boolean(resume), received, grace: 15000,
      message: 8_388_608, window: WINDOW,
    }));
    this.flush();
  }

  // The page was loaded anew.
  startAnew() {
    this.outbox = new Outbox();
    this.inbox = new Inbox();
    this.used.clear();
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

  // Parts are echoed as they come.
  answer({ kind, channel, fields, text, data, more }) {
    if (kind === 'open') this.push(frames.control('accept', { protocol: fields.protocols[0] ?? '' }, channel));
    else if (kind === 'close') this.push(frames.control('close', fields, channel));
    else if (kind === 'text') {
      this.texts.push(text);
      this.push(frames.text(channel, text, more));
    } else this.push(frames.binary(channel, data, more));
    if (kind === 'text' || kind === 'binary') this.grant(channel, frames.sizeOf(text ?? data) + FRAME_COST);
  }

  grant(channel, bytes) {
    const used = (this.used.get(channel) ?? 0) + bytes;
    this.used.set(channel, used % (WINDOW / 2));
    if (used >= WINDOW / 2) this.push(frames.control('grant', { bytes: used - (used % (WINDOW / 2)) }, channel));
  }

  push(frame) {
    this.outbox.push({ frame, size: 1, channel: 0 });
  }

  flush() {
    for (const { frame } of this.outbox.take(Infinity)) this.socket.send(frame);
  }
}

/** The numbers of docs/protocol.md, "Requests", in front of `serve`: npm's engine.io knows none. */
function numbered(engine, serve) {
  const connections = new Map();
  return (request, response) => {
    const query = Object.fromEntries(new URL(request.url, 'http://a').searchParams);
    const socket = engine.clients[query.sid];
    if (!query.n || !socket) return serve(request, response);
    if (!connections.has(query.sid)) connections.set(query.sid, { taken: 0, parts: 0, early: new Map(), get: {} });
    const state = connections.get(query.sid);
    const { n, hold, skip = 0, more } = query;
    const { transport } = socket;
    if (request.method === 'GET') return poll(state, { n, hold, transport }, () => serve(request, response), response);
    const pieces = [];
    request.on('data', (piece) => pieces.push(piece));
    return request.on('end', () => {
      const packets = Buffer.concat(pieces).toString().split('\x1e');
      state.early.set(Number(n), { packets, skip: Number(skip), more, transport, answer: () => response.end('ok') });
      takeInTurn(state);
    });
  };
}

function takeInTurn(state) {
  for (const [n, { answer }] of state.early) {
    if (n > state.taken) continue;
    state.early.delete(n);
    answer();
  }
  const post = state.early.get(state.taken + 1);
  if (!post) return;
  state.early.delete(state.taken + 1);
  const { packets, skip, more, transport, answer } = post;
  transport.onData(packets.slice(state.parts - skip).join('\x1e'));
  if (more) state.parts = Math.max(state.parts, skip + packets.length);
  else Object.assign(state, { taken: state.taken + 1, parts: 0 });
  answer();
  takeInTurn(state);
}

function poll(state, { n, hold, transport }, serve, response) {
  const waits = () => state.get.n === n && state.get.body === undefined;
  const noop = () => waits() && transport.writable && transport.send([{ type: 'noop' }]);
  if (waits()) noop();
  if (state.get.n === n) return response.end(state.get.body);
  const get = { n };
  state.get = get;
  const { end } = response;
  response.end = (body) => {
    get.body = body;
    clearTimeout(timer);
    return end.call(response, body);
  };
  const timer = setTimeout(noop, Number(hold));
  return serve();
}

/** `{port, sessions, byes, close()}`; options go to engine.io. */
export async function startGateway(options = {}) {
  const http = createServer();
  const engine = new Server({ pingInterval: 10_000, pingTimeout: 10_000, cors: { origin: true }, ...options });
  engine.attach(http, { path: '/_gateway/engine/' });
  const [serve] = http.listeners('request');
  http.removeAllListeners('request');
  http.on('request', numbered(engine, serve));
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
