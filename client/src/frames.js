// The frames of docs/protocol.md: bytes to plain objects and back.
// Decides what a well-formed frame is. Knows nothing of sessions, order, or the network.

export const MAX_CHANNEL = 46655;
const MAX_REASON_BYTES = 123;

/** The other side sent something that docs/protocol.md does not allow. */
export class ProtocolError extends Error {
  name = 'ProtocolError';
}

const refuse = (why) => {
  throw new ProtocolError(why);
};

const isText = (value) => typeof value === 'string';
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
const isFlag = (value) => typeof value === 'boolean';
const isCode = (value) => isCount(value) && value <= 0xffff;
const isPath = (value) => isText(value) && value.startsWith('/');
const isTextList = (value) => Array.isArray(value) && value.every(isText);
const isReason = (value) => isText(value) && utf8Length(value) <= MAX_REASON_BYTES;

const RESUME_KEYS = ['session', 'token', 'epoch'];

// One row per control frame: its letter, whether a channel number follows, its keys in wire order.
const CONTROL = {
  hello: {
    letter: 'H',
    keys: { v: isCount, session: isText, token: isText, epoch: isText, received: isCount },
    optional: [...RESUME_KEYS, 'received'],
  },
  welcome: {
    letter: 'W',
    keys: {
      session: isText,
      token: isText,
      epoch: isText,
      resumed: isFlag,
      received: isCount,
      grace: isCount,
      message: isCount,
      window: isCount,
    },
    // A gateway that does not name them bounds nothing, and grants nothing.
    optional: ['message', 'window'],
  },
  end: { letter: 'X', keys: { code: isCode, reason: isText, retry: isFlag } },
  open: { letter: 'O', channel: true, keys: { url: isPath, protocols: isTextList } },
  accept: { letter: 'A', channel: true, keys: { protocol: isText } },
  refuse: { letter: 'R', channel: true, keys: { status: isCount, reason: isText } },
  close: {
    letter: 'C',
    channel: true,
    keys: { code: isCode, reason: isReason },
    optional: ['code', 'reason'],
  },
  grant: { letter: 'G', channel: true, keys: { bytes: isCount } },
  dropped: { letter: 'D', channel: true, keys: { messages: isCount } },
};

const KIND_BY_LETTER = Object.fromEntries(
  Object.entries(CONTROL).map(([kind, row]) => [row.letter, kind]),
);

/** Bytes that `text` takes in UTF-8. Lone surrogates count as U+FFFD, 3 bytes. */
export function utf8Length(text) {
  let bytes = text.length;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit < 0x80) continue;
    if (unit < 0x800) bytes += 1;
    else if (unit >= 0xd800 && unit < 0xdc00 && isLowSurrogate(text.charCodeAt(i + 1))) {
      bytes += 2;
      i++;
    } else bytes += 2;
  }
  return bytes;
}

/** Bytes of a message: of its UTF-8, when it is text. */
export const sizeOf = (data) => (isText(data) ? utf8Length(data) : data.length);

const isLowSurrogate = (unit) => unit >= 0xdc00 && unit < 0xe000;

/**
 * The end of the longest piece of `message` from `start` that takes no more than `limit` bytes on the wire,
 * escapes included, and ends at the border of a character.
 */
export function cutText(message, start, limit) {
  const piece = message.slice(start, start + limit);
  const escaped = piece.includes('\x1e');
  let room = limit;
  let end = start;
  while (end < start + piece.length) {
    const unit = message.charCodeAt(end);
    const isPair = unit >= 0xd800 && unit < 0xdc00 && isLowSurrogate(message.charCodeAt(end + 1));
    room -= unit < 0x80 ? 1 : unit < 0x800 ? 2 : isPair ? 4 : 3;
    if (escaped && (unit === 0x1e || unit === 0x5c)) room -= 1;
    if (room < 0) break;
    end += isPair ? 2 : 1;
  }
  return end;
}

/**
 * Decode one Engine.IO message.
 * @param {string | ArrayBuffer | Uint8Array} data
 * @returns {{kind: string, channel?: number, fields?: object, text?: string, data?: Uint8Array, more?: true, count?: number}}
 * @throws {ProtocolError}
 */
export function decode(data) {
  return isText(data) ? decodeText(data) : decodeBinary(data);
}

function decodeText(frame) {
  const letter = frame.charAt(0);
  if (letter === '+') return decodeAck(frame);
  if (frame === 'B') return { kind: 'bye' };
  const kind = KIND_BY_LETTER[letter];
  return kind ? decodeControl(kind, frame) : decodeMessage(frame);
}

function decodeAck(frame) {
  const digits = frame.slice(1);
  const count = /^(0|[1-9][0-9]*)$/.test(digits) ? Number(digits) : -1;
  return isCount(count) ? { kind: 'ack', count } : refuse('an ack without a proper count');
}

function decodeControl(kind, frame) {
  const row = CONTROL[kind];
  const start = frame.indexOf('{');
  if (start < 0) refuse(`${kind}: no JSON object`);
  const result = { kind };
  if (row.channel) result.channel = parseChannel(frame.slice(1, start));
  else if (start !== 1) refuse(`${kind}: characters before the JSON object`);
  result.fields = checkFields(kind, row, parseObject(kind, frame.slice(start)));
  return result;
}

function parseObject(kind, json) {
  try {
    return JSON.parse(json);
  } catch (error) {
    throw new ProtocolError(`${kind}: ${error.message}`);
  }
}

function checkFields(kind, row, object) {
  const fields = {};
  for (const [key, check] of Object.entries(row.keys)) {
    const value = object[key];
    if (value === undefined && row.optional?.includes(key)) continue;
    if (!check(value)) refuse(`${kind}: bad ${key}`);
    fields[key] = value;
  }
  checkTogether(kind, fields);
  return fields;
}

function checkTogether(kind, fields) {
  if (kind === 'hello') {
    const present = RESUME_KEYS.filter((key) => key in fields).length;
    const isWhole = present === RESUME_KEYS.length || (present === 0 && !('received' in fields));
    if (!isWhole) refuse('hello: half a resume');
  }
  if (kind === 'close' && 'reason' in fields && !('code' in fields)) {
    refuse('close: a reason without a code');
  }
}

function parseChannel(text) {
  // "zzz" is the largest, so three characters are also the limit of the number.
  return /^[1-9a-z][0-9a-z]{0,2}$/.test(text) ? parseInt(text, 36) : refuse('bad channel number');
}

function decodeMessage(frame) {
  const end = frame.search(/[:;.,]/);
  if (end < 1) refuse('unknown kind of frame');
  const channel = parseChannel(frame.slice(0, end));
  const mark = frame[end];
  const body = frame.slice(end + 1);
  const text = mark === ':' || mark === '.' ? body : unescape(body);
  return { kind: 'text', channel, text, ...moreIf(mark === '.' || mark === ',') };
}

const moreIf = (isPart) => (isPart ? { more: true } : null);

function unescape(body) {
  if (body.includes('\x1e')) refuse('U+001E in an escaped frame');
  return body.replace(/\\(.?)/gs, (_, next) => {
    if (next === 'e') return '\x1e';
    return next === '\\' ? '\\' : refuse('unknown escape');
  });
}

function decodeBinary(data) {
  const all = data instanceof Uint8Array ? data : new Uint8Array(data);
  const isPart = all[0] === 0;
  const bytes = isPart ? all.subarray(1) : all;
  let channel = 0;
  let length = 0;
  let byte;
  do {
    if (length === bytes.length || length === 3) refuse('bad channel number');
    byte = bytes[length];
    channel += (byte & 0x7f) << (7 * length++);
  } while (byte & 0x80);
  const tooLong = length > 1 && byte === 0;
  if (tooLong || channel < 1 || channel > MAX_CHANNEL) refuse('bad channel number');
  return { kind: 'binary', channel, data: bytes.subarray(length), ...moreIf(isPart) };
}

/** Encode a control frame; `fields` are written in the order of docs/protocol.md. */
export function control(kind, fields, channel = 0) {
  const row = CONTROL[kind];
  const ordered = {};
  for (const key of Object.keys(row.keys)) {
    if (fields[key] !== undefined) ordered[key] = fields[key];
  }
  return row.letter + (row.channel ? channel.toString(36) : '') + JSON.stringify(ordered);
}

export const BYE = 'B';

export const ack = (count) => `+${count}`;

/**
 * Encode a text message, or with `more` a part of one, of which more follows. U+001E would split an Engine.IO
 * polling payload, hence the escape.
 */
export function text(channel, message, more = false) {
  const number = channel.toString(36);
  if (!message.includes('\x1e')) return `${number}${more ? '.' : ':'}${message}`;
  const escaped = message.replace(/\\/g, '\\\\').replaceAll('\x1e', '\\e');
  return `${number}${more ? ',' : ';'}${escaped}`;
}

/** Encode a binary message, or with `more` a part of one; `bytes` are copied. */
export function binary(channel, bytes, more = false) {
  const head = more ? [0] : [];
  let rest = channel;
  while (rest > 0x7f) {
    head.push((rest & 0x7f) | 0x80);
    rest >>= 7;
  }
  head.push(rest);
  const frame = new Uint8Array(head.length + bytes.length);
  frame.set(head);
  frame.set(bytes, head.length);
  return frame;
}
