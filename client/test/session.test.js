// The session against a scripted gateway and a clock that only the test moves.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CLOSE_WAIT_MS } from '../src/channel.js';
import { MAX_CHANNEL } from '../src/frames.js';
import { FRAME_COST, PART_BYTES } from '../src/queues.js';
import { WINDOW_BYTES, WINDOW_FRAMES } from '../src/replay.js';
import { LOST_BUFFER_BYTES, Session, TIMING, retryDelay } from '../src/session.js';
import { FakeClock } from './support/clock.js';
import { chanceOf } from './support/model.js';
import { FakeNetwork, welcome } from './support/wire.js';

function setup({ random = 0.5, resume } = {}) {
  const clock = new FakeClock();
  const network = new FakeNetwork();
  const told = [];
  const tell = (type, detail) => type !== 'status' && told.push([type, detail]);
  const session = new Session({ connect: network.connect, clock, random: typeof random === 'number' ? () => random : random, tell, resume });
  return { clock, network, told, session };
}

function openSocket(session, { url = '/x', protocols = [] } = {}) {
  const heard = [];
  const sink = {
    accept: (protocol) => heard.push(['accept', protocol]),
    message: (data) => heard.push(['message', data]),
    dropped: (count) => heard.push(['dropped', count]),
    close: ({ code, reason, clean, failed }) => heard.push(['close', code, reason, clean, failed]),
  };
  return { channel: session.open({ url, protocols, sink }), heard };
}

/** One accepted channel on an open session. `link` is the connection, `limits` goes into the welcome. */
function opened({ limits, ...options } = {}) {
  const parts = setup(options);
  const socket = openSocket(parts.session);
  const { link } = parts.network;
  link.open();
  link.receive(welcome(limits));
  parts.clock.settle();
  link.drain();
  link.receive('A1{"protocol":""}');
  socket.heard.splice(0);
  parts.told.splice(0);
  link.read();
  parts.clock.pass(TIMING.steadyMs);
  link.drain();
  link.read();
  return { ...parts, ...socket, link };
}

/** Lose the connection, and let the first retry begin. Returns the new, open connection. */
function reconnected({ clock, network, link }) {
  link.close();
  clock.pass(TIMING.firstRetryMs);
  network.link.open();
  return network.link;
}

const FAILED = ['close', 1006, '', false, true];
const LOST = ['close', 1006, '', false, false];

// ---- hello and welcome ----------------------------------------------------------------------

test('starts with the first socket, and says nothing but hello before the welcome', () => {
  const { clock, network, session } = setup();
  assert.equal(session.state, 'idle');
  openSocket(session, { url: '/chat?room=7', protocols: ['a', 'b'] });
  assert.equal(session.state, 'connecting');
  const { link } = network;
  clock.settle();
  assert.deepEqual(link.read(), []);
  link.open();
  clock.settle();
  assert.deepEqual(link.read(), ['H{"v":1}']);
  link.receive(welcome());
  clock.settle();
  assert.equal(session.state, 'open');
  assert.equal(session.id, 's1');
  assert.deepEqual(link.read(), ['O1{"url":"/chat?room=7","protocols":["a","b"]}']);
});

test('sockets of a page share one connection', () => {
  const { network, session } = setup();
  openSocket(session);
  openSocket(session);
  assert.equal(network.links.length, 1);
});

test('what one task sends travels in one batch, within the budget of the connection', () => {
  const { clock, channel, link } = opened();
  for (const text of ['a', 'b', 'c']) channel.send(text);
  clock.settle();
  assert.deepEqual(link.read(), ['1:a', '1:b', '1:c']);
  channel.send('x'.repeat(600));
  channel.send('y'.repeat(600));
  clock.settle();
  assert.deepEqual(link.read(), []);
  link.drain();
  assert.equal(link.read().length, 1);
  link.drain();
  assert.equal(link.read().length, 1);
});

test('text and binary keep their order', () => {
  const { clock, channel, link } = opened();
  channel.send('a');
  channel.send(new Uint8Array([7]));
  channel.send('b\x1e');
  clock.settle();
  assert.deepEqual(link.read(), ['1:a', new Uint8Array([1, 7]), '1;b\\e']);
});

// ---- resume ---------------------------------------------------------------------------------

test('a lost connection is resumed, and exactly what was lost is sent again', () => {
  const parts = opened();
  const { clock, channel, link, heard, told, session } = parts;
  for (const text of ['a', 'b', 'c']) channel.send(text);
  clock.settle();
  link.close();
  assert.equal(session.state, 'lost');
  channel.send('d');
  clock.pass(TIMING.firstRetryMs);
  const next = parts.network.link;
  next.open();
  assert.deepEqual(next.hello(), { v: 1, session: 's1', token: 't1', epoch: 'e1', received: 1 });
  // The gateway has O1 and a.
  next.receive(welcome({ resumed: true, received: 2, token: 't2' }));
  clock.settle();
  assert.deepEqual(next.read(), ['1:b', '1:c', '1:d']);
  assert.deepEqual(heard, []);
  assert.deepEqual(told.map(([type]) => type), ['transport']);
});

test('the next resume uses the newest token and counts what came since', () => {
  const parts = opened();
  const second = reconnected(parts);
  second.read();
  second.receive(welcome({ resumed: true, received: 1, token: 't2' }), '1:x', '1:y');
  parts.clock.pass(TIMING.steadyMs);
  const third = reconnected({ ...parts, link: second });
  assert.deepEqual(third.hello(), { v: 1, session: 's1', token: 't2', epoch: 'e1', received: 3 });
});

test('each message is delivered once, across connections', () => {
  const parts = opened();
  const { link, heard } = parts;
  link.receive('1:one', new Uint8Array([1, 9]).buffer);
  const next = reconnected(parts);
  next.receive(welcome({ resumed: true, received: 1 }), '1:two');
  assert.deepEqual(heard, [['message', 'one'], ['message', new Uint8Array([9])], ['message', 'two']]);
});

test('a connection that dies in the middle of the replay is no harm', () => {
  const parts = opened();
  const { clock, channel, network } = parts;
  for (const text of ['a', 'b']) channel.send(text);
  clock.settle();
  const second = reconnected(parts);
  second.receive(welcome({ resumed: true, received: 1 }));
  clock.settle();
  second.close();
  clock.pass(TIMING.backoffMaxMs);
  network.link.open();
  network.link.read();
  network.link.receive(welcome({ resumed: true, received: 2 }));
  clock.settle();
  assert.deepEqual(network.link.read(), ['1:b']);
});

test('a welcome that counts more than we ever sent is not believed', () => {
  const parts = opened();
  const next = reconnected(parts);
  next.receive(welcome({ resumed: true, received: 9 }));
  assert.deepEqual(parts.heard, [LOST]);
  assert.ok(next.dropped);
  parts.clock.pass(TIMING.backoffMaxMs);
  parts.network.link.open();
  assert.deepEqual(parts.network.link.hello(), { v: 1 });
});

// ---- state lost -----------------------------------------------------------------------------

test('state lost: known channels end with 1006, unwritten opens are carried over', () => {
  const parts = opened();
  const { clock, session, link, heard, told } = parts;
  const connecting = openSocket(session);
  clock.settle();
  link.close();
  const fresh = openSocket(session, { url: '/fresh' });
  const given = openSocket(session);
  given.channel.close({});
  clock.pass(TIMING.firstRetryMs);
  const next = parts.network.link;
  next.open();
  next.read();
  next.receive(welcome({ session: 's2' }));
  clock.settle();
  assert.deepEqual(heard, [LOST]);
  assert.deepEqual(connecting.heard, [FAILED]);
  assert.deepEqual(given.heard, [FAILED]);
  assert.deepEqual(fresh.heard, []);
  assert.deepEqual(next.read(), ['O3{"url":"/fresh","protocols":[]}']);
  assert.deepEqual(told.find(([type]) => type === 'gap'), ['gap', { closed: 2 }]);
  next.receive('A3{"protocol":""}');
  next.receive('+1');
  assert.deepEqual(fresh.heard, [['accept', '']]);
  assert.equal(session.id, 's2');
});

test('after state lost both sides count anew', () => {
  const parts = opened();
  const { clock, network, session, link } = parts;
  link.receive('1:x', '1:y');
  const second = reconnected(parts);
  second.receive(welcome({ session: 's2' }));
  openSocket(session);
  clock.settle();
  second.receive('A2{"protocol":""}');
  clock.pass(TIMING.steadyMs);
  second.close();
  clock.pass(TIMING.firstRetryMs);
  network.link.open();
  const { session: id, received } = network.link.hello();
  assert.deepEqual([id, received], ['s2', 1]);
});

test('a bad frame ends the session, not the page', () => {
  for (const bad of ['?', 'H{"v":1}', 'B', 'O1{"url":"/","protocols":[]}', '9:x', '+99', 'A1{"protocol":""}']) {
    const { clock, network, link, heard } = opened();
    link.receive(bad);
    assert.deepEqual(heard, [LOST], bad);
    clock.pass(TIMING.firstRetryMs);
    network.link.open();
    assert.deepEqual(network.link.hello(), { v: 1 }, bad);
  }
});

test('anything before the welcome is an error', () => {
  const { network, session, told } = setup();
  openSocket(session);
  network.link.open();
  network.link.receive('+0');
  assert.ok(network.link.dropped);
  assert.equal(session.state, 'lost');
  assert.deepEqual(told.map(([type]) => type), ['lost']);
});

test('the gateway ends the session and lets us begin again', () => {
  const { clock, network, link, heard, told, session } = opened();
  link.receive('X{"code":1012,"reason":"server restarts","retry":true}');
  assert.deepEqual(heard, [['close', 1012, 'server restarts', true, false]]);
  assert.deepEqual(told, [['gap', { closed: 1 }]]);
  assert.equal(session.state, 'lost');
  clock.pass(TIMING.backoffMs);
  network.link.open();
  assert.deepEqual(network.link.hello(), { v: 1 });
});

test('the gateway ends the session for good: nothing is tried until somebody asks', () => {
  const { clock, network, link, heard, told, session } = opened();
  link.receive('X{"code":4001,"reason":"banned","retry":false}');
  assert.deepEqual(heard, [['close', 4001, 'banned', true, false]]);
  assert.deepEqual(told[0], ['gone', { code: 4001, reason: 'banned' }]);
  assert.equal(session.state, 'gone');
  const late = openSocket(session);
  clock.pass(3_600_000);
  assert.deepEqual(late.heard, [FAILED]);
  assert.equal(network.links.length, 1);
  session.retry();
  assert.equal(network.links.length, 2);
  network.link.open();
  network.link.receive(welcome());
  clock.settle();
  assert.deepEqual(network.link.read(), ['H{"v":1}']);
});

// ---- reconnecting ---------------------------------------------------------------------------

test('the delays stay within their bounds', () => {
  for (const random of [0, 0.3, 0.999]) {
    const first = retryDelay(0, random, 0);
    assert.ok(first >= 0 && first <= TIMING.firstRetryMs);
    for (let attempt = 1; attempt < 40; attempt++) {
      for (const [lostMs, most] of [[0, 4000], [14_999, 4000], [15_000, 10_000]]) {
        const ceiling = Math.min(most, 500 * 2 ** (attempt - 1));
        const delay = retryDelay(attempt, random, lostMs);
        assert.ok(delay >= 250 && delay <= ceiling, `${attempt}: ${delay}`);
      }
    }
  }
  assert.ok(retryDelay(20, 0.999, 60_000) > 9000);
});

test('the delays of many are spread over all of their range', () => {
  const { random } = chanceOf(1);
  for (let attempt = 1; attempt < 6; attempt++) {
    const delays = new Set(Array.from({ length: 200 }, () => retryDelay(attempt, random(), 0)));
    assert.ok(delays.size > 120, `${attempt}: ${delays.size}`);
  }
});

/** The times at which a page that loses a gateway tries to connect, in ms after the loss. */
function attempts(random, forMs, failsAfterMs) {
  const { clock, network, link, session } = opened({ random });
  const lostAt = clock.now();
  link.close();
  const times = [];
  while (clock.now() - lostAt < forMs) {
    clock.pass(session.retryAt - clock.wall());
    times.push(clock.now() - lostAt);
    clock.pass(failsAfterMs);
    network.link.close();
  }
  return times;
}

for (const failsAfterMs of [0, 1000]) {
  test(`a gateway that is away for 3 s has its pages back in 8.1 s; attempts that fail take ${failsAfterMs} ms`, () => {
    for (let i = 0; i < 200; i++) {
      const chance = chanceOf(i);
      const times = attempts(chance.random, 3000, failsAfterMs);
      assert.ok(times.at(-1) <= 3000 + TIMING.eagerMaxMs + failsAfterMs, `${times}`);
    }
  });
}

test('within the first 15 s no page waits longer than 4 s, afterwards none longer than 10 s', () => {
  for (const random of [() => 0, () => 0.999, chanceOf(1).random]) {
    const times = attempts(random, 60_000, 0);
    const waits = times.map((time, i) => [time - (times[i - 1] ?? 0), times[i - 1] ?? 0]);
    for (const [wait, since] of waits) assert.ok(wait <= (since < 15_000 ? 4000 : 10_000), `${wait} at ${since}`);
  }
});

test('a page that never was connected tries as often', () => {
  const { clock, network, session } = setup({ random: 0.999 });
  clock.pass(3_600_000);
  openSocket(session);
  const { link } = network;
  const began = clock.now();
  link.close();
  while (clock.now() - began < 10_000) {
    const wait = session.retryAt - clock.wall();
    assert.ok(wait <= TIMING.eagerMaxMs, `${wait}`);
    clock.pass(wait);
    network.link.close();
  }
});

test('of a thousand pages that lose one gateway no 50 ms see more than a quarter', () => {
  const times = Array.from({ length: 1000 }, (_, i) => attempts(chanceOf(i).random, 3000, 0)).flat();
  const slots = new Map();
  for (const time of times) slots.set(Math.floor(time / 50), (slots.get(Math.floor(time / 50)) ?? 0) + 1);
  assert.ok(Math.max(...slots.values()) < 250, `${[...slots]}`);
});

test('a quick resume is silent', () => {
  const parts = opened();
  const next = reconnected(parts);
  next.receive(welcome({ resumed: true, received: 1 }));
  parts.clock.pass(10_000);
  assert.deepEqual(parts.told.map(([type]) => type), ['transport']);
});

test('lost is told at once when there never was a connection', () => {
  const { clock, network, told, session } = setup();
  openSocket(session);
  network.link.close('server');
  assert.equal(told.length, 1);
  const [type, { reason, retryIn }] = told[0];
  assert.deepEqual([type, reason], ['lost', 'server']);
  assert.ok(retryIn >= 250 && retryIn <= 500);
  assert.equal(session.retryAt, clock.wall() + retryIn);
});

test('a loss that is healed within a second is told to nobody, though an attempt has failed', () => {
  const { clock, network, link, told } = opened();
  link.close();
  clock.pass(TIMING.firstRetryMs);
  network.link.close();
  clock.pass(500);
  network.link.open();
  network.link.receive(welcome({ resumed: true, received: 1 }));
  clock.pass(TIMING.quietMs);
  assert.deepEqual(told.filter(([event]) => event === 'lost' || event === 'back'), []);
});

test('lost is told after one second, once, and back when it is over', () => {
  const { clock, network, link, told, session } = opened();
  link.close('silence');
  clock.pass(TIMING.firstRetryMs);
  network.link.close('server');
  clock.pass(500);
  network.link.close('server');
  clock.pass(TIMING.quietMs);
  assert.deepEqual(told.map(([event, { reason }]) => [event, reason]), [['lost', 'server']]);
  clock.pass(2000);
  network.link.open();
  network.link.receive(welcome({ resumed: true, received: 1 }));
  assert.ok(told.some(([event, detail]) => event === 'back' && detail.resumed === true));
  assert.equal(session.retryAt, null);
});

test('lost is told after one second, though the first attempt still runs', () => {
  const { clock, link, told } = opened();
  link.close();
  clock.pass(TIMING.quietMs - 1);
  assert.deepEqual(told, []);
  clock.pass(1);
  assert.deepEqual(told, [['lost', { reason: 'network', retryIn: 0 }]]);
});

test('an attempt that gets no welcome is given up', () => {
  const { clock, network, session } = setup();
  openSocket(session);
  network.link.open();
  clock.pass(TIMING.attemptMs - 1);
  assert.equal(network.link.dropped, false);
  clock.pass(1);
  assert.ok(network.links[0].dropped);
  assert.equal(session.reason, 'timeout');
});

test('never more than one connection, and it is tried for ever', () => {
  const { clock, network, session } = setup();
  openSocket(session);
  for (let i = 0; i < 50; i++) {
    assert.equal(network.links.length, i + 1);
    network.link.close();
    clock.pass(TIMING.backoffMaxMs);
  }
});

test('retry tries at once, in the place of an attempt under way', () => {
  const { clock, network, session } = setup();
  openSocket(session);
  network.link.close();
  session.retry();
  assert.equal(network.links.length, 2);
  session.retry();
  assert.ok(network.links[1].dropped);
  assert.equal(network.links.length, 3);
  clock.pass(5000);
  assert.equal(network.links.length, 3);
});

test('a gateway that welcomes and hangs up at once is not stormed', () => {
  const { clock, network, session } = setup({ random: 0.999 });
  openSocket(session);
  for (let i = 0; i < 8; i++) {
    network.link.open();
    network.link.receive(welcome());
    network.link.close();
    clock.pass(retryDelay(i + 1, 0.999));
  }
  const { length } = network.links;
  network.link.close();
  clock.pass(TIMING.backoffMaxMs / 2);
  assert.equal(network.links.length, length);
});

test('giving up a connection on purpose resumes silently', () => {
  const { clock, network, link, told, session } = opened();
  session.reconnect();
  assert.ok(link.dropped);
  assert.notEqual(network.link, link, 'at once');
  network.link.open();
  assert.equal(network.link.hello().session, 's1');
  assert.deepEqual(told, []);
});

test('giving up connections on purpose, again and again, is no failure', () => {
  const { clock, network, told, session } = opened();
  for (let i = 0; i < 20; i++) {
    session.reconnect();
    network.link.open();
    network.link.receive(welcome({ resumed: true, received: 1 }));
  }
  network.link.close();
  const { length } = network.links;
  clock.pass(TIMING.backoffMs);
  assert.equal(network.links.length, length + 1, 'the first failure');
  assert.deepEqual(told.filter(([type]) => type === 'lost'), []);
});

test('a connection that was given up on purpose, and does not come back, is told of', () => {
  const { clock, told, session } = opened();
  session.reconnect();
  clock.pass(TIMING.quietMs);
  assert.deepEqual(told, [['lost', { reason: 'reconnect', retryIn: 0 }]]);
});

// ---- acks -----------------------------------------------------------------------------------

test('an ack is sent after one second', () => {
  const { clock, link } = opened();
  link.receive('1:x');
  clock.pass(999);
  assert.deepEqual(link.read(), []);
  link.receive('1:y');
  clock.pass(1);
  assert.deepEqual(link.read(), ['+3']);
  link.drain();
  clock.pass(5000);
  assert.deepEqual(link.read(), []);
});

test('an ack is sent at once after 64 frames', () => {
  const { clock, link } = opened();
  for (let i = 0; i < 63; i++) link.receive('1:x');
  clock.settle();
  assert.deepEqual(link.read(), []);
  link.receive('1:x');
  clock.settle();
  assert.deepEqual(link.read(), ['+65']);
});

test('an ack is sent at once after 32 kB', () => {
  const { clock, link } = opened();
  link.receive(`1:${'x'.repeat(32 * 1024)}`);
  clock.settle();
  assert.deepEqual(link.read(), ['+2']);
});

test('an ack that is due while a batch is under way follows it', () => {
  const { clock, channel, link } = opened();
  channel.send('a');
  clock.settle();
  link.read();
  for (let i = 0; i < 64; i++) link.receive('1:x');
  clock.settle();
  assert.deepEqual(link.read(), []);
  link.drain();
  assert.deepEqual(link.read(), ['+65']);
});

test('on polling an ack travels with data, on a websocket it waits', () => {
  const { clock, channel, link } = opened();
  link.receive('1:x');
  channel.send('a');
  clock.settle();
  assert.deepEqual(link.read(), ['+2', '1:a']);
  link.drain();
  link.become('websocket', 'works');
  link.receive('1:y');
  channel.send('b');
  clock.settle();
  assert.deepEqual(link.read(), ['1:b']);
});

test('an ack of the gateway frees memory, and a replay leaves out what it covers', () => {
  const parts = opened();
  const { clock, channel, link } = parts;
  channel.send('a');
  channel.send('b');
  clock.settle();
  link.drain();
  link.receive('+2');
  const next = reconnected(parts);
  next.read();
  next.receive(welcome({ resumed: true, received: 2 }));
  clock.settle();
  assert.deepEqual(next.read(), ['1:b']);
});

// ---- channels -------------------------------------------------------------------------------

test('a refusal is an error and 1006, and the console says why, without the query', (t) => {
  const warn = t.mock.method(console, 'warn', () => {});
  const { clock, network, session } = setup();
  const { heard } = openSocket(session, { url: '/x?token=secret' });
  network.link.open();
  network.link.receive(welcome(), 'R1{"status":404,"reason":"no such route"}');
  clock.settle();
  assert.deepEqual(heard, [FAILED]);
  const said = warn.mock.calls.map((call) => call.arguments);
  assert.deepEqual(said, [['GatewaySocket: /x is refused: 404 no such route']]);
});

for (const [offered, chosen] of [[['a'], ''], [['a'], 'b'], [[], 'a']]) {
  test(`offered ${JSON.stringify(offered)}, answered "${chosen}": the handshake fails`, () => {
    const { clock, network, session } = setup();
    const { heard } = openSocket(session, { protocols: offered });
    const { link } = network;
    link.open();
    link.receive(welcome());
    clock.settle();
    link.drain();
    link.read();
    link.receive(`A1${JSON.stringify({ protocol: chosen })}`);
    clock.settle();
    assert.deepEqual(heard, [FAILED]);
    assert.match(link.read().at(-1), /^C1\{"code":1002,/);
  });
}

for (const [asked, answer, code, reason] of [
  [{}, {}, 1005, ''],
  [{ code: 1000 }, { code: 1000 }, 1000, ''],
  [{ code: 4000, reason: 'x' }, {}, 4000, 'x'],
  [{ code: 4000 }, { code: 4999, reason: 'crossed' }, 4999, 'crossed'],
]) {
  test(`we close with ${JSON.stringify(asked)}, answer ${JSON.stringify(answer)}: ${code}`, () => {
    const { clock, channel, link, heard } = opened();
    channel.send('last');
    channel.close(asked);
    channel.send('too late');
    clock.settle();
    assert.deepEqual(link.read(), ['1:last', `C1${JSON.stringify(asked)}`]);
    link.receive('1:ignored', `C1${JSON.stringify(answer)}`, '1:also');
    assert.deepEqual(heard, [['close', code, reason, true, false]]);
  });
}

for (const [fields, code, clean] of [
  [{ code: 1000, reason: 'done' }, 1000, true],
  [{ code: 10000 }, 10000, true],
  [{}, 1005, true],
  [{ code: 1006 }, 1006, false],
]) {
  test(`the application closes with ${JSON.stringify(fields)}: ${code}, and we answer`, () => {
    const { clock, link, heard } = opened();
    link.receive(`C1${JSON.stringify(fields)}`);
    clock.settle();
    assert.deepEqual(heard, [['close', code, fields.reason ?? '', clean, false]]);
    assert.deepEqual(link.read().at(-1), `C1${JSON.stringify(fields)}`);
  });
}

test('a close that is never answered ends with 1006', () => {
  const { clock, channel, heard, link } = opened();
  channel.close({ code: 1000 });
  clock.settle();
  link.drain();
  clock.pass(CLOSE_WAIT_MS);
  assert.deepEqual(heard, [LOST]);
});

test('the wait for the answer to a close leaves a long upload its time', () => {
  const { clock, channel, heard, link } = opened();
  for (const text of ['a', 'b']) channel.send(text.repeat(900));
  channel.close({ code: 1000 });
  clock.pass(2 * CLOSE_WAIT_MS);
  for (let i = 0; i < 3; i++) link.drain();
  assert.deepEqual(link.read().map((frame) => frame[0] + frame[1]), ['1:', '1:', 'C1']);
  link.receive('C1{"code":1000}');
  assert.deepEqual(heard, [['close', 1000, '', true, false]]);
});

test('a close while the connection is lost ends with 1006 after its wait', () => {
  const { clock, channel, heard, link } = opened();
  link.close();
  channel.close({ code: 1000 });
  clock.pass(CLOSE_WAIT_MS);
  assert.deepEqual(heard, [LOST]);
});

test('closing before the accept: error and 1006, and the gateway is told', () => {
  const { clock, network, session } = setup();
  const { channel, heard } = openSocket(session);
  const { link } = network;
  link.open();
  link.receive(welcome());
  clock.settle();
  link.drain();
  link.read();
  channel.close({ code: 1000 });
  clock.settle();
  assert.deepEqual(heard, [FAILED]);
  assert.deepEqual(link.read(), ['C1{"code":1000}']);
  link.receive('A1{"protocol":""}', 'C1{"code":1000}');
  assert.equal(session.state, 'open');
  assert.deepEqual(heard, [FAILED]);
});

test('what is sent while the connection is away is limited; the channel pays, not the session', () => {
  const parts = opened();
  const { clock, channel, link, heard, session } = parts;
  const other = openSocket(session);
  clock.settle();
  link.drain();
  link.receive('A2{"protocol":""}');
  link.close();
  for (let sent = 0; sent <= LOST_BUFFER_BYTES; sent += 1500) channel.send('x'.repeat(1500));
  assert.deepEqual(heard, [['close', 1006, '', false, true]]);
  clock.pass(TIMING.firstRetryMs);
  const next = parts.network.link;
  next.open();
  next.read();
  next.receive(welcome({ resumed: true, received: 2 }));
  clock.settle();
  const [close] = next.read();
  assert.match(close, /^C1\{"code":1008/);
  assert.deepEqual(other.heard, [['accept', '']]);
});

test('a channel that has paid makes room for the others', () => {
  const { clock, channel, heard, link, session } = opened();
  const other = openSocket(session);
  clock.settle();
  link.drain();
  link.receive('A2{"protocol":""}');
  link.close();
  for (let sent = 0; sent <= LOST_BUFFER_BYTES; sent += 1500) channel.send('x'.repeat(1500));
  other.channel.send('x'.repeat(1500));
  assert.equal(heard.length, 1);
  assert.deepEqual(other.heard, [['accept', '']]);
});

test('a connection that comes and goes does not raise the limit', () => {
  const parts = opened();
  const { clock, network, channel, heard } = parts;
  network.link.close();
  for (let sent = 0; sent < LOST_BUFFER_BYTES + 300_000; sent += 1500) {
    if (sent % 300_000 === 0) {
      clock.pass(TIMING.backoffMaxMs - 1);
      network.link.open();
      network.link.receive(welcome({ resumed: true, received: 1 }));
      network.link.close();
    }
    channel.send('x'.repeat(1500));
  }
  assert.deepEqual(heard, [['close', 1006, '', false, true]]);
});

test('a message that is longer than the gateway takes ends its channel with 1009', () => {
  const { clock, channel, link, heard } = opened({ limits: { message: 500 } });
  channel.send('x'.repeat(500));
  channel.send(`${'x'.repeat(498)}€`);
  clock.settle();
  assert.deepEqual(heard, [['close', 1009, '', false, true]]);
  assert.match(link.read().join(' '), /^1:x{500} C1\{"code":1009/);
});

test('a frame leaves room for the ack that may travel with it', () => {
  const { clock, channel, link } = opened();
  link.budget = link.maxPayload - 64;
  link.receive('1:x');
  channel.send('x'.repeat(3000));
  clock.settle();
  const bytes = link.read().reduce((sum, frame) => sum + frame.length + 2, 0);
  assert.ok(bytes > link.maxPayload - 100 && bytes <= link.maxPayload, `${bytes}`);
});

test('a message counts as flushed when its batch has left', () => {
  const { clock, channel, link } = opened();
  let flushed = 0;
  channel.send('ä', (bytes) => (flushed += bytes));
  clock.settle();
  assert.equal(flushed, 0);
  link.drain();
  assert.equal(flushed, 2);
  link.receive('+2');
  assert.equal(flushed, 2);
});

test('a connection that has no room yet gets nothing more', () => {
  const { clock, channel, link } = opened();
  channel.send('a');
  clock.settle();
  link.read();
  // The connection's own buffer is empty, but the browser's is not.
  link.writable = true;
  channel.send('b');
  clock.settle();
  assert.deepEqual(link.read(), []);
  link.drain();
  assert.deepEqual(link.read(), ['1:b']);
});

test('the limit for a lost connection is none for a good one', () => {
  const { clock, channel, link, heard } = opened();
  link.maxPayload = 3 * LOST_BUFFER_BYTES;
  link.receive('+1');
  channel.send('x'.repeat(LOST_BUFFER_BYTES + 1));
  clock.settle();
  assert.equal(link.read().length, 1);
  assert.deepEqual(heard, []);
});

test('no more than a window is under way without an ack, one frame at least', () => {
  const { clock, channel, link } = opened();
  link.budget = 1_000_000;
  link.receive('+1');
  for (let i = 0; i < 2 * WINDOW_FRAMES; i++) channel.send('x');
  clock.settle();
  assert.equal(link.read().length, WINDOW_FRAMES);
  link.drain();
  link.receive('+65');
  clock.settle();
  assert.equal(link.read().length, 64);
});

test('a connection that is still being made is made anew, too', () => {
  const { session, network } = setup();
  openSocket(session);
  const first = network.link;
  session.reconnect();
  assert.equal(first.dropped, true);
  assert.notEqual(network.link, first);
  network.link.open();
  network.link.receive(welcome());
  assert.equal(session.state, 'open');
});

test('channel numbers are used up once', () => {
  const { session } = setup();
  assert.equal(session.exhausted, false);
  for (let i = 0; i < MAX_CHANNEL; i++) openSocket(session).channel.close({});
  assert.equal(session.exhausted, true);
});

// ---- parts, grants, drops -------------------------------------------------------------------

test('a long message travels in parts, and short ones of other channels between them', () => {
  const { clock, channel, link, session } = opened();
  const other = openSocket(session);
  clock.settle();
  link.drain();
  link.receive('A2{"protocol":""}');
  link.read();
  link.maxPayload = link.budget = 1_000_000;
  const text = '😀'.repeat(20_000);
  let left = 0;
  channel.send(text, (bytes) => (left += bytes));
  channel.send('after');
  other.channel.send('quick');
  clock.settle();
  const sent = link.read().filter((frame) => frame[0] !== '+');
  assert.deepEqual(sent.map((frame) => frame.slice(0, 2)), ['1.', '2:', '1.', '1:', '1:']);
  for (const frame of sent) assert.ok(Buffer.byteLength(frame) <= PART_BYTES);
  const own = sent.filter((frame) => frame.startsWith('1')).map((frame) => frame.slice(2));
  assert.deepEqual([own.slice(0, 3).join(''), own[3]], [text, 'after']);
  assert.equal(left, 0);
  link.drain();
  assert.equal(left, 80_000);
});

test('a long message that is lost half-way goes on where the gateway stands', () => {
  const parts = opened();
  const { clock, channel, link } = parts;
  link.maxPayload = link.budget = 34_000;
  channel.send('x'.repeat(100_000));
  clock.settle();
  link.drain();
  link.drain();
  assert.equal(link.read().length, 3);
  const next = reconnected(parts);
  next.maxPayload = next.budget = 1_000_000;
  next.read();
  // The gateway has O1 and the first part.
  next.receive(welcome({ resumed: true, received: 2 }));
  clock.settle();
  const sent = next.read();
  assert.deepEqual(sent.map((frame) => frame.slice(0, 2)), ['1.', '1.', '1:']);
  assert.equal(sent.reduce((sum, frame) => sum + frame.length - 2, 0), 100_000 - (PART_BYTES - 7));
});

test('parts are joined, text and binary, with other channels between them', () => {
  const { clock, link, heard, session } = opened();
  const other = openSocket(session);
  clock.settle();
  link.receive('A2{"protocol":""}', '1.a', '2:quick', '1,\\e', '1:c', '1.', '1:');
  link.receive(new Uint8Array([0, 1, 7, 8]), '2:again', new Uint8Array([0, 1]), new Uint8Array([1, 9]), '1:d');
  assert.deepEqual(heard.map(([, data]) => data), ['a\x1ec', '', new Uint8Array([7, 8, 9]), 'd']);
  assert.deepEqual(other.heard.slice(1), [['message', 'quick'], ['message', 'again']]);
});

test('a message in parts survives the connection', () => {
  const parts = opened();
  parts.link.receive('1.one ', '1.two ');
  const next = reconnected(parts);
  assert.equal(next.hello().received, 3);
  next.receive(welcome({ resumed: true, received: 1 }), '1:three');
  assert.deepEqual(parts.heard, [['message', 'one two three']]);
});

test('parts of two kinds are an error', () => {
  const { link, heard } = opened();
  link.receive('1.a', new Uint8Array([1, 2]));
  assert.deepEqual(heard, [LOST]);
  assert.ok(link.dropped);
});

test('a message that never ends is ended at the limit, with 1009, and only its channel', () => {
  const { clock, link, heard, session } = opened({ limits: { message: 9 } });
  const other = openSocket(session);
  clock.settle();
  link.drain();
  link.read();
  link.receive('A2{"protocol":""}', '1.€€€', '1.x', '1:y', '2:z');
  clock.settle();
  assert.deepEqual(heard, [['close', 1009, '', false, true]]);
  assert.match(link.read().join(' '), /C1\{"code":1009/);
  assert.deepEqual(other.heard.at(-1), ['message', 'z']);
});

test('a channel sends its window, then what it is granted; another one does not wait for it', () => {
  const { clock, channel, link, session } = opened({ limits: { window: 3 * (FRAME_COST + 1) } });
  const other = openSocket(session);
  clock.settle();
  link.drain();
  link.receive('A2{"protocol":""}');
  clock.settle();
  link.drain();
  link.read();
  for (let i = 0; i < 5; i++) channel.send(`${i}`);
  other.channel.send('x');
  clock.settle();
  assert.deepEqual(link.read().filter((frame) => frame[0] !== '+'), ['1:0', '2:x', '1:1', '1:2']);
  link.drain();
  assert.deepEqual(link.read(), []);
  link.receive('G1{"bytes":1}');
  clock.settle();
  assert.deepEqual(link.read().filter((frame) => frame[0] !== '+'), ['1:3']);
  link.drain();
  link.receive(`G1{"bytes":${2 * FRAME_COST}}`);
  clock.settle();
  assert.deepEqual(link.read().filter((frame) => frame[0] !== '+'), ['1:4']);
});

test('what was sent before a close arrives, though it has to wait for a grant', () => {
  const { clock, channel, link, heard } = opened({ limits: { window: 1 } });
  channel.send('a');
  channel.send('b');
  channel.close({ code: 1000 });
  clock.settle();
  assert.deepEqual(link.read(), ['1:a']);
  link.drain();
  clock.pass(3 * CLOSE_WAIT_MS);
  assert.deepEqual(heard, []);
  link.receive('G1{"bytes":1000}');
  clock.settle();
  assert.deepEqual(link.read().slice(-2), ['1:b', 'C1{"code":1000}']);
});

test('a channel that the gateway closes is answered at once, though it is out of credit', () => {
  const { clock, channel, link, heard } = opened({ limits: { window: 1 } });
  for (const text of ['a', 'b', 'c']) channel.send(text);
  clock.settle();
  link.drain();
  link.read();
  link.receive('C1{"code":4000}');
  clock.settle();
  assert.deepEqual(heard, [['close', 4000, '', true, false]]);
  assert.deepEqual(link.read(), ['+2', 'C1{"code":4000}']);
});

test('so is one that we have closed, but could not say so for lack of credit', () => {
  for (const isForgotten of [false, true]) {
    const { clock, channel, link } = opened({ limits: { window: 1 } });
    for (const text of ['a', 'b', 'c']) channel.send(text);
    channel.close({ code: 1000 });
    if (isForgotten) channel.fail();
    clock.settle();
    link.drain();
    link.read();
    link.receive('C1{"code":4000}');
    clock.settle();
    assert.deepEqual(link.read(), ['+2', 'C1{}']);
  }
});

test('a resume counts nothing twice against the credit of a channel', () => {
  const parts = opened({ limits: { window: 2 * (FRAME_COST + 1) } });
  const { clock, channel } = parts;
  for (const text of ['a', 'b', 'c']) channel.send(text);
  clock.settle();
  const next = reconnected(parts);
  next.read();
  next.receive(welcome({ resumed: true, received: 1, window: 1 }));
  clock.settle();
  assert.deepEqual(next.read(), ['1:a', '1:b']);
});

test('a gateway that names no window grants nothing, and needs not', () => {
  const { clock, channel, link } = opened();
  link.budget = 10_000_000;
  for (let i = 0; i < 60; i++) channel.send('x'.repeat(1900));
  link.receive('+1');
  clock.settle();
  assert.equal(link.read().length, 60);
});

test('a channel that is out of credit does not keep a page without sockets connected', () => {
  const { clock, channel, link, session } = opened({ limits: { window: 1 } });
  channel.send('a');
  channel.send('b');
  channel.close({});
  clock.settle();
  link.drain();
  channel.fail();
  clock.pass(TIMING.idleMs);
  assert.equal(session.state, 'idle');
  assert.equal(link.ended, 'B');
});

test('dropped messages are heard of where they are missing', () => {
  const { link, heard } = opened();
  link.receive('1:a', 'D1{"messages":3}', '1:b');
  assert.deepEqual(heard, [['message', 'a'], ['dropped', 3], ['message', 'b']]);
});

test('no more bytes than the window are under way without an ack', () => {
  const { clock, channel, link } = opened();
  link.maxPayload = link.budget = 100_000_000;
  link.receive('+1');
  channel.send('x'.repeat(5_000_000));
  clock.settle();
  const bytes = link.read().reduce((sum, frame) => sum + frame.length, 0);
  assert.ok(bytes <= WINDOW_BYTES && bytes > WINDOW_BYTES - PART_BYTES, `${bytes}`);
});

test('one message is taken while the connection is lost, however long', () => {
  const { channel, link, heard } = opened();
  link.close();
  channel.send('x'.repeat(LOST_BUFFER_BYTES + 1));
  assert.deepEqual(heard, []);
  channel.send('x');
  assert.deepEqual(heard, [FAILED]);
});

// ---- a page in the place of another ---------------------------------------------------------

const BEFORE = { session: 's0', token: 't0', epoch: 'e0' };

test('a page that was loaded anew resumes the session and counts from 0', () => {
  const { clock, network, session, told } = setup({ resume: BEFORE });
  const { heard } = openSocket(session);
  assert.deepEqual([session.state, session.id], ['connecting', null]);
  const { link } = network;
  link.open();
  assert.deepEqual(link.hello(), { v: 1, ...BEFORE });
  link.receive(welcome({ session: 's0', resumed: true, token: 't1' }));
  clock.settle();
  assert.deepEqual(link.read(), ['O1{"url":"/x","protocols":[]}']);
  link.receive('A1{"protocol":""}', '1:x', '+1');
  assert.deepEqual(heard, [['accept', ''], ['message', 'x']]);
  assert.deepEqual(told.map(([type]) => type), ['transport']);
  assert.deepEqual(session.kept, { session: 's0', token: 't1', epoch: 'e1' });
  clock.pass(TIMING.steadyMs);
  link.close();
  clock.pass(TIMING.firstRetryMs);
  network.link.open();
  assert.deepEqual(network.link.hello(), { v: 1, session: 's0', token: 't1', epoch: 'e1', received: 2 });
});

test('a page that was loaded anew, and whose welcome is lost, asks the same again', () => {
  const { clock, network, session } = setup({ resume: BEFORE });
  openSocket(session);
  network.link.open();
  network.link.close();
  clock.pass(TIMING.backoffMs);
  network.link.open();
  assert.deepEqual(network.link.hello(), { v: 1, ...BEFORE });
});

test('a page that was loaded anew, too late: a new session, and nothing to tell', () => {
  const { clock, network, session, told } = setup({ resume: BEFORE });
  const { heard } = openSocket(session);
  const { link } = network;
  link.open();
  link.read();
  link.receive(welcome({ session: 's9' }));
  clock.settle();
  assert.deepEqual([session.id, heard, link.read().length], ['s9', [], 1]);
  assert.deepEqual(told.map(([type]) => type), ['transport']);
});

test('back from the cache, but another page has the session: the sockets of before are closed', () => {
  const { clock, network, session, heard, told } = opened();
  session.hide();
  session.show(false);
  assert.deepEqual(heard, [LOST]);
  assert.deepEqual(told.map(([type, { closed }]) => [type, closed]), [['gap', 1]]);
  const next = openSocket(session);
  network.link.open();
  assert.deepEqual(network.link.hello(), { v: 1 });
  network.link.receive(welcome({ session: 's2' }));
  clock.settle();
  network.link.receive('A2{"protocol":""}');
  assert.deepEqual(next.heard, [['accept', '']]);
});

// ---- a gateway that restarts ----------------------------------------------------------------

test('a gateway that restarts with what it kept: all that was under way, then 1012; the session goes on', () => {
  const parts = opened();
  const { clock, channel, heard, session, link, told } = parts;
  link.receive('1:before');
  channel.send('a');
  clock.settle();
  const next = reconnected(parts);
  next.read();
  next.receive(welcome({ resumed: true, received: 1, token: 't2', epoch: 'e2' }), '1:after', 'C1{"code":1012,"reason":"restart"}');
  clock.settle();
  assert.deepEqual(heard, [['message', 'before'], ['message', 'after'], ['close', 1012, 'restart', true, false]]);
  assert.deepEqual(next.read(), ['+4', '1:a', 'C1{"code":1012,"reason":"restart"}']);
  const again = openSocket(session);
  next.drain();
  clock.settle();
  assert.deepEqual(next.read(), ['O2{"url":"/x","protocols":[]}']);
  next.receive('A2{"protocol":""}', '2:new');
  assert.deepEqual(again.heard, [['accept', ''], ['message', 'new']]);
  assert.deepEqual([session.id, session.kept.epoch], ['s1', 'e2']);
  assert.deepEqual(told.map(([type]) => type), ['transport']);
});

test('sockets that are opened while the gateway stops are opened at the next one', () => {
  const parts = opened();
  const { clock, session, link } = parts;
  link.receive('C1{"code":1012}');
  const again = openSocket(session);
  clock.settle();
  // It is written, but nobody is there to read it.
  assert.ok(link.read().some((frame) => frame.startsWith('O2')));
  const next = reconnected(parts);
  next.read();
  next.receive(welcome({ resumed: true, received: 1, epoch: 'e2' }));
  clock.settle();
  assert.deepEqual(next.read().map((frame) => frame.slice(0, 2)), ['C1', 'O2']);
  next.receive('A2{"protocol":""}');
  assert.deepEqual(again.heard, [['accept', '']]);
});

// ---- the page -------------------------------------------------------------------------------

test('one minute after the last socket the session is ended politely', () => {
  const { clock, channel, link, network, session } = opened();
  channel.close({});
  link.receive('C1{}');
  clock.pass(TIMING.idleMs - 1);
  assert.equal(link.ended, null);
  clock.pass(1);
  assert.equal(link.ended, 'B');
  assert.equal(session.state, 'idle');
  assert.equal(session.id, null);
  clock.pass(3_600_000);
  assert.equal(network.links.length, 1);
  openSocket(session);
  network.link.open();
  assert.deepEqual(network.link.hello(), { v: 1 });
});

test('a page without sockets does not ask for a lost connection for ever', () => {
  const { clock, channel, link, network, told, session } = opened();
  link.close();
  channel.close({});
  for (let passed = 0; passed < TIMING.idleMs + CLOSE_WAIT_MS; passed += 500) {
    if (!network.link.dropped) network.link.close();
    clock.pass(500);
  }
  assert.equal(session.state, 'idle');
  assert.equal(session.lost, false);
  assert.equal(clock.waiting, 0);
  told.splice(0);
  openSocket(session);
  network.link.open();
  network.link.receive(welcome({ session: 's2' }));
  assert.equal(session.state, 'open');
  assert.deepEqual(told.map(([type]) => type), ['transport']);
});

test('an ack is sent though its timer is early', () => {
  const { clock, link } = opened();
  const { setTimeout } = clock;
  clock.setTimeout = (callback, delay) => setTimeout(callback, Math.max(1, delay - 1));
  link.receive('1:x');
  clock.pass(1000);
  assert.deepEqual(link.read(), ['+2']);
});

test('back from the cache, a connection that does not come is told after one second', () => {
  const { clock, told, session } = opened();
  session.hide();
  session.show();
  clock.pass(TIMING.quietMs);
  assert.deepEqual(told.map(([type]) => type), ['lost']);
});

test('a new socket within the minute keeps the session', () => {
  const { clock, channel, link, session } = opened();
  channel.close({});
  link.receive('C1{}');
  clock.pass(TIMING.idleMs - 1);
  openSocket(session);
  clock.pass(TIMING.idleMs);
  assert.equal(link.ended, null);
});

test('leaving the page says bye; coming back from the cache resumes at once', () => {
  const { clock, network, link, heard, told, session } = opened();
  session.hide();
  assert.equal(link.left, 'B');
  assert.ok(link.dropped);
  session.retry();
  clock.pass(3_600_000);
  assert.equal(network.links.length, 1);
  session.show();
  assert.equal(network.links.length, 2);
  network.link.open();
  assert.equal(network.link.hello().session, 's1');
  network.link.receive(welcome({ resumed: true, received: 1 }));
  assert.deepEqual(heard, []);
  assert.deepEqual(told.map(([type]) => type), ['transport']);
});

test('a change of transport is told, with its reason', () => {
  const { link, told, session } = opened();
  link.become('websocket', 'WebSocket works.');
  assert.deepEqual(told, [['transport', { transport: 'websocket', why: 'WebSocket works.' }]]);
  assert.equal(session.transport, 'websocket');
});
