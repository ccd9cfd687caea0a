// Turns, parts and credit: what may be sent next, and how it is cut.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cutText, decode, utf8Length } from '../src/frames.js';
import { FRAME_COST, PART_BYTES, Queues, wireSize } from '../src/queues.js';
import { chanceOf } from './support/model.js';

const message = (channel, data, more) => {
  const bytes = typeof data === 'string' ? utf8Length(data) : data.length;
  return { channel, data, bytes, ...more };
};
const opening = (channel) => ({ channel, frame: `O${channel}`, size: 5, opens: true });

function takeAll(queues, limit = PART_BYTES) {
  const entries = [];
  while (queues.peek(limit)) entries.push(queues.pop());
  return entries;
}

/** Queues with open channels 1, 2, …, their credit in bytes. */
function queuesOf(...credits) {
  const queues = new Queues();
  for (const [index, credit] of credits.entries()) {
    queues.window = credit;
    queues.push(opening(index + 1));
    takeAll(queues);
  }
  return queues;
}

const read = (entries) => entries.map(({ frame }) => frame);

test('channels take turns, and each keeps its order', () => {
  const queues = queuesOf(Infinity, Infinity, Infinity);
  for (const text of ['a', 'b', 'c']) queues.push(message(1, text));
  queues.push(message(2, 'x'));
  for (const text of ['p', 'q']) queues.push(message(3, text));
  assert.deepEqual(read(takeAll(queues)), ['1:a', '2:x', '3:p', '1:b', '3:q', '1:c']);
});

test('a message of many parts lets the other channels through', () => {
  const queues = queuesOf(Infinity, Infinity);
  queues.push(message(1, new Uint8Array(4_000_000)));
  queues.peek(PART_BYTES);
  queues.pop();
  queues.push(message(2, 'quick'));
  const [, second, third] = [queues.peek(PART_BYTES), queues.pop(), queues.pop(queues.peek(PART_BYTES))];
  assert.deepEqual([second, third].filter(({ frame }) => frame === '2:quick').length, 1);
});

test('openings go out in the order of their numbers, whatever else waits', () => {
  const queues = queuesOf(Infinity);
  queues.push(message(1, 'x'.repeat(100_000)));
  for (const channel of [2, 3, 4]) queues.push(opening(channel));
  const numbers = takeAll(queues).filter(({ opens }) => opens).map(({ channel }) => channel);
  assert.deepEqual(numbers, [2, 3, 4]);
});

// ---- parts ----------------------------------------------------------------------------------

const wholeOf = (pieces) =>
  typeof pieces[0] === 'string' ? pieces.join('') : Buffer.concat(pieces).toString('latin1');
const asText = (data) => (typeof data === 'string' ? data : Buffer.from(data).toString('latin1'));

function checkParts(data, limit) {
  const queues = queuesOf(Infinity);
  queues.push(message(1, data));
  const entries = takeAll(queues, limit);
  const parts = entries.map(({ frame }) => decode(frame));
  assert.equal(wholeOf(parts.map((part) => part.text ?? part.data)), asText(data));
  assert.deepEqual(parts.map(({ more = false }) => more), parts.map((_, i) => i < parts.length - 1));
  for (const { frame, size } of entries) {
    assert.equal(size, wireSize(frame));
    assert.ok(size <= limit, `${size} of ${limit}`);
  }
  for (const { text = '' } of parts) assert.ok(text.isWellFormed?.() ?? true);
  const bytes = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  assert.equal(bytes, typeof data === 'string' ? utf8Length(data) : data.length);
  return entries;
}

for (const text of ['', 'x', 'ä', '€', '😀', 'a😀', '\x1e', '\\', '\\\x1e', 'x\x1eä€😀\\']) {
  test(`text of ${JSON.stringify(text)} is cut at characters, and no part is too long`, () => {
    for (const count of [1, 7, 100, 1000]) {
      for (const limit of [20, 21, 22, 23, 64, 500]) checkParts(text.repeat(count), limit);
    }
  });
}

test('text at random is cut and joined', () => {
  const { pick, below } = chanceOf(7);
  for (let i = 0; i < 300; i++) {
    const text = Array.from({ length: below(400) }, () => pick(['a', 'ä', '€', '😀', '\\', '\x1e', '\0'])).join('');
    checkParts(text, 20 + below(100));
  }
});

test('bytes of any length are cut and joined', () => {
  for (let length = 0; length < 300; length++) checkParts(Uint8Array.from({ length }, (_, i) => i), 40);
});

test('4 MB are 32 kB frames, as full as they may be', () => {
  const counts = [
    ['x'.repeat(4_000_000), 123],
    ['€'.repeat(1_333_333), 123],
    [new Uint8Array(4_000_000), 163],
  ];
  for (const [data, count] of counts) assert.equal(checkParts(data, PART_BYTES).length, count);
});

test('a message that fits is one frame, to the byte', () => {
  const room = PART_BYTES - 3 - 4;
  assert.equal(checkParts('x'.repeat(room), PART_BYTES).length, 1);
  assert.equal(checkParts('x'.repeat(room + 1), PART_BYTES).length, 2);
});

test('a cut stays between characters at every place', () => {
  assert.deepEqual([0, 1, 2, 3, 4, 5, 8].map((limit) => cutText('a😀b', 0, limit)), [0, 1, 1, 1, 1, 3, 4]);
  assert.deepEqual([3, 4, 5].map((limit) => cutText('a\x1eb\\', 1, limit)), [3, 3, 4]);
});

// ---- credit ---------------------------------------------------------------------------------

test('a channel sends while any credit is left, then waits for a grant', () => {
  const queues = queuesOf(FRAME_COST + 2);
  for (const text of ['a', 'b', 'c']) queues.push(message(1, text));
  assert.deepEqual(read(takeAll(queues)), ['1:a', '1:b']);
  // It owes FRAME_COST - 0; a grant that only covers the debt is not enough.
  queues.grant(1, FRAME_COST);
  assert.deepEqual(read(takeAll(queues)), []);
  queues.grant(1, 1);
  assert.deepEqual(read(takeAll(queues)), ['1:c']);
});

test('a channel without credit delays no other, and its close waits behind its messages', () => {
  const queues = queuesOf(1, Infinity);
  for (const text of ['a', 'b']) queues.push(message(1, text));
  queues.push({ channel: 1, frame: 'C1{}', size: 7 });
  queues.push(message(2, 'x'));
  assert.deepEqual(read(takeAll(queues)), ['1:a', '2:x']);
  assert.equal(queues.isEmpty, true);
  queues.forget(1);
  queues.grant(1, 10_000);
  assert.deepEqual(read(takeAll(queues)), ['1:b', 'C1{}']);
  queues.grant(1, 1);
  assert.equal(queues.isEmpty, true);
});

test('credit counts UTF-8 before escaping', () => {
  const queues = queuesOf(2 * FRAME_COST + 9 + 1);
  for (const text of ['€', '\x1e\x1e\x1e', '\\\\\\', 'no']) queues.push(message(1, text));
  assert.equal(takeAll(queues).length, 3);
});

test('a grant for a channel that is over, or none, is nothing', () => {
  const queues = queuesOf(1);
  queues.forget(1);
  queues.grant(1, 5);
  queues.grant(9, 5);
  assert.equal(queues.peek(PART_BYTES), null);
});

// ---- dropping -------------------------------------------------------------------------------

test('withdrawing in the middle of a message drops the rest of it', () => {
  const queues = queuesOf(Infinity);
  queues.push(message(1, 'x'.repeat(100), { late: true }));
  queues.push(message(1, 'y', { late: true }));
  queues.peek(30);
  queues.pop();
  assert.equal(queues.lateBytes, 101 - 23);
  queues.peek(30);
  queues.withdraw(1);
  assert.equal(queues.lateBytes, 0);
  queues.push({ channel: 1, frame: 'C1{}', size: 7 });
  assert.deepEqual(read(takeAll(queues)), ['C1{}']);
  queues.withdraw(77);
});

test('a new session keeps only what waits for its channels', () => {
  const queues = queuesOf(Infinity);
  queues.push(message(1, 'x', { late: true }));
  queues.push({ ...opening(2), late: true });
  assert.deepEqual([1, 2].map((channel) => queues.neverOpened(channel)), [false, true]);
  queues.keep(new Map([[2, {}]]));
  assert.equal(queues.lateBytes, 5);
  assert.deepEqual(read(takeAll(queues)), ['O2']);
  assert.deepEqual([queues.lateBytes, queues.neverOpened(2)], [0, false]);
});
