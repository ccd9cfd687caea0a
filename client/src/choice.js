// Which transport to use, and why. Remembers per endpoint, for minutes, that WebSockets do not work, and
// what long-polling has learned. Decides whether a WebSocket may be tried. Opens nothing itself, never waits.

import { Limits, isLearned } from './limits.js';

export const LIVES = 2;
export const EARLY_MS = 30_000;
export const AVOID_MS = 5 * 60_000;
export const LEARNED_MS = 10 * 60_000;
export const PROBE_MS = 3000;

export const WHY = Object.freeze({
  trying: 'Starting with long-polling; a WebSocket is being tried.',
  works: 'WebSocket works.',
  notOffered: 'The server offers no WebSocket.',
  silent:
    'The WebSocket probe got no answer within 3 s; a proxy on the way probably blocks WebSockets.',
  refused: 'The WebSocket was refused; a proxy on the way probably blocks WebSockets.',
  stalled: 'The WebSocket failed in the middle of the upgrade.',
  early: 'A WebSocket connection died early; it gets one more chance.',
  dead: 'WebSocket connections died early twice; using long-polling for the next 5 minutes.',
  blocked: 'WebSockets are blocked in this tab by its own switch.',
});

// A page in a sandboxed frame, or with site data switched off, may not touch its storage; a full
// one cannot be written. Both leave us without memory, which is no harm.
const STORAGE_REFUSALS = new Set(['SecurityError', 'QuotaExceededError']);

function tryStorage(action) {
  try {
    return action();
  } catch (error) {
    if (!STORAGE_REFUSALS.has(error.name)) throw error;
    return null;
  }
}

/** A Storage that may be null, as in some web views, or refused: `storage()` is called at each use. */
export class Memory {
  #storage;
  constructor(storage) {
    this.#storage = storage;
  }

  read(key) {
    return tryStorage(() => this.#storage()?.getItem(key) ?? null);
  }

  /** `value` null removes the key. */
  write(key, value) {
    tryStorage(() => {
      if (value === null) this.#storage()?.removeItem(key);
      else this.#storage()?.setItem(key, value);
    });
  }
}

/** `memory` outlives the page, `wall()` is the time of day in ms. */
export class Choice {
  #key;
  #memory;
  #wall;
  #lives = LIVES;
  #suspected = false;
  #verdict;
  #learned;
  #limits = null;

  constructor({ endpoint, memory, wall }) {
    this.#key = `gateway:transport ${endpoint}`;
    this.#memory = memory;
    this.#wall = wall;
    const { verdict, learned } = parse(memory.read(this.#key));
    this.#verdict = isVerdict(verdict) ? verdict : null;
    this.#learned = isTime(learned?.at) && isLearned(learned) ? learned : null;
  }

  /** What long-polling bears here, as far as it is known: one object, until what it knows is too old. */
  get limits() {
    // A clock that was set back makes it too old, too.
    const age = this.#wall() - this.#learned?.at;
    const isOld = this.#learned && !(age >= 0 && age < LEARNED_MS);
    if (isOld) this.#learned = null;
    if (isOld || !this.#limits) this.#limits = new Limits((known) => this.#learn(known), this.#learned ?? {});
    return this.#limits;
  }

  /** Milliseconds until a WebSocket may be tried; 0 when it may be tried now. */
  get wait() {
    // A clock that was set back must not keep us on polling for longer than we meant.
    const left = this.#verdict ? this.#verdict.until - this.#wall() : 0;
    return Math.min(AVOID_MS, Math.max(0, left));
  }

  /** A sentence for a human: why we are on polling at the start of a connection. */
  get why() {
    if (this.wait) return this.#verdict.why;
    return this.#lives < LIVES ? WHY.early : WHY.trying;
  }

  /**
   * A probe has failed: 'silent', 'refused', 'stalled', or 'blocked' by the tab's own switch, which
   * says nothing about the network and is not remembered beyond this page. Returns the sentence.
   */
  failed(how) {
    this.#avoid(WHY[how]);
    if (how !== 'blocked') this.#remember();
    return WHY[how];
  }

  /**
   * An upgraded connection has died `age` ms after the upgrade, without a close frame. Whether that
   * was the WebSocket's fault is seen at the next attempt: reached() or missed() says so.
   */
  died(age) {
    this.#suspected = age < EARLY_MS;
    if (!this.#suspected) this.#lives = LIVES;
  }

  /** The server answers: so it was only the WebSocket that died. */
  reached() {
    if (!this.#suspected) return;
    this.#suspected = false;
    this.#lives -= 1;
    if (this.#lives > 0) return;
    this.#lives = LIVES;
    this.#avoid(WHY.dead);
    this.#remember();
  }

  /** The server does not answer at all: the WebSocket died with everything else. */
  missed() {
    this.#suspected = false;
  }

  /** Forget the bad experience. */
  forgive() {
    this.#verdict = null;
    this.#lives = LIVES;
    this.#remember();
  }

  #learn(known) {
    this.#learned = { ...known, at: this.#wall() };
    this.#remember();
  }

  #avoid(why) {
    this.#verdict = { until: this.#wall() + AVOID_MS, why };
  }

  #remember() {
    const verdict = this.#verdict;
    const learned = this.#learned;
    this.#memory.write(this.#key, verdict || learned ? JSON.stringify({ verdict, learned }) : null);
  }
}

function parse(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return {};
  }
}

const isVerdict = (verdict) => isTime(verdict?.until) && typeof verdict.why === 'string';

const isTime = (value) => typeof value === 'number' && value > 0;
