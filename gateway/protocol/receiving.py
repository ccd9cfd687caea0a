"""What comes from one client: how much of it, when an ack is due, and messages out of their parts.

`docs/protocol.md`, rules 2, 3 and 9. Knows nothing of connections or of what a frame means.
"""

from __future__ import annotations

from .frames import FrameError

ACK_AFTER = 1.0  # seconds
ACK_FRAMES = 64
ACK_BYTES = 32_768


class ReplayError(ValueError):
    """The other side acknowledged, or asked for, what cannot be."""


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


class Assembly:
    """The parts of one message that have come. `size` is their length in all, in bytes."""

    __slots__ = ("size", "_parts")

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[str | bytes] = []

    def add(self, part: str | bytes, size: int) -> None:
        """One part more, of so many bytes. `FrameError` if some are text and some are bytes."""
        if self._parts and isinstance(part, str) is not isinstance(self._parts[0], str):
            raise FrameError("a message is text in one part and binary in another")
        self._parts.append(part)
        self.size += size

    @property
    def count(self) -> int:
        """How many have come."""
        return len(self._parts)

    def message(self) -> str | bytes:
        """All parts together."""
        if isinstance(self._parts[0], str):
            return "".join(map(str, self._parts))
        return b"".join(part for part in self._parts if isinstance(part, bytes))
