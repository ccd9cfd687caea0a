// Builds ../static/client.js and its source map from src/.
// --check: builds in memory and fails when the committed files differ. --size: prints the sizes.

import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';

const LIMIT_BYTES = 20 * 1024;
const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, '..', 'static', 'client.js');
const packages = join(here, 'node_modules');
const engine = join(packages, 'engine.io-client', 'build', 'esm');

// Only polling and WebSocket are wanted. The package's index, its table of default transports and
// its search for the global object (`Function('return this')`) would bring along the rest.
const REPLACED = {
  'engine.io-client/build/esm/transports/index.js': 'export const transports = {};',
  'engine.io-client/build/esm/globals.js': `
    export const nextTick = (callback) => Promise.resolve().then(callback);
    export const globalThisShim = globalThis;
    export const defaultBinaryType = 'arraybuffer';
    export const createCookieJar = () => undefined;`,
  // Our connections are made from options, not from a URL, and by browsers that all have CORS.
  'engine.io-client/build/esm/contrib/parseuri.js': 'export const parse = () => ({});',
  'engine.io-client/build/esm/contrib/has-cors.js': 'export const hasCORS = true;',
  // What every browser has had for long, and what we have already.
  'engine.io-client/build/esm/contrib/parseqs.js': `
    export const encode = (query) => new URLSearchParams(query).toString();
    export const decode = () => ({});`,
  'engine.io-client/build/esm/util.js': `
    import { utf8Length } from '../../../../src/frames.js';
    export const pick = () => ({});
    export const installTimerFunctions = (object) => {
      object.setTimeoutFn = (callback, delay) => setTimeout(callback, delay);
      object.clearTimeoutFn = (timer) => clearTimeout(timer);
    };
    export const byteLength = (data) =>
      typeof data === 'string' ? utf8Length(data) : Math.ceil(data.byteLength / 3) * 4;
    export const randomString = () => Math.random().toString(36).slice(2);`,
  'engine.io-parser/build/esm/contrib/base64-arraybuffer.js': `
    export const decode = (text) => {
      const raw = atob(text);
      const bytes = new Uint8Array(raw.length);
      for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
      return bytes.buffer;
    };`,
  '@socket.io/component-emitter/lib/esm/index.js': `
    export class Emitter {
      _listeners = {};
      on(event, listener) {
        (this._listeners[event] ??= []).push(listener);
        return this;
      }
      once(event, listener) {
        const once = (...details) => {
          this.off(event, once);
          listener.apply(this, details);
        };
        once.listener = listener;
        return this.on(event, once);
      }
      off(event, listener) {
        const kept = (one) => listener && one !== listener && one.listener !== listener;
        if (event) this._listeners[event] = this._listeners[event]?.filter(kept);
        else this._listeners = {};
        return this;
      }
      emit(event, ...details) {
        for (const listener of [...(this._listeners[event] ?? [])]) listener.apply(this, details);
        return this;
      }
    }
    const { prototype } = Emitter;
    prototype.emitReserved = prototype.emit;
    prototype.removeListener = prototype.removeAllListeners = prototype.off;`,
};
const ENTRY = `
  export { Socket } from './socket.js';
  export { Polling } from './transports/polling.js';
  export { WS as WebSocket } from './transports/websocket.js';`;

const minifyCss = (css) => css.replace(/\s+/g, ' ').replace(/ ?([{};:,]) /g, '$1').trim();

const onlyWhatIsUsed = {
  name: 'only-what-is-used',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^engine\.io-client$/ }, () => ({ path: 'entry', namespace: 'engine' }));
    onLoad({ filter: /^entry$/, namespace: 'engine' }, () => ({
      contents: ENTRY,
      resolveDir: engine,
    }));
    onLoad({ filter: /node_modules/ }, ({ path }) => {
      const name = Object.keys(REPLACED).find((end) => path === join(packages, end));
      return name ? { contents: REPLACED[name], resolveDir: dirname(path) } : undefined;
    });
    onLoad({ filter: /banner\.js$/ }, async ({ path }) => {
      const source = await readFile(path, 'utf8');
      return { contents: source.replace(/(?<=CSS = `)[^`]*/, minifyCss) };
    });
  },
};

async function bundle() {
  const { version } = JSON.parse(await readFile(join(here, 'package.json'), 'utf8'));
  const { outputFiles } = await build({
    absWorkingDir: here,
    entryPoints: ['src/index.js'],
    outfile: target,
    bundle: true,
    minify: true,
    format: 'iife',
    // adoptedStyleSheets, private fields, lookbehind: see docs/client.md.
    target: ['chrome94', 'firefox101', 'safari16.4'],
    mainFields: ['module'],
    conditions: ['browser'],
    charset: 'ascii',
    sourcemap: 'linked',
    legalComments: 'none',
    banner: { js: `/* gateway client ${version}, MIT; contains engine.io-client, MIT */` },
    // The package's private names. Its public ones, and ours, have no underscore.
    mangleProps: /^_[a-z]/,
    define: { __VERSION__: JSON.stringify(version), attachEvent: 'undefined' },
    plugins: [onlyWhatIsUsed],
    write: false,
  });
  return outputFiles;
}

async function isCurrent(file) {
  const committed = await readFile(file.path).catch((error) => {
    if (error.code !== 'ENOENT') throw error;
    return Buffer.alloc(0);
  });
  return committed.equals(file.contents);
}

const files = await bundle();
const script = files.find((file) => file.path === target).contents;
const packed = gzipSync(script, { level: 9 }).length;

if (process.argv.includes('--check')) {
  for (const file of files) {
    if (await isCurrent(file)) continue;
    console.error(`${file.path} is not what client/src builds: run "npm run build" in client/`);
    process.exitCode = 1;
  }
} else if (!process.argv.includes('--size')) {
  for (const file of files) await writeFile(file.path, file.contents);
}

console.log(`client.js: ${script.length} bytes, ${packed} gzipped (limit ${LIMIT_BYTES})`);
if (packed > LIMIT_BYTES) process.exitCode = 1;
