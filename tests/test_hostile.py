"""What one client may cost the others: turns of the loop, tasks, and connections that it never reads.

Each of these blocked the loop for 0.1 to 2.7 s, or kept a connection for ever, before it was bounded.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from gateway import Gateway, Route
from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.connection import Connection
from gateway.engine import decode
from gateway.mailbox import Mailbox
from gateway.protocol import frames
from gateway.protocol.packets import PacketError, PacketType
from gateway.protocol.reasons import Closing, Reason
from gateway.session import Session
from gateway.transports import MemoryTransport, PollingTransport, Transport
from gateway.wires import server
from gateway.wires.server import make_runner
from gateway.wires.websocket import WebSocketWire
from tests.support.raw import Raw, request, text
from tests.support.running import Log, running
from tests.support.session_client import SessionClient


class Line(asyncio.Transport):
    """The server's end of a TCP connection, without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.reset = False
        self.written = b""
        self.waiting = 0  # bytes that the peer has not taken

    def is_closing(self) -> bool:
        return self.reset

    def write(self, data: Any) -> None:
        assert not self.reset, "asyncio logs a warning for each write after a reset"
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.reset = True


class Reader:
    """Listens to a wire; every frame takes a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seen: list[str | bytes] = []
        self.ends: list[Closing] = []
        self._seconds = seconds

    def frame(self, data: str | bytes) -> None:
        self.seen.append(data)
        until = time.perf_counter() + self._seconds
        while time.perf_counter() < until:
            pass

    def pong(self) -> None: ...

    def drained(self) -> None: ...

    def ended(self, closing: Closing) -> None:
        self.ends.append(closing)


def wire_on(line: Line, reader: Reader) -> WebSocketWire:
    wire = WebSocketWire(Settings(), reader)
    wire._transport = line
    return wire


async def until(condition: Any) -> int:
    """How many turns of the loop it took."""
    turns = 0
    async with asyncio.timeout(5):
        while not condition():
            turns += 1
            await asyncio.sleep(0)
    return turns


TEXTS = [str(number) for number in range(2_000)]
MANY = b"".join(text(one) for one in TEXTS)


async def test_one_read_full_of_frames_leaves_the_others_their_turns():
    line, reader = Line(), Reader(0.000_02)
    wire = wire_on(line, reader)
    wire.feed_data(MANY)
    assert len(reader.seen) < len(TEXTS)
    assert not line.reading, "nothing more is read while so much waits"
    assert await until(lambda: len(reader.seen) == len(TEXTS)) >= 5
    assert reader.seen == TEXTS
    assert line.reading


async def test_what_has_arrived_waits_while_the_wire_is_paused_and_keeps_its_place():
    line, reader = Line(), Reader()
    wire = wire_on(line, reader)
    wire.pause()
    wire.feed_data(MANY)
    wire.feed_data(text("last"))
    await asyncio.sleep(0.01)
    assert reader.seen == []
    wire.resume()
    wire.pause()
    wire.resume()
    await until(lambda: len(reader.seen) > len(TEXTS))
    assert reader.seen == [*TEXTS, "last"]
    assert line.reading


async def test_nothing_arrives_after_the_end():
    line, reader = Line(), Reader(0.000_02)
    wire = wire_on(line, reader)
    wire.feed_data(MANY)
    wire.feed_eof()
    count = len(reader.seen)
    await asyncio.sleep(0.05)
    assert len(reader.seen) == count
    assert len(reader.ends) == 1


async def test_nothing_is_written_after_a_reset():
    line = Line()
    wire = wire_on(line, Reader())
    wire.write(["a"])
    line.reset = True
    wire.write(["b"] * 10)
    assert line.written


async def test_coroutines_that_wait_for_nothing_leave_the_others_their_turns():
    box = Mailbox(10_000, 10_000, lambda: None, lambda: None)
    reader = Reader(0.000_2)

    async def handle(number: int) -> None:
        reader.frame(str(number))

    for number in range(100):
        box.post(handle, number)
    assert await until(lambda: len(reader.seen) == 100) >= 5
    assert reader.seen == [str(number) for number in range(100)]


class Owner:
    """Listens to a polling transport."""

    def __init__(self) -> None:
        self.seen: list[str | bytes] = []
        self.lost_for: list[Reason] = []

    def received(self, _transport: Transport, _kind: PacketType, data: str | bytes) -> None:
        self.seen.append(data)

    def lost(self, _transport: Transport, reason: Reason) -> None:
        self.lost_for.append(reason)


def polling() -> tuple[Owner, PollingTransport]:
    owner = Owner()
    return owner, PollingTransport(cast(Any, owner))


def test_a_post_of_many_packets_is_taken_in_steps():
    owner, transport = polling()
    body = "\x1e".join("4" + one for one in TEXTS).encode()
    assert len(list(transport.post_in_steps(body))) >= 20
    assert owner.seen == TEXTS


def test_a_bad_packet_at_the_end_still_refuses_all_of_them():
    owner, transport = polling()
    with pytest.raises(PacketError):
        transport.post("\x1e".join(["4a"] * 1_000 + ["7"]).encode())
    assert owner.seen == []
    assert owner.lost_for == [Reason.PARSE_ERROR]


def test_a_post_that_outlives_polling_is_not_called_taken():
    owner, transport = polling()
    steps = transport.post_in_steps("\x1e".join(["4a"] * 1_000).encode())
    while not owner.seen:
        next(steps)
    transport.close(Reason.CLIENT_CLOSE)
    with pytest.raises(PacketError):
        list(steps)


def test_json_of_very_many_objects_does_not_set_off_the_collector():
    collections: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        collections.append(phase)

    long = json.dumps([[]] * 100_000)
    gc.callbacks.append(note)
    try:
        data = decode(long)
    finally:
        gc.callbacks.remove(note)
    assert len(data) == 100_000
    assert len(collections) <= 2
    assert gc.isenabled()


def test_a_write_that_was_stuck_over_a_stall_has_a_moment_more():
    now = 0.0

    class World:
        def now(self) -> float:
            return now

        def schedule(self, item: Connection) -> None: ...

        def gone(self, item: Connection) -> None: ...

    reasons: list[Reason] = []
    connection = Connection("sid", Settings(ping=Ping(60.0, 60.0)), cast(Any, World()))
    connection.listener = cast(Any, SimpleNamespace(closed=reasons.append))
    transport = MemoryTransport(connection)
    connection.start_websocket(transport)
    transport.block(now)
    now = 12.0
    connection.spare(now)
    connection.judge(now)
    assert reasons == []
    now = 13.0
    connection.judge(now)
    assert reasons == [Reason.SLOW_CONSUMER]


# -- the session -----------------------------------------------------------------------------------


SETTINGS = Settings(
    ping=Ping(5.0, 5.0),
    timeouts=Timeouts(grace=0.6, leave=0.15, poll_hold=0.2, close=0.5, drain=3.0),
    limits=Limits(channels=4),
)


async def test_a_message_before_the_accept_is_a_protocol_error_and_no_error_of_ours(caplog):
    gate = asyncio.Event()
    route = Route("/slow")

    @route.open
    async def _(handler):
        await gate.wait()

    async with running(Gateway([route], settings=SETTINGS)) as base:
        client = SessionClient(base, transport="websocket")
        await client.connect()
        channel = await client.ask("/slow")
        await client.send(channel, "too early")
        ended = await client.frame()
        gate.set()
        await client.close()
    assert isinstance(ended, frames.End)
    assert ended.code == 1002
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_a_channel_that_leaves_while_auth_is_asked_is_never_opened():
    gate, log = asyncio.Event(), Log()
    route = Route("/private")

    @route.authenticate
    async def _(request):
        await gate.wait()
        return "somebody"

    @route.open
    async def _(handler):
        log.note("open")

    @route.on_close
    async def _(handler):
        log.note("close")

    echo = Route("/echo")
    echo.on_message(lambda handler, message: handler.write_message(message))
    async with running(Gateway([route, echo], settings=SETTINGS)) as base:
        client = SessionClient(base, transport="websocket")
        await client.connect()
        channel = await client.ask("/private")
        await client.post(frames.Close(channel))
        answer = await client.next()
        gate.set()
        other = await client.open("/echo")
        await client.send(other, "still alive")
        assert await client.message() == "still alive"
        await client.close()
    assert isinstance(answer, frames.Close)
    assert log.entries == []


def only_session() -> Session:
    gc.collect()
    (session,) = [each for each in gc.get_objects() if type(each) is Session and each.carrier is not None]
    return session


async def test_whoever_resumes_again_and_again_is_not_read_without_end():
    """Each connection brings a frame before anybody looks whether there is room."""
    gate, limits = asyncio.Event(), Limits(inbound_bytes=10_000, message=20_000)
    route = Route("/slow")

    @route.on_message
    async def _(handler, message):
        await gate.wait()

    async with running(Gateway([route], settings=replace(SETTINGS, limits=limits))) as base:
        client = SessionClient(base, transport="websocket")
        await client.connect()
        session = only_session()
        channels = [await client.open("/slow") for _ in range(12)]
        for channel in channels * 2:
            await client.post(frames.Data(channel, b"x" * 9_000))
        most = 0
        for _resume in range(30):
            if client.welcome.session != session.id:
                break
            await client.cut()
            await client.resume()
            most = max(most, session.held.size)
        assert client.welcome.session != session.id
        assert session.held.limit < most <= 2 * session.held.limit + 9_256
        gate.set()
        await client.close()


async def test_a_client_that_opens_channels_and_never_asks_for_the_answers_costs_little():
    """With a lane for each refusal, 1 MB of it cost 64 MB, for as long as its connection had last words."""
    async with (
        running(Gateway([Route("/one")], settings=SETTINGS)) as base,
        Raw(int(base.rpartition(":")[2])) as raw,
    ):
        url = "/_gateway/engine/?EIO=4&transport=polling"
        opened = await raw.ask(request("GET", url))
        url += "&sid=" + json.loads(opened.body[1:])["sid"]
        many = [f'4O{frames.channel_text(each)}{{"url":"/nowhere","protocols":[]}}' for each in range(1, 500)]
        await raw.ask(request("POST", url, body="\x1e".join(['4H{"v":1}', *many]).encode()))
        session = only_session()
        await until(lambda: session._sender.count == len(many))
        assert len(session._sender._lanes) == 1
        await raw.ask(request("POST", url, body=b"4unknown"))
        assert session._sender.count == 0, "whoever still knows it keeps little"
        answer = await raw.ask(request("GET", url))
        assert answer.body.endswith(b'4X{"code":1002,"reason":"parse error","retry":false}\x1e1')


async def test_channels_that_were_left_count_while_the_application_is_busy_with_them():
    gate = asyncio.Event()
    began, closed = asyncio.Semaphore(0), asyncio.Semaphore(0)
    route = Route("/slow")

    @route.open
    async def _(handler):
        began.release()
        await gate.wait()

    @route.on_close
    async def _(handler):
        closed.release()

    async with running(Gateway([route], settings=SETTINGS)) as base:
        client = SessionClient(base, transport="websocket")
        await client.connect()
        for _number in range(4):
            channel = await client.ask("/slow")
            await began.acquire()
            await client.post(frames.Close(channel))
            assert isinstance(await client.next(), frames.Close)
        await client.ask("/slow")
        assert (await client.refusal()).status == 429
        assert began.locked(), "it was not opened"
        gate.set()
        for _number in range(4):
            await closed.acquire()
        await client.open("/slow")
        await client.close()


# -- clients that do not read, or do not speak --------------------------------------------------------


def deaf(port: int) -> socket.socket:
    """A client that reads nothing, and has hardly any room for what arrives."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    made.connect(("127.0.0.1", port))
    return made


@pytest.mark.parametrize("kind", ["says nothing", "reads nothing"])
async def test_a_connection_without_a_life_is_closed(monkeypatch, kind):
    monkeypatch.setattr(server, "_KEEP_ALIVE", 0.2)
    monkeypatch.setattr(server, "_STUCK", 0.2)

    async def large(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 16_000_000)

    app = web.Application()
    app.router.add_get("/", large)
    runner = make_runner(app, SETTINGS)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with deaf(runner.addresses[0][1]) as client:
            if kind == "reads nothing":
                client.sendall(request("GET", "/"))
            await until(lambda: runner.server and runner.server.connections)
            await until(lambda: runner.server and not runner.server.connections)
    finally:
        await runner.cleanup()


async def test_a_slow_line_is_not_a_dead_one(monkeypatch):
    line, now = Line(), [100.0]
    wire = wire_on(line, Reader())
    monkeypatch.setattr(wire, "_loop", SimpleNamespace(time=lambda: now[0]))
    wire._busy_since, wire._busy_with = 100.0, 90_000
    for now[0], line.waiting, since in (
        (105.0, 80_000, 105.0),
        (109.0, 80_000, 105.0),
        (112.0, 79_999, 112.0),
    ):
        assert wire.busy_since == since
