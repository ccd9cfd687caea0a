"""The upgraded connection: websocket frames in and out, over a TCP connection that aiohttp accepted.

The framing is the `websockets` library's; aiohttp's own reader lets unmasked frames and close codes
above 4999 pass. Whole messages go to a `Frames` listener. Knows no Engine.IO but for `WebSocketTransport`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.utils import accept_key

from gateway.config import Settings
from gateway.protocol.handshake import WEBSOCKET
from gateway.protocol.packets import Wire, encode_polling
from gateway.protocol.reasons import Closing, Reason
from gateway.transports import Owner, Transport, receive_frame

from .request import set_user_timeout, websocket_key

# Silent: the library logs every connection at INFO.
_log = logging.getLogger("gateway.websocket")
_log.setLevel(logging.WARNING)

# What may wait in the process for one peer before the connection's own queue takes over.
_HIGH_WATER = 65_536  # bytes

# One read may hold forty thousand tiny frames: after `_TURN` the others have a turn, too.
_SLICE = 2_048  # bytes between looks at the clock
_TURN = 0.002  # s


class Frames(Protocol):
    """Whom a `WebSocketWire` tells."""

    def frame(self, data: str | bytes) -> None:
        """One whole message."""

    def pong(self) -> None:
        """The peer answered a ping."""

    def drained(self) -> None:
        """The wire is writable again."""

    def ended(self, closing: Closing) -> None:
        """It is over: once, and nothing comes after it."""


class Upgrade(web.StreamResponse):
    """The 101 answer. What follows it on the wire is not HTTP."""

    _length_check = False

    def __init__(self, key: str, protocol: str = "") -> None:
        headers = {
            hdrs.UPGRADE: "websocket",
            hdrs.CONNECTION: "Upgrade",
            hdrs.SEC_WEBSOCKET_ACCEPT: accept_key(key),
        }
        if protocol:
            headers[hdrs.SEC_WEBSOCKET_PROTOCOL] = protocol
        super().__init__(status=101, headers=headers)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: the websocket has its own end."""


class WebSocketWire:
    """One open websocket. All methods are for the event loop's thread and return at once."""

    def __init__(self, settings: Settings, listener: Frames) -> None:
        self._settings = settings
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._protocol = ServerProtocol(state=OPEN, max_size=settings.limits.payload + 1, logger=_log)
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._writer: AbstractStreamWriter | None = None
        self._draining: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._parts: list[bytes | bytearray | memoryview] = []
        self._text = False
        self._frames = 0
        self._pings = 0
        self._pings_since = 0.0
        self._told = False
        self._unread = b""
        self._going_on = False
        self._paused = False
        self._busy_since: float | None = None
        self._busy_with = 0

    # -- life --------------------------------------------------------------------------------------

    async def open(self, request: web.BaseRequest, protocol: str = "") -> web.StreamResponse:
        """Answer 101. Raises `Refused` if the request is no proper upgrade."""
        response = Upgrade(websocket_key(request), protocol)
        self._writer = await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left during the handshake")
        self._transport = transport
        set_user_timeout(request, self._settings.ping.interval + self._settings.ping.timeout)
        return response

    async def run(self, request: web.BaseRequest) -> None:
        """Read until it is over. Cancelling it cuts the connection."""
        # aiohttp hands over what it read behind the request, then all that comes.
        request.protocol.set_parser(cast(Any, self))
        request.protocol.keep_alive(False)
        try:
            await self._over
        finally:
            self.abort()
            self._tell(Closing(Reason.TRANSPORT_CLOSE, 1006))

    # -- out ---------------------------------------------------------------------------------------

    @property
    def busy_since(self) -> float | None:
        """Since when nothing that was written has left, if something is waiting to."""
        if self._busy_since is not None and self._transport is not None:
            left = self._transport.get_write_buffer_size()
            if left < self._busy_with:  # a slow line is not a dead one
                self._busy_since = self._loop.time()
            self._busy_with = left
        return self._busy_since

    @property
    def writable(self) -> bool:
        """False while the peer is not reading, and once it is over."""
        return self._transport is not None and self._busy_since is None and self._protocol.state is OPEN

    def write(self, messages: list[str | bytes] | list[Wire]) -> None:
        """Send these messages, each in a frame of its own."""
        protocol = self._protocol
        if protocol.state is not OPEN:
            return
        for message in messages:
            if isinstance(message, str):
                protocol.send_text(message.encode("utf-8", "replace"))
            else:
                protocol.send_binary(message)
        self._write_out()

    def ping(self) -> None:
        """Send a ping frame."""
        if self._protocol.state is OPEN:
            self._protocol.send_ping(b"")
            self._write_out()

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame after what was written; cut the line if the peer never answers it."""
        if self._protocol.state is not OPEN:
            return
        if code == 1006:
            self.abort()
            return
        self._protocol.send_close(None if code == 1005 else code, reason)
        self._write_out()
        self._abort_later()

    def _abort_later(self) -> None:
        if self._timer is None and not self._over.done():
            self._timer = self._loop.call_later(self._settings.timeouts.close, self.abort)

    def abort(self) -> None:
        """Cut the line now."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()  # it would keep all of this alive
        transport, self._transport = self._transport, None
        self._unread = b""
        if transport is not None:
            transport.abort()
        if self._draining is not None:
            self._draining.cancel()
        if not self._over.done():
            self._over.set_result(None)

    def _write_out(self) -> None:
        transport = self._transport
        if transport is None:
            return
        for data in self._protocol.data_to_send():
            if transport.is_closing():  # a reset: asyncio would log a warning for every write
                return
            if data:
                transport.write(data)
            else:
                self._finish(transport)
        if transport.get_write_buffer_size() > _HIGH_WATER and self._draining is None:
            self._busy_since = self._loop.time()
            self._busy_with = transport.get_write_buffer_size()
            self._draining = self._loop.create_task(self._drain())

    def _finish(self, transport: asyncio.Transport) -> None:
        """End our half after what was written. A peer that has not said good-bye may be sending: were
        that not read, the kernel would reset the connection, and overtake our close frame.
        """
        if self._protocol.close_rcvd is None and transport.can_write_eof():  # TLS cannot
            transport.write_eof()
        else:
            transport.close()
        self._abort_later()

    async def _drain(self) -> None:
        assert self._writer is not None
        try:
            await self._writer.drain()
        except ConnectionError:
            return  # `feed_eof` tells the listener
        finally:
            self._draining = None
        self._busy_since = None
        self._listener.drained()

    # -- in (aiohttp's interface of a parser) ------------------------------------------------------

    def pause(self) -> None:
        """Stop reading."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        if self._unread:
            self._go_on_soon()
        elif self._transport is not None:
            self._transport.resume_reading()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes arrived."""
        if self._unread:
            self._unread += data
        elif len(data) <= _SLICE:
            self._feed(data)
        else:
            self._unread = data
            self._go_on()
        return False, b""

    def _go_on_soon(self) -> None:
        if not self._going_on:
            self._going_on = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Read what has arrived, for one turn, and no further while it is paused."""
        self._going_on = False
        data, done = self._unread, 0
        until = self._loop.time() + _TURN
        while done < len(data) and not self._paused and self._loop.time() < until:
            self._feed(data[done : done + _SLICE])
            done += _SLICE
        if self._transport is None:
            return  # cut meanwhile
        self._unread = data[done:]
        if self._paused:
            return
        if self._unread:
            self._transport.pause_reading()
            self._go_on_soon()
        else:
            self._transport.resume_reading()

    def _feed(self, data: bytes) -> None:
        protocol = self._protocol
        protocol.receive_data(data)
        for frame in protocol.events_received():
            self._receive(cast(Frame, frame))
        self._write_out()
        if protocol.parser_exc is not None:
            self._tell(Closing(Reason.PARSE_ERROR, _code(protocol.close_sent)))

    def feed_eof(self) -> None:
        """The TCP connection is gone."""
        self._transport = None
        self._unread = b""
        self._tell(Closing(Reason.TRANSPORT_CLOSE, 1006))
        if not self._over.done():
            self._over.set_result(None)

    def _receive(self, frame: Frame) -> None:
        if self._told:
            return
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            self._text = opcode is Opcode.TEXT
            if frame.fin:
                self._deliver(frame.data)
            else:
                self._parts = [frame.data]
                self._frames = 1
        elif opcode is Opcode.CONT:
            self._continue(frame)
        elif opcode is Opcode.PONG:
            self._listener.pong()
        elif opcode is Opcode.PING:
            self._count_ping()
        else:
            received = self._protocol.close_rcvd
            assert received is not None
            self._tell(Closing(Reason.TRANSPORT_CLOSE, received.code, received.reason))

    def _continue(self, frame: Frame) -> None:
        self._frames += 1
        if self._frames > self._settings.limits.fragments:
            self._fail(CloseCode.POLICY_VIOLATION, "too many fragments")
            return
        self._parts.append(frame.data)
        if frame.fin:
            parts, self._parts = self._parts, []
            self._deliver(b"".join(parts))

    def _deliver(self, data: bytes | bytearray | memoryview) -> None:
        if not self._text:
            self._listener.frame(bytes(data))
            return
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_DATA, "text is not UTF-8")
            return
        self._listener.frame(text)

    def _count_ping(self) -> None:
        """A browser cannot send pings at all, a keep-alive sends one every few seconds."""
        now = self._loop.time()
        if now - self._pings_since >= 1.0:
            self._pings_since = now
            self._pings = 0
        self._pings += 1
        if self._pings > self._settings.limits.pings:
            self._fail(CloseCode.POLICY_VIOLATION, "too many pings")

    def _fail(self, code: CloseCode, reason: str) -> None:
        self._protocol.fail(code, reason)
        self._tell(Closing(Reason.PARSE_ERROR, code, reason))

    def _tell(self, closing: Closing) -> None:
        if not self._told:
            self._told = True
            self._listener.ended(closing)


def _code(close: Any) -> int:
    return 1006 if close is None else int(close.code)


class WebSocketTransport(Transport):
    """Engine.IO packets over a `WebSocketWire`. `base64`: the client takes no binary frames."""

    name = WEBSOCKET

    def __init__(self, settings: Settings, owner: Owner, *, base64: bool = False) -> None:
        self.owner = owner
        self._base64 = base64
        self.wire = WebSocketWire(settings, self)
        self._closed = False
        self._ended = False

    @property
    def writable(self) -> bool:
        return self.wire.writable

    @property
    def busy_since(self) -> float | None:
        return self.wire.busy_since

    def write(self, packets: list[Wire]) -> None:
        self.wire.write([encode_polling(packet) for packet in packets] if self._base64 else packets)

    def close(self, reason: Reason) -> None:
        self._closed = True
        self.wire.close(reason.code, reason.text)

    def abort(self) -> None:
        self._closed = True
        if not self._ended:  # or else the wire is about to answer the peer's close frame
            self.wire.abort()

    def pause(self) -> None:
        self.wire.pause()

    def resume(self) -> None:
        self.wire.resume()

    # What the wire calls (`Frames`).

    def frame(self, data: str | bytes) -> None:
        """A packet."""
        if not self._closed:
            receive_frame(self, data)

    def pong(self) -> None:
        """Engine.IO has pongs of its own."""

    def drained(self) -> None:
        """The peer reads again."""
        self.owner.ready(self)

    def ended(self, closing: Closing) -> None:
        """Closed by the peer, lost, or broken."""
        self._closed = self._ended = True
        self.owner.lost(self, closing.reason)
