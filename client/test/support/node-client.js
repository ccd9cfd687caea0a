// The client's parts put together for Node: real engine.io-client, real timers.

import './xhr.js';
import { NodeWebSocket, Socket, XHR } from 'engine.io-client';
import { Choice, Memory } from '../../src/choice.js';
import { Link, createTransports, engineOptions } from '../../src/engine.js';
import { Session } from '../../src/session.js';

export const clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  setTimeout: (callback, delay) => setTimeout(callback, delay),
  clearTimeout: (timer) => clearTimeout(timer),
  soon: (callback) => queueMicrotask(callback),
};

// The package names only what is made from it.
const Polling = Object.getPrototypeOf(Object.getPrototypeOf(XHR));
const transports = createTransports({ Polling, WebSocket: NodeWebSocket }, clock);

/** A session against 127.0.0.1:port, with what it told and a way to wait for it. */
export function createClient(port, { resume } = {}) {
  const endpoint = `http://127.0.0.1:${port}/_gateway/engine/`;
  const switches = { blocked: false };
  const store = new Map();
  const storage = {
    getItem: (key) => store.get(key) ?? null,
    setItem: (key, value) => store.set(key, value),
    removeItem: (key) => store.delete(key),
  };
  const choice = new Choice({ endpoint, memory: new Memory(() => storage), wall: clock.wall });
  const beacons = [];
  const parts = {
    create: (options) => new Socket({ ...engineOptions(endpoint, false), transports, ...options }),
    choice,
    clock,
    beacon: (url, text) => beacons.push([url, text]),
    blocked: () => switches.blocked,
  };
  const told = [];
  const waiters = new Set();
  const wake = () => {
    for (const waiter of waiters) waiter();
  };
  const links = [];
  const session = new Session({
    connect: (handlers) => {
      const link = new Link(parts, handlers);
      links.push(link);
      return link;
    },
    clock,
    resume,
    tell: (type, detail) => {
      told.push([type, detail]);
      wake();
    },
  });
  const until = (condition) =>
    new Promise((resolve) => {
      const look = () => {
        if (!condition()) return;
        waiters.delete(look);
        resolve();
      };
      waiters.add(look);
      look();
    });
  const open = () => {
    const heard = [];
    const ends = [];
    const hear = (list) => (value) => {
      list.push(value);
      wake();
    };
    const sink = { accept: () => wake(), message: hear(heard), close: hear(ends) };
    const channel = session.open({ url: '/echo', protocols: [], sink });
    return { channel, heard, ends };
  };
  const close = () => session.hide();
  return { session, choice, switches, told, links, beacons, store, until, open, close };
}
