// Many pages in one process, for tests/network/survival.py: each talks, or is idle, or changes its transport.
// Decides what is sent, and counts what comes back: in order, once, complete. Knows nothing of the network
// between, nor what would be good enough. The other end is tests/network/talk.py.
//
//   node weather.js '{"port":8000,"kind":"talk","sessions":50,"seconds":120,"transport":"polling"}'
//
// prints one line of JSON at its end; `kind` "idle" prints {"idle":true} when the idleness begins.

import { Agent } from 'node:http';
import { BYE } from '../../src/frames.js';
import { pages } from './xhr.js';
import { createClient } from './node-client.js';

const PATTERN = 'ünïcode \u001e \\e 😀 <b> ';
const PATTERN_BYTES = Buffer.byteLength(PATTERN);

// Bytes of message n, about; and messages per second.
const KINDS = {
  tick: { size: (n) => n % 120, rate: 10 },
  mixed: { size: (n) => (n * 7919) % 40_000, rate: 1 },
  large: { size: (n) => 200_000 + (n % 1000), rate: 0.2 },
  fast: { size: (n) => n % 120, rate: 1000 },
};

const PATIENCE_MS = 60_000;
const STEP_MS = 50;
const LEAVE_MS = 500;

const everyPage = [];

/** Message n: every second one of those that are not small is binary. */
function message(kind, n) {
  const text = textOf(n, KINDS[kind].size(n));
  return n % 2 && kind !== 'tick' ? new Uint8Array(Buffer.from(text)) : text;
}

const textOf = (n, size) => `${n}|${PATTERN.repeat(Math.floor(size / PATTERN_BYTES))}`;

const toText = (data) => (typeof data === 'string' ? data : Buffer.from(data).toString());

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** One channel that numbers its messages, and checks those that come. */
class Talk {
  sent = 0;
  heard = 0;
  disordered = 0;
  doubled = 0;
  wrong = 0;
  ended = null;
  closed = null;
  #seen = new Set();
  #last = -1;

  constructor(page, name, kind, rate = KINDS[kind].rate) {
    Object.assign(this, { page, name, kind, rate });
    const sink = {
      accept: () => {
        this.began ??= performance.now();
      },
      message: (data) => this.#hear(data),
      close: ({ code, reason }) => {
        this.closed = `${code} ${reason}`;
        this.page.heard();
      },
    };
    const url = `/talk?name=${name}&kind=${kind}&rate=${rate}`;
    this.channel = page.session.open({ url, protocols: [], sink });
  }

  get over() {
    return this.ended !== null || this.closed !== null;
  }

  /** All that is due by now. */
  speak() {
    if (this.began === undefined) return;
    const due = ((performance.now() - this.began) / 1000) * this.rate;
    for (; this.sent < due && this.channel.state === 'open'; this.sent++) {
      this.channel.send(message(this.kind, this.sent));
    }
  }

  finish() {
    this.channel.send(`end|${this.sent}`);
  }

  #hear(data) {
    this.page.heard();
    const text = toText(data);
    const [head] = text.split('|', 1);
    if (head === 'end') {
      this.ended = Number(text.slice(4));
      return;
    }
    if (!/^\d+$/.test(head)) {
      this.wrong += 1;
      return;
    }
    const n = Number(head);
    this.heard += this.#seen.has(n) ? 0 : 1;
    if (this.#seen.has(n)) this.doubled += 1;
    else if (n !== this.#last + 1) this.disordered += 1;
    if (text !== textOf(n, KINDS[this.kind].size(n))) this.wrong += 1;
    if (typeof data !== typeof message(this.kind, n)) this.wrong += 1;
    this.#seen.add(n);
    this.#last = n;
  }

  report() {
    const { name, sent, heard, disordered, doubled, wrong, ended, closed } = this;
    return { name, sent, heard, disordered, doubled, wrong, ended, closed };
  }
}

/** One browser tab: six connections, one session. */
class Page {
  silence = 0;
  silentAt = 0;
  onWebSocket = 0;
  steps = 0;
  #heardAt = null;

  constructor({ port, transport }) {
    // As browsers have it: six connections for a host, kept until the server closes them.
    this.agent = new Agent({ keepAlive: true, maxSockets: 6, scheduling: 'lifo' });
    this.wanted = transport;
    this.client = pages.run(this.agent, () => createClient(port));
    this.client.switches.blocked = transport === 'polling';
    this.session = this.client.session;
    everyPage.push(this);
  }

  open(...words) {
    return pages.run(this.agent, () => new Talk(this, ...words));
  }

  heard() {
    const now = performance.now();
    const silence = this.#heardAt === null ? 0 : now - this.#heardAt;
    if (silence > this.silence) Object.assign(this, { silence, silentAt: this.#heardAt });
    this.#heardAt = now;
  }

  /** On a WebSocket whenever one may be had: what was learned about this weather is not waited for. */
  insist() {
    this.steps += 1;
    if (this.session.transport === 'websocket') this.onWebSocket += 1;
    else if (this.wanted === 'websocket' && this.session.state === 'open') this.session.probe();
  }

  report() {
    const count = (type) => this.client.told.filter(([told]) => told === type).length;
    return {
      connections: this.client.links.length,
      silence: Math.round(this.silence),
      silentAt: Math.round(this.silentAt),
      lost: count('lost'),
      gaps: count('gap'),
      gone: count('gone'),
      websocket: this.onWebSocket / Math.max(1, this.steps),
      why: this.session.why,
      reasons: this.client.told.filter(([told]) => told === 'lost').map(([, { reason }]) => reason),
    };
  }
}

async function until(condition, patience = PATIENCE_MS) {
  const end = performance.now() + patience;
  while (!condition() && performance.now() < end) await pause(STEP_MS);
  return condition();
}

function openPages(options) {
  return Array.from({ length: options.sessions ?? 1 }, () => new Page(options));
}

async function finish(talks) {
  for (const talk of talks) talk.finish();
  await until(() => talks.every(({ over }) => over));
}

function report(all, talks, more = {}) {
  return { talks: talks.map((talk) => talk.report()), pages: all.map((page) => page.report()), ...more };
}

/** Everybody sends and hears for some seconds, small and large, on three channels. */
async function talk(options) {
  const all = openPages(options);
  const kinds = options.kinds ?? ['tick', 'mixed', 'large'];
  const talks = all.flatMap((page, i) => kinds.map((kind) => page.open(`${i}.${kind}`, kind)));
  const end = performance.now() + options.seconds * 1000;
  while (performance.now() < end) {
    for (const page of all) page.insist();
    for (const one of talks) one.speak();
    await pause(STEP_MS);
  }
  await finish(talks);
  return report(all, talks);
}

/** Nothing but an open channel; then one word, and how long its answer took. */
async function idle(options) {
  const all = openPages(options);
  const talks = all.map((page, i) => page.open(`${i}.idle`, 'tick', 0));
  await until(() => talks.every(({ channel }) => channel.state === 'open'));
  // The first word may be there; after it nothing is.
  await pause(1000);
  console.log(JSON.stringify({ idle: true }));
  await pause(options.seconds * 1000);
  console.log(JSON.stringify({ idle: false }));
  const asked = performance.now();
  await finish(talks);
  return report(all, talks, { answered: Math.round(performance.now() - asked) });
}

/** One big message each way, as text and as bytes: milliseconds until it is there and that is known. */
async function big(options) {
  const [page] = openPages(options);
  const took = {};
  let news = null;
  let closed = null;
  const sink = {
    accept: () => {},
    message: (data) => {
      news = data;
    },
    close: ({ code, reason }) => {
      closed = `${code} ${reason}`;
    },
  };
  const channel = pages.run(page.agent, () => page.session.open({ url: '/big', protocols: [], sink }));
  const answer = async () => {
    await until(() => news !== null || closed !== null);
    const heard = news;
    news = null;
    return heard;
  };
  const text = textOf(0, options.bytes);
  const bytes = new Uint8Array(Buffer.from(text));
  const ways = {
    'text up': [text, (heard) => heard === `got text ${bytes.length}`],
    'bytes up': [bytes, (heard) => heard === `got bytes ${bytes.length}`],
    'text down': [`send text ${options.bytes}`, (heard) => heard === text],
    'bytes down': [`send bytes ${options.bytes}`, (heard) => toText(heard) === text],
  };
  await until(() => channel.state === 'open');
  if (options.transport === 'websocket') await until(() => page.session.transport === 'websocket');
  for (const name of options.ways ?? [...Object.keys(ways), ...Object.keys(ways)]) {
    const [ask, isGood] = ways[name];
    const began = performance.now();
    if (closed === null) channel.send(ask);
    const heard = await answer();
    const title = name in took ? `${name} again` : name;
    took[title] = heard !== null && isGood(heard) ? Math.round(performance.now() - began) : null;
  }
  return report([page], [], { took, closed });
}

/** From polling to a WebSocket and back, again and again, while both sides send. */
async function changes(options) {
  const all = openPages({ ...options, transport: 'polling' });
  const talks = all.map((page, i) => page.open(`${i}.fast`, 'fast', options.rate));
  const timer = setInterval(() => talks.forEach((one) => one.speak()), 1);
  const done = await Promise.all(all.map((page) => change(page, options)));
  clearInterval(timer);
  await finish(talks);
  return report(all, talks, { changes: done.reduce((sum, one) => sum + one, 0) });
}

async function change({ client, session }, { changes: count }) {
  let done = 0;
  const becomes = (transport) =>
    until(() => session.state === 'open' && session.transport === transport, 15_000);
  if (!(await becomes('polling'))) return done;
  for (; done < count; done++) {
    const up = session.transport === 'polling';
    client.switches.blocked = !up;
    if (up) session.probe();
    else session.reconnect();
    if (!(await becomes(up ? 'websocket' : 'polling'))) return done;
  }
  return done;
}

const options = JSON.parse(process.argv[2]);
const result = await { talk, idle, big, changes }[options.kind](options);
console.log(JSON.stringify(result));
// Good-bye, so that the gateway need not wait for anybody.
for (const { client } of everyPage) client.links.at(-1)?.end(BYE);
await pause(LEAVE_MS);
process.exit(0);
