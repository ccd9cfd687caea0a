"""Contract 1: what a transport promises to a connection, and the polling transport without HTTP.

A transport moves packets. It does not know which of them are legal, and keeps no message queue: the
connection does both. A wire (`gateway/wires/`) turns bytes into calls of a transport, and
implements what it writes. `MemoryTransport` is the simplest complete one; `tests/contract/` holds
what all of them must do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, Protocol

from .protocol.handshake import POLLING, WEBSOCKET
from .protocol.packets import (
    CLOSE,
    CLOSE_WIRE,
    MESSAGE,
    NOOP_WIRE,
    PONG,
    PacketError,
    PacketType,
    Wire,
    decode_polling,
)
from .protocol.payloads import count_fitting, decode_in_steps, encode_payload
from .protocol.reasons import Reason


class Owner(Protocol):
    """What a transport calls. All calls come from the event loop's thread, in order."""

    def received(self, transport: Transport, kind: PacketType, data: str | bytes) -> None:
        """One packet arrived."""

    def ready(self, transport: Transport) -> None:
        """`transport.writable` has become true: it can take packets."""

    def returned(self, transport: Transport, packets: list[Wire]) -> None:
        """These packets were written but never reached the client; they go first again."""

    def lost(self, transport: Transport, reason: Reason) -> None:
        """The transport is gone, or the peer broke its rules. Called at most once."""


class Transport(ABC):
    """Promises, to its `owner`:

    - packets arrive in order, each once; nothing arrives after `lost`;
    - `write` takes a whole batch, never blocks, and is called only while `writable`;
    - `close` lets what was written go out first; `abort` does not wait for a peer that reads nothing;
    - `busy_since` is the monotonic time since which a write is stuck, or None.
    """

    name: str
    owner: Owner
    coalesces = False  # True: gather what is sent within one turn of the loop into one write
    batch: int | None = None  # packets in one write at the most
    room: int | None = None  # bytes of the payload that one write makes, or one packet

    @property
    @abstractmethod
    def writable(self) -> bool:
        """Whether `write` may be called now."""

    @abstractmethod
    def write(self, packets: list[Wire]) -> None:
        """Send these packets, in this order."""

    @abstractmethod
    def close(self, reason: Reason) -> None:
        """End it after what was written. A no-op when it is closed."""

    def abort(self) -> None:
        """End it at once. Where nothing can be stuck, that is `close`."""
        self.close(Reason.SERVER_CLOSE)

    def pause(self) -> None:
        """Stop reading: the application is behind. What is under way may still arrive."""

    def resume(self) -> None:
        """Read again."""

    @property
    def busy_since(self) -> float | None:
        """Since when a write is stuck."""
        return None


class Overlap(Exception):
    """Two GETs, or two POSTs, of one polling client at the same time.

    Source: Engine.IO protocol v4, "HTTP long-polling": such a client is closed.
    """


class WrongNumber(Exception):
    """A numbered request that is neither the next nor a repetition. It is refused, and ends nothing."""


class Turn(Enum):
    """What is to be done with a POST."""

    NOW = "read its body and deliver it"
    LATER = "wait: earlier ones are missing"
    TAKEN = "answer it as before: it was delivered"
    STALE = "refuse it: it was sent again meanwhile, or the connection has left polling"


class Post:
    """One POST of a polling client. `moved()` is called when `turn` has changed by itself."""

    __slots__ = ("number", "turn", "moved", "delivering")

    def __init__(self, number: int | None, turn: Turn) -> None:
        self.number = number
        self.turn = turn
        self.moved: Callable[[], None] = _nothing
        self.delivering = False

    def move(self, turn: Turn) -> None:
        """It is another's turn, or its own."""
        self.turn = turn
        self.moved()


def _nothing() -> None:
    pass


AHEAD: Final = 8  # POSTs under way at once: four or five, and some that a proxy has sent again
BESIDE: Final = 3  # POSTs without a number beside them: a pong, its repetition, and a beacon

Respond = Callable[[str], None]

# What a client may POST. Known before the first packet is delivered, so that a bad payload is
# refused as a whole.
_FROM_POLLING = frozenset((CLOSE, PONG, MESSAGE))


class PollingTransport(Transport):
    """HTTP long-polling, without the HTTP.

    A wire calls `poll` for a GET, `begin_post`, `post` and `end_post` for a POST. An answer counts as
    delivered when the next GET arrives, because a client sends that only after it has got the last
    answer; until then `undelivered` brings the packets back.

    Answers get lost, and browsers and proxies send requests again by themselves. Our own client numbers its
    requests, so that one that comes again is known: a GET gets the same answer, a POST is delivered once,
    and POSTs may overlap; see `docs/protocol.md`, "Requests". Without numbers (stock clients) nobody knows.
    """

    name = POLLING
    coalesces = True  # a GET is answered once

    def __init__(self, owner: Owner, batch: int | None = None) -> None:
        self.owner = owner
        self.batch = batch
        self.room = None
        self._respond: Respond | None = None
        self._answered: Respond | None = None
        self._in_flight: list[Wire] = []
        self._get: int | None = None
        self._post: Post | None = None
        self._early: dict[int, Post] = {}
        self._beside: list[Post] = []
        self._taken = 0
        self._parts = 0  # packets that were taken of the POST after `_taken`
        self._closed = False

    @property
    def writable(self) -> bool:
        return self._respond is not None

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    def write(self, packets: list[Wire]) -> None:
        respond = self._respond
        assert respond is not None, "write() while no GET is waiting"
        self._respond = None
        self._answered = respond
        self._in_flight = packets
        respond(encode_payload(packets))

    # -- GETs --------------------------------------------------------------------------------------

    def poll(self, respond: Respond, number: int | None = None, room: int | None = None) -> None:
        """A GET arrived: what was answered to the last one has been delivered, unless this is that one again.

        `respond` is called once, at once or later, with the body of the answer, which has no more than
        `room` bytes, or one packet. Raises `WrongNumber`, or `Overlap` while another GET is waiting; the
        connection is over then, and says so to the waiting one.
        """
        if number is None:
            if self._respond is not None:
                self.owner.lost(self, Reason.TRANSPORT_ERROR)
                raise Overlap("a second GET while one is waiting")
        elif number == self._get:
            self.room = room
            self._poll_again(respond)
            return
        elif number != (self._get or 0) + 1:
            raise WrongNumber("the number of a GET is that of the last one, or the next")
        self.noop()  # a client that goes on waits for nothing
        self.room = room
        self._get = number
        self._in_flight = []
        self._answered = None
        self._respond = respond
        self.owner.ready(self)

    def _poll_again(self, respond: Respond) -> None:
        """The same number, the same answer, whichever of the two requests the client listens to."""
        self.noop()
        if self._answered is None:  # the last one left before it was answered
            self._respond = respond
            self.owner.ready(self)
            return
        packets = self._in_flight
        if self.room is not None:
            count = count_fitting(packets, self.room)
            if count < len(packets):
                self.owner.returned(self, packets[count:])
                packets = packets[:count]
        self._respond = respond
        self.write(packets or [NOOP_WIRE])

    def abandon(self, respond: Respond) -> bool:
        """The waiting GET is gone before it was answered. False if it had been answered."""
        if self._respond is not respond:
            return False
        self._respond = None
        return True

    def undelivered(self, respond: Respond) -> None:
        """This answer could not be written: its packets go to the front of the queue.

        Those of a numbered GET stay: it will be sent again, or the next one says that it did arrive.
        """
        if respond is not self._answered:
            return  # they have been asked for again already
        packets: list[Wire] = []
        if self._get is None:
            packets, self._in_flight = self._in_flight, []
        if not self._closed:
            self.owner.returned(self, packets)

    def noop(self) -> None:
        """Answer the waiting GET, if there is one, with nothing to read."""
        if self._respond is not None:
            self.write([NOOP_WIRE])
            self._in_flight = []  # nobody would miss it

    # -- POSTs -------------------------------------------------------------------------------------

    def begin_post(self, number: int | None = None) -> Post:
        """A POST arrived; its `turn` says what to do with its body, which may still be coming.

        Whatever that is, `end_post` follows. Raises `WrongNumber`, or `Overlap` if there is another and the
        client numbers none of its requests; the connection is over then. If it does, one without a number is
        a pong, or the beacon of a page that goes and has cut all others: it waits for none of them.
        """
        if number is None and self._get is not None:
            if len(self._beside) >= BESIDE:
                raise WrongNumber(f"more than {BESIDE} POSTs without a number beside those with one")
            post = Post(None, Turn.NOW)
            self._beside.append(post)
            return post
        if number is None:
            if self._post is not None or self._early:
                self.owner.lost(self, Reason.TRANSPORT_ERROR)
                raise Overlap("a second POST while one is being read")
            self._post = Post(None, Turn.NOW)
            return self._post
        if number <= self._taken:
            return Post(number, Turn.TAKEN)
        if number > self._taken + AHEAD:
            raise WrongNumber(f"more than {AHEAD} POSTs ahead of the last one that was taken")
        return self._begin_numbered(number)

    def _begin_numbered(self, number: int) -> Post:
        current = self._post
        if number != self._taken + 1 or (current is not None and current.delivering):
            post = Post(number, Turn.LATER)
            older = self._early.pop(number, None)
            self._early[number] = post
        else:
            post = Post(number, Turn.NOW)
            older, self._post = current, post
        if older is not None:
            older.move(Turn.STALE)  # its body has stopped coming, most likely
        return post

    def end_post(self, post: Post | None = None) -> None:
        """The POST that `begin_post` announced is over, whatever became of it."""
        if post is None or post is self._post:
            self._post = None
            self._next_turn()
        elif post in self._beside:
            self._beside.remove(post)
        elif post.number is not None and self._early.get(post.number) is post:
            del self._early[post.number]

    def _next_turn(self) -> None:
        again = self._early.pop(self._taken, None)  # sent again while it was being delivered
        if again is not None:
            again.move(Turn.TAKEN)
        following = self._early.pop(self._taken + 1, None)
        if following is not None:
            self._post = following
            following.move(Turn.NOW)

    def post(self, body: bytes, post: Post | None = None, skip: int = 0, more: bool = False) -> None:
        """The whole body of a POST. Raises `PacketError`; then none of it was delivered."""
        for _ in self.post_in_steps(body, post, skip, more):
            pass

    def post_in_steps(
        self, body: bytes, post: Post | None = None, skip: int = 0, more: bool = False
    ) -> Iterator[None]:
        """The same in small steps, because a body may hold very many packets: exhaust it.

        Of a numbered POST it may be a part: those after the first `skip` packets, and `more` follow; what has
        been taken of it before is not delivered again. Also raises `PacketError` if the connection leaves
        polling between two steps, and `WrongNumber` if packets before these are missing.
        """
        self._check_open()
        numbered = post is not None and post.number is not None
        if post is not None:
            post.delivering = True
        packets: list[tuple[PacketType, str | bytes]] = []
        try:
            for some in _read_post(body):
                packets += some
                yield
        except PacketError:
            self.owner.lost(self, Reason.PARSE_ERROR)
            raise
        end = skip + len(packets)
        if numbered:
            if skip > self._parts:
                raise WrongNumber("packets of this POST are missing that come before these")
            del packets[: self._parts - skip]
        received = self.owner.received
        for start in range(0, len(packets), _STEP):
            self._check_open()
            for kind, data in packets[start : start + _STEP]:
                received(self, kind, data)
            yield
        if not numbered:
            return
        assert post is not None
        assert post.number is not None
        self._taken, self._parts = (post.number - 1, max(end, self._parts)) if more else (post.number, 0)

    def _check_open(self) -> None:
        if self._closed:
            raise PacketError("the connection has left polling")

    def close(self, reason: Reason) -> None:
        """A waiting GET is told: `6` if the client wants to go, `1` if we do."""
        self._closed = True
        early, self._early = self._early, {}
        for post in early.values():
            post.move(Turn.STALE)
        if self._respond is not None:
            self.write([NOOP_WIRE if reason is Reason.CLIENT_CLOSE else CLOSE_WIRE])


_STEP = 100  # packets


def _read_post(body: bytes) -> Iterator[list[tuple[PacketType, str | bytes]]]:
    for packets in decode_in_steps(body, _STEP):
        if not _FROM_POLLING.issuperset([kind for kind, _ in packets]):
            raise PacketError("packet type is not for a client to send here")
        yield packets


def receive_frame(transport: Transport, data: str | bytes) -> None:
    """Hand one websocket frame's packet to the owner, or tell it that there was none.

    Stock clients with `forceBase64` send binary messages as text here, too.
    """
    if not isinstance(data, str):
        transport.owner.received(transport, MESSAGE, data)
        return
    try:
        kind, content = decode_polling(data)
    except PacketError:
        transport.owner.lost(transport, Reason.PARSE_ERROR)
        transport.close(Reason.PARSE_ERROR)
        return
    transport.owner.received(transport, kind, content)


class MemoryTransport(Transport):
    """A websocket without a network: tests read `sent` and call `feed`, `cut`, `block`."""

    name = WEBSOCKET

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.sent: list[Wire] = []
        self.closed_with: Reason | None = None
        self.paused = False
        self.blocked_since: float | None = None

    @property
    def writable(self) -> bool:
        return self.blocked_since is None and self.closed_with is None

    @property
    def busy_since(self) -> float | None:
        return self.blocked_since

    def write(self, packets: list[Wire]) -> None:
        assert self.writable, "write() while not writable"
        self.sent += packets

    def close(self, reason: Reason) -> None:
        self.closed_with = self.closed_with or reason

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def feed(self, data: str | bytes) -> None:
        """A frame arrives from the client."""
        receive_frame(self, data)

    def cut(self) -> None:
        """The network closes it."""
        self.closed_with = self.closed_with or Reason.TRANSPORT_CLOSE
        self.owner.lost(self, Reason.TRANSPORT_CLOSE)

    def block(self, now: float) -> None:
        """The peer stops reading: writes are stuck."""
        self.blocked_since = now

    def unblock(self) -> None:
        """The peer reads again."""
        self.blocked_since = None
        self.owner.ready(self)
