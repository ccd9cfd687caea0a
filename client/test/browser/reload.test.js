// What becomes of a session when its page is reloaded, left and returned to, or its tab duplicated,
// in a real Chromium with static/client.js. The page, reload.js, walks through it by itself.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { startGateway } from '../support/gateway.js';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const FLAGS = [
  '--headless', '--no-sandbox', '--disable-quic', '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--disable-gpu', '--no-first-run', '--disable-popup-blocking',
];
const REPORTS = 8;
const client = new URL('../../', import.meta.url);

async function serve(request, response, reported) {
  const { pathname } = new URL(request.url, 'http://x');
  if (pathname === '/report') {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    response.end();
    return reported(JSON.parse(Buffer.concat(pieces)));
  }
  const file = new URL(pathname.startsWith('/static/') ? `..${pathname}` : `.${pathname}`, client);
  const body = await readFile(file).catch(() => null);
  const type = pathname.endsWith('.js') ? 'text/javascript' : 'text/html';
  response.writeHead(body ? 200 : 404, { 'Content-Type': type });
  return response.end(body ?? '');
}

const reports = [];
let gateway;
let stop;

before(async () => {
  gateway = await startGateway({ destroyUpgrade: false });
  const done = new Promise((resolve) => {
    const [engine] = gateway.http.listeners('request');
    gateway.http.removeAllListeners('request');
    const reported = (report) => {
      reports.push(report);
      if (report.isDuplicate || report.why) resolve();
    };
    gateway.http.on('request', (request, response) => {
      if (request.url.startsWith('/_gateway/')) engine(request, response);
      else serve(request, response, reported);
    });
  });
  const profile = await mkdtemp(join(tmpdir(), 'gateway-reload-'));
  const url = `http://127.0.0.1:${gateway.port}/test/browser/reload.html`;
  const browser = spawn(CHROMIUM, [...FLAGS, `--user-data-dir=${profile}`, url], { stdio: 'ignore' });
  stop = async () => {
    const exited = new Promise((resolve) => browser.once('exit', resolve));
    browser.kill();
    await exited;
    await gateway.close();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  };
  await done;
}, { timeout: 60_000 });

after(() => stop());

const reportOf = (step) => reports.find((report) => report.step === step && !report.isDuplicate) ?? {};
const duplicate = () => reports.find(({ isDuplicate }) => isDuplicate) ?? {};

test('the walk came to its end', () => {
  assert.deepEqual(reports.map(({ why }) => why).filter(Boolean), []);
  assert.equal(reports.length, REPORTS);
});

test('a reloaded page goes on with its session, and again', () => {
  assert.equal(reportOf(1).session, reportOf(0).session);
});

test('so does one that is reloaded before it has opened a socket', () => {
  assert.equal(reportOf(3).session, reportOf(0).session);
});

test('a page that comes back from the cache keeps its session and its sockets', () => {
  assert.equal(reportOf(4).session, reportOf(0).session);
  assert.equal(reportOf(4).state, 1);
});

test('another page at the same path in the tab goes on with it', () => {
  assert.equal(reportOf(5).session, reportOf(0).session);
});

test('a page that comes back after that has lost it: 1006, and a new session', () => {
  assert.equal(reportOf(6).closed, 1006);
  assert.notEqual(reportOf(6).session, reportOf(0).session);
});

test('a duplicated tab has a session of its own', () => {
  assert.ok(duplicate().session);
  assert.equal(reportOf(7).session, reportOf(6).session);
  assert.notEqual(duplicate().session, reportOf(7).session);
});

test('while a page lives nothing of the session lies in the storage', () => {
  // But for the sixth: Chromium tells a page that it is back before it tells the other that it goes.
  assert.deepEqual(reports.flatMap(({ step, kept }) => (step === 6 ? [] : kept)), []);
});

test('there were three sessions in all', () => {
  assert.equal(gateway.sessions.size, 3);
});
