"""Numbering, acknowledgement and replay of one direction each, as data.

`Outbox` keeps what was sent until the other side says that it has it; `Inbox` counts what came and
knows when an ack is due. Frames carry no number: both sides count. `docs/protocol.md`, rules 2 to 4.
"""

from __future__ import annotations

from .packets import Wire

ACK_AFTER = 1.0  # seconds
ACK_FRAMES = 64
ACK_BYTES = 32_768


class ReplayError(ValueError):
    """The other side acknowledged, or asked for, what cannot be."""


class Outbox:
    """Frames sent and not yet acknowledged, oldest first. `size` is their length in all."""

    __slots__ = ("sent", "size", "_kept")

    def __init__(self) -> None:
        self.sent = 0
        self.size = 0
        self._kept: list[Wire] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def acked(self) -> int:
        """How many the other side has acknowledged."""
        return self.sent - len(self._kept)

    def add(self, frame: Wire) -> None:
        """Number the next frame and keep it."""
        self.sent += 1
        self.size += len(frame)
        self._kept.append(frame)

    def acknowledge(self, count: int) -> None:
        """The other side has the first `count` frames. `ReplayError` if that cannot be."""
        if not self.acked <= count <= self.sent:
            raise ReplayError("acknowledges frames that were never sent, or takes back an ack")
        done = count - self.acked
        self.size -= sum(map(len, self._kept[:done]))
        del self._kept[:done]

    def replay(self) -> tuple[Wire, ...]:
        """What the other side may not have, in order. Call `acknowledge` first."""
        return tuple(self._kept)


class Inbox:
    """Counts the numbered frames that came. `ack_at` is when an ack is due, or None."""

    __slots__ = ("received", "ack_at", "_acked", "_bytes")

    def __init__(self) -> None:
        self.received = 0
        self.ack_at: float | None = None
        self._acked = 0
        self._bytes = 0

    def add(self, size: int, now: float) -> bool:
        """One more frame of `size`; True if the ack should be sent right away."""
        self.received += 1
        self._bytes += size
        if self.ack_at is None:
            self.ack_at = now + ACK_AFTER
        return self.received - self._acked >= ACK_FRAMES or self._bytes >= ACK_BYTES

    def acknowledged(self) -> int:
        """The count to send now; nothing is due after it."""
        self._acked = self.received
        self._bytes = 0
        self.ack_at = None
        return self.received
