// The demo page: shows what GatewaySocket knows of its connection, and what the room of the demo says.
// Decides words and pictures. Knows the public API of the client and the messages that are listed in
// gateway/routes/demo.py, nothing of transports. No markup is ever made from text that came from elsewhere.

const GatewaySocket = globalThis.GatewaySocket;

const PING_MS = 1000;
const WINDOW_MS = 60_000;
// A line over a longer silence would show times that nobody measured.
const GAP_MS = 3500;
const MAX_WAITING = 5;
const MAX_EVENTS = 40;
const MAX_LINES = 60;
const REOPEN_MS = 1000;
const REOPEN_MAX_MS = 30_000;
const SOCKET_URL = new URL('/_gateway/demo', location.href).href;

const TRANSPORTS = { websocket: 'WebSocket', polling: 'long-polling' };
const IN_FULL = { websocket: 'WebSocket', polling: 'HTTP long-polling' };
const LOST = {
  silence: 'The server has not been heard of for too long.',
  offline: 'This computer is offline.',
  'sign-in': 'The answer was a login page: sign in again.',
  server: 'The server, or a proxy on the way, answered with an error.',
  network: 'The server cannot be reached.',
  timeout: 'The server did not answer in time.',
  ended: 'The server is stopping, and asks to come back.',
};

const byId = (id) => document.getElementById(id);

/** An element with a class, attributes and children, which are text or elements. */
function make(name, { className, ...attributes } = {}, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  setAll(element, attributes);
  element.append(...children);
  return element;
}

function draw(name, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  setAll(element, attributes);
  element.append(...children);
  return element;
}

function setAll(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
}

// Screen readers say a text again when it is written again.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const milliseconds = (value) => (value < 9.95 ? value.toFixed(1) : String(Math.round(value)));

const face = ({ animal, colour }) =>
  make('span', { className: 'face', 'data-colour': colour, 'aria-hidden': 'true' }, animal[0]);

// ---- what happened ---------------------------------------------------------------------------

/** The newest on top. `kind` is 'good', 'bad' or 'plain'. */
class History {
  #list = byId('history');

  add(kind, what, reason = '') {
    const time = make('time', {}, sincePageOpened(performance.now()));
    const item = make('li', { 'data-kind': kind }, make('span', { className: 'what' }, what, time));
    if (reason) item.append(make('span', { className: 'reason' }, reason));
    this.#list.prepend(item);
    while (this.#list.children.length > MAX_EVENTS) this.#list.lastElementChild.remove();
  }
}

function sincePageOpened(ms) {
  if (ms < 60_000) return `${(ms / 1000).toFixed(2)} s`;
  const seconds = Math.floor(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')} min`;
}

// ---- how it is connected ---------------------------------------------------------------------

/** The big line: `lead` may stand above `what`. `mood` is 'waiting', 'live' or 'lost'. */
function showState(mood, lead, what, why) {
  document.body.dataset.mood = mood;
  write(byId('lead'), lead);
  write(byId('what'), what);
  write(byId('why'), why);
  document.title = `${lead}${what} – gateway`;
}

/** Turns the events of the client into the big line and into history. */
class Status {
  #history;
  #transport = null;
  #why = '';
  #lost = false;

  constructor(history) {
    this.#history = history;
  }

  /** The page's events, each with what it calls. */
  listen() {
    const on = (type, handler) => addEventListener(`gateway:${type}`, ({ detail }) => handler(detail));
    on('transport', (detail) => this.#moved(detail));
    on('lost', (detail) => this.#wentAway(detail));
    on('back', (detail) => this.#cameBack(detail));
    on('gap', () => this.#forgotten());
    on('gone', (detail) => this.#ended(detail));
  }

  #moved({ transport, why }) {
    this.#history.add(...this.#move(transport), why);
    this.#transport = transport;
    this.#why = why;
    if (!this.#lost) this.#showLive();
  }

  #move(transport) {
    const name = IN_FULL[transport];
    const from = this.#transport;
    if (from === null) return ['good', `Connected over ${name}`];
    if (from === transport) return ['plain', `${this.#lost ? 'Connected' : 'Stays'} on ${name}`];
    return ['good', transport === 'websocket' ? `Moved up to ${name}` : `Moved to ${name}`];
  }

  #showLive() {
    showState('live', 'Live over ', IN_FULL[this.#transport], this.#why);
  }

  #wentAway({ reason }) {
    this.#lost = true;
    const why = LOST[reason] ?? 'The connection ended.';
    this.#history.add('bad', 'Connection lost', why);
    showState('lost', '', 'Connection lost', `${why} It is being tried again.`);
  }

  #cameBack({ resumed }) {
    this.#lost = false;
    const what = resumed ? 'Nothing was lost meanwhile.' : 'A new session has begun.';
    this.#history.add('good', 'Connected again', what);
    this.#showLive();
  }

  #forgotten() {
    this.#history.add('bad', 'The session was over', 'What was under way is lost.');
  }

  #ended({ reason }) {
    this.#lost = true;
    this.#history.add('bad', 'The server ended the session', reason);
    showState('lost', '', 'Ended by the server', 'Load the page again to come back.');
  }
}

// ---- round trips -----------------------------------------------------------------------------

/** Numbers the pings and checks that each is answered once and in order. */
class RoundTrips {
  #next = 0;
  #waiting = new Map();
  #answered = 0;
  #missing = 0;
  #disorder = 0;
  samples = [];

  /** The number of the next ping, or null while too many wait for their answer. */
  begin(now) {
    if (this.#waiting.size >= MAX_WAITING) return null;
    this.#waiting.set(++this.#next, now);
    return this.#next;
  }

  end(number, now, transport) {
    const [first] = this.#waiting.keys();
    const began = this.#waiting.get(number);
    if (first !== number) this.#disorder += 1;
    if (began === undefined) return;
    this.#waiting.delete(number);
    this.#answered += 1;
    this.samples.push({ at: now, ms: now - began, transport });
  }

  /** The socket is gone: what was under way will not be answered. */
  giveUp() {
    this.#missing += this.#waiting.size;
    this.#waiting.clear();
  }

  show(now) {
    this.samples = this.samples.filter(({ at }) => now - at <= WINDOW_MS);
    const times = this.samples.map(({ ms }) => ms);
    write(byId('last'), times.length ? milliseconds(times.at(-1)) : '–');
    write(byId('median'), times.length ? milliseconds(median(times)) : '–');
    write(byId('answered'), String(this.#answered));
    write(byId('missing'), String(this.#missing));
    write(byId('disorder'), String(this.#disorder));
  }
}

const SCALES = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000];
const MARGIN = { top: 10, right: 8, bottom: 6, left: 46 };

/** The smallest scale that holds nine tenths of the times well: an outlier must not flatten the rest. */
function scaleOf(times) {
  const sorted = [...times].sort((a, b) => a - b);
  const most = sorted[Math.ceil(sorted.length * 0.9) - 1] ?? 0;
  return SCALES.find((scale) => scale >= most * 1.25) ?? SCALES.at(-1);
}

/** Samples that are joined by a line: the same transport, and no silence between. */
function runsOf(samples) {
  const runs = [];
  let last = null;
  for (const sample of samples) {
    const joined = last && last.transport === sample.transport && sample.at - last.at < GAP_MS;
    if (joined) runs.at(-1).push(sample);
    else runs.push([sample]);
    last = sample;
  }
  return runs;
}

/** Times over the last minute, as an SVG of the size that the page gives it. */
class Plot {
  #box = byId('plot');
  #svg = draw('svg', { 'aria-hidden': 'true' });

  constructor(redraw) {
    this.#box.append(this.#svg);
    new ResizeObserver(redraw).observe(this.#box);
  }

  show(samples, now) {
    const { clientWidth: width, clientHeight: height } = this.#box;
    const top = scaleOf(samples.map(({ ms }) => ms));
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const x = (at) => MARGIN.left + inner.width * (1 - (now - at) / WINDOW_MS);
    const y = (ms) => MARGIN.top + inner.height * (1 - Math.min(ms, top) / top);
    const runs = runsOf(samples);
    this.#svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.#svg.replaceChildren(
      ...[0, 0.5, 1].flatMap((part) => gridLine(top * part, y(top * part), width)),
      ...changesOf(runs).map((at) => changeLine(x(at), height)),
      ...runs.map((run) => line(run, x, y)),
      ...samples.map((sample) => (sample.ms > top ? beyond : dot)(sample, x, y, sample === samples.at(-1))),
    );
  }
}

function gridLine(ms, y, width) {
  const name = ms ? 'grid' : 'base';
  const rule = draw('line', { class: name, x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y });
  const label = draw('text', { x: MARGIN.left - 8, y: y + 4, 'text-anchor': 'end' }, `${ms} ms`);
  return [rule, label];
}

function changesOf(runs) {
  const changed = (run, index) => index > 0 && runs[index - 1][0].transport !== run[0].transport;
  return runs.filter(changed).map((run) => run[0].at);
}

function changeLine(x, height) {
  return draw('line', { class: 'change', x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom });
}

function line(run, x, y) {
  const points = run.map(({ at, ms }) => `${x(at).toFixed(1)},${y(ms).toFixed(1)}`).join(' ');
  return draw('polyline', { class: 'run', 'data-transport': run[0].transport, points });
}

function dot({ at, ms, transport }, x, y, latest) {
  const name = latest ? 'latest' : 'sample';
  const radius = latest ? 4 : 2;
  return draw('circle', { class: name, 'data-transport': transport, cx: x(at), cy: y(ms), r: radius });
}

/** An outlier: an arrow at the upper edge. */
function beyond({ at, ms, transport }, x, y) {
  const edge = y(ms);
  const d = `M${x(at)} ${edge - 7}l4.5 7h-9z`;
  return draw('path', { 'data-transport': transport, d });
}

// ---- who is here -----------------------------------------------------------------------------

class People {
  #people = new Map();
  #items = new Map();
  #me = null;
  #list = byId('people');

  /** All of them at once; `me` is the id of this tab. */
  begin(me, people) {
    this.#me = me;
    this.#people = new Map(people.map((person) => [person.id, person]));
    this.#items.clear();
    const [mine, others] = [people.filter(({ id }) => id === me), people.filter(({ id }) => id !== me)];
    this.#list.replaceChildren(...[...mine, ...others].map((person) => this.#item(person)));
    this.#count();
  }

  isMe(id) {
    return id === this.#me;
  }

  get myAnimal() {
    return this.#people.get(this.#me)?.animal ?? null;
  }

  join(person) {
    this.#people.set(person.id, person);
    const item = this.#item(person);
    item.classList.add('arriving');
    this.#list.append(item);
    this.#count();
  }

  leave(id) {
    this.#people.delete(id);
    this.#items.get(id)?.remove();
    this.#items.delete(id);
    this.#count();
  }

  change(id, transport) {
    const badge = this.#items.get(id)?.querySelector('.badge');
    if (badge) setTransport(badge, transport);
  }

  #item(person) {
    const name = make('span', { className: 'name' }, person.animal);
    if (this.isMe(person.id)) name.append(make('span', { className: 'you' }, 'this tab'));
    const badge = make('span', { className: 'badge' });
    setTransport(badge, person.transport);
    const item = make('li', {}, face(person), name, badge);
    this.#items.set(person.id, item);
    return item;
  }

  #count() {
    const { size } = this.#people;
    write(byId('people-count'), size === 1 ? '1 tab' : `${size} tabs`);
  }
}

function setTransport(badge, transport) {
  badge.dataset.transport = transport;
  write(badge, TRANSPORTS[transport] ?? transport);
}

// ---- echo and chat ---------------------------------------------------------------------------

class Talk {
  #log = byId('log');
  #text = byId('text');
  #note = byId('note');
  #isMe;
  #echoes = [];

  /** `say(mode, text)` sends it, or returns a sentence that says why it cannot. */
  constructor({ say, isMe }) {
    this.#isMe = isMe;
    byId('form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit(say);
    });
    for (const mode of document.querySelectorAll('input[name=mode]')) {
      mode.addEventListener('change', () => {
        this.#text.placeholder = mode.value === 'chat' ? 'Hello, everyone' : 'Anything at all';
      });
    }
  }

  begin(lines) {
    this.#log.replaceChildren(...lines.map((line) => this.#line(line)));
    this.#echoes = [];
    if (!lines.length) this.#log.append(make('li', { className: 'empty' }, 'Nobody has said anything yet.'));
    this.#toEnd();
    this.note('');
    this.#text.disabled = byId('send').disabled = false;
  }

  chat(line) {
    this.#append(this.#line(line));
  }

  echo(text) {
    const sent = this.#echoes.shift();
    const took = sent === undefined ? '' : `${milliseconds(performance.now() - sent)} ms`;
    const time = make('span', { className: 'took' }, took);
    this.#append(make('li', {}, arrow('←'), make('span', { className: 'said echo' }, text, ' ', time)));
  }

  /** The server did not take it: the one that was sent last. */
  refused(sentence) {
    this.#echoes.pop();
    this.note(sentence);
  }

  note(sentence) {
    write(this.#note, sentence);
  }

  #submit(say) {
    const text = this.#text.value.trim();
    if (!text) return;
    const mode = document.querySelector('input[name=mode]:checked').value;
    const trouble = say(mode, text);
    this.note(trouble ?? '');
    if (trouble) return;
    this.#text.value = '';
    if (mode === 'echo') this.#sentEcho(text);
  }

  #sentEcho(text) {
    this.#echoes.push(performance.now());
    this.#append(make('li', {}, arrow('→'), make('span', { className: 'said echo' }, text)));
  }

  #line({ id, animal, colour, text, at }) {
    const time = new Date(at);
    const clock = time.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' });
    const who = make('span', { className: 'who' }, this.#isMe(id) ? `${animal}, this tab` : animal);
    who.append(make('time', { datetime: time.toISOString() }, clock));
    return make('li', {}, face({ animal, colour }), make('div', { className: 'said' }, who, text));
  }

  #append(item) {
    this.#log.querySelector('.empty')?.remove();
    this.#log.append(item);
    while (this.#log.children.length > MAX_LINES) this.#log.firstElementChild.remove();
    this.#toEnd();
  }

  #toEnd() {
    this.#log.scrollTop = this.#log.scrollHeight;
  }
}

const arrow = (text) => make('span', { className: 'arrow', 'aria-hidden': 'true' }, text);

// ---- this tab --------------------------------------------------------------------------------

const KEY = 'gateway-demo:tab';
const ANIMAL = 'gateway-demo:animal';
const BLOCKED = 'gateway-demo:blocked';

// A page in a sandboxed frame, or with site data switched off, may not touch its storage.
function tryStorage(action) {
  try {
    return action(sessionStorage);
  } catch (error) {
    if (error.name !== 'SecurityError') throw error;
    return null;
  }
}

// getRandomValues also works where a page was not served over TLS, randomUUID does not.
const randomKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');

/**
 * A secret by which a reload is recognised as the same tab. It is in the tab's storage only while no
 * page is shown: a tab that is duplicated copies the storage, and must not copy this.
 */
function ownKey() {
  const key = tryStorage((storage) => storage.getItem(KEY)) ?? randomKey();
  const hide = () => tryStorage((storage) => storage.setItem(KEY, key));
  const take = () => tryStorage((storage) => storage.removeItem(KEY));
  addEventListener('pagehide', hide);
  addEventListener('pageshow', take);
  return key;
}

// ---- the socket ------------------------------------------------------------------------------

/** A socket to the room, opened again whenever it is closed. `receive(fields)` gets the messages. */
class Room {
  #socket = null;
  #key = ownKey();
  #delay = REOPEN_MS;
  #receive;
  #lost;
  #turnedAway;

  constructor({ receive, lost, turnedAway }) {
    this.#receive = receive;
    this.#lost = lost;
    this.#turnedAway = turnedAway;
  }

  get isOpen() {
    return this.#socket?.readyState === GatewaySocket.OPEN;
  }

  open() {
    const socket = new GatewaySocket(SOCKET_URL);
    this.#socket = socket;
    let letIn = false;
    socket.addEventListener('open', () => {
      letIn = true;
      this.#opened();
    });
    socket.addEventListener('message', ({ data }) => this.#receive(JSON.parse(data)));
    socket.addEventListener('close', () => this.#closed(letIn));
  }

  send(fields) {
    this.#socket.send(JSON.stringify(fields));
  }

  #opened() {
    this.#delay = REOPEN_MS;
    this.send({ type: 'hello', tab: this.#key, animal: tryStorage((storage) => storage.getItem(ANIMAL)) });
  }

  #closed(letIn) {
    this.#lost();
    if (!letIn && GatewaySocket.connection.state === 'open') this.#turnedAway();
    if (GatewaySocket.connection.state === 'gone') return;
    setTimeout(() => this.open(), this.#delay);
    this.#delay = Math.min(2 * this.#delay, REOPEN_MAX_MS);
  }
}

// ---- the page --------------------------------------------------------------------------------

function start() {
  const history = new History();
  new Status(history).listen();
  const trips = new RoundTrips();
  const people = new People();
  const redraw = () => show(trips, plot);
  const plot = new Plot(redraw);

  const room = new Room({
    receive: (fields) => receivers[fields.type]?.(fields),
    lost: () => trips.giveUp(),
    turnedAway: () => talk.note('The room is closed to this tab at the moment. It tries again.'),
  });
  const talk = new Talk({
    isMe: (id) => people.isMe(id),
    say: (mode, text) => say(room, mode, text),
  });
  const receivers = {
    welcome: ({ you, people: all, lines }) => {
      people.begin(you, all);
      talk.begin(lines);
      tryStorage((storage) => storage.setItem(ANIMAL, people.myAnimal));
    },
    join: ({ person }) => people.join(person),
    leave: ({ id }) => people.leave(id),
    transport: ({ id, transport }) => people.change(id, transport),
    chat: ({ line }) => talk.chat(line),
    echo: ({ text }) => talk.echo(text),
    error: ({ text }) => talk.refused(text),
    pong: ({ n }) => {
      trips.end(n, performance.now(), GatewaySocket.connection.transport ?? 'polling');
      redraw();
    },
  };

  const ping = () => sendPing(room, trips);
  // The room learns of a new transport from the next message: let it come at once.
  addEventListener('gateway:transport', ping);
  addEventListener('gateway:back', () => talk.note(''));
  setInterval(() => {
    ping();
    redraw();
  }, PING_MS);
  wireSwitch(history);
  write(byId('version'), GatewaySocket.version);
  room.open();
}

function show(trips, plot) {
  const now = performance.now();
  trips.show(now);
  plot.show(trips.samples, now);
}

// While the connection is away there is nothing to measure but how long it is away.
function sendPing(room, trips) {
  if (!room.isOpen || GatewaySocket.connection.state !== 'open') return;
  const n = trips.begin(performance.now());
  if (n !== null) room.send({ type: 'ping', n });
}

function say(room, mode, text) {
  if (!room.isOpen) return 'Not connected. Your text stays here until it is.';
  room.send({ type: mode, text });
  return undefined;
}

function wireSwitch(history) {
  const block = byId('block');
  block.disabled = false;
  block.checked = tryStorage((storage) => storage.getItem(BLOCKED)) === 'yes';
  GatewaySocket.blockWebSocket(block.checked);
  block.addEventListener('change', () => {
    tryStorage((storage) => storage.setItem(BLOCKED, block.checked ? 'yes' : 'no'));
    history.add('plain', block.checked ? 'Switch: WebSocket blocked' : 'Switch: WebSocket allowed');
    GatewaySocket.blockWebSocket(block.checked);
  });
}

function wireCopy() {
  for (const button of document.querySelectorAll('[data-copy]')) {
    // Only pages that came over TLS, or from this computer, may use the clipboard.
    button.hidden = !navigator.clipboard;
    button.addEventListener('click', async () => {
      await navigator.clipboard.writeText(byId(button.dataset.copy).textContent);
      write(button, 'Copied');
      setTimeout(() => write(button, 'Copy'), 2000);
    });
  }
}

wireCopy();
if (GatewaySocket) start();
else {
  const why = 'client.js could not be loaded, so this page cannot connect.';
  showState('lost', '', 'The client script is missing', why);
}
