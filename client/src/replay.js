// What has to be said again after a lost connection, and what has to be acknowledged.
// Decides which numbered frames are kept, written and dropped, and when an ack is due.
// Knows nothing of connections, channels' states, or clocks: time is an argument.

import { ProtocolError } from './frames.js';

export const ACK_AFTER_MS = 1000;
export const ACK_AFTER_FRAMES = 64;
export const ACK_AFTER_BYTES = 32 * 1024;
// How much may be under way without an ack, one frame at least. Our own acks travel behind it: were
// it more, a gateway that echoes a burst would have to hold all of it before it sees the first one.
export const WINDOW_FRAMES = 256;
export const WINDOW_BYTES = 512 * 1024;
// What an ack in front of a batch may add to it.
export const ACK_SPARE_BYTES = 64;

/** The frame has left for the network for the first time, or was acknowledged: say so, once. */
export function flush(entry) {
  const { flushed } = entry;
  entry.flushed = undefined;
  flushed?.();
}

const lateSize = (entries) => entries.reduce((sum, { late, size }) => sum + (late ? size : 0), 0);

/**
 * Outgoing numbered frames, from the first that is not acknowledged.
 *
 * An entry is `{frame, size, channel, opens?, late?, flushed?}`: `size` in bytes on the worst wire, `opens`
 * for the frame that opens its channel, `late` for what was queued while there was no connection,
 * `flushed()` is called once, see flush().
 */
export class Outbox {
  #entries = [];
  #acked = 0;
  // Positions in #entries: the next to write on this connection, and the first never written to any.
  #next = 0;
  #fresh = 0;
  // Bytes written on this connection and not acknowledged.
  #flight = 0;

  /** Bytes of the late entries that are still kept. */
  lateBytes = 0;

  /** Number of frames written at least once, in all, in this session. */
  get sent() {
    return this.#acked + this.#fresh;
  }

  get waiting() {
    return this.#entries.length - this.#next;
  }

  push(entry) {
    this.#entries.push(entry);
    this.lateBytes += lateSize([entry]);
  }

  /**
   * The next entries to write, in order: as many as fit into `budget` bytes and into the window, but
   * at least one where nothing is under way.
   */
  take(budget) {
    const batch = [];
    let size = 0;
    for (const entry of this.#entries.slice(this.#next, WINDOW_FRAMES)) {
      if (batch.length && size + entry.size > budget) break;
      if (this.#flight && this.#flight + entry.size > WINDOW_BYTES) break;
      size += entry.size;
      this.#flight += entry.size;
      batch.push(entry);
    }
    this.#next += batch.length;
    this.#fresh = Math.max(this.#fresh, this.#next);
    return batch;
  }

  /** The other side has received `count` frames in all. Throws ProtocolError if that cannot be. */
  acknowledge(count) {
    if (count < this.#acked || count > this.#acked + this.#next) {
      throw new ProtocolError(`an ack of ${count}, between ${this.#acked} and ${this.sent}`);
    }
    this.#drop(count - this.#acked);
  }

  /** A new connection: whatever is beyond `received` will be written again. */
  rewind(received) {
    this.#next = this.#fresh;
    this.acknowledge(received);
    this.#next = this.#flight = 0;
  }

  #drop(count) {
    const gone = this.#entries.splice(0, count);
    this.lateBytes -= lateSize(gone);
    for (const { size } of gone) this.#flight -= size;
    this.#acked += count;
    this.#next -= count;
    this.#fresh -= count;
    for (const entry of gone) flush(entry);
  }

  /** Is the channel's open frame still waiting for its first connection? */
  neverOpened(channel) {
    return this.#entries
      .slice(this.#fresh)
      .some((entry) => entry.opens && entry.channel === channel);
  }

  /** Forget what `channel` has queued and no connection has ever carried. */
  withdraw(channel) {
    const written = this.#entries.slice(0, this.#fresh);
    const kept = this.#entries.slice(this.#fresh).filter((entry) => entry.channel !== channel);
    this.#entries = [...written, ...kept];
    this.lateBytes = lateSize(this.#entries);
  }

  /** A new session: only never-written frames of `channels` are kept; numbers start again. */
  restart(channels) {
    const fresh = this.#entries.slice(this.#fresh);
    this.#entries = fresh.filter((entry) => channels.has(entry.channel));
    this.#acked = this.#next = this.#fresh = this.#flight = 0;
    this.lateBytes = lateSize(this.#entries);
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
