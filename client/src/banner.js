// The small notice at the edge of the page while the connection is lost.
// Decides how it looks and where it stands. Is told what to say; starts nothing by itself.
// Works under `default-src 'self'`: a constructed style sheet, no inline style, no markup from text.

const BACK_MS = 2000;
const TICK_MS = 500;
const SAY_MS = 50;

export const TEXTS = Object.freeze({
  lost: 'Connection lost.',
  countdown: 'Trying again in {seconds} s',
  trying: 'Trying again …',
  now: 'Try now',
  back: 'Connected again',
  signIn: 'Sign in again.',
  reload: 'Reload',
  gone: 'The server has ended the connection.',
});

const CSS = `
:host {
  all: initial; position: fixed; z-index: 2147483647; left: 0; right: 0; bottom: 0;
  display: flex; justify-content: center; padding: 12px; pointer-events: none;
  color-scheme: light dark;
}
:host([hidden]) { display: none; }
:host(.top) { bottom: auto; top: 0; }
.box {
  display: flex; gap: 12px; align-items: center; flex-wrap: wrap; justify-content: center;
  max-width: min(32rem, calc(100vw - 24px)); box-sizing: border-box; padding: 8px 14px;
  pointer-events: auto; border-radius: 10px;
  font: var(--gateway-banner-font, 14px/1.4 system-ui, sans-serif);
  color: var(--gateway-banner-color, #fff); background: var(--gateway-banner-bg, #26282d);
  border: 1px solid var(--gateway-banner-border, rgb(255 255 255 / .18));
  box-shadow: var(--gateway-banner-shadow, 0 4px 20px rgb(0 0 0 / .35));
  animation: rise .18s ease-out;
}
.box[data-mood=back] { background: var(--gateway-banner-bg-back, #1c6b3a); }
.count { font-variant-numeric: tabular-nums; opacity: .85; }
button {
  font: inherit; color: inherit; cursor: pointer; padding: 3px 12px; border-radius: 7px;
  background: var(--gateway-banner-button-bg, rgb(255 255 255 / .14));
  border: 1px solid var(--gateway-banner-border, rgb(255 255 255 / .3));
}
button:hover { background: var(--gateway-banner-button-hover, rgb(255 255 255 / .26)); }
button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
span, button { unicode-bidi: plaintext; }
[hidden] { display: none; }
@keyframes rise { from { opacity: 0; transform: translateY(8px); } }
@media print { :host { display: none; } }
@media (prefers-reduced-motion: reduce) { .box { animation: none; } }
`;

const FIELDS = 'input,textarea,select,button,[contenteditable]';

const overlaps = (a, b) =>
  a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

export class Banner {
  #document;
  #clock;
  #texts;
  #retry;
  #reload;
  #parts = null;
  #timer = null;
  #sayTimer = null;
  #retryAt = null;

  /** `texts()` are TEXTS with the page's own; `retry()` and `reload()` are what the buttons do. */
  constructor({ document, clock, texts, retry, reload }) {
    this.#document = document;
    this.#clock = clock;
    this.#texts = texts;
    this.#retry = retry;
    this.#reload = reload;
  }

  /** The connection is lost; the next try is at `retryAt` (ms, time of day), null while one runs. */
  lost({ reason, retryAt }) {
    const texts = this.#texts();
    this.#retryAt = retryAt;
    const signIn = reason === 'sign-in';
    this.#show('lost', signIn ? `${texts.lost} ${texts.signIn}` : texts.lost);
    this.#button(signIn ? texts.reload : texts.now, signIn ? this.#reload : this.#retry);
    this.#tick();
  }

  back() {
    this.#show('back', this.#texts().back);
    this.#button(null);
    this.#count('');
    this.#timer = this.#clock.setTimeout(() => this.off(), BACK_MS);
  }

  gone() {
    const texts = this.#texts();
    this.#show('gone', texts.gone);
    this.#button(texts.reload, this.#reload);
    this.#count('');
  }

  off() {
    this.#clock.clearTimeout(this.#timer);
    this.#clock.clearTimeout(this.#sayTimer);
    if (this.#parts) this.#parts.host.hidden = true;
  }

  #show(mood, text) {
    this.#clock.clearTimeout(this.#timer);
    this.#parts ??= this.#build();
    const { host, box, message } = this.#parts;
    box.dataset.mood = mood;
    if (host.hidden) message.textContent = '';
    // Screen readers announce what changes in a region that they have seen already, and announce
    // again what is written again.
    this.#clock.clearTimeout(this.#sayTimer);
    this.#sayTimer = this.#clock.setTimeout(() => {
      if (message.textContent !== text) message.textContent = text;
      this.#keepClear();
    }, SAY_MS);
    host.hidden = false;
  }

  #button(label, action) {
    const { button } = this.#parts;
    button.hidden = label === null;
    if (button.textContent !== label) button.textContent = label ?? '';
    button.onclick = action;
  }

  #count(text) {
    const { host, count } = this.#parts;
    // A framework may have replaced all that was in the body, now or since the last count.
    if (!host.isConnected) this.#attach(host);
    count.hidden = text === '';
    if (count.textContent !== text) count.textContent = text;
  }

  #tick() {
    const { countdown, trying } = this.#texts();
    const left = this.#retryAt === null ? 0 : this.#retryAt - this.#clock.wall();
    const seconds = Math.ceil(left / 1000);
    this.#count(seconds > 0 ? countdown.replace('{seconds}', seconds) : trying);
    if (seconds > 0) this.#timer = this.#clock.setTimeout(() => this.#tick(), TICK_MS);
  }

  // At the bottom, unless a field or a button of the page is there.
  #keepClear() {
    const { host, box } = this.#parts;
    host.classList.remove('top');
    const area = box.getBoundingClientRect();
    const fields = [...this.#document.querySelectorAll(FIELDS)];
    const covered = fields.some((field) => overlaps(area, field.getBoundingClientRect()));
    host.classList.toggle('top', covered);
  }

  #attach(host) {
    (this.#document.body ?? this.#document.documentElement).append(host);
  }

  #build() {
    const make = (name, className) => {
      const element = this.#document.createElement(name);
      if (className) element.className = className;
      return element;
    };
    const host = make('gateway-banner');
    const [box, message, count] = [make('div', 'box'), make('span'), make('span', 'count')];
    const button = make('button');
    button.type = 'button';
    // Only the sentence is announced: the countdown would be read out every second.
    message.setAttribute('role', 'status');
    message.setAttribute('aria-live', 'polite');
    count.setAttribute('aria-hidden', 'true');
    box.append(message, count, button);
    const shadow = host.attachShadow({ mode: 'open' });
    shadow.adoptedStyleSheets = [styleSheet(this.#document)];
    shadow.append(box);
    host.hidden = true;
    return { host, box, message, count, button };
  }
}

function styleSheet(document) {
  const sheet = new document.defaultView.CSSStyleSheet();
  sheet.replaceSync(CSS);
  return sheet;
}
