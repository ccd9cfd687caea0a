// What a page leaves to the next one, in a tab's storage.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Memory } from '../src/choice.js';
import { Handover } from '../src/handover.js';

const A = 'https://a.example/_gateway/engine/';
const B = 'https://b.example/_gateway/engine/';
const one = { session: 's1', token: 't1', epoch: 'e1' };
const two = { session: 's2', token: 't2', epoch: 'e2' };

function tab(entries) {
  const store = new Map(entries);
  const storage = {
    getItem: (key) => store.get(key) ?? null,
    setItem: (key, value) => store.set(key, value),
    removeItem: (key) => store.delete(key),
  };
  const page = (path = '/app') => new Handover(new Memory(() => storage), () => path);
  return { store, page };
}

test('the next page at the same path takes the sessions, once', () => {
  const { page, store } = tab();
  page().leave([[A, one], [B, two]]);
  assert.equal(store.size, 1);
  const next = page();
  assert.equal(store.size, 0);
  assert.deepEqual([next.take(A), next.take(A), next.take(B)], [one, null, two]);
  assert.equal(page().take(A), null);
});

test('a page at another path takes nothing', () => {
  const { page } = tab();
  page('/app').leave([[A, one]]);
  assert.equal(page('/other').take(A), null);
  assert.deepEqual(page('/app').take(A), one);
});

test('the path that counts is the one at which the page is left', () => {
  const { page } = tab();
  let path = '/app';
  const { store } = tab();
  const memory = new Memory(() => ({
    getItem: (key) => store.get(key) ?? null,
    setItem: (key, value) => store.set(key, value),
    removeItem: (key) => store.delete(key),
  }));
  const first = new Handover(memory, () => path);
  path = '/app/deep';
  first.leave([[A, one]]);
  assert.deepEqual(new Handover(memory, () => '/app').take(A), null);
  assert.deepEqual(new Handover(memory, () => '/app/deep').take(A), one);
  assert.equal(page().take(A), null);
});

test('a tab that is duplicated while the page is there has nothing to take', () => {
  const { page, store } = tab();
  page().leave([[A, one]]);
  page();
  const duplicate = tab([...store]);
  assert.equal(duplicate.page().take(A), null);
});

test('a second reload before the first socket: the session is passed on', () => {
  const { page } = tab();
  page().leave([[A, one], [B, two]]);
  const hurried = page();
  hurried.take(A);
  hurried.leave([[A, { ...one, token: 't9' }]]);
  const last = page();
  assert.deepEqual([last.take(A), last.take(B)], [{ ...one, token: 't9' }, two]);
});

test('back from the cache: the page takes its sessions back', () => {
  const { page, store } = tab();
  const first = page();
  first.leave([[A, one]]);
  page('/other').leave([]);
  assert.equal(first.back(), true);
  assert.equal(store.size, 0);
});

test('back from the cache, but another page has taken them, or left its own', () => {
  const { page, store } = tab();
  const first = page();
  first.leave([[A, one]]);
  const second = page();
  assert.equal(first.back(), false);
  first.leave([]);
  second.leave([[A, two]]);
  assert.equal(first.back(), false);
  // Nor has the second, then: while a page lives, a duplicated tab finds nothing.
  assert.equal(store.size, 0);
  assert.equal(second.back(), false);
});

test('a page without sessions leaves nothing, and needs nothing back', () => {
  const { page, store } = tab();
  const first = page();
  first.leave([]);
  assert.equal(store.size, 0);
  assert.equal(first.back(), true);
});

const refusing = (name) => () => {
  throw Object.assign(new Error(name), { name });
};

for (const [why, storage] of [
  ['is refused', refusing('SecurityError')],
  ['is not there', () => null],
  ['is full', () => ({ getItem: () => null, setItem: refusing('QuotaExceededError'), removeItem() {} })],
]) {
  test(`storage that ${why}: nothing is left, and nothing breaks`, () => {
    const page = () => new Handover(new Memory(storage), () => '/app');
    const first = page();
    first.leave([[A, one]]);
    assert.equal(first.back(), true);
    assert.equal(page().take(A), null);
  });
}

test('what is not ours is ignored', () => {
  const good = `${A} H{"v":1,"session":"s1","token":"t1","epoch":"e1"}`;
  for (const text of ['', '{}', 'null', '\n\n', A, `${A} `, `${A} H{"v":1}`, `${A} 1:x`, `${A} +1`,
    `${A} H{"v":1,"session":1,"token":2,"epoch":3}`, `${A} H{"v":1,"session":"s1","token":"","epoch":"e1"}`]) {
    assert.equal(tab([['gateway:sessions /app', text]]).page().take(A), null, text);
  }
  const { page } = tab([['gateway:sessions /app', `junk\n${good}\n?`]]);
  assert.deepEqual(page().take(A), one);
});
