"""What is to be sent to one client: whose turn it is, what is under way, and what goes again after a loss.

Each channel has a lane; the lanes take turns, so that no channel waits for all that another one sends. A
frame gets its number when it is first written to a connection, and is kept until the client says that it has
it. Frames carry no number: both sides count. `docs/protocol.md`, rules 2 to 4 and 9. Knows no connections.
"""

from __future__ import annotations

from collections import deque
from itertools import chain

from . import frames
from .packets import Wire
from .payloads import SEPARATOR
from .receiving import ReplayError

PART_BYTES = 32_768  # of a frame and its packet type, on the wire that needs most for it
_HEAD = 4  # bytes before the data of a frame at the most
_TEXT = PART_BYTES - 1 - _HEAD  # bytes of UTF-8
_BYTES = (PART_BYTES - 1) // 4 * 3 - _HEAD  # polling carries them as base64
SMALL_TEXT = _TEXT // 4  # characters that fit whatever they are: four bytes at the most, two if escaped
SMALL_BYTES = _BYTES

# Under way without an ack. More would only wait in the buffers between, before whatever another channel says;
# at 600 ms of round trip it is 870 kB a second.
UNDER_WAY = 524_288  # bytes
UNDER_WAY_FRAMES = 8_192
_TURN = 16_384  # bytes of one lane, or one frame, before it is the next one's turn
_GAP = 24  # bytes that a `D` frame counts as until it is made


def text_parts(prefix: str, text: str) -> list[Wire]:
    """The frames of a text message; `prefix` is the `channel_text`. Cut at characters."""
    parts: list[Wire] = []
    at = 0
    while True:
        piece = _piece(text, at)
        at += len(piece)
        if at >= len(text):
            parts.append(frames.text_frame(prefix, piece))
            return parts
        parts.append(frames.text_part(prefix, piece))


def _piece(text: str, at: int) -> str:
    """As much of `text` from `at` as fits into a frame, or a little less."""
    limit = _TEXT
    piece = text[at : at + limit]
    if SEPARATOR in piece:
        limit //= 2
        piece = piece[:limit]
    if piece.isascii():
        return piece
    encoded = piece.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return piece
    return piece[: len(encoded[:limit].decode("utf-8", "ignore"))]


def binary_parts(prefix: bytes, data: bytes) -> list[Wire]:
    """The frames of a binary message; `prefix` is the `binary_prefix`."""
    last = max(0, (len(data) - 1) // _BYTES * _BYTES)
    head = frames.PART + prefix
    parts: list[Wire] = [head + data[at : at + _BYTES] for at in range(0, last, _BYTES)]
    parts.append(prefix + data[last:])
    return parts


class _Lane:
    """What one channel has waiting.

    `first` goes before `gap`, which stands for that many messages that were dropped, and that before `rest`.
    `midway`: the next frame goes on with a message that has been begun. A `held` lane has no turn.
    """

    __slots__ = ("number", "first", "gap", "rest", "size", "count", "midway", "held", "_mark")

    def __init__(self, number: int) -> None:
        self.number = number
        self.first: deque[Wire] = deque()
        self.gap = 0
        self.rest: deque[Wire] = deque()
        self.size = 0
        self.count = 0
        self.midway = False
        self.held = False
        self._mark = len(frames.channel_text(number))

    def pop(self) -> Wire:
        self.count -= 1
        if self.gap and not self.first:
            dropped, self.gap = self.gap, 0
            self.size -= _GAP
            return frames.encode(frames.Dropped(self.number, dropped))
        wire = (self.first or self.rest).popleft()
        self.size -= len(wire)
        self.midway = self._has_more(wire)
        return wire

    def drop(self) -> bool:
        """Drop the oldest whole message of which nothing has been written. False if there is none."""
        rest = self.rest
        while rest and (self.midway_at_rest or _is_control(rest[0])):
            self.first.append(rest.popleft())
        if not rest:
            return False
        more = True
        while more:
            wire = rest.popleft()
            self.size -= len(wire)
            self.count -= 1
            more = self._has_more(wire)
        self.note_gap()
        return True

    def note_gap(self) -> None:
        """One message more was dropped here."""
        if not self.gap:
            self.size += _GAP
            self.count += 1
        self.gap += 1

    @property
    def midway_at_rest(self) -> bool:
        """Whether `rest` begins inside a message that has been begun."""
        return self._has_more(self.first[-1]) if self.first else self.midway

    @property
    def excess(self) -> int:
        """Bytes beyond its next message."""
        size = 0
        for wire in chain(self.first, self.rest):
            size += len(wire)
            if not (_is_control(wire) or self._has_more(wire)):
                break
        return self.size - size

    def _has_more(self, wire: Wire) -> bool:
        if isinstance(wire, str):
            return wire[self._mark] in ".," and not _is_control(wire)
        return wire[0] == 0


def _is_control(wire: Wire) -> bool:
    return isinstance(wire, str) and "A" <= wire[0] <= "Z"


class Sender:
    """`sent` counts the frames that have a number. `size` in bytes and `count` are of all that is here.

    `under_way` bounds the bytes, and `frames_under_way` the frames, that are written and not acknowledged.
    """

    __slots__ = (
        "sent",
        "size",
        "count",
        "_under_way",
        "_frames_under_way",
        "_kept",
        "_kept_size",
        "_next",
        "_urgent",
        "_lanes",
        "_turns",
    )

    def __init__(self, under_way: int = UNDER_WAY, frames_under_way: int = UNDER_WAY_FRAMES) -> None:
        self.sent = 0
        self.size = 0
        self.count = 0
        self._under_way = max(1, under_way)
        self._frames_under_way = max(1, frames_under_way)
        self._kept: list[Wire] = []  # numbered and not acknowledged, oldest first
        self._kept_size = 0
        self._next = 0  # in `_kept`: the first that this connection has not carried
        self._urgent: list[Wire] = []
        self._lanes: dict[int, _Lane] = {}
        self._turns: list[_Lane] = []

    # -- what is to be sent --------------------------------------------------------------------------

    @property
    def acked(self) -> int:
        """How many the client has acknowledged."""
        return self.sent - len(self._kept)

    @property
    def is_idle(self) -> bool:
        """Whether a frame may be written as it comes, because nothing waits: with `write`."""
        kept = len(self._kept)
        return (
            not self._turns
            and self._next == kept
            and self._kept_size < self._under_way
            and kept < self._frames_under_way
            and not self._urgent
        )

    @property
    def is_waiting(self) -> bool:
        """Whether there is anything that no connection has carried, and that has a turn."""
        return bool(self._turns or self._urgent)

    def waits(self, channel: int) -> bool:
        """Whether anything of this channel has not been written."""
        return channel in self._lanes

    def write(self, wire: Wire) -> None:
        """Number a frame that is written now."""
        size = len(wire)
        self.sent += 1
        self.size += size
        self.count += 1
        self._kept.append(wire)
        self._kept_size += size
        self._next += 1

    def queue(self, channel: int, *wires: Wire, hold: bool = False) -> None:
        """One message, or one other frame. `hold`: until `release`, with all that comes after it."""
        lane = self._lanes.get(channel)
        if lane is None:
            lane = self._lanes[channel] = _Lane(channel)
            lane.held = hold
            if not hold:
                self._turns.append(lane)
        size = sum(map(len, wires))
        lane.rest.extend(wires)
        lane.size += size
        lane.count += len(wires)
        self.size += size
        self.count += len(wires)

    def release(self, channel: int, wire: Wire) -> None:
        """What was held may go, after this frame."""
        lane = self._lanes.get(channel)
        if lane is None:
            self.queue(channel, wire)
            return
        lane.held = False
        lane.first.appendleft(wire)
        lane.size += len(wire)
        lane.count += 1
        self.size += len(wire)
        self.count += 1
        self._turns.append(lane)

    def queue_first(self, wire: Wire) -> None:
        """A frame that waits for none of the lanes."""
        self._urgent.append(wire)
        self.size += len(wire)
        self.count += 1

    # -- what is not to be sent after all ------------------------------------------------------------

    def drop_oldest(self, channel: int) -> bool:
        """Drop the oldest message of a channel that no connection has carried any of; a `D` stands there.

        False if there is none.
        """
        lane = self._lanes.get(channel)
        if lane is None:
            return False
        with _Counted(self, lane):
            return lane.drop()

    def note_dropped(self, channel: int, *, hold: bool = False) -> None:
        """A message was dropped before it was queued: behind all that is."""
        if channel not in self._lanes:
            self.queue(channel, hold=hold)
        lane = self._lanes[channel]
        with _Counted(self, lane):
            lane.first.extend(lane.rest)
            lane.rest.clear()
            lane.note_gap()

    def discard(self, channel: int) -> None:
        """Forget all that waits of a channel: nobody wants it any more."""
        lane = self._lanes.pop(channel, None)
        if lane is not None:
            self.size -= lane.size
            self.count -= lane.count
            if not lane.held:
                self._turns.remove(lane)

    def discard_messages(self, channel: int) -> None:
        """Forget the messages of a channel, and keep its other frames."""
        lane = self._lanes.get(channel)
        if lane is None:
            return
        others = [wire for wire in chain(lane.first, lane.rest) if _is_control(wire)]
        held = lane.held
        self.discard(channel)
        if others:
            self.queue(channel, *others, hold=held)

    def excess(self, channel: int) -> int:
        """Bytes of a channel that wait behind its next message."""
        lane = self._lanes.get(channel)
        return 0 if lane is None else lane.excess

    # -- connections ---------------------------------------------------------------------------------

    def take(self, budget: int) -> list[Wire]:
        """What to write next, in order: up to `budget` bytes, or less than a frame more."""
        batch: list[Wire] = []
        kept = self._kept
        while self._next < len(kept) and budget > 0:
            wire = kept[self._next]
            self._next += 1
            budget -= len(wire)
            batch.append(wire)
        while budget > 0 and (self._urgent or self._turns) and self._is_open():
            budget -= self._take_urgent(batch) if self._urgent else self._visit(budget, batch)
        return batch

    def _is_open(self) -> bool:
        return self._kept_size < self._under_way and len(self._kept) < self._frames_under_way

    def _take_urgent(self, batch: list[Wire]) -> int:
        wire = self._urgent.pop(0)
        self._move(wire, len(wire), batch)
        return len(wire)

    def _visit(self, budget: int, batch: list[Wire]) -> int:
        """The lane whose turn it is; how many bytes it took."""
        lane = self._turns[0]
        limit = min(budget, _TURN)
        taken = 0
        while taken < limit and self._is_open():
            before = lane.size
            wire = lane.pop()
            self._move(wire, before - lane.size, batch)
            taken += len(wire)
            if not lane.count:
                del self._turns[0]
                del self._lanes[lane.number]
                return taken
        self._turns.append(self._turns.pop(0))
        return taken

    def _move(self, wire: Wire, counted: int, batch: list[Wire]) -> None:
        """From what waits to what is under way. It was `counted` as so many bytes."""
        self.size -= counted
        self.count -= 1
        self.write(wire)
        batch.append(wire)

    def acknowledge(self, count: int) -> None:
        """The client has the first `count` frames. `ReplayError` if that cannot be."""
        if not self.acked <= count <= self.sent:
            raise ReplayError("acknowledges frames that were never sent, or takes back an ack")
        done = count - self.acked
        size = sum(map(len, self._kept[:done]))
        del self._kept[:done]
        self._kept_size -= size
        self.size -= size
        self.count -= done
        self._next = max(0, self._next - done)

    def rewind(self) -> None:
        """A new connection: what is not acknowledged goes again, first. Call `acknowledge` before."""
        self._next = 0

    # -- the end, and from one process to the next -----------------------------------------------------

    def export(self) -> tuple[int, tuple[Wire, ...]]:
        """Number all that waits: `sent`, and every frame that is not acknowledged."""
        self.rest()
        return self.sent, tuple(self._kept)

    def rest(self) -> list[Wire]:
        """All that this connection has not carried, whatever is under way: the end comes next."""
        self._under_way = 2 * self.size + 1
        self._frames_under_way = self.count + 1
        return self.take(2 * self.size + 1)

    def restore(self, sent: int, kept: tuple[Wire, ...]) -> None:
        """Go on from what `export` gave."""
        self.sent = sent - len(kept)
        for wire in kept:
            self.write(wire)
        self._next = 0


class _Counted:
    """Carries over what changes in a lane to the sums."""

    __slots__ = ("_sender", "_lane", "_size", "_count")

    def __init__(self, sender: Sender, lane: _Lane) -> None:
        self._sender = sender
        self._lane = lane
        self._size = lane.size
        self._count = lane.count

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self._sender.size += self._lane.size - self._size
        self._sender.count += self._lane.count - self._count
