"""Contract 1: what every transport promises, and the promises that only polling makes.

`Peer` is the other end. A new transport adds a class that opens one, and its line in `PEERS`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from gateway.config import Ping, Settings, Timeouts
from gateway.protocol.handshake import Refused
from gateway.protocol.packets import MESSAGE, PacketType, Wire
from gateway.protocol.payloads import encode_payload
from gateway.protocol.reasons import Reason
from gateway.transports import (
    AHEAD,
    BESIDE,
    MemoryTransport,
    Overlap,
    PollingTransport,
    Transport,
    Turn,
    WrongNumber,
)
from gateway.wires.request import refusal
from gateway.wires.server import make_runner
from gateway.wires.websocket import WebSocketTransport
from tests.support.raw import BINARY, CLOSE, TEXT, Raw, frame, request, text, upgrade
from tests.support.witness import POLLING, Endpoint, serve

SETTINGS = Settings(ping=Ping(30.0, 30.0), timeouts=Timeouts(close=0.1, poll_hold=10.0, poll_grace=0.05))
BIG = "x" * 100_000


class Owner:
    """Writes down what a transport tells, and insists that nothing comes after the end."""

    def __init__(self) -> None:
        self.packets: list[str | bytes] = []
        self.returned_packets: list[list[Wire]] = []
        self.readies = 0
        self.lost_for: Reason | None = None
        self._changed = asyncio.Event()

    def received(self, transport: Transport, kind: PacketType, data: str | bytes) -> None:
        assert self.lost_for is None, "a packet after `lost`"
        assert kind is MESSAGE
        self.packets.append(data)
        self._changed.set()

    def ready(self, transport: Transport) -> None:
        assert transport.writable or transport.busy_since is not None
        self.readies += 1
        self._changed.set()

    def returned(self, transport: Transport, packets: list[Wire]) -> None:
        self.returned_packets.append(packets)
        self._changed.set()

    def lost(self, transport: Transport, reason: Reason) -> None:
        assert self.lost_for is None, "`lost` is told twice"
        self.lost_for = reason
        self._changed.set()

    async def until(self, condition) -> None:
        """Wait for what is to be told."""
        async with asyncio.timeout(5):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Peer(ABC):
    """The other end of a transport."""

    transport: Transport

    def __init__(self) -> None:
        self.owner = Owner()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Peer]:
        """Open `self.transport`; it is writable then."""
        yield self

    @abstractmethod
    async def send(self, *messages: str | bytes) -> None:
        """Send messages; they may still be under way when this returns."""

    @abstractmethod
    async def receive(self, count: int) -> list[str | bytes]:
        """So many messages that the transport wrote, in order."""

    @abstractmethod
    async def garbage(self) -> None:
        """Send what is no packet."""

    async def leave(self) -> None:
        """Go without a word."""
        raise NotImplementedError


class MemoryPeer(Peer):
    """`MemoryTransport`."""

    transport: MemoryTransport

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Peer]:
        self.transport = MemoryTransport(self.owner)
        yield self

    async def send(self, *messages):
        for data in messages:
            self.transport.feed("4" + data if isinstance(data, str) else data)

    async def receive(self, count):
        taken, self.transport.sent = self.transport.sent[:count], self.transport.sent[count:]
        return [_unwrapped(packet) for packet in taken]

    async def garbage(self):
        self.transport.feed("x")

    async def leave(self):
        self.transport.cut()


class PollingPeer(Peer):
    """`PollingTransport`, and a client that polls again after every answer."""

    transport: PollingTransport

    def __init__(self) -> None:
        super().__init__()
        self._got: list[str | bytes] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Peer]:
        self.transport = PollingTransport(self.owner)
        self.poll()
        yield self

    def poll(self) -> None:
        if not self.transport.closed:
            self.transport.poll(self._answered)

    def _answered(self, body: str) -> None:
        packets = _packets(body)
        self._got += packets
        if packets:
            asyncio.get_running_loop().call_soon(self.poll)

    async def send(self, *messages):
        self.transport.begin_post()
        try:
            self.transport.post(_payload(messages))
        finally:
            self.transport.end_post()

    async def receive(self, count):
        await asyncio.sleep(0)
        taken, self._got = self._got[:count], self._got[count:]
        return taken

    async def garbage(self):
        with pytest.raises(ValueError, match="packet"):
            self.transport.post(b"x")


class HttpPeer(Peer):
    """Polling over the real HTTP wire. The connection is there, but the owner listens in its place."""

    transport: PollingTransport

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Peer]:
        async with serve(SETTINGS) as self._endpoint, AsyncExitStack() as stack:
            self._sid = await self._endpoint.handshake()
            self.connection = self._endpoint.registry.connections[self._sid]
            transport = self.connection.polling
            assert transport is not None
            self.transport = transport
            transport.owner = self.owner
            self._raw = await stack.enter_async_context(self._endpoint.raw())
            self._got: list[str | bytes] = []
            await self._poll()
            yield self

    async def _poll(self) -> None:
        before = self.owner.readies
        await self._raw.send(request("GET", f"{POLLING}&sid={self._sid}"))
        await self.owner.until(lambda: self.owner.readies > before)

    async def send(self, *messages):
        response = await self._endpoint.post(self._sid, _payload(messages))
        assert response.body == b"ok"

    async def receive(self, count):
        while len(self._got) < count:
            self._got += _packets((await self._raw.response()).body.decode())
            if not self.transport.closed:
                await self._poll()
        taken, self._got = self._got[:count], self._got[count:]
        return taken

    async def garbage(self):
        assert (await self._endpoint.post(self._sid, b"x")).status == 400


class WebSocketPeer(Peer):
    """`WebSocketTransport` over a real socket."""

    transport: WebSocketTransport

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Peer]:
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def handle(incoming: web.Request) -> web.StreamResponse:
            self.transport = WebSocketTransport(SETTINGS, self.owner)
            try:
                response = await self.transport.wire.open(incoming)
            except Refused as refused:
                return refusal(refused)
            begun.set_result(None)
            await self.transport.wire.run(incoming)
            return response

        app = web.Application()
        app.router.add_get("/", handle)
        runner = make_runner(app, SETTINGS, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with Raw(runner.addresses[0][1]) as self.raw:
                assert (await self.raw.ask(upgrade("/"))).status == 101
                await begun
                yield self
        finally:
            await runner.cleanup()

    async def send(self, *messages):
        for data in messages:
            await self.raw.send(text("4" + data) if isinstance(data, str) else frame(BINARY, data))

    async def receive(self, count):
        got: list[str | bytes] = []
        while len(got) < count:
            opcode, data = await self.raw.frame()
            got.append(_unwrapped(data.decode()) if opcode == TEXT else data)
        return got

    async def garbage(self):
        await self.raw.send(text("x"))

    async def leave(self):
        self.raw.reset()


def _unwrapped(packet: Wire) -> str | bytes:
    return packet[1:] if isinstance(packet, str) else packet


def _payload(messages: tuple[str | bytes, ...]) -> bytes:
    return encode_payload(["4" + m if isinstance(m, str) else m for m in messages]).encode()


def _packets(body: str) -> list[str | bytes]:
    from gateway.protocol.payloads import decode_payload

    return [data for kind, data in decode_payload(body.encode()) if kind is MESSAGE]


PEERS: dict[str, type[Peer]] = {
    "memory": MemoryPeer,
    "polling": PollingPeer,
    "polling-http": HttpPeer,
    "websocket": WebSocketPeer,
}


@pytest.fixture(params=PEERS)
async def peer(request) -> AsyncIterator[Peer]:
    async with PEERS[request.param]().opened() as opened:
        yield opened


async def writable(peer: Peer) -> None:
    await peer.owner.until(lambda: peer.transport.writable)


async def test_packets_arrive_in_order_each_once(peer):
    sent = ["a", b"b", "", b"", "d" * 50_000, *map(str, range(100))]
    await peer.send(*sent[:3])
    await peer.send(*sent[3:])
    await peer.owner.until(lambda: len(peer.owner.packets) >= len(sent))
    assert peer.owner.packets == sent
    assert peer.owner.lost_for is None


async def test_what_is_written_arrives_in_order(peer):
    sent = [str(n) if n % 3 else bytes([n]) for n in range(60)]
    got = []
    for at in range(0, 60, 20):
        await writable(peer)
        peer.transport.write(["4" + m if isinstance(m, str) else m for m in sent[at : at + 20]])
        got += await peer.receive(20)
    assert got == sent


async def test_the_name_is_one_that_clients_know(peer):
    assert peer.transport.name in ("polling", "websocket")


async def test_nothing_is_stuck_in_fair_weather(peer):
    peer.transport.write(["4a"])
    assert await peer.receive(1) == ["a"]
    assert peer.transport.busy_since is None


async def test_close_lets_go_out_what_was_written(peer):
    peer.transport.write(["4last", b"words"])
    peer.transport.close(Reason.SERVER_CLOSE)
    assert await peer.receive(2) == ["last", b"words"]
    assert not peer.transport.writable


async def test_closing_again_is_a_no_op(peer):
    for _ in range(3):
        peer.transport.close(Reason.SERVER_CLOSE)
    peer.transport.abort()
    peer.transport.close(Reason.SHUTDOWN)
    assert not peer.transport.writable


async def test_abort_is_the_end_at_once(peer):
    peer.transport.abort()
    assert not peer.transport.writable
    assert peer.transport.busy_since is None or peer.transport.name == "websocket"


async def test_garbage_is_the_end_and_told_once(peer):
    await peer.garbage()
    await peer.owner.until(lambda: peer.owner.lost_for is not None)
    assert peer.owner.lost_for is Reason.PARSE_ERROR
    assert peer.owner.packets == []


@pytest.mark.parametrize("peer", ["memory", "websocket"], indirect=True)
async def test_a_peer_that_leaves_is_lost_once_and_nothing_comes_after(peer):
    """Polling has no line that could be lost: see `test_the_departure_of_a_waiting_get…`."""
    await peer.send("a")
    await peer.owner.until(lambda: peer.owner.packets)
    await peer.leave()
    await peer.owner.until(lambda: peer.owner.lost_for is not None)
    assert peer.owner.lost_for is Reason.TRANSPORT_CLOSE
    assert not peer.transport.writable
    peer.transport.close(Reason.TRANSPORT_CLOSE)
    peer.transport.abort()


async def test_after_a_pause_everything_arrives_in_order(peer):
    peer.transport.pause()
    await peer.send(*map(str, range(100)))
    peer.transport.resume()
    await peer.owner.until(lambda: len(peer.owner.packets) >= 100)
    assert peer.owner.packets == [str(n) for n in range(100)]


async def test_pause_and_resume_may_be_repeated_and_come_after_the_end(peer):
    for _ in range(2):
        peer.transport.pause()
    for _ in range(2):
        peer.transport.resume()
    peer.transport.close(Reason.SERVER_CLOSE)
    peer.transport.pause()
    peer.transport.resume()


# -- websocket only --------------------------------------------------------------------------------


@pytest.fixture
async def websocket() -> AsyncIterator[WebSocketPeer]:
    peer = WebSocketPeer()
    async with peer.opened():
        yield peer


async def fill(peer: WebSocketPeer) -> int:
    """Write until the peer, which does not read, is in the way; how much that took."""
    written = 0
    while peer.transport.writable:
        assert written < 500
        peer.transport.write(["4" + BIG])
        written += 1
    return written


async def test_a_peer_that_does_not_read_makes_it_unwritable_and_is_told_when_it_reads_again(websocket):
    written = await fill(websocket)
    since = websocket.transport.busy_since
    assert since is not None
    assert since <= asyncio.get_running_loop().time()
    assert [len(each) for each in await websocket.receive(written)] == [len(BIG)] * written
    await websocket.owner.until(lambda: websocket.owner.readies)
    assert websocket.transport.writable
    assert websocket.transport.busy_since is None


async def test_abort_does_not_wait_for_a_peer_that_does_not_read(websocket):
    await fill(websocket)
    websocket.transport.abort()
    assert await websocket.raw.ended(patience=1.0)


async def test_close_waits_for_such_a_peer_only_for_its_time(websocket):
    await fill(websocket)
    websocket.transport.close(Reason.SERVER_CLOSE)
    await websocket.owner.until(lambda: websocket.owner.lost_for is not None)


async def test_close_tells_code_and_reason(websocket):
    websocket.transport.close(Reason.SHUTDOWN)
    assert await websocket.raw.frame() == (CLOSE, b"\x03\xf4server shutdown")


async def test_a_paused_websocket_is_not_read(websocket):
    websocket.transport.pause()
    await websocket.send("a")
    sender = asyncio.create_task(websocket.send(*[BIG] * 200))
    await asyncio.sleep(0.05)
    assert not sender.done(), "20 MB were read although nobody wanted them"
    websocket.transport.resume()
    await asyncio.wait_for(sender, 5)
    await websocket.owner.until(lambda: len(websocket.owner.packets) == 201)


# -- polling only ----------------------------------------------------------------------------------


@pytest.fixture
def polling() -> PollingTransport:
    return PollingTransport(Owner())


def owner_of(polling: PollingTransport) -> Any:
    return polling.owner


async def test_a_get_makes_it_writable_and_an_answer_makes_it_not(polling):
    answers: list[str] = []
    assert not polling.writable
    polling.poll(answers.append)
    assert polling.writable
    polling.write(["4a", "4b"])
    assert answers == ["4a\x1e4b"]
    assert not polling.writable


async def test_an_undelivered_batch_comes_back(polling):
    answers: list[str] = []
    respond = answers.append
    polling.poll(respond)
    polling.write(["4a", b"b"])
    polling.undelivered(respond)
    assert owner_of(polling).returned_packets == [["4a", b"b"]]
    polling.undelivered(respond)
    assert owner_of(polling).returned_packets == [["4a", b"b"], []]


async def test_the_next_get_says_that_the_last_answer_was_delivered(polling):
    answers: list[str] = []
    respond = answers.append
    polling.poll(respond)
    polling.write(["4a"])
    polling.poll(lambda body: None)
    polling.undelivered(respond)
    assert owner_of(polling).returned_packets == []


async def test_a_get_that_is_sent_again_gets_the_same_answer(polling):
    answers: list[str] = []
    respond = answers.append
    polling.poll(respond, 1)
    polling.write(["4a", "4b"])
    for _ in range(3):
        polling.poll(answers.append, 1)
    assert answers == ["4a\x1e4b"] * 4
    polling.undelivered(respond)
    assert owner_of(polling).returned_packets == [], "they are under way a second time"
    assert not polling.writable


async def test_a_numbered_answer_that_could_not_be_written_waits_for_the_repetition(polling):
    answers: list[str] = []
    respond = answers.append
    polling.poll(respond, 1)
    polling.write(["4a"])
    polling.undelivered(respond)
    assert owner_of(polling).returned_packets == [[]], "the client has gone, but may have read it"
    polling.poll(answers.append, 1)
    assert answers == ["4a"] * 2


async def test_a_waiting_get_that_is_sent_again_is_answered_with_nothing_and_so_is_the_new_one(polling):
    """Nobody knows to which of the two the client listens. Two different answers would lose one of them."""
    first: list[str] = []
    again: list[str] = []
    polling.poll(first.append, 1)
    polling.poll(again.append, 1)
    polling.poll(again.append, 1)
    assert (first, again) == (["6"], ["6", "6"])
    polling.poll(again.append, 2)
    polling.write(["4a"])
    assert again == ["6", "6", "4a"]
    assert owner_of(polling).lost_for is None


async def test_a_get_that_left_unanswered_may_be_sent_again(polling):
    answers: list[str] = []
    respond = answers.append
    polling.poll(respond, 1)
    assert polling.abandon(respond)
    polling.poll(answers.append, 1)
    polling.write(["4a"])
    assert answers == ["4a"]


async def test_a_client_that_goes_on_is_not_held_by_the_get_it_left(polling):
    answers: list[str] = []
    polling.poll(answers.append, 1)
    polling.poll(answers.append, 2)
    polling.write(["4a"])
    assert answers == ["6", "4a"]


@pytest.mark.parametrize("number", [1, 4, 5, 10**14])
async def test_another_number_of_a_get_is_refused_and_ends_nothing(polling, number):
    for good in (1, 2):
        polling.poll(lambda body: None, good)
        polling.write(["4a"])
    with pytest.raises(WrongNumber):
        polling.poll(lambda body: None, number)
    answers: list[str] = []
    polling.poll(answers.append, 2)
    polling.poll(answers.append, 3)
    polling.write(["4b"])
    assert answers == ["4a", "4b"]
    assert owner_of(polling).lost_for is None


async def test_a_get_that_is_sent_again_for_less_gets_the_beginning_and_the_rest_goes_first(polling):
    answers: list[str] = []
    polling.poll(answers.append, 1, 100)
    polling.write(["4abc", b"def", "4é", "4ghi"])
    polling.poll(answers.append, 1, 10)  # 4 + 1 + 5 bytes
    polling.poll(answers.append, 1, 9)
    polling.poll(answers.append, 1, 1)  # one packet at the least
    polling.poll(answers.append, 1, 1000)
    assert answers[1:] == ["4abc\x1ebZGVm", "4abc", "4abc", "4abc"]
    assert owner_of(polling).returned_packets == [["4é", "4ghi"], [b"def"]]


async def test_a_post_that_is_sent_again_is_taken_once(polling):
    for number in (1, 1, 2, 1, 2):
        post = polling.begin_post(number)
        if post.turn is Turn.NOW:
            polling.post(b"4a", post)
        polling.end_post(post)
    assert len(owner_of(polling).packets) == 2


async def test_a_post_that_was_not_taken_may_be_sent_again(polling):
    """Its body was cut: the number is free. The repetition may come before that is noticed."""
    cut = polling.begin_post(1)
    again = polling.begin_post(1)
    assert (cut.turn, again.turn) == (Turn.STALE, Turn.NOW)
    polling.end_post(cut)
    polling.end_post(again)
    third = polling.begin_post(1)
    polling.post(b"4a", third)
    polling.end_post(third)
    assert polling.begin_post(1).turn is Turn.TAKEN
    assert owner_of(polling).packets == ["a"]


async def test_posts_are_delivered_in_the_order_of_their_numbers(polling):
    waiting = {}
    moved: list[int] = []
    for number in (3, 2, 1):
        waiting[number] = polling.begin_post(number)
        waiting[number].moved = lambda number=number: moved.append(number)
    assert [post.turn for post in waiting.values()] == [Turn.LATER, Turn.LATER, Turn.NOW]
    for number in (1, 2, 3):
        assert waiting[number].turn is Turn.NOW
        polling.post(b"4%d" % number, waiting[number])
        polling.end_post(waiting[number])
    assert owner_of(polling).packets == ["1", "2", "3"]
    assert moved == [2, 3]


async def test_an_early_post_that_is_sent_again_takes_the_place_of_the_older_one(polling):
    older, newer = polling.begin_post(2), polling.begin_post(2)
    assert (older.turn, newer.turn) == (Turn.STALE, Turn.LATER)
    polling.end_post(older)
    first = polling.begin_post(1)
    polling.post(b"41", first)
    polling.end_post(first)
    assert newer.turn is Turn.NOW


async def test_an_early_post_that_leaves_makes_room_for_its_repetition(polling):
    polling.end_post(polling.begin_post(2))
    first = polling.begin_post(1)
    polling.post(b"41", first)
    polling.end_post(first)
    assert polling.begin_post(2).turn is Turn.NOW


async def test_a_post_that_is_sent_again_while_it_is_delivered_waits_and_is_taken(polling):
    first = polling.begin_post(1)
    steps = polling.post_in_steps(b"4a", first)
    next(steps)
    again, second = polling.begin_post(1), polling.begin_post(2)
    assert (again.turn, second.turn) == (Turn.LATER, Turn.LATER)
    list(steps)
    polling.end_post(first)
    assert (again.turn, second.turn) == (Turn.TAKEN, Turn.NOW)
    assert owner_of(polling).packets == ["a"]


async def test_a_post_that_is_too_far_ahead_is_refused_and_ends_nothing(polling):
    early = [polling.begin_post(number) for number in range(2, AHEAD + 1)]
    assert {post.turn for post in early} == {Turn.LATER}
    with pytest.raises(WrongNumber):
        polling.begin_post(AHEAD + 1)
    assert polling.begin_post(1).turn is Turn.NOW
    assert owner_of(polling).lost_for is None


async def test_when_polling_is_over_early_posts_are_refused(polling):
    early = polling.begin_post(2)
    polling.close(Reason.CLIENT_CLOSE)
    assert early.turn is Turn.STALE


async def test_a_post_in_parts_is_delivered_once_however_it_is_cut(polling):
    whole = [b"4%d" % number for number in range(6)]
    for skip, count in ((0, 2), (0, 2), (0, 3), (1, 1), (2, 3), (0, 6), (0, 2), (4, 2)):
        post = polling.begin_post(1)
        if post.turn is Turn.NOW:
            some = whole[skip : skip + count]
            polling.post(b"\x1e".join(some), post, skip, skip + count < 6)
        polling.end_post(post)
    assert owner_of(polling).packets == list("012345")
    second = polling.begin_post(2)
    assert second.turn is Turn.NOW
    polling.post(b"4z", second)
    assert owner_of(polling).packets[-1] == "z"


async def test_the_next_post_waits_for_all_parts(polling):
    second, first = polling.begin_post(2), polling.begin_post(1)
    polling.post(b"4a", first, 0, True)
    polling.end_post(first)
    assert second.turn is Turn.LATER
    rest = polling.begin_post(1)
    polling.post(b"4b", rest, 1)
    polling.end_post(rest)
    assert second.turn is Turn.NOW


async def test_a_part_whose_beginning_is_missing_is_refused_and_ends_nothing(polling):
    post = polling.begin_post(1)
    with pytest.raises(WrongNumber):
        polling.post(b"4b", post, 1)
    polling.end_post(post)
    assert owner_of(polling).packets == []
    assert owner_of(polling).lost_for is None


async def test_pongs_and_beacons_wait_for_no_other_post_and_are_few(polling):
    polling.poll(lambda body: None, 1)
    early, first = polling.begin_post(2), polling.begin_post(1)
    beside = [polling.begin_post() for _ in range(BESIDE)]
    assert {post.turn for post in beside} == {Turn.NOW}
    with pytest.raises(WrongNumber):
        polling.begin_post()
    for post in beside:
        polling.post(b"4B", post)
        polling.end_post(post)
    assert owner_of(polling).packets == ["B"] * BESIDE
    assert (first.turn, early.turn) == (Turn.NOW, Turn.LATER)
    polling.post(b"41", first)
    polling.end_post(first)
    assert early.turn is Turn.NOW
    assert polling.begin_post().turn is Turn.NOW


async def test_a_post_without_a_number_whose_place_was_taken_makes_no_room_for_others(polling):
    displaced, first = polling.begin_post(), polling.begin_post(1)
    assert (displaced.turn, first.turn) == (Turn.STALE, Turn.NOW)
    polling.end_post(displaced)
    polling.poll(lambda body: None, 1)
    for _ in range(BESIDE):
        polling.begin_post()
    with pytest.raises(WrongNumber):
        polling.begin_post()


async def test_overlapping_requests_raise_and_are_the_end(polling):
    polling.poll(lambda body: None)
    with pytest.raises(Overlap):
        polling.poll(lambda body: None)
    assert owner_of(polling).lost_for is Reason.TRANSPORT_ERROR


async def test_a_bad_post_delivers_nothing(polling):
    with pytest.raises(ValueError, match="packet"):
        polling.post(b"4a\x1e7\x1e4b")
    assert owner_of(polling).packets == []
    assert owner_of(polling).lost_for is Reason.PARSE_ERROR


@pytest.mark.parametrize(("reason", "answer"), [(Reason.CLIENT_CLOSE, "6"), (Reason.SERVER_CLOSE, "1")])
async def test_a_waiting_get_is_told_who_closed(polling, reason, answer):
    answers: list[str] = []
    polling.poll(answers.append)
    polling.close(reason)
    assert answers == [answer]


# What fails here when aiohttp changes: it tells nobody openly that a client has gone.


@pytest.fixture(params=[False, True], ids=["our-server", "plain-aiohttp"])
async def endpoint(request) -> AsyncIterator[Endpoint]:
    async with serve(SETTINGS, plain=request.param) as running:
        yield running


@pytest.mark.parametrize("end", ["finish", "reset"])
async def test_the_departure_of_a_waiting_get_is_noticed_at_once(endpoint, end):
    """Not after the ping's 60 s, and not after the GET's hold of 10 s: after the grace of 0.05 s."""
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        await raw.send(request("GET", f"{POLLING}&sid={sid}"))
        await endpoint.post(sid, b"4seen")
        getattr(raw, end)()
        closing = await endpoint.witness.closing(sid, patience=1.0)
    assert closing.reason is Reason.TRANSPORT_CLOSE


@pytest.mark.parametrize("end", ["finish", "reset"])
async def test_messages_for_a_get_that_left_are_there_for_the_next(endpoint, end):
    sid = await endpoint.handshake()
    for _ in range(3):
        async with endpoint.raw() as raw:
            await raw.send(request("GET", f"{POLLING}&sid={sid}"))
            await endpoint.post(sid, b"4seen")
            getattr(raw, end)()
            assert await raw.ended()
        await endpoint.get("unknown")
        assert not endpoint.registry.connections[sid].polling.writable, (
            "the GET that left is still waited for"
        )
    for data in ("a", "b", "c"):
        endpoint.witness.channels[sid].send(data)
    assert (await endpoint.get(sid)).body == b"4a\x1e4b\x1e4c"


async def test_an_answer_that_is_written_to_a_dead_line_comes_again(endpoint):
    """The message and the reset meet: the answer is written before the loop has seen the reset."""
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        await raw.send(request("GET", f"{POLLING}&sid={sid}"))
        await endpoint.post(sid, b"4seen")
        raw.reset()
        endpoint.witness.channels[sid].send("a")
        await endpoint.get("unknown")
    assert (await endpoint.get(sid)).body == b"4a"
