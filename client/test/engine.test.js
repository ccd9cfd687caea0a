// The engine part with real connections: npm's engine.io-client, npm's engine.io, and middleboxes.

import assert from 'node:assert/strict';
import { EventEmitter as Emitter } from 'node:events';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { PROBE_MS, WHY } from '../src/choice.js';
import { Link, createTransports, engineOptions, reasonOf } from '../src/engine.js';
import { FakeClock } from './support/clock.js';
import { createClient } from './support/node-client.js';
import { TREATMENTS, startGateway, startMiddlebox } from './support/gateway.js';

async function setup(t, { treat, ...options } = {}) {
  const gateway = await startGateway(options);
  const box = await startMiddlebox(gateway.port, treat ?? TREATMENTS.passes);
  const client = createClient(box.port);
  t.after(async () => {
    client.close();
    await box.close();
    await gateway.close();
  });
  return { gateway, box, ...client };
}

const numbers = (from, to) => Array.from({ length: to - from }, (_, i) => String(from + i));

/** Send numbered messages as the connection takes them, text and binary, and check every echo. */
async function exchange({ until }, { channel, heard }, count) {
  const start = heard.length;
  for (let i = start; i < start + count; i++) {
    channel.send(i % 3 ? String(i) : new Uint8Array(Buffer.from(String(i))));
  }
  await until(() => heard.length >= start + count);
  const asText = heard.map((data) => (typeof data === 'string' ? data : Buffer.from(data).toString()));
  assert.deepEqual(asText, numbers(0, start + count));
}

async function opened(client) {
  const socket = client.open();
  await client.until(() => socket.channel.state === 'open');
  return socket;
}

test('starts on polling, ends on a websocket, loses and reorders nothing', async (t) => {
  const client = await setup(t);
  const socket = await opened(client);
  for (let round = 0; round < 40; round++) await exchange(client, socket, 5);
  await client.until(() => client.session.transport === 'websocket');
  await exchange(client, socket, 200);
  assert.equal(client.session.why, WHY.works);
  assert.equal(client.links.length, 1);
});

const FALLS_BACK = {
  'is never answered': WHY.silent,
  'is refused with 403': WHY.refused,
  'is answered 200': WHY.refused,
  'is accepted, then silent': WHY.silent,
  'is accepted, then reset': WHY.refused,
};

for (const [name, why] of Object.entries(FALLS_BACK)) {
  test(`a WebSocket that ${name}: polling flows on, on the same connection`, async (t) => {
    const client = await setup(t, { treat: TREATMENTS[name] });
    const socket = await opened(client);
    await exchange(client, socket, 50);
    await client.until(() => client.session.why === why);
    await exchange(client, socket, 50);
    assert.equal(client.session.transport, 'polling');
    assert.equal(client.links.length, 1);
    assert.ok(client.choice.wait > 290_000);
    assert.equal(client.store.size, 1);
  });
}

// The heartbeat would heal these, too, but only after 10 to 20 s.
const AT_ONCE = { timeout: 8000 };

for (const name of ['dies with the 5', 'ends with the answer to the probe']) {
  test(`a WebSocket that ${name}: replay heals it, on polling`, AT_ONCE, async (t) => {
    const client = await setup(t, { treat: TREATMENTS[name] });
    const socket = await opened(client);
    await exchange(client, socket, 20);
    await client.until(() => client.choice.wait > 0);
    await exchange(client, socket, 50);
    assert.equal(client.session.transport, 'polling');
    assert.equal(client.session.why, name === 'dies with the 5' ? WHY.dead : WHY.stalled);
    assert.deepEqual(client.told.filter(([type]) => ['lost', 'gap', 'gone'].includes(type)), []);
  });
}

test('a websocket that is killed early twice is left alone; no message is lost', async (t) => {
  const sockets = new Set();
  const treat = (client, upstream, head) => {
    sockets.add(client);
    TREATMENTS.passes(client, upstream, head);
  };
  const client = await setup(t, { treat });
  const socket = await opened(client);
  for (let death = 0; death < 2; death++) {
    await client.until(() => client.session.transport === 'websocket');
    for (const one of sockets) one.resetAndDestroy();
    sockets.clear();
    await exchange(client, socket, 30);
  }
  await client.until(() => client.session.transport === 'polling');
  assert.equal(client.session.why, WHY.dead);
  assert.equal(client.links.length, 3);
  await exchange(client, socket, 30);
});

test('every connection is cut again and again: all messages, in order, once', async (t) => {
  const client = await setup(t, { treat: TREATMENTS['is refused with 403'] });
  const socket = await opened(client);
  for (let cut = 0; cut < 5; cut++) {
    for (let i = 0; i < 20; i++) socket.channel.send(String(cut * 20 + i));
    client.gateway.http.closeAllConnections();
    await client.until(() => socket.heard.length >= cut * 20 + 20);
  }
  assert.deepEqual(socket.heard, numbers(0, 100));
  assert.equal(client.gateway.sessions.size, 1);
});

test('many small binary messages stay below maxPayload on polling', async (t) => {
  const client = await setup(t, { maxHttpBufferSize: 300_000, treat: TREATMENTS['is refused with 403'] });
  const socket = await opened(client);
  const sizes = Array.from({ length: 800 }, (_, i) => 1000 + (i % 3));
  for (const size of sizes) socket.channel.send(new Uint8Array(size));
  await client.until(() => socket.heard.length === sizes.length);
  assert.deepEqual(socket.heard.map((data) => data.length), sizes);
  assert.equal(client.links.length, 1);
});

test("the tab's own switch: as behind a firewall, and back at once", async (t) => {
  const client = await setup(t);
  client.switches.blocked = true;
  const socket = await opened(client);
  await client.until(() => client.session.why === WHY.blocked);
  assert.equal(client.store.size, 0);
  client.switches.blocked = false;
  client.session.probe();
  await client.until(() => client.session.transport === 'websocket');
  await exchange(client, socket, 10);
  assert.equal(client.choice.wait, 0);
});

test('switched off again while a deaf probe runs: the next probe is a real one', async (t) => {
  const client = await setup(t);
  client.switches.blocked = true;
  await opened(client);
  client.switches.blocked = false;
  client.session.probe();
  await client.until(() => client.session.transport === 'websocket');
  assert.equal(client.store.size, 0);
});

test('after a bad experience a new connection does not probe, until the time is over', async (t) => {
  const client = await setup(t);
  client.choice.failed('silent');
  await opened(client);
  assert.equal(client.session.why, WHY.silent);
  assert.equal(client.gateway.engine.clientsCount, 1);
  client.session.probe();
  await client.until(() => client.session.transport === 'websocket');
});

test('bye: a beacon on polling, a frame on a websocket', async (t) => {
  const polling = await setup(t, { treat: TREATMENTS['is never answered'] });
  await opened(polling);
  polling.session.hide();
  const [[url, body]] = polling.beacons;
  assert.match(url, /\/_gateway\/engine\/\?.*EIO=4.*transport=polling.*sid=/);
  assert.equal(body, '4B');

  const websocket = await setup(t);
  await opened(websocket);
  await websocket.until(() => websocket.session.transport === 'websocket');
  const [session] = websocket.gateway.sessions.values();
  const closed = new Promise((resolve) => session.socket.once('close', resolve));
  websocket.session.hide();
  await closed;
  assert.equal(session.bye, true);
});

/** The bodies of all POSTs from now on. */
function posts({ gateway }) {
  const bodies = [];
  gateway.http.prependListener('request', (request) => {
    if (request.method === 'POST') request.on('data', (piece) => bodies.push(piece.toString()));
  });
  return bodies;
}

test('giving up a connection says nothing; the session goes on with the next', async (t) => {
  const client = await setup(t, { treat: TREATMENTS['is refused with 403'] });
  const socket = await opened(client);
  const bodies = posts(client);
  client.session.reconnect();
  await client.until(() => client.session.state === 'open');
  await exchange(client, socket, 10);
  assert.match(bodies[0], /^4H\{"v":1,"session":"s1"/);
  const packets = bodies.flatMap((body) => body.split('\x1e'));
  assert.ok(!packets.includes('1'), 'none closes the old connection');
});

test('ending a connection says bye, and closes it', async (t) => {
  const client = await setup(t, { treat: TREATMENTS['is refused with 403'] });
  await opened(client);
  const bodies = posts(client);
  const [{ socket }] = client.gateway.sessions.values();
  const closed = new Promise((resolve) => socket.once('close', resolve));
  client.links[0].end('B');
  await closed;
  assert.deepEqual(bodies, ['4B', '1']);
});

test('giving up cuts the poll under way, even one that is paused for an upgrade', () => {
  const calls = [];
  const transport = { abort: () => calls.push('abort'), emit: (event) => calls.push(event) };
  const engine = { on() {}, writeBuffer: [], transport };
  const choice = { why: '', wait: 0 };
  const link = new Link({ create: () => engine, choice }, {});
  link.drop();
  link.drop();
  assert.deepEqual(calls, ['abort', 'close']);
});

const ANSWERS = [
  ['a login page', 200, '<!doctype html><form>', 'sign-in'],
  ['401', 401, 'who are you?', 'sign-in'],
  ['403', 403, '', 'sign-in'],
  ['a foreign 200', 200, 'hello', 'server'],
  ['502', 502, 'bad gateway', 'server'],
];

for (const [name, status, body, reason] of ANSWERS) {
  test(`${name} instead of an answer: ${reason}`, async (t) => {
    const server = createServer((_, response) => response.writeHead(status).end(body));
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const client = createClient(server.address().port);
    t.after(() => {
      client.close();
      server.closeAllConnections();
      server.close();
    });
    client.open();
    await client.until(() => client.told.some(([type]) => type === 'lost'));
    assert.equal(client.session.reason, reason);
  });
}

test('a page instead of the answer to a POST is noticed at once: sign-in', async (t) => {
  const polls = new Set();
  const server = createServer((request, response) => {
    if (request.method === 'POST') response.end('<!doctype html><form>');
    else if (request.url.includes('sid=')) polls.add(response);
    else response.end('0{"sid":"a","upgrades":[],"pingInterval":9000,"pingTimeout":9000,"maxPayload":1000}');
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const client = createClient(server.address().port);
  t.after(() => {
    client.close();
    server.closeAllConnections();
    server.close();
  });
  client.open();
  await client.until(() => client.told.some(([type]) => type === 'lost'));
  assert.equal(client.session.reason, 'sign-in');
});

test('a page that was asleep while the probe was answered takes the answer', () => {
  const clock = new FakeClock();
  class Nothing {
    once() {}
    doOpen() {}
    onError() {
      this.failed = true;
    }
  }
  const [, Upgrade] = createTransports({ Polling: Nothing, WebSocket: Nothing }, clock);
  for (const [asleep, failed] of [[0, true], [60_000, undefined]]) {
    const probe = new Upgrade();
    probe.opts = { watch: {} };
    const { setTimeout } = clock;
    clock.setTimeout = (callback, delay) => setTimeout(callback, delay + asleep);
    probe.doOpen();
    clock.pass(PROBE_MS + asleep);
    assert.equal(probe.failed, failed);
    clock.setTimeout = setTimeout;
    clock.pass(70_000);
    assert.equal(probe.failed, true);
  }
});

test('without a network, as the browser says: offline', () => {
  const told = [];
  const engine = new Emitter();
  const create = () => Object.assign(engine, { off() {}, writeBuffer: [] });
  const choice = { missed() {} };
  const parts = { create, choice, clock: new FakeClock(), online: () => false };
  new Link(parts, { closed: (reason) => told.push(reason) });
  engine.emit('close', 'transport error', { description: 0 });
  assert.deepEqual(told, ['offline']);
});

test('nobody listens: network', async (t) => {
  const client = createClient(1);
  t.after(() => client.close());
  client.open();
  await client.until(() => client.told.some(([type]) => type === 'lost'));
  assert.equal(client.session.reason, 'network');
});

for (const [cause, detail, reason] of [
  ['ping timeout', undefined, 'silence'],
  ['transport close', { description: 'network connection lost' }, 'offline'],
  ['transport close', { description: 'websocket connection closed' }, 'network'],
  ['transport error', { description: 0 }, 'network'],
  ['transport error', { description: 413 }, 'server'],
]) {
  test(`${cause} with ${JSON.stringify(detail)} is told as ${reason}`, () => {
    assert.equal(reasonOf(cause, detail), reason);
  });
}

test('an endpoint becomes options of engine.io-client', () => {
  assert.deepEqual(engineOptions('https://[::1]:8443/a/b/', true), {
    hostname: '::1',
    port: '8443',
    secure: true,
    path: '/a/b/',
    withCredentials: true,
  });
});
