// What has not been written yet: one queue for each channel.
// Decides whose turn it is, where a message is cut into parts, and whether a channel may send at all.
// Knows nothing of numbers, acks, or connections.

import * as frames from './frames.js';

/** No frame is longer than this on the wire that needs most bytes for it: polling, binary as base64. */
export const PART_BYTES = 32 * 1024;
/** What a data frame costs of the credit of its channel, beside its bytes. */
export const FRAME_COST = 256;

// The extra characters around a frame in a polling payload: packet type and separator.
const PACKET_OVERHEAD = 3;
// Before the bytes of a part stand at most a mark and three characters or bytes of channel number.
const HEAD = 4;

const textSize = (frame) => frames.utf8Length(frame) + PACKET_OVERHEAD;
const binarySize = (frame) => Math.ceil(frame.length / 3) * 4 + PACKET_OVERHEAD;

/** Bytes that a frame takes on the wire that needs most of them. */
export const wireSize = (frame) =>
  typeof frame === 'string' ? textSize(frame) : binarySize(frame);

/** Where the part ends that begins at `start`, in frames of `limit` bytes. */
function endOfPart(data, start, limit) {
  if (typeof data !== 'string') {
    return Math.min(data.length, start + Math.floor((limit - PACKET_OVERHEAD) / 4) * 3 - HEAD);
  }
  const room = limit - PACKET_OVERHEAD - HEAD;
  // No UTF-16 unit takes more than 3 bytes, an escaped one 2.
  if ((data.length - start) * 3 <= room) return data.length;
  return frames.cutText(data, start, room);
}

const slice = (data, start, end) =>
  typeof data === 'string' ? data.slice(start, end) : data.subarray(start, end);

class Queue {
  /** Bytes that the channel may send; until its opening is written nobody has said how many. */
  credit = Infinity;
  isOver = false;
  #items = [];
  #first = 0;
  // Where the next part of the first item begins, and that part, once somebody has asked for it.
  #start = 0;
  #ready = null;

  push(item) {
    this.#items.push(item);
  }

  clear() {
    this.#items = [];
    this.#first = this.#start = 0;
    this.#ready = null;
  }

  get isEmpty() {
    return this.#first === this.#items.length;
  }

  /** Is the opening of the channel still waiting? */
  get opens() {
    return Boolean(this.#items[this.#first]?.opens);
  }

  get lateBytes() {
    const waiting = this.#items.slice(this.#first);
    return waiting.reduce((sum, { late, left }) => sum + (late ? left : 0), 0);
  }

  /** What pop() would give, or null when there is nothing, or nothing may be sent. */
  peek(limit) {
    if (this.isEmpty) return null;
    const item = this.#items[this.#first];
    if (item.frame !== undefined) return item;
    if (this.credit > 0) this.#ready ??= this.#cut(item, limit);
    return this.#ready;
  }

  #cut({ data, channel, bytes: all, late, flushed }, limit) {
    const start = this.#start;
    const end = endOfPart(data, start, limit);
    const more = end < data.length;
    const isWhole = !start && !more;
    const piece = isWhole ? data : slice(data, start, end);
    const encode = typeof data === 'string' ? frames.text : frames.binary;
    const frame = encode(channel, piece, more);
    const bytes = isWhole ? all : frames.sizeOf(piece);
    return { frame, size: wireSize(frame), bytes, channel, late, flushed, end, more };
  }

  /** Take what peek() has given. `window` is the credit of a channel that is opened by it. */
  pop(window) {
    const item = this.#items[this.#first];
    const entry = this.#ready ?? item;
    if (entry.opens) this.credit = window;
    if (this.#ready) {
      this.credit -= entry.bytes + FRAME_COST;
      item.left -= entry.bytes;
    }
    this.#ready = null;
    this.#start = entry.more ? entry.end : 0;
    if (!entry.more) this.#shift();
    return entry;
  }

  // Not Array's shift(): it moves all that wait, and a slow network may leave a hundred thousand.
  #shift() {
    this.#items[this.#first++] = undefined;
    if (this.isEmpty) this.clear();
  }
}

/**
 * An item is a frame, `{channel, frame, size, opens?, late?, flushed?}`, or a message that may have to be cut,
 * `{channel, data, bytes, late?, flushed?}`; `late` is what was queued while there was no connection.
 */
export class Queues {
  #queues = new Map();
  // Those that may have something to send, in the order of their turns.
  #ring = new Set();

  /** Credit of each channel that is opened from now on. */
  window = Infinity;
  /** Bytes of the late items. */
  lateBytes = 0;

  get isEmpty() {
    return !this.#ring.size;
  }

  push(item) {
    const { channel } = item;
    let queue = this.#queues.get(channel);
    if (!queue) this.#queues.set(channel, (queue = new Queue()));
    item.left = item.bytes ?? item.size;
    if (item.late) this.lateBytes += item.left;
    queue.push(item);
    this.#ring.add(queue);
  }

  /** The next frame, no longer than `limit`, as an entry for the outbox; null when nothing may be sent. */
  peek(limit) {
    for (const queue of this.#ring) {
      const entry = queue.peek(limit);
      if (entry) return entry;
      this.#ring.delete(queue);
    }
    return null;
  }

  /** Take what peek() has given; the next channel has its turn. */
  pop() {
    const [queue] = this.#ring;
    const entry = queue.pop(this.window);
    if (entry.late) this.lateBytes -= entry.bytes ?? entry.size;
    if (queue.isEmpty || this.#ring.size > 1) this.#ring.delete(queue);
    if (!queue.isEmpty) this.#ring.add(queue);
    else if (queue.isOver) this.#queues.delete(entry.channel);
    return entry;
  }

  /** The gateway takes `bytes` more of a channel. */
  grant(channel, bytes) {
    const queue = this.#queues.get(channel);
    if (!queue) return;
    queue.credit += bytes;
    this.#ring.add(queue);
  }

  neverOpened(channel) {
    return Boolean(this.#queues.get(channel)?.opens);
  }

  /** Drop all that waits for a channel. Was there anything? */
  withdraw(channel) {
    const queue = this.#queues.get(channel);
    if (!queue || queue.isEmpty) return false;
    this.lateBytes -= queue.lateBytes;
    queue.clear();
    return true;
  }

  /** The channel will queue nothing any more. */
  forget(channel) {
    const queue = this.#queues.get(channel);
    if (!queue) return;
    queue.isOver = true;
    if (queue.isEmpty) this.#queues.delete(channel);
  }

  /** Keep only what waits for `channels`. */
  keep(channels) {
    for (const [channel, queue] of this.#queues) {
      if (channels.has(channel)) continue;
      this.lateBytes -= queue.lateBytes;
      this.#ring.delete(queue);
      this.#queues.delete(channel);
    }
  }
}
