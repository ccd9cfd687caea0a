import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ProtocolError } from '../src/frames.js';
import { ACK_AFTER_BYTES, ACK_AFTER_FRAMES, Inbox, Outbox } from '../src/replay.js';

const entry = (frame, more) => ({ frame, size: 10, channel: 1, ...more });
const names = (entries) => entries.map(({ frame }) => frame);

function outbox(...frames) {
  const box = new Outbox();
  for (const frame of frames) box.push(entry(frame));
  return box;
}

test('takes what fits into the budget, at least one', () => {
  const box = outbox('a', 'b', 'c', 'd');
  assert.deepEqual(names(box.take(25)), ['a', 'b']);
  assert.deepEqual(names(box.take(1)), ['c']);
  assert.deepEqual(names(box.take(1000)), ['d']);
  assert.deepEqual(names(box.take(1000)), []);
});

test('after a new connection, exactly what was not received is written again', () => {
  const box = outbox('a', 'b', 'c', 'd');
  box.take(1000);
  box.push(entry('e'));
  box.rewind(2);
  assert.deepEqual(names(box.take(1000)), ['c', 'd', 'e']);
});

test('a connection lost in the middle of a replay loses nothing', () => {
  const box = outbox('a', 'b', 'c');
  box.take(1000);
  box.rewind(1);
  assert.deepEqual(names(box.take(1)), ['b']);
  box.rewind(1);
  assert.deepEqual(names(box.take(1000)), ['b', 'c']);
  box.rewind(3);
  assert.deepEqual(names(box.take(1000)), []);
});

test('acknowledged frames are not kept, and an ack may be repeated', () => {
  const box = outbox('a', 'b', 'c');
  box.take(1000);
  box.acknowledge(2);
  box.acknowledge(2);
  box.rewind(2);
  assert.deepEqual(names(box.take(1000)), ['c']);
});

test('an ack that goes backwards, or beyond what was written, is an error', () => {
  const box = outbox('a', 'b', 'c');
  box.take(20);
  box.acknowledge(1);
  assert.throws(() => box.acknowledge(0), ProtocolError);
  assert.throws(() => box.acknowledge(3), ProtocolError);
});

test('a resume beyond what was ever written is an error, one up to it is not', () => {
  const box = outbox('a', 'b', 'c');
  box.take(20);
  assert.throws(() => box.rewind(3), ProtocolError);
  box.rewind(2);
});

test('a short replay does not forget what was written before', () => {
  const box = outbox('a', 'b', 'c');
  box.take(1000);
  box.rewind(0);
  box.take(1);
  assert.equal(box.sent, 3);
  box.rewind(3);
});

test('a frame is reported as flushed once, by the ack if by nothing else', () => {
  let flushed = 0;
  const box = new Outbox();
  box.push(entry('a', { flushed: () => flushed++ }));
  box.take(1000);
  box.rewind(1);
  assert.equal(flushed, 1);
});

test('withdrawing takes back only what no connection has carried', () => {
  const box = outbox('a');
  box.take(1000);
  box.push(entry('b'));
  box.push(entry('c', { channel: 2 }));
  box.withdraw(1);
  assert.deepEqual(names(box.take(1000)), ['c']);
});

test('a new session carries over only never-written frames of living channels', () => {
  const box = new Outbox();
  box.push(entry('O1', { opens: true }));
  box.take(1000);
  box.push(entry('1:x'));
  box.push(entry('O2', { channel: 2, opens: true }));
  box.push(entry('O3', { channel: 3, opens: true }));
  assert.equal(box.neverOpened(1), false);
  assert.equal(box.neverOpened(2), true);
  box.restart(new Map([[2, {}]]));
  assert.deepEqual(names(box.take(1000)), ['O2']);
  box.acknowledge(1);
});

test('an ack is due after one second', () => {
  const inbox = new Inbox();
  assert.equal(inbox.due(0), null);
  inbox.count(1, 5000);
  inbox.count(1, 5600);
  assert.equal(inbox.due(5600), 400);
  assert.equal(inbox.due(6000), 0);
  inbox.settle();
  assert.equal(inbox.due(9000), null);
});

test('an ack is due at once after so many frames', () => {
  const inbox = new Inbox();
  for (let i = 1; i < ACK_AFTER_FRAMES; i++) inbox.count(1, 0);
  assert.equal(inbox.due(0), 1000);
  inbox.count(1, 0);
  assert.equal(inbox.due(0), 0);
});

test('an ack is due at once after so many bytes, counted anew after each ack', () => {
  const inbox = new Inbox();
  inbox.count(ACK_AFTER_BYTES - 1, 0);
  assert.equal(inbox.due(0), 1000);
  inbox.count(1, 0);
  assert.equal(inbox.due(0), 0);
  inbox.settle();
  inbox.count(1, 0);
  assert.equal(inbox.due(0), 1000);
});
