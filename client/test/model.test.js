// A session in bad weather, at random: whatever the network, the server and the page do, and in
// whatever order, no message is lost, doubled or reordered unless the socket says so, and nothing
// is left over. A failure names its seed.

import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { CLOSE_WAIT_MS } from '../src/channel.js';
import { Session, TIMING } from '../src/session.js';
import { FakeClock } from './support/clock.js';
import { ModelGateway, ModelNetwork, chanceOf } from './support/model.js';

const RUNS = 300;
const STEPS = 120;

mock.method(console, 'warn', () => {}); // each refusal says why

class Page {
  sockets = [];
  past = [];
  opened = 0;
  told = [];

  constructor(seed) {
    this.chance = chanceOf(seed);
    this.clock = new FakeClock();
    this.gateway = new ModelGateway(this.clock, this.chance);
    this.network = new ModelNetwork(this.clock, this.chance, this.gateway);
    this.session = this.#create(null);
  }

  #create(resume) {
    return new Session({
      connect: this.network.connect,
      clock: this.clock,
      random: this.chance.random,
      tell: (type, detail) => this.told.push([type, detail]),
      resume,
    });
  }

  /** A new page in the place of this one: of the old sockets nobody hears any more. */
  reload() {
    this.session.hide();
    this.past.push(...this.sockets.splice(0));
    this.session = this.#create(this.session.kept);
    this.open();
  }

  /** Another page at the same path, with this session, and back: this one finds it gone. */
  visit() {
    const { session, sockets } = this;
    session.hide();
    this.session = this.#create(session.kept);
    this.sockets = [];
    this.open();
    this.clock.pass(this.chance.below(3000));
    this.session.hide();
    this.past.push(...this.sockets);
    Object.assign(this, { session, sockets });
    session.show(false);
  }

  open(refused = false) {
    const path = `/${this.opened++}`;
    const log = { path, refused, number: null, over: false, atServer: [], fromServer: [] };
    const socket = { log, sent: [], heard: [], accepts: 0, ends: [] };
    this.gateway.logs.set(path, log);
    const sink = {
      accept: () => (socket.accepts += 1),
      message: (data) => socket.heard.push(data),
      dropped: (count) => socket.heard.push(`dropped ${count}`),
      close: (end) => socket.ends.push(end),
    };
    socket.channel = this.session.open({ url: path, protocols: [], sink });
    this.sockets.push(socket);
  }

  send(socket) {
    if (socket.channel.state !== 'open') return;
    const filler = this.chance.pick(['x', '😀', '\x1e\\']);
    const text = `${socket.sent.length}${filler.repeat(this.chance.below(this.chance.pick([200, 200, 1500])))}`;
    const bytes = new TextEncoder().encode(text);
    const isBinary = this.chance.below(3) === 0;
    socket.sent.push(isBinary ? `bytes ${bytes}` : text);
    socket.channel.send(isBinary ? bytes : text);
  }

  get live() {
    return this.sockets.filter(({ ends }) => !ends.length);
  }

  step() {
    const { chance, network, gateway, session } = this;
    const socket = chance.pick(this.sockets);
    const moves = [
      () => this.open(),
      () => this.open(chance.below(2) === 0),
      () => this.send(socket),
      () => { for (let i = chance.below(20); i > 0; i--) this.send(socket); },
      () => gateway.say(socket.log, [`${socket.log.fromServer.length}`]),
      () => { for (let i = chance.below(90); i > 0; i--) gateway.say(socket.log, [`${socket.log.fromServer.length}`]); },
      () => gateway.say(socket.log, ['a', '', `${socket.log.fromServer.length}`], chance.below(3)),
      () => gateway.drop(socket.log, 1 + chance.below(9)),
      () => gateway.hangUp(socket.log),
      () => { this.send(socket); socket.closed = true; socket.channel.close({ code: 1000 }); },
      () => network.cut(),
      () => network.cut(),
      () => { for (const link of network.links) link.silent = true; },
      () => (network.broken = !network.broken),
      () => (network.slow = 1 + chance.below(chance.pick([10, 400, 9000]))),
      () => session.retry(),
      () => session.reconnect(),
      () => session.hide(),
      () => session.show(),
      () => { session.hide(); session.show(); },
      () => chance.below(4) || gateway.forget(),
      () => gateway.restart(chance.below(6000)),
      () => chance.below(3) || this.reload(),
      () => chance.below(6) || this.visit(),
      () => chance.below(6) || gateway.end(chance.below(2) === 0),
    ];
    chance.pick(moves)();
    this.clock.pass(chance.below(chance.pick([2, 50, 1500, 8000])));
  }

  /** The weather clears up. */
  heal() {
    for (const { log } of this.live) this.gateway.finish(log);
    this.clock.pass(6000);
    this.network.broken = false;
    this.network.slow = 20;
    this.network.cut();
    this.session.show();
    this.session.retry();
    this.clock.pass(4 * TIMING.attemptMs + CLOSE_WAIT_MS);
  }
}

const isPrefix = (part, whole) => part.every((value, index) => value === whole[index]);

function checkOrder(page) {
  for (const { log, sent, heard, accepts, ends } of [...page.sockets, ...page.past]) {
    assert.ok(isPrefix(log.atServer, sent), `${log.path}: ${log.atServer} of ${sent}`);
    assert.ok(isPrefix(heard, log.fromServer), `${log.path}: ${heard} of ${log.fromServer}`);
    assert.ok(accepts <= 1 && ends.length <= 1, log.path);
  }
  assert.deepEqual(page.gateway.problems, []);
  assert.ok(page.network.most <= 1, `${page.network.most} connections at once`);
}

function checkHealed(page) {
  for (const { log, sent, heard, accepts } of page.live) {
    assert.equal(accepts, 1, `${log.path} is stuck`);
    assert.deepEqual(log.atServer, sent);
    assert.deepEqual(heard, log.fromServer);
  }
  for (const { log, sent, heard, closed, ends: [end] } of page.sockets) {
    if (end?.clean && end.code === 1000) assert.deepEqual(log.atServer, sent);
    if ([1012, 4000].includes(end?.code) && !closed) assert.deepEqual(heard, log.fromServer);
  }
  for (const { unacknowledged, link } of page.gateway.sessions.values()) {
    // The model's gateway does not notice that a page has left a connection that is silent.
    if (page.network.links.has(link)) assert.equal(unacknowledged, 0);
  }
}

function checkGapsTold(page) {
  const closed = page.told.filter(([type]) => type === 'gap').map(([, detail]) => detail.closed);
  const lost = page.sockets.filter(({ log, closed: asked, ends: [end] }) => end && !end.clean && !asked && !log.refused);
  const total = closed.reduce((sum, count) => sum + count, 0);
  if (!page.told.some(([type]) => type === 'gone')) assert.ok(lost.length <= total, `${lost.length} lost, ${total} told`);
}

function checkNothingLeft(page) {
  // An odd page closes its last sockets behind a network that never comes back.
  page.network.broken = page.sockets.length % 2 === 1;
  if (page.network.broken) page.network.cut();
  for (const { channel } of page.live) channel.close({});
  page.clock.pass(CLOSE_WAIT_MS + 2 * TIMING.idleMs);
  assert.ok(['idle', 'gone'].includes(page.session.state), page.session.state);
  assert.deepEqual([page.session.size, page.network.links.size, page.clock.waiting], [0, 0, 0]);
}

test(`${RUNS} pages in bad weather`, () => {
  for (let seed = 1; seed <= RUNS; seed++) {
    const page = new Page(seed);
    try {
      page.open();
      for (let i = 0; i < STEPS; i++) {
        page.step();
        checkOrder(page);
      }
      page.heal();
      checkOrder(page);
      checkHealed(page);
      checkGapsTold(page);
      checkNothingLeft(page);
    } catch (error) {
      error.message = `seed ${seed}: ${error.message}`;
      throw error;
    }
  }
});
