"""`EngineServer`: python-engineio's public server API, over our own connections.

Decides how that API's words (`sid`, environ, handlers, reasons) map to channels and connections, and
where its users and we disagree (`docs/engineserver.md`). Of python-engineio's own machinery nothing
runs: no socket, no payload, no packet queue, no service task. Does not know HTTP or websockets.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn, TypeVar, overload

import engineio
from aiohttp import hdrs, web
from engineio.async_drivers.aiohttp import translate_request
from engineio.packet import MESSAGE, Packet

from .access import Access
from .application import Application, Channel, Refused, Request
from .channels import EngineChannel
from .config import Limits, Ping, Settings, Timeouts
from .connection import Connection
from .protocol.forwarded import parse_networks
from .protocol.handshake import Code
from .protocol.handshake import Refused as RequestRefused
from .protocol.origins import OriginPolicy
from .protocol.packets import Wire, message
from .protocol.reasons import Closing, Reason
from .registry import Registry
from .wires.http import EngineEndpoint, cors_headers
from .wires.request import refusal

Origins = str | Iterable[str] | Callable[..., bool] | None
Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)

# What each event's handler is called with; a shorter form in second place is also taken.
_ARGUMENTS = {
    "connect": (("sid", "environ"),),
    "message": (("sid", "data"),),
    "disconnect": (("sid", "reason"), ("sid",)),
}


class Client:
    """One client as python-engineio's users know it from `server.sockets`. Read it only.

    It lives from the call of the connect handler to the return of the disconnect handler, so that the
    session can be used in both.
    """

    __slots__ = ("channel", "congested", "running", "session")

    def __init__(self, channel: EngineChannel) -> None:
        self.channel = channel
        self.session: Any = {}
        self.running: set[asyncio.Task[None]] = set()
        self.congested: asyncio.Event | None = None

    @property
    def sid(self) -> str:
        """Its id."""
        return self.channel.id

    @property
    def connection(self) -> Connection:
        """The connection behind it."""
        return self.channel.connection

    @property
    def connected(self) -> bool:
        """Whether the connect handler has let it in."""
        return self.connection.transport is not None

    @property
    def upgraded(self) -> bool:
        """Whether it is on a websocket."""
        return self.connection.transport_name == "websocket"

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self.connection.state.is_over


class Clients(Mapping[str, Client]):
    """The clients by `sid`, for reading."""

    def __init__(self, clients: dict[str, Client]) -> None:
        self._clients = clients

    def __getitem__(self, sid: str) -> Client:
        return self._clients[sid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)

    def copy(self) -> dict[str, Client]:
        """A dict that does not change while clients come and go."""
        return dict(self._clients)


class EngineServer(engineio.AsyncServer):
    """An Engine.IO v4 server for aiohttp, with the API of `engineio.AsyncServer`.

    All parameters of `engineio.AsyncServer` are taken. Those that differ here:

    - `async_mode`: `"aiohttp"` or None.
    - `async_handlers`: False unless given. The events of a client are then handled one after the
      other, in order. With True its message handlers are started in order and run side by side, at
      most `limits.inbound_messages` of them; the disconnect handler waits for them,
      `timeouts.handler` seconds at the most.
    - `cors_allowed_origins`: entries may also be `host[:port]` and `*.example.com`.
    - `http_compression`, `compression_threshold`, `monitor_clients`: no effect. A proxy compresses
      better, and there is no client that is not monitored.

    `timeouts` and `limits` are the settings of `gateway.config`; `max_http_buffer_size`, if given,
    stands above `limits.payload`. `trusted_proxies` are the addresses or networks whose
    `X-Forwarded-*` headers are believed. Raises `ValueError` for a value that makes no sense.
    """

    def __init__(
        self,
        async_mode: str | None = None,
        ping_interval: float | tuple[float, float] = 25,
        ping_timeout: float = 20,
        max_http_buffer_size: int | None = None,
        allow_upgrades: bool = True,
        http_compression: bool = True,
        compression_threshold: int = 1024,
        cookie: str | Mapping[str, Any] | None = None,
        cors_allowed_origins: Origins = None,
        cors_credentials: bool = True,
        logger: bool | logging.Logger = False,
        json: Any = None,
        async_handlers: bool = False,
        monitor_clients: bool | None = None,
        transports: str | Iterable[str] | None = None,
        *,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        trusted_proxies: Iterable[str] = (),
        **kwargs: Any,
    ) -> None:
        if async_mode not in (None, "aiohttp"):
            raise ValueError(f"async_mode {async_mode!r} is not supported: this server runs on aiohttp")
        limits = limits or Limits()
        if max_http_buffer_size is not None:
            limits = replace(limits, payload=max_http_buffer_size)
        super().__init__(
            async_mode="aiohttp",
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            max_http_buffer_size=limits.payload,
            allow_upgrades=allow_upgrades,
            http_compression=http_compression,
            compression_threshold=compression_threshold,
            cookie=cookie,
            cors_allowed_origins=cors_allowed_origins,
            cors_credentials=cors_credentials,
            logger=logger,
            json=json,
            async_handlers=async_handlers,
            monitor_clients=False,
            transports=transports,
        )
        if kwargs:
            self.logger.warning("These options are not known and have no effect: %s", ", ".join(kwargs))
        self.settings = Settings(
            ping=Ping(self.ping_interval, ping_timeout, self.ping_interval_grace_period),
            limits=limits,
            timeouts=timeouts or Timeouts(),
            transports=tuple(self.transports),
            upgrades=allow_upgrades,
        )
        self._access, self._cors = _access(cors_allowed_origins, cors_credentials)
        self._trusted = parse_networks(trusted_proxies)
        self._clients: dict[str, Client] = {}
        self.sockets = Clients(self._clients)
        self._endpoint: EngineEndpoint | None = None
        self._registry: Registry | None = None
        self._stopped = False
        self._deserted: asyncio.Event | None = None
        self._background: set[asyncio.Future[Any]] = set()
        self._disconnect_arguments = 0

    # -- serving -----------------------------------------------------------------------------------

    def attach(self, app: web.Application, engineio_path: str = "engine.io") -> None:
        """Serve `/<engineio_path>/` of `app`, and close every client when it stops.

        All methods are routed here: what is wrong with one is said in Engine.IO's words.
        """
        app.router.add_route(hdrs.METH_ANY, f"/{engineio_path.strip('/')}/", self.handle_request)
        app.on_shutdown.append(self._on_shutdown)

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """Answer one aiohttp request."""
        if self._stopped and "sid" not in request.query:  # the others come for their last words
            return refusal(RequestRefused(Code.FORBIDDEN, "this server is stopping", 503), close=True)
        if self._endpoint is None:
            self._registry = Registry(self.settings)
            self._endpoint = EngineEndpoint(
                _Events(self),
                self.settings,
                self._registry,
                self._access,
                self._new_sid,
                trusted=self._trusted,
                headers=self._handshake_headers,
                cors=self._cors,
            )
        return await self._endpoint.handle(request)

    async def _on_shutdown(self, app: web.Application) -> None:
        await self.shutdown()

    async def shutdown(self) -> None:
        """Stop for good: tell every client to leave, and run every disconnect handler.

        Returns when that is done; `timeouts.drain` seconds later it waits no longer for handlers.
        """
        self._stopped = True
        if self._registry is not None:
            await self._registry.shutdown(Reason.SHUTDOWN)
        if not self._clients:
            return
        self._deserted = asyncio.Event()
        try:
            async with asyncio.timeout(self.settings.timeouts.drain):
                await self._deserted.wait()
        except TimeoutError:
            self.logger.warning("%d disconnect handlers have not ended in time", len(self._clients))

    def _new_sid(self) -> str:
        sid: str = self.generate_id()
        if sid in self._clients:
            raise RuntimeError("generate_id() returned the id of a client that is connected")
        return sid

    def _handshake_headers(self, sid: str) -> dict[str, str]:
        if not self.cookie:
            return {}
        attributes = self.cookie
        if isinstance(attributes, str):
            attributes = {"name": attributes, "path": "/", "SameSite": "Lax"}
        return {hdrs.SET_COOKIE: self._generate_sid_cookie(sid, attributes)}

    def _generate_sid_cookie(self, sid: str, attributes: Mapping[str, Any]) -> str:
        parts = [f"{attributes.get('name', 'io')}={sid}"]
        for name, value in attributes.items():
            current = value() if callable(value) else value
            if name == "name" or current is False or current is None:
                continue
            parts.append(name if current is True else f"{name}={current}")
        return "; ".join(parts)

    # -- handlers ----------------------------------------------------------------------------------

    @overload
    def on(self, event: str, handler: None = None) -> Callable[[H], H]: ...

    @overload
    def on(self, event: str, handler: H) -> H: ...

    def on(self, event: str, handler: Handler | None = None) -> Any:
        """Register the handler of `connect`, `message` or `disconnect`; usable as a decorator.

        `connect(sid, environ)`: any value but None and True refuses the client with HTTP status 401
        and that value as JSON; so does an exception. `message(sid, data)`: bytes, text, or what a
        JSON object or array holds. `disconnect(sid, reason)` or `disconnect(sid)`: exactly once for
        each client that was let in. A handler may be a coroutine function; the others run on the
        event loop. Raises `ValueError` for another event, `TypeError` for a handler that does not
        take these arguments.
        """
        if event not in self.event_names:
            raise ValueError(f"{event!r} is not an event: connect, message or disconnect")
        if handler is None:
            return lambda given: self._register(event, given)
        return self._register(event, handler)

    def _register(self, event: str, handler: H) -> H:
        given = _accepted(event, handler)
        # `handlers` shows what was registered; how it is called is decided once, here, and never by
        # catching a TypeError, which may come from inside the handler.
        self.handlers[event] = handler
        if event == "disconnect":
            self._disconnect_arguments = given
        return handler

    # -- what applications call --------------------------------------------------------------------

    async def send(self, sid: str, data: Any) -> None:
        """Send a message: text, bytes, or a list or dict that travels as JSON.

        Returns at once, but waits while more than half of the client's buffer is full; a client that
        has not read by then, `timeouts.send` seconds later, is closed. An unknown `sid` is logged.
        Raises `ValueError` for text with U+001E, which polling cannot carry, while on polling.
        """
        client = self._find(sid)
        if client is not None:
            await self._write(client, message(data) if isinstance(data, str) else _wire(data))

    async def send_packet(self, sid: str, pkt: Packet) -> None:
        """Send a packet of python-engineio's; see `send`."""
        client = self._find(sid)
        if client is not None:
            await self._write(client, _wire(pkt.data, pkt.packet_type))

    def _find(self, sid: str) -> Client | None:
        client = self._clients.get(sid)
        if client is None:
            self.logger.warning("Cannot send to sid %s", sid)
        return client

    async def _write(self, client: Client, packet: Wire) -> None:
        # Only one task waits for room; the others wait for it. So what a task sends in one go stays
        # together, which a Socket.IO packet and its attachments rely on.
        while client.congested is not None:
            await client.congested.wait()
        client.connection.send(packet)
        if client.connection.congested:
            await self._wait_for_room(client)

    async def _wait_for_room(self, client: Client) -> None:
        client.congested = over = asyncio.Event()
        try:
            async with asyncio.timeout(self.settings.timeouts.send):
                await client.channel.drain()
        except TimeoutError:
            client.connection.close(Reason.SLOW_CONSUMER)
        finally:
            client.congested = None
            over.set()

    async def disconnect(self, sid: str | None = None) -> None:
        """Disconnect a client, or all of them. What was sent before still goes out.

        Returns at once, also if the client has vanished; the disconnect handler runs when the
        handlers before it have ended.
        """
        if sid is None:
            for client in self.sockets.copy().values():
                client.connection.close(Reason.SERVER_CLOSE)
        elif sid in self._clients:
            self._clients[sid].connection.close(Reason.SERVER_CLOSE)

    def transport(self, sid: str) -> str:
        """`polling` or `websocket`. Raises `KeyError` for an unknown `sid`."""
        name: str = self._get_socket(sid).connection.transport_name
        return name

    async def get_session(self, sid: str) -> Any:
        """What the application keeps of this client: a dict. Raises `KeyError`."""
        return self._get_socket(sid).session

    async def save_session(self, sid: str, session: Any) -> None:
        """Replace what `get_session` returns. Raises `KeyError`."""
        self._get_socket(sid).session = session

    def session(self, sid: str) -> Any:
        """`async with eio.session(sid) as session`: read and change what is kept."""
        return _Session(self, sid)

    def _get_socket(self, sid: str) -> Client:
        """Also what python-engineio's inherited methods, and extensions of it, ask."""
        try:
            return self._clients[sid]
        except KeyError:
            raise KeyError("Session not found") from None

    def start_background_task(
        self, target: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        """Run `target(*args, **kwargs)` as a task, which is kept alive until it ends."""
        task = asyncio.ensure_future(target(*args, **kwargs))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -- python-engineio's machinery, which must not run -------------------------------------------

    async def _service_task(self) -> NoReturn:
        raise NotImplementedError("clients are monitored by gateway.registry")

    async def _handle_connect(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("requests are served by gateway.wires")


class _Session:
    """The context manager of `EngineServer.session`."""

    def __init__(self, server: EngineServer, sid: str) -> None:
        self._server = server
        self._sid = sid
        self._session: Any = None

    async def __aenter__(self) -> Any:
        self._session = await self._server.get_session(self._sid)
        return self._session

    async def __aexit__(self, *exc_info: object) -> None:
        # The client may have gone while the block waited for something; there is nothing to save then.
        if self._sid in self._server.sockets:
            await self._server.save_session(self._sid, self._session)


class _Events(Application):
    """Turns what happens to a channel into calls of the handlers."""

    def __init__(self, server: EngineServer) -> None:
        self._server = server
        self._clients = server._clients
        self._concurrent = server.settings.limits.inbound_messages if server.async_handlers else 0

    async def open(self, channel: Channel) -> None:
        """Ask the connect handler."""
        assert isinstance(channel, EngineChannel)
        self._clients[channel.id] = Client(channel)
        accepted = False
        try:
            refused = await self._connect(channel)
            accepted = refused is None
        finally:
            if not accepted:
                self._forget(channel.id)
        if refused is not None:
            raise refused

    async def _connect(self, channel: Channel) -> Refused | None:
        handler = self._server.handlers.get("connect")
        if handler is None:
            return None
        try:
            answer = handler(channel.id, make_environ(channel.request))
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception:  # the application's own code: anything may come out of it
            self._server.logger.exception("connect handler error")
            answer = False
        if answer is None or answer is True:
            return None
        return Refused(401, "Unauthorized", body=Packet.json.dumps(answer or "Unauthorized"))

    def message(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        """Hand it to the message handler."""
        handler = self._server.handlers.get("message")
        if handler is None:
            return None
        answer = handler(channel.id, decode(data))
        if not inspect.isawaitable(answer):
            return None
        return self._start(self._clients[channel.id], answer) if self._concurrent else answer

    def _start(self, client: Client, answer: Awaitable[Any]) -> Awaitable[None] | None:
        """Let it run beside the next ones, unless there are too many already."""
        task = asyncio.ensure_future(self._guard(answer))
        client.running.add(task)
        task.add_done_callback(client.running.discard)
        if len(client.running) < self._concurrent:
            return None
        return _first(client.running)

    async def _guard(self, answer: Awaitable[Any]) -> None:
        try:
            await answer
        except Exception:  # the application's own code: anything may come out of it
            self._server.logger.exception("message handler error")

    def close(self, channel: Channel, closing: Closing) -> Awaitable[None] | None:
        """Tell the disconnect handler, once the message handlers have ended."""
        if self._clients[channel.id].running:
            return self._close_later(channel, closing)
        answer = None
        try:
            answer = self._disconnected(channel, closing)
        finally:
            if answer is None:
                self._forget(channel.id)
        return None if answer is None else self._forget_after(channel, answer)

    async def _close_later(self, channel: Channel, closing: Closing) -> None:
        running = self._clients[channel.id].running
        try:
            await asyncio.wait(running, timeout=self._server.settings.timeouts.handler)
            answer = self._disconnected(channel, closing)
            if answer is not None:
                await answer
        finally:
            self._forget(channel.id)

    async def _forget_after(self, channel: Channel, answer: Awaitable[Any]) -> None:
        try:
            await answer
        finally:
            self._forget(channel.id)

    def _disconnected(self, channel: Channel, closing: Closing) -> Awaitable[Any] | None:
        """Call the disconnect handler; what there is to await, if anything."""
        handler = self._server.handlers.get("disconnect")
        if handler is None:
            return None
        reason = (closing.reason.text,) if self._server._disconnect_arguments == 2 else ()
        answer = handler(channel.id, *reason)
        return answer if inspect.isawaitable(answer) else None

    def _forget(self, sid: str) -> None:
        del self._clients[sid]
        if self._server._deserted is not None and not self._clients:
            self._server._deserted.set()


async def _first(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def decode(data: str | bytes) -> Any:
    """What a message handler gets: JSON objects and arrays decoded, all else as it came.

    That is what `send` makes of a dict or list. python-engineio decodes other JSON values too, which
    its documentation does not promise, and which changes text that only looks like one: `true`,
    `"a"`, `-1`. What is no JSON after all, or too deep, stays text.
    """
    if isinstance(data, str) and data.startswith(("{", "[")):
        try:
            return _loads(data)
        except (ValueError, RecursionError):
            return data
    return data


_LONG = 65_536  # characters


def _loads(text: str) -> Any:
    """A megabyte of `[],[],…` makes 300,000 objects, and the collector, which cannot free any of them
    yet, would look at them again and again: 125 ms in place of 24.
    """
    if len(text) < _LONG or not gc.isenabled():
        return Packet.json.loads(text)
    gc.disable()
    try:
        return Packet.json.loads(text)
    finally:
        gc.enable()


def make_environ(request: Request) -> dict[str, Any]:
    """The environ of python-engineio's aiohttp driver, with the true address, port and scheme."""
    environ: dict[str, Any] = translate_request(request.raw)
    transport = request.raw.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    own = transport.get_extra_info("sockname") if transport is not None else None
    environ["QUERY_STRING"] = request.query_string  # as sent: decoded, `a=x%26y` would read as two
    environ["REMOTE_ADDR"] = request.remote
    if isinstance(peer, tuple) and peer[0] == request.remote:
        environ["REMOTE_PORT"] = str(peer[1])
    if isinstance(own, tuple):
        environ["SERVER_PORT"] = str(own[1])
    environ["wsgi.url_scheme"] = request.scheme
    return environ


def _wire(data: Any, kind: int = MESSAGE) -> Wire:
    """As python-engineio encodes it. Its own encoder may return a form that was cached for polling."""
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    if isinstance(data, dict | list):
        data = Packet.json.dumps(data, separators=(",", ":"))
    return f"{kind}{'' if data is None else data}"


def _accepted(event: str, handler: Handler) -> int:
    """With how many arguments `handler` can be called. `TypeError` if with none that it is given."""
    try:
        signature = inspect.signature(handler)
    except ValueError:  # a callable of C without a signature
        return len(_ARGUMENTS[event][0])
    for arguments in _ARGUMENTS[event]:
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments)
    raise TypeError(f"the {event} handler is called with ({', '.join(_ARGUMENTS[event][0])})")


# -- cross-origin ----------------------------------------------------------------------------------


class _Listed(OriginPolicy):
    """Also takes origins that are no `http` origin (`null`, `capacitor://localhost`), word by word."""

    __slots__ = ("_exact",)

    def __init__(self, entries: Iterable[str]) -> None:
        entries = list(entries)
        odd = [entry for entry in entries if entry == "null" or _is_odd(entry)]
        super().__init__([entry for entry in entries if entry not in odd])
        self._exact = frozenset(odd)

    def lists(self, origin: str) -> bool:
        return origin in self._exact or super().lists(origin)


def _is_odd(entry: str) -> bool:
    scheme, separator, _ = entry.partition("://")
    return bool(separator) and scheme not in ("http", "https")


class _Asked(Access):
    """The application's function decides: `function(origin)` or `function(origin, environ)`."""

    __slots__ = ("_function", "_takes_environ")

    def __init__(self, function: Callable[..., bool]) -> None:
        super().__init__()
        self._function = function
        self._takes_environ = _takes_two(function)

    def check_origin(self, request: Request, method: str) -> None:
        if not self.allows(request):
            raise RequestRefused(Code.FORBIDDEN, "this origin may not connect")

    def allows(self, request: Request) -> bool:
        """Ask the function. Programs that are no browser send no Origin, and pass."""
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return True
        environ = (make_environ(request),) if self._takes_environ else ()
        return bool(self._function(origin, *environ))


def _takes_two(function: Callable[..., bool]) -> bool:
    try:
        inspect.signature(function).bind("origin", "environ")
    except TypeError:
        return False
    return True


def _access(origins: Origins, credentials: bool) -> tuple[Access, Callable[[Request], dict[str, str]]]:
    """Who may connect, and the headers that tell a browser so."""
    if callable(origins):
        asked = _Asked(origins)
        return asked, lambda request: _allow(request, asked.allows(request), credentials)
    if isinstance(origins, str):
        origins = [origins]
    entries = None if origins is None else list(origins)
    if entries == []:  # whoever sets this does it himself, in front of this server
        return Access(OriginPolicy(["*"])), lambda request: {}  # noqa: ARG005 - the caller's signature
    policy = OriginPolicy() if entries is None else _Listed(entries)
    access = Access(policy)
    if policy.any:
        return access, lambda request: cors_headers(access, request)
    return access, lambda request: _allow(request, policy.lists(_origin(request)), credentials)


def _origin(request: Request) -> str:
    return request.headers.get(hdrs.ORIGIN, "")


def _allow(request: Request, allowed: bool, credentials: bool) -> dict[str, str]:
    """The headers of an answer to a page of another origin; they differ from origin to origin."""
    if not _origin(request):
        return {}
    headers: dict[str, str] = {hdrs.VARY: "Origin"}
    if allowed:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = _origin(request)
        headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "OPTIONS, GET, POST"
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
        if wanted is not None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
        if credentials:
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
    return headers
