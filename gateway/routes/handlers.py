"""A route that your functions serve: `open`, `on_message`, `on_close`.

Functions that block run in threads, coroutine functions on the loop; either way one at a time for
each connection, in order. Knows channels; does not know how the browser is connected, nor how a route
came to be configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import re
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeVar
from urllib.parse import parse_qs

from gateway.application import OVERFLOWS, Application, Channel, Overflow, Refused, Request
from gateway.hooks import Hook, as_hooks
from gateway.protocol.handshake import Code
from gateway.protocol.handshake import Refused as RequestRefused
from gateway.protocol.origins import OriginPolicy
from gateway.protocol.reasons import Closing, Reason
from gateway.threads import Threads

from .table import PREFIX, Mount, Pattern

log = logging.getLogger("gateway.application")

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)
_REQUIRED: Any = object()


class Route:
    """A pattern and what serves it.

    `pattern` is a path (`/chat`), may hold names (`/chat/{room}`), or is a compiled regular
    expression for the whole path. `origins` lists who may connect: `https://host[:port]`, `host`,
    `*.example.com` or `*`; without it, pages of the same origin. `auth(request)` returns the user,
    or something false to answer 401. `cleanup` is one hook or several, for the end of each session that
    has used the route. `overflow` says what becomes of a message when the buffer of a client is full:
    `close` the connection, `drop_oldest` of its messages, or drop all but the `latest`.

    The functions are given here, or by the decorators. Raises `ValueError` for what cannot work, and
    `TypeError` for what is no function.
    """

    def __init__(
        self,
        pattern: str | re.Pattern[str],
        *,
        open: Function | None = None,  # noqa: A002 - the name that users write
        on_message: Function | None = None,
        on_close: Function | None = None,
        origins: Iterable[str] | str | None = None,
        auth: Function | None = None,
        cleanup: Function | Hook | Iterable[Function | Hook] = (),
        overflow: Overflow = "close",
    ) -> None:
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow is one of {', '.join(OVERFLOWS)}, not {overflow!r}")
        self.overflow = overflow
        self.pattern = Pattern(pattern)
        if isinstance(origins, str):
            origins = [origins]
        self.origins = None if origins is None else OriginPolicy(origins)
        self.functions: dict[str, Function] = {}
        self.auth: Function | None = None
        self.hooks: tuple[Hook, ...] = as_hooks(cleanup)
        for name, function in (("open", open), ("on_message", on_message), ("on_close", on_close)):
            if function is not None:
                self._set(name, function)
        if auth is not None:
            self.authenticate(auth)

    def open(self, function: F) -> F:
        """Decorate `open(handler)`. Raise `gateway.Refuse` in it to send the client away."""
        return self._set("open", function)

    def on_message(self, function: F) -> F:
        """Decorate `on_message(handler, message)`; the message is str or bytes, as it was sent."""
        return self._set("on_message", function)

    def on_close(self, function: F) -> F:
        """Decorate `on_close(handler)` or `on_close(handler, closing)`: called once, at the end."""
        return self._set("on_close", function)

    def cleanup(self, function: F) -> F:
        """Decorate `cleanup(end)`: called once with a `gateway.SessionEnd`, when a session that has used
        the route is over for good.
        """
        self.hooks += as_hooks(function)
        return function

    @property
    def is_reserved(self) -> bool:
        """Whether its pattern lies where the gateway's own paths are."""
        return self.pattern.text.lstrip("^").startswith(PREFIX)

    def authenticate(self, function: F) -> F:
        """Decorate `auth(request)`: it returns the user, or something false to answer 401."""
        _check_arguments("auth", function)
        self.auth = function
        return function

    def mount(self, threads: Threads, patience: float, origins: OriginPolicy | None = None) -> Mount:
        """What serves it.

        `patience` in s: for a client that does not read, see `write_message`. `origins`: where the
        route lists none.
        """
        application = HandlerApplication(
            self.pattern.text, self.functions, threads, patience, overflow=self.overflow
        )
        authenticate = None if self.auth is None else _Authenticator(self.pattern.text, self.auth, threads)
        return Mount(self.pattern, application, self.origins or origins, authenticate)

    def _set(self, name: str, function: F) -> F:
        if name in self.functions:
            raise ValueError(f"{self.pattern.text} has two functions for {name}")
        _check_arguments(name, function)
        self.functions[name] = function
        return function


_ARGUMENTS = {
    "auth": ("request",),
    "open": ("handler",),
    "on_message": ("handler", "message"),
    "on_close": ("handler",),
}


def _check_arguments(name: str, function: Function) -> None:
    if not callable(function):
        raise TypeError(f"{name} is not a function")
    wanted = _ARGUMENTS[name]
    if not _takes(function, len(wanted)) and not (name == "on_close" and _takes(function, 2)):
        own = getattr(function, "__name__", "it")
        raise ValueError(f"{own} is called with ({', '.join(wanted)}), but does not take that")


def _takes(function: Function, count: int) -> bool:
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function written in C may not say
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _is_async(function: Function) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class Caller:
    """Calls functions of users: blocking ones in a thread."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def call(self, function: Function, *args: Any) -> Any:
        """Its result. What it raises is raised here, but it does not end the process for all others."""
        try:
            if _is_async(function):
                return await function(*args)
            result = await self._threads.run(function, *args)
            return await result if inspect.isawaitable(result) else result
        except SystemExit as error:
            raise RuntimeError("sys.exit does not end one client: call handler.close()") from error


class _Authenticator:
    def __init__(self, name: str, function: Function, threads: Threads) -> None:
        self._name = name
        self._function = function
        self._caller = Caller(threads)

    async def __call__(self, request: Request) -> Any:
        try:
            return await self._caller.call(self._function, request)
        except Refused as refused:
            raise RequestRefused(Code.FORBIDDEN, refused.reason, refused.status) from refused
        except Exception as error:  # the application's own code: anything may come out of it
            log.exception("%s: auth failed", self._name)
            raise RequestRefused(Code.FORBIDDEN, "the sign-in check failed", 500) from error


class HandlerApplication(Application):
    """Serves the channels of one route with its functions."""

    def __init__(
        self,
        name: str,
        functions: Mapping[str, Function],
        threads: Threads,
        patience: float,
        *,
        overflow: Overflow = "close",
    ) -> None:
        self.name = name
        self._overflow: Overflow = overflow
        self._caller = Caller(threads)
        self._patience = patience
        self._open = functions.get("open")
        self._on_message = functions.get("on_message")
        self._on_close = functions.get("on_close")
        self._tells_closing = self._on_close is not None and _takes(self._on_close, 2)
        self._handlers: dict[Channel, Handler] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._handlers)

    async def when_idle(self) -> None:
        """Return when the last `on_close` has."""
        await self._idle.wait()

    # What channels call (`Application`).

    def open(self, channel: Channel) -> Awaitable[None] | None:
        """A new client."""
        channel.overflow = self._overflow
        handler = self._handlers[channel] = Handler(channel, self._patience)
        self._idle.clear()
        return self._ask(self._open, handler) if self._open is not None else None

    def message(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        """One message of it."""
        if self._on_message is None:
            return None
        return self._guard("on_message", self._on_message, self._handlers[channel], data)

    def close(self, channel: Channel, closing: Closing) -> Awaitable[None] | None:
        """It is gone."""
        handler = self._handlers[channel]
        if self._on_close is None:
            self._forget(channel)
            return None
        return self._say_goodbye(handler, (closing,) if self._tells_closing else ())

    async def _ask(self, function: Function, handler: Handler) -> None:
        opening = asyncio.ensure_future(self._caller.call(function, handler))
        try:
            await asyncio.shield(opening)
        except Refused:
            self._forget(handler.channel)
            raise
        except Exception as error:  # the application's own code: anything may come out of it
            self._forget(handler.channel)
            log.exception("%s: open failed", self.name)
            raise Refused(500, "the application failed") from error
        except asyncio.CancelledError:
            # The browser has left, and `open` was given up. A thread goes on all the same, and what
            # it opens is to be closed.
            if _is_async(function):
                opening.cancel()
            task = asyncio.ensure_future(self._close_late(opening, handler))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            raise

    async def _close_late(self, opening: asyncio.Future[Any], handler: Handler) -> None:
        await asyncio.wait([opening])
        if opening.cancelled() or opening.exception() is not None:
            self._forget(handler.channel)
            return
        closing = Closing(Reason.TRANSPORT_CLOSE, 1006)
        await self._say_goodbye(handler, (closing,) if self._tells_closing else ())

    async def _guard(self, what: str, function: Function, *args: Any) -> None:
        try:
            await self._caller.call(function, *args)
        except Exception:  # the application's own code: anything may come out of it
            log.exception("%s: %s failed", self.name, what)

    async def _say_goodbye(self, handler: Handler, more: tuple[Any, ...]) -> None:
        try:
            if self._on_close is not None:
                await self._guard("on_close", self._on_close, handler, *more)
        finally:
            self._forget(handler.channel)

    def _forget(self, channel: Channel) -> None:
        del self._handlers[channel]
        if not self._handlers:
            self._idle.set()


class Handler:
    """One client, as your functions see it. Use it from any thread.

    It is yours to set attributes on. Its names are those of Tornado's and Gramex's WebSocketHandler.
    """

    def __init__(self, channel: Channel, patience: float) -> None:
        self.channel = channel
        self.session: dict[str, Any] = channel.data
        self.request = HandlerRequest(channel.request)
        self._data: dict[str, Any] = {}  # where nothing is recorded
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    def write_message(self, message: str | bytes | dict[str, Any], binary: bool = False) -> Sent:
        """Send a message: text, bytes (as a binary message), or a dict (as JSON).

        In a thread, it waits while the client is more than half a buffer behind. In a coroutine,
        `await` it for the same, or do not: a client whose buffer is full is closed. Once the client
        has gone it does nothing, because that may happen at any moment. `binary=True` sends text as
        bytes.

        Raises `TypeError` for other types, and `ValueError` for text with U+001E to an Engine.IO
        client on polling, which cannot carry it.
        """
        data = _encode(message, binary)
        if threading.get_ident() == self._loop_thread:
            self.channel.send(data)
        else:
            self._from_thread(data)
        return Sent(self.channel)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection: 1000, or 3000 to 4999, and at most 123 bytes of reason.

        Raises `ValueError` for other codes. A no-op once it is over.
        """
        if code != 1000 and not 3000 <= code <= 4999:
            raise ValueError("a close code is 1000, or 3000 to 4999")
        if len(reason.encode("utf-8", "replace")) > 123:
            raise ValueError("a close reason has at most 123 bytes")
        if threading.get_ident() == self._loop_thread:
            self.channel.close(code, reason)
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the connection with it
            self._loop.call_soon_threadsafe(self.channel.close, code, reason)

    @property
    def id(self) -> str:
        """The session's id. All channels of one page share it, and it survives a reload."""
        return self.channel.id

    @property
    def data(self) -> dict[str, Any]:
        """What is kept with the session, for its cleanup hooks and for whoever resumes it: JSON.

        It is one dict for all channels of a page, and saved after `open`, when the connection is lost, and
        every few seconds if it has changed; `save` does it now.
        """
        entry = self.channel.entry
        return self._data if entry is None else entry.data

    def save(self) -> Saving:
        """Record `data` now. In a thread it returns when that is done; in a coroutine, `await` it.

        The result is False where the store cannot be reached: then it is recorded when it is back.
        Raises `TypeError` if `data` is not JSON.
        """
        entry = self.channel.entry
        if entry is None:
            return Saving(None)
        entry.check_data()
        if threading.get_ident() == self._loop_thread:
            return Saving(asyncio.ensure_future(entry.save()))
        saving = entry.save()
        try:
            done = asyncio.run_coroutine_threadsafe(saving, self._loop).result(self._patience)
        except RuntimeError:  # the loop has ended
            saving.close()
            done = False
        except TimeoutError:
            done = False
        return Saving(None, done=done)

    def get_argument(self, name: str, default: Any = _REQUIRED, strip: bool = True) -> Any:
        """The last value of a query parameter. Refuses the client with 400 if it has none."""
        values = self.get_arguments(name, strip)
        if values:
            return values[-1]
        if default is _REQUIRED:
            raise Refused(400, f"the query has no {name}")
        return default

    def get_arguments(self, name: str, strip: bool = True) -> list[str]:
        """All values of a query parameter."""
        values = self.request.query_arguments.get(name, [])
        return [value.strip() for value in values] if strip else values

    def get_cookie(self, name: str, default: str | None = None) -> str | None:
        """A cookie of the request that opened the connection."""
        return self.request.cookies.get(name, default)

    @property
    def current_user(self) -> Any:
        """What `auth` returned."""
        return self.channel.user

    @property
    def path_args(self) -> list[str]:
        """What the pattern's groups without a name found."""
        return [value for name, value in self.channel.request.params.items() if name.isdigit()]

    @property
    def path_kwargs(self) -> dict[str, str]:
        """What the pattern's names found."""
        return {name: value for name, value in self.channel.request.params.items() if not name.isdigit()}

    @property
    def transport(self) -> str:
        """`websocket` or `polling`: how the browser is connected now."""
        return self.channel.transport

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """What the browser offers."""
        return self.channel.offered

    @property
    def selected_subprotocol(self) -> str:
        """Set it in `open` to one of `subprotocols`."""
        return self.channel.protocol

    @selected_subprotocol.setter
    def selected_subprotocol(self, protocol: str) -> None:
        if protocol and protocol not in self.channel.offered:
            raise ValueError("the browser does not offer this subprotocol")
        self.channel.protocol = protocol

    def _from_thread(self, data: str | bytes) -> None:
        """Send on the loop, and wait until it is sent: so a fast thread cannot flood the loop."""
        sending = self._send(data)
        try:
            future = asyncio.run_coroutine_threadsafe(sending, self._loop)
        except RuntimeError:
            sending.close()
            log.debug("a message was written after the gateway had stopped")
            return
        try:
            future.result(self._patience)
        except TimeoutError:
            log.info("%s: a client has not read for %g s", self.request.path, self._patience)

    async def _send(self, data: str | bytes) -> None:
        self.channel.send(data)
        if self.channel.congested:
            await self.channel.drain()


class Sent:
    """Await it to wait until the client has caught up. Nothing happens if nobody does."""

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __await__(self) -> Generator[Any, None, None]:
        if self._channel.congested:
            yield from self._channel.drain().__await__()


class Saving:
    """Await it to wait for the store. True or false in a thread: whether it was recorded."""

    __slots__ = ("_done", "_task")

    def __init__(self, task: asyncio.Future[bool] | None, *, done: bool = True) -> None:
        self._task = task
        self._done = done

    def __bool__(self) -> bool:
        return self._done if self._task is None else self._task.done() and self._task.result()

    def __await__(self) -> Generator[Any, None, bool]:
        if self._task is None:
            return self._done
        return (yield from asyncio.shield(self._task).__await__())


class HandlerRequest:
    """The request that opened a connection, with Tornado's names for what is in it."""

    def __init__(self, request: Request) -> None:
        self.path = request.path
        self.query = request.query_string
        self.headers = request.headers
        self.remote_ip = request.remote
        self.host = request.host
        self.protocol = request.scheme

    @property
    def uri(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def query_arguments(self) -> dict[str, list[str]]:
        """All values of each query parameter."""
        return parse_qs(self.query, keep_blank_values=True)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies by name."""
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(self.headers.get("Cookie", ""))
        except CookieError:
            return {}
        return {name: morsel.value for name, morsel in jar.items()}

    def full_url(self) -> str:
        """The URL as the browser wrote it."""
        return f"{self.protocol}://{self.host}{self.uri}"


def _encode(message: str | bytes | dict[str, Any], binary: bool) -> str | bytes:
    if isinstance(message, dict):
        # As Tornado: the text may be put into a <script> as it is.
        message = json.dumps(message).replace("</", "<\\/")
    if isinstance(message, str):
        return message.encode() if binary else message
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message)
    raise TypeError(f"write_message takes str, bytes or dict, not {type(message).__name__}")
