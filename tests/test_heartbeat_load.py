"""The heartbeat's promise, kept for one client and for a thousand: `interval + timeout`, and 0.2 s.

The clients are raw sockets that do no more than they must. What is measured is the server's own time:
from the last sign of life of a client, which is a message with a pong behind it, to its disconnect.
"""

import asyncio
import base64
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from gateway import EngineServer
from gateway.config import Timeouts

INTERVAL = 1.0
TIMEOUT = 1.0
PROMISE = INTERVAL + TIMEOUT
MARGIN = 0.2

KEY = base64.b64encode(bytes(16)).decode()


# -- clients ---------------------------------------------------------------------------------------


class Client:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # the server was first
            await self.writer.wait_closed()


class PollingClient(Client):
    """Requests of one client over one TCP connection."""

    sid = ""

    @classmethod
    async def open(cls, port: int, sid: str = "") -> "PollingClient":
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        client.sid = sid
        if not sid:
            client.sid = (await client.get()).split('"')[3]
        return client

    async def get(self) -> str:
        return await self._request("GET", "")

    async def post(self, body: str) -> None:
        assert await self._request("POST", body) == "ok"

    async def _request(self, method: str, body: str) -> str:
        sid = f"&sid={self.sid}" if self.sid else ""
        self.writer.write(
            f"{method} /engine.io/?EIO=4&transport=polling{sid} HTTP/1.1\r\nHost: h\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200"), head
        length = head.lower().split("content-length: ")[1].split("\r\n")[0]
        return (await self.reader.readexactly(int(length))).decode()

    async def answer_ping(self, message: str) -> None:
        assert await self.get() == "2"
        await self.post(f"4{message}\x1e3")


class WebSocketClient(Client):
    """A websocket of short text frames."""

    @classmethod
    async def open(cls, port: int) -> "WebSocketClient":
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        client.writer.write(
            "GET /engine.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: h\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\n\r\n".encode()
        )
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert (await client.receive())[0] == "0"
        return client

    async def receive(self) -> str:
        _, length = await self.reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await self.reader.readexactly(2))
        return (await self.reader.readexactly(length)).decode()

    def send(self, text: str) -> None:
        self.writer.write(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode())

    async def answer_ping(self, message: str) -> None:
        assert await self.receive() == "2"
        self.send(f"4{message}")
        self.send("3")


KINDS: dict[str, Callable[[int], Any]] = {
    "polling": PollingClient.open,
    "websocket": WebSocketClient.open,
}


# -- the server ------------------------------------------------------------------------------------


class Server:
    """Remembers when each client was last heard, and how long after it was given up."""

    def __init__(self) -> None:
        self.eio = EngineServer(ping_interval=INTERVAL, ping_timeout=TIMEOUT, timeouts=Timeouts(close=0.1))
        self.eio.on("connect", self._connect)
        self.eio.on("message", self._message)
        self.eio.on("disconnect", self._disconnect)
        self.now = asyncio.get_running_loop().time
        self.heard: dict[str, float] = {}
        self.delays: dict[str, list[float]] = {"polling": [], "websocket": []}
        self.reasons: Counter[str] = Counter()
        self.expected = 0
        self.complete = asyncio.Event()
        self.opened = 0
        self.port = 0

    def _connect(self, sid: str, environ: dict[str, Any]) -> None:
        self.heard[sid] = self.now()
        self.opened += 1
        if self.opened == self.expected:
            self.complete.set()

    def _message(self, sid: str, data: str) -> None:
        if data == "block":
            block_the_loop()
        self.heard[sid] = self.now()

    def _disconnect(self, sid: str, reason: str) -> None:
        self.reasons[reason] += 1
        self.delays[self.eio.transport(sid)].append(self.now() - self.heard[sid])
        if sum(self.reasons.values()) == self.expected:
            self.complete.set()


def block_the_loop() -> None:
    """What a handler must not do."""
    time.sleep(3)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    running = Server()
    app = web.Application()
    running.eio.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2_000).start()
    running.port = runner.addresses[0][1]
    yield running
    await runner.cleanup()


# -- silence ---------------------------------------------------------------------------------------


async def fall_silent(kind: str, port: int) -> Any:
    """Answer one ping and say no more; the TCP connection stays."""
    client = await KINDS[kind](port)
    await client.answer_ping("alive")
    return client


@pytest.mark.parametrize("count", [1, 500])
async def test_silent_clients_are_noticed_in_time(
    server: Server, count: int, record_property: Callable[[str, object], None]
) -> None:
    server.expected = -1  # nothing is complete while they open
    kinds = [kind for kind in KINDS for _ in range(count)]
    silence = [asyncio.create_task(fall_silent(kind, server.port)) for kind in kinds]
    clients = await asyncio.gather(*silence)
    server.expected = len(clients)
    await asyncio.wait_for(server.complete.wait(), PROMISE + 5)
    for client in clients:
        await client.close()
    assert server.reasons == {"ping timeout": 2 * count}
    for kind, delays in server.delays.items():
        delays.sort()
        spread = f"{delays[0]:.3f} to {delays[-1]:.3f} s, median {delays[len(delays) // 2]:.3f} s"
        record_property(f"{kind} {count}", spread)
        print(f"\n{count} silent on {kind}: noticed after {spread}")
    for delays in server.delays.values():
        assert len(delays) == count
        assert delays[0] >= PROMISE
        assert delays[-1] <= PROMISE + MARGIN


# -- a blocked loop --------------------------------------------------------------------------------

LINE = 0.3  # s that a pong is under way, so that pings are unanswered when the loop is blocked


async def live_polling(port: int) -> None:
    """Poll and answer every ping, until cancelled."""
    getter = await PollingClient.open(port)
    poster = await PollingClient.open(port, getter.sid)
    try:
        while True:
            if "2" in (await getter.get()).split("\x1e"):
                await asyncio.sleep(LINE)
                await poster.post("3")
    finally:
        await getter.close()
        await poster.close()


async def live_websocket(port: int) -> None:
    """Answer every ping, until cancelled."""
    client = await WebSocketClient.open(port)
    try:
        while True:
            if await client.receive() == "2":
                await asyncio.sleep(LINE)
                client.send("3")
    finally:
        await client.close()


class Crowd:
    """Live clients in a loop and thread of their own, which go on while the server's loop stands."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._count = count
        self._thread = threading.Thread(target=self._run, name="crowd")
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self.failures: list[BaseException] = []

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._live())

    async def _live(self) -> None:
        crowd = [live(self._port) for live in (live_polling, live_websocket) for _ in range(self._count)]
        self._tasks = [asyncio.create_task(one) for one in crowd]
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.failures = [end for end in ends if not isinstance(end, asyncio.CancelledError) and end]


@pytest.mark.blocks_the_loop
async def test_finding_14_a_blocked_loop_expires_nobody(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server.expected = 200
    with Crowd(server.port, 100) as crowd:
        await asyncio.wait_for(server.complete.wait(), 10)
        trigger = await WebSocketClient.open(server.port)
        await trigger.answer_ping("block")
        # Long enough for whoever was judged wrongly to be gone: that is what the rule is about.
        for _ in range(3):
            assert await trigger.receive() == "2"
            trigger.send("3")
        assert server.reasons == {}
        assert len(server.eio.sockets) == 201
        await trigger.close()
    assert crowd.failures == []
    warnings = [record.getMessage() for record in caplog.records if "blocked" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith("The event loop was blocked for 3.")
    assert "block_the_loop (test_heartbeat_load.py:" in warnings[0]
