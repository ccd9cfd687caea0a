// A gateway of docs/protocol.md and a network that misbehaves, on a clock that only the test moves.
// Every frame takes its time; connections are cut with frames under way, or fall silent.

import * as frames from '../../src/frames.js';

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
  maxPayload = 5000;
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
    this.#later('toClient', () => this.handlers.open());
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

  canResume({ token, epoch, received }) {
    return this.tokens.slice(-2).includes(token) && epoch === 'e' && received >= this.#acked
      && received <= this.#sent.length;
  }

  attach(link, hello) {
    if (this.link && this.link !== link) this.link.hangUp();
    this.link = link;
    this.tokens.push(`t${this.tokens.length}`);
    if (hello) this.#acked = hello.received;
    this.#written = this.#acked;
    const resumed = Boolean(hello);
    link.deliver(frames.control('welcome', {
      session: this.id, token: this.tokens.at(-1), epoch: 'e', resumed, received: this.received, grace: 15000,
    }));
    this.flush();
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

  #numbered({ kind, channel, fields, text, data }) {
    if (kind === 'open') {
      this.gateway.check(!this.channels.has(channel), `channel ${channel} opened twice`);
      const log = this.gateway.logs.get(fields.url);
      this.channels.set(channel, log);
      log.number = channel;
      log.session = this;
      if (log.refused) this.#over(log, frames.control('refuse', { status: 403, reason: 'no' }, channel));
      else this.push(frames.control('accept', { protocol: '' }, channel));
      return;
    }
    const log = this.channels.get(channel);
    this.gateway.check(log, `a frame for the unknown channel ${channel}`);
    if (log.over) return;
    if (kind === 'close') this.#over(log, frames.control('close', fields, channel));
    else log.atServer.push(text ?? `bytes ${data}`);
  }

  #over(log, frame) {
    log.over = true;
    this.push(frame);
  }
}

/** Records, in `logs`, what every channel's application has heard and said, by the URL's path. */
export class ModelGateway {
  sessions = new Map();
  logs = new Map();
  problems = [];
  #made = 0;

  constructor(clock) {
    this.clock = clock;
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

  /** Restart, or the end of the grace: nothing is known any more. */
  forget() {
    for (const { link } of this.sessions.values()) link?.hangUp();
    for (const log of this.logs.values()) log.over ||= log.number !== null;
    this.sessions.clear();
  }

  /** End every session in good order. */
  end(retry) {
    for (const { link } of this.sessions.values()) {
      link?.deliver(frames.control('end', { code: 1012, reason: 'restart', retry }));
    }
    this.forget();
  }

  say(log, text) {
    if (log.over || log.number === null) return;
    log.fromServer.push(text);
    log.session.push(frames.text(log.number, text));
  }

  hangUp(log) {
    if (log.over || log.number === null) return;
    log.over = true;
    log.session.push(frames.control('close', { code: 4000 }, log.number));
  }
}
