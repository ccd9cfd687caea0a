// One virtual WebSocket inside a session: opening, open, closing, over.
// Decides what a channel may send and what it reports. Does not know connections, nor the DOM.

import * as frames from './frames.js';
import { wireSize } from './queues.js';

/** Longest wait for the answer to our close; browsers wait about as long for a close frame. */
export const CLOSE_WAIT_MS = 5000;

export const ABNORMAL = Object.freeze({ code: 1006, reason: '', clean: false });

/** Why a message is not taken: the fields of a close frame, and what the socket reports. */
export const TOO_BIG = { code: 1009, reason: 'message too big', report: { code: 1009 } };

const typeOf = (parts) => typeof parts[0];

function join(parts) {
  if (typeOf(parts) === 'string') return parts.join('');
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let end = 0;
  for (const part of parts) {
    whole.set(part, end);
    end += part.length;
  }
  return whole;
}

/**
 * `sink` hears what happens, at most once each except the second and the third:
 * `accept(protocol)`, `message(string | Uint8Array)`, `dropped(count)`, `close({code, reason, clean, failed})`.
 * After `close` it hears nothing. `failed` says that the socket also reports an error.
 */
export class Channel {
  state = 'opening';
  #session;
  #sink;
  #url;
  #offered;
  #asked = null;
  #timer = null;
  // The parts of a message that is not complete, and their bytes.
  #parts = [];
  #partBytes = 0;

  constructor(session, number, { url, protocols, sink }) {
    this.number = number;
    this.#session = session;
    this.#sink = sink;
    this.#url = url;
    this.#offered = protocols;
    this.#control('open', { url, protocols });
  }

  /** Send text or bytes; `flushed(bytes)` is called when so many of them have left for the network. */
  send(data, flushed) {
    if (this.state !== 'open') return;
    const bytes = frames.sizeOf(data);
    const problem = this.#session.refusal(bytes);
    if (problem) this.#giveUp(problem);
    else this.#session.push({ data, bytes, channel: this.number, flushed });
  }

  /** Close as `WebSocket.close()` does; `fields` is `{}`, `{code}` or `{code, reason}`. */
  close(fields) {
    if (this.state === 'opening') this.#cancel(fields);
    else if (this.state === 'open') this.#begin(fields);
  }

  /** The connection has failed this channel for good: error if it never opened, then 1006. */
  fail(end = ABNORMAL) {
    if (this.state === 'over') return;
    const failed = this.state === 'opening';
    this.#end({ ...(failed ? ABNORMAL : end), failed });
  }

  /** A frame of this channel has come from the gateway. */
  receive(frame) {
    if (frame.kind === 'accept') this.#accept(frame.fields.protocol);
    else if (frame.kind === 'refuse') this.#refused(frame.fields);
    else if (frame.kind === 'close') this.#closed(frame.fields);
    else if (this.state !== 'open') return;
    else if (frame.kind === 'dropped') this.#sink.dropped(frame.fields.messages);
    else this.#message(frame.text ?? frame.data, frame.more);
  }

  #message(data, more) {
    const parts = this.#parts;
    if (!more && !parts.length) return this.#sink.message(data);
    parts.push(data);
    if (typeof data !== typeOf(parts)) throw new frames.ProtocolError('parts of two kinds');
    this.#partBytes += frames.sizeOf(data);
    if (this.#partBytes > this.#session.messageBytes) return this.#giveUp(TOO_BIG);
    if (more) return undefined;
    this.#parts = [];
    this.#partBytes = 0;
    return this.#sink.message(join(parts));
  }

  #accept(protocol) {
    if (this.state !== 'opening') throw new frames.ProtocolError('accepted twice');
    // A browser fails a handshake that answers an offer with nothing, or with something else.
    const fits = this.#offered.length ? this.#offered.includes(protocol) : protocol === '';
    if (!fits) return this.#giveUp({ code: 1002, reason: 'subprotocol not offered' });
    this.state = 'open';
    this.#sink.accept(protocol);
  }

  // The socket may say no more than 1006. Browsers tell the console why a handshake failed; so do we,
  // without the query, which may hold a secret.
  #refused({ status, reason }) {
    if (this.state === 'opening') {
      console.warn(`GatewaySocket: ${this.#url.split('?', 1)[0]} is refused: ${status} ${reason}`);
    }
    this.fail();
  }

  #closed(fields) {
    if (this.state === 'opening') throw new frames.ProtocolError('closed before accepted');
    if (this.state === 'open') this.#control('close', fields);
    const { code = 1005, reason = '' } = this.#asked && !('code' in fields) ? this.#asked : fields;
    this.#end({ code, reason, clean: code !== 1006, failed: false });
  }

  #begin(fields) {
    this.state = 'closing';
    this.#asked = fields;
    let sent = false;
    this.#control('close', fields, () => {
      sent = true;
    });
    this.#await(() => sent);
  }

  // Behind a long upload our close has not even left yet.
  #await(sent) {
    this.#timer = this.#session.clock.setTimeout(() => {
      if (this.#session.state === 'open' && !sent()) this.#await(sent);
      else this.fail();
    }, CLOSE_WAIT_MS);
  }

  #cancel(fields) {
    this.#session.cancel(this.number, () => this.#control('close', fields));
    this.fail();
  }

  #giveUp(fields) {
    const close = () => this.#control('close', fields);
    // What was sent before a message that is too big still arrives; otherwise room has to be made.
    if (fields.report) close();
    else this.#session.cancel(this.number, close);
    this.#end({ ...ABNORMAL, ...(fields.report ?? {}), failed: true });
  }

  #end(end) {
    this.state = 'over';
    this.#session.clock.clearTimeout(this.#timer);
    this.#session.forget(this.number);
    this.#sink.close(end);
  }

  #control(kind, fields, flushed) {
    const frame = frames.control(kind, fields, this.number);
    const opens = kind === 'open';
    this.#session.push({ frame, size: wireSize(frame), channel: this.number, opens, flushed });
  }
}
