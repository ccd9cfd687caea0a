// One Engine.IO connection of engine.io-client, as a link that a session can use.
// Decides when a WebSocket is probed and when a probe or an upgrade has failed.
// Knows nothing of frames: what it carries is a list of texts and bytes.

import { PROBE_MS, WHY } from './choice.js';
import { ACK_SPARE_BYTES } from './replay.js';

/** From `2probe` to the end of the upgrade: the poll under way must return, and a POST with it. */
export const UPGRADE_MS = 10_000;

// Hand over no more while the browser holds this much that the network has not taken.
const SOCKET_BUFFER_BYTES = 1024 * 1024;
const SOCKET_POLL_MS = 20;

// One POST after the other: a batch takes 4 s at 500 kbit/s, so that a pong does not wait too long,
// and 600 ms of round trip still leave 3 Mbit/s. A single message may be larger.
const POST_BYTES = 256 * 1024;

// What a proxy answers while it has no way to the gateway, or has waited too long, and when to ask it
// again; once, and then the connection is given up.
const PASSING = new Set([502, 503, 504]);
const REPEAT_MS = 100;

// A page that was busy or asleep sees its timers first: the answer may wait behind them.
const LATE_MS = 500;

/**
 * The two transports, made from engine.io-client's (`XHR` and `WebSocket`, or the Node variants).
 * `opts.watch` of each connection carries what they share with its link.
 */
export function createTransports({ XHR, WebSocket }, clock) {
  class Poll extends XHR {
    #requests = new Set();

    request(options) {
      const request = super.request(options);
      this.#requests.add(request);
      request.on('success', () => this.#requests.delete(request));
      request.on('error', () => this.#requests.delete(request));
      if (options) request.on('data', (answer) => this.#checkPost(answer));
      this.#repeat(request);
      return request;
    }

    // One bad moment of a proxy ends nothing: the gateway knows a request that comes twice.
    #repeat(request) {
      request._onError = (status) => {
        delete request._onError;
        if (!PASSING.has(status)) return request._onError(status);
        request._cleanup();
        return clock.setTimeout(() => {
          if (this.#requests.has(request)) request._create();
        }, REPEAT_MS);
      };
    }

    // Whoever answers a POST with a page has not handed it on.
    #checkPost(answer) {
      if (looksLikeHtml(answer)) this.onError('not an answer to a POST', 'html');
    }

    onData(data) {
      // A login page, or a captive portal, answers 200 and HTML. Engine.IO packets start 0-6 or b.
      if (/^[0-6b]/.test(data)) super.onData(data);
      else this.onError('not an Engine.IO payload', looksLikeHtml(data) ? 'html' : 'foreign');
    }

    // engine.io-client would POST a close packet, and leave a hanging GET to hold one of the six
    // connections that a browser has for a host.
    doClose() {
      if (this.opts.watch.polite) super.doClose();
      else this.abort();
    }

    abort() {
      for (const request of this.#requests) request._cleanup(true);
      this.#requests.clear();
    }
  }

  class Upgrade extends WebSocket {
    #timer = null;

    doOpen() {
      const { watch } = this.opts;
      watch.probe = this;
      watch.failure = 'refused';
      this.#expect(PROBE_MS, true);
      this.once('packet', () => clock.clearTimeout(this.#timer));
      super.doOpen();
    }

    #expect(wait, patient) {
      const due = clock.now() + wait;
      this.#timer = clock.setTimeout(() => {
        if (patient && clock.now() - due > LATE_MS) return this.#expect(LATE_MS, false);
        this.opts.watch.failure = 'silent';
        return this.onError('no answer to the probe');
      }, wait);
    }

    createSocket(uri, protocols, options) {
      const { watch } = this.opts;
      watch.deaf = watch.blocked();
      return watch.deaf ? deafSocket() : super.createSocket(uri, protocols, options);
    }

    doClose() {
      clock.clearTimeout(this.#timer);
      super.doClose();
    }
  }

  return [Poll, Upgrade];
}

const looksLikeHtml = (data) => /^\s*</.test(data);

/** What a WebSocket is behind a firewall that drops its packets: it never says anything. */
const deafSocket = () => ({ binaryType: '', bufferedAmount: 0, send() {}, close() {} });

/** The reason of `gateway:lost` for a close of engine.io-client; see docs/client.md. */
export function reasonOf(cause, detail) {
  if (cause === 'ping timeout') return 'silence';
  const status = detail?.description;
  if (status === 'network connection lost') return 'offline';
  if (status === 'html' || status === 401 || status === 403) return 'sign-in';
  return status === 'foreign' || status >= 400 ? 'server' : 'network';
}

// The close code of a gateway that has not heard us in time: see gateway/protocol/reasons.py.
const NOT_HEARD = 4001;

/** Did the connection end by a close frame, or by our own word, rather than by an accident? */
const isOrderly = (detail) =>
  detail?.description === 'network connection lost' ||
  (detail?.context?.wasClean === true && detail.context.code !== NOT_HEARD);

export class Link {
  #engine;
  #handlers;
  #choice;
  #clock;
  #beacon;
  #online;
  #watch;
  #shaking = true;
  #over = false;
  #offersWebSocket = false;
  #upgradedAt = null;
  #heardAt = 0;
  #patience = 0;
  #timers = new Set();
  #probing = false;
  transport = 'polling';
  why = '';
  maxPayload = undefined;

  /** `create(options)` makes the engine.io-client Socket; `beacon(url, text)` is sendBeacon. */
  constructor({ create, choice, clock, beacon, blocked, online = () => true }, handlers) {
    this.#handlers = handlers;
    this.#choice = choice;
    this.#clock = clock;
    this.#beacon = beacon;
    this.#online = online;
    this.#watch = { polite: false, probe: null, failure: '', deaf: false, blocked };
    // When a WebSocket is probed is our decision, not engine.io-client's.
    this.#engine = create({ upgrade: false, watch: this.#watch });
    this.#engine.binaryType = 'arraybuffer';
    this.#listen();
  }

  /** May a batch be handed over? If not, `handlers.drain()` will say when. */
  get writable() {
    return this.#engine.writeBuffer.length === 0;
  }

  /** Bytes that one batch may have. */
  get budget() {
    if (this.transport === 'websocket') return SOCKET_BUFFER_BYTES;
    return Math.min(POST_BYTES, (this.maxPayload ?? POST_BYTES) - ACK_SPARE_BYTES);
  }

  /** Send messages, in order, in one POST when on polling. */
  send(messages) {
    const last = messages.at(-1);
    const rest = messages.slice(0, -1);
    // send() writes at once what it is given: the first of many would travel alone.
    this.#engine.writeBuffer.push(...rest.map((data) => ({ type: 'message', data, options: {} })));
    this.#engine.send(last);
  }

  /** Try a WebSocket now, whatever was learned, unless one is in use or being tried. */
  probe() {
    if (this.#over || this.transport === 'websocket' || !this.#offersWebSocket) return;
    // One that the tab's own switch has made deaf will not answer, though the switch is off now.
    if (this.#probing && this.#watch.deaf) this.#watch.probe.onError('deaf');
    if (this.#probing) return;
    this.#choice.forgive();
    this.#say('polling', WHY.trying);
    this.#startProbe();
  }

  /** The page is going: `message` must leave now, without waiting for anything. */
  leave(message) {
    const { transport } = this.#engine;
    if (this.transport === 'websocket') transport.send([{ type: 'message', data: message }]);
    else this.#beacon(transport.uri(), `4${message}`);
  }

  /** End the connection in good order, after `message`. */
  end(message) {
    this.#finish();
    this.#watch.polite = true;
    this.#engine.send(message);
    this.#engine.close();
  }

  /** Give the connection up: nothing more is sent, requests under way are cut. */
  drop() {
    if (this.#over) return;
    this.#finish();
    // Not engine.close(): that one waits for what is still to be written.
    const { transport } = this.#engine;
    transport.abort?.();
    transport.emit('close', { description: 'dropped' });
    this.#watch.probe?.close();
  }

  #listen() {
    const on = (event, handler) =>
      this.#engine.on(event, (...details) => {
        if (!this.#over) handler(...details);
      });
    on('handshake', (handshake) => this.#shaken(handshake));
    on('open', () => this.#opened());
    on('packet', () => {
      this.#heardAt = this.#clock.now();
    });
    on('message', (data) => this.#handlers.frame(data));
    on('drain', () => this.#drained());
    on('upgrading', () => this.#after(UPGRADE_MS, () => this.#probeFailed('stalled')));
    on('upgrade', () => this.#upgraded());
    on('upgradeError', () => this.#probeFailed(this.#watch.deaf ? 'blocked' : this.#watch.failure));
    on('close', (cause, detail) => this.#closed(cause, detail));
  }

  #shaken({ upgrades, maxPayload, pingInterval, pingTimeout }) {
    this.maxPayload = maxPayload;
    this.#patience = pingInterval + pingTimeout;
    this.#offersWebSocket = upgrades.includes('websocket');
    this.#choice.reached();
    this.why = this.#offersWebSocket ? this.#choice.why : WHY.notOffered;
  }

  #opened() {
    this.#shaking = false;
    this.#handlers.open();
    if (this.#over || !this.#offersWebSocket) return;
    if (this.#choice.wait === 0) this.#startProbe();
    else this.#probeLater();
  }

  #startProbe() {
    if (this.#over) return;
    this.#probing = true;
    this.#engine._probe('websocket');
  }

  #probeLater() {
    this.#after(this.#choice.wait, () => this.probe());
  }

  #upgraded() {
    this.#probing = false;
    this.#upgradedAt = this.#clock.now();
    this.#clearTimers();
    this.#say('websocket', WHY.works);
  }

  #probeFailed(how) {
    if (!this.#probing) return;
    this.#probing = false;
    const upgrading = this.#engine.upgrading;
    const why = this.#choice.failed(upgrading ? 'stalled' : how);
    this.#watch.probe?.close();
    // engine.io-client has paused its polling for the upgrade and does not take it up again.
    if (upgrading) this.#lose('network');
    else this.#say('polling', why);
    if (!this.#over) this.#probeLater();
  }

  #drained() {
    const held = this.#watch.probe?.ws?.bufferedAmount ?? 0;
    if (this.transport === 'websocket' && held > SOCKET_BUFFER_BYTES) {
      this.#after(SOCKET_POLL_MS, () => this.#drained());
    } else this.#handlers.drain();
  }

  #closed(cause, detail) {
    if (this.#shaking) this.#choice.missed();
    if (this.#upgradedAt !== null && !isOrderly(detail)) {
      this.#choice.died(this.#aliveUntil(cause, detail) - this.#upgradedAt);
    }
    this.#finish();
    const reason = reasonOf(cause, detail);
    this.#handlers.closed(reason === 'network' && !this.#online() ? 'offline' : reason);
  }

  // Silence is noticed late, on either side; what counts is for how long the connection was alive.
  #aliveUntil(cause, detail) {
    if (cause === 'ping timeout') return this.#heardAt;
    const deaf = detail?.context?.code === NOT_HEARD;
    return this.#clock.now() - (deaf ? this.#patience : 0);
  }

  #lose(reason) {
    this.drop();
    this.#handlers.closed(reason);
  }

  #say(transport, why) {
    this.transport = transport;
    this.why = why;
    this.#handlers.transport(transport, why);
  }

  #finish() {
    this.#over = true;
    this.#clearTimers();
  }

  #after(delay, callback) {
    const timer = this.#clock.setTimeout(() => {
      this.#timers.delete(timer);
      callback();
    }, delay);
    this.#timers.add(timer);
  }

  #clearTimers() {
    for (const timer of this.#timers) this.#clock.clearTimeout(timer);
    this.#timers.clear();
  }
}

/**
 * The options of engine.io-client for an endpoint, a URL such as `https://host/_gateway/engine/`.
 */
export function engineOptions(endpoint, credentials) {
  const { hostname, port, protocol, pathname } = new URL(endpoint);
  return {
    // engine.io-client puts the brackets of an IPv6 address around it by itself.
    hostname: hostname.replace(/^\[|\]$/g, ''),
    port,
    secure: protocol === 'https:',
    path: pathname,
    withCredentials: credentials,
    // Every poll needs a URL of its own: some caches ignore no-store. On polling it is always so. And
    // the gateway knows by it a request that a browser or a proxy has sent again by itself.
    timestampParam: 'once',
  };
}
