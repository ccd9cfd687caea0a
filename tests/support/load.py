"""Many raw clients at little cost: each does no more than it must, and falls silent when it is told to.

Knows the bytes of Engine.IO, and, for `greet`, those of the session protocol's beginning.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

KEY = base64.b64encode(bytes(16)).decode()
STOCK = "/engine.io/"
OWN = "/_gateway/engine/"


class Client:
    """One TCP connection. `session` is the session's id where the greeting has begun one."""

    session = ""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        self.reader = reader
        self.writer = writer
        self.path = path

    def reset(self) -> None:
        """RST: the connection is gone, and what is under way with it."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close the TCP connection."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):  # the server was first
            await self.writer.wait_closed()

    async def greet(self, url: str) -> None:
        """Begin a session of our own client, with one open channel."""
        await self.say('4H{"v":1}')
        self.session = (await self.hear("4W")).split('"')[3]
        await self.say(f'4O1{{"url":"{url}","protocols":[]}}')
        await self.hear("4A1")

    async def say(self, *packets: str) -> None:
        """Send packets."""
        raise NotImplementedError

    async def hear(self, beginning: str) -> str:
        """The next packet that begins so; all others are dropped."""
        raise NotImplementedError

    async def answer_ping(self, message: str) -> None:
        """Wait for a ping; send a message packet with the answer behind it."""
        await self.hear("2")
        await self.say(message, "3")


class PollingClient(Client):
    """Requests of one client over one TCP connection."""

    sid = ""

    @classmethod
    async def open(
        cls, port: int, path: str = STOCK, *, sid: str = "", host: str = "127.0.0.1"
    ) -> PollingClient:
        """Shake hands, or join the connection `sid`."""
        client = cls(*await asyncio.open_connection(host, port), path)
        client.sid = sid
        if not sid:
            client.sid = (await client.get()).split('"')[3]
        return client

    async def get(self) -> str:
        """One GET, and its answer."""
        return await self._request("GET", "")

    async def say(self, *packets: str) -> None:
        assert await self._request("POST", "\x1e".join(packets)) == "ok"

    async def hear(self, beginning: str) -> str:
        while True:
            for packet in (await self.get()).split("\x1e"):
                if packet.startswith(beginning):
                    return packet

    async def ask(self) -> None:
        """Send a GET, and do not wait for its answer."""
        self._write("GET", "")

    async def _request(self, method: str, body: str) -> str:
        self._write(method, body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200"), head
        length = head.lower().split("content-length: ")[1].split("\r\n")[0]
        return (await self.reader.readexactly(int(length))).decode()

    def _write(self, method: str, body: str) -> None:
        sid = f"&sid={self.sid}" if self.sid else ""
        self.writer.write(
            f"{method} {self.path}?EIO=4&transport=polling{sid} HTTP/1.1\r\nHost: h\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )


class WebSocketClient(Client):
    """A websocket of short text frames."""

    @classmethod
    async def open(cls, port: int, path: str = STOCK, *, host: str = "127.0.0.1") -> WebSocketClient:
        """Upgrade, and read the open packet."""
        client = cls(*await asyncio.open_connection(host, port), path)
        client.writer.write(
            f"GET {path}?EIO=4&transport=websocket HTTP/1.1\r\nHost: h\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\n\r\n".encode()
        )
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        await client.hear("0")
        return client

    async def receive(self) -> str:
        """The next frame's text."""
        _, length = await self.reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await self.reader.readexactly(2))
        return (await self.reader.readexactly(length)).decode()

    async def say(self, *packets: str) -> None:
        for packet in packets:
            assert len(packet) < 126
            self.writer.write(bytes([0x81, 0x80 | len(packet), 0, 0, 0, 0]) + packet.encode())

    async def hear(self, beginning: str) -> str:
        while True:
            packet = await self.receive()
            if packet.startswith(beginning):
                return packet


async def live_polling(port: int, line: float, url: str = "") -> None:
    """Answer every ping after `line` s, until cancelled. With a `url`: in a session, with a channel to it."""
    getter = await PollingClient.open(port, OWN if url else STOCK)
    if url:
        await getter.greet(url)
    poster = await PollingClient.open(port, getter.path, sid=getter.sid)
    try:
        while True:
            await getter.hear("2")
            await asyncio.sleep(line)
            await poster.say("3")
    finally:
        await getter.close()
        await poster.close()


async def live_websocket(port: int, line: float, url: str = "") -> None:
    """The same over a websocket."""
    client = await WebSocketClient.open(port, OWN if url else STOCK)
    if url:
        await client.greet(url)
    try:
        while True:
            await client.hear("2")
            await asyncio.sleep(line)
            await client.say("3")
    finally:
        await client.close()


KINDS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "polling": PollingClient.open,
    "websocket": WebSocketClient.open,
}


class Crowd:
    """Clients that live in a loop and a thread of their own, whatever becomes of the server's loop.

    Each of `lives` makes a coroutine that runs until it is cancelled, at the end of the `with` block.
    """

    def __init__(self, lives: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        self._lives = list(lives)
        self._thread = threading.Thread(target=self._run, name="crowd")
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        self.failures: list[BaseException] = []

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(RuntimeError):  # all of them have failed, and the loop has ended
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()

    def _stop(self) -> None:
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._live())

    async def _live(self) -> None:
        self._tasks = [asyncio.create_task(live()) for live in self._lives]
        if self._stopped:
            self._stop()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.failures = [end for end in ends if end and not isinstance(end, asyncio.CancelledError)]
