"""Contract 1: what a transport promises to a connection, and the polling transport without HTTP.

A transport moves packets. It does not know which of them are legal, and keeps no message queue: the
connection does both. A wire (`gateway/wires/`) turns bytes into calls of a transport, and
implements what it writes. `MemoryTransport` is the simplest complete one; `tests/contract/` holds
what all of them must do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol

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
from .protocol.payloads import decode_in_steps, encode_payload
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


Respond = Callable[[str], None]

# What a client may POST. Known before the first packet is delivered, so that a bad payload is
# refused as a whole.
_FROM_POLLING = frozenset((CLOSE, PONG, MESSAGE))


class PollingTransport(Transport):
    """HTTP long-polling, without the HTTP.

    A wire calls `poll` for a GET, `post` for a POST. An answer counts as delivered when the next GET
    arrives, because a client sends that only after it has got the last answer; until then
    `undelivered` brings the packets back.

    Browsers send a request again by themselves when its connection was cut before the answer, and
    some proxies do. One with the same `once` as the last is that one again: a POST is taken once, and
    a GET gets the same answer. Without `once` (stock clients) nobody can tell.
    """

    name = POLLING
    coalesces = True  # a GET is answered once

    def __init__(self, owner: Owner, batch: int | None = None) -> None:
        self.owner = owner
        self.batch = batch
        self._respond: Respond | None = None
        self._answered: Respond | None = None
        self._in_flight: list[Wire] = []
        self._get: str | None = None
        self._repeated = False
        self._posting = False
        self._post: str | None = None
        self._taken: str | None = None
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

    def poll(self, respond: Respond, once: str | None = None) -> None:
        """A GET arrived: what was answered to the last one has been delivered.

        `respond` is called once, at once or later, with the body of the answer. Raises `Overlap`
        while another GET is waiting; the connection is over then, and says so to the waiting one.
        """
        again = once is not None and once == self._get
        if self._respond is not None:
            if not (again or self._repeated):
                self.owner.lost(self, Reason.TRANSPORT_ERROR)
                raise Overlap("a second GET while one is waiting")
            self.noop()  # the one that waits has most likely gone
        packets, self._in_flight = self._in_flight if again else [], []
        self._get, self._repeated = once, again
        self._respond = respond
        if packets:
            self.write(packets)
        else:
            self.owner.ready(self)

    def abandon(self, respond: Respond) -> bool:
        """The waiting GET is gone before it was answered. False if it had been answered."""
        if self._respond is not respond:
            return False
        self._respond = None
        return True

    def undelivered(self, respond: Respond) -> None:
        """This answer could not be written: its packets go to the front of the queue."""
        if respond is not self._answered:
            return  # they have been asked for again already
        packets, self._in_flight = self._in_flight, []
        if not self._closed:
            self.owner.returned(self, packets)

    def begin_post(self, once: str | None = None) -> bool:
        """A POST arrived; its body may still be coming. Raises `Overlap` if there is another.

        False if it was taken before: then it is to be answered as it was, and nothing more.
        """
        if once is not None and once == self._taken:
            return False
        if self._posting:
            if once is None or once != self._post:
                self.owner.lost(self, Reason.TRANSPORT_ERROR)
            raise Overlap("a second POST while one is being read")
        self._posting = True
        self._post = once
        return True

    def end_post(self) -> None:
        """The POST that `begin_post` announced is over, whatever became of it."""
        self._posting = False

    def post(self, body: bytes) -> None:
        """The whole body of a POST. Raises `PacketError`; then none of it was delivered."""
        for _ in self.post_in_steps(body):
            pass

    def post_in_steps(self, body: bytes) -> Iterator[None]:
        """The same in small steps, because a body may hold very many packets: exhaust it.

        Also raises `PacketError` if the connection leaves polling between two steps.
        """
        self._check_open()
        packets: list[tuple[PacketType, str | bytes]] = []
        try:
            for some in _read_post(body):
                packets += some
                yield
        except PacketError:
            self.owner.lost(self, Reason.PARSE_ERROR)
            raise
        received = self.owner.received
        for start in range(0, len(packets), _STEP):
            self._check_open()
            for kind, data in packets[start : start + _STEP]:
                received(self, kind, data)
            yield
        self._taken = self._post

    def _check_open(self) -> None:
        if self._closed:
            raise PacketError("the connection has left polling")

    def noop(self) -> None:
        """Answer the waiting GET, if there is one, with nothing to read."""
        if self._respond is not None:
            self.write([NOOP_WIRE])
            self._in_flight = []  # nobody would miss it

    def close(self, reason: Reason) -> None:
        """A waiting GET is told: `6` if the client wants to go, `1` if we do."""
        self._closed = True
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
