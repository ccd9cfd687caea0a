import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AVOID_MS, Choice, EARLY_MS, LEARNED_MS, Memory, WHY } from '../src/choice.js';
import { POST_BYTES } from '../src/limits.js';

class FakeStorage {
  #map = new Map();
  getItem = (key) => this.#map.get(key) ?? null;
  setItem = (key, value) => this.#map.set(key, value);
  removeItem = (key) => this.#map.delete(key);
  get size() {
    return this.#map.size;
  }
}

function setup({ storage = new FakeStorage(), endpoint = 'http://a/' } = {}) {
  const time = { now: 1000 };
  const memory = new Memory(() => storage);
  const make = () => new Choice({ endpoint, memory, wall: () => time.now });
  return { choice: make(), again: make, time, storage };
}

test('a WebSocket may be tried at first', () => {
  const { choice } = setup();
  assert.equal(choice.wait, 0);
  assert.equal(choice.why, WHY.trying);
});

for (const how of ['silent', 'refused', 'stalled']) {
  test(`a ${how} probe keeps to polling for five minutes, also in the next page`, () => {
    const { choice, again, time } = setup();
    assert.equal(choice.failed(how), WHY[how]);
    for (const one of [choice, again()]) {
      assert.equal(one.wait, AVOID_MS);
      assert.equal(one.why, WHY[how]);
    }
    time.now += AVOID_MS;
    assert.equal(choice.wait, 0);
    assert.equal(choice.why, WHY.trying);
  });
}

test('another endpoint is judged by itself', () => {
  const { choice, storage } = setup();
  choice.failed('silent');
  assert.equal(setup({ storage, endpoint: 'http://b/' }).choice.wait, 0);
});

function dies(choice, age) {
  choice.died(age);
  choice.reached();
}

test('two early deaths, then polling for five minutes, then two lives again', () => {
  const { choice, again, time } = setup();
  dies(choice, EARLY_MS - 1);
  assert.equal(choice.wait, 0);
  assert.equal(choice.why, WHY.early);
  dies(choice, 0);
  for (const one of [choice, again()]) {
    assert.equal(one.wait, AVOID_MS);
    assert.equal(one.why, WHY.dead);
  }
  time.now += AVOID_MS;
  dies(choice, 0);
  assert.equal(choice.wait, 0);
});

test('a death after 30 s costs nothing, and gives the lives back', () => {
  const { choice } = setup();
  dies(choice, 0);
  dies(choice, EARLY_MS);
  dies(choice, 0);
  assert.equal(choice.wait, 0);
});

test('a death is not the fault of the WebSocket when the server is away altogether', () => {
  const { choice } = setup();
  for (let i = 0; i < 5; i++) {
    choice.died(0);
    choice.missed();
    choice.reached();
  }
  assert.equal(choice.wait, 0);
  assert.equal(choice.why, WHY.trying);
});

test("what the tab's own switch does is not remembered for others", () => {
  const { choice, storage } = setup();
  assert.equal(choice.failed('blocked'), WHY.blocked);
  assert.equal(choice.wait, AVOID_MS);
  assert.equal(storage.size, 0);
  choice.forgive();
  assert.equal(choice.wait, 0);
});

test('a clock that was set back does not prolong the wait', () => {
  const { choice, time } = setup();
  choice.failed('silent');
  time.now -= 10 * AVOID_MS;
  assert.equal(choice.wait, AVOID_MS);
});

test('what long-polling has learned is remembered beside the verdict, for ten minutes', () => {
  const { choice, again, time } = setup();
  const { limits } = choice;
  assert.equal(choice.limits, limits, 'all connections of the page learn together');
  limits.refused(POST_BYTES);
  choice.failed('silent');
  choice.forgive();
  assert.equal(again().wait, 0);
  time.now += LEARNED_MS - 1;
  assert.equal(choice.limits, limits);
  assert.equal(again().limits.post, POST_BYTES / 2);
  time.now += 1;
  assert.equal(choice.limits.post, POST_BYTES);
  assert.equal(again().limits.post, POST_BYTES);
});

test('what was learned is forgotten when the clock was set back behind it', () => {
  const { choice, again, time } = setup();
  choice.limits.refused(POST_BYTES);
  time.now -= 1;
  assert.equal(again().limits.post, POST_BYTES);
});

test('what another script has left under our key is ignored', () => {
  for (const junk of [
    '', '{', 'null', '[]', '"x"', '{"until":9e9,"why":"old"}', '{"verdict":{"until":"x"}}', '{"verdict":7,"learned":7}',
    '{"verdict":{"until":9e9,"why":1}}', '{"learned":{"at":1000,"post":1}}', '{"learned":{"post":65536,"answer":1e6}}',
  ]) {
    const storage = new FakeStorage();
    storage.setItem('gateway:transport http://a/', junk);
    const { choice } = setup({ storage });
    assert.equal(choice.wait, 0, junk);
    assert.equal(choice.limits.post, POST_BYTES, junk);
  }
});

test('a storage that refuses is no storage; any other fault is ours and shows', () => {
  const refusing = (name) => () => {
    throw Object.assign(new Error('no'), { name });
  };
  assert.equal(new Memory(refusing('SecurityError')).read('x'), null);
  new Memory(refusing('QuotaExceededError')).write('x', 'y');
  assert.equal(new Memory(() => null).read('x'), null);
  new Memory(() => null).write('x', 'y');
  assert.throws(() => new Memory(refusing('TypeError')).read('x'));
});
