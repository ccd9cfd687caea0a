// What a page leaves to the one that is loaded in its place: the sessions that it had.
// Decides what is kept, and that only one page has it. Knows no session and no page.

import { ProtocolError, control, decode } from './frames.js';

// One line for each session: its endpoint, a space, and the hello that will resume it.
function write(kept) {
  const lines = [...kept].map(([endpoint, resume]) => {
    return `${endpoint} ${control('hello', { v: 1, ...resume })}`;
  });
  return lines.join('\n') || null;
}

function read(text) {
  const lines = text?.split('\n') ?? [];
  return new Map(lines.map((line) => line.split(' ')).filter(([, hello]) => isResume(hello)).map(readLine));
}

function readLine([endpoint, hello]) {
  const { session, token, epoch } = decode(hello).fields;
  return [endpoint, { session, token, epoch }];
}

// Any script of the origin may have written there.
function isResume(hello) {
  try {
    return Boolean(decode(hello ?? '').fields?.token);
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    return false;
  }
}

export class Handover {
  #memory;
  #path;
  #found;
  #key;
  #left = null;

  /**
   * `memory` is the tab's own, see Memory; `path()` is the path of the page. What was left is taken out at once:
   * a tab that is duplicated has a copy of all that lies there.
   */
  constructor(memory, path) {
    this.#memory = memory;
    this.#path = path;
    this.#found = read(this.#takeOut());
  }

  #takeOut() {
    this.#key = `gateway:sessions ${this.#path()}`;
    const text = this.#memory.read(this.#key);
    if (text !== null) this.#memory.write(this.#key, null);
    return text;
  }

  /** `{session, token, epoch}` of the endpoint's session, once, or null. */
  take(endpoint) {
    const resume = this.#found.get(endpoint) ?? null;
    this.#found.delete(endpoint);
    return resume;
  }

  /** The page goes, with sessions `[endpoint, resume]`. What it has not taken is for the next one, too. */
  leave(sessions) {
    const text = write(new Map([...this.#found, ...sessions]));
    this.#key = `gateway:sessions ${this.#path()}`;
    this.#memory.write(this.#key, text);
    this.#left = this.#memory.read(this.#key);
  }

  /** The page is back from the cache. Has nobody else taken what it had left, or left something else? */
  back() {
    const isOurs = this.#memory.read(this.#key) === this.#left;
    this.#memory.write(this.#key, null);
    return isOurs;
  }
}
