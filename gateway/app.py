"""The composition root: who is wired to whom, and in which order it starts and stops.

Knows aiohttp and every room; decides nothing about messages.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.typedefs import Handler as WebHandler
from yarl import URL

from .config import Listen, Settings
from .hooks import Hooks, as_hooks
from .ledger import Health, Ledger
from .protocol.forwarded import Network, parse_networks
from .protocol.handshake import Code, Refused
from .protocol.lifecycle import State
from .protocol.origins import OriginPolicy
from .protocol.paths import read_path
from .registry import Registry
from .routes.demo import DemoApplication
from .routes.files import Files
from .routes.handlers import HandlerApplication, Route
from .routes.table import PREFIX, AtEngineIO, Mount, Pattern, RouteTable, engine_base, not_found, union_of
from .session import Sessions
from .session_store import MemoryStore, SessionStore
from .threads import Threads
from .wires.http import EngineEndpoint
from .wires.plain import PlainEndpoint
from .wires.request import refusal
from .wires.server import Site, make_runner

log = logging.getLogger("gateway")

_ENGINE = PREFIX + "engine/"
_STATUS = PREFIX + "status"
_DEMO = PREFIX + "demo"

_STATES = (State.NEW, State.OPEN, State.DETACHED, State.CLOSING)

_LEFT_OVER = 1.0  # s for requests that the stop has not ended; the drain comes before
_TWICE = 0.05  # s; `timeout` and some supervisors signal a process and its group: that is one signal


class Gateway:
    """Routes, sessions and the demo page. Attach it to one aiohttp application, once.

    `origins` is for the routes that list none. `trusted_proxies` are addresses or networks whose
    `X-Forwarded-*` headers are believed. `static_prefix` is the URL of the folder from which pages
    load `client.js`, where that is not this gateway. `store` records sessions (by default in memory, so
    that they end with the process), and `cleanup` is one hook or several for the end of each: see
    `docs/cleanup.md`. Raises `ValueError` for what cannot work.
    """

    def __init__(
        self,
        routes: Iterable[Route] = (),
        *,
        settings: Settings | None = None,
        origins: Iterable[str] | None = None,
        trusted_proxies: Iterable[str] = (),
        static_prefix: str = "",
        demo: bool = True,
        store: SessionStore | None = None,
        cleanup: object = (),
    ) -> None:
        self.settings = settings or Settings()
        self.trusted: list[Network] = parse_networks(trusted_proxies)
        self.threads = Threads(self.settings.limits.threads)
        self.store = MemoryStore() if store is None else store
        routes = list(routes)
        self.hooks = as_hooks(cleanup)
        self.route_hooks = {route.pattern.text: route.hooks for route in routes if route.hooks}
        default = None if origins is None else OriginPolicy(origins)
        own = [Mount(Pattern(_DEMO), DemoApplication())] if demo else []
        self.table = RouteTable([*own, *(self._mount(route, default) for route in routes)])
        self._static_prefix = static_prefix
        self._demo = demo
        self._running: _Running | None = None

    def attach(self, app: web.Application, *, root: bool = False) -> None:
        """Serve the routes, and everything below `/_gateway/`, in this application.

        All other paths stay the application's own. `root`: the demo page at `/`, too.
        """
        app[_GATEWAY] = self
        app.router.register_resource(_Paths(self, root=root))
        app.cleanup_ctx.append(self._run)
        app.on_shutdown.append(self._shutdown)

    def application(self) -> web.Application:
        """An aiohttp application that serves this and nothing else."""
        app = web.Application(middlewares=[_errors_in_json])
        self.attach(app, root=True)
        return app

    def find(self, path: str) -> WebHandler | None:
        """What answers requests for this path; None if nothing does, or it does not run."""
        return None if self._running is None else self._running.find(path)

    def _mount(self, route: Route, default: OriginPolicy | None) -> Mount:
        if route.is_reserved:
            raise ValueError(f"{route.pattern.text}: what is below {PREFIX} belongs to the gateway")
        return route.mount(self.threads, self.settings.timeouts.send, default)

    async def _run(self, _: web.Application) -> AsyncIterator[None]:
        files = await asyncio.to_thread(Files, self._static_prefix, demo=self._demo)
        running = _Running(self, files)
        await running.start()
        self._running = running
        yield
        await running.finish()
        self.threads.stop()

    async def _shutdown(self, _: web.Application) -> None:
        await self.stop()

    def when_empty(self) -> None:
        """Nobody has been here for `exit_when_empty` seconds: stop, as if somebody had asked for it."""
        signal.raise_signal(signal.SIGTERM)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` has been called: no new clients are let in."""
        return self._running is not None and self._running.stopping

    async def stop(self) -> None:
        """Send everybody away, as the application's shutdown does. Only the first call counts.

        When it returns, every `on_close` has run, or `timeouts.drain` is over.
        """
        if self._running is not None and not self._running.stopping:
            await self._running.stop()


_GATEWAY = web.AppKey("gateway", Gateway)


class _Running:
    """What exists only while the loop runs."""

    def __init__(self, gateway: Gateway, files: Files) -> None:
        self.files = files
        self._gateway = gateway
        self._settings = settings = gateway.settings
        self._table = table = gateway.table
        self.stopping = False
        self.registry = Registry(settings)
        self.hooks = Hooks(gateway.hooks, gateway.store, "", settings, routes=gateway.route_hooks)
        self.ledger = Ledger(
            gateway.store,
            settings,
            clean=self.hooks.run,
            new_node=_new_node,
            has_hooks=self.hooks.any_for,
            capacity=lambda: self.hooks.capacity,
            now=self.registry.now,
        )
        self.ledger.on_join = self._joined
        self.hooks.again = self.ledger.again
        self.ledger.on_empty = gateway.when_empty
        self._finished = False
        self.sessions = Sessions(
            table,
            settings,
            self.registry.deadlines,
            self.registry.admission,
            self.ledger,
            new_id=_new_id,
            new_token=_new_token,
            epoch=secrets.token_urlsafe(9),
        )
        self.session_endpoint = EngineEndpoint(
            self.sessions,
            settings,
            self.registry,
            union_of(table.mounts),
            _new_id,
            trusted=gateway.trusted,
            numbered=True,
        )
        self.plain = PlainEndpoint(
            table, settings, self.registry, _new_id, trusted=gateway.trusted, ledger=self.ledger
        )
        self.engines = {mount: self._engine(mount) for mount in table.mounts}

    def _engine(self, mount: Mount) -> EngineEndpoint:
        application = AtEngineIO(mount)
        return EngineEndpoint(
            application,
            self._settings,
            self.registry,
            application.access,
            _new_id,
            trusted=self._gateway.trusted,
            ledger=self.ledger,
            route=mount.pattern.text,
        )

    async def start(self) -> None:
        """Join the other nodes of the store. Raises `StoreError`."""
        await self.ledger.start()
        self.ledger.run()

    def _joined(self, node: str) -> None:
        self.hooks.node = node

    def find(self, path: str) -> WebHandler | None:
        """See `Gateway.find`."""
        if path == _ENGINE:
            return self.session_endpoint.handle
        if path == _STATUS:
            return self.status
        base = engine_base(path)
        found = self._table.match(base) if base is not None else None
        if found is not None:
            return self.engines[found[0]].handle
        if self._table.match(path) is not None:
            return self.plain.handle
        return partial(self.files.answer, path) if path in self.files else None

    async def stop(self) -> None:
        """See `Gateway.stop`."""
        self.stopping = True
        count = len(self.registry.connections) + len(self.plain)
        if count:
            log.info("stopping: telling %d client%s; once more stops at once", count, "s"[: count > 1])
        limit = self._settings.timeouts.drain
        until = self.registry.now() + limit
        try:
            async with asyncio.timeout_at(until):
                self.ledger.hurry(limit / 2)  # the other half is for the hooks
                await self.sessions.shutdown()
                await asyncio.gather(self.plain.shutdown(), self.registry.shutdown())
                idle = (application.when_idle() for application in self._handlers())
                await asyncio.gather(self.ledger.drained(), *idle)
        except TimeoutError:
            log.warning("stopped after %g s; %s", limit, self._behind())
            self.registry.deadlines.stop()
        await self.finish(until - self.registry.now())

    async def finish(self, limit: float = 0.0) -> None:
        """Let go of hooks and store; hooks have `limit` seconds. Idempotent."""
        if self._finished:
            return
        self._finished = True
        await self.hooks.close(max(limit, 0.0))
        await self.ledger.stop()

    def _behind(self) -> str:
        """What the stop has waited for in vain."""
        if handlers := self._handlers():
            names = ", ".join(f"{application.name} ({len(application)})" for application in handlers)
            return f"handlers that have not returned: {names}"
        if self.ledger.health is not Health.OK:
            return "the session store is not back: cleanup is left to the next start"
        return "cleanup hooks have not returned"

    def _handlers(self) -> list[HandlerApplication]:
        applications = (mount.application for mount in self._gateway.table.mounts)
        return [each for each in applications if isinstance(each, HandlerApplication) and len(each)]

    async def status(self, request: web.Request) -> web.StreamResponse:
        """Counts, for whoever sits at this machine."""
        if not _is_local(request):
            return refusal(not_found())
        transports = Counter(each.transport_name for each in self.registry.connections.values())
        counts = {
            "sessions": {state.name.lower(): self.ledger.counts[state] for state in _STATES},
            "connections": {"polling": 0, "websocket": 0, **transports, "plain": len(self.plain)},
            "store": {"url": self.ledger.store.url, "state": self.ledger.health.value},
            "hooks": self.hooks.counts(),
            "resumes": {"ok": self.sessions.resumed, "state_lost": self.sessions.lost},
            "stalls": self.registry.deadlines.stalls,
        }
        return web.json_response(counts, headers={"Cache-Control": "no-store"})


class _Paths(web.AbstractResource):
    """The gateway among an application's resources: all of its paths, and no other."""

    def __init__(self, gateway: Gateway, *, root: bool) -> None:
        super().__init__(name="gateway")
        self._gateway = gateway
        self._root = root
        self._route = web.ResourceRoute("*", _answer, self)

    # aiohttp asks last those whose canonical path begins with a variable.
    @property
    def canonical(self) -> str:
        return "/{gateway}"

    async def resolve(self, request: web.Request) -> Any:
        path = read_path(request.raw_path)
        handler = None if path is None else self._find(path)
        if handler is None:
            return None, set()
        if self._gateway.is_stopping and "sid" not in request.query:  # the others come for their last words
            handler = _stopping
        return _Found(handler, self._route), {"GET", "POST"}

    def raw_match(self, path: str) -> bool:
        return self._find(path) is not None

    def _find(self, path: str) -> WebHandler | None:
        if path == "/" and not self._root and self._gateway.table.match(path) is None:
            return None
        return self._gateway.find(path)

    def get_info(self) -> Any:
        return {"path": self.canonical}

    def url_for(self, **kwargs: str) -> URL:
        return URL(PREFIX)

    def add_prefix(self, prefix: str) -> NoReturn:
        raise ValueError("attach the gateway to the outermost application: its paths are absolute")

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return iter((self._route,))


class _Found(web.UrlMappingMatchInfo):
    """Carries what answers a request from where its path was looked up to where it is handled."""

    __slots__ = ("answer",)

    def __init__(self, handler: WebHandler, route: web.AbstractRoute) -> None:
        super().__init__({}, route)
        self.answer = handler


async def _answer(request: web.Request) -> web.StreamResponse:
    found = request.match_info
    assert isinstance(found, _Found)
    return await found.answer(request)


@web.middleware
async def _errors_in_json(request: web.Request, handler: WebHandler) -> web.StreamResponse:
    """One shape of error for every path."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return refusal(not_found(), close=request.can_read_body)


async def _stopping(_: web.Request) -> web.StreamResponse:
    response = refusal(Refused(Code.FORBIDDEN, "this gateway is stopping; come back", 503), close=True)
    response.headers[hdrs.RETRY_AFTER] = "1"
    return response


def _is_local(request: web.Request) -> bool:
    """Whether the request was made on this machine, and not passed on by a proxy on it."""
    headers = request.headers
    passed_on = any(name in headers for name in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"))
    host = headers.get(hdrs.HOST, "").rpartition(":")[0] or headers.get(hdrs.HOST, "")
    return (
        not passed_on
        and request.remote in ("127.0.0.1", "::1")
        and host in ("127.0.0.1", "localhost", "[::1]")
        and headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
    )


def _new_id() -> str:
    return secrets.token_urlsafe(16)


def _new_node() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(6)}"


def _new_token() -> str:
    return secrets.token_urlsafe(32)


# -- running it --------------------------------------------------------------------------------------


Ready = Callable[[Listen], None]


def run_app(
    app: web.Application | None = None,
    *,
    routes: Iterable[Route] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    path: str = "",
    settings: Settings | None = None,
    ready: Ready | None = None,
) -> None:
    """Serve an aiohttp application, or these routes, until SIGINT or SIGTERM, or the terminal is closed.

    The stop is graceful: clients are told, and every `on_close` runs, for `timeouts.drain` at the
    most. A second signal ends the process at once. `path` is a unix socket, in place of host and
    port; `ready` is told where it listens. Raises `OSError` when it cannot listen there, `ValueError`
    for an application and routes together: `Gateway(routes).attach(app)` says what is meant.
    """
    settings, routes = settings or Settings(), list(routes)
    if app is None:
        app = Gateway(routes, settings=settings).application()
    elif routes:
        raise ValueError("an application and routes: Gateway(routes).attach(app) joins them")
    listen = Listen(host, port, path)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(app, listen, settings, ready or _announce))
        last_resort = threading.Timer(_LEFT_OVER, _end_at_once)
        last_resort.daemon = True
        last_resort.start()
    last_resort.cancel()


async def _serve(app: web.Application, listen: Listen, settings: Settings, ready: Ready) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under `nohup`
            loop.add_signal_handler(number, _signalled, number, stop)
    runner = make_runner(app, settings, access_log_class=AccessLog, shutdown_timeout=_LEFT_OVER)
    try:
        await runner.setup()
        ready(await _listen(runner, settings, listen))
        await stop.wait()
        if _GATEWAY in app:  # before aiohttp stops to listen: who polls comes for the last words
            await app[_GATEWAY].stop()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: Settings, listen: Listen) -> Listen:
    """Begin to listen, and say where it is: port 0 has become a number."""
    if listen.path:
        await _check_free(listen.path)
        await web.UnixSite(runner, listen.path).start()
        return listen
    await Site(runner, settings, listen.host, listen.port).start()
    return replace(listen, port=runner.addresses[0][1])


async def _check_free(path: str) -> None:
    """Raise `OSError` if somebody answers there: the loop would take the path from whoever has it."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return
    writer.close()
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _signalled(number: signal.Signals, stop: asyncio.Event) -> None:
    if stop.is_set() and number is not signal.SIGHUP:  # which a shell and the terminal send, both
        os._exit(128 + number)
    asyncio.get_running_loop().call_later(_TWICE, stop.set)


def _end_at_once() -> None:
    """The loop does not close: a coroutine catches every cancellation, or `asyncio.to_thread` waits."""
    log.warning("the process ends in the middle of functions that do not let themselves be ended")
    os._exit(0)


def _announce(listen: Listen) -> None:
    log.info("listening on %s", listen.url or listen)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one (not on Windows)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class AccessLog(AbstractAccessLogger):
    """One line for each request, without its query: a `sid` is a credential."""

    @property
    def enabled(self) -> bool:
        """A line for each poll is for those who look for something."""
        return self.logger.isEnabledFor(logging.DEBUG)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        path = request.path.encode("unicode_escape").decode("ascii")
        self.logger.debug(
            "%s %s %s %d, %d bytes, %.0f ms",
            request.remote,
            request.method,
            path[:200],
            response.status,
            response.body_length,
            time * 1000,
        )
