"""Contract 2: where sessions are recorded, so that each is cleaned up once, whatever dies.

A *node* is one gateway process. It holds a lease, which it renews; its sessions belong to it while
the lease lasts. A *claim* is the one act that entitles a node to run a session's cleanup hooks: one
compare-and-set, fenced. `MemoryStore` is the simplest complete implementation; `tests/contract/` holds
what all of them must do. Knows nothing of clients, connections or hooks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


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

    - every method is one atomic act; what returns True, or a claim, has been recorded;
    - calls of one node take effect in the order in which they were made;
    - nothing blocks the event loop; a store that cannot answer raises `StoreUnavailable` within a few
      seconds, one that refuses to write `StoreRefuses`;
    - leases and graces are measured by one clock for all nodes (the machine's, or the server's), which
      no step of the wall clock moves;
    - a session belongs to one node at a time: `resume`, `claim` and `claim_orphans` exclude each other.

    `node` is a text that no other process has, nor ever had. `lasting` says whether records outlive the
    process. `url` shows no password.
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

    # -- nodes -------------------------------------------------------------------------------------

    @abstractmethod
    async def join(self, node: str, lease: float) -> None:
        """This node is alive for `lease` seconds from now."""

    @abstractmethod
    async def renew(self, node: str, lease: float) -> bool:
        """One write for all sessions of the node. False: the lease was over and another node has declared
        this one lost. Its sessions are not its own any more, and all its later writes are refused.
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
        """What else there is to clean up, oldest first, at most `limit`. Each becomes this node's own:

        - sessions of nodes whose lease is over (reason `NODE_LOST`), which are declared lost by this;
        - parked ones whose grace is over (reason `SHUTDOWN`);
        - claims of nodes that are lost or have left (the same reason, `attempt` one higher);
        - claims that were put off and are due (likewise).
        """

    @abstractmethod
    async def finish(self, node: str, claim: Claim) -> bool:
        """The hooks have succeeded: the record goes. False if the claim is void."""

    @abstractmethod
    async def put_off(
        self, node: str, claim: Claim, delay: float, pending: tuple[str, ...], error: str
    ) -> bool:
        """These hooks have failed, and are to be tried again in `delay` seconds. False if it is void."""

    @abstractmethod
    async def bury(self, node: str, claim: Claim, pending: tuple[str, ...], error: str) -> bool:
        """These hooks have failed for good: phase FAILED, for a person to see. False if it is void."""

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
