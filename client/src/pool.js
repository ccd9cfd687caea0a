// The sessions of a page: one for each endpoint, made at the first socket that needs it.
// Decides which session serves a URL. Knows no transport.

const PATH = '/_gateway/engine/';

/** The endpoint of a socket's URL: `/_gateway/engine/` at its origin, or the one configured. */
export function endpointOf(url, configured, base) {
  const endpoint = configured ? new URL(configured, base) : new URL(PATH, url);
  return endpoint.href.replace(/^ws/, 'http');
}

/**
 * The path of a socket's URL as the gateway knows it: a proxy that serves the gateway under a prefix,
 * as `/prefix/_gateway/engine/`, takes the prefix off every path.
 */
export function pathOf(url, endpoint) {
  const { host, pathname } = new URL(endpoint);
  const prefix = pathname.endsWith(PATH) ? pathname.slice(0, -PATH.length) : '';
  const below = host === url.host && url.pathname.startsWith(`${prefix}/`);
  return (below ? url.pathname.slice(prefix.length) : url.pathname) + url.search;
}

export class Pool {
  #sessions = new Map();
  // Sessions that have used all their channel numbers and still have open channels.
  #spent = new Set();
  #create;

  /** `create(endpoint)` makes a Session. */
  constructor(create) {
    this.#create = create;
  }

  get(endpoint) {
    const session = this.#sessions.get(endpoint);
    if (session && !session.exhausted) return session;
    for (const spent of this.#spent) if (!spent.size) this.#spent.delete(spent);
    if (session) this.#spent.add(session);
    const fresh = this.#create(endpoint);
    this.#sessions.set(endpoint, fresh);
    return fresh;
  }

  /** The session of an endpoint, if there is one. */
  peek(endpoint) {
    return this.#sessions.get(endpoint) ?? null;
  }

  /** What resumes the sessions in another page: `[endpoint, resume]` of each. */
  get kept() {
    const kept = [...this.#sessions].map(([endpoint, { kept: resume }]) => [endpoint, resume]);
    return kept.filter(([, resume]) => resume);
  }

  [Symbol.iterator]() {
    return [...this.#sessions.values(), ...this.#spent].values();
  }
}
