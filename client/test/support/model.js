// A gateway of docs/protocol.md and a network that misbehaves, on a clock that only the test moves.
// Every frame takes its time; connections are cut with frames under way, or fall silent.

import * as frames from '../../src/frames.js';
import { FRAME_COST } from '../../src/queues.js';

// Small enough that channels run out of credit.
const WINDOW = 3000;

/** Seeded chance: mulberry32. */
export function chanceOf(seed) {
  let state = seed;
  const random = () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const below = (limit) => Math.floor(random() * limit);
  return { random, below, pick: (list) => list[below(list.length)] };
}

/** One connection: what the client hands over arrives in order, late, and perhaps not at all. */
class ModelLink {
  writable = true;
  budget = 300;
  maxPayload = 400;
  transport = 'polling';
  why = 'model';
  #over = false;
  #toServer = 0;
  #toClient = 0;

  constructor(net, handlers) {
    this.net = net;
    this.handlers = handlers;
    this.peer = net.gateway.accept(this);
    // 'silent' swallows everything from now on, in both directions, and tells nobody.
    this.silent = net.broken;
    if (net.gateway.isDown) this.cut();
    else this.#later('toClient', () => this.handlers.open());
  }

  send(batch) {
    this.writable = false;
    for (const frame of batch) this.#later('toServer', () => this.peer.receive(frame), true);
    this.#later('toServer', () => {
      this.writable = true;
      this.handlers.drain();
    });
  }

  leave(frame) {
    this.#later('toServer', () => this.peer.receive(frame), true);
  }

  end(frame) {
    this.leave(frame);
    this.drop();
  }

  drop() {
    this.#over = true;
    this.net.links.delete(this);
    this.#later('toServer', () => this.peer.gone(), true);
  }

  probe() {}

  /** From the gateway. */
  deliver(frame) {
    this.#later('toClient', () => this.handlers.frame(frame));
  }

  /** The gateway hangs up. */
  hangUp() {
    this.#later('toClient', () => this.#lose());
  }

  /** The network cuts it, with whatever is under way in either direction. */
  cut() {
    this.silent = true;
    this.peer.gone();
    this.net.clock.setTimeout(() => this.#lose(), this.net.chance.below(30));
  }

  #lose() {
    if (this.#over) return;
    this.#over = true;
    this.net.links.delete(this);
    this.handlers.closed('network');
  }

  // What is under way when the client gives up still reaches the gateway, however late.
  #later(direction, step, survives = false) {
    const { clock, chance } = this.net;
    const last = direction === 'toServer' ? this.#toServer : this.#toClient;
    const at = Math.max(last, clock.now() + chance.below(this.net.slow));
    if (direction === 'toServer') this.#toServer = at;
    else this.#toClient = at;
    clock.setTimeout(() => {
      if (!this.silent && (survives || !this.#over)) step();
    }, at - clock.now());
  }
}

export class ModelNetwork {
  broken = false;
  slow = 40;
  links = new Set();
  most = 0;

  constructor(clock, chance, gateway) {
    Object.assign(this, { clock, chance, gateway });
  }

  connect = (handlers) => {
    const link = new ModelLink(this, handlers);
    this.links.add(link);
    this.most = Math.max(this.most, this.links.size);
    return link;
  };

  cut() {
    for (const link of this.links) link.cut();
  }
}

class ModelSession {
  received = 0;
  tokens = [];
  epochs = [];
  link = null;
  #sent = [];
  #acked = 0;
  #written = 0;
  channels = new Map();

  constructor(gateway, id) {
    Object.assign(this, { gateway, id });
  }

  get unacknowledged() {
    return this.#sent.length - this.#acked;
  }

  canResume({ token, epoch, received = this.#acked }) {
    return this.tokens.slice(-2).includes(token) && this.epochs.includes(epoch) && received >= this.#acked
      && received <= this.#sent.length;
  }

  attach(link, hello) {
    if (this.link && this.link !== link) this.link.hangUp();
    this.link = link;
    this.tokens.push(`t${this.tokens.length}`);
    this.epochs = [this.gateway.epoch];
    if (hello && hello.received === undefined) this.#startAnew();
    else if (hello) this.#acked = hello.received;
    this.#written = this.#acked;
    link.deliver(frames.control('welcome', {
      session: this.id, token: this.tokens.at(-1), epoch: this.gateway.epoch, resumed: Boolean(hello),
      received: this.received, grace: 15000, message: 8000, window: WINDOW,
    }));
    this.flush();
  }

  // The page was loaded anew.
  #startAnew() {
    for (const log of this.channels.values()) log.over = true;
    this.channels.clear();
    this.received = this.#acked = 0;
    this.#sent = [];
  }

  /** The process goes; what it knows goes to the next one. */
  park() {
    for (const log of this.channels.values()) {
      if (!log.over) this.#over(log, frames.control('close', { code: 1012, reason: 'restart' }, log.number));
    }
    this.link?.cut();
    this.link = null;
  }

  push(frame) {
    this.#sent.push(frame);
    this.flush();
  }

  flush() {
    if (!this.link) return;
    for (; this.#written < this.#sent.length; this.#written++) this.link.deliver(this.#sent[this.#written]);
  }

  receive(data) {
    const frame = frames.decode(data);
    if (frame.kind === 'bye') return;
    if (frame.kind === 'ack') {
      this.gateway.check(frame.count >= this.#acked && frame.count <= this.#written, `ack ${frame.count}`);
      this.#acked = frame.count;
      return;
    }
    this.received += 1;
    if (this.received % 4 === 0) this.link.deliver(frames.ack(this.received));
    else this.gateway.clock.setTimeout(() => this.link?.deliver(frames.ack(this.received)), 500);
    this.#numbered(frame);
  }

  #numbered({ kind, channel, fields, text, data, more }) {
    if (kind === 'open') {
      this.gateway.check(!this.channels.has(channel), `channel ${channel} opened twice`);
      const log = this.gateway.logs.get(fields.url);
      this.channels.set(channel, log);
      Object.assign(log, { number: channel, session: this, credit: WINDOW, used: 0, parts: [], rest: [] });
      if (log.refused) this.#over(log, frames.control('refuse', { status: 403, reason: 'no' }, channel));
      else this.push(frames.control('accept', { protocol: '' }, channel));
      return;
    }
    const log = this.channels.get(channel);
    this.gateway.check(log, `a frame for the unknown channel ${channel}`);
    if (log.over) return;
    if (kind === 'close') this.#over(log, frames.control('close', fields, channel));
    else this.#message(log, text ?? data, more);
  }

  #message(log, data, more) {
    const cost = frames.sizeOf(data) + FRAME_COST;
    this.gateway.check(log.credit > 0, `${log.path} has sent more than it may`);
    log.credit -= cost;
    log.used += cost;
    this.gateway.clock.setTimeout(() => this.#grant(log), this.gateway.chance.below(2000));
    log.parts.push(data);
    if (more) return;
    const isText = typeof data === 'string';
    log.atServer.push(isText ? log.parts.join('') : `bytes ${log.parts.map(String).filter(Boolean).join(',')}`);
    log.parts = [];
  }

  #grant(log) {
    if (log.over || !log.used) return;
    log.credit += log.used;
    this.push(frames.control('grant', { bytes: log.used }, log.number));
    log.used = 0;
  }

  #over(log, frame) {
    log.over = true;
    this.push(frame);
  }
}

/** Records, in `logs`, what every channel's application has heard and said, by the URL's path. */
export class ModelGateway {
  isDown = false;
  sessions = new Map();
  logs = new Map();
  problems = [];
  #made = 0;
  #lives = 0;

  constructor(clock, chance) {
    Object.assign(this, { clock, chance });
  }

  get epoch() {
    return `e${this.#lives}`;
  }

  check(holds, problem) {
    if (!holds) this.problems.push(problem);
  }

  accept(link) {
    let session = null;
    return {
      receive: (data) => {
        if (session) return session.link === link && session.receive(data);
        session = this.#greet(link, frames.decode(data));
        return undefined;
      },
      gone: () => {
        if (session?.link === link) session.link = null;
      },
    };
  }

  #greet(link, { kind, fields }) {
    // A goodbye or an ack of a connection that was given up before its welcome.
    if (kind !== 'hello') return this.check(false, `${kind} before hello`);
    const known = this.sessions.get(fields.session);
    const resumes = known?.canResume(fields);
    const session = resumes ? known : new ModelSession(this, `s${++this.#made}`);
    this.sessions.set(session.id, session);
    session.attach(link, resumes ? fields : null);
    return session;
  }

  /** Restart with what the store has kept; away for `ms`. */
  restart(ms) {
    if (this.isDown) return;
    this.#lives += 1;
    for (const session of this.sessions.values()) session.park();
    this.isDown = true;
    this.clock.setTimeout(() => (this.isDown = false), ms);
  }

  /** Restart, or the end of the grace: nothing is known any more. */
  forget() {
    for (const { link } of this.sessions.values()) link?.hangUp();
    for (const log of this.logs.values()) log.over ||= log.number !== null;
    this.sessions.clear();
  }

  /** End every session in good order. */
  end(retry) {
    for (const { link } of this.sessions.values()) {
      link?.deliver(frames.control('end', { code: 1001, reason: 'over', retry }));
    }
    this.forget();
  }

  /** Say `text` in pieces; the last `held` of them come with the next message, or with finish(). */
  say(log, pieces, held = 0) {
    if (log.over || log.number === null) return;
    this.finish(log);
    const frameOf = (piece, i) => frames.text(log.number, piece, i < pieces.length - 1);
    log.rest = pieces.map(frameOf);
    log.saying = pieces.join('');
    this.#sendRest(log, held);
  }

  finish(log) {
    if (!log.over && log.rest?.length) this.#sendRest(log, 0);
  }

  #sendRest(log, held) {
    while (log.rest.length > held) log.session.push(log.rest.shift());
    if (!held) log.fromServer.push(log.saying);
  }

  drop(log, count) {
    if (log.over || log.number === null) return;
    this.finish(log);
    log.fromServer.push(`dropped ${count}`);
    log.session.push(frames.control('dropped', { messages: count }, log.number));
  }

  hangUp(log) {
    if (log.over || log.number === null) return;
    log.over = true;
    log.session.push(frames.control('close', { code: 4000 }, log.number));
  }
}
