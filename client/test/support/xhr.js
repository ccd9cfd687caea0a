// XMLHttpRequest for Node, as much of it as engine.io-client's browser transport uses.
// The package's own stand-in for Node throws when an aborted request fails later.
// Import this before engine.io-client, which looks for the global when it is loaded.

import { request } from 'node:http';

class XMLHttpRequest {
  readyState = 0;
  status = 0;
  responseText = '';
  onreadystatechange = () => {};
  #request = null;

  open(method, url) {
    this.#request = request(url, { method });
  }

  setRequestHeader(name, value) {
    this.#request.setHeader(name, value);
  }

  send(body) {
    this.#request.on('response', (response) => this.#read(response));
    this.#request.on('error', () => this.#finish(0, ''));
    this.#request.end(body ?? undefined);
  }

  abort() {
    this.#request.destroy();
  }

  #read(response) {
    const pieces = [];
    response.on('data', (piece) => pieces.push(piece));
    response.on('error', () => this.#finish(0, ''));
    response.on('end', () => this.#finish(response.statusCode, Buffer.concat(pieces).toString()));
  }

  #finish(status, text) {
    if (this.readyState === 4) return;
    Object.assign(this, { readyState: 4, status, responseText: text });
    this.onreadystatechange();
  }
}

globalThis.XMLHttpRequest = XMLHttpRequest;
