// GatewaySocket against the WebSocket standard, as tables. test/oracle.html compares the same class
// with a browser's own.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createPage } from './support/page.js';

const syntaxError = { name: 'SyntaxError', constructor: DOMException };

function connecting(...args) {
  const page = createPage();
  const socket = new page.GatewaySocket(...(args.length ? args : ['/x']));
  return { ...page, socket, channel: page.session.opened[0] };
}

function opened(...args) {
  const parts = connecting(...args);
  parts.channel.sink.accept('');
  parts.run();
  return parts;
}

function listen(socket) {
  const events = [];
  for (const type of ['open', 'message', 'error', 'close']) {
    socket.addEventListener(type, (event) => events.push(event));
  }
  return events;
}

// ---- construction ---------------------------------------------------------------------------

for (const [input, url, path] of [
  ['ws://other:8080/a?b=c', 'ws://other:8080/a?b=c', '/a?b=c'],
  ['wss://other', 'wss://other/', '/'],
  ['http://other/x', 'ws://other/x', '/x'],
  ['https://other/x', 'wss://other/x', '/x'],
  ['/abs', 'wss://example.com/abs', '/abs'],
  ['rel', 'wss://example.com/dir/rel', '/dir/rel'],
  ['?z', 'wss://example.com/dir/page?z', '/dir/page?z'],
  ['//h:1/p', 'wss://h:1/p', '/p'],
  [new URL('ws://u/'), 'ws://u/', '/'],
  ['HTTP://Other:80/', 'ws://other/', '/'],
  ['', 'wss://example.com/dir/page?q', '/dir/page?q'],
]) {
  test(`the URL '${input}' becomes ${url}`, () => {
    const { socket, channel, urls } = connecting(input);
    assert.equal(socket.url, url);
    assert.equal(channel.url, path);
    assert.deepEqual(urls, [url]);
  });
}

for (const url of ['ws://h/#', 'ws://h/#x', '#x', 'ftp://h/', 'mailto:x', 'blob:x', 'ws://', 'http://[', 'about:blank']) {
  test(`the URL '${url}' is a SyntaxError`, () => {
    assert.throws(() => connecting(url), syntaxError);
  });
}

for (const [input, offered] of [
  [undefined, []],
  [[], []],
  ['a', ['a']],
  [null, ['null']],
  [5, ['5']],
  [['a', 'b'], ['a', 'b']],
  [new Set(['x', 'y']), ['x', 'y']],
  [[1, null], ['1', 'null']],
  [new String('s'), ['s']],
]) {
  test(`the protocols ${JSON.stringify(input)} become ${JSON.stringify(offered)}`, () => {
    assert.deepEqual(connecting('/x', input).channel.protocols, offered);
  });
}

for (const protocols of ['', 'a b', 'a,b', 'ä', ['a', 'a'], [''], 'a"', {}, '\x7f', 'a/b', '{']) {
  test(`the protocols ${JSON.stringify(protocols)} are a SyntaxError`, () => {
    assert.throws(() => connecting('/x', protocols), syntaxError);
  });
}

test('calls without what they need are TypeErrors', () => {
  const { GatewaySocket, socket } = opened();
  assert.throws(() => new GatewaySocket(), TypeError);
  assert.throws(() => GatewaySocket('/x'), TypeError);
  assert.throws(() => socket.send(), TypeError);
  assert.throws(() => new GatewaySocket('/x', [Symbol('s')]), TypeError);
});

// ---- shape ----------------------------------------------------------------------------------

test('constants stand on both sides and cannot be changed', () => {
  const { GatewaySocket } = createPage();
  for (const [name, value] of Object.entries({ CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3 })) {
    for (const holder of [GatewaySocket, GatewaySocket.prototype]) {
      const property = Object.getOwnPropertyDescriptor(holder, name);
      assert.deepEqual(property, { value, writable: false, enumerable: true, configurable: false });
    }
  }
});

test('a new socket has the values of a new WebSocket', () => {
  const { socket } = connecting();
  const { readyState, bufferedAmount, extensions, protocol, binaryType } = socket;
  assert.deepEqual(
    { readyState, bufferedAmount, extensions, protocol, binaryType },
    { readyState: 0, bufferedAmount: 0, extensions: '', protocol: '', binaryType: 'blob' },
  );
  for (const type of ['open', 'message', 'error', 'close']) assert.equal(socket[`on${type}`], null);
});

test('nothing of ours shows', () => {
  const { GatewaySocket, socket } = connecting();
  socket.onopen = () => {};
  assert.deepEqual(Reflect.ownKeys(socket).filter((key) => typeof key === 'string'), []);
  assert.equal(JSON.stringify(socket), '{}');
  assert.equal(GatewaySocket.length, 1);
  assert.equal(GatewaySocket.prototype.send.length, 1);
  assert.equal(GatewaySocket.prototype.close.length, 0);
  assert.equal(Object.prototype.toString.call(socket), '[object WebSocket]');
  assert.ok(socket instanceof EventTarget);
});

test('read-only attributes stay as they are', () => {
  const { socket } = connecting();
  for (const name of ['url', 'readyState', 'bufferedAmount', 'extensions', 'protocol']) {
    assert.throws(() => (socket[name] = 1), TypeError, name);
  }
});

test('the members are listed as those of a WebSocket', () => {
  assert.deepEqual(Object.keys(createPage().GatewaySocket.prototype).sort(), [
    'CLOSED', 'CLOSING', 'CONNECTING', 'OPEN', 'binaryType', 'bufferedAmount', 'close',
    'extensions', 'onclose', 'onerror', 'onmessage', 'onopen', 'protocol', 'readyState', 'send',
    'url',
  ]);
});

// ---- opening, closing -----------------------------------------------------------------------

test('opens when the gateway accepts, in a task of its own', () => {
  const { socket, channel, run } = connecting('/x', ['p']);
  const events = listen(socket);
  channel.sink.accept('p');
  assert.equal(socket.readyState, 0);
  assert.equal(run(), 1);
  assert.equal(socket.readyState, 1);
  assert.equal(socket.protocol, 'p');
  assert.deepEqual(events.map(({ type }) => type), ['open']);
  assert.equal(events[0].constructor, Event);
});

test('a failure is an error, then a close, each in its own task', () => {
  const { socket, channel, run } = connecting();
  const events = listen(socket);
  channel.sink.close({ code: 1006, reason: '', clean: false, failed: true });
  run(1);
  assert.deepEqual(events.map(({ type }) => type), ['error']);
  assert.equal(socket.readyState, 3);
  run(1);
  const { type, code, reason, wasClean } = events[1];
  assert.deepEqual({ type, code, reason, wasClean }, { type: 'close', code: 1006, reason: '', wasClean: false });
});

test('an orderly end is a close without an error', () => {
  const { socket, channel, run } = opened();
  const events = listen(socket);
  channel.sink.close({ code: 4000, reason: 'bye', clean: true, failed: false });
  run();
  const [{ type, code, reason, wasClean }] = events;
  assert.deepEqual({ type, code, reason, wasClean }, { type: 'close', code: 4000, reason: 'bye', wasClean: true });
});

for (const [args, fields] of [
  [[], {}],
  [[undefined], {}],
  [[undefined, undefined], {}],
  [[1000], { code: 1000 }],
  [[1000, undefined], { code: 1000 }],
  [[1000, ''], { code: 1000 }],
  [[4999, 'x'], { code: 4999, reason: 'x' }],
  [['3000'], { code: 3000 }],
  [[3000.5], { code: 3000 }],
  [[1000, null], { code: 1000, reason: 'null' }],
  [[1000, '\ud800'], { code: 1000, reason: '\ufffd' }],
  [[1000, 'ä'.repeat(61)], { code: 1000, reason: 'ä'.repeat(61) }],
]) {
  test(`close(${JSON.stringify(args).slice(1, 40)}`, () => {
    const { socket, channel } = opened();
    socket.close(...args);
    assert.deepEqual(channel.closedWith, fields);
    assert.equal(socket.readyState, 2);
  });
}

for (const code of [0, 999, 1001, 1002, 1005, 1006, 2999, 5000, 65536 + 1000, -1, NaN, null, 'x']) {
  test(`close(${code}) is an InvalidAccessError`, () => {
    const { socket, channel } = opened();
    assert.throws(() => socket.close(code), { name: 'InvalidAccessError' });
    assert.equal(channel.closedWith, null);
    assert.equal(socket.readyState, 1);
  });
}

test('a reason over 123 bytes is a SyntaxError', () => {
  const { socket } = opened();
  assert.throws(() => socket.close(1000, 'ä'.repeat(62)), syntaxError);
  assert.throws(() => socket.close(undefined, 'x'), { name: 'InvalidAccessError' });
});

test('closing twice, or when it is over, does nothing', () => {
  const { socket, channel, run } = opened();
  socket.close(1000);
  socket.close(4000);
  assert.deepEqual(channel.closedWith, { code: 1000 });
  channel.sink.close({ code: 1000, reason: '', clean: true, failed: false });
  run();
  socket.close(4000);
  assert.equal(socket.readyState, 3);
});

test('after close() in CONNECTING there is no open', () => {
  const { socket, channel, run } = connecting();
  const events = listen(socket);
  channel.sink.accept('');
  socket.close();
  run();
  assert.deepEqual(events, []);
  assert.equal(socket.readyState, 2);
});

test('after close() there is no message, not even one that waits in a task', () => {
  const { socket, channel, run } = opened();
  const events = listen(socket);
  channel.sink.message('a');
  socket.close();
  channel.sink.message('b');
  run();
  assert.deepEqual(events, []);
});

// ---- messages -------------------------------------------------------------------------------

test('each message has a task of its own, and meets the handler that is there by then', () => {
  const { socket, channel, run } = connecting();
  const got = [];
  socket.onopen = () => {
    socket.onmessage = ({ data }) => got.push(data);
  };
  channel.sink.accept('');
  channel.sink.message('1');
  channel.sink.message('2');
  assert.equal(run(1), 1);
  assert.deepEqual(got, []);
  run(1);
  assert.deepEqual(got, ['1']);
  run();
  assert.deepEqual(got, ['1', '2']);
});

test('a message event is like that of a WebSocket', () => {
  const { socket, channel, run } = opened('ws://other:81/x');
  const events = listen(socket);
  channel.sink.message('hi');
  run();
  const [event] = events;
  assert.equal(event.constructor, MessageEvent);
  const { data, origin, lastEventId, source, ports } = event;
  assert.deepEqual({ data, origin, lastEventId, source }, { data: 'hi', origin: 'ws://other:81', lastEventId: '', source: null });
  assert.equal(ports.length, 0);
});

test('binaryType may change at any time and decides when the message is delivered', async () => {
  const { socket, channel, run } = opened();
  const got = [];
  socket.onmessage = ({ data }) => got.push(data);
  for (const byte of [1, 2]) channel.sink.message(new Uint8Array([byte]));
  run(1);
  socket.binaryType = 'arraybuffer';
  socket.binaryType = 'nonsense';
  assert.equal(socket.binaryType, 'arraybuffer');
  run();
  assert.ok(got[0] instanceof Blob);
  assert.deepEqual([...new Uint8Array(await got[0].arrayBuffer())], [1]);
  assert.ok(got[1] instanceof ArrayBuffer);
  assert.deepEqual([...new Uint8Array(got[1])], [2]);
});

for (const [input, sent] of [
  ['text', 'text'],
  ['', ''],
  [5, '5'],
  [null, 'null'],
  [undefined, 'undefined'],
  [{ toString: () => 'object' }, 'object'],
  ['\ud800x\udc00', '\ufffdx\ufffd'],
  ['😀', '😀'],
  [new Uint8Array([1, 2]).buffer, new Uint8Array([1, 2])],
  [new Uint8Array([1, 2, 3]).subarray(1), new Uint8Array([2, 3])],
  [new DataView(new Uint8Array([1, 2, 3]).buffer, 1, 1), new Uint8Array([2])],
  [new Uint16Array([0x0201]), new Uint8Array([1, 2])],
]) {
  test(`send(${typeof input} ${Object.prototype.toString.call(input)} ${JSON.stringify(sent)})`, () => {
    const { socket, channel } = opened();
    socket.send(input);
    assert.deepEqual(channel.sent, [sent]);
  });
}

test('send copies: what the caller does later with its buffer does not matter', () => {
  const { socket, channel } = opened();
  const bytes = new Uint8Array([1]);
  socket.send(bytes);
  socket.send(bytes.buffer);
  bytes[0] = 9;
  assert.deepEqual(channel.sent.map(([byte]) => byte), [1, 1]);
});

test('Blobs keep their place, and close() waits for them', async () => {
  const { socket, channel } = opened();
  socket.send('a');
  socket.send(new Blob(['b']));
  socket.send('c');
  socket.send(new Blob(['d']));
  socket.close(1000);
  assert.equal(socket.readyState, 2);
  assert.equal(channel.closedWith, null);
  while (!channel.closedWith) await new Promise(setImmediate);
  const sent = channel.sent.map((data) => (typeof data === 'string' ? data : String.fromCharCode(...data)));
  assert.deepEqual(sent, ['a', 'b', 'c', 'd']);
});

test('a Blob that cannot be read fails the connection', async () => {
  const { socket, channel } = opened();
  const blob = new Blob(['b']);
  blob.arrayBuffer = () => Promise.reject(new DOMException('gone', 'NotReadableError'));
  socket.send(blob);
  while (!channel.failed) await new Promise(setImmediate);
  assert.deepEqual(channel.sent, []);
});

test('send in CONNECTING is an InvalidStateError', () => {
  const { socket } = connecting();
  assert.throws(() => socket.send('x'), { name: 'InvalidStateError' });
  assert.equal(socket.bufferedAmount, 0);
});

test('bufferedAmount counts UTF-8 bytes until they have left, and grows after the end', () => {
  const { socket, channel } = opened();
  socket.send('ä€😀');
  socket.send(new Uint8Array(10));
  assert.equal(socket.bufferedAmount, 2 + 3 + 4 + 10);
  channel.flush();
  assert.equal(socket.bufferedAmount, 0);
  socket.close();
  socket.send('abc');
  socket.send(new Blob(['de']));
  assert.equal(socket.bufferedAmount, 5);
  assert.equal(channel.sent.length, 2);
});

test('dropped messages are told to the page, in their place', () => {
  const { socket, channel, run, gaps } = opened();
  const events = listen(socket);
  channel.sink.message('a');
  channel.sink.dropped(3);
  channel.sink.message('b');
  run(1);
  assert.deepEqual([events.length, gaps.length], [1, 0]);
  run(1);
  assert.deepEqual(gaps, [[socket.url, 3]]);
  run();
  assert.deepEqual(events.map(({ data }) => data), ['a', 'b']);
});

// ---- handlers -------------------------------------------------------------------------------

test('on-handlers and listeners run in the order in which they were first set', () => {
  const { socket, channel, run } = opened();
  const order = [];
  socket.addEventListener('message', () => order.push('first'));
  socket.onmessage = () => order.push('old');
  socket.addEventListener('message', () => order.push('last'));
  socket.onmessage = function () {
    order.push(this === socket ? 'new' : 'wrong this');
  };
  channel.sink.message('');
  run();
  assert.deepEqual(order, ['first', 'new', 'last']);
  order.splice(0);
  socket.onmessage = null;
  channel.sink.message('');
  run();
  assert.deepEqual(order, ['first', 'last']);
});

test('an on-handler that is no object is null; an object is kept and not called', () => {
  const { socket, channel, run } = opened();
  for (const value of [5, 'x', undefined, true]) {
    socket.onmessage = value;
    assert.equal(socket.onmessage, null);
  }
  const object = {};
  socket.onmessage = object;
  assert.equal(socket.onmessage, object);
  channel.sink.message('');
  run();
});

test('an event can be cloned by its constructor, as partysocket does', () => {
  const { socket, channel, run, CloseEvent } = opened();
  const clones = [];
  for (const type of ['message', 'close']) {
    socket.addEventListener(type, (event) => clones.push(new event.constructor(event.type, event)));
  }
  channel.sink.message('x');
  channel.sink.close({ code: 4000, reason: 'r', clean: true, failed: false });
  run();
  assert.equal(clones[0].data, 'x');
  assert.ok(clones[1] instanceof CloseEvent);
  assert.deepEqual([clones[1].code, clones[1].reason, clones[1].wasClean], [4000, 'r', true]);
});

test('a subclass works', () => {
  const { GatewaySocket, session } = createPage();
  class Mine extends GatewaySocket {
    constructor() {
      super('/mine');
    }
  }
  assert.equal(new Mine().url, 'wss://example.com/mine');
  assert.equal(session.opened.length, 1);
});
