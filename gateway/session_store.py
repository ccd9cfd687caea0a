"""Contract 2: where sessions are recorded, so that each is cleaned up once, whatever dies.

A *node* is one gateway process. It holds a lease, which it renews; its sessions belong to it while
the lease lasts. A *claim* is the one act that entitles a node to run a session's cleanup hooks: one
compare-and-set, fenced. `MemoryStore` is the simplest complete implementation; `tests/contract/` holds
what all of them must do. Knows nothing of clients, connections or hooks.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final
from uuid import uuid4


class StoreError(Exception):
    """Something is wrong with the store. The text is one line, for a person."""


class StoreUnavailable(StoreError):
    """It cannot be reached, or is locked. Nothing was changed as far as anyone knows; it may heal."""


class StoreRefuses(StoreError):
    """It can be reached and takes no writes: the disk is full or read-only, the memory limit is reached."""


class StoreUnusable(StoreError):
    """It will not heal by itself: damaged, of a newer version, not a store. Raised by `open` only."""


class Phase(Enum):
    """Where a recorded session stands. A session that is over has no record."""

    OPEN = "open"  # its node serves it, or serves its grace
    PARKED = "parked"  # its node has stopped; any node may resume it until its grace is over
    CLOSING = "closing"  # claimed: its hooks run, or wait to be tried again
    FAILED = "failed"  # its hooks have failed for good, and wait for a person


@dataclass(frozen=True, slots=True)
class Session:
    """What is recorded when a session opens, and saved when that changes.

    `routes` are the patterns of the routes that it has used, `user` what `auth` returned, as text,
    `data` what handlers keep for the hooks: a JSON object. `opened` and `seen` are seconds since the epoch,
    for people: nothing is decided by them.
    """

    id: str
    user: str | None = None
    routes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    opened: float = 0.0
    seen: float = 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run the hooks of one session, once; void when a higher `fence` exists.

    `reason` is the name of a `protocol.reasons.Reason`. `attempt` counts from 1. `pending` are the
    hooks that have not succeeded yet; None before the first attempt. `detected_after` is how long, in s, it
    took to notice the end; None where nobody knows.
    """

    session: Session
    reason: str
    fence: int
    attempt: int = 1
    pending: tuple[str, ...] | None = None
    detected_after: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A recorded session, for people. `retry_in` in s; `error` is what the last attempt said."""

    session: Session
    phase: Phase
    node: str | None
    reason: str | None = None
    fence: int = 0
    attempt: int = 0
    retry_in: float | None = None
    error: str | None = None


class SessionStore(ABC):
    """Promises:

    - every method is one atomic act (`save` and `park`: one for each session); what returns True, or a
      claim, has been recorded;
    - calls of one node take effect in the order in which they were made;
    - nothing blocks the event loop; a store that cannot answer raises `StoreUnavailable` within a few
      seconds, one that refuses to write `StoreRefuses`;
    - leases and graces are measured by one clock for all nodes (the machine's, or the server's), which
      no step of the wall clock moves;
    - a session belongs to one node at a time: `resume`, `claim` and `claim_orphans` exclude each other;
    - after `StoreUnavailable` a node may repeat any call. `add`, `resume` and `claim` say again what they
      have done for this node, `claim_orphans` returns what got lost on the way; so two callers in one
      node must not ask for the same session at the same time;
    - a call that is cancelled may take effect all the same.

    `node` is a text that no other process has, nor ever had; one that has not joined, has left or was
    declared lost is refused like one that owns nothing. `lasting` says whether records outlive the
    process. `url` shows no password. Ids and nodes must be text that can be encoded (no lone surrogates),
    `data` a JSON object: `ValueError` or `TypeError` otherwise, and nothing of the call is done.
    """

    url: str
    lasting: bool

    # -- the store itself --------------------------------------------------------------------------

    @abstractmethod
    async def open(self) -> None:
        """Connect, create what is missing. Raises `StoreError`, with what to do about it."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was asked for, and let go. Idempotent."""

    @abstractmethod
    async def born(self) -> str:
        """A text that changes only when all records are gone at once and the store begins from nothing.

        A node that is not known any more was declared lost by another one, or, if this has changed, nobody
        has anything of it.
        """

    # -- nodes -------------------------------------------------------------------------------------

    @abstractmethod
    async def join(self, node: str, lease: float) -> None:
        """This node is alive for `lease` seconds from now."""

    @abstractmethod
    async def renew(self, node: str, lease: float) -> bool:
        """One write for all sessions of the node. False: the lease was over and another node has declared
        this one lost, or the store was emptied, see `born`. Its sessions are not its own any more, and all
        its later writes are refused.
        """

    @abstractmethod
    async def leave(self, node: str) -> None:
        """The node stops: what it has not finished is anyone's at once."""

    # -- its sessions ------------------------------------------------------------------------------

    @abstractmethod
    async def add(self, node: str, session: Session) -> bool:
        """Record a new session of the node (phase OPEN). False if the node is lost, or the id taken."""

    @abstractmethod
    async def save(self, node: str, sessions: Iterable[Session]) -> None:
        """Record what has changed in sessions that are OPEN and the node's own; ignore all others."""

    @abstractmethod
    async def remove(self, node: str, session_id: str) -> None:
        """Forget an OPEN session of the node that nobody has to clean up after."""

    @abstractmethod
    async def park(self, node: str, parked: Iterable[tuple[str, float, bytes]]) -> None:
        """OPEN sessions of the node that may be resumed elsewhere: `(id, grace in s, state)` each.

        From now on they belong to nobody. Raises `ValueError` if this store is not `lasting`.
        """

    @abstractmethod
    async def parked(self, session_id: str) -> bytes | None:
        """The state of a parked session whose grace is not over. Changes nothing."""

    @abstractmethod
    async def resume(self, node: str, session_id: str) -> Session | None:
        """Take a parked session whose grace is not over: OPEN, the node's own. None if it is too late."""

    # -- the end -----------------------------------------------------------------------------------

    @abstractmethod
    async def claim(
        self, node: str, session: Session, reason: str, detected_after: float | None = None
    ) -> Claim | None:
        """An OPEN session of the node is over. None: it is not the node's own (any more)."""

    @abstractmethod
    async def claim_orphans(self, node: str, limit: int) -> list[Claim]:
        """What else there is to clean up, longest overdue first, at most `limit`. All become the node's own:

        - OPEN sessions of nodes that have left, or whose lease is over (reason `NODE_LOST`); these nodes,
          but never the caller, are declared lost by this;
        - parked ones whose grace is over (reason `SHUTDOWN`);
        - claims of nodes that are lost or have left (the same reason, `attempt` one higher);
        - claims that were put off and are due (likewise).

        With a `limit` of 0 nothing happens.
        """

    @abstractmethod
    async def finish(self, node: str, claim: Claim) -> bool:
        """The hooks have succeeded: the record goes. False if the claim is void, or was given up."""

    @abstractmethod
    async def put_off(
        self, node: str, claim: Claim, delay: float, pending: tuple[str, ...], error: str
    ) -> bool:
        """These hooks have failed, and are to be tried again in `delay` seconds, by any node. The claim is
        given up by this. False if it is void, or was given up.
        """

    @abstractmethod
    async def bury(self, node: str, claim: Claim, pending: tuple[str, ...], error: str) -> bool:
        """These hooks have failed for good: phase FAILED, for a person to see. False as for `put_off`."""

    # -- people ------------------------------------------------------------------------------------

    @abstractmethod
    async def rows(self, *, failed: bool = False, limit: int = 1000) -> list[Row]:
        """What is recorded, oldest first; with `failed`, only what has failed."""

    @abstractmethod
    async def counts(self) -> dict[Phase, int]:
        """How many there are in each phase."""

    @abstractmethod
    async def retry(self, session_id: str) -> bool:
        """Try the hooks of a FAILED session again, now: the same claim, `attempt` one higher."""

    @abstractmethod
    async def ask_to_close(self, session_id: str) -> bool:
        """Ask whoever serves this OPEN session to end it; a PARKED one is over at once."""

    @abstractmethod
    async def asked_to_close(self, node: str) -> list[str]:
        """Which sessions of the node are to be ended; each is told once."""


# -- what implementations share ------------------------------------------------------------------------

MAX_ERROR: Final = 2_000  # characters of an error that are kept

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def to_text(session: Session) -> str:
    """All of a session but its id, as JSON in ASCII: any text survives any store.

    Raises `TypeError` or `ValueError` if `data` is no JSON object, or the id cannot be encoded.
    """
    session.id.encode()
    return _encode(
        {
            "user": session.user,
            "routes": session.routes,
            "data": dict(session.data),
            "opened": session.opened,
            "seen": session.seen,
        }
    )


def from_text(session_id: str, text: str | bytes) -> Session:
    """What `to_text` was given."""
    found = json.loads(text)
    return Session(
        session_id, found["user"], tuple(found["routes"]), found["data"], found["opened"], found["seen"]
    )


def presentable(error: str) -> str:
    """The error as it is recorded: of bounded length, and of text that can be encoded."""
    return error[:MAX_ERROR].encode("utf-8", "backslashreplace").decode()


# -- the simplest complete implementation --------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    until: float  # the end of its lease
    gone: bool = False  # lost, or left: kept until nothing of it is left to clean up


@dataclass(slots=True)
class _Record:
    text: str
    node: str | None = None
    phase: Phase = Phase.OPEN
    due: float | None = None  # the end of a grace, or the next attempt
    state: bytes = b""
    reason: str | None = None
    fence: int = 0
    attempt: int = 0
    pending: tuple[str, ...] | None = None
    detected_after: float | None = None
    error: str | None = None


class MemoryStore(SessionStore):
    """Records that end with the process. Several nodes may share one object.

    `clock` returns seconds and never goes back. With `lasting` it says that it outlives its nodes, which
    is true for those that share it.
    """

    url = "memory:"

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, lasting: bool = False) -> None:
        self.lasting = lasting
        self._clock = clock
        self._born = uuid4().hex
        self._nodes: dict[str, _Node] = {}
        self._records: dict[str, _Record] = {}  # oldest first
        # What has to be looked at often must not cost a walk through all records.
        self._owned: dict[str, dict[str, None]] = {}  # node -> ids
        self._due: dict[str, None] = {}
        self._asked: dict[str, None] = {}
        self._counts = dict.fromkeys(Phase, 0)

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do: another node may go on with it."""

    async def born(self) -> str:
        return self._born

    async def join(self, node: str, lease: float) -> None:
        node.encode()
        self._nodes[node] = _Node(self._clock() + lease)

    async def renew(self, node: str, lease: float) -> bool:
        if not self._lives(node):
            return False
        self._nodes[node].until = self._clock() + lease
        return True

    async def leave(self, node: str) -> None:
        if self._lives(node):
            self._nodes[node] = _Node(self._clock(), gone=True)

    async def add(self, node: str, session: Session) -> bool:
        text = to_text(session)
        if not self._lives(node):
            return False
        if session.id in self._records:
            if record := self._own(node, session.id, Phase.OPEN):
                record.text = text
            return record is not None
        self._records[session.id] = record = _Record(text)
        self._counts[Phase.OPEN] += 1
        self._move(session.id, record, Phase.OPEN, node)
        return True

    async def save(self, node: str, sessions: Iterable[Session]) -> None:
        texts = [(session.id, to_text(session)) for session in sessions]
        for session_id, text in texts:
            if record := self._own(node, session_id, Phase.OPEN):
                record.text = text

    async def remove(self, node: str, session_id: str) -> None:
        if record := self._own(node, session_id, Phase.OPEN):
            self._forget(session_id, record)

    async def park(self, node: str, parked: Iterable[tuple[str, float, bytes]]) -> None:
        if not self.lasting:
            raise ValueError("a store in memory ends with its process: nothing can be parked in it")
        now = self._clock()
        for session_id, grace, state in parked:
            if record := self._own(node, session_id, Phase.OPEN):
                record.state = bytes(state)
                due = now if session_id in self._asked else now + grace
                self._move(session_id, record, Phase.PARKED, due=due)

    async def parked(self, session_id: str) -> bytes | None:
        record = self._resumable(session_id)
        return record.state if record else None

    async def resume(self, node: str, session_id: str) -> Session | None:
        if not self._lives(node):
            return None
        if not (record := self._own(node, session_id, Phase.OPEN)):
            if not (record := self._resumable(session_id)):
                return None
            record.state = b""
            self._move(session_id, record, Phase.OPEN, node)
        return from_text(session_id, record.text)

    async def claim(
        self, node: str, session: Session, reason: str, detected_after: float | None = None
    ) -> Claim | None:
        text = to_text(session)
        if record := self._own(node, session.id, Phase.OPEN):
            record.text, record.reason, record.detected_after = text, reason, detected_after
            self._take(session.id, record, node)
        elif not (record := self._own(node, session.id, Phase.CLOSING)) or record.attempt != 1:
            return None
        return _claim(session.id, record)

    async def claim_orphans(self, node: str, limit: int) -> list[Claim]:
        if not self._lives(node) or limit <= 0:
            return []
        now = self._clock()
        for name, other in self._nodes.items():
            other.gone = other.gone or (name != node and other.until <= now)
        gone = [name for name, other in self._nodes.items() if other.gone]
        overdue = [(self._nodes[name].until, key) for name in gone for key in self._owned.get(name, ())]
        overdue += [(due, key) for key in self._due if (due := self._records[key].due or 0.0) <= now]
        overdue.sort(key=lambda item: item[0])  # stable: of one node, the oldest first
        claims = []
        for _, session_id in overdue[:limit]:
            record = self._records[session_id]
            record.reason = record.reason or ("NODE_LOST" if record.phase is Phase.OPEN else "SHUTDOWN")
            self._take(session_id, record, node)
            claims.append(_claim(session_id, record))
        for name in gone:
            if not self._owned.get(name):
                del self._nodes[name]
        return claims

    async def finish(self, node: str, claim: Claim) -> bool:
        if not (record := self._held(node, claim)):
            return False
        self._forget(claim.session.id, record)
        return True

    async def put_off(
        self, node: str, claim: Claim, delay: float, pending: tuple[str, ...], error: str
    ) -> bool:
        if not (record := self._held(node, claim)):
            return False
        record.pending, record.error = pending, presentable(error)
        self._move(claim.session.id, record, Phase.CLOSING, due=self._clock() + delay)
        return True

    async def bury(self, node: str, claim: Claim, pending: tuple[str, ...], error: str) -> bool:
        if not (record := self._held(node, claim)):
            return False
        record.pending, record.error = pending, presentable(error)
        self._move(claim.session.id, record, Phase.FAILED)
        return True

    async def rows(self, *, failed: bool = False, limit: int = 1000) -> list[Row]:
        now = self._clock()
        return [row for row in self._rows(now) if not failed or row.phase is Phase.FAILED][: max(limit, 0)]

    async def counts(self) -> dict[Phase, int]:
        return dict(self._counts)

    async def retry(self, session_id: str) -> bool:
        record = self._records.get(session_id)
        if record is None or record.phase is not Phase.FAILED:
            return False
        self._move(session_id, record, Phase.CLOSING, due=self._clock())
        return True

    async def ask_to_close(self, session_id: str) -> bool:
        record = self._records.get(session_id)
        if record is None or record.phase not in (Phase.OPEN, Phase.PARKED):
            return False
        if record.phase is Phase.OPEN:
            self._asked[session_id] = None
        elif record.due is not None:  # over at once, and overdue for no longer than it is already
            record.due = min(record.due, self._clock())
        return True

    async def asked_to_close(self, node: str) -> list[str]:
        asked = [key for key in self._asked if self._own(node, key, Phase.OPEN)]
        for session_id in asked:
            del self._asked[session_id]
        return asked

    def _lives(self, node: str) -> bool:
        found = self._nodes.get(node)
        return found is not None and not found.gone

    def _own(self, node: str, session_id: str, phase: Phase) -> _Record | None:
        record = self._records.get(session_id)
        if record and record.node == node and record.phase is phase and self._lives(node):
            return record
        return None

    def _held(self, node: str, claim: Claim) -> _Record | None:
        record = self._own(node, claim.session.id, Phase.CLOSING)
        return record if record and record.fence == claim.fence else None

    def _resumable(self, session_id: str) -> _Record | None:
        record = self._records.get(session_id)
        if record and record.phase is Phase.PARKED and record.due is not None and record.due > self._clock():
            return record
        return None

    def _take(self, session_id: str, record: _Record, node: str) -> None:
        record.state = b""
        record.fence += 1
        record.attempt += 1
        self._move(session_id, record, Phase.CLOSING, node)

    def _move(
        self,
        session_id: str,
        record: _Record,
        phase: Phase,
        node: str | None = None,
        due: float | None = None,
    ) -> None:
        """The only place where a record changes its owner, phase or time."""
        self._leave_indexes(session_id, record)
        record.phase, record.node, record.due = phase, node, due
        self._counts[phase] += 1
        if node is not None:
            self._owned.setdefault(node, {})[session_id] = None
        if due is not None:
            self._due[session_id] = None

    def _forget(self, session_id: str, record: _Record) -> None:
        self._leave_indexes(session_id, record)
        del self._records[session_id]

    def _leave_indexes(self, session_id: str, record: _Record) -> None:
        self._counts[record.phase] -= 1
        self._due.pop(session_id, None)
        self._asked.pop(session_id, None)
        if record.node is not None and (owned := self._owned.get(record.node)) is not None:
            owned.pop(session_id, None)
            if not owned:
                del self._owned[record.node]

    def _rows(self, now: float) -> Iterator[Row]:
        for session_id, record in self._records.items():
            put_off = record.phase is Phase.CLOSING and record.due is not None
            yield Row(
                from_text(session_id, record.text),
                record.phase,
                record.node,
                record.reason,
                record.fence,
                record.attempt,
                max(0.0, record.due - now) if put_off and record.due is not None else None,
                record.error,
            )


def _claim(session_id: str, record: _Record) -> Claim:
    session = from_text(session_id, record.text)
    reason = record.reason or ""
    return Claim(session, reason, record.fence, record.attempt, record.pending, record.detected_after)
