// The requests of long-polling, one by one: npm's engine.io-client on a clock and an XMLHttpRequest that only
// the test moves.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import { NodeWebSocket, Socket, XHR } from 'engine.io-client';
import { Choice, Memory } from '../src/choice.js';
import { Link, createTransports, engineOptions } from '../src/engine.js';
import { FakeClock } from './support/clock.js';

const Polling = Object.getPrototypeOf(Object.getPrototypeOf(XHR));
const OPEN = '0{"sid":"s","upgrades":[],"pingInterval":10000,"pingTimeout":10000,"maxPayload":1000000}';
const BIG = 'x'.repeat(32_000);

let asked;
let page;
let connect;

class FakeRequest {
  aborted = false;

  open(method, url) {
    Object.assign(this, { method, url });
    this.query = Object.fromEntries(new URL(url).searchParams);
  }

  setRequestHeader() {}

  send(body) {
    this.body = body;
    asked.push(this);
  }

  abort() {
    this.aborted = true;
  }

  answer(text, status = 200) {
    assert.ok(!this.aborted, 'the client listens no more');
    Object.assign(this, { status, responseText: text });
    this.onload();
    page.clock.settle();
  }

  fail() {
    assert.ok(!this.aborted, 'the client listens no more');
    this.onerror();
    page.clock.settle();
  }

  get packets() {
    return this.body.split('\x1e');
  }
}

function setup() {
  asked = [];
  const clock = new FakeClock();
  const store = new Map();
  const storage = {
    getItem: (key) => store.get(key) ?? null,
    setItem: (key, value) => store.set(key, value),
    removeItem: (key) => store.delete(key),
  };
  const choice = new Choice({ endpoint: 'http://h/', memory: new Memory(() => storage), wall: clock.wall });
  const transports = createTransports({ Polling, WebSocket: NodeWebSocket }, clock);
  const heard = [];
  const ends = [];
  const beacons = [];
  let drains = 0;
  let engine;
  const create = (options) => {
    engine = new Socket({ ...engineOptions('http://127.0.0.1:1/', false), transports, ...options });
    return engine;
  };
  const handlers = {
    open() {},
    frame: (data) => heard.push(data),
    drain: () => (drains += 1),
    closed: (reason) => ends.push(reason),
    transport() {},
  };
  const beacon = (url, text) => beacons.push([url, text]);
  page = { clock, choice, heard, ends, beacons, store };
  connect = () => {
    page.link = new Link({ create, choice, clock, beacon, blocked: () => true }, handlers);
  };
  connect();
  Object.defineProperty(page, 'engine', { get: () => engine });
  Object.defineProperty(page, 'drains', { get: () => drains });
  asked[0].answer(OPEN);
}

const RealRequest = globalThis.XMLHttpRequest;

beforeEach(() => {
  globalThis.XMLHttpRequest = FakeRequest;
  setup();
});

afterEach(() => {
  page.link.drop();
  globalThis.XMLHttpRequest = RealRequest;
});

const sent = (method) => asked.filter((one) => one.method === method);
const get = () => sent('GET').at(-1);
const posts = () => sent('POST');
const post = () => posts().at(-1);
const pick = ({ n, hold, max }) => [n, hold, max].map(Number);

function send(...messages) {
  page.link.send(messages);
  page.clock.settle();
}

const batch = (count, text = BIG) => Array.from({ length: count }, (_, i) => `${i}${text}`);

test('the handshake has no number, the GETs are counted', () => {
  assert.equal(asked[0].query.n, undefined);
  assert.deepEqual(pick(get().query), [1, 4000, 1_000_000]);
  get().answer('4a');
  assert.deepEqual(pick(get().query), [2, 4000, 1_000_000]);
  assert.deepEqual(page.heard, ['a']);
});

test('a handshake without an answer is sent again, sooner where a round trip is known', () => {
  page.link.drop();
  const waits = [];
  for (let round = 0; round < 2; round++) {
    asked = [];
    connect();
    page.choice.limits.roundTrip = round && 100;
    if (round) {
      page.link.drop();
      asked = [];
      connect();
    }
    let last = page.clock.now();
    while (asked.length < 5) {
      const { length } = asked;
      page.clock.pass(10);
      if (asked.length === length) continue;
      assert.equal(asked.at(-2).aborted, true);
      waits.push(page.clock.now() - last);
      last = page.clock.now();
    }
    assert.deepEqual(page.ends, []);
    asked.at(-1).answer(OPEN);
    assert.equal(get().query.n, '1');
    page.link.drop();
  }
  assert.deepEqual(waits, [2100, 3100, 4600, 6850, 1100, 1600, 2350, 3480]);
});

test('a handshake that is refused is not sent again', () => {
  page.link.drop();
  asked = [];
  connect();
  asked[0].fail();
  page.clock.pass(20_000);
  assert.equal(asked.length, 1);
  assert.deepEqual(page.ends, ['network']);
});

for (const status of [0, 408, 429, 502, 503, 504, 524]) {
  test(`a GET that fails with ${status} is sent again with its number, for less`, () => {
    if (status) get().answer('', status);
    else get().fail();
    assert.equal(sent('GET').length, 2, 'not before a pause');
    page.clock.pass(100);
    assert.deepEqual(pick(get().query), [1, 4000, 250_000]);
    get().answer('4a');
    assert.deepEqual(pick(get().query), [2, 4000, 1_000_000]);
    assert.deepEqual(page.ends, []);
  });
}

for (const [status, reason] of [[400, 'server'], [401, 'sign-in'], [403, 'sign-in'], [404, 'server'], [500, 'server']]) {
  test(`a GET that is answered ${status} ends the connection at once: ${reason}`, () => {
    get().answer('', status);
    assert.deepEqual(page.ends, [reason]);
    assert.equal(page.clock.waiting, 0);
  });
}

test('a GET without an answer is given up a second after its hold, and sent again', () => {
  const first = get();
  page.clock.pass(4999);
  assert.equal(first.aborted, false);
  page.clock.pass(1);
  assert.equal(first.aborted, true);
  page.clock.pass(100);
  assert.equal(get().query.n, '1');
});

test('far away it is waited for longer', () => {
  send('a');
  page.clock.pass(600);
  post().answer('ok');
  get().answer('4b');
  page.clock.pass(6399);
  assert.equal(get().aborted, false);
  page.clock.pass(1);
  assert.equal(get().aborted, true);
});

test('an answer that has begun is waited for while it comes', () => {
  const first = get();
  for (let i = 0; i < 10; i++) {
    page.clock.pass(4000);
    first.onprogress();
  }
  assert.equal(first.aborted, false);
  page.clock.pass(5000);
  assert.equal(first.aborted, true);
  first.onprogress();
  page.clock.pass(100);
  assert.equal(sent('GET').length, 3, 'one repetition');
});

test('the connection is given up when all has failed for six seconds', () => {
  let last = page.clock.now();
  while (!page.ends.length) {
    last = page.clock.now();
    get().answer('', 502);
    page.clock.pass(2000);
  }
  assert.ok(last > 6000 && last < 9000, `${last} ms`);
  assert.deepEqual(page.ends, ['server']);
  assert.equal(page.clock.waiting, 0);
});

test('one lost answer after the other ends nothing', () => {
  for (let i = 0; i < 20; i++) {
    get().fail();
    page.clock.pass(100);
    get().answer(`4${i}`);
  }
  assert.equal(page.heard.length, 20);
  assert.deepEqual(page.ends, []);
});

test('four POSTs under way, in the order of their numbers; then one waits for room', () => {
  for (let i = 1; i <= 4; i++) {
    assert.ok(page.link.writable);
    send(...batch(2));
  }
  assert.deepEqual(posts().map(({ query }) => query.n), ['1', '2', '3', '4']);
  assert.equal(page.link.writable, false);
  posts()[1].answer('ok');
  assert.equal(page.link.writable, true);
  send(...batch(2));
  assert.equal(post().query.n, '5');
});

test('less than 16 kB waits until one is back, and then goes by itself', () => {
  send('a');
  send('b');
  assert.deepEqual(posts().map(({ body }) => body), ['4a']);
  assert.equal(page.link.writable, false);
  post().answer('ok');
  assert.deepEqual(posts().map(({ body }) => body), ['4a', '4b']);
  assert.equal(post().query.n, '2');
});

test('where one POST takes long, there is no second one beside it', () => {
  send(...batch(2));
  page.clock.pass(2500);
  post().answer('ok');
  send(...batch(2));
  assert.equal(page.link.writable, false);
  page.clock.pass(500);
  post().answer('ok');
  send(...batch(2));
  assert.equal(page.link.writable, true);
});

test('a POST is sent again with its number and its body, beside later ones', () => {
  send(...batch(1));
  send(...batch(2));
  const [first, second] = posts();
  first.fail();
  second.answer('ok');
  page.clock.pass(100);
  assert.equal(post().query.n, '1');
  assert.equal(post().body, first.body);
  post().answer('ok');
  send('z');
  assert.equal(post().query.n, '3');
});

test('a POST has time for its size, and for others beside it, and each try has more', () => {
  const holds = (ms) => {
    for (; ms > 4000; ms -= 4000) {
      page.clock.pass(4000);
      get().answer('6');
    }
    page.clock.pass(ms);
  };
  send('x'.repeat(15_998));
  const first = post();
  assert.equal(first.body.length, 15_999);
  holds(5499);
  assert.equal(first.aborted, false);
  page.clock.pass(1);
  assert.equal(first.aborted, true);
  page.clock.pass(100);
  const second = post();
  assert.deepEqual([second.query.n, second.body], ['1', first.body]);
  holds(8249);
  assert.equal(second.aborted, false);
  page.clock.pass(1);
  assert.equal(second.aborted, true);
});

test('a word into a connection that is dead is said again after 1.5 s', () => {
  send('a');
  page.clock.pass(1499 + 1);
  assert.equal(posts().length, 1);
  page.clock.pass(101);
  assert.deepEqual(posts().map(({ query, body }) => [query.n, body]), [['1', '4a'], ['1', '4a']]);
});

test('on a slow uplink no POST is sent twice', () => {
  for (let i = 0; i < 4; i++) send(...batch(2));
  // 16 kB/s.
  for (let i = 0; i < 4; i++) {
    page.clock.pass(4000);
    get().answer('6');
  }
  assert.equal(posts().length, 4);
  for (const one of posts()) one.answer('ok');
  assert.equal(page.link.budget, 40 * 1024);
  send(...batch(1));
  page.clock.pass(4000);
  get().answer('6');
  assert.equal(posts().length, 5);
});

test('what a slow uplink could not carry at once goes again one after the other', () => {
  for (let i = 0; i < 3; i++) send(...batch(2));
  for (const one of posts()) one.answer('', 408);
  for (const number of ['1', '2', '3']) {
    page.clock.pass(100);
    assert.equal(posts().length, 3 + Number(number));
    assert.equal(post().query.n, number);
    post().answer('ok');
  }
});

test('after a POST without an answer, the next are smaller for now', () => {
  send(...batch(2));
  post().answer('ok');
  send(...batch(2));
  assert.equal(page.link.budget, 144 * 1024);
  page.clock.pass(10_000);
  assert.equal(page.link.budget, 72 * 1024);
  assert.equal(page.choice.limits.post, 256 * 1024);
});

test('a POST that is too large comes in parts under its number, and later ones are smaller', () => {
  const messages = batch(7);
  send(...messages);
  const whole = post().packets;
  const parts = [];
  let refused = 0;
  for (let one = post(); ; one = post()) {
    if (Buffer.byteLength(one.body) > 65_536) {
      refused += 1;
      one.answer('', 413);
      page.clock.pass(100);
      continue;
    }
    assert.equal(one.query.n, '1');
    assert.equal(Number(one.query.skip), parts.length);
    parts.push(...one.packets);
    assert.equal(one.query.more, parts.length < 7 ? '1' : undefined);
    one.answer('ok');
    if (parts.length >= 7) break;
  }
  assert.deepEqual(parts, whole);
  assert.equal(refused, 2);
  assert.equal(page.link.budget, 65_536);
  assert.match([...page.store.values()][0], /"post":65536/);
  send('z');
  assert.equal(post().query.n, '2');
  assert.deepEqual(page.ends, []);
});

test('one message that is too large for the way ends the connection', () => {
  send('x'.repeat(39_000));
  post().answer('', 413);
  assert.deepEqual(page.ends, ['server']);
});

test('the oldest POST that gets no answer for long, while others do, is sent in halves', () => {
  send(...batch(2));
  const [first] = posts();
  while (!first.aborted) {
    page.clock.pass(4000);
    get().answer('6');
  }
  assert.equal(post().query.more, '1');
  assert.equal(post().packets.length, 1);
  assert.equal(page.choice.limits.post, 40 * 1024);
});

test('a POST into a connection that is dead teaches nothing where it is noticed soon', () => {
  send(...batch(2));
  page.clock.pass(10);
  post().answer('ok');
  send(...batch(2));
  const late = post();
  page.clock.pass(4000);
  assert.equal(late.aborted, true);
  get().answer('6');
  assert.equal(post().body, late.body);
  assert.equal(page.choice.limits.post, 256 * 1024);
});

test('where nothing comes through, POSTs become no smaller', () => {
  send(...batch(4));
  for (let i = 0; i < 40; i++) {
    for (const one of asked) if (!one.aborted && one.status === undefined && !one.failed) {
      one.failed = true;
      one.fail();
    }
    page.clock.pass(100);
  }
  assert.ok(posts().length > 3);
  assert.equal(page.store.size, 0);
  assert.equal(page.choice.limits.post, 256 * 1024);
});

for (const [answer, reason] of [['<html>', 'sign-in'], ['OK', 'server'], ['', 'server']]) {
  test(`a POST that is answered ${JSON.stringify(answer)} did not arrive: ${reason}`, () => {
    send('a');
    post().answer(answer);
    assert.deepEqual(page.ends, [reason]);
  });
}

test('a pong waits behind no message, has no number, and may get lost', () => {
  for (let i = 1; i <= 4; i++) send(...batch(2));
  get().answer('2');
  assert.equal(post().body, '3');
  assert.equal(post().query.n, undefined);
  post().answer('', 400);
  posts()[0].answer('ok');
  send('z');
  assert.equal(posts().filter(({ body }) => body === '3').length, 1, 'no second one');
  assert.deepEqual(page.ends, []);
});

test('a beacon has no number', () => {
  send(...batch(2));
  page.link.leave('B');
  const [[url, body]] = page.beacons;
  assert.equal(new URL(url).searchParams.get('n'), null);
  assert.equal(new URL(url).searchParams.get('sid'), 's');
  assert.equal(body, '4B');
});

test('polling is paused only when the GET and all POSTs are back, repeated ones too', () => {
  const paused = [];
  for (let i = 1; i <= 3; i++) send(...batch(2));
  page.engine.transport.pause(() => paused.push('paused'));
  posts()[2].answer('ok');
  posts()[0].answer('ok');
  get().answer('6');
  posts()[1].answer('', 502);
  page.clock.pass(100);
  assert.deepEqual(paused, []);
  post().answer('ok');
  assert.deepEqual(paused, ['paused']);
  assert.equal(get().query.n, '1', 'no further GET');
});

test('giving up cuts all requests, and leaves no timer', () => {
  for (let i = 1; i <= 3; i++) send(...batch(2));
  posts()[0].fail();
  page.link.drop();
  assert.ok([get(), posts()[1], posts()[2]].every(({ aborted }) => aborted));
  assert.equal(page.clock.waiting, 0);
});

test('the end in good order goes behind all that was sent, with its numbers', () => {
  send(...batch(2));
  page.link.end('B');
  posts()[0].answer('ok');
  page.clock.pass(100);
  assert.deepEqual(posts().slice(1).map(({ query, body }) => [query.n, body]), [['2', '4B'], ['3', '1']]);
});

function idle(limit) {
  const { hold, n } = get().query;
  page.clock.pass(Math.min(Number(hold), limit));
  if (Number(hold) > limit) get().fail();
  else get().answer('6');
  page.clock.pass(100);
  return [n, Number(hold)];
}

for (const [limit, best] of [[5000, 4000], [8000, 6000], [Infinity, 9000]]) {
  test(`an idle page, where a GET may wait for ${limit} ms, finds ${best} ms`, () => {
    const holds = [];
    for (let i = 0; i < 20; i++) holds.push(idle(limit)[1]);
    assert.deepEqual([...new Set(holds.slice(-8))], [best]);
    assert.deepEqual(page.ends, []);
  });
}

test('an answer that is cut is asked for in pieces, and what has failed is not asked for soon', () => {
  get().fail();
  page.clock.pass(100);
  get().answer(`4${'x'.repeat(200_000)}`);
  assert.equal(Number(get().query.max), 250_000);
});

test('an answer that was lost for another reason teaches nothing', () => {
  get().fail();
  page.clock.pass(100);
  get().answer('4a');
  assert.equal(Number(get().query.max), 1_000_000);
  get().answer('', 502);
  page.clock.pass(100);
  get().answer(`4${'x'.repeat(200_000)}`);
  assert.equal(Number(get().query.max), 1_000_000, 'one 502 has many reasons');
  assert.equal(page.store.size, 0);
});
