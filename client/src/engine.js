// One Engine.IO connection of engine.io-client, as a link that a session can use.
// Decides when a WebSocket is probed and when a probe or an upgrade has failed.
// Knows nothing of frames: what it carries is a list of texts and bytes.

import { PROBE_MS, WHY } from './choice.js';
import { utf8Length } from './frames.js';
import { SLOW_MS, smaller } from './limits.js';
import { ACK_SPARE_BYTES } from './replay.js';

/** From `2probe` to the end of the upgrade: the poll under way must return, and a POST with it. */
export const UPGRADE_MS = 10_000;

// Hand over no more while the browser holds this much that the network has not taken.
const SOCKET_BUFFER_BYTES = 1024 * 1024;
const SOCKET_POLL_MS = 20;

// POSTs under way at once, so that a long round trip does not starve an upload. A browser has six connections
// for a host: one has a GET, and one is left for pongs and the page. A network that is slow for one POST is
// busy enough.
const LANES = 4;
// A batch that is smaller waits until nothing is under way, and so does not cost a request of its own.
const ENOUGH_BYTES = 16 * 1024;

const TOO_LARGE = 413;

// How often a request is sent again, with growing pauses, before the connection is given up.
const REPEATS = 3;
const REPEAT_FOR_MS = 6000;
const PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 1600;

// How long to wait for an answer, or four round trips where that is longer: of a GET beyond its hold; of a POST,
// beyond its size; for the handshake, where no round trip is known yet, and where one is. A connection that was
// idle may be dead, and nobody has said so: a browser may have six of those, so they are given up early, and
// each try waits longer than the one before. And for the next piece of an answer that has begun.
const GET_MS = 1000;
const ROUND_TRIPS = 4;
const POST_MS = 1500;
// A network may be so many times slower than it was.
const RATES = 4;
const FIRST_SHAKE_MS = 2000;
const SHAKE_MS = 1000;
const LONGER = 1.5;
const STALL_MS = 5000;
// A GET comes back so long before the gateway would have something to say: its ping.
const LEAST_SILENCE_MS = 1000;

// In place of a status: there was no answer in time.
const LATE = null;
// No answer in time, or the gateway has not got all of it in time, or waits for the one before it.
const SLOW = [LATE, 408, 503];

// What a proxy answers while it has no way to the gateway, or has waited too long; 0 for no answer at all.
const mayPass = (status) =>
  [0, LATE, 408, 429, 502, 503, 504].includes(status) || (status >= 520 && status < 530);

// A page that was busy or asleep sees its timers first: the answer may wait behind them.
const LATE_MS = 500;

/**
 * The two transports, made from engine.io-client's: what its XHR is made from, and its WebSocket, or the one
 * for Node. `opts.watch` of each connection carries what they share with its link.
 */
export function createTransports({ Polling, WebSocket }, clock) {
  class Poll extends Polling {
    #asked = new Set();
    #gets = 0;
    #posts = 0;
    // The POSTs under way, oldest first: the bytes of each number, and a mark for each pong.
    #open = new Map();
    #encodes = false;
    #lanes = LANES;
    #heardAt = 0;
    #paused = null;

    /** Is a POST under way? */
    get busy() {
      return this.#open.size > 0;
    }

    doPoll() {
      const { limits, most } = this.opts.watch;
      const number = this.query.sid ? ++this.#gets : 0;
      const asked = limits.answer;
      let room = asked;
      let isCut = false;
      let hold;
      this.#ask({
        next: (tries) => {
          const wait = (least) => Math.max(least, ROUND_TRIPS * limits.roundTrip);
          if (!number) return ['', wait(limits.roundTrip ? SHAKE_MS : FIRST_SHAKE_MS) * LONGER ** tries];
          hold = Math.min(limits.hold, most);
          return [`&n=${number}&hold=${hold}&max=${room}`, hold + wait(GET_MS)];
        },
        failed: (status, waited, tries) => {
          // Until the session gives up its attempt.
          if (!number && status === LATE) return true;
          if (!number) return status > 0 && tries === 1 ? undefined : false;
          if (tries === 1) limits.lost(waited);
          room = smaller(room);
          isCut ||= !status || tries > 1;
          return undefined;
        },
        answered: (answer, took, tries) => {
          if (!number) limits.roundTrip = took;
          else if (isCut && answer.length * 2 > room) limits.cut(asked);
          else if (answer === NOTHING && !tries && took >= hold) limits.held(most);
          limits.arrived(answer.length);
          this.onData(answer);
        },
      });
    }

    // A pong waits behind no message.
    onPacket(packet) {
      if (packet.type === 'ping') this.#pong();
      super.onPacket(packet);
    }

    write(packets) {
      const rest = packets.filter(({ type }) => type !== 'pong');
      this.#encodes = rest.length > 0;
      if (this.#encodes) return super.write(rest);
      this.writable = false;
      return clock.soon(() => this.#ready());
    }

    #pong() {
      const mark = {};
      this.#open.set(mark, 0);
      const done = () => this.#done(mark);
      // Without a number: it is no message, and may come twice, or out of its turn.
      this.#ask({ next: (tries) => ['', this.#patience(tries, this.#bytesUnderWay), PONG], failed() {}, answered: done, lost: done });
    }

    doWrite(payload) {
      this.#encodes = false;
      this.#open.set(++this.#posts, 0);
      this.#post(this.#posts, payload.split(SEPARATOR), 0);
      // Not before engine.io-client has noted what it has written.
      clock.soon(() => this.#ready());
    }

    // What a proxy finds too large goes in parts: `skip` packets of the POST have gone before.
    #post(number, packets, skip) {
      const { limits } = this.opts.watch;
      let count;
      let bytes;
      let underWay;
      let isAlone = false;
      const isOldest = () => number === this.#open.keys().next().value;
      this.#ask({
        next: (tries) => {
          // A slow line that was given too much at once would never get any of it through.
          if (isAlone && !isOldest()) return null;
          [count, bytes] = measure(packets, skip, limits.post);
          this.#open.set(number, bytes);
          underWay = isAlone ? bytes : this.#bytesUnderWay;
          // What follows beside it shares the network, too.
          const expected = Math.max(underWay, bytes * this.#lanes);
          const end = skip + count;
          const query = `&n=${number}&skip=${skip}${end < packets.length ? '&more=1' : ''}`;
          return [query, this.#patience(tries, expected), packets.slice(skip, end).join(SEPARATOR)];
        },
        failed: (status, waited, tries, since) => {
          if (status === TOO_LARGE) return count > 1 && limits.refused(bytes);
          isAlone = SLOW.includes(status);
          if (status) return undefined;
          limits.slow();
          // Others may have waited for their turn; and where nothing at all comes through, it is not the size.
          const enough = waited > REPEAT_FOR_MS ? 1 : status === LATE ? 2 : REPEATS;
          const isOdd = tries >= enough && this.#heardAt > since - waited;
          if (isOdd && isOldest()) limits.refused(bytes);
          return undefined;
        },
        answered: (answer, took) => {
          if (answer !== 'ok') return this.#foreign(answer);
          if (bytes < ENOUGH_BYTES) limits.roundTrip = took;
          else limits.sent(underWay, took);
          if (skip + count < packets.length) return this.#post(number, packets, skip + count);
          this.#lanes = took < SLOW_MS ? LANES : 1;
          return this.#done(number);
        },
      });
    }

    get #bytesUnderWay() {
      return [...this.#open.values()].reduce((sum, bytes) => sum + bytes, 0);
    }

    #patience(tries, bytes) {
      const { roundTrip, rate } = this.opts.watch.limits;
      const least = Math.max(POST_MS, ROUND_TRIPS * roundTrip);
      return (least + (RATES * bytes) / rate) * LONGER ** tries;
    }

    #done(mark) {
      this.#open.delete(mark);
      this.#ready();
      this.#pauseIfQuiet();
    }

    // Also when it was ready before: something small may have waited for a POST to end.
    #ready() {
      if (this.#encodes || this.#open.size >= this.#lanes) return;
      this.writable = true;
      this.emitReserved('drain');
    }

    // engine.io-client's own waits for one POST. Here the last of all must have been answered.
    pause(onPause) {
      this.readyState = 'pausing';
      this.#paused = onPause;
      this.on('pollComplete', () => this.#pauseIfQuiet());
      this.#pauseIfQuiet();
    }

    #pauseIfQuiet() {
      if (this.readyState !== 'pausing' || this._polling || this.busy) return;
      this.readyState = 'paused';
      this.#paused();
    }

    /**
     * One request, sent again until it is answered, because the gateway knows a number that comes twice.
     * `next(tries)` is what to send, as `[query, wait, body]`: wait so many ms for an answer, or for its next piece;
     * null: not yet.
     * `failed` hears of each failure; it returns whether to send it again, or undefined: the status decides.
     * `lost` hears the last.
     */
    #ask({ next, failed, answered, lost = (status) => this.onError('a request failed', status) }) {
      const ask = {};
      let tries = 0;
      let since = 0;
      const attempt = () => {
        const request = next(tries);
        if (!request) return (ask.timer = clock.setTimeout(attempt, PAUSE_MS));
        const [query, wait, body] = request;
        const began = clock.now();
        const xhr = new XMLHttpRequest();
        const expect = (delay) => {
          clock.clearTimeout(ask.timer);
          ask.timer = clock.setTimeout(() => fail(LATE), delay);
        };
        const end = (report) => {
          if (ask.xhr !== xhr) return;
          this.#drop(ask);
          report(clock.now() - began);
        };
        const fail = (status) =>
          end((waited) => {
            if (!tries++) since = clock.now();
            const isOver = tries >= REPEATS && clock.now() - since > REPEAT_FOR_MS;
            const again = failed(status, waited, tries, since) ?? (mayPass(status) && !isOver);
            if (!again) return lost(status);
            // There was a pause already.
            const pause = status === LATE ? PAUSE_MS : Math.min(PAUSE_MS << (tries - 1), LONGEST_PAUSE_MS);
            if (status === TOO_LARGE) tries = 0;
            this.#asked.add(ask);
            return (ask.timer = clock.setTimeout(attempt, pause));
          });
        ask.xhr = xhr;
        xhr.open(body === undefined ? 'GET' : 'POST', this.uri() + query);
        xhr.withCredentials = this.opts.withCredentials;
        xhr.onprogress = () => ask.xhr === xhr && expect(STALL_MS);
        xhr.onload = () => {
          // A browser forgets the answer when the request is dropped.
          const { status, responseText } = xhr;
          if (status === 200) this.#heardAt = clock.now();
          if (status === 200) end((took) => answered(responseText, took, tries));
          else fail(status);
        };
        xhr.onerror = () => fail(0);
        xhr.send(body);
        return expect(wait);
      };
      this.#asked.add(ask);
      attempt();
    }

    #drop(ask) {
      const { xhr } = ask;
      this.#asked.delete(ask);
      clock.clearTimeout(ask.timer);
      ask.xhr = null;
      xhr?.abort();
    }

    // Whoever answers with a page, or anything else, has not handed it on: a login, or a captive portal.
    #foreign(answer) {
      this.onError('not an answer of the gateway', looksLikeHtml(answer) ? 'html' : 'foreign');
    }

    onData(data) {
      // Engine.IO packets start 0-6 or b.
      if (/^[0-6b]/.test(data)) super.onData(data);
      else this.#foreign(data);
    }

    // engine.io-client would POST a close packet, and leave a hanging GET to hold one of the six
    // connections that a browser has for a host.
    doClose() {
      if (this.opts.watch.polite) super.doClose();
      else this.abort();
    }

    abort() {
      for (const ask of this.#asked) this.#drop(ask);
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

const SEPARATOR = '\x1e';
const NOTHING = '6';
const PONG = '3';

/** How many packets from `start` on fit into `limit` bytes, one at the least, and how many bytes they are. */
function measure(packets, start, limit) {
  let bytes = -1;
  for (let i = start; i < packets.length; i++) {
    const size = utf8Length(packets[i]) + 1;
    if (i > start && bytes + size > limit) return [i - start, bytes];
    bytes += size;
  }
  return [packets.length - start, bytes];
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
    const { limits } = choice;
    this.#watch = { polite: false, probe: null, failure: '', deaf: false, blocked, limits, most: Infinity };
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
    return Math.min(this.#watch.limits.batch, (this.maxPayload ?? Infinity) - ACK_SPARE_BYTES);
  }

  /** Send messages, in order, in one POST when on polling. */
  send(messages) {
    const engine = this.#engine;
    let bytes = 0;
    for (const data of messages) {
      bytes += data.length;
      engine.writeBuffer.push({ type: 'message', data, options: {} });
    }
    if (bytes >= ENOUGH_BYTES || !engine.transport.busy) engine.flush();
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
    this.#watch.most = Math.max(pingInterval - LEAST_SILENCE_MS, pingInterval / 2);
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
    // One that is paused for an upgrade is not closed by engine.io-client.
    this.#engine.transport?.abort?.();
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
  };
}
