// A clock that stands still until a test moves it.

export class FakeClock {
  #now = 0;
  #timers = new Map();
  #soon = [];
  #lastId = 0;

  now = () => this.#now;
  wall = () => 1_700_000_000_000 + this.#now;
  soon = (callback) => this.#soon.push(callback);

  setTimeout = (callback, delay) => {
    this.#timers.set(++this.#lastId, { at: this.#now + delay, callback });
    return this.#lastId;
  };

  clearTimeout = (id) => this.#timers.delete(id);

  get waiting() {
    return this.#timers.size;
  }

  /** Run what was asked for `soon`, and what that asks for. */
  settle() {
    while (this.#soon.length) this.#soon.shift()();
  }

  /** Let `ms` pass; timers run in order, each at its own time. */
  pass(ms) {
    const end = this.#now + ms;
    this.settle();
    for (let next = this.#next(end); next; next = this.#next(end)) {
      this.#now = next.at;
      this.#timers.delete(next.id);
      next.callback();
      this.settle();
    }
    this.#now = end;
  }

  #next(end) {
    const due = [...this.#timers].map(([id, timer]) => ({ id, ...timer }));
    return due.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at || a.id - b.id)[0];
  }
}
