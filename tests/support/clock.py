"""A world of its own for connections: time passes only when a test says so.

`VirtualLoop` is what `connection.Loop` asks for. It is as strict as the real heap: a connection is judged
only at the deadlines that it has told, so one that forgets to tell is caught here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from gateway.connection import Connection
from gateway.protocol.reasons import Reason


class VirtualLoop:
    """Begins at 1000 s. `turn` runs what was put off, `advance` lets time pass."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.forgotten: list[Connection] = []
        self._turn: list[Callable[[], None]] = []
        self._items: list[Connection] = []

    # What a connection needs (`connection.Loop`).

    def now(self) -> float:
        """Virtual seconds."""
        return self.time

    def soon(self, call: Callable[[], None]) -> None:
        """Call it at the next `turn`."""
        self._turn.append(call)

    def schedule(self, item: Connection) -> None:
        """Remember the deadline."""
        if item not in self._items:
            self._items.append(item)
        item.scheduled = min(item.scheduled, item.deadline)

    def gone(self, item: Connection) -> None:
        """Forget it, once."""
        assert item not in self.forgotten, "gone twice"
        self.forgotten.append(item)
        if item in self._items:
            self._items.remove(item)

    # What a test does.

    def turn(self) -> None:
        """One turn of the loop, and those that follow from it."""
        while self._turn:
            calls, self._turn = self._turn, []
            for call in calls:
                call()

    def advance(self, seconds: float) -> None:
        """Let time pass; every connection is judged exactly when it wants to be."""
        end = self.time + seconds
        self.turn()
        while True:
            due = min((item.scheduled for item in self._items), default=inf)
            if due > end:
                break
            self.time = max(self.time, due)
            self._judge()
            self.turn()
        self.time = end
        for item in self._items:
            assert item.deadline >= item.scheduled, "a deadline came closer and was not told"

    def stall(self, seconds: float) -> None:
        """The real loop was blocked for so long. What was due meanwhile is judged afterwards."""
        self.time += seconds
        for item in list(self._items):
            item.spare(self.time)
        self.advance(0)

    def _judge(self) -> None:
        for item in list(self._items):
            if item.scheduled <= self.time:
                item.scheduled = inf
                if item.deadline <= self.time:
                    item.judge(self.time)
                item.scheduled = min(item.scheduled, item.deadline)


class Recorder:
    """A listener that writes down what it is told, and insists on the order."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.reason: Reason | None = None

    def message(self, data: str | bytes) -> None:
        """One message."""
        assert self.reason is None, "a message after the end"
        self.messages.append(data)

    def closed(self, reason: Reason) -> None:
        """The end."""
        assert self.reason is None, "the end is told twice"
        self.reason = reason
