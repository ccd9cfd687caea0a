// Wiring for a page: reads the script tag, makes the parts, sets globalThis.GatewaySocket.
// Decides nothing but who is handed to whom.

import { Polling, Socket, WebSocket } from 'engine.io-client';
import { Banner, TEXTS } from './banner.js';
import { Choice, Memory } from './choice.js';
import { Link, createTransports, engineOptions } from './engine.js';
import { Handover } from './handover.js';
import { Pool, endpointOf, pathOf } from './pool.js';
import { Session } from './session.js';
import { defineGatewaySocket } from './socket.js';
import { createTasks } from './tasks.js';

const BLOCK_KEY = 'gateway:block-websocket';

const { endpoint, banner, credentials } = document.currentScript?.dataset ?? {};
const settings = {
  endpoint: endpoint ?? null,
  banner: banner !== 'off',
  credentials: credentials !== 'omit',
  texts: { ...TEXTS },
};

const clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  setTimeout: (callback, delay) => setTimeout(callback, delay),
  clearTimeout: (timer) => clearTimeout(timer),
  soon: (callback) => queueMicrotask(callback),
};

const tabMemory = new Memory(() => sessionStorage);
const pageMemory = new Memory(() => localStorage);
const handover = new Handover(tabMemory, () => location.pathname);
const switches = { blocked: tabMemory.read(BLOCK_KEY) === '1' };
const transports = createTransports({ Polling, WebSocket }, clock);
const choices = new Map();

function choiceFor(endpoint) {
  if (!choices.has(endpoint)) {
    choices.set(endpoint, new Choice({ endpoint, memory: pageMemory, wall: clock.wall }));
  }
  return choices.get(endpoint);
}

function connectorFor(endpoint) {
  const parts = {
    create: (options) =>
      new Socket({ ...engineOptions(endpoint, settings.credentials), transports, ...options }),
    choice: choiceFor(endpoint),
    clock,
    beacon: (url, text) => navigator.sendBeacon(url, text),
    blocked: () => switches.blocked,
    online: () => navigator.onLine,
  };
  return (handlers) => new Link(parts, handlers);
}

function createSession(endpoint) {
  const session = new Session({
    connect: connectorFor(endpoint),
    clock,
    resume: handover.take(endpoint),
    tell: (type, detail) => tell(session, type, { ...detail, endpoint }),
  });
  return session;
}

const pool = new Pool(createSession);

const notice = new Banner({
  document,
  clock,
  texts: () => settings.texts,
  retry: () => retry(),
  reload: () => location.reload(),
});

const dispatch = (type, detail) => dispatchEvent(new CustomEvent(`gateway:${type}`, { detail }));

function tell(session, type, detail) {
  if (type !== 'status') dispatch(type, detail);
  if (settings.banner) show(session, type);
}

// With several endpoints: while one of them is lost, the others' good news is none.
function show(session, type) {
  const lost = [...pool].find((one) => one.lost && one.state === 'lost');
  if (lost) notice.lost(lost);
  else if (type === 'back') notice.back();
  else if (type === 'gone') notice.gone();
  else if (session.state === 'idle') notice.off();
}

const endpointFor = (url) => endpointOf(url, settings.endpoint, document.baseURI);

function retry() {
  for (const session of pool) session.retry();
}

function configure(options = {}) {
  const { texts, ...rest } = options;
  Object.assign(settings.texts, texts);
  Object.assign(settings, rest);
  if (!settings.banner) notice.off();
}

function blockWebSocket(blocked) {
  switches.blocked = Boolean(blocked);
  tabMemory.write(BLOCK_KEY, blocked ? '1' : null);
  for (const choice of choices.values()) choice.forgive();
  for (const session of pool) {
    if (blocked) session.reconnect();
    else session.probe();
  }
}

function connection() {
  const session = pool.peek(endpointFor(location.href));
  const { state = 'idle', transport = null, why = '', id = null, retryAt = null } = session ?? {};
  return Object.freeze({ state, transport, why, session: id, retryAt });
}

const GatewaySocket = defineGatewaySocket({
  DOMException,
  EventTarget,
  Event,
  MessageEvent,
  CloseEvent,
  Blob,
  baseUrl: () => document.baseURI,
  sessionFor: (url) => pool.get(endpointFor(url)),
  pathOf: (url) => pathOf(url, endpointFor(url)),
  gap: (url, dropped) => dispatch('gap', { url: url.href, dropped, endpoint: endpointFor(url) }),
  task: createTasks(MessageChannel),
});

Object.defineProperties(GatewaySocket, {
  configure: { value: configure },
  retry: { value: retry },
  blockWebSocket: { value: blockWebSocket },
  connection: { get: connection },
  version: { value: __VERSION__ },
});

addEventListener('online', retry);
// Before engine.io-client's own listener, which forgets its requests without ending them.
addEventListener(
  'pagehide',
  () => {
    for (const session of pool) session.hide();
    handover.leave(pool.kept);
  },
  true,
);
addEventListener('pageshow', (event) => {
  if (!event.persisted) return;
  const isOurs = handover.back();
  for (const session of pool) session.show(isOurs);
});

// A page may load the script twice: one class, one connection, one banner.
if (!('GatewaySocket' in globalThis)) {
  Object.defineProperty(globalThis, 'GatewaySocket', {
    value: GatewaySocket,
    writable: true,
    configurable: true,
  });
}
