// What the network on the way bears: how long a GET may wait, how large a POST and an answer may be.
// Decides numbers, from what happened to requests. Sends nothing, and has no clock.

// 4 s pass everything that was measured; idle limits of 5 s exist.
export const HOLD_MS = 4000;
const LEAST_HOLD_MS = 1000;
const GROWTH = 1.5;
const FULL_HOLDS = 3;
// A batch takes 4 s at 500 kbit/s, so that a pong does not wait too long.
export const POST_BYTES = 256 * 1024;
// The longest packet always fits: no frame takes more than 32 kB.
export const LEAST_POST_BYTES = 40 * 1024;
// Until it is known what the network takes: bytes per ms, and bytes that are sent in one POST, two parts of
// a message. A batch that takes longer than this is too large for it.
export const RATE = 64;
const FIRST_BATCH_BYTES = 72 * 1024;
export const SLOW_MS = 2000;
export const ANSWER_BYTES = 1_000_000;
export const LEAST_ANSWER_BYTES = 48_000;
const SHRINK = 4;
const FULL_ANSWERS = 8;

export class Limits {
  hold;
  post;
  answer;
  /** Milliseconds of a request that is small, and not held; 0 while none is known. */
  roundTrip = 0;
  /** Bytes per ms that the last large POST has had, with those beside it. */
  rate = RATE;
  #batch = FIRST_BATCH_BYTES;
  #ceiling;
  #most = ANSWER_BYTES;
  #suspect = Infinity;
  #good = 0;
  #doubted = false;
  #holds = 0;
  #answers = 0;
  #save;

  /** `save({hold, post, answer})` keeps what was learned for the next page, which gives it as `known`. */
  constructor(save = () => {}, known = {}) {
    this.#save = save;
    this.#ceiling = known.hold ?? Infinity;
    this.hold = Math.min(HOLD_MS, this.#ceiling);
    this.post = known.post ?? POST_BYTES;
    this.answer = known.answer ?? ANSWER_BYTES;
  }

  /** A GET has waited for its whole hold, and was answered. No hold may be longer than `most` ms. */
  held(most) {
    this.#good = this.hold;
    this.#doubted = false;
    if (++this.#holds < FULL_HOLDS) return;
    this.#holds = 0;
    this.hold = Math.max(this.hold, Math.min(Math.round(this.hold * GROWTH), this.#ceiling, most));
  }

  /** A GET was lost after it had waited for `waited` ms. */
  lost(waited) {
    if (waited * 2 < this.hold) return;
    this.#holds = 0;
    // The first hold is known to be good elsewhere: one accident says little about it.
    if (this.hold <= HOLD_MS && !this.#doubted) {
      this.#doubted = true;
      return;
    }
    const shorter = Math.max(LEAST_HOLD_MS, Math.round(this.hold / GROWTH));
    this.hold = this.#ceiling = this.#good < this.hold ? Math.max(this.#good, shorter) : shorter;
    this.#learned();
  }

  /** Bytes that are to be sent in one POST. */
  get batch() {
    return Math.min(this.post, this.#batch);
  }

  /** `bytes` were under way, and a POST was answered after `took` ms. */
  sent(bytes, took) {
    this.rate = Math.max(this.rate / 2, bytes / Math.max(1, took));
    const next = took < SLOW_MS ? this.#batch * 2 : this.#batch / 2;
    this.#batch = Math.max(LEAST_POST_BYTES, Math.min(next, POST_BYTES));
  }

  /** A POST got no answer: the network may be slower than it was. */
  slow() {
    this.rate = Math.min(this.rate, RATE);
    this.#batch = Math.min(this.#batch, FIRST_BATCH_BYTES);
  }

  /** A POST of so many bytes does not get through. Returns whether a smaller one is worth a try. */
  refused(bytes) {
    if (bytes <= LEAST_POST_BYTES) return false;
    // Several of one size are refused at once: that is one lesson.
    while (this.post >= bytes) this.post = Math.max(LEAST_POST_BYTES, this.post / 2);
    this.#learned();
    return true;
  }

  /** An answer of `bytes` has arrived. */
  arrived(bytes) {
    if (bytes * 2 < this.answer || ++this.#answers < FULL_ANSWERS) return;
    this.#answers = 0;
    this.answer = Math.min(this.answer * 2, this.#most);
  }

  /** An answer that might have `asked` bytes was lost, and arrived when it was asked for in pieces. */
  cut(asked) {
    if (asked >= this.#suspect) this.#most = Math.max(LEAST_ANSWER_BYTES, asked >> 1);
    this.#suspect = Math.min(this.#suspect, asked);
    this.#answers = 0;
    this.answer = smaller(asked);
    this.#learned();
  }

  #learned() {
    this.#save({ hold: this.#ceiling, post: this.post, answer: this.answer });
  }
}

/** What to ask for when an answer of up to `asked` bytes was lost. */
export const smaller = (asked) => Math.max(LEAST_ANSWER_BYTES, Math.floor(asked / SHRINK));

const isWithin = (value, least, most) => typeof value === 'number' && value >= least && value <= most;

/** Is this what `save` was given, after its way through JSON? That has no infinity: no ceiling is null. */
export const isLearned = (known) =>
  isWithin(known?.hold ?? HOLD_MS, LEAST_HOLD_MS, Infinity) &&
  isWithin(known?.post, LEAST_POST_BYTES, POST_BYTES) &&
  isWithin(known?.answer, LEAST_ANSWER_BYTES, ANSWER_BYTES);
