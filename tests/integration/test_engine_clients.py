"""Real clients against `EngineServer`: engine.io-client from npm, python-engineio's two, Socket.IO's.

Every client connects on each transport and with an upgrade, exchanges 10,000 messages each way, byte
for byte and in order, and is left and leaves; the server must see the reason that it would see from
Node's or python-engineio's own server.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import engineio
import pytest
import socketio
from aiohttp import web

from gateway import EngineServer
from gateway.config import Timeouts
from tests.support.processes import Process

COUNT = 10_000
POLLING = ["polling"]
WEBSOCKET = ["websocket"]
UPGRADE = ["polling", "websocket"]
WAYS = [
    pytest.param(POLLING, id="polling"),
    pytest.param(WEBSOCKET, id="websocket"),
    pytest.param(UPGRADE, id="upgrade"),
]
# python-engineio's clients queue a close packet and close the websocket: either may come first.
LEFT = {"polling": {"client disconnect"}, "websocket": {"client disconnect", "transport close"}}

PEER = "tests/integration/peers/client.mjs"

# The same in peers/client.mjs.
KINDS: list[Callable[[int], str | bytes]] = [
    lambda i: f"{i} text",
    lambda i: f"{i} \U0001f600 é \U0001d11e",
    lambda i: f'{i} \0 and \\ and "',
    lambda i: f" {i}",
    lambda i: f'"{i}"',
    lambda i: f"-{i}.50",
    lambda i: f'[{i},null,"\U0001f600"]',
    lambda i: f'{{"i":{i}}}',
    lambda i: f'{{"i":{i}',
    lambda i: bytes([0, 0x1E, 0xFF, i & 255, i >> 8 & 255]),
]


def sent(i: int) -> str | bytes:
    """Message `i`, as it travels."""
    return KINDS[i % len(KINDS)](i)


def handled(i: int) -> Any:
    """Message `i`, as a message handler of `EngineServer` gets it."""
    data = sent(i)
    is_json = isinstance(data, str) and data[0] in "{[" and data[-1] in "}]"
    return json.loads(data) if is_json else data


def decoded(i: int) -> Any:
    """Message `i`, as python-engineio's clients hand it out: they decode whatever looks like JSON."""
    data = sent(i)
    return data if isinstance(data, bytes) else engineio.packet.Packet(encoded_packet="4" + data).data


class Server:
    """An echo that remembers everything. JSON is written as JavaScript writes it."""

    def __init__(self) -> None:
        self.eio = EngineServer(json=_PlainJson)
        self.received: list[Any] = []
        self.transports: list[str] = []
        self.opened: asyncio.Queue[str] = asyncio.Queue()
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.closed: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.eio.on("connect", lambda sid, environ: self.opened.put_nowait(sid))
        self.eio.on("message", self._message)
        self.eio.on("disconnect", lambda sid, reason: self.closed.put_nowait((sid, reason)))
        self.url = ""

    async def _message(self, sid: str, data: Any) -> None:
        self.received.append(data)
        self.transports.append(self.eio.transport(sid))
        self.messages.put_nowait(data)
        await self.eio.send(sid, data)

    def check(self) -> None:
        """Everything has come, in order."""
        assert len(self.received) == COUNT
        for i, data in enumerate(self.received):
            assert data == handled(i)
            assert type(data) is type(handled(i))


class _PlainJson:
    """JSON without `\\u` escapes."""

    loads = staticmethod(json.loads)

    @staticmethod
    def dumps(value: Any, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, **options)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    # A process-wide setting of python-engineio, put back after the test.
    monkeypatch.setattr(engineio.packet.Packet, "json", engineio.packet.Packet.json)
    running = Server()
    app = web.Application()
    running.eio.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield running
    await runner.cleanup()


async def soon(queue: "asyncio.Queue[Any]") -> Any:
    return await asyncio.wait_for(queue.get(), 10)


async def all_is_sent(client: engineio.AsyncClient) -> None:
    """No POST of this client is under way: one that leaves during a POST never sends its goodbye."""
    await asyncio.wait_for(client.queue.join(), 10)


# -- engine.io-client from npm ---------------------------------------------------------------------


Node = Callable[..., Process]


def lines(process: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.output.splitlines()]


async def ended(process: Process) -> list[dict[str, Any]]:
    assert await asyncio.to_thread(process.wait) == 0
    return lines(process)


@pytest.mark.parametrize("transports", WAYS)
async def test_npm_exchange(server: Server, node: Node, transports: list[str]) -> None:
    said = await ended(node(PEER, server.url, ",".join(transports), "exchange", str(COUNT)))
    expected = {"received": COUNT, "wrong": 0, "transport": transports[-1]}
    assert expected in said, said
    server.check()
    assert said[0] == {"open": transports[0]}
    assert set(server.transports) <= set(transports)


@pytest.mark.parametrize(
    ("transports", "reason"),
    [
        pytest.param(POLLING, "client disconnect", id="polling"),
        # It closes the websocket without a packet, which is all that a server can see of it.
        pytest.param(WEBSOCKET, "transport close", id="websocket"),
        pytest.param(UPGRADE, "transport close", id="upgrade"),
    ],
)
async def test_npm_leaves(server: Server, node: Node, transports: list[str], reason: str) -> None:
    said = await ended(node(PEER, server.url, ",".join(transports), "leave"))
    assert {"message": "hello"} in said
    assert said[-1] == {"close": "forced close"}
    assert await soon(server.closed) == (await soon(server.opened), reason)


@pytest.mark.parametrize("transports", WAYS)
async def test_npm_is_closed(server: Server, node: Node, transports: list[str]) -> None:
    peer = node(PEER, server.url, ",".join(transports), "stay")
    sid = await soon(server.opened)
    assert await soon(server.messages) == "hello"
    assert server.eio.transport(sid) == transports[-1]
    await server.eio.send(sid, "the last word")
    await server.eio.disconnect(sid)
    assert await soon(server.closed) == (sid, "server disconnect")
    said = await ended(peer)
    assert {"message": "the last word"} in said
    assert said[-1] == {"close": "transport close"}


# -- python-engineio's AsyncClient -----------------------------------------------------------------


@pytest.fixture
async def python_client() -> AsyncIterator[engineio.AsyncClient]:
    client = engineio.AsyncClient()
    yield client
    await client.disconnect()


@pytest.mark.parametrize("transports", WAYS)
async def test_python_exchange(
    server: Server, python_client: engineio.AsyncClient, transports: list[str]
) -> None:
    received: list[Any] = []
    complete = asyncio.Event()

    @python_client.on("message")
    def on_message(data: Any) -> None:
        received.append(data)
        if len(received) == COUNT:
            complete.set()

    await python_client.connect(server.url, transports=transports)
    for i in range(COUNT):
        await python_client.send(sent(i))
    await asyncio.wait_for(complete.wait(), 60)
    assert python_client.transport() == transports[-1]
    server.check()
    assert received == [decoded(i) for i in range(COUNT)]


@pytest.mark.parametrize("transports", WAYS)
async def test_python_leaves(
    server: Server, python_client: engineio.AsyncClient, transports: list[str]
) -> None:
    await python_client.connect(server.url, transports=transports)
    sid = await soon(server.opened)
    await python_client.send("hello")
    assert await soon(server.messages) == "hello"
    await all_is_sent(python_client)
    await python_client.disconnect()
    assert (gone := await soon(server.closed))[0] == sid
    assert gone[1] in LEFT[transports[-1]]


@pytest.mark.parametrize("transports", WAYS)
async def test_python_is_closed(
    server: Server, python_client: engineio.AsyncClient, transports: list[str]
) -> None:
    news: asyncio.Queue[Any] = asyncio.Queue()
    python_client.on("message", news.put_nowait)
    python_client.on("disconnect", lambda reason: news.put_nowait(("closed", reason)))
    await python_client.connect(server.url, transports=transports)
    sid = await soon(server.opened)
    # Its connect() returns when it has sent the packet that ends the upgrade; the echo follows that.
    await python_client.send("hello")
    assert await soon(news) == "hello"
    assert server.eio.transport(sid) == transports[-1]
    await server.eio.send(sid, b"\x00\x01")
    await server.eio.send(sid, "the last word")
    await server.eio.disconnect(sid)
    assert await soon(server.closed) == (sid, "server disconnect")
    # It runs message handlers as tasks of their own, and the disconnect handler at once.
    heard = [await soon(news) for _ in range(3)]
    heard.remove(("closed", "server disconnect"))
    assert heard == [b"\x00\x01", "the last word"]


# -- python-engineio's Client, which runs in threads -----------------------------------------------


@pytest.mark.parametrize("transports", WAYS)
async def test_python_threads_exchange(server: Server, transports: list[str]) -> None:
    loop = asyncio.get_running_loop()
    received: list[Any] = []
    complete = asyncio.Event()
    client = engineio.Client(handle_sigint=False)

    @client.on("message")
    def on_message(data: Any) -> None:
        received.append(data)
        if len(received) == COUNT:
            loop.call_soon_threadsafe(complete.set)

    def send_all() -> None:
        client.connect(server.url, transports=transports)
        for i in range(COUNT):
            client.send(sent(i))

    await asyncio.to_thread(send_all)
    with contextlib.suppress(TimeoutError):  # the comparison below says more
        await asyncio.wait_for(complete.wait(), 60)
    await asyncio.to_thread(client.disconnect)
    assert received == [decoded(i) for i in range(COUNT)]
    server.check()
    assert (await soon(server.closed))[1] in LEFT[transports[-1]]


# -- python-socketio with EngineServer as its engine -----------------------------------------------


class SocketServer(socketio.AsyncServer):
    def _engineio_server_class(self) -> type[EngineServer]:
        return EngineServer


@pytest.fixture
async def sio() -> AsyncIterator[tuple[SocketServer, str]]:
    """A python-socketio server and its URL."""
    server = SocketServer(cors_allowed_origins="*", timeouts=Timeouts(close=0.1))
    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def sio_client() -> AsyncIterator[Callable[..., Awaitable[socketio.AsyncSimpleClient]]]:
    clients = []

    async def connect(url: str, transports: list[str]) -> socketio.AsyncSimpleClient:
        client = socketio.AsyncSimpleClient(reconnection=False)
        clients.append(client)
        await client.connect(url, transports=transports, auth={"name": "ada"})
        return client

    yield connect
    for client in clients:
        await client.disconnect()


SioClient = Callable[[str, list[str]], Awaitable[socketio.AsyncSimpleClient]]


@pytest.mark.parametrize("transports", WAYS)
async def test_socketio(sio: tuple[SocketServer, str], sio_client: SioClient, transports: list[str]) -> None:
    server, url = sio
    closed: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    @server.event
    async def connect(sid: str, environ: dict[str, Any], auth: dict[str, str]) -> None:
        assert environ["REMOTE_ADDR"] == "127.0.0.1"
        await server.save_session(sid, auth)
        await server.enter_room(sid, "everybody")

    @server.event
    async def ask(sid: str, data: Any) -> tuple[str, Any]:
        return (await server.get_session(sid))["name"], data

    @server.event
    async def shout(sid: str, data: Any) -> None:
        await server.emit("heard", data, room="everybody", skip_sid=sid)

    @server.event
    def disconnect(sid: str, reason: str) -> None:
        closed.put_nowait((sid, reason))

    client = await sio_client(url, transports)
    other = await sio_client(url, transports)
    assert client.transport == transports[-1]
    assert server.transport(client.sid) == transports[-1]
    question = {"text": "\U0001f600", "bytes": [b"\x00\x1e", {"more": b"\xff"}]}
    assert await client.call("ask", question, timeout=5) == ("ada", question)
    await client.emit("shout", b"\x01\x02")
    assert await other.receive(timeout=5) == ["heard", b"\x01\x02"]
    answer = await server.call("ping me", "back", to=other.sid, timeout=5)
    assert answer is None
    assert await other.receive(timeout=5) == ["ping me", "back"]
    left, kept = other.sid, client.sid
    await all_is_sent(other.client.eio)
    await other.disconnect()
    assert (gone := await soon(closed))[0] == left
    assert gone[1] in LEFT[transports[-1]]
    await server.disconnect(kept)
    assert await soon(closed) == (kept, "server disconnect")


async def test_socketio_many_messages_stay_in_order(
    sio: tuple[SocketServer, str], sio_client: SioClient
) -> None:
    server, url = sio
    client = await sio_client(url, POLLING)
    for i in range(5_000):
        await server.emit("number", i, to=client.sid)
    for i in range(5_000):
        assert await client.receive(timeout=5) == ["number", i]
