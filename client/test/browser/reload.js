// Runs in the page: goes from page to page by itself, and reports what became of the session.
// Where it stands is kept in the tab's storage, as what the client leaves there is.

let socket;
let code = null;

const step = () => Number(sessionStorage.getItem('step'));

/** A round trip on a socket, `text` there and back. */
const talk = (text) =>
  new Promise((resolve) => {
    socket.onmessage = ({ data }) => data === text && resolve();
    socket.send(text);
  });

const open = () =>
  new Promise((resolve) => {
    code = null;
    socket = new GatewaySocket('/echo');
    socket.onopen = resolve;
    socket.addEventListener('close', (event) => {
      code = event.code;
    });
  });

async function report(more = {}) {
  const { session } = GatewaySocket.connection;
  const kept = Object.keys(sessionStorage).filter((key) => key.startsWith('gateway:sessions'));
  await fetch('/report', { method: 'POST', body: JSON.stringify({ step: step(), session, kept, ...more }) });
  sessionStorage.setItem('step', step() + 1);
}

const duplicate = () =>
  new Promise((resolve) => {
    new BroadcastChannel('duplicate').onmessage = resolve;
    window.open(location.pathname);
  });

const LOADED = [
  async () => { await open(); await talk('first'); await report(); location.reload(); },
  async () => { await open(); await talk('second'); await report(); location.reload(); },
  // Gone again before a socket was opened.
  async () => { sessionStorage.setItem('step', 3); location.reload(); },
  async () => { await open(); await talk('third'); await report(); location = '/test/browser/back.html'; },
  null,
  // The same path: this page goes on with the session of the one before.
  async () => { await open(); await talk('visit'); await report(); history.back(); },
  null,
  async () => { await open(); await talk('last'); await report(); await duplicate(); },
];

const BACK = {
  4: async () => { await talk('back'); await report({ state: socket.readyState }); location = '?again'; },
  6: async () => {
    if (code === null) await new Promise((resolve) => socket.addEventListener('close', resolve));
    const closed = code;
    await open();
    await talk('anew');
    await report({ closed });
    location.reload();
  },
};

async function asDuplicate() {
  await open();
  await talk('duplicate');
  await report({ isDuplicate: true });
  new BroadcastChannel('duplicate').postMessage('done');
}

addEventListener('pageshow', ({ persisted }) => {
  if (window.opener) asDuplicate();
  else if (persisted) BACK[step()]();
  else if (LOADED[step()]) LOADED[step()]();
  else report({ why: 'the page was not kept in the back/forward cache' });
});
