"""A plain WebSocket at a route's own URL: one websocket, one channel.

The route is asked before the 101, so that a refusal is an HTTP status. Keeps the same promises as an
Engine.IO connection: heartbeat, a bounded buffer, back-pressure. Knows no Engine.IO.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from aiohttp import hdrs, web

from gateway.application import Directory, Served
from gateway.application import Refused as ApplicationRefused
from gateway.channels import ServedChannel
from gateway.config import Settings
from gateway.ledger import Ledger, user_text
from gateway.protocol.forwarded import Network
from gateway.protocol.handshake import WEBSOCKET, Code, Refused
from gateway.protocol.heartbeat import SPARE, Heartbeat
from gateway.protocol.reasons import Closing, Reason
from gateway.registry import Deadlines, Registry

from .request import read_request, refusal, text_response, wants_websocket, websocket_key
from .websocket import WebSocketWire


class PlainChannel(ServedChannel):
    """`scheduled` belongs to the deadlines' heap."""

    def __init__(
        self,
        channel_id: str,
        served: Served,
        settings: Settings,
        deadlines: Deadlines,
        offered: tuple[str, ...],
    ) -> None:
        super().__init__(
            channel_id, served.request, served.application, settings, user=served.user, offered=offered
        )
        self.scheduled = inf
        self._settings = settings
        self._deadlines = deadlines
        self._wire = WebSocketWire(settings, self)
        self._heartbeat = Heartbeat(settings.ping.interval, settings.ping.timeout, deadlines.now())
        self._open_wire = False
        self._paused = False
        self._spared_until = -inf
        self._closing: Closing | None = None
        self._queue: list[str | bytes] = []
        self._queued = 0
        self._drained = asyncio.Event()

    # What applications use (`Channel`).

    @property
    def transport(self) -> str:
        return WEBSOCKET

    @property
    def congested(self) -> bool:
        return not self.is_over and self._settings.limits.is_congested(self._queued, len(self._queue))

    async def drain(self) -> None:
        while self.congested:
            self._drained.clear()
            await self._drained.wait()

    def send(self, data: str | bytes) -> None:
        if self.is_over:
            return
        if self._open_wire and self._wire.writable and not self._queue:
            self._write([data])
            return
        if self._settings.limits.is_full(self._queued, len(self._queue)):
            self.end(Reason.SLOW_CONSUMER)
            return
        self._queue.append(data)
        self._queued += len(data)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if not self.is_over:
            self._end(Closing(Reason.SERVER_CLOSE, code, reason))

    # Its life.

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Answer 101, and read until it is over."""
        response = await self._wire.open(request, self.protocol)
        self._open_wire = True
        self._heartbeat = Heartbeat(
            self._settings.ping.interval, self._settings.ping.timeout, self._deadlines.now()
        )
        self._flush()
        if self._closing is not None:
            self._wire.close(self._closing.code, self._closing.text)
        self._deadlines.schedule(self)
        await self._wire.run(request)
        return response

    def end(self, reason: Reason) -> None:
        """End it for a reason of our own."""
        if not self.is_over:
            self._end(Closing.by(reason))

    def _end(self, closing: Closing) -> None:
        self._closing = closing
        if closing.reason is Reason.SLOW_CONSUMER:
            self._wire.abort()
        elif self._open_wire:
            self._flush()
            self._wire.close(closing.code, closing.text)
        self.over(closing)
        self._drained.set()

    def _write(self, messages: list[str | bytes]) -> None:
        self._wire.write(messages)
        if self._wire.busy_since is not None:
            self._deadlines.schedule(self)

    def _flush(self) -> None:
        messages, self._queue = self._queue, []
        self._queued = 0
        self._drained.set()
        if messages:
            self._write(messages)

    def _pause(self) -> None:
        self._paused = True
        self._wire.pause()

    def _resume(self) -> None:
        self._paused = False
        self._heartbeat.spare(self._deadlines.now() + self._settings.ping.timeout)
        self._deadlines.schedule(self)
        self._wire.resume()

    # Time (`registry.Timed`).

    @property
    def deadline(self) -> float:
        """When `judge` wants to be called next."""
        if self.is_over:
            return inf
        return min(inf if self._paused else self._heartbeat.deadline, self._stuck_until)

    @property
    def _stuck_until(self) -> float:
        """When a write has been stuck for too long."""
        stuck = self._wire.busy_since
        return inf if stuck is None else max(stuck + self._settings.timeouts.send, self._spared_until)

    def spare(self, now: float) -> None:
        """The loop has just come back from a stall."""
        self._spared_until = now + min(self._settings.ping.timeout, SPARE)
        self._heartbeat.spare(self._spared_until)

    def judge(self, now: float) -> None:
        """A ping is due, or the client is gone, or does not read."""
        if now >= self._stuck_until:
            self.end(Reason.SLOW_CONSUMER)
        elif self._paused:
            return
        elif self._heartbeat.expired(now):
            self.end(Reason.PING_TIMEOUT)
        elif self._heartbeat.ping_due(now):
            self._wire.ping()

    # What the wire calls (`Frames`).

    def frame(self, data: str | bytes) -> None:
        """One message of the browser."""
        self.deliver(data)

    def pong(self) -> None:
        """It lives."""
        self._heartbeat.pong(self._deadlines.now())

    def drained(self) -> None:
        """It reads again."""
        self._flush()

    def ended(self, closing: Closing) -> None:
        """It is gone. A close frame of its own is what the browser wanted."""
        if closing.reason is Reason.TRANSPORT_CLOSE and closing.code != 1006:
            closing = Closing(Reason.CLIENT_CLOSE, closing.code, closing.text)
        self.over(closing)
        self._drained.set()


class PlainEndpoint:
    """Serves plain WebSockets for all routes of a directory."""

    def __init__(
        self,
        directory: Directory,
        settings: Settings,
        registry: Registry,
        new_id: Callable[[], str],
        *,
        trusted: list[Network] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._registry = registry
        self._new_id = new_id
        self._trusted = trusted or []
        self._ledger = ledger
        self._channels: set[PlainChannel] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._channels)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request on a route's URL."""
        try:
            return await self._answer(request)
        except Refused as refused:
            response = refusal(refused, close=True)
            if refused.status == 426:
                response.headers[hdrs.UPGRADE] = "websocket"
            return response
        except ApplicationRefused as refused:
            return refusal(Refused(Code.FORBIDDEN, refused.reason, refused.status), close=True)
        except ConnectionError:
            # The client has left. aiohttp notices when it writes this, and logs nothing.
            return text_response("", 400)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.method != "GET":
            raise Refused(Code.METHOD, "a WebSocket begins with GET", status=405)
        if not wants_websocket(request):
            raise Refused(
                Code.BAD_REQUEST,
                "this is a WebSocket endpoint; open it with new WebSocket(url), new GatewaySocket(url), or "
                "an Engine.IO client whose path is this one + /engine.io/",
                status=426,
            )
        websocket_key(request)
        seen = read_request(request, self._trusted)
        self._registry.knock(seen.remote)
        served = await self._directory.find(seen)
        channel = PlainChannel(
            self._new_id(), served, self._settings, self._registry.deadlines, _offered(request)
        )
        with self._registry.guest(channel.id, seen.remote, user_text(served.user)):
            channel.enlist(self._ledger, served.route)
            return await self._serve(request, channel)

    async def _serve(self, request: web.Request, channel: PlainChannel) -> web.StreamResponse:
        self._channels.add(channel)
        self._empty.clear()
        try:
            await channel.admit()
            self._registry.settle(channel.id)
            return await channel.run(request)
        finally:
            channel.end(Reason.TRANSPORT_CLOSE)
            self._channels.discard(channel)
            if not self._channels:
                self._empty.set()

    async def shutdown(self) -> None:
        """Tell all of them to come back (1012), and return when the last has gone."""
        for channel in list(self._channels):
            channel.end(Reason.SHUTDOWN)
        await self._empty.wait()


def _offered(request: web.Request) -> tuple[str, ...]:
    """The subprotocols, of however many header lines."""
    lines = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    names = [name.strip() for line in lines for name in line.split(",")]
    return tuple(dict.fromkeys(filter(None, names)))
