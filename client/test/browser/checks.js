// What a page can see of a WebSocket. Each check is run with the browser's own class and with ours;
// the answers must be equal. `url` echoes everything and chooses the first subprotocol offered.

const outcome = async (action) => {
  try {
    return await action();
  } catch (error) {
    return `${error.constructor.name} ${error.name}`;
  }
};

const once = (socket, type) =>
  new Promise((resolve) => socket.addEventListener(type, resolve, { once: true }));

const opened = async (WebSocketClass, url, protocols) => {
  const socket = new WebSocketClass(url, protocols);
  await once(socket, 'open');
  return socket;
};

const describeData = async (data) => {
  if (typeof data === 'string') return data;
  const bytes = new Uint8Array(data instanceof Blob ? await data.arrayBuffer() : data);
  return `${data.constructor.name} ${bytes}`;
};

/** Send values, collect as many echoes. */
const echoes = async (WebSocketClass, url, values, prepare = () => {}) => {
  const socket = await opened(WebSocketClass, url);
  prepare(socket);
  const got = [];
  const all = new Promise((resolve) => {
    socket.onmessage = ({ data }) => {
      got.push(data);
      if (got.length === values.length) resolve();
    };
  });
  for (const value of values) socket.send(value);
  await all;
  socket.close();
  return Promise.all(got.map(describeData));
};

const closing = async (WebSocketClass, url, ...args) => {
  const socket = await opened(WebSocketClass, url);
  const closed = once(socket, 'close');
  socket.close(...args);
  const state = socket.readyState;
  const { code, reason, wasClean } = await closed;
  return [state, socket.readyState, code, reason, wasClean];
};

const throwing = (make) => (WebSocketClass, url) => outcome(() => make(WebSocketClass, url) && 'fine');

const URLS = {
  'a fragment': (url) => `${url}#x`,
  'an empty fragment': (url) => `${url}#`,
  'another scheme': () => 'ftp://x/',
  'no host': () => 'ws://',
  'a blob': () => 'blob:x',
  'a relative URL': () => 'x?y',
  'an http URL': (url) => url.replace('ws', 'http'),
  'a URL object': (url) => new URL(url),
};

const PROTOCOLS = [
  ['a', 'a'], '', 'a b', 'ä', {}, null, 5, ['a', null], new Set(['x', 'y']), [''], 'a/b', 'A,b', new String('s'),
  ['a', 'A'],
];

const CLOSE_ARGUMENTS = [
  [], [undefined], [undefined, undefined], [1000], [1000, 'done'], [4000, 'ä😀'], [3000.5], ['3000'], [1000, null],
  [1000, undefined],
];

const BAD_CLOSE = [
  [0], [999], [1001], [1002], [1006], [2999], [5000], [NaN], [null], [-1], [66536], ['x'], [1000, 'x'.repeat(124)],
  [undefined, 'reason only'], [undefined, 'x'.repeat(124)], [1, 'x'.repeat(124)], [undefined, ''],
];

const VALUES = [
  'text', '', '\u0000', '\u001e', 'a\u001eb\\e', '\ud800', '😀', 5, null, undefined, true, [1, 2], { a: 1 }, '\ufeff', '\u2028',
];

const table = (rows, name, check) =>
  Object.fromEntries(rows.map((row) => [`${name} ${JSON.stringify(row)}`, check(row)]));

export const CHECKS = {
  'names, lengths, tag': async (WebSocketClass, url) => {
    const socket = new WebSocketClass(url);
    const { prototype } = WebSocketClass;
    return [
      WebSocketClass.length, prototype.send.length, prototype.close.length, String(socket), JSON.stringify(socket),
      Object.keys(socket), Object.keys(prototype).sort(), Object.getPrototypeOf(prototype) === EventTarget.prototype,
      socket instanceof EventTarget,
    ];
  },
  constants: (WebSocketClass) =>
    ['CONNECTING', 'OPEN', 'CLOSING', 'CLOSED'].flatMap((name) => [
      Object.getOwnPropertyDescriptor(WebSocketClass, name),
      Object.getOwnPropertyDescriptor(WebSocketClass.prototype, name),
    ]),
  'properties of a new socket': (WebSocketClass, url) => {
    const socket = new WebSocketClass(`${url}/a b?c=ä`, ['p']);
    const names = ['readyState', 'bufferedAmount', 'extensions', 'protocol', 'binaryType', 'url', 'onopen', 'onclose'];
    return names.map((name) => socket[name]);
  },
  'no arguments': throwing((WebSocketClass) => new WebSocketClass()),
  'without new': throwing((WebSocketClass, url) => WebSocketClass(url)),
  'send without arguments': async (WebSocketClass, url) => {
    const socket = await opened(WebSocketClass, url);
    return outcome(() => socket.send());
  },
  'send while connecting': throwing((WebSocketClass, url) => new WebSocketClass(url).send('x')),
  'assigning read-only attributes': throwing((WebSocketClass, url) => {
    'use strict';
    new WebSocketClass(url).url = 'x';
  }),
  'binaryType values': (WebSocketClass, url) => {
    const socket = new WebSocketClass(url);
    return ['arraybuffer', 'nonsense', 'blob', '', 'ArrayBuffer'].map((value) => {
      socket.binaryType = value;
      return socket.binaryType;
    });
  },
  'handler values': (WebSocketClass, url) => {
    const socket = new WebSocketClass(url);
    return [() => {}, 5, null, 'x', {}, undefined].map((value) => {
      socket.onopen = value;
      return typeof socket.onopen;
    });
  },
  'handler order': async (WebSocketClass, url) => {
    const socket = new WebSocketClass(url);
    const order = [];
    socket.addEventListener('open', () => order.push(1));
    socket.onopen = () => order.push('old');
    socket.addEventListener('open', () => order.push(3));
    socket.onopen = () => order.push(2);
    await once(socket, 'open');
    return order;
  },
  'open event': async (WebSocketClass, url) => {
    const socket = new WebSocketClass(url, ['one', 'two']);
    const event = await once(socket, 'open');
    const { type, bubbles, cancelable, constructor, target } = event;
    return [type, bubbles, cancelable, constructor.name, target === socket, socket.readyState, socket.protocol];
  },
  'message event': async (WebSocketClass, url) => {
    const socket = await opened(WebSocketClass, url);
    socket.send('x');
    const { type, data, origin, lastEventId, source, ports, bubbles, cancelable, constructor } = await once(socket, 'message');
    return [type, data, origin, lastEventId, source, ports.length, bubbles, cancelable, constructor.name];
  },
  'close event': async (WebSocketClass, url) => {
    const socket = await opened(WebSocketClass, url);
    socket.close(4001, 'why');
    const { type, code, reason, wasClean, bubbles, cancelable, constructor } = await once(socket, 'close');
    return [type, code, reason, wasClean, bubbles, cancelable, constructor.name, socket.bufferedAmount];
  },
  'close while connecting': async (WebSocketClass, url) => {
    const socket = new WebSocketClass(url);
    const events = [];
    for (const type of ['open', 'error', 'close']) {
      socket.addEventListener(type, (event) => events.push([type, event.code, event.wasClean, socket.readyState]));
    }
    socket.close();
    const state = socket.readyState;
    await once(socket, 'close');
    return [state, events];
  },
  'a handler set after awaiting open misses nothing': async (WebSocketClass, url) => {
    const socket = new WebSocketClass(url);
    socket.onopen = () => {
      for (let i = 0; i < 200; i++) socket.send(String(i));
    };
    await once(socket, 'open');
    const got = [];
    await new Promise((resolve) => {
      socket.onmessage = async ({ data }) => {
        await null;
        if (got.push(data) === 200) resolve();
      };
    });
    return got;
  },
  'no message after close()': async (WebSocketClass, url) => {
    const socket = await opened(WebSocketClass, url);
    let after = 0;
    socket.send('a');
    socket.send('b');
    await once(socket, 'message');
    socket.onmessage = () => after++;
    socket.close();
    await once(socket, 'close');
    return after;
  },
  'bufferedAmount after close()': async (WebSocketClass, url) => {
    const socket = await opened(WebSocketClass, url);
    socket.close();
    socket.send('ä€😀');
    socket.send(new Blob(['abc']));
    socket.send(new Uint8Array(7));
    const before = socket.bufferedAmount;
    await once(socket, 'close');
    socket.send('x');
    return [before, socket.bufferedAmount];
  },
  'bufferedAmount returns to 0': async (WebSocketClass, url) => {
    const socket = await opened(WebSocketClass, url);
    socket.send('x'.repeat(100_000));
    const before = socket.bufferedAmount;
    await once(socket, 'message');
    return [before, socket.bufferedAmount];
  },
  'binary as arraybuffer': (WebSocketClass, url) =>
    echoes(WebSocketClass, url, [new Uint8Array([1, 2]), new Uint8Array([3, 4, 5]).subarray(1), new DataView(new ArrayBuffer(2)), new ArrayBuffer(0)], (socket) => {
      socket.binaryType = 'arraybuffer';
    }),
  'binary as blob, text between': (WebSocketClass, url) =>
    echoes(WebSocketClass, url, ['a', new Uint8Array([1]), 'b', new Blob(['c']), 'd', new Blob([new Uint8Array(3)])]),
  'large messages': async (WebSocketClass, url) => {
    const values = ['x'.repeat(300_000), 'ä'.repeat(200_000)];
    const got = await echoes(WebSocketClass, url, values);
    return got.map((text, i) => text === values[i]);
  },
  ...table(Object.keys(URLS), 'url:', (name) =>
    throwing((WebSocketClass, url) => new WebSocketClass(URLS[name](url))),
  ),
  ...table(PROTOCOLS, 'protocols:', (protocols) => (WebSocketClass, url) =>
    outcome(async () => (await opened(WebSocketClass, url, protocols)).protocol),
  ),
  ...table(CLOSE_ARGUMENTS, 'close', (args) => (WebSocketClass, url) => closing(WebSocketClass, url, ...args)),
  ...table(BAD_CLOSE, 'bad close', (args) =>
    throwing((WebSocketClass, url) => new WebSocketClass(url).close(...args)),
  ),
  ...table(VALUES, 'send', (value) => (WebSocketClass, url) => echoes(WebSocketClass, url, [value])),
};

/** Run one check with a class; a check that never ends is an answer, too. */
export async function answer(check, WebSocketClass, url) {
  const tooLong = new Promise((resolve) => setTimeout(resolve, 8000, 'never ended'));
  const value = await Promise.race([outcome(() => check(WebSocketClass, url)), tooLong]);
  return JSON.stringify(value);
}
