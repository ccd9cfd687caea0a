"""Calls the application for one channel: one call at a time, in order, and bounded.

A call that returns None is made directly, without a task; only when one returns an awaitable does a
task run, until nothing is left. Errors of the application are logged and end nothing but the call.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger("gateway.application")

Call = Callable[..., Awaitable[None] | None]

_tasks: set[asyncio.Task[None]] = set()

_TURN = 0.002  # s: calls that wait for nothing let the rest of the loop have its turn


class Pool:
    """What several mailboxes hold together, in bytes: what waits, and what the application is at work with.

    `has_room` is called when it is not full any more.
    """

    __slots__ = ("size", "limit", "_has_room")

    def __init__(self, limit: int, has_room: Callable[[], None]) -> None:
        self.size = 0
        self.limit = limit
        self._has_room = has_room

    @property
    def is_full(self) -> bool:
        """Whether their owner should not read."""
        return self.size > self.limit

    def give_back(self, size: int) -> None:
        """So many bytes less."""
        before = self.size
        self.size -= size
        if self.size <= self.limit < before:
            self._has_room()


class Mailbox:
    """`full` and `drained` tell the owner when to stop reading, and when to go on: at `low` bytes, by default
    half of `max_bytes`, and half of `max_calls`.

    A batch that is already read is always taken, so the bounds may be overshot by one payload.
    """

    __slots__ = (
        "_max_calls",
        "_max_bytes",
        "_low",
        "_pool",
        "_at_work",
        "_full",
        "_drained",
        "_waiting",
        "size",
        "_running",
        "_is_full",
        "_task",
        "_gave_up",
    )

    def __init__(
        self,
        max_calls: int,
        max_bytes: int,
        full: Callable[[], None],
        drained: Callable[[], None],
        *,
        low: int | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.size = 0  # bytes that wait
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._low = max_bytes // 2 if low is None else low
        self._pool = pool
        self._at_work = 0  # bytes of the call that has not ended
        self._full = full
        self._drained = drained
        self._waiting: deque[tuple[Call, tuple[Any, ...], int]] = deque()
        self._running = False
        self._is_full = False
        self._task: asyncio.Task[None] | None = None
        self._gave_up = False

    @property
    def is_full(self) -> bool:
        """Whether the owner should not read."""
        return self._is_full

    @property
    def is_running(self) -> bool:
        """Whether a call has not ended."""
        return self._running

    def post(self, call: Call, *args: Any, size: int = 0) -> None:
        """Make the call now, or after those that wait."""
        if self._pool is not None:
            self._pool.size += size
        if self._running:
            self._waiting.append((call, args, size))
            self.size += size
            self._check_full()
            return
        self._running = True
        awaitable = self._begin(call, args, size)
        if awaitable is None:
            self._next()
        else:
            self._spawn(awaitable)

    def finish(self, call: Call, *args: Any, limit: float) -> None:
        """Post the last call. Those before it are given up after `limit` seconds."""
        self.post(call, *args)
        if self._waiting:
            asyncio.get_running_loop().call_later(limit, self._give_up, self._waiting[-1])

    def _give_up(self, last: tuple[Call, tuple[Any, ...], int]) -> None:
        if last not in self._waiting:
            return
        log.warning("%s waits no longer for the handlers before it", _name(last[0]))
        self._waiting.clear()
        self._waiting.append(last)
        self._give_back(self.size)
        self.size = 0
        self._gave_up = True
        if self._task is not None:
            self._task.cancel()

    def _next(self) -> None:
        """Make the calls that wait, until one needs to be awaited."""
        while self._waiting:
            awaitable = self._take()
            if awaitable is not None:
                self._spawn(awaitable)
                return
        self._running = False

    def _spawn(self, awaitable: Awaitable[None]) -> None:
        self._task = task = asyncio.ensure_future(self._drain(awaitable))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)

    async def _drain(self, awaitable: Awaitable[None] | None) -> None:
        now = asyncio.get_running_loop().time
        until = now() + _TURN
        while True:
            try:
                if awaitable is not None:
                    await _finish(awaitable)
                if now() >= until:
                    await asyncio.sleep(0)
                    until = now() + _TURN
            except asyncio.CancelledError:
                self._check_cancelled()
            self._ended()
            if not self._waiting:
                self._running = False
                self._task = None
                return
            awaitable = self._take()

    def _check_cancelled(self) -> None:
        """Go on if a handler has been given up, or was itself waiting for what was cancelled."""
        task = self._task
        assert task is not None
        if not task.cancelling():
            log.error("a handler ended with CancelledError")
        elif self._gave_up:
            self._gave_up = False
            task.uncancel()
        else:
            raise asyncio.CancelledError

    def _take(self) -> Awaitable[None] | None:
        call, args, size = self._waiting.popleft()
        self.size -= size
        self._check_drained()
        return self._begin(call, args, size)

    def _begin(self, call: Call, args: tuple[Any, ...], size: int) -> Awaitable[None] | None:
        self._at_work = size
        awaitable = _start(call, args)
        if awaitable is None:
            self._ended()
        return awaitable

    def _ended(self) -> None:
        size, self._at_work = self._at_work, 0
        self._give_back(size)

    def _give_back(self, size: int) -> None:
        if size and self._pool is not None:
            self._pool.give_back(size)

    def _check_full(self) -> None:
        if self._is_full:
            return
        if len(self._waiting) >= self._max_calls or self.size >= self._max_bytes:
            self._is_full = True
            self._full()

    def _check_drained(self) -> None:
        # Half-empty before reading goes on, so that reading is not switched at every message.
        if not self._is_full:
            return
        if len(self._waiting) <= self._max_calls // 2 and self.size <= self._low:
            self._is_full = False
            self._drained()


def _start(call: Call, args: tuple[Any, ...]) -> Awaitable[None] | None:
    try:
        return call(*args)
    except (Exception, asyncio.CancelledError):  # the application's own code: anything may come out of it
        log.exception("%s failed", _name(call))
        return None


async def _finish(awaitable: Awaitable[None]) -> None:
    try:
        await awaitable
    except Exception:  # the application's own code: anything may come out of it
        log.exception("%s failed", _name(awaitable))


def _name(call: object) -> str:
    return getattr(call, "__qualname__", None) or type(call).__name__
