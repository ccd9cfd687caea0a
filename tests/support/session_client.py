"""A client of the session protocol (`docs/protocol.md`) that does what a test says, and no more.

It opens no channel, acknowledges nothing and resumes nothing by itself. Frames are the project's own
codec: `tests/vectors/` holds that to the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import Any

import aiohttp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.protocol import frames
from gateway.protocol.packets import MESSAGE, PING, decode_text, message
from gateway.protocol.payloads import decode_payload, encode_payload
from gateway.protocol.sending import binary_parts, text_parts
from tests.support.running import PATIENCE

ENGINE = "/_gateway/engine/"
FRAME_COST = 256
Wire = str | bytes


def in_parts(channel: int, data: Wire) -> list[Wire]:
    """The frames of a message."""
    if isinstance(data, str):
        return text_parts(frames.channel_text(channel), data)
    return binary_parts(frames.binary_prefix(channel), data)


def size_of(data: Wire) -> int:
    """In bytes."""
    return len(data.encode()) if isinstance(data, str) else len(data)


class Incoming(asyncio.Queue[Any]):
    """A queue whose items can be looked at before they are taken. `changed` is set when there is one more."""

    def __init__(self) -> None:
        super().__init__()
        self.unread: list[Wire | None] = []
        self.changed = asyncio.Event()

    def put_nowait(self, item: Wire | None) -> None:
        super().put_nowait(item)
        self.unread.append(item)
        self.changed.set()

    def get_nowait(self) -> Any:
        del self.unread[0]
        return super().get_nowait()


class Carrier(ABC):
    """One Engine.IO connection; `incoming` ends with None."""

    def __init__(self) -> None:
        self.incoming = Incoming()
        self._reader: asyncio.Task[None] | None = None

    @abstractmethod
    async def send(self, frame: Wire) -> None:
        """Send one frame, in one packet."""

    @abstractmethod
    async def cut(self) -> None:
        """Lose the connection as a network loses it: nobody is told."""

    @abstractmethod
    async def leave(self) -> None:
        """Close the connection as Engine.IO has it. A no-op when it is gone."""


class WebSocketCarrier(Carrier):
    """A websocket from the first byte."""

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__()
        self._socket = socket
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, base: str, headers: dict[str, str]) -> WebSocketCarrier:
        """Connect, and read the open packet."""
        url = base.replace("http", "ws", 1) + ENGINE + "?EIO=4&transport=websocket"
        socket = await connect(url, additional_headers=headers, compression=None, max_size=None, proxy=None)
        opened = await socket.recv()
        assert isinstance(opened, str)
        assert opened.startswith("0{")
        return cls(socket)

    async def send(self, frame: Wire) -> None:
        await self._socket.send(message(frame))

    async def leave(self) -> None:
        await self._socket.close()
        await self.cut()

    async def cut(self) -> None:
        self._socket.transport.abort()
        assert self._reader is not None
        await self._reader

    async def _read(self) -> None:
        try:
            async for packet in self._socket:
                if isinstance(packet, bytes):
                    self.incoming.put_nowait(packet)
                    continue
                kind, data = decode_text(packet)
                if kind is PING:
                    await self._socket.send("3")
                elif kind is MESSAGE:
                    self.incoming.put_nowait(data)
        except ConnectionClosed:
            pass
        finally:
            self.incoming.put_nowait(None)


class PollingCarrier(Carrier):
    """GETs one after the other, and POSTs between."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        super().__init__()
        self._http = http
        self._url = url
        self._posting = asyncio.Lock()  # one without numbers may not overlap another
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, base: str, headers: dict[str, str]) -> PollingCarrier:
        """Connect, and read the open packet."""
        http = aiohttp.ClientSession(headers=headers)
        url = base + ENGINE + "?EIO=4&transport=polling"
        async with http.get(url) as answer:
            body = await answer.text()
            if answer.status != 200:
                await http.close()
                raise ConnectionRefusedError(f"{answer.status} {body}")
        sid = body.split('"')[3]
        return cls(http, f"{url}&sid={sid}")

    async def send(self, frame: Wire) -> None:
        body = encode_payload([message(frame)])
        async with self._posting, self._http.post(self._url, data=body) as answer:
            assert await answer.text() == "ok"

    async def leave(self) -> None:
        if not self._http.closed:
            with contextlib.suppress(aiohttp.ClientError):
                await self._http.post(self._url, data="1")
        await self.cut()

    async def cut(self) -> None:
        assert self._reader is not None
        self._reader.cancel()
        await asyncio.wait([self._reader])
        await self._http.close()

    async def _read(self) -> None:
        try:
            while True:
                async with self._http.get(self._url) as answer:
                    if answer.status != 200:
                        return
                    await self._receive(await answer.read())
        except aiohttp.ClientError:
            pass
        finally:
            self.incoming.put_nowait(None)

    async def _receive(self, body: bytes) -> None:
        for kind, data in decode_payload(body):
            if kind is PING:
                async with self._posting, self._http.post(self._url, data="3"):
                    pass
            elif kind is MESSAGE:
                self.incoming.put_nowait(data)


CARRIERS: dict[str, Any] = {"websocket": WebSocketCarrier, "polling": PollingCarrier}


class SessionClient:
    """`welcome` is the last one; `received` counts numbered frames; `unacknowledged` is to be replayed.

    `credit` is what may be sent on each channel, by the frames that the test has read.
    """

    def __init__(
        self, base: str, *, transport: str = "websocket", headers: dict[str, str] | None = None
    ) -> None:
        self.base = base
        self.transport = transport
        self.headers = headers or {}
        self.received = 0
        self.acked: list[int] = []
        self.unacknowledged: list[Wire] = []
        self.carrier: Any = None
        self.welcome: Any = None
        self._carriers: list[Carrier] = []
        self.credit: dict[int, int] = {}
        self._parts: dict[int, list[Any]] = {}
        self._dropped = 0
        self._channel = 0

    async def connect(self, hello: frames.Hello | None = None) -> frames.Welcome:
        """A new connection, with a hello for a new session or this one."""
        await self.attach(frames.encode(hello or frames.Hello()))
        welcome = await self.frame()
        assert isinstance(welcome, frames.Welcome), welcome
        self.welcome = welcome
        return welcome

    async def attach(self, first: Wire) -> None:
        """A new connection, with any first frame."""
        self.carrier = await CARRIERS[self.transport].open(self.base, self.headers)
        self._carriers.append(self.carrier)
        await self.carrier.send(first)

    def resume_hello(self, **changed: Any) -> frames.Hello:
        """The hello that asks for this session, or for one that differs in `changed`."""
        fields = {
            "session": self.welcome.session,
            "token": self.welcome.token,
            "epoch": self.welcome.epoch,
            "received": self.received,
            **changed,
        }
        return frames.Hello(frames.Resume(**fields))

    async def resume(self) -> frames.Welcome:
        """Connect again, and send again what the gateway has not received."""
        welcome = await self.connect(self.resume_hello())
        if welcome.resumed:
            self._drop(welcome.received)
            for frame in self.unacknowledged:
                await self.carrier.send(frame)
        return welcome

    async def cut(self) -> None:
        """Lose the connection. What was received and not read by the test is lost with it."""
        await self.carrier.cut()

    async def close(self) -> None:
        """Close every connection that it ever had."""
        for carrier in self._carriers:
            await carrier.leave()

    async def post(self, *numbered: frames.Frame) -> None:
        """Send numbered frames."""
        for frame in numbered:
            wire = frames.encode(frame)
            if isinstance(frame, frames.Data) and frame.channel in self.credit:
                self.credit[frame.channel] -= size_of(frame.data) + FRAME_COST
            self.unacknowledged.append(wire)
            await self.carrier.send(wire)

    async def open(self, url: str, protocols: tuple[str, ...] = ()) -> int:
        """Open a channel; its number, once it is accepted."""
        number = await self.ask(url, protocols)
        answer = await self.next()
        assert isinstance(answer, frames.Accept), answer
        assert answer.channel == number
        return number

    async def ask(self, url: str, protocols: tuple[str, ...] = ()) -> int:
        """Ask for a channel; its number."""
        self._channel += 1
        self.credit[self._channel] = self.welcome.window
        await self.post(frames.Open(self._channel, url, protocols))
        return self._channel

    async def send(self, channel: int, data: Wire) -> None:
        """A message on a channel, in parts if it is long. Waits for grants."""
        for wire in in_parts(channel, data):
            await self._may_send(channel)
            frame = frames.decode(wire)
            assert isinstance(frame, frames.Data)
            await self.post(frame)

    async def _may_send(self, channel: int) -> None:
        """Return when a grant is here, whether or not the test has read it yet."""
        async with asyncio.timeout(PATIENCE):
            while self.credit[channel] + self._unread_grants(channel) <= 0:
                self.carrier.incoming.changed.clear()
                await self.carrier.incoming.changed.wait()

    def _unread_grants(self, channel: int) -> int:
        head = f"G{frames.channel_text(channel)}{{"
        unread = self.carrier.incoming.unread
        grants = [frames.decode(wire) for wire in unread if isinstance(wire, str) and wire.startswith(head)]
        return sum(grant.bytes for grant in grants if isinstance(grant, frames.Grant))

    async def acknowledge(self) -> None:
        """Send an ack for all that was received."""
        await self.carrier.send(frames.encode(frames.Ack(self.received)))

    async def next(self) -> frames.Frame | None:
        """The next numbered frame or end; None when the connection is over. Acks and grants are noted."""
        while True:
            frame = await self.frame()
            if isinstance(frame, frames.Ack):
                self.acked.append(frame.count)
                self._drop(frame.count)
                continue
            if frame is not None and not isinstance(frame, frames.End):
                self.received += 1
            if isinstance(frame, frames.Grant):
                self.credit[frame.channel] += frame.bytes
                continue
            return frame

    async def message(self) -> Wire:
        """The next message that is whole, whichever channel it is of."""
        while True:
            frame = await self.next()
            assert isinstance(frame, frames.Data), frame
            parts = self._parts.setdefault(frame.channel, [])
            parts.append(frame.data)
            if not frame.more:
                del self._parts[frame.channel]
                return "".join(parts) if isinstance(parts[0], str) else b"".join(parts)

    async def refusal(self) -> frames.Refuse:
        """The next frame, which refuses a channel."""
        frame = await self.next()
        assert isinstance(frame, frames.Refuse), frame
        return frame

    async def frame(self) -> frames.Frame | None:
        """The next frame of any kind; None when the connection is over."""
        async with asyncio.timeout(PATIENCE):
            wire = await self.carrier.incoming.get()
        return None if wire is None else frames.decode(wire)

    def _drop(self, count: int) -> None:
        del self.unacknowledged[: count - self._dropped]
        self._dropped = count
