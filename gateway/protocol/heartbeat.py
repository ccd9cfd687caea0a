"""Ping and pong as data: when the next ping is due, and when silence means death.

Promise: a client that fell silent is expired between `interval + timeout` after it was last heard
and 0.2 s later. Only a pong counts as life: a client that sends but never answers is broken.
Source: Engine.IO protocol v4, "Heartbeat".
"""

from __future__ import annotations

# After a stall nobody is judged before what arrived meanwhile has been read.
SPARE = 1.0  # s


class Heartbeat:
    """Seconds in, decisions out. `deadline` is when it should be asked next."""

    __slots__ = ("interval", "timeout", "deadline", "_pinged")

    def __init__(self, interval: float, timeout: float, now: float) -> None:
        self.interval = interval
        self.timeout = timeout
        self.deadline = now + interval
        self._pinged = False

    def pong(self, now: float) -> None:
        """A pong arrived. One that nobody asked for changes nothing, and costs nothing."""
        if self._pinged:
            self._pinged = False
            self.deadline = now + self.interval

    def expired(self, now: float) -> bool:
        """Whether a pong is overdue."""
        return self._pinged and now >= self.deadline

    def ping_due(self, now: float) -> bool:
        """Whether a ping should be sent now; then the deadline is when its pong must have come."""
        if self._pinged or now < self.deadline:
            return False
        self._pinged = True
        # Counted from when the ping was due, so that a late tick does not make the silent live longer;
        # but most of the timeout is left to the living.
        self.deadline = now + self.timeout - min(now - self.deadline, self.timeout / 4)
        return True

    def spare(self, until: float) -> None:
        """Nobody is expired before `until`: the gateway was deaf, not the client silent."""
        if self._pinged and self.deadline < until:
            self.deadline = until
