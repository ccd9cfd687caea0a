"""The live connections of this process, the places reserved for others, and the one heap of deadlines.

One timer serves everybody. A tick that comes late means that the loop was blocked: nobody is judged
then before what arrived meanwhile has been read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from itertools import count, takewhile
from math import inf
from typing import Protocol

from .admission import Admission
from .config import Settings
from .connection import Connection
from .protocol.handshake import Refused
from .protocol.heartbeat import SPARE
from .protocol.reasons import Reason
from .stalls import LATE, StallWatch

log = logging.getLogger("gateway")

_BEAT = 0.2  # s between ticks at the most, so that a stall is noticed
_FAREWELL = 2.0  # s for clients to fetch their last words: a live poller is back within a round trip
_MANY = 100  # items that are over may stay in the heap; a closed connection weighs 8 kB
_TURN = 0.002  # s that one tick may take: what follows from the end of a session takes ten times that
_LOOK = 8  # items between looks at the clock
_QUANTUM = 0.005  # s between ticks at the least: deadlines that are close together share one


class Timed(Protocol):
    """What can stand in the heap. `scheduled` belongs to the heap; it begins as infinity."""

    scheduled: float

    @property
    def deadline(self) -> float:
        """When `judge` wants to be called; it may move later without notice."""

    def judge(self, now: float) -> None:
        """Do what is due."""

    def spare(self, now: float) -> None:
        """A stall has just ended."""


class Deadlines:
    """A lazy heap: a deadline that moves later costs nothing until its old place is reached."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Timed]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None
        self._tick_at = inf
        self._last_tick = self._loop.time()
        self._stall_ended = -inf
        self._watch: StallWatch | None = None
        self._forgotten = 0
        self.stalls = 0

    def now(self) -> float:
        """Monotonic seconds."""
        return self._loop.time()

    def schedule(self, item: Timed) -> None:
        """Call this when `item.deadline` may have come closer."""
        deadline = item.deadline
        if deadline >= item.scheduled:
            return
        item.scheduled = deadline
        heappush(self._heap, (deadline, next(self._order), item))
        if deadline < self._tick_at:
            self._arm(deadline)

    def forget(self, item: Timed) -> None:
        """It is over. Its place is kept, and the item with it, until there are many such places."""
        if item.scheduled == inf:
            return
        item.scheduled = inf
        self._forgotten += 1
        if self._forgotten > max(_MANY, len(self._heap) // 2):
            self._heap[:] = [place for place in self._heap if place[0] == place[2].scheduled]
            heapify(self._heap)
            self._forgotten = 0

    def judge(self, item: Timed) -> None:
        """Judge one item now, if it is due, without waiting for the tick."""
        now = self.now()
        self._note_stall(now)
        if item.deadline <= now:
            self._judge(item, now)
            self.schedule(item)

    def stop(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._rest()

    def _judge(self, item: Timed, now: float) -> None:
        if self._stall_ended + SPARE > now:
            item.spare(self._stall_ended)
        if item.deadline <= now:
            item.judge(now)

    def _arm(self, when: float, pause: float = _QUANTUM) -> None:
        now = self.now()
        if self._watch is None:
            self._watch = StallWatch()
            self._last_tick = now
        if self._timer is not None:
            self._timer.cancel()
        self._tick_at = min(max(when, now + pause), now + _BEAT)
        self._timer = self._loop.call_at(self._tick_at, self._tick)

    def _rest(self) -> None:
        """Nothing to wait for: no timer, no thread."""
        self._tick_at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _note_stall(self, now: float) -> None:
        if now - self._tick_at <= LATE:
            return
        self._stall_ended = now
        self._tick_at = now
        self.stalls += 1
        assert self._watch is not None
        culprit = self._watch.culprit()
        log.warning(
            "The event loop was blocked for %.1f s%s. No client is expired for it, but none was "
            "served: run blocking code in a thread.",
            now - self._last_tick,
            f" by {culprit}" if culprit else "",
        )

    def _tick(self) -> None:
        now = self.now()
        self._note_stall(now)
        self._last_tick = now
        if self._watch is not None:
            self._watch.beat()
        is_done = True
        try:
            is_done = self._judge_due(now)
        finally:  # one item that fails does not end the heartbeat of all others
            if self._heap:
                self._arm(self._heap[0][0], _QUANTUM if is_done else 0.0)
            else:
                self._rest()

    def _judge_due(self, now: float) -> bool:
        """Judge those whose time has come, for one turn. False: not all of them."""
        heap = self._heap
        until, looks = now + _TURN, count(1)
        while heap and heap[0][0] <= now:
            if not next(looks) % _LOOK and self.now() > until:
                return False
            when, _, item = heappop(heap)
            if when != item.scheduled:
                continue
            item.scheduled = inf
            self._judge(item, now)
            if item.deadline < item.scheduled:
                item.scheduled = item.deadline
                heappush(heap, (item.scheduled, next(self._order), item))
        return True


class _Reserved:
    """Handshakes that cost no more than a `sid` and a time: nobody is asked before the second request.

    `expire` is told of each that leads to nothing. `scheduled` belongs to the heap.
    """

    def __init__(self, patience: float, deadlines: Deadlines, expire: Callable[[str], None]) -> None:
        self.scheduled = inf
        self._patience = patience
        self._deadlines = deadlines
        self._expire = expire
        self._until: dict[str, float] = {}  # in the order of time
        self._spared_until = -inf

    def __len__(self) -> int:
        return len(self._until)

    def add(self, sid: str) -> None:
        self._until[sid] = self._deadlines.now() + self._patience
        self._deadlines.schedule(self)

    def clear(self) -> None:
        self._until.clear()

    def pop(self, sid: str) -> bool:
        return self._until.pop(sid, None) is not None

    @property
    def deadline(self) -> float:
        for until in self._until.values():
            return max(until, self._spared_until)
        return inf

    def spare(self, now: float) -> None:
        self._spared_until = now + SPARE

    def judge(self, now: float) -> None:
        over = list(takewhile(lambda sid: self._until[sid] <= now, self._until))
        for sid in over:
            del self._until[sid]
            self._expire(sid)


class Registry:
    """Connections by `sid`. Created inside a running loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.deadlines = Deadlines()
        self.connections: dict[str, Connection] = {}
        self._loop = asyncio.get_running_loop()
        self.admission = Admission(settings.limits)
        self._inside: dict[str, str] = {}
        self._opening: set[str] = set()
        self._users: dict[str, str] = {}
        self._reserved = _Reserved(settings.timeouts.connect, self.deadlines, self._leave)
        self._empty: asyncio.Future[None] | None = None

    # What a connection needs of the world (`connection.Loop`).

    def now(self) -> float:
        """Monotonic seconds."""
        return self._loop.time()

    def soon(self, call: Callable[[], None]) -> None:
        """Call it in the next turn of the loop."""
        self._loop.call_soon(call)

    def schedule(self, item: Connection) -> None:
        """`item.deadline` has come closer."""
        self.deadlines.schedule(item)

    def gone(self, item: Connection) -> None:
        """It is closed: forget it."""
        self.connections.pop(item.sid, None)
        self.deadlines.forget(item)
        self._leave(item.sid)
        if self._empty is not None and not self.connections and not self._empty.done():
            self._empty.set_result(None)

    # What wires need.

    def knock(self, address: str) -> None:
        """A handshake of `address` begins. Raises `Refused` if there were too many of late."""
        self.admission.knock(address, self.now())

    def create(self, sid: str, address: str, user: str | None = None) -> Connection:
        """A new connection of `address`, a session of `user`. Raises `Refused` beyond the limits."""
        self._enter(sid, address, user)
        connection = self.connections[sid] = Connection(sid, self.settings, self)
        return connection

    def reserve(self, sid: str, address: str) -> None:
        """A place for a connection, for `timeouts.connect`. Raises `Refused` beyond the limits."""
        self._enter(sid, address, None)
        self._reserved.add(sid)

    def redeem(self, sid: str) -> Connection | None:
        """The connection that a place was reserved for; None if there was none, or it is too late."""
        if not self._reserved.pop(sid):
            return None
        connection = self.connections[sid] = Connection(sid, self.settings, self)
        return connection

    @contextmanager
    def guest(self, guest_id: str, address: str, user: str | None = None) -> Iterator[None]:
        """The same for what is connected without Engine.IO, as long as this lasts."""
        self._enter(guest_id, address, user)
        try:
            yield
        finally:
            self._leave(guest_id)

    def _enter(self, sid: str, address: str, user: str | None) -> None:
        self._inside[sid] = self.admission.enter(address)
        self._opening.add(sid)
        if user is None:
            return
        try:
            self.admission.sign_in(user)
        except Refused:
            self._leave(sid)
            raise
        self._users[sid] = user

    def settle(self, sid: str) -> None:
        """The connection has proved itself by a second request."""
        if sid in self._opening:
            self._opening.discard(sid)
            self.admission.settle(self._inside[sid])

    def _leave(self, sid: str) -> None:
        self.settle(sid)
        who = self._inside.pop(sid, None)
        if who is not None:
            self.admission.leave(who)
        user = self._users.pop(sid, None)
        if user is not None:
            self.admission.sign_out(user)

    def find(self, sid: str) -> Connection | None:
        """The connection, if it is alive or has something left to say. Being asked for, it is settled."""
        connection = self.connections.get(sid)
        if connection is not None:
            self.settle(sid)
        return connection

    def judge(self, connection: Connection) -> bool:
        """Expire the connection now if it is due; whether it is still there."""
        self.deadlines.judge(connection)
        return connection.sid in self.connections

    async def shutdown(self, reason: Reason = Reason.SHUTDOWN) -> None:
        """Close everything, and wait a moment until the last has gone."""
        self._reserved.clear()
        for connection in list(self.connections.values()):
            connection.close(reason)
        if self.connections:
            self._empty = self._loop.create_future()
            try:
                async with asyncio.timeout(min(_FAREWELL, self.settings.timeouts.close)):
                    await self._empty
            except TimeoutError:
                if self.connections:  # the last may have left at this very moment
                    log.info("%d clients did not take their leave in time", len(self.connections))
        self.deadlines.stop()
