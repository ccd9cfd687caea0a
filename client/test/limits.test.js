import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ANSWER_BYTES, HOLD_MS, LEAST_ANSWER_BYTES, LEAST_POST_BYTES, Limits, POST_BYTES, isLearned, smaller,
} from '../src/limits.js';

const MOST = 9000;

function setup(known) {
  const saved = [];
  const limits = new Limits((what) => saved.push(what), known);
  const hold = (times) => {
    for (let i = 0; i < times; i++) limits.held(MOST);
    return limits.hold;
  };
  const arrive = (times, bytes) => {
    for (let i = 0; i < times; i++) limits.arrived(bytes);
    return limits.answer;
  };
  return { limits, saved, hold, arrive };
}

test('the hold grows by half after three full ones, up to what the gateway allows', () => {
  const { hold, saved } = setup();
  assert.deepEqual([1, 1, 1, 3, 3, 3].map((times) => hold(times)), [4000, 4000, 6000, 9000, 9000, 9000]);
  assert.deepEqual(saved, [], 'nothing bad was learned');
});

test('a GET that is lost late shrinks it to the last good one, for good', () => {
  const { limits, hold, saved } = setup();
  assert.equal(hold(3), 6000);
  limits.lost(5000);
  assert.equal(limits.hold, 4000);
  assert.equal(hold(30), 4000);
  assert.equal(saved.at(-1).hold, 4000);
  assert.equal(setup(saved.at(-1)).hold(30), 4000);
});

test('one good hold of that length was luck', () => {
  const { limits, hold } = setup();
  hold(6);
  hold(1);
  limits.lost(8000);
  assert.equal(limits.hold, 6000);
});

test('a GET that is lost early says nothing about the hold', () => {
  const { limits, hold } = setup();
  hold(3);
  limits.lost(2999);
  assert.equal(limits.hold, 6000);
});

test('the first hold shrinks when it is lost twice in a row, to no less than a second', () => {
  const { limits, hold } = setup();
  limits.lost(HOLD_MS);
  hold(1);
  limits.lost(HOLD_MS);
  assert.equal(limits.hold, HOLD_MS);
  const holds = [];
  for (let i = 0; i < 6; i++) {
    limits.lost(limits.hold);
    holds.push(limits.hold);
  }
  assert.deepEqual(holds, [2667, 1778, 1185, 1000, 1000, 1000]);
});

test('a short ping interval is no reason to shrink what was learned', () => {
  const { limits } = setup();
  for (let i = 0; i < 3; i++) limits.held(2000);
  assert.equal(limits.hold, HOLD_MS);
});

test('a POST that is refused halves the size, down to 40 kB', () => {
  const { limits, saved } = setup();
  const sizes = [];
  while (limits.refused(limits.post)) sizes.push(limits.post);
  assert.deepEqual(sizes, [131_072, 65_536, LEAST_POST_BYTES]);
  assert.equal(limits.refused(LEAST_POST_BYTES), false);
  assert.equal(setup(saved.at(-1)).limits.post, LEAST_POST_BYTES);
});

test('several of one size that are refused at once are one lesson', () => {
  const { limits } = setup();
  for (let i = 0; i < 4; i++) assert.equal(limits.refused(230_000), true);
  assert.equal(limits.post, 131_072);
  limits.refused(100_000);
  assert.equal(limits.post, 65_536);
});

test('an answer that was too long: a quarter of it, and it grows after eight that fill it', () => {
  const { limits, arrive, saved } = setup();
  limits.cut(ANSWER_BYTES);
  assert.equal(limits.answer, 250_000);
  assert.equal(saved.at(-1).answer, 250_000);
  assert.equal(arrive(100, 100_000), 250_000, 'small ones say nothing');
  assert.equal(arrive(7, 200_000), 250_000);
  assert.equal(arrive(1, 200_000), 500_000);
});

test('not to what has failed twice', () => {
  const { limits, arrive } = setup();
  limits.cut(ANSWER_BYTES);
  arrive(8, 200_000);
  limits.cut(500_000);
  assert.equal(limits.answer, 125_000);
  arrive(8, 125_000);
  assert.equal(arrive(8, 250_000), 500_000);
  limits.cut(500_000);
  assert.equal(arrive(100, 250_000), 250_000);
});

test('no answer is asked for that holds less than one frame', () => {
  assert.equal(smaller(LEAST_ANSWER_BYTES), LEAST_ANSWER_BYTES);
  assert.equal(smaller(100_000), LEAST_ANSWER_BYTES);
});

test('what was saved is known again, after its way through JSON', () => {
  const { limits, saved } = setup();
  limits.refused(POST_BYTES);
  const known = JSON.parse(JSON.stringify(saved.at(-1)));
  assert.ok(isLearned(known));
  const again = setup(known);
  assert.equal(again.limits.post, 131_072);
  assert.equal(again.hold(3), 6000, 'an unknown ceiling is none');
});

for (const junk of [
  null, 1, 'x', {}, [], { hold: 4000 }, { hold: 'x', post: POST_BYTES, answer: ANSWER_BYTES },
  { hold: 4000, post: 1, answer: ANSWER_BYTES }, { hold: 4000, post: POST_BYTES, answer: 1e9 },
  { hold: -1, post: POST_BYTES, answer: ANSWER_BYTES },
]) {
  test(`${JSON.stringify(junk)} was not saved by us`, () => assert.equal(isLearned(junk), false));
}

test('POSTs grow where the network takes them, and shrink where it is slow', () => {
  const limits = new Limits();
  const sizes = [100, 100, 100, 3000, 3000, 3000, 3000].map((took) => {
    const { batch } = limits;
    limits.sent(batch, took);
    return batch / 1024;
  });
  assert.deepEqual(sizes, [72, 144, 256, 256, 128, 64, 40]);
  limits.refused(100_000);
  for (let i = 0; i < 5; i++) limits.sent(40_000, 100);
  assert.equal(limits.batch, limits.post, 'but not to what has failed');
});
