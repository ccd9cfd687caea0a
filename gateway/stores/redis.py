"""Sessions recorded in Redis or Valkey, for gateways on many machines.

Every act is one call of a Lua script (`redis.lua`), so each is atomic, and all nodes measure by the server's
clock. One connection carries what waits as one pipeline: calls keep their order, and a slow server slows
nobody else. An answer that is missing after a few seconds is given up; its act is then not done any more
either, since it carries the time until which it may be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import islice
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from uuid import uuid4

import redis.asyncio as client
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.session_store import (
    Claim,
    Phase,
    Row,
    Session,
    SessionStore,
    StoreError,
    StoreRefuses,
    StoreUnavailable,
    StoreUnusable,
    from_text,
    presentable,
    to_text,
)

VERSION: Final = "1"
ANSWER: Final = 2.5  # s; a server that is silent for longer is not there
_GROUP: Final = 500  # acts in one pipeline
_CHUNK: Final = 500  # sessions in one act: others are served in between

_SCRIPT: Final = (files("gateway.stores") / "redis.lua").read_text("utf-8")
_PHASES: Final = (Phase.OPEN, Phase.PARKED, Phase.CLOSING, Phase.FAILED)  # as in the script
_REFUSALS: Final = (
    (exceptions.OutOfMemoryError, "", "its memory limit is reached"),
    (exceptions.ReadOnlyError, "", "it is a read-only replica"),
    (exceptions.ResponseError, "MISCONF", "it cannot write its disk"),
    (exceptions.ResponseError, "NOREPLICAS", "it has too few replicas"),
)


class _Job:
    """One act, and who waits for it."""

    __slots__ = ("args", "future")

    def __init__(self, args: Sequence[Any]) -> None:
        self.args = args
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()


class RedisStore(SessionStore):
    """`redis://[user:password@]host:port/db`, `rediss://` for TLS, or `redis+unix:///path?db=0`.

    `?prefix=name` keeps several gateways apart in one database. Raises `ValueError` for another URL.
    """

    lasting = True

    def __init__(self, url: str) -> None:
        self.url, self._options, prefix = _read_url(url)
        self._prefix = f"{{{prefix}}}:"
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._redis: client.Redis | None = None
        self._skew: float | None = None  # the server's clock, minus the loop's
        self._sha = ""
        self._lost: dict[str, list[str]] = {}  # node -> calls of claim_orphans whose answers got lost

    # -- the store itself --------------------------------------------------------------------------

    async def open(self) -> None:
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="gateway-store")
        try:
            found = await self._do("open", VERSION)
        except StoreError as error:
            await self.close()
            if "WRONGTYPE" in str(error):
                raise StoreUnusable(
                    f"{self.url} has keys of another program: give another --store, or ?prefix=…"
                ) from error
            if _is_denied(error):
                raise StoreUnusable(
                    f"{self.url} refuses the user or the password: correct --store"
                ) from error
            raise
        if found != VERSION.encode():
            await self.close()
            raise StoreUnusable(
                f"{self.url} was written by a newer gateway (version {found.decode('ascii', 'replace')}, "
                f"this one knows {VERSION}): update this one, or give another --store, or ?prefix=…"
            )

    async def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._wake.set()
            await worker

    async def born(self) -> str:
        found: bytes = await self._do("born", uuid4().hex)
        return found.decode()

    # -- nodes -------------------------------------------------------------------------------------

    async def join(self, node: str, lease: float) -> None:
        await self._do("join", VERSION, node, lease)

    async def renew(self, node: str, lease: float) -> bool:
        return bool(await self._do("renew", node, lease))

    async def leave(self, node: str) -> None:
        await self._do("leave", node)

    # -- its sessions ------------------------------------------------------------------------------

    async def add(self, node: str, session: Session) -> bool:
        return bool(await self._do("add", node, session.id, to_text(session)))

    async def save(self, node: str, sessions: Iterable[Session]) -> None:
        await self._do_many("save", node, [(session.id, to_text(session)) for session in sessions])

    async def remove(self, node: str, session_id: str) -> None:
        await self._do("remove", node, session_id)

    async def park(self, node: str, parked: Iterable[tuple[str, float, bytes]]) -> None:
        await self._do_many("park", node, list(parked))

    async def parked(self, session_id: str) -> bytes | None:
        found: bytes | None = await self._do("parked", session_id)
        return found

    async def resume(self, node: str, session_id: str) -> Session | None:
        text = await self._do("resume", node, session_id)
        return from_text(session_id, text) if text is not None else None

    # -- the end -----------------------------------------------------------------------------------

    async def claim(
        self, node: str, session: Session, reason: str, detected_after: float | None = None
    ) -> Claim | None:
        after = "" if detected_after is None else repr(detected_after)
        found = await self._do("claim", node, session.id, to_text(session), reason, after)
        return _as_claim(found) if found else None

    async def claim_orphans(self, node: str, limit: int) -> list[Claim]:
        lost = self._lost.setdefault(node, [])
        name, again = uuid4().hex, lost.pop(0) if lost else ""
        try:
            found = await self._do("claim_orphans", node, limit, name, again)
        except BaseException:
            # The claims may have been made, and their hooks would wait for ever: the next call asks for them.
            lost += filter(None, (again, name))
            raise
        return [_as_claim(one) for one in found]

    async def finish(self, node: str, claim: Claim) -> bool:
        return bool(await self._do("finish", node, claim.session.id, claim.fence))

    async def put_off(
        self, node: str, claim: Claim, delay: float, pending: tuple[str, ...], error: str
    ) -> bool:
        return await self._give_up(node, claim, Phase.CLOSING, repr(delay), pending, error)

    async def bury(self, node: str, claim: Claim, pending: tuple[str, ...], error: str) -> bool:
        return await self._give_up(node, claim, Phase.FAILED, "", pending, error)

    async def _give_up(
        self, node: str, claim: Claim, phase: Phase, delay: str, pending: tuple[str, ...], error: str
    ) -> bool:
        what = (json.dumps(pending), presentable(error))
        return bool(await self._do("give_up", node, claim.session.id, claim.fence, phase.value, delay, *what))

    # -- people ------------------------------------------------------------------------------------

    async def rows(self, *, failed: bool = False, limit: int = 1000) -> list[Row]:
        phase = Phase.FAILED.value if failed else ""
        return [_as_row(found) for found in await self._do("rows", phase, max(limit, 0))]

    async def counts(self) -> dict[Phase, int]:
        return dict(zip(_PHASES, await self._do("counts"), strict=True))

    async def retry(self, session_id: str) -> bool:
        return bool(await self._do("retry", session_id))

    async def ask_to_close(self, session_id: str) -> bool:
        return bool(await self._do("ask_to_close", session_id))

    async def asked_to_close(self, node: str) -> list[str]:
        return [found.decode() for found in await self._do("asked_to_close", node)]

    # -- the connection ----------------------------------------------------------------------------

    def _do(self, act: str, *args: str | float | bytes) -> asyncio.Future[Any]:
        if self._worker is None:
            raise StoreUnavailable(f"the store {self.url} is closed")
        job = _Job([act, *(arg.encode() if isinstance(arg, str) else arg for arg in args)])
        self._jobs.append(job)
        self._wake.set()
        return job.future

    async def _do_many(self, act: str, node: str, items: Sequence[Sequence[Any]]) -> None:
        chunks = [[part for item in chunk for part in item] for chunk in _chunks(items)]
        await asyncio.gather(*[self._do(act, node, *chunk) for chunk in chunks])

    async def _work(self) -> None:
        while self._jobs or self._worker is not None:
            if not self._jobs:
                await self._wake.wait()
                self._wake.clear()
                continue
            group = [self._jobs.popleft() for _ in range(min(len(self._jobs), _GROUP))]
            try:
                async with asyncio.timeout(ANSWER):
                    await self._run(group)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                await self._disconnect()
                # Whoever waited behind them has waited as long, and may repeat it.
                _fail([*group, *self._jobs], error, self.url)
                self._jobs.clear()
        await self._disconnect()

    async def _run(self, group: Sequence[_Job]) -> None:
        until = repr(await self._server_time() + ANSWER)
        answers = await self._send(group, until)
        missing = [at for at, answer in enumerate(answers) if isinstance(answer, exceptions.NoScriptError)]
        if missing:  # the server has restarted, or somebody has emptied its cache
            await self._load()
            for at, answer in zip(
                missing, await self._send([group[at] for at in missing], until), strict=True
            ):
                answers[at] = answer
        if any(_is_late(answer) for answer in answers):
            self._skew = None  # its clock may have been set
        for job, answer in zip(group, answers, strict=True):
            if job.future.done():
                continue
            if isinstance(answer, Exception):
                job.future.set_exception(_explain(answer, self.url))
            else:
                job.future.set_result(answer)

    async def _send(self, group: Sequence[_Job], until: str) -> list[Any]:
        assert self._redis is not None
        pipeline = self._redis.pipeline(transaction=False)
        for job in group:
            pipeline.evalsha(self._sha, 1, self._prefix, job.args[0], until, *job.args[1:])
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def _server_time(self) -> float:
        """What the server's clock says at the latest."""
        loop = asyncio.get_running_loop()
        if self._redis is None:
            self._redis = client.Redis.from_pool(client.ConnectionPool(**self._options))
            await self._load()
        if self._skew is None:
            seconds, microseconds = await self._redis.time()
            self._skew = seconds + microseconds / 1_000_000 - loop.time()
        return loop.time() + self._skew

    async def _load(self) -> None:
        assert self._redis is not None
        self._sha = await self._redis.script_load(_SCRIPT)

    async def _disconnect(self) -> None:
        connected, self._redis, self._skew = self._redis, None, None
        if connected is not None:
            with contextlib.suppress(exceptions.RedisError, OSError, TimeoutError):
                await connected.aclose()


def _chunks(items: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _fail(jobs: Iterable[_Job], error: Exception, url: str) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(_explain(error, url))


def _is_late(answer: Any) -> bool:
    return isinstance(answer, exceptions.ResponseError) and str(answer).startswith("LATE")


def _is_denied(error: BaseException | None) -> bool:
    denied = exceptions.AuthenticationError | exceptions.NoPermissionError
    return error is not None and (isinstance(error, denied) or _is_denied(error.__cause__))


def _explain(error: Exception, url: str) -> StoreError:
    """What it means to somebody who does not know Redis. The server's words show no password."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    found: StoreError
    refusals = (why for kind, code, why in _REFUSALS if isinstance(error, kind) and text.startswith(code))
    refusal = next(refusals, None)
    if refusal is not None:
        found = StoreRefuses(f"{url} takes no writes: {refusal}")
    elif isinstance(error, TimeoutError | exceptions.TimeoutError) or _is_late(error):
        found = StoreUnavailable(f"{url} does not answer within {ANSWER:g} s")
    else:
        found = StoreUnavailable(f"cannot use {url}: {text}")
    found.__cause__ = error
    return found


# -- URLs ------------------------------------------------------------------------------------------------


def _read_url(url: str) -> tuple[str, dict[str, Any], str]:
    """The URL without its secrets, what a connection is made with, and the prefix."""
    try:
        return _read(url)
    except ValueError as error:
        # Without what urllib says, which may show a part of the password.
        why = str(error) if isinstance(error, _Wrong) else "it cannot be read"
        raise ValueError(
            f"this URL of a Redis store is wrong, {why}: write redis://user:password@host:6379/0, "
            "rediss://… for TLS, or redis+unix:///path/of/socket?db=0; ?prefix=… keeps gateways apart"
        ) from None


class _Wrong(ValueError):
    """What is wrong with a URL."""


def _read(url: str) -> tuple[str, dict[str, Any], str]:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = query.pop("prefix", "gateway")
    if not prefix or set("{}") & set(prefix):
        raise _Wrong("its prefix is empty or has braces")
    options: dict[str, Any] = {
        "socket_timeout": ANSWER,
        "socket_connect_timeout": ANSWER,
        "retry": Retry(NoBackoff(), 0),  # who asks decides what may be done twice
        "max_connections": 1,
        "protocol": 2,  # all servers speak it
        "driver_info": None,  # what it would tell the server, it looks up on the disk
        "username": unquote(parts.username) if parts.username else query.pop("username", None),
        "password": unquote(parts.password) if parts.password else query.pop("password", None),
    }
    shown = {"prefix": prefix} if prefix != "gateway" else {}
    if parts.scheme in ("unix", "redis+unix"):
        path = unquote(parts.path)
        if not path or parts.hostname:
            raise _Wrong("it names no path of a socket")
        database = query.pop("db", "0")
        options |= {"connection_class": client.UnixDomainSocketConnection, "path": path}
        shown = {**({"db": database} if database != "0" else {}), **shown}
        safe = f"{parts.scheme}://{quote(path)}"
    else:
        if not parts.hostname:
            raise _Wrong("it names no host")
        tls = parts.scheme == "rediss"
        options |= {
            "connection_class": client.SSLConnection if tls else client.Connection,
            "host": parts.hostname,
            "port": parts.port or 6379,
            "socket_keepalive": True,
        }
        if tls and "ca" in query:
            options["ssl_ca_certs"] = shown["ca"] = query.pop("ca")
        database = parts.path.strip("/") or query.pop("db", "0")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        safe = f"{parts.scheme}://{host}:{options['port']}/{database}"
    if not database.isdecimal():
        raise _Wrong("its database is no number")
    if query:
        raise _Wrong(f"it has the unknown option {min(query)!r}")
    options["db"] = int(database)
    return safe + (f"?{urlencode(shown)}" if shown else ""), options, prefix


# -- answers -----------------------------------------------------------------------------------------------


def _as_claim(found: Sequence[Any]) -> Claim:
    session_id, text, reason, fence, attempt, pending, detected_after = found
    return Claim(
        from_text(session_id.decode(), text),
        reason.decode(),
        int(fence),
        int(attempt),
        tuple(json.loads(pending)) if pending is not None else None,
        float(detected_after) if detected_after is not None else None,
    )


def _as_row(found: Sequence[Any]) -> Row:
    session_id, text, phase, node, reason, fence, attempt, error, retry_in = found
    return Row(
        from_text(session_id.decode(), text),
        Phase(phase.decode()),
        node.decode() if node is not None else None,
        reason.decode() if reason is not None else None,
        int(fence),
        int(attempt),
        float(retry_in) if retry_in is not None else None,
        error.decode() if error is not None else None,
    )
