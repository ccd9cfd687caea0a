// Over real connections: long messages in parts both ways, while another socket has its turns; a reload.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createClient } from './support/node-client.js';
import { TREATMENTS, startGateway, startMiddlebox } from './support/gateway.js';

const BYTES = 4 * 1024 * 1024;
const MESSAGES = {
  text: '0123456789abcde😀'.repeat(BYTES / 19),
  'text with U+001E': '\x1e\\0123456789abcde'.repeat(BYTES / 17),
  binary: Uint8Array.from({ length: BYTES }, (_, i) => i * 7),
};

async function setup(t, treat) {
  const gateway = await startGateway();
  const box = await startMiddlebox(gateway.port, treat);
  const client = createClient(box.port);
  t.after(async () => {
    client.close();
    await box.close();
    await gateway.close();
  });
  return { ...client, port: box.port };
}

async function opened(client) {
  const socket = client.open();
  await client.until(() => socket.channel.state === 'open');
  return socket;
}

for (const [transport, treatment] of [['polling', 'is refused with 403'], ['websocket', 'passes']]) {
  for (const [what, message] of Object.entries(MESSAGES)) {
    test(`4 MB of ${what} there and back on ${transport}; another socket is heard meanwhile`, async (t) => {
      const client = await setup(t, TREATMENTS[treatment]);
      const [long, quick] = [await opened(client), await opened(client)];
      if (transport === 'websocket') await client.until(() => client.session.transport === 'websocket');
      let left = 0;
      let heardBefore = 0;
      long.channel.send(message, (bytes) => (left += bytes));
      for (let i = 0; i < 5; i++) {
        quick.channel.send(`${i}`);
        await client.until(() => quick.heard.length > i);
        heardBefore += long.heard.length === 0;
      }
      await client.until(() => long.heard.length);
      assert.equal(Buffer.compare(Buffer.from(long.heard[0]), Buffer.from(message)), 0);
      assert.equal(left, Buffer.byteLength(message));
      assert.equal(client.links.length, 1);
      assert.ok(heardBefore >= 2, `only ${heardBefore} of 5 answers before the long one`);
    });
  }
}

test('4 MB arrive once though the connection is cut again and again', async (t) => {
  const gateway = await startGateway();
  const box = await startMiddlebox(gateway.port, TREATMENTS['is refused with 403']);
  const client = createClient(box.port);
  t.after(async () => {
    client.close();
    await box.close();
    await gateway.close();
  });
  const socket = await opened(client);
  let cuts = 0;
  let due = 0;
  socket.channel.send(MESSAGES.text, (bytes) => {
    due -= bytes;
    if (due > 0) return;
    due = 700_000;
    cuts += 1;
    setImmediate(() => gateway.http.closeAllConnections());
  });
  await client.until(() => socket.heard.length);
  assert.equal(socket.heard[0], MESSAGES.text);
  assert.ok(cuts >= 5, `${cuts}`);
  assert.equal(gateway.sessions.size, 1);
});

test('a page that is loaded anew goes on with the session, and with nothing else of it', async (t) => {
  const client = await setup(t, TREATMENTS.passes);
  const socket = await opened(client);
  socket.channel.send('before');
  await client.until(() => socket.heard.length);
  const { id, kept } = client.session;
  client.close();
  const next = createClient(client.port, { resume: kept });
  t.after(() => next.close());
  const again = await opened(next);
  for (const text of ['a', 'b']) again.channel.send(text);
  await next.until(() => again.heard.length === 2);
  assert.deepEqual([next.session.id, again.channel.number, again.heard], [id, 1, ['a', 'b']]);
  assert.deepEqual(socket.ends, []);
});
