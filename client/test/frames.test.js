// Every case of tests/vectors/session_frames.json, which the Python tests run, too.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as frames from '../src/frames.js';

const path = new URL('../../tests/vectors/session_frames.json', import.meta.url);
const vectors = JSON.parse(readFileSync(path, 'utf8'));

const fromHex = (hex) => new Uint8Array(Buffer.from(hex, 'hex'));
const raw = (vector) => vector.frame ?? fromHex(vector.hex);
const name = (vector) => JSON.stringify(vector.frame ?? vector.hex).slice(0, 60);

const ENCODE = {
  ack: ({ count }) => frames.ack(count),
  bye: () => frames.BYE,
  text: ({ channel, text, more }) => frames.text(channel, text, more),
  binary: ({ channel, data, more }) => frames.binary(channel, fromHex(data), more),
};

function expected({ frame, hex, data, ...rest }) {
  return data === undefined ? rest : { ...rest, data: fromHex(data) };
}

test('the vectors are there', () => {
  assert.ok(vectors.frames.length >= 30);
  assert.ok(vectors.bad.length >= 38);
});

for (const vector of vectors.frames) {
  test(`decodes ${name(vector)}`, () => {
    assert.deepEqual(frames.decode(raw(vector)), expected(vector));
  });

  test(`encodes ${name(vector)}`, () => {
    const encode = ENCODE[vector.kind] ?? ((v) => frames.control(v.kind, v.fields, v.channel));
    assert.deepEqual(encode(vector), raw(vector));
  });
}

for (const vector of vectors.bad) {
  test(`refuses ${vector.why}: ${name(vector)}`, () => {
    assert.throws(() => frames.decode(raw(vector)), frames.ProtocolError);
  });
}

test('keys that are not known are left out', () => {
  assert.deepEqual(frames.decode('A1{"protocol":"x","more":1}').fields, { protocol: 'x' });
});

test('an ArrayBuffer decodes like bytes', () => {
  const { data } = frames.decode(fromHex('0102').buffer.slice(0, 2));
  assert.deepEqual([...data], [2]);
});

for (const text of ['', 'a', 'ä', '€', '😀', 'a\ud800', '\udc00😀', '\ud800\ud800']) {
  test(`counts the UTF-8 bytes of ${JSON.stringify(text)}`, () => {
    assert.equal(frames.utf8Length(text), Buffer.byteLength(text, 'utf8'));
  });
}
