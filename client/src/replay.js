// What has to be said again after a lost connection, and what has to be acknowledged.
// Decides which numbered frames are kept, written and dropped, and when an ack is due.
// Knows nothing of connections, channels' states, or clocks: time is an argument.

import { ProtocolError } from './frames.js';
import { PART_BYTES, Queues } from './queues.js';

export const ACK_AFTER_MS = 1000;
export const ACK_AFTER_FRAMES = 64;
export const ACK_AFTER_BYTES = 32 * 1024;
// How much may be under way without an ack, one frame at least. Our own acks travel behind it: were
// it more, a gateway that echoes a burst would have to hold all of it before it sees the first one.
// At 600 ms of round trip it is 1.7 MB, or 1,700 small messages, a second.
export const WINDOW_FRAMES = 1024;
export const WINDOW_BYTES = 1024 * 1024;
// What an ack in front of a batch may add to it.
export const ACK_SPARE_BYTES = 64;

/** The frame has left for the network for the first time, or was acknowledged: say so, once. */
export function flush(entry) {
  const { flushed } = entry;
  entry.flushed = undefined;
  flushed?.(entry.bytes);
}

/**
 * Outgoing numbered frames, from the first that is not acknowledged. A frame gets its number when it is first
 * written; until then it waits in the queue of its channel.
 *
 * An entry is `{frame, size, bytes, channel, flushed?}`: `size` in bytes on the worst wire, `bytes` of the
 * message in it; `flushed(bytes)` is called once, see flush().
 */
export class Outbox {
  #queues = new Queues();
  // Written, and not acknowledged.
  #entries = [];
  #acked = 0;
  // Position in #entries: the next to write on this connection.
  #next = 0;
  // Bytes written on this connection and not acknowledged.
  #flight = 0;

  /** Bytes queued while there was no connection, and not written since. */
  get lateBytes() {
    return this.#queues.lateBytes;
  }

  /** Number of frames written at least once, in all, in this session. */
  get sent() {
    return this.#acked + this.#entries.length;
  }

  /** Is there anything that may be written? */
  get isWaiting() {
    return this.#next < this.#entries.length || !this.#queues.isEmpty;
  }

  /** What a channel may send before its first grant. */
  set window(bytes) {
    this.#queues.window = bytes;
  }

  /** Queue an item, see Queues. */
  push(item) {
    this.#queues.push(item);
  }

  /** The gateway takes `bytes` more of a channel. */
  grant(channel, bytes) {
    this.#queues.grant(channel, bytes);
  }

  /**
   * The next entries to write, in order, none longer than `limit`: as many as fit into `budget` bytes and
   * into the window, but at least one where nothing is under way.
   */
  take(budget, limit = PART_BYTES) {
    const batch = [];
    let size = 0;
    while (this.#next < WINDOW_FRAMES) {
      const old = this.#entries[this.#next];
      const entry = old ?? this.#queues.peek(limit);
      if (!entry || (batch.length && size + entry.size > budget)) break;
      if (this.#flight && this.#flight + entry.size > WINDOW_BYTES) break;
      if (!old) this.#entries.push(this.#queues.pop());
      this.#next += 1;
      this.#flight += entry.size;
      size += entry.size;
      batch.push(entry);
    }
    return batch;
  }

  /** The other side has received `count` frames in all. Throws ProtocolError if that cannot be. */
  acknowledge(count) {
    if (count < this.#acked || count > this.#acked + this.#next) {
      throw new ProtocolError(`an ack of ${count}, between ${this.#acked} and ${this.sent}`);
    }
    const gone = this.#entries.splice(0, count - this.#acked);
    for (const { size } of gone) this.#flight -= size;
    this.#acked = count;
    this.#next -= gone.length;
    for (const entry of gone) flush(entry);
  }

  /** A new connection: whatever is beyond `received` will be written again. */
  rewind(received) {
    this.#next = this.#entries.length;
    this.acknowledge(received);
    this.#next = this.#flight = 0;
  }

  /** Is the channel's open frame still waiting for its first connection? */
  neverOpened(channel) {
    return this.#queues.neverOpened(channel);
  }

  /** Forget what `channel` has queued and no connection has ever carried. Was there anything? */
  withdraw(channel) {
    return this.#queues.withdraw(channel);
  }

  /** The channel is over: what it has queued is the last of it. */
  forget(channel) {
    this.#queues.forget(channel);
  }

  /** A new session: only what was never written, of `channels`, is kept; numbers start again. */
  restart(channels) {
    this.#queues.keep(channels);
    this.#entries = [];
    this.#acked = this.#next = this.#flight = 0;
  }
}

/** Counts incoming numbered frames. */
export class Inbox {
  received = 0;
  #acked = 0;
  #bytes = 0;
  #since = 0;

  get unacknowledged() {
    return this.received - this.#acked;
  }

  /** A numbered frame of `size` bytes came in at `now` (ms). */
  count(size, now) {
    if (!this.unacknowledged) this.#since = now;
    this.received += 1;
    this.#bytes += size;
  }

  /** Milliseconds until an ack is due; 0 when it is due; null when there is nothing to say. */
  due(now) {
    if (!this.unacknowledged) return null;
    if (this.unacknowledged >= ACK_AFTER_FRAMES || this.#bytes >= ACK_AFTER_BYTES) return 0;
    return Math.max(0, this.#since + ACK_AFTER_MS - now);
  }

  /** All that was received has been acknowledged (an ack, or a hello that says it). */
  settle() {
    this.#acked = this.received;
    this.#bytes = 0;
  }
}
