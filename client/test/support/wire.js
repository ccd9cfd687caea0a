// A scripted gateway for session tests: connections that are made, answered and lost by hand.

import { decode } from '../../src/frames.js';

export class FakeLink {
  writable = true;
  budget = 1000;
  maxPayload = 2000;
  transport = 'polling';
  why = 'test';
  sent = [];
  ended = null;
  left = null;
  dropped = false;
  probes = 0;
  #handlers;

  constructor(handlers) {
    this.#handlers = handlers;
  }

  send(frames) {
    this.sent.push(...frames);
    this.writable = false;
  }

  leave(frame) {
    this.left = frame;
  }

  end(frame) {
    this.ended = frame;
  }

  drop() {
    this.dropped = true;
  }

  probe() {
    this.probes += 1;
  }

  /** All that was sent since the last look. */
  read() {
    return this.sent.splice(0);
  }

  drain() {
    this.writable = true;
    this.#handlers.drain();
  }

  open() {
    this.#handlers.open();
    this.writable = true;
  }

  receive(...frames) {
    for (const frame of frames) this.#handlers.frame(frame);
  }

  close(reason = 'network') {
    this.#handlers.closed(reason);
  }

  become(transport, why) {
    this.transport = transport;
    this.why = why;
    this.#handlers.transport(transport, why);
  }

  /** The hello that this connection has sent, decoded. */
  hello() {
    return decode(this.read()[0]).fields;
  }
}

export class FakeNetwork {
  links = [];

  connect = (handlers) => {
    const link = new FakeLink(handlers);
    this.links.push(link);
    return link;
  };

  get link() {
    return this.links.at(-1);
  }
}

export const welcome = (fields = {}) =>
  `W${JSON.stringify({
    session: 's1',
    token: 't1',
    epoch: 'e1',
    resumed: false,
    received: 0,
    grace: 15000,
    ...fields,
  })}`;
