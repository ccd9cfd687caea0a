// XMLHttpRequest for Node, as much of it as our transport uses.
// Import this before the first connection is made.

import { AsyncLocalStorage } from 'node:async_hooks';
import { request } from 'node:http';

/** Which `http.Agent` the requests use that are made inside `pages.run(agent, …)`, and all that follows. */
export const pages = new AsyncLocalStorage();

class XMLHttpRequest {
  readyState = 0;
  status = 0;
  responseText = '';
  onload = () => {};
  onerror = () => {};
  onprogress = () => {};
  #request = null;
  #headers = {};
  #aborted = false;

  open(method, url) {
    Object.assign(this, { method, url });
  }

  setRequestHeader(name, value) {
    this.#headers[name] = value;
  }

  send(body) {
    const agent = pages.getStore();
    this.#request = request(this.url, { method: this.method, agent, headers: this.#headers });
    this.#request.on('response', (response) => this.#read(response));
    this.#request.on('error', (error) => this.#failed(error, body));
    this.#request.end(body ?? undefined);
  }

  // As browsers do, with a POST too: a connection that was idle, and is cut before the first byte of an
  // answer, may have been closed before the request arrived.
  #failed({ code }, body) {
    const again = this.#request.reusedSocket && code === 'ECONNRESET' && !this.#aborted;
    if (again) this.send(body);
    else this.#finish(0, '');
  }

  abort() {
    this.#aborted = true;
    this.#request?.destroy();
  }

  #read(response) {
    const pieces = [];
    response.on('data', (piece) => {
      pieces.push(piece);
      if (!this.#aborted) this.onprogress();
    });
    response.on('error', () => this.#finish(0, ''));
    response.on('end', () => this.#finish(response.statusCode, Buffer.concat(pieces).toString()));
  }

  #finish(status, text) {
    if (this.readyState === 4 || this.#aborted) return;
    Object.assign(this, { readyState: 4, status, responseText: text });
    if (status) this.onload();
    else this.onerror();
  }
}

globalThis.XMLHttpRequest = XMLHttpRequest;
