"""Cleanup hooks: what is run, once, when a session is over. A Python function, a webhook, a command.

Knows the store's claims, how each kind of hook is called, and when a failed one is tried again. Does
not know sessions: who ends one makes the claim, and hands it to `Hooks.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import hmac
import inspect
import ipaddress
import json
import logging
import os
import random
import re
import signal
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import IO, Any, Final

import aiohttp
from yarl import URL

from .config import Settings
from .session_store import Claim, SessionStore, StoreError
from .threads import Threads

log = logging.getLogger("gateway.hooks")

FIRST_WAIT: Final = 1.0  # s before the second attempt; each wait is twice the one before it,
LAST_WAIT: Final = 6 * 3600.0  # s up to this one, so that a service that is back is not left for a day
_JITTER: Final = 0.2  # of a wait, either way: what failed together does not come back together
_LET_GO: Final = 1.0  # s for a hook that is cut to let go of what it holds
_RECORD_WAITS: Final = (0.5, 1.0, 2.0, 5.0)  # s between tries to record what happened; then the last
_CONNECT: Final = 10.0  # s for the connection of a webhook
_TAIL: Final = 4096  # bytes of a command's standard error that are kept
_ERROR: Final = 500  # characters of an error that are recorded
_KEPT: Final = 1000  # calls that returned after their limit, remembered for the next attempt
_NAME: Final = re.compile(r"[A-Za-z0-9._:/-]{1,100}")
_GIVE_UP: Final = "%s: %s is given up after attempt %d: %s; see `python -m gateway sessions --failed`"
_FAILED: Final = "%s: %s failed, attempt %d of %d: %s"
_TAKEN_OVER: Final = "%s: another node has taken over its cleanup, which may happen twice, with the same key"
_GIVEN_UP: Final = "!"  # after the name of a hook that waits for the others to be over, too


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """What a hook is given: a session that is over.

    `reason` is in lower case: `client_close`, `ping_timeout`, `node_lost`, … `routes` are the patterns
    that the session has used, `data` is what handlers kept with it. `opened` and `seen` are seconds since
    the epoch; `detected_after` is how long, in s, it took to notice the end, None where nobody knows.
    `attempt` counts from 1. `key` is the same at each attempt, and for no other session and hook. `fence`
    is higher for a later claim of the same session.
    """

    session: str
    user: str | None
    reason: str
    routes: tuple[str, ...]
    data: dict[str, Any]
    opened: float
    seen: float
    detected_after: float | None
    attempt: int
    fence: int
    key: str

    def json(self) -> bytes:
        """The same as webhooks and commands get it."""
        return json.dumps(asdict(self), separators=(",", ":")).encode("ascii")


class HookFailed(Exception):
    """One attempt has failed. The text is one line, for a person.

    `retry_after` in s: not sooner. `final`: never again.
    """

    def __init__(self, text: str, *, retry_after: float = 0.0, final: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.final = final


class _NotCalled(HookFailed):
    """It was not even called."""


# -- the three kinds -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Hook(ABC):
    """One configured hook. `limit` in s and `attempts` where they differ from the settings.

    `name` says in records and logs which one it is, and is part of the key: it stays the same while
    the hook does.
    """

    limit: float | None = None
    attempts: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.name and not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name: letters, digits and . _ : / - only, at most 100")

    @property
    def label(self) -> str:
        """Its name, or what it is called without one. Shows no secret."""
        return self.name or self._default_name()

    @abstractmethod
    def _default_name(self) -> str: ...

    @abstractmethod
    async def run(self, end: SessionEnd, tools: Tools) -> None:
        """One attempt. Cancelled at its limit. Whatever is raised is a failure; see `HookFailed`."""


@dataclass(frozen=True)
class FunctionHook(Hook):
    """Calls `function(end)`: a coroutine function on the loop, any other in a thread.

    Raises `TypeError` or `ValueError` for what cannot be called so.
    """

    function: Callable[[SessionEnd], Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise TypeError(f"{self.function!r} is not a function")
        if not _takes_one(self.function):
            raise ValueError(f"{self.label} is called with (end), but does not take that")

    def _default_name(self) -> str:
        function = getattr(self.function, "func", self.function)  # what functools.partial wraps
        own = getattr(function, "__qualname__", type(function).__qualname__)
        return f"{getattr(function, '__module__', None) or type(function).__module__}.{own}"

    async def run(self, end: SessionEnd, tools: Tools) -> None:
        """See `Hook`. A call that is still in its thread from an earlier attempt is waited for."""
        if _is_async(self.function):
            await self.function(end)
            return
        result = await tools.calls(self).result(end)
        if inspect.isawaitable(result):
            await result


@dataclass(frozen=True)
class WebhookHook(Hook):
    """POSTs the end of a session, as JSON. An answer of 2xx is success, 410 means never again.

    `secret` signs it: `Gateway-Signature: v1=` and the HMAC-SHA256 of `Gateway-Timestamp`, a dot and the
    body, in hex. Redirects are not followed. An address of a private network is refused unless `private`:
    at the moment of the connection, whatever the name meant before. Raises `ValueError` for what cannot work.
    """

    url: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    private: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        url = _read_url(self.url)
        if self.secret == "":
            raise ValueError("the secret is empty; give one, or leave it out")
        for name, value in self.headers:
            _check_header(name, value)
        if not self.private and _is_private_name(url.host or ""):
            raise ValueError(f"{url.host} {_PRIVATE}")

    def _default_name(self) -> str:
        return f"webhook:{URL(self.url).raw_host}"

    async def run(self, end: SessionEnd, tools: Tools) -> None:
        """See `Hook`."""
        body = end.json()
        client = tools.client(private=self.private)
        try:
            async with client.post(
                URL(self.url), data=body, headers=self._headers(end, body), allow_redirects=False
            ) as answer:
                _judge(answer.status, answer.headers.get("Retry-After", ""))
        except aiohttp.ClientConnectorError as error:
            raise HookFailed(f"cannot connect: {_why(error.os_error)}") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HookFailed(f"no answer: {str(error) or type(error).__name__}") from None

    def _headers(self, end: SessionEnd, body: bytes) -> dict[str, str]:
        timestamp = str(int(time.time()))
        headers = {
            **dict(self.headers),
            "Content-Type": "application/json",
            "Gateway-Timestamp": timestamp,
            "Idempotency-Key": end.key,
        }
        if self.secret is not None:
            headers["Gateway-Signature"] = signature(self.secret, timestamp, body)
        return headers


@dataclass(frozen=True)
class CommandHook(Hook):
    """Runs a program, without a shell. The end of the session is JSON on its standard input.

    `GATEWAY_SESSION`, `GATEWAY_REASON`, `GATEWAY_USER`, `GATEWAY_KEY` and `GATEWAY_ATTEMPT` are in its
    environment. Exit code 0 is success. At its limit it is killed, with all that it has started. Raises
    `ValueError` for an empty command.
    """

    argv: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.argv or not self.argv[0]:
            raise ValueError("the command is empty")
        if any("\0" in word for word in self.argv):
            raise ValueError("a command cannot hold the character NUL")

    def _default_name(self) -> str:
        return f"command:{os.path.basename(self.argv[0])}"  # noqa: PTH119 - of a name, maybe without a path

    async def run(self, end: SessionEnd, tools: Tools) -> None:
        """See `Hook`."""
        with await asyncio.to_thread(_file_with, end.json()) as given, _Tail() as said:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self.argv,
                    stdin=given,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=said.writer,
                    env={**os.environ, **_environment(end)},
                    start_new_session=True,
                )
            except OSError as error:
                raise HookFailed(f"cannot start {self.argv[0]}: {error.strerror}") from None
            said.opened()
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                _kill_group(process.pid)
                await process.wait()
                raise
        if code:
            raise HookFailed(f"{_exit(code)}{': ' if said.last_line else ''}{said.last_line}")


def as_hooks(value: object) -> tuple[Hook, ...]:
    """What `cleanup=` may be given: a function, a hook, or several. Raises as `FunctionHook` does."""
    if value is None:
        return ()
    if isinstance(value, Hook):
        return (value,)
    if isinstance(value, Iterable) and not isinstance(value, str) and not callable(value):
        return tuple(hook for each in value for hook in as_hooks(each))
    return (FunctionHook(value),)  # type: ignore[arg-type]


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What `Gateway-Signature` says."""
    mac = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"v1={mac.hexdigest()}"


# -- functions -----------------------------------------------------------------------------------------


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except ValueError:  # a function written in C may not say
        return True
    except TypeError:
        return False
    return True


class _Call:
    """One call in a thread. Either it begins or it is given up, never both."""

    def __init__(self, function: Callable[[SessionEnd], Any], end: SessionEnd, threads: Threads) -> None:
        self._function = function
        self._end = end
        self._lock = threading.Lock()
        self._begun = False
        self._given_up = False
        self.future = threads.run(self)
        self.future.add_done_callback(_look_at)

    @property
    def done(self) -> bool:
        """Whether it has returned, or raised."""
        return self.future.done()

    @property
    def has_failed(self) -> bool:
        """Whether it has raised."""
        return self.future.done() and (self.future.cancelled() or self.future.exception() is not None)

    def __call__(self) -> Any:
        with self._lock:
            if self._given_up:
                return None
            self._begun = True
        return self._function(self._end)

    def give_up(self) -> bool:
        """Whether it will not be called."""
        with self._lock:
            self._given_up = not self._begun
        return self._given_up


def _look_at(future: asyncio.Future[Any]) -> None:
    """Whoever is late may fail without asyncio's complaint that nobody looked."""
    if not future.cancelled():
        future.exception()


class _Calls:
    """The calls of one function, in threads of their own: one that never returns holds up no other hook.

    A thread cannot be stopped. So a call that outlives its limit is left alone, and the next attempt waits
    for it rather than start a second one beside it.
    """

    def __init__(self, function: Callable[[SessionEnd], Any], limit: int) -> None:
        self._function = function
        self._limit = limit
        self._threads = Threads(limit)
        self._late: dict[str, _Call] = {}

    async def result(self, end: SessionEnd) -> Any:
        """What the function returns; what it raises is raised here."""
        call = self._late.pop(end.key, None)
        if call is None or call.has_failed:
            call = _Call(self._function, end, self._threads)
        try:
            await asyncio.wait([call.future])
        except asyncio.CancelledError:
            if call.give_up():
                call.future.cancel()
                count = sum(not each.done for each in self._late.values())
                raise _NotCalled(f"no thread is free: {count} earlier calls have not returned") from None
            self._keep(end.key, call)
            raise
        return call.future.result()

    def _keep(self, key: str, call: _Call) -> None:
        self._late[key] = call
        if len(self._late) > _KEPT:
            done = [key for key, each in self._late.items() if each.done]
            for old in done[: len(self._late) - _KEPT]:
                del self._late[old]

    def stop(self) -> None:
        """See `Threads.stop`."""
        self._threads.stop()


# -- webhooks ------------------------------------------------------------------------------------------

_PRIVATE = "is an address of a private network; write `private: true` if that is meant"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = ("content-type", "content-length", "transfer-encoding", "host", "idempotency-key")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _why(error: OSError) -> str:
    """In words: asyncio's own begin with `Connect call failed`, and stop there."""
    if "call failed" in (error.strerror or "") and error.errno is not None:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _read_url(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError:
        raise ValueError("it is no URL: write https://host/path") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("it is no URL: write https://host/path")
    if url.user is not None or url.password is not None:
        raise ValueError("name and password have no place in the URL: write headers: {Authorization: …}")
    return url


def _check_header(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header")
    if any(character in value for character in "\r\n\0"):
        raise ValueError(f"the header {name} holds a line break or NUL")
    if name.lower() in _OURS or name.lower().startswith("gateway-"):
        raise ValueError(f"the header {name} is set by the gateway")


def _is_private_name(host: str) -> bool:
    """Whether a name is private whatever DNS says."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return is_private(host)
    except ValueError:
        return False


def is_private(address: str) -> bool:
    """Whether an IP address is any but a public one. Raises `ValueError` if it is none."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        ip = inner or ip
    return not ip.is_global or ip.is_multicast


def _public_socket(info: Any) -> socket.socket:
    """A socket for this address, just before it is connected; the answer of DNS cannot change any more."""
    family, kind, protocol, _, address = info
    if is_private(address[0]):
        raise PermissionError(1, f"{address[0]} {_PRIVATE}")
    return socket.socket(family, kind, protocol)


def _judge(status: int, retry_after: str) -> None:
    if 200 <= status < 300:
        return
    if status == 410:
        raise HookFailed("answered 410: it wants no more", final=True)
    if 300 <= status < 400:
        raise HookFailed(f"answered {status}: redirects are not followed; give the URL that it leads to")
    wait = _seconds(retry_after) if status in (429, 503) else 0.0
    raise HookFailed(f"answered {status}", retry_after=wait)


def _seconds(retry_after: str) -> float:
    """From now, of a `Retry-After` header; 0 if it says nothing that can be read."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), LAST_WAIT)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return min(max(date.timestamp() - time.time(), 0.0), LAST_WAIT)


# -- commands ------------------------------------------------------------------------------------------


def _file_with(data: bytes) -> IO[bytes]:
    """A file rather than a pipe: a command that does not read it holds up nobody."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who gets it
    file.write(data)
    file.seek(0)
    return file


class _Tail:
    """The last bytes that a process writes to a pipe.

    Not that of asyncio, which takes a process for running while anything that it has started holds the pipe.
    """

    def __enter__(self) -> _Tail:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._kept = b""
        self._loop = asyncio.get_running_loop()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened()
        self._loop.remove_reader(self._reader)
        self._read()
        os.close(self._reader)

    def opened(self) -> None:
        """The process has the pipe: read it. Idempotent."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1
            self._loop.add_reader(self._reader, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._reader, 65536)
            self._kept = (self._kept + data)[-_TAIL:]
            if not data:
                self._loop.remove_reader(self._reader)

    @property
    def last_line(self) -> str:
        """The last one that is not empty."""
        lines = [line.strip() for line in self._kept.decode("utf-8", "replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


def _environment(end: SessionEnd) -> dict[str, str]:
    values = {
        "GATEWAY_SESSION": end.session,
        "GATEWAY_REASON": end.reason,
        "GATEWAY_USER": end.user or "",
        "GATEWAY_KEY": end.key,
        "GATEWAY_ATTEMPT": str(end.attempt),
    }
    # An environment holds neither NUL nor half a character.
    return {name: text.replace("\0", "").encode("utf-8", "replace").decode() for name, text in values.items()}


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


# -- running them --------------------------------------------------------------------------------------


class Tools:
    """What hooks need and share: threads, connections. Made when they are first needed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: dict[Hook, _Calls] = {}
        self._clients: dict[bool, aiohttp.ClientSession] = {}

    def calls(self, hook: FunctionHook) -> _Calls:
        """The threads of one function."""
        if hook not in self._calls:
            self._calls[hook] = _Calls(hook.function, self._limit)
        return self._calls[hook]

    def client(self, *, private: bool) -> aiohttp.ClientSession:
        """Connections to anywhere, or to public addresses only."""
        if private not in self._clients:
            self._clients[private] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._limit, socket_factory=None if private else _public_socket
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
                headers={"User-Agent": "gateway"},
            )
        return self._clients[private]

    async def close(self) -> None:
        """Let go of all of it."""
        for calls in self._calls.values():
            calls.stop()
        for client in self._clients.values():
            await client.close()


@dataclass(slots=True)
class _Try:
    """A hook of a claim: what became of it in this attempt, and before."""

    name: str
    hook: Hook | None  # None: it is not to be called
    given_up: bool = False
    error: HookFailed | None = None
    told: bool = False  # whether the log has said that it is given up


class Hooks:
    """Runs the hooks of claims, records what became of them.

    `hooks` are for every session, `routes` for those that have used a route of that pattern; a hook that
    is there twice runs once. At most `limits.hooks` run at a time. `node` is the name under which the claims
    were made; set it anew when it changes. `again`, if set, makes a claim of that name once more that the
    store does not know, or says that it is void. `pause` and `chance` (0 to 1) are for tests.
    """

    def __init__(
        self,
        hooks: Iterable[Hook],
        store: SessionStore,
        node: str,
        settings: Settings,
        *,
        routes: Mapping[str, Iterable[Hook]] | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.node = node
        self.again: Callable[[str, Claim], Awaitable[Claim | None]] = _void
        self._store = store
        self._limit = settings.limits.hooks
        self._attempts = settings.limits.attempts
        self._timeout = settings.timeouts.hook
        self._pause = pause
        self._chance = chance
        self._names: dict[Hook, str] = {}
        self._by_name: dict[str, Hook] = {}
        self._everywhere = [self._named(hook) for hook in hooks]
        self._routes = {
            pattern: [self._named(hook) for hook in of_route] for pattern, of_route in (routes or {}).items()
        }
        self._tools = Tools(self._limit)
        self._turns = asyncio.Semaphore(self._limit)
        self._queue: deque[asyncio.Future[None]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._count: Counter[str] = Counter()

    def _named(self, hook: Hook) -> str:
        """Its name, and no other's."""
        if hook not in self._names:
            name, number = hook.label, 2
            while name in self._by_name:
                name, number = f"{hook.label}#{number}", number + 1
            self._names[hook] = name
            self._by_name[name] = hook
        return self._names[hook]

    # -- what others ask

    @property
    def names(self) -> tuple[str, ...]:
        """Of all hooks, in the order of the configuration."""
        return tuple(self._by_name)

    def any_for(self, routes: Iterable[str]) -> bool:
        """Whether there is a hook for a session that has used these."""
        return bool(self._everywhere) or any(self._routes.get(pattern) for pattern in routes)

    @property
    def capacity(self) -> int:
        """How many more claims it would like now."""
        return 0 if self._closed else max(0, self._limit - self._busy - len(self._queue))

    def counts(self) -> dict[str, int]:
        """Calls that succeeded, failed for good, failed and are tried again, were not the first attempt;
        claims whose hooks run, and that wait for their turn.
        """
        names = ("done", "failed", "retried", "redelivered")
        return {
            **{name: self._count[name] for name in names},
            "running": self._busy,
            "waiting": len(self._queue),
        }

    # -- claims

    async def run(self, claim: Claim) -> None:
        """Run the pending hooks of a claim, and record what became of them. Raises nothing.

        Returns when it is recorded: finished, put off or buried. After `close` it returns without, and the
        store keeps the claim for the next start. Who cancels it stops no hook.
        """
        node = self.node
        tries = self._tries(claim)
        if not tries and not self._closed:
            await self._record(node, claim, ())
            return
        if not await self._turn():
            return
        task = asyncio.create_task(self._clean(node, claim, tries))
        self._running.add(task)
        task.add_done_callback(self._over)
        await asyncio.wait([task])

    async def close(self, limit: float) -> None:
        """Wait for what `run` was asked to do, `limit` seconds at the most; then cut it. Idempotent."""
        await asyncio.sleep(0)  # tasks that were made for `run` just now begin
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._idle.wait()
        self._closed = True
        if cut := len(self._running) + len(self._queue):
            later = "the next start does" if self._store.lasting else "the store ends with this process"
            log.warning("%d session%s not cleaned up in time: %s", cut, " is" if cut == 1 else "s are", later)
        while self._queue:
            _wake(self._queue.popleft())
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        await self._tools.close()

    # -- turns: a claim that waits costs one future

    async def _turn(self) -> bool:
        """Wait for it. False: it is closed."""
        if self._closed:
            return False
        self._idle.clear()
        if self._busy < self._limit:
            self._busy += 1
            return True
        waiting = asyncio.get_running_loop().create_future()
        self._queue.append(waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.cancelled():
                self._queue.remove(waiting)
            else:
                self._pass_on()
            raise
        return not self._closed

    def _pass_on(self) -> None:
        """Give the turn to the next claim."""
        if self._queue:
            _wake(self._queue.popleft())
            return
        self._busy -= 1
        self._check_idle()

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._check_idle()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a cleanup hook could not be run", exc_info=error)

    def _check_idle(self) -> None:
        if not self._busy and not self._running:
            self._idle.set()

    # -- one claim

    async def _clean(self, node: str, claim: Claim, tries: Sequence[_Try]) -> None:
        calls = [self._attempt(each, each.hook, claim) for each in tries if each.hook is not None]
        try:
            if len(calls) == 1:
                await calls[0]
            else:
                await asyncio.gather(*calls)
        finally:
            self._pass_on()
        await self._record(node, claim, [each for each in tries if each.error is not None])

    def _tries(self, claim: Claim) -> list[_Try]:
        if claim.pending is None:
            of_routes = (self._routes.get(pattern, ()) for pattern in claim.session.routes)
            names = dict.fromkeys([*self._everywhere, *(name for each in of_routes for name in each)])
            return [_Try(name, self._by_name[name]) for name in names]
        tries = []
        for text in claim.pending:
            name = text.removesuffix(_GIVEN_UP)
            if name != text:
                tries.append(
                    _Try(name, None, given_up=True, error=HookFailed("was given up before"), told=True)
                )
            elif name not in self._by_name:
                tries.append(_Try(name, None, given_up=True, error=HookFailed("is not configured here")))
            else:
                tries.append(_Try(name, self._by_name[name]))
        return tries

    async def _attempt(self, each: _Try, hook: Hook, claim: Claim) -> None:
        limit = self._timeout if hook.limit is None else hook.limit
        self._count["redelivered"] += claim.attempt > 1
        async with self._turns:
            each.error = await self._outcome(each.name, hook, _end(claim, each.name), limit)
        if each.error is None:
            self._count["done"] += 1
            log.info("%s: %s has cleaned up", _short(claim), each.name)
            return
        most = self._attempts if hook.attempts is None else hook.attempts
        each.given_up = each.error.final or claim.attempt >= most
        self._count["failed" if each.given_up else "retried"] += 1
        why = each.error.__cause__ if claim.attempt == 1 else None  # its traceback, once
        log.warning(
            _FAILED,
            _short(claim),
            each.name,
            claim.attempt,
            max(most, claim.attempt),  # a person may have asked for one more
            each.error,
            exc_info=why and why.with_traceback(_outside(why.__traceback__)),
        )

    async def _outcome(self, name: str, hook: Hook, end: SessionEnd, limit: float) -> HookFailed | None:
        """One attempt, in a task of its own: whatever comes of it stays there."""
        task = asyncio.create_task(_guarded(hook, end, self._tools))
        try:
            done, _ = await asyncio.wait([task], timeout=limit)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task], timeout=_LET_GO)
            raise
        if done:
            return task.result()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=_LET_GO)
        if not done:
            log.warning("%s does not let itself be cancelled, and is left behind", name)
        said = task.result() if done else None
        return said if isinstance(said, _NotCalled) else HookFailed(f"has not returned within {limit:g} s")

    # -- the record

    async def _record(self, node: str, claim: Claim, failed: Sequence[_Try]) -> None:
        given_up = [each for each in failed if each.given_up]
        error = "; ".join(f"{each.name}: {each.error}" for each in failed)[:_ERROR]
        if not failed:
            await self._insist(node, claim, self._store.finish)
        elif len(given_up) == len(failed):
            names = tuple(each.name for each in failed)
            await self._insist(node, claim, lambda by, its: self._store.bury(by, its, names, error))
        else:
            names = tuple(f"{each.name}{_GIVEN_UP if each.given_up else ''}" for each in failed)
            delay = self._delay(claim.attempt, failed)
            await self._insist(node, claim, lambda by, its: self._store.put_off(by, its, delay, names, error))
        for each in given_up:
            if not each.told:
                log.error(_GIVE_UP, _short(claim), each.name, claim.attempt, each.error)

    def _delay(self, attempt: int, failed: Iterable[_Try]) -> float:
        wait = min(FIRST_WAIT * 2.0 ** min(attempt - 1, 30), LAST_WAIT)
        wait *= 1 + _JITTER * (2 * self._chance() - 1)
        asked = (each.error.retry_after for each in failed if each.error is not None and not each.given_up)
        return max(wait, *asked)

    async def _insist(self, node: str, claim: Claim, write: Callable[[str, Claim], Awaitable[bool]]) -> None:
        """Record it, as soon as the store takes it: what has been done is not done again for that."""
        waits = iter(_RECORD_WAITS)
        wait = 0.0
        while True:
            try:
                if await write(node, claim):
                    return
                again = await self.again(node, claim)
                if again is None:
                    if not wait:  # a repeated write may find that the first one counted
                        log.warning(_TAKEN_OVER, _short(claim))
                    return
                node, claim = self.node, again
            except StoreError as error:
                wait = next(waits, wait)
                log.debug("what a cleanup hook did is not recorded yet: %s", error)
                await self._pause(wait)


async def _void(_node: str, _claim: Claim) -> Claim | None:
    return None


async def _guarded(hook: Hook, end: SessionEnd, tools: Tools) -> HookFailed | None:
    """What went wrong, whatever it is: some of it would end the loop if it got there."""
    try:
        await hook.run(end, tools)
    except HookFailed as failed:
        return failed
    except asyncio.CancelledError:
        return HookFailed("was cancelled")
    except BaseException as error:  # noqa: BLE001 - the user's code: anything may come out of it
        return _failure(error)
    return None


def _failure(error: BaseException) -> HookFailed:
    try:
        said = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - the user's class: anything may come out of it
        said = ""
    failed = HookFailed(f"{type(error).__name__}: {said}" if said else type(error).__name__)
    failed.__cause__ = error
    return failed


def _outside(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that is not ours, which begins behind ours; all of it if there is none."""
    found = traceback
    while found is not None and found.tb_frame.f_globals.get("__name__") in (__name__, Threads.__module__):
        found = found.tb_next
    return found or traceback


def _end(claim: Claim, name: str) -> SessionEnd:
    session = claim.session
    return SessionEnd(
        session=session.id,
        user=session.user,
        reason=claim.reason.lower(),
        routes=tuple(session.routes),
        data=copy.deepcopy(dict(session.data)),  # each hook its own
        opened=session.opened,
        seen=session.seen,
        detected_after=claim.detected_after,
        attempt=claim.attempt,
        fence=claim.fence,
        key=f"{session.id}:{name}",
    )


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _short(claim: Claim) -> str:
    return f"session {claim.session.id[:6]}…"
