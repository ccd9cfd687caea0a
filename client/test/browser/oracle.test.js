// static/client.js in a real Chromium, under `default-src 'self'`, next to the browser's own class.
// Needs a chromium: the path is taken from CHROMIUM, else /usr/bin/chromium. `npm run test:browser`, or
// `make test`.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { WebSocketServer } from 'ws';
import { startGateway } from '../support/gateway.js';
import { CHECKS } from './checks.js';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const FLAGS = [
  '--headless', '--no-sandbox', '--disable-quic', '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--disable-gpu', '--no-first-run',
];
const client = new URL('../../', import.meta.url);
const TYPES = { js: 'text/javascript', html: 'text/html', map: 'application/json' };

async function serve(request, response, report) {
  const { pathname } = new URL(request.url, 'http://x');
  if (pathname === '/report') return receive(request, response, report);
  const file = new URL(pathname.startsWith('/static/') ? `..${pathname}` : `.${pathname}`, client);
  const body = await readFile(file).catch(() => null);
  response.writeHead(body ? 200 : 404, {
    'Content-Type': TYPES[pathname.split('.').pop()] ?? 'text/plain',
    'Content-Security-Policy': "default-src 'self'; require-trusted-types-for 'script'",
  });
  return response.end(body ?? '');
}

async function receive(request, response, report) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  response.end();
  report(JSON.parse(Buffer.concat(pieces)));
}

function echo(http) {
  const server = new WebSocketServer({ noServer: true, handleProtocols: ([first]) => first });
  http.on('upgrade', (request, socket, head) => {
    if (request.url.startsWith('/_gateway/')) return;
    server.handleUpgrade(request, socket, head, (ws) => {
      ws.on('message', (data, isBinary) => ws.send(data, { binary: isBinary }));
    });
  });
}

let report;
let stop;

before(async () => {
  const gateway = await startGateway({ destroyUpgrade: false });
  const reported = new Promise((resolve) => {
    const [engine] = gateway.http.listeners('request');
    gateway.http.removeAllListeners('request');
    gateway.http.on('request', (request, response) => {
      if (request.url.startsWith('/_gateway/')) engine(request, response);
      else serve(request, response, resolve);
    });
  });
  echo(gateway.http);
  const profile = await mkdtemp(join(tmpdir(), 'gateway-oracle-'));
  const url = `http://127.0.0.1:${gateway.port}/test/browser/page.html`;
  const browser = spawn(CHROMIUM, [...FLAGS, `--user-data-dir=${profile}`, url], { stdio: 'ignore' });
  stop = async () => {
    const exited = new Promise((resolve) => browser.once('exit', resolve));
    browser.kill();
    await exited;
    await gateway.close();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  report = await reported;
});

after(() => stop());

for (const name of Object.keys(CHECKS)) {
  test(name, () => {
    const { expected, got } = report.results.find((result) => result.name === name);
    assert.notEqual(expected, '"never ended"');
    assert.equal(got, expected);
  });
}

test('nothing offends the Content-Security-Policy', () => {
  assert.deepEqual(report.violations, []);
});

test('a second copy of the script changes nothing', () => {
  assert.equal(report.isFirst, true);
});

test('it ended on a websocket', () => {
  assert.equal(report.connection.transport, 'websocket', report.connection.why);
});
