// Runs in the page: every check with both classes, then reports to the server.

import { CHECKS, answer } from './checks.js';

const url = `ws://${location.host}/echo`;

const run = async ([name, check]) => ({
  name,
  expected: await answer(check, WebSocket, url),
  got: await answer(check, GatewaySocket, url),
});

const violations = [];
document.addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective));

// One after the other: Chromium lets only one WebSocket at a time connect to a host, and a crowd of
// them would keep our probe waiting.
const results = [];
for (const check of Object.entries(CHECKS)) results.push(await run(check));
const { connection, version } = GatewaySocket;
const First = GatewaySocket;
await import('/static/client.js?again');
const isFirst = GatewaySocket === First;
await fetch('/report', { method: 'POST', body: JSON.stringify({ results, violations, isFirst, connection, version }) });
