// GatewaySocket: the WebSocket interface, as the WHATWG standard has it, on a channel of a session.
// Decides what a script sees: arguments, errors, states, events. Knows nothing of the network.

import { sizeOf, utf8Length } from './frames.js';

const CONNECTING = 0;
const OPEN = 1;
const CLOSING = 2;
const CLOSED = 3;
const STATES = { CONNECTING, OPEN, CLOSING, CLOSED };

const MAX_REASON_BYTES = 123;
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const EVENTS = ['open', 'message', 'error', 'close'];
const LONE_SURROGATE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** WebIDL USVString. Browsers of before 2023 have no toWellFormed(). */
function toUsv(value) {
  const text = `${value}`;
  return text.toWellFormed?.() ?? text.replace(LONE_SURROGATE, '\ufffd');
}

const tagOf = (value) => Object.prototype.toString.call(value).slice(8, -1);
const isBuffer = (value) => tagOf(value) === 'ArrayBuffer';
const isBlob = (value) => ['Blob', 'File'].includes(tagOf(value));

/** The bytes of an ArrayBuffer or a view, copied: the caller may change them at once. */
function copyBytes(data) {
  if (isBuffer(data)) return new Uint8Array(data.slice(0));
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
}

/** WebIDL `[Clamp] unsigned short`. */
function clampShort(value) {
  const number = Math.min(Math.max(Number(value), 0), 0xffff);
  if (Number.isNaN(number)) return 0;
  const floor = Math.floor(number);
  const half = number - floor;
  if (half !== 0.5) return Math.round(number);
  return floor % 2 ? floor + 1 : floor;
}

/** WebIDL `(DOMString or sequence<DOMString>)`. */
function toProtocols(value) {
  const isObject = (typeof value === 'object' && value !== null) || typeof value === 'function';
  if (!isObject || value[Symbol.iterator] == null) return [`${value}`];
  return Array.from(value, (item) => `${item}`);
}

/**
 * Make the class for a page. `page` has `DOMException`, `EventTarget`, `Event`, `MessageEvent`,
 * `CloseEvent`, `Blob`, `baseUrl()`, `sessionFor(URL)`, `pathOf(URL)` for the gateway, `gap(URL, count)` for
 * messages that were dropped, and `task(callback)`, which runs each callback in a task of its own, in order.
 */
export function defineGatewaySocket(page) {
  const syntaxError = (text) => new page.DOMException(text, 'SyntaxError');

  function parseUrl(text) {
    let url;
    try {
      url = new URL(toUsv(text), page.baseUrl());
    } catch {
      throw syntaxError(`The URL '${text}' is invalid.`);
    }
    // The standard lets only these two change into ws and wss.
    if (url.protocol === 'http:' || url.protocol === 'https:') {
      url = new URL(url.href.replace(/^http/, 'ws'));
    }
    if (url.protocol !== 'ws:' && url.protocol !== 'wss:') {
      throw syntaxError(`The URL's scheme must be 'ws', 'wss', 'http' or 'https', not '${url.protocol}'`);
    }
    if (url.href.includes('#')) throw syntaxError('The URL contains a fragment identifier.');
    return url;
  }

  function checkProtocols(protocols) {
    for (const [index, protocol] of protocols.entries()) {
      if (!TOKEN.test(protocol)) throw syntaxError(`The subprotocol '${protocol}' is invalid.`);
      if (protocols.indexOf(protocol) !== index) {
        throw syntaxError(`The subprotocol '${protocol}' is duplicated.`);
      }
    }
    return protocols;
  }

  function closeFields(code, reason) {
    // Chromium takes an absent code for 0 as soon as there is a reason.
    const checked = code === undefined && reason === undefined ? undefined : clampShort(code);
    if (checked !== undefined && checked !== 1000 && !(checked >= 3000 && checked <= 4999)) {
      throw new page.DOMException(
        `The close code must be 1000, or between 3000 and 4999. ${checked} is neither.`,
        'InvalidAccessError',
      );
    }
    const text = reason === undefined ? '' : toUsv(reason);
    if (utf8Length(text) > MAX_REASON_BYTES) {
      throw syntaxError('The close reason must not be greater than 123 UTF-8 bytes.');
    }
    return fieldsOf(checked, text);
  }

  class GatewaySocket extends page.EventTarget {
    #url;
    #origin;
    #protocol = '';
    #state = CONNECTING;
    #binaryType = 'blob';
    #buffered = 0;
    #channel;
    #handlers = {};
    // Sends that wait for the bytes of a Blob before them.
    #queue = Promise.resolve();
    #queued = 0;

    constructor(url, protocols = []) {
      if (!arguments.length) throw new TypeError('1 argument required, but only 0 present.');
      super();
      const parsed = parseUrl(url);
      const offered = checkProtocols(toProtocols(protocols));
      this.#url = parsed.href;
      this.#origin = parsed.origin;
      this.#channel = page.sessionFor(parsed).open({
        url: page.pathOf(parsed),
        protocols: offered,
        sink: this.#sink(parsed),
      });
    }

    get url() {
      return this.#url;
    }

    get readyState() {
      return this.#state;
    }

    get bufferedAmount() {
      return this.#buffered;
    }

    get extensions() {
      return '';
    }

    get protocol() {
      return this.#protocol;
    }

    get binaryType() {
      return this.#binaryType;
    }

    set binaryType(value) {
      // As for every WebIDL enumeration, an unknown value is ignored.
      if (['blob', 'arraybuffer'].includes(`${value}`)) this.#binaryType = `${value}`;
    }

    send(data) {
      if (!arguments.length) throw new TypeError('1 argument required, but only 0 present.');
      const blob = isBlob(data);
      const copied = blob || this.#convert(data);
      const size = blob ? data.size : sizeOf(copied);
      if (this.#state === CONNECTING) {
        throw new page.DOMException('Still in CONNECTING state.', 'InvalidStateError');
      }
      this.#buffered += size;
      if (this.#state !== OPEN) return;
      const pass = (value) => this.#channel.send(value, (bytes) => (this.#buffered -= bytes));
      if (blob) this.#inTurn(async () => pass(new Uint8Array(await data.arrayBuffer())));
      else if (this.#queued) this.#inTurn(() => pass(copied));
      else pass(copied);
    }

    close(code = undefined, reason = undefined) {
      const fields = closeFields(code, reason);
      if (this.#state >= CLOSING) return;
      this.#state = CLOSING;
      if (this.#queued) this.#inTurn(() => this.#channel.close(fields));
      else this.#channel.close(fields);
    }

    #convert(data) {
      return isBuffer(data) || ArrayBuffer.isView(data) ? copyBytes(data) : toUsv(data);
    }

    #inTurn(step) {
      this.#queued += 1;
      this.#queue = this.#queue
        .then(step)
        // A Blob whose file has changed on disk cannot be read: a browser fails the connection.
        .catch(() => this.#channel.fail())
        .then(() => {
          this.#queued -= 1;
        });
    }

    #sink(url) {
      return {
        accept: (protocol) => page.task(() => this.#opened(protocol)),
        message: (data) => page.task(() => this.#received(data)),
        // In its place between the messages.
        dropped: (count) => page.task(() => page.gap(url, count)),
        close: (end) => this.#ended(end),
      };
    }

    #opened(protocol) {
      if (this.#state !== CONNECTING) return;
      this.#state = OPEN;
      this.#protocol = protocol;
      this.dispatchEvent(new page.Event('open'));
    }

    #received(data) {
      if (this.#state !== OPEN) return;
      const value = typeof data === 'string' ? data : this.#toBinaryType(data);
      this.dispatchEvent(new page.MessageEvent('message', { data: value, origin: this.#origin }));
    }

    #toBinaryType(bytes) {
      const copy = bytes.slice();
      return this.#binaryType === 'blob' ? new page.Blob([copy]) : copy.buffer;
    }

    #ended({ code, reason, clean, failed }) {
      page.task(() => {
        this.#state = CLOSED;
        if (failed) this.dispatchEvent(new page.Event('error'));
      });
      page.task(() => {
        this.dispatchEvent(new page.CloseEvent('close', { code, reason, wasClean: clean }));
      });
    }

    static {
      for (const type of EVENTS) {
        Object.defineProperty(this.prototype, `on${type}`, {
          configurable: true,
          enumerable: true,
          get() {
            return this.#handlers[type]?.value ?? null;
          },
          set(value) {
            this.#handle(type, value);
          },
        });
      }
    }

    // An event handler keeps the place in the order of listeners that it got when it was first set.
    #handle(type, value) {
      const usable = typeof value === 'function' || (typeof value === 'object' && value !== null);
      const current = this.#handlers[type];
      if (current && usable) current.value = value;
      else if (current) this.#removeHandler(type, current);
      else if (usable) this.#addHandler(type, value);
    }

    #addHandler(type, value) {
      const handler = { value };
      handler.listener = (event) => {
        if (typeof handler.value === 'function') handler.value.call(this, event);
      };
      this.#handlers[type] = handler;
      this.addEventListener(type, handler.listener);
    }

    #removeHandler(type, handler) {
      this.removeEventListener(type, handler.listener);
      delete this.#handlers[type];
    }
  }

  describe(GatewaySocket);
  return GatewaySocket;
}

function fieldsOf(code, reason) {
  if (code === undefined) return {};
  return reason ? { code, reason } : { code };
}

// Constants on both sides, members enumerable, and the name that code looks for when it asks what
// kind of object it holds: to all of that a WebSocket has to look like one.
function describe(GatewaySocket) {
  const { prototype } = GatewaySocket;
  for (const [name, value] of Object.entries(STATES)) {
    const constant = { value, enumerable: true };
    Object.defineProperty(GatewaySocket, name, constant);
    Object.defineProperty(prototype, name, constant);
  }
  for (const name of Object.getOwnPropertyNames(prototype)) {
    if (name === 'constructor') continue;
    Object.defineProperty(prototype, name, { enumerable: true });
  }
  Object.defineProperty(prototype, Symbol.toStringTag, {
    value: 'WebSocket',
    configurable: true,
  });
}
