// Types of static/client.js, a plain script that sets `globalThis.GatewaySocket`.
// Use them with `/// <reference path="client.d.ts" />`, or list the file in tsconfig's "files".

/** A WebSocket that falls back to HTTP long-polling where WebSockets are blocked. */
interface GatewaySocket extends WebSocket {}

interface GatewaySocketConstructor {
  readonly prototype: GatewaySocket;
  new (url: string | URL, protocols?: string | string[]): GatewaySocket;
  readonly CONNECTING: 0;
  readonly OPEN: 1;
  readonly CLOSING: 2;
  readonly CLOSED: 3;

  /** The version of the script. */
  readonly version: string;
  /** How the page's default endpoint is connected, at this moment. */
  readonly connection: GatewayConnection;
  /** Settings for sockets made from now on, and for the banner. */
  configure(options?: GatewayOptions): void;
  /** Try to connect now, instead of at the end of the countdown. */
  retry(): void;
  /** Block (or unblock) WebSockets for this tab, as a firewall would, to watch the fallback. */
  blockWebSocket(blocked: boolean): void;
}

interface GatewayConnection {
  readonly state: 'idle' | 'connecting' | 'open' | 'lost' | 'gone';
  /** null while there is no connection. */
  readonly transport: GatewayTransport | null;
  /** A sentence that says why this transport is in use. */
  readonly why: string;
  /** The public id of the session, as the server knows it. */
  readonly session: string | null;
  /** When the next attempt starts, as Date.now() counts; null when none is planned. */
  readonly retryAt: number | null;
}

type GatewayTransport = 'polling' | 'websocket';

interface GatewayOptions {
  /** Where the gateway answers, e.g. "https://example.com/_gateway/engine/"; null: see docs. */
  endpoint?: string | null;
  /** Show the banner. */
  banner?: boolean;
  /** Long-polling sends cookies to an endpoint of another origin. */
  credentials?: boolean;
  texts?: Partial<GatewayTexts>;
}

interface GatewayTexts {
  lost: string;
  /** Contains "{seconds}". */
  countdown: string;
  trying: string;
  now: string;
  back: string;
  signIn: string;
  reload: string;
  gone: string;
}

type GatewayLostReason =
  | 'network'
  | 'offline'
  | 'silence'
  | 'timeout'
  | 'server'
  | 'sign-in'
  | 'ended'
  | 'protocol'
  | 'reconnect';

type GatewayGap =
  /** The session was lost; `closed`: how many sockets were closed with code 1006. */
  | { endpoint: string; closed: number; url?: undefined; dropped?: undefined }
  /** The server has dropped messages for the socket with this `url`. */
  | { endpoint: string; url: string; dropped: number; closed?: undefined };

interface GatewayEventMap {
  /** `retryIn` in milliseconds; 0 while an attempt is under way. */
  'gateway:lost': CustomEvent<{ endpoint: string; reason: GatewayLostReason; retryIn: number }>;
  'gateway:back': CustomEvent<{ endpoint: string; resumed: boolean }>;
  'gateway:gap': CustomEvent<GatewayGap>;
  'gateway:gone': CustomEvent<{ endpoint: string; code: number; reason: string }>;
  'gateway:transport': CustomEvent<{ endpoint: string; transport: GatewayTransport; why: string }>;
}

interface WindowEventMap extends GatewayEventMap {}

declare var GatewaySocket: GatewaySocketConstructor;
