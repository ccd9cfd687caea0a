// Which endpoint serves a URL, and what the gateway there calls it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { endpointOf, pathOf } from '../src/pool.js';

const BASE = 'https://a.example/app/page';

test('the endpoint is at the origin of the URL, or where the page says', () => {
  const cases = [
    ['wss://a.example/x', null, 'https://a.example/_gateway/engine/'],
    ['ws://[::1]:8000/x', null, 'http://[::1]:8000/_gateway/engine/'],
    ['wss://a.example/x', '/app/_gateway/engine/', 'https://a.example/app/_gateway/engine/'],
    ['wss://a.example/x', 'wss://b.example/_gateway/engine/', 'https://b.example/_gateway/engine/'],
    ['wss://a.example/x', '', 'https://a.example/_gateway/engine/'],
  ];
  for (const [url, configured, expected] of cases) {
    assert.equal(endpointOf(new URL(url), configured, BASE), expected);
  }
});

test('a prefix that a proxy takes off is no part of the path', () => {
  const cases = [
    ['wss://a.example/chat?x', 'https://a.example/_gateway/engine/', '/chat?x'],
    ['wss://a.example/app/chat?x', 'https://a.example/app/_gateway/engine/', '/chat?x'],
    ['wss://a.example/app/', 'https://a.example/app/_gateway/engine/', '/'],
    ['wss://a.example/apple', 'https://a.example/app/_gateway/engine/', '/apple'],
    ['wss://a.example/app/chat', 'https://b.example/app/_gateway/engine/', '/app/chat'],
    ['wss://a.example/app/chat', 'https://a.example/app/engine/', '/app/chat'],
  ];
  for (const [url, endpoint, expected] of cases) assert.equal(pathOf(new URL(url), endpoint), expected);
});
