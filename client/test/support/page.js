// A page for socket tests: Node's own classes, one fake session, tasks that run when told.

import { sizeOf } from '../../src/frames.js';
import { defineGatewaySocket } from '../../src/socket.js';

// Node 20 has no CloseEvent.
class CloseEvent extends Event {
  constructor(type, { code, reason, wasClean }) {
    super(type);
    Object.assign(this, { code, reason, wasClean });
  }
}

/** A session that records what sockets do with their channels. */
export class FakeSession {
  opened = [];

  open(request) {
    const channel = new FakeChannel(request);
    this.opened.push(channel);
    return channel;
  }
}

class FakeChannel {
  sent = [];
  flushes = [];
  closedWith = null;
  failed = false;

  constructor({ url, protocols, sink }) {
    Object.assign(this, { url, protocols, sink });
  }

  send(data, flushed) {
    this.sent.push(data);
    this.flushes.push(() => flushed(sizeOf(data)));
  }

  close(fields) {
    this.closedWith = fields;
  }

  fail() {
    this.failed = true;
  }

  flush() {
    for (const flushed of this.flushes.splice(0)) flushed();
  }
}

export function createPage(base = 'https://example.com/dir/page?q#f') {
  const session = new FakeSession();
  const urls = [];
  const tasks = [];
  const gaps = [];
  const GatewaySocket = defineGatewaySocket({
    DOMException,
    EventTarget,
    Event,
    MessageEvent,
    CloseEvent,
    Blob,
    baseUrl: () => base,
    sessionFor: (url) => {
      urls.push(url.href);
      return session;
    },
    pathOf: ({ pathname, search }) => pathname + search,
    gap: (url, dropped) => gaps.push([url.href, dropped]),
    task: (callback) => tasks.push(callback),
  });
  /** Run the tasks that wait; returns how many there were. */
  const run = (limit = Infinity) => {
    let count = 0;
    while (tasks.length && count < limit) {
      tasks.shift()();
      count += 1;
    }
    return count;
  };
  return { GatewaySocket, session, urls, gaps, run, CloseEvent };
}
