// One session: many channels over one connection at a time, and over many connections in turn.
// Decides when to connect, what to replay, what to acknowledge, and when all is lost.
// Knows no transport and no DOM: connections, clock and chance are handed in.

import * as frames from './frames.js';
import { Channel, TOO_BIG } from './channel.js';
import { PART_BYTES, wireSize } from './queues.js';
import { ACK_SPARE_BYTES, Inbox, Outbox, flush } from './replay.js';

export const TIMING = Object.freeze({
  // From the start of an attempt to the welcome. Two lost packets of a TCP handshake cost 3 s.
  attemptMs: 10_000,
  // A thousand pages that lose one gateway come back by fours in a millisecond.
  firstRetryMs: 250,
  backoffMinMs: 250,
  backoffMs: 500,
  backoffMaxMs: 10_000,
  // A gateway that restarts has its pages back within its grace: so long we try more often.
  eagerMs: 15_000,
  eagerMaxMs: 2000,
  // A loss that is healed within this time is not worth a word to the user.
  quietMs: 1000,
  steadyMs: 1000,
  idleMs: 60_000,
});

/** What a page may queue while its connection is away. */
export const LOST_BUFFER_BYTES = 4 * 1024 * 1024;

const DEFAULT_MAX_PAYLOAD = 1_000_000;
const DEFAULT_MESSAGE_BYTES = 8 * 1024 * 1024;

const TOO_MUCH = { code: 1008, reason: 'too much was sent while the connection was lost' };

/**
 * Full jitter between the floor and a doubling ceiling, in ms; `attempt` counts failures from 1,
 * `random` is in [0, 1), `lostMs` is for how long there has been no connection. Attempt 0 is the first try after
 * a loss: at once, spread a little.
 */
export function retryDelay(attempt, random, lostMs) {
  if (attempt === 0) return Math.round(random * TIMING.firstRetryMs);
  const most = lostMs < TIMING.eagerMs ? TIMING.eagerMaxMs : TIMING.backoffMaxMs;
  const ceiling = Math.min(most, TIMING.backoffMs * 2 ** (attempt - 1));
  return Math.round(TIMING.backoffMinMs + random * (ceiling - TIMING.backoffMinMs));
}

/**
 * `connect(handlers)` starts one connection and returns a link: `send(frames)`,
 * `leave(frame)`, `end(frame)`, `drop()`, `writable`, `budget`, `maxPayload`, `transport`, `probe()`. It calls
 * `handlers.open()`, `.frame(data)`, `.drain()`, `.transport(name, why)` and, at most once and
 * last, `.closed(reason)`; after `end()` or `drop()` it calls none of them.
 *
 * `clock` has `now()`, `wall()`, `setTimeout`, `clearTimeout` and `soon(callback)`.
 * `resume`, `{session, token, epoch}`, is the session of a page that was here before.
 * `tell(type, detail)` hears 'lost', 'back', 'gap', 'gone', 'transport' and 'status'.
 */
export class Session {
  state = 'idle';
  transport = null;
  why = '';
  reason = '';
  retryAt = null;
  /** Bytes that one message may have. */
  messageBytes = DEFAULT_MESSAGE_BYTES;
  #connect;
  #random;
  #tell;
  #link = null;
  #resume = null;
  // Until its first welcome, a page that was loaded anew has nothing of the session that it resumes.
  #isAnew = false;
  #welcomed = false;
  #paused = false;
  #told = false;
  #failures = 0;
  #openedAt = 0;
  #lostAt = 0;
  #lastChannel = 0;
  #pumping = false;
  #channels = new Map();
  #inFlight = [];
  #outbox = new Outbox();
  #inbox = new Inbox();
  #timers = {};

  constructor({ connect, clock, random = Math.random, tell = () => {}, resume = null }) {
    this.#connect = connect;
    this.clock = clock;
    this.#random = random;
    this.#tell = tell;
    this.#resume = resume;
    this.#isAnew = resume !== null;
  }

  /** The session's public id, or null while there is none, or only that of the page before. */
  get id() {
    return this.#isAnew ? null : (this.#resume?.session ?? null);
  }

  /** What resumes the session in another page, or null. */
  get kept() {
    return this.#resume;
  }

  get exhausted() {
    return this.#lastChannel >= frames.MAX_CHANNEL;
  }

  get size() {
    return this.#channels.size;
  }

  get lost() {
    return this.#told;
  }

  // ---- for sockets -------------------------------------------------------------------------

  /** Open a channel: `{url, protocols, sink}`, see Channel. Starts the session if it is idle. */
  open(request) {
    const number = ++this.#lastChannel;
    const channel = new Channel(this, number, request);
    this.#channels.set(number, channel);
    if (this.state === 'gone') this.clock.soon(() => channel.close({}));
    else if (this.state === 'idle' && !this.#paused) this.#attempt();
    return channel;
  }

  // ---- for channels ------------------------------------------------------------------------

  /** Queue a numbered frame, or a message, see Queues; `item` is ours from now on. */
  push(item) {
    item.late = this.state !== 'open';
    this.#outbox.push(item);
    this.#schedulePump();
  }

  /** Why a message of so many bytes cannot be taken, as the fields of a close frame, or null. */
  refusal(bytes) {
    if (bytes > this.messageBytes) return TOO_BIG;
    if (this.state === 'open') return null;
    // One message fits always, however large.
    const { lateBytes } = this.#outbox;
    return lateBytes && lateBytes + bytes > LOST_BUFFER_BYTES ? TOO_MUCH : null;
  }

  /** Take back what was never written; call `close()` if the gateway knows the channel. */
  cancel(number, close) {
    const known = !this.#outbox.neverOpened(number);
    this.#outbox.withdraw(number);
    if (known) close();
  }

  forget(number) {
    this.#channels.delete(number);
    this.#outbox.forget(number);
    if (!this.#channels.size) this.#startIdle();
  }

  // ---- for the page ------------------------------------------------------------------------

  /** Try now: the user asked, or the network came back. Also leaves 'gone'. */
  retry() {
    if (this.state === 'idle' || this.state === 'open' || this.#paused) return;
    this.#dropLink();
    this.#attempt();
  }

  /** Give up the connection in use, keep the session: the next one may choose its transport anew. */
  reconnect() {
    if (this.state === 'open') {
      this.#lostAt = this.clock.now();
      this.#startTimer('tell', TIMING.quietMs, () => this.#tellLost());
      this.#set('lost', { reason: 'reconnect', transport: null });
    }
    if (this.#link) this.retry();
  }

  /** Try a WebSocket now, on the connection in use. */
  probe() {
    this.#link?.probe();
  }

  /** `pagehide`: say goodbye; the page may come back from the back/forward cache. */
  hide() {
    if (this.state === 'idle' || this.state === 'gone') return;
    this.#paused = true;
    if (this.#welcomed) this.#link.leave(frames.BYE);
    this.#dropLink();
    this.#cancelTimer('retry');
    this.#cancelTimer('tell');
    this.#set('lost', { transport: null });
  }

  /** `pageshow` from the back/forward cache. The session is lost unless it `isOurs`: another page has it. */
  show(isOurs = true) {
    if (!this.#paused) return;
    this.#paused = false;
    this.#failures = 0;
    const closed = isOurs ? 0 : this.#stateLost();
    if (closed) this.#tell('gap', { closed });
    this.#attempt();
    this.#startTimer('tell', TIMING.quietMs, () => this.#tellLost());
  }

  // ---- connecting --------------------------------------------------------------------------

  #attempt() {
    this.#cancelTimer('retry');
    this.#watchIdle();
    const state = (this.#resume && !this.#isAnew) || this.#failures ? 'lost' : 'connecting';
    this.#set(state, { retryAt: null });
    this.#startTimer('attempt', TIMING.attemptMs, () => this.#closed('timeout'));
    this.#link = this.#connect({
      open: () => this.#hello(),
      frame: (data) => this.#receive(data),
      drain: () => this.#drained(),
      transport: (name, why) => this.#transportChanged(name, why),
      closed: (reason) => this.#closed(reason),
    });
  }

  #hello() {
    const received = this.#resume && !this.#isAnew ? this.#inbox.received : undefined;
    this.#link.send([frames.control('hello', { v: 1, ...this.#resume, received })]);
  }

  #welcome(fields) {
    const { session, token, epoch, resumed, received } = fields;
    if (resumed && session !== this.#resume?.session) throw new frames.ProtocolError('another session resumed');
    if (resumed) this.#outbox.rewind(received);
    const closed = resumed ? 0 : this.#stateLost();
    this.messageBytes = fields.message ?? DEFAULT_MESSAGE_BYTES;
    this.#outbox.window = fields.window ?? Infinity;
    this.#resume = { session, token, epoch };
    this.#isAnew = false;
    this.#inbox.settle();
    this.#nowOpen();
    this.#announceReturn(resumed, closed);
    this.#watchIdle();
    this.#schedulePump();
  }

  #nowOpen() {
    this.#welcomed = true;
    this.#openedAt = this.clock.now();
    this.#inFlight = [];
    this.#cancelTimer('attempt');
    this.#cancelTimer('tell');
    const { transport, why } = this.#link;
    this.#set('open', { reason: '', retryAt: null });
    if (transport !== this.transport || why !== this.why) this.#transportChanged(transport, why);
  }

  #announceReturn(resumed, closed) {
    if (this.#told) {
      this.#told = false;
      this.#tell('back', { resumed });
    }
    if (closed) this.#tell('gap', { closed });
  }

  /** Close what the lost session knew. Returns how many sockets that were. */
  #stateLost(end) {
    this.#resume = null;
    this.#isAnew = false;
    const known = [...this.#channels.values()].filter(
      (channel) => !this.#outbox.neverOpened(channel.number),
    );
    for (const channel of known) channel.fail(end);
    this.#outbox.restart(this.#channels);
    this.#inbox = new Inbox();
    return known.length;
  }

  // ---- losing ------------------------------------------------------------------------------

  #closed(reason) {
    const wasOpen = this.#welcomed;
    // A connection that is welcomed and lost again at once must not be retried without pause.
    const wasSteady = wasOpen && this.clock.now() - this.#openedAt >= TIMING.steadyMs;
    if (wasSteady || !this.#failures) this.#lostAt = this.clock.now();
    this.#failures = wasSteady ? 0 : this.#failures + 1;
    this.#dropLink();
    this.#scheduleRetry(reason);
    if (wasOpen) this.#startTimer('tell', TIMING.quietMs, () => this.#tellLost());
    else if (!this.#timers.tell) this.#tellLost();
  }

  #scheduleRetry(reason) {
    const lostMs = this.clock.now() - this.#lostAt;
    const delay = retryDelay(this.#failures, this.#random(), lostMs);
    this.#startTimer('retry', delay, () => this.#attempt());
    this.#set('lost', { reason, transport: null, retryAt: this.clock.wall() + delay });
  }

  #tellLost() {
    if (this.#told) return;
    this.#told = true;
    const retryIn = this.retryAt === null ? 0 : Math.max(0, this.retryAt - this.clock.wall());
    this.#tell('lost', { reason: this.reason, retryIn });
  }

  #dropLink() {
    this.#cancelTimer('attempt');
    this.#cancelTimer('ack');
    this.#welcomed = false;
    this.#inFlight = [];
    this.#link?.drop();
    this.#link = null;
  }

  /** The gateway broke the protocol: nothing of this session can be trusted any more. */
  #distrust() {
    const closed = this.#stateLost();
    this.#closed('protocol');
    if (closed) this.#tell('gap', { closed });
  }

  #ended({ code, reason, retry }) {
    const closed = this.#stateLost({ code, reason, clean: code !== 1006 });
    if (retry) this.#closed('ended');
    else this.#gone(code, reason);
    if (closed) this.#tell('gap', { closed });
  }

  #gone(code, reason) {
    this.#dropLink();
    for (const channel of [...this.#channels.values()]) channel.close({});
    this.#cancelTimer('retry');
    this.#cancelTimer('tell');
    this.#told = false;
    this.#set('gone', { reason, transport: null, retryAt: null });
    this.#tell('gone', { code, reason });
  }

  // ---- idling ------------------------------------------------------------------------------

  #startIdle() {
    this.#startTimer('idle', TIMING.idleMs, () => this.#goIdle());
  }

  #watchIdle() {
    if (!this.#channels.size && !this.#timers.idle) this.#startIdle();
  }

  // Also when the connection is lost: a page without sockets does not ask for it any more.
  #goIdle() {
    if (this.state === 'idle' || this.state === 'gone' || this.#paused || this.#channels.size) return;
    if (this.state === 'open' && this.#outbox.isWaiting) return this.#startIdle();
    this.#endLink();
    this.#cancelTimer('retry');
    this.#cancelTimer('tell');
    this.#stateLost();
    this.#told = false;
    this.#set('idle', { reason: '', transport: null, retryAt: null });
  }

  #endLink() {
    const link = this.#link;
    if (!this.#welcomed) return this.#dropLink();
    this.#link = null;
    link.end(frames.BYE);
    this.#dropLink();
  }

  // ---- frames ------------------------------------------------------------------------------

  #receive(data) {
    try {
      this.#handle(frames.decode(data), data);
    } catch (error) {
      if (!(error instanceof frames.ProtocolError)) throw error;
      this.#distrust();
    }
  }

  #handle(frame, data) {
    if (frame.kind === 'end') this.#ended(frame.fields);
    else if (!this.#welcomed) this.#expectWelcome(frame);
    else if (frame.kind === 'ack') this.#acknowledged(frame.count);
    else this.#numbered(frame, data);
  }

  #acknowledged(count) {
    this.#outbox.acknowledge(count);
    if (this.#outbox.isWaiting) this.#schedulePump();
  }

  #expectWelcome(frame) {
    if (frame.kind !== 'welcome') throw new frames.ProtocolError(`${frame.kind} before welcome`);
    this.#welcome(frame.fields);
  }

  #numbered(frame, data) {
    if (!NUMBERED.has(frame.kind)) throw new frames.ProtocolError(`an unexpected ${frame.kind}`);
    if (frame.channel > this.#lastChannel) throw new frames.ProtocolError('an unknown channel');
    const size = typeof data === 'string' ? frames.utf8Length(data) : data.byteLength;
    this.#inbox.count(size, this.clock.now());
    this.#scheduleAck();
    if (frame.kind === 'grant') return this.#granted(frame);
    const channel = this.#channels.get(frame.channel);
    if (frame.kind === 'close') this.#hungUp(frame.channel, channel?.state);
    return channel?.receive(frame);
  }

  // The gateway grants nothing any more to a channel that it has closed: what still waits for a grant
  // would wait for ever, and our own close behind it.
  #hungUp(number, state) {
    const wasWaiting = this.#outbox.withdraw(number);
    if (!wasWaiting || state === 'open') return;
    const frame = frames.control('close', {}, number);
    this.push({ frame, size: wireSize(frame), channel: number });
  }

  // Also for a channel that is over here: what it has sent before its close is still to arrive.
  #granted({ channel, fields }) {
    this.#outbox.grant(channel, fields.bytes);
    this.#schedulePump();
  }

  #scheduleAck() {
    const wait = this.#inbox.due(this.clock.now());
    if (wait === 0) this.#schedulePump();
    else if (!this.#timers.ack) this.#startTimer('ack', wait, () => this.#scheduleAck());
  }

  // ---- writing -----------------------------------------------------------------------------

  // Once per task: what a task sends in a row travels in one POST.
  #schedulePump() {
    if (this.#pumping) return;
    this.#pumping = true;
    this.clock.soon(() => {
      this.#pumping = false;
      this.#pump();
    });
  }

  #pump() {
    if (!this.#welcomed || !this.#link.writable || this.#inFlight.length) return;
    const batch = this.#outbox.take(this.#link.budget, this.#frameBytes);
    const lines = batch.map((entry) => entry.frame);
    if (this.#ackNow(batch.length)) {
      this.#cancelTimer('ack');
      lines.unshift(frames.ack(this.#inbox.received));
      this.#inbox.settle();
    }
    this.#inFlight = batch;
    if (lines.length) this.#link.send(lines);
  }

  // On polling an ack that travels with data costs no request of its own.
  #ackNow(sending) {
    const wait = this.#inbox.due(this.clock.now());
    return wait === 0 || (wait !== null && sending > 0 && this.transport === 'polling');
  }

  #drained() {
    const sent = this.#inFlight;
    this.#inFlight = [];
    for (const entry of sent) flush(entry);
    if (this.#outbox.isWaiting || this.#inbox.due(this.clock.now()) === 0) this.#pump();
  }

  get #frameBytes() {
    return Math.min(PART_BYTES, (this.#link.maxPayload ?? DEFAULT_MAX_PAYLOAD) - ACK_SPARE_BYTES);
  }

  // ---- status and timers -------------------------------------------------------------------

  #transportChanged(transport, why) {
    if (!this.#welcomed) return;
    this.transport = transport;
    this.why = why;
    this.#tell('status', {});
    this.#tell('transport', { transport, why });
  }

  #set(state, changes) {
    this.state = state;
    Object.assign(this, changes);
    this.#tell('status', {});
  }

  #startTimer(name, delay, callback) {
    this.#cancelTimer(name);
    this.#timers[name] = this.clock.setTimeout(() => {
      this.#timers[name] = null;
      callback();
    }, delay);
  }

  #cancelTimer(name) {
    this.clock.clearTimeout(this.#timers[name]);
    this.#timers[name] = null;
  }
}

const NUMBERED = new Set(['accept', 'refuse', 'close', 'text', 'binary', 'grant', 'dropped']);
