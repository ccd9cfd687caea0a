"""aiohttp's HTTP server with the manners that a public port needs.

Decides what becomes of a request that is none: too long, too slow, malformed, or addressed to a proxy.
Each is answered with a status, closed, and noted at DEBUG: what a stranger sends is not our error.
Everything else is aiohttp's. Knows no routes and no connections; used by `gateway.run_app`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from gateway.config import Settings

# Bytes. The two differ, because aiohttp's error names only the limit that was passed.
_MAX_TARGET = 8_190
_MAX_FIELD = 8_192
_MAX_FIELDS = 100
_TOO_MANY_FIELDS = "Too many headers received"  # aiohttp has no type of its own for it

_KEEP_ALIVE = 75.0  # s an idle connection is kept: longer than the 60 s of nginx and of load balancers
_STUCK = 30.0  # s without a byte taken: longer than any client waits that still lives
_BACKLOG = 1024  # connections that wait to be accepted: everybody comes back at once after a restart
_LINGER = 2.0  # s for the rest of a body that was refused, so that the client reads the answer

_TEXTS = {
    400: "this is not a request that this server understands",
    414: f"the request line is longer than {_MAX_TARGET} bytes",
    431: f"more than {_MAX_FIELDS} header fields, or one of more than {_MAX_FIELD} bytes",
}
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def make_runner(app: web.Application, settings: Settings, **options: Any) -> web.AppRunner:
    """A runner for `app`, to be set up and given sites as usual. `options`: as for `web.AppRunner`."""
    return _Runner(app, settings, **options)


class _Runner(web.AppRunner):
    """An `AppRunner` that listens with a `GatewayServer`."""

    __slots__ = ("_settings",)

    def __init__(self, app: web.Application, settings: Settings, **options: Any) -> None:
        super().__init__(app, **options)
        self._settings = settings

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        # The arguments for each connection, as the application has completed them.
        return GatewayServer(
            plain.request_handler,
            self._settings,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            **plain._kwargs,
        )


class Site(web.TCPSite):
    """Where to listen. What is accepted there inherits how long the kernel bears a silent peer (Linux)."""

    __slots__ = ("_patience",)

    def __init__(self, runner: web.BaseRunner, settings: Settings, host: str, port: int) -> None:
        super().__init__(runner, host, port, backlog=_BACKLOG)
        self._patience = settings.ping.interval + settings.ping.timeout

    async def start(self) -> None:
        """Begin to listen. Raises `OSError`."""
        await super().start()
        for listening in cast(asyncio.Server, self._server).sockets:  # uvloop's is none, but has them
            _set_patience(listening, self._patience)


def _set_patience(sock: Any, seconds: float) -> None:
    """Give up a peer that acknowledges nothing for so long, and ask one that is silent for so long.

    So a peer that has vanished holds no memory and no descriptor, whatever the program is waiting for.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_USER_TIMEOUT", round(seconds * 1000)),
        ("TCP_KEEPIDLE", ceil(seconds)),
        ("TCP_KEEPINTVL", ceil(seconds / 4)),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class GatewayServer(web.Server):
    """Makes one `_Connection` for each TCP connection."""

    def __init__(self, handle: Handle, settings: Settings, **options: Any) -> None:
        limits = {
            "max_line_size": _MAX_TARGET,
            "max_field_size": _MAX_FIELD,
            "max_headers": _MAX_FIELDS,
            "keepalive_timeout": _KEEP_ALIVE,
            "lingering_time": _LINGER,
            "auto_decompress": False,  # a compressed body is refused, not unpacked on the way out
        }
        super().__init__(_only_to_us(handle), **{**limits, **options})
        self.header_timeout = settings.timeouts.header

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


def _only_to_us(handle: Handle) -> Handle:
    """Refuse what is addressed to a proxy (`GET http://host/`, `CONNECT`): we are the origin.

    aiohttp would route it by its path, and take the host from the target instead of `Host`. And
    refuse an upgrade to anything but a websocket: aiohttp drops the request that stands behind it.
    """

    def checked(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        if request.raw_path.startswith("/") and not _wants_something_else(request):
            return handle(request)
        return _refused(400)

    return checked


def _wants_something_else(request: web.BaseRequest) -> bool:
    wanted = request.headers.get(hdrs.UPGRADE)
    if wanted is None or wanted.lower() == "websocket":
        return False
    return "upgrade" in request.headers.get(hdrs.CONNECTION, "").lower()


async def _refused(status: int) -> web.StreamResponse:
    return _refusal(status)


def _refusal(status: int) -> web.Response:
    response = web.Response(status=status, text=_TEXTS[status] + "\n")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.force_close()
    return response


class _Connection(RequestHandler):
    """One TCP connection."""

    __slots__ = ("_header_timeout", "_header_timer", "_silence_timer", "_stuck_timer")

    def __init__(self, manager: GatewayServer, **options: Any) -> None:
        super().__init__(manager, **options)
        self._header_timeout = manager.header_timeout
        self._header_timer: asyncio.TimerHandle | None = None
        self._silence_timer: asyncio.TimerHandle | None = None
        self._stuck_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """aiohttp: somebody has connected. aiohttp's own timer begins only after the first request."""
        super().connection_made(transport)
        self._silence_timer = self._loop.call_later(_KEEP_ALIVE, self.force_close)

    def pause_writing(self) -> None:
        """asyncio: the peer does not take what is written to it."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """asyncio: it does again."""
        super().resume_writing()
        _cancel(self._stuck_timer)

    def _watch_writing(self) -> None:
        if self.transport is not None:
            size = self.transport.get_write_buffer_size()
            self._stuck_timer = self._loop.call_later(_STUCK, self._check_writing, size)

    def _check_writing(self, before: int) -> None:
        """Cut the line if nothing has been taken since, or else look again later."""
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() < before:
            self._watch_writing()
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """aiohttp: bytes arrived."""
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None
        if self._payload_parser is not None and (self._close or self._force_close):
            # aiohttp hears nothing more during a stop; a websocket has to hear the answer to its
            # good-bye, or it would wait for that in vain.
            self._payload_parser.feed_data(data)
            return
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._stop_header_timer()
        elif data and self._header_timer is None:
            # aiohttp still waits for a request although bytes came: they are the beginning of one.
            self._header_timer = self._loop.call_later(self._header_timeout, self._too_slow)

    def connection_lost(self, exc: BaseException | None) -> None:
        """aiohttp: the TCP connection is gone."""
        self._stop_header_timer()
        _cancel(self._silence_timer)
        _cancel(self._stuck_timer)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp: no request could be read, or its handler has failed."""
        if not isinstance(exc, BadHttpMessage):
            return super().handle_error(request, status, exc, message)
        self.logger.debug("%s sent no HTTP request: %s", request.remote, type(exc).__name__)
        return _refusal(_status(exc))

    def _too_slow(self) -> None:
        self._header_timer = None
        if self.transport is not None:
            self.transport.write(_TOO_SLOW)
        self.force_close()

    def _stop_header_timer(self) -> None:
        timer, self._header_timer = self._header_timer, None
        if timer is not None:
            timer.cancel()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _status(error: BadHttpMessage) -> int:
    if isinstance(error, LineTooLong):
        return 414 if error.args[1] == _MAX_TARGET else 431
    return 431 if error.message == _TOO_MANY_FIELDS else 400
