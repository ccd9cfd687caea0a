"""Sessions recorded in one SQLite file, for the gateways of one machine.

All work is done by one thread: what waits while it works goes into its next transaction together, so a
thousand sessions that open at once cost one commit. Time is the machine's monotonic clock, which all
processes share, together with the name of the boot: no step of the wall clock moves a lease, and after a
restart of the machine all leases and graces are over. A suspended machine is no time at all, neither for
a lease nor for the loops that renew it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import os
import queue
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote
from uuid import uuid4

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
from gateway.threads import Threads

APPLICATION_ID: Final = 0x67617465  # "gate": `file` and SQLite's shell show it
VERSION: Final = 1
BUSY: Final = 4.0  # s; another process may hold the file for so long. Below a third of the default lease
_GROUP: Final = 1_000  # acts in one transaction; bounds how long a group takes
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE nodes (
    node TEXT PRIMARY KEY,
    until REAL NOT NULL,              -- the end of its lease, on the clock of `meta.boot`
    gone INTEGER NOT NULL DEFAULT 0   -- lost, or left: kept until nothing of it is left to clean up
) WITHOUT ROWID;
CREATE TABLE sessions (
    n INTEGER PRIMARY KEY,            -- the order in which they opened
    id TEXT NOT NULL UNIQUE,
    phase TEXT NOT NULL,
    node TEXT,                        -- whose it is; NULL: anyone's
    due REAL,                         -- the end of the grace, or the next attempt
    session TEXT NOT NULL,            -- JSON: user, routes, data, opened, seen
    state BLOB,
    reason TEXT,
    fence INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    pending TEXT,                     -- JSON: names of hooks
    detected_after REAL,
    error TEXT,
    asked INTEGER NOT NULL DEFAULT 0  -- to be closed by its node
);
CREATE VIEW living AS SELECT node FROM nodes WHERE NOT gone;
CREATE INDEX by_node ON sessions (node, phase);
CREATE INDEX by_due ON sessions (due) WHERE due IS NOT NULL;
CREATE INDEX by_asked ON sessions (node) WHERE asked;
"""

_Database = sqlite3.Connection
_Values = dict[str, Any]  # what the statements of an act name; `now` is added when it is done
_Act = Callable[[_Database, _Values], Any]
_Found = tuple[Any, ...]
_T = TypeVar("_T")


class _Job:
    """One act, and who waits for it."""

    __slots__ = ("act", "error", "future", "loop", "result", "values", "writes")

    def __init__(self, act: _Act, values: _Values, *, writes: bool) -> None:
        self.act = act
        self.values = values
        self.writes = writes
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: Exception | None = None


class SqliteStore(SessionStore):
    """One file, with SQLite's `-wal` and `-shm` beside it. `clock` is one that all its processes share."""

    lasting = True

    def __init__(
        self, path: str | Path, *, clock: Callable[[], float] = time.monotonic, boot: str | None = None
    ) -> None:
        self.path = Path(path).absolute()
        self.url = f"sqlite://{quote(str(self.path))}"
        self._clock = clock
        self._boot = boot
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._database: _Database | None = None

    # -- the store itself --------------------------------------------------------------------------

    async def open(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gateway-store", daemon=True)
            self._thread.start()
        try:
            await self._do(_nothing, writes=False)
        except StoreError:
            await self.close()
            raise

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await Threads(1).run(thread.join)  # a daemon: a process whose file is locked can end

    async def born(self) -> str:
        return await self._do(_birth, text=uuid4().hex)

    # -- nodes -------------------------------------------------------------------------------------

    async def join(self, node: str, lease: float) -> None:
        await self._do(_join, node=_name(node), lease=lease)

    async def renew(self, node: str, lease: float) -> bool:
        return await self._do(_renew, node=_name(node), lease=lease)

    async def leave(self, node: str) -> None:
        await self._do(_leave, node=_name(node))

    # -- its sessions ------------------------------------------------------------------------------

    async def add(self, node: str, session: Session) -> bool:
        return await self._do(_add, node=_name(node), id=session.id, session=to_text(session))

    async def save(self, node: str, sessions: Iterable[Session]) -> None:
        if many := [{"id": session.id, "session": to_text(session)} for session in sessions]:
            await self._do(_save, node=_name(node), many=many)

    async def remove(self, node: str, session_id: str) -> None:
        await self._do(_remove, node=_name(node), id=_name(session_id))

    async def park(self, node: str, parked: Iterable[tuple[str, float, bytes]]) -> None:
        if many := [{"id": _name(key), "grace": grace, "state": state} for key, grace, state in parked]:
            await self._do(_park, node=_name(node), many=many)

    async def parked(self, session_id: str) -> bytes | None:
        return await self._do(_parked, writes=False, id=_name(session_id))

    async def resume(self, node: str, session_id: str) -> Session | None:
        text = await self._do(_resume, node=_name(node), id=_name(session_id))
        return from_text(session_id, text) if text is not None else None

    # -- the end -----------------------------------------------------------------------------------

    async def claim(
        self, node: str, session: Session, reason: str, detected_after: float | None = None
    ) -> Claim | None:
        found = await self._do(
            _claim,
            node=_name(node),
            id=session.id,
            session=to_text(session),
            reason=reason,
            detected_after=detected_after,
        )
        return _as_claim(found) if found else None

    async def claim_orphans(self, node: str, limit: int) -> list[Claim]:
        return [_as_claim(found) for found in await self._do(_claim_orphans, node=_name(node), limit=limit)]

    async def finish(self, node: str, claim: Claim) -> bool:
        return await self._do(_finish, node=_name(node), id=claim.session.id, fence=claim.fence)

    async def put_off(
        self, node: str, claim: Claim, delay: float, pending: tuple[str, ...], error: str
    ) -> bool:
        return await self._give_up(node, claim, Phase.CLOSING, delay, pending, error)

    async def bury(self, node: str, claim: Claim, pending: tuple[str, ...], error: str) -> bool:
        return await self._give_up(node, claim, Phase.FAILED, None, pending, error)

    async def _give_up(
        self,
        node: str,
        claim: Claim,
        phase: Phase,
        delay: float | None,
        pending: tuple[str, ...],
        error: str,
    ) -> bool:
        return await self._do(
            _give_up,
            node=_name(node),
            id=claim.session.id,
            fence=claim.fence,
            phase=phase.value,
            delay=delay,
            pending=json.dumps(pending),
            error=presentable(error),
        )

    # -- people ------------------------------------------------------------------------------------

    async def rows(self, *, failed: bool = False, limit: int = 1000) -> list[Row]:
        phase = Phase.FAILED.value if failed else None
        return await self._do(_rows, writes=False, phase=phase, limit=max(limit, 0))

    async def counts(self) -> dict[Phase, int]:
        return await self._do(_counts, writes=False)

    async def retry(self, session_id: str) -> bool:
        return await self._do(_retry, id=_name(session_id))

    async def ask_to_close(self, session_id: str) -> bool:
        return await self._do(_ask_to_close, id=_name(session_id))

    async def asked_to_close(self, node: str) -> list[str]:
        return await self._do(_asked_to_close, node=_name(node))

    # -- the thread --------------------------------------------------------------------------------

    def _do(
        self, act: Callable[[_Database, _Values], _T], *, writes: bool = True, **values: Any
    ) -> asyncio.Future[_T]:
        if self._thread is None:
            raise StoreUnavailable(f"the store {self.path} is closed")
        job = _Job(act, values, writes=writes)
        self._jobs.put(job)
        return job.future

    def _work(self) -> None:
        last = False
        while not last:
            group, last = self._waiting(block=True)
            self._run(group)
            if any(_is_busy(job.error) for job in group):
                # Whoever waited behind them has waited as long, and may repeat it.
                behind, last = self._waiting(block=False)
                for job in behind:
                    job.error = group[0].error
                group += behind
            _settle(group)
        self._disconnect()

    def _waiting(self, *, block: bool) -> tuple[list[_Job], bool]:
        """What waits, and whether that is all that there will be."""
        group: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            while len(group) < _GROUP:
                job = self._jobs.get(block=block and not group)
                if job is None:
                    return group, True
                group.append(job)
        return group, False

    def _run(self, group: Sequence[_Job]) -> None:
        """All in one transaction; one by one if that fails, since a full disk still takes deletions."""
        error = self._attempt(group)
        if error is None or len(group) <= 1 or _is_busy(error):
            for job in group:
                job.error = error
        else:
            for job in group:
                job.error = self._attempt([job])

    def _attempt(self, group: Sequence[_Job]) -> StoreError | None:
        if not group:
            return None
        try:
            database = self._connected()
            database.execute("BEGIN IMMEDIATE" if any(job.writes for job in group) else "BEGIN")
            now = self._clock()
            for job in group:
                job.values["now"] = now
                job.result = job.act(database, job.values)
            database.execute("COMMIT")
        except StoreError as error:
            self._disconnect()
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            # A full disk still answers this connection's questions, and could not make another's files. All
            # else is seen healed by a new connection only.
            if not _is_passing(error) or not self._roll_back():
                self._disconnect()
            return _explain(error, self.path)
        return None

    def _roll_back(self) -> bool:
        try:
            if self._database is not None and self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return self._database is not None

    def _connected(self) -> _Database:
        if self._database is None:
            boot = self._boot if self._boot is not None else _boot_id()
            self._database = _connect(self.path, self._clock, boot)
        return self._database

    def _disconnect(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):  # its files may be gone
                database.close()


def _settle(group: Sequence[_Job]) -> None:
    """Tell those who wait, with one call into each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in group:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, jobs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has ended; nobody waits for it
            loop.call_soon_threadsafe(_tell, jobs)


def _tell(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is None:
            job.future.set_result(job.result)
        else:
            kind = StoreUnavailable if _is_busy(job.error) else type(job.error)
            job.future.set_exception(kind(*job.error.args))  # one for each: a traceback grows


def _is_busy(error: Exception | None) -> bool:
    return isinstance(error, _Busy)


class _Busy(StoreUnavailable):
    """Another process holds the file."""


def _name(text: str) -> str:
    """Raises `UnicodeEncodeError`, a `ValueError`, before anything is queued."""
    text.encode()
    return text


# -- the file ------------------------------------------------------------------------------------------


def _connect(path: Path, clock: Callable[[], float], boot: str) -> _Database:
    """A connection to a file of ours, which is created if there is none. Raises also `StoreUnusable`."""
    _create(path)
    database = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
    try:
        _check(database, path)
        database.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing; a power cut loses the last moments, and the machine's sessions.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_size_limit = 16777216")
        if not _is_current(database, boot):
            database.execute("BEGIN IMMEDIATE")
            _create_tables(database)
            _after_boot(database, clock(), boot)
            database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _create(path: Path) -> None:
    if not path.parent.is_dir():
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StoreUnusable(f"{path} is no file: give another --store")
        # Asked, not tried: to close a file ends all locks that this process has on it.
        if not os.access(path, os.W_OK):
            raise StoreRefuses(f"cannot write {path}: it is read-only")
    except FileNotFoundError:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _check(database: _Database, path: Path) -> None:
    away = f"move {path} away, or give another --store"
    try:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (application or version or tables):
            raise StoreUnusable(f"{path} is the database of another program: {away}")
        if version > VERSION:
            raise StoreUnusable(
                f"{path} was written by a newer gateway (version {version}, this one knows {VERSION}): "
                f"update this one, {away}"
            )
        (health,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if _code(error) not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        raise StoreUnusable(f"{path} is damaged, or is no SQLite database: {away}") from error
    if health != "ok":
        raise StoreUnusable(f"{path} is damaged: {away}")


def _is_current(database: _Database, boot: str) -> bool:
    """Whether nothing is to be written: a full disk is no reason not to look at what there is."""
    if not boot or database.execute("PRAGMA user_version").fetchone()[0] == 0:
        return False
    found = database.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone()
    return found is not None and found[0] == boot


def _create_tables(database: _Database) -> None:
    if database.execute("PRAGMA user_version").fetchone()[0] == 0:
        for statement in _SCHEMA.split(";\n"):
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {VERSION}")


def _after_boot(database: _Database, now: float, boot: str) -> None:
    """After a restart of the machine the clock begins anew, and all leases and graces are over."""
    found = dict(database.execute("SELECT key, value FROM meta").fetchall())
    same = found.get("boot", boot) == boot and found.get("clock", now) <= now
    if not same:
        # By a large number, so that their order stays.
        database.execute("UPDATE nodes SET gone = 1, until = until - 1e9")
        database.execute("UPDATE sessions SET due = due - 1e9 WHERE due IS NOT NULL")
    database.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?), ('clock', ?)", (boot, now))


def _boot_id() -> str:
    """A name of this run of the machine; "" where there is none, and a clock that went back tells."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def _code(error: BaseException) -> int:
    """SQLite's primary result code, or 0."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_REFUSED: Final = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_PERM: "access is denied",
    sqlite3.SQLITE_AUTH: "access is denied",
}
_WRITE_ERRORS: Final = {
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
}


def _is_passing(error: BaseException) -> bool:
    """Whether the connection goes on as if nothing had been."""
    full = getattr(error, "sqlite_errorcode", 0) in _WRITE_ERRORS
    return full or _code(error) in (*_BUSY, sqlite3.SQLITE_FULL)


def _explain(error: Exception, path: Path) -> StoreError:
    """What it means to somebody who does not know SQLite."""
    if isinstance(error, OSError):
        return StoreRefuses(f"cannot write {path}: {error.strerror or error}")
    code = _code(error)
    if code in _BUSY:
        return _Busy(f"{path} is locked by another process: close what else has it open")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN) and not os.access(path.parent, os.W_OK):
        return StoreRefuses(f"cannot write beside {path}: its folder is read-only")
    if code in _REFUSED:
        return StoreRefuses(f"cannot write {path}: {_REFUSED[code]}")
    if getattr(error, "sqlite_errorcode", 0) in _WRITE_ERRORS:
        return StoreRefuses(f"cannot write {path}: {error}")
    if code == sqlite3.SQLITE_CANTOPEN and not os.access(path, os.W_OK):
        return StoreRefuses(f"cannot write {path}: it is read-only")
    return StoreUnavailable(f"cannot use {path}: {error}")


# -- the acts: each runs inside a transaction ------------------------------------------------------------


def _nothing(database: _Database, values: _Values) -> None:
    """To see whether the file can be used."""


def _birth(database: _Database, values: _Values) -> str:
    database.execute("INSERT OR IGNORE INTO meta VALUES ('born', :text)", values)
    found: str = database.execute("SELECT value FROM meta WHERE key = 'born'").fetchone()[0]
    return found


def _join(database: _Database, values: _Values) -> None:
    database.execute("INSERT OR REPLACE INTO nodes VALUES (:node, :now + :lease, 0)", values)


def _renew(database: _Database, values: _Values) -> bool:
    return _one(database, "UPDATE nodes SET until = :now + :lease WHERE node = :node AND NOT gone", values)


def _leave(database: _Database, values: _Values) -> None:
    database.execute("UPDATE nodes SET until = :now, gone = 1 WHERE node = :node AND NOT gone", values)


def _add(database: _Database, values: _Values) -> bool:
    new = """INSERT OR IGNORE INTO sessions (id, phase, node, session)
             SELECT :id, 'open', :node, :session WHERE :node IN living"""
    again = """UPDATE sessions SET session = :session
               WHERE id = :id AND node = :node AND phase = 'open' AND node IN living"""
    return _one(database, new, values) or _one(database, again, values)


def _save(database: _Database, values: _Values) -> None:
    statement = """UPDATE sessions SET session = :session
                   WHERE id = :id AND node = :node AND phase = 'open' AND node IN living"""
    database.executemany(statement, ({**values, **one} for one in values["many"]))


def _remove(database: _Database, values: _Values) -> None:
    statement = "DELETE FROM sessions WHERE id = :id AND node = :node AND phase = 'open' AND node IN living"
    database.execute(statement, values)


def _park(database: _Database, values: _Values) -> None:
    statement = """UPDATE sessions SET phase = 'parked', node = NULL, state = :state, asked = 0,
                     due = CASE WHEN asked THEN :now ELSE :now + :grace END
                   WHERE id = :id AND node = :node AND phase = 'open' AND node IN living"""
    database.executemany(statement, ({**values, **one} for one in values["many"]))


def _parked(database: _Database, values: _Values) -> bytes | None:
    statement = "SELECT state FROM sessions WHERE id = :id AND phase = 'parked' AND due > :now"
    found = database.execute(statement, values).fetchone()
    return found[0] if found else None


def _resume(database: _Database, values: _Values) -> str | None:
    take = """UPDATE sessions SET phase = 'open', node = :node, due = NULL, state = NULL, asked = 0
              WHERE id = :id AND phase = 'parked' AND due > :now AND :node IN living RETURNING session"""
    again = """SELECT session FROM sessions
               WHERE id = :id AND node = :node AND phase = 'open' AND node IN living"""
    found = database.execute(take, values).fetchone() or database.execute(again, values).fetchone()
    return found[0] if found else None


def _claim(database: _Database, values: _Values) -> _Found | None:
    take = """UPDATE sessions SET phase = 'closing', session = :session, reason = :reason, asked = 0,
                detected_after = :detected_after, fence = fence + 1, attempt = 1
              WHERE id = :id AND node = :node AND phase = 'open' AND node IN living
              RETURNING id, session, reason, fence, attempt, pending, detected_after"""
    again = """SELECT id, session, reason, fence, attempt, pending, detected_after FROM sessions
               WHERE id = :id AND node = :node AND phase = 'closing' AND attempt = 1 AND node IN living"""
    found: _Found | None = database.execute(take, values).fetchone()
    return found or database.execute(again, values).fetchone()


def _claim_orphans(database: _Database, values: _Values) -> list[_Found]:
    alive = database.execute("SELECT :node IN living", values).fetchone()[0]
    limit = values["limit"]
    if not alive or limit <= 0:
        return []
    database.execute("UPDATE nodes SET gone = 1 WHERE NOT gone AND until <= :now AND node <> :node", values)
    due = database.execute(
        "SELECT due, n FROM sessions WHERE due <= :now ORDER BY due LIMIT :limit", values
    ).fetchall()
    gone = database.execute("SELECT node, until FROM nodes WHERE gone ORDER BY until").fetchall()
    left: list[tuple[float, int]] = []
    # Along the index: one node of 100,000 sessions costs no more than what is taken of it.
    mine = "SELECT n FROM sessions WHERE node = ? ORDER BY phase, n LIMIT ?"
    for name, until in gone:
        left += [(until, n) for (n,) in database.execute(mine, (name, limit - len(left)))]
        if len(left) == limit:
            break
    overdue = itertools.islice(heapq.merge(due, left, key=itemgetter(0)), limit)
    claims = [_take(database, values["node"], n) for _, n in overdue]
    if gone:
        database.execute(
            "DELETE FROM nodes WHERE gone AND NOT EXISTS (SELECT 1 FROM sessions WHERE node = nodes.node)"
        )
    return claims


def _take(database: _Database, node: str, n: int) -> _Found:
    statement = """UPDATE sessions SET phase = 'closing', node = ?, due = NULL, state = NULL, asked = 0,
                     reason = coalesce(reason, CASE phase WHEN 'open' THEN 'NODE_LOST' ELSE 'SHUTDOWN' END),
                     fence = fence + 1, attempt = attempt + 1
                   WHERE n = ? RETURNING id, session, reason, fence, attempt, pending, detected_after"""
    found: _Found = database.execute(statement, (node, n)).fetchone()
    return found


def _finish(database: _Database, values: _Values) -> bool:
    statement = """DELETE FROM sessions WHERE id = :id AND node = :node AND fence = :fence
                   AND phase = 'closing' AND node IN living"""
    return _one(database, statement, values)


def _give_up(database: _Database, values: _Values) -> bool:
    statement = """UPDATE sessions SET phase = :phase, node = NULL, due = :now + :delay,
                     pending = :pending, error = :error
                   WHERE id = :id AND node = :node AND fence = :fence
                     AND phase = 'closing' AND node IN living"""
    return _one(database, statement, values)


def _rows(database: _Database, values: _Values) -> list[Row]:
    found = database.execute(
        """SELECT id, session, phase, node, reason, fence, attempt,
             CASE WHEN phase = 'closing' THEN max(0.0, due - :now) END, error
           FROM sessions WHERE :phase IS NULL OR phase = :phase ORDER BY n LIMIT :limit""",
        values,
    )
    return [Row(from_text(key, text), Phase(phase), *more) for key, text, phase, *more in found]


def _counts(database: _Database, _: _Values) -> dict[Phase, int]:
    found = dict(database.execute("SELECT phase, count(*) FROM sessions GROUP BY phase").fetchall())
    return {phase: found.get(phase.value, 0) for phase in Phase}


def _retry(database: _Database, values: _Values) -> bool:
    statement = "UPDATE sessions SET phase = 'closing', due = :now WHERE id = :id AND phase = 'failed'"
    return _one(database, statement, values)


def _ask_to_close(database: _Database, values: _Values) -> bool:
    statement = """UPDATE sessions SET asked = (phase = 'open'), due = min(due, :now)
                   WHERE id = :id AND phase IN ('open', 'parked')"""
    return _one(database, statement, values)


def _asked_to_close(database: _Database, values: _Values) -> list[str]:
    statement = """UPDATE sessions SET asked = 0
                   WHERE asked AND node = :node AND phase = 'open' AND node IN living RETURNING id"""
    return [session_id for (session_id,) in database.execute(statement, values).fetchall()]


def _one(database: _Database, statement: str, values: _Values) -> bool:
    return database.execute(statement, values).rowcount == 1


def _as_claim(found: _Found) -> Claim:
    session_id, text, reason, fence, attempt, pending, detected_after = found
    hooks = tuple(json.loads(pending)) if pending is not None else None
    return Claim(from_text(session_id, text), reason, fence, attempt, hooks, detected_after)
