"""Each middlebox does what its caption says, and nothing else. Seen from both sides: a small aiohttp
server behind it, an aiohttp client or a bare socket before it.
"""

import asyncio
import contextlib
import time

import aiohttp
import pytest
from aiohttp import web

from tests.network.boxes import (
    BOXES,
    WEATHER,
    BadGateway,
    Drops,
    FailsOneInTen,
    FarAway,
    ForgetfulNat,
    Holds,
    IdleLimit,
    KillAfter,
    KillWebSockets,
    LoseAnswers,
    LoseUplink,
    NeverAnswer,
    Plain,
    RefuseUpgrade,
    RepeatPosts,
    ResetAfter101,
    SilentAfter101,
    SmallBodies,
    SplitPosts,
)

BREAKS_WEBSOCKETS = [SilentAfter101, ResetAfter101, RefuseUpgrade, NeverAnswer]
HANDSHAKE = (
    b"GET /socket HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
# A masked text frame: "hi".
HI = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi"


class Upstream:
    """Answers POSTs with their body, GETs of /wait when told to, and echoes on /socket."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.gone = asyncio.Event()
        self.arrived = asyncio.Event()
        self.answer = asyncio.Event()
        app = web.Application(client_max_size=8 * 2**20)
        app.router.add_post("/echo", self.echo)
        app.router.add_get("/wait", self.wait)
        app.router.add_get("/socket", self.socket)
        self.runner = web.AppRunner(app, handler_cancellation=True)

    async def echo(self, request: web.Request) -> web.Response:
        body = b""
        async for part in request.content.iter_any():
            self.reads.append(len(part))
            body += part
        return web.Response(body=body)

    async def wait(self, request: web.Request) -> web.Response:
        self.arrived.set()
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.gone.set()
            raise
        return web.Response(text="now")

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.arrived.set()
        try:
            async for message in socket:
                await socket.send_str(message.data)
        finally:
            self.gone.set()
        return socket


@pytest.fixture
async def upstream():
    server = Upstream()
    await server.runner.setup()
    await web.TCPSite(server.runner, "127.0.0.1", 0).start()
    yield server
    await server.runner.cleanup()


@pytest.fixture
async def through(upstream):
    """`await through(box)` starts a middlebox in front of the server: the URL to use."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(box: Plain) -> str:
            await stack.enter_async_context(box)
            host, port = await box.start(*upstream.runner.addresses[0])
            return f"http://{host}:{port}"

        yield start


@pytest.fixture
async def client():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
        yield session


@pytest.fixture
async def connect():
    """`await connect(url)` is a bare TCP connection: (reader, writer)."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_connection(url: str):
            host, port = url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))

            async def close():
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

            stack.push_async_callback(close)
            return reader, writer

        yield open_connection


async def within(seconds: float, awaitable):
    async with asyncio.timeout(seconds):
        return await awaitable


@pytest.mark.parametrize("name", BOXES)
async def test_plain_requests_pass_every_box(name, through, client):
    box = BOXES[name]()
    url = await through(box)
    for size in (0, 1, 300_000):
        async with client.post(f"{url}/echo", data=bytes(size)) as response:
            assert (response.status, await response.read()) == (200, bytes(size))
    assert box.requests == 3
    assert (box.connections, box.upgrades, box.resets) == (1, 0, 0)


@pytest.mark.parametrize("name", BOXES)
async def test_a_chunked_body_passes_every_box(name, through, client):
    async def parts():
        for part in (b"one", b"two" * 1000, b"three"):
            yield part

    box = BOXES[name]()
    url = await through(box)
    for _ in range(2):
        async with client.post(f"{url}/echo", data=parts()) as response:
            assert await response.read() == b"one" + b"two" * 1000 + b"three"
    assert box.requests == 2


@pytest.mark.parametrize("name", BOXES)
async def test_a_waiting_request_that_is_given_up_is_given_up_behind_every_box(
    name, through, connect, upstream
):
    _, writer = await connect(await through(BOXES[name]()))
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await within(2, upstream.arrived.wait())
    writer.close()
    await within(2, upstream.gone.wait())


@pytest.mark.parametrize("name", BOXES | WEATHER)
async def test_every_box_stops_with_connections_open(name, upstream, connect):
    box = (BOXES | WEATHER)[name]()
    host, port = await box.start(*upstream.runner.addresses[0])
    reader, writer = await connect(f"http://{host}:{port}")
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await within(2, upstream.arrived.wait())
    await within(2, box.stop())
    assert await within(2, reader.read()) == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, port)


@pytest.mark.parametrize("box", [Plain, SplitPosts])
async def test_a_websocket_works(box, through, client):
    running = box()
    url = await through(running)
    async with client.ws_connect(f"{url}/socket") as socket:
        for text in ("hi", "x" * 500_000):
            await socket.send_str(text)
            assert await socket.receive_str() == text
    assert (running.upgrades, running.connections) == (1, 1)


@pytest.mark.parametrize("box", BREAKS_WEBSOCKETS)
async def test_no_message_comes_through(box, through, connect, upstream):
    running = box()
    reader, writer = await connect(await through(running))
    writer.write(HANDSHAKE)
    head = b""
    with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
        head = await within(0.2, reader.readuntil(b"\r\n\r\n"))
    assert head.startswith(b"HTTP/1.1 101 ") is (box in (SilentAfter101, ResetAfter101))
    assert upstream.arrived.is_set() is (box in (SilentAfter101, ResetAfter101))
    assert running.upgrades == 1


async def test_silent_after_101_takes_everything_and_says_nothing(through, connect, upstream):
    reader, writer = await connect(await through(SilentAfter101()))
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    # More than the buffers of two sockets hold: a silence that stops reading would block this.
    writer.write(HI * 1_000_000)
    await within(5, writer.drain())
    writer.write_eof()
    with pytest.raises(TimeoutError):
        await within(0.2, reader.read(1))
    assert not upstream.gone.is_set()


async def test_reset_after_101_resets_at_the_first_frame(through, connect, upstream):
    box = ResetAfter101()
    reader, writer = await connect(await through(box))
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    with pytest.raises(TimeoutError):
        await within(0.1, asyncio.shield(reader.read(1)))
    assert box.resets == 0
    reader, writer = await connect(await through(box := ResetAfter101()))
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HI)
    with pytest.raises(ConnectionResetError):
        await within(2, reader.read(1))
    await within(2, upstream.gone.wait())
    assert box.resets == 1


async def test_refuse_upgrade_answers_403_with_a_page(through, client):
    url = await through(RefuseUpgrade())
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.ws_connect(f"{url}/socket")
    assert refused.value.status == 403


async def test_never_answer_keeps_the_connection_and_says_nothing(through, connect, upstream):
    reader, writer = await connect(await through(NeverAnswer()))
    writer.write(HANDSHAKE)
    with pytest.raises(TimeoutError):
        await within(0.2, reader.read(1))
    assert not upstream.arrived.is_set()


@pytest.mark.parametrize("request_", [b"", b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n", HANDSHAKE])
async def test_kill_after_resets_idle_waiting_and_upgraded_connections(request_, through, connect):
    box = KillAfter(0.3)
    url = await through(box)
    began = time.monotonic()
    reader, writer = await connect(url)
    writer.write(request_)
    with pytest.raises(ConnectionResetError):
        await within(2, reader.read())
    assert 0.25 < time.monotonic() - began < 1.5
    assert box.resets == 1


async def test_kill_after_is_told_upstream(through, connect, upstream):
    _, writer = await connect(await through(KillAfter(0.3)))
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await within(2, upstream.gone.wait())


async def test_split_posts_arrive_in_several_segments(through, client, upstream):
    box = SplitPosts(pieces=4, pause=0.02)
    url = await through(box)
    body = "größer".encode() * 10
    async with client.post(f"{url}/echo", data=body) as response:
        assert await response.read() == body
    assert box.segments == 4
    assert upstream.reads == [20, 20, 20, 20]


async def test_kill_websockets_resets_nothing_else(through, connect, upstream):
    box = KillWebSockets(0.2)
    url = await through(box)
    waiting, writer = await connect(url)
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await within(2, upstream.arrived.wait())
    reader, writer = await connect(url)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await within(2, reader.read())
    assert box.resets == 1
    upstream.answer.set()
    assert (await within(2, waiting.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 200 ")


async def test_lose_uplink_loses_what_the_browser_sends_and_nothing_else(through, connect, upstream):
    reader, writer = await connect(await through(LoseUplink(0.2)))
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HI)
    assert await within(2, reader.readexactly(4)) == b"\x81\x02hi"
    await asyncio.sleep(0.3)
    writer.write(HI)
    with pytest.raises(TimeoutError):
        await within(0.2, reader.read(1))
    assert not upstream.gone.is_set()


async def test_repeat_posts_sends_them_twice(through, client, upstream):
    url = await through(RepeatPosts("/echo"))
    async with client.post(f"{url}/echo", data=b"once") as response:
        assert await response.read() == b"once"
    assert upstream.reads == [4, 4]


async def test_lose_answers_loses_one_in_ten_after_the_server_has_acted(through, client, upstream):
    box = LoseAnswers("/echo")
    url = await through(box)
    for _ in range(9):
        async with client.post(f"{url}/echo", data=b"hi") as response:
            assert await response.read() == b"hi"
    with pytest.raises(aiohttp.ClientError):
        await client.post(f"{url}/echo", data=b"hi")
    assert (upstream.reads, box.resets) == ([2] * 10, 1)


async def test_bad_gateway_answers_502_after_and_before_the_server_has_acted(through, client, upstream):
    url = await through(BadGateway("/echo"))
    statuses = []
    for _ in range(20):
        async with client.post(f"{url}/echo", data=b"hi") as response:
            statuses.append(response.status)
    assert statuses == ([200] * 9 + [502]) * 2
    assert upstream.reads == [2] * 19


async def test_a_request_to_a_whole_box_that_is_given_up_is_given_up_behind_it(through, connect, upstream):
    _, writer = await connect(await through(RepeatPosts("/wait")))
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await within(2, upstream.arrived.wait())
    writer.close()
    await within(2, upstream.gone.wait())


async def test_a_slow_reader_slows_the_sender(connect):
    """A box holds no more than its buffers: what the reader does not take stays with the sender."""
    stalled = asyncio.Event()

    async def read_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stalled.wait()
        writer.close()

    size = 64 * 2**20
    server = await asyncio.start_server(read_nothing, "127.0.0.1", 0, limit=1024)
    async with server, Plain() as box:
        host, port = await box.start(*server.sockets[0].getsockname())
        _, writer = await connect(f"http://{host}:{port}")
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(bytes(size))
        with pytest.raises(TimeoutError):
            await within(1, writer.drain())
        stalled.set()
        writer.transport.abort()


async def test_an_upstream_that_is_down_is_a_reset(connect):
    async with Plain() as box:
        host, port = await box.start("127.0.0.1", 1)
        reader, writer = await connect(f"http://{host}:{port}")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await within(2, reader.read())


# -- weather ---------------------------------------------------------------------------------------

GET = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
SOME = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
QUICK = {
    "drops": lambda: Drops(every=60.0),
    "holds": lambda: Holds(every=60.0),
    "far_away": lambda: FarAway(0.02),
    "idle_limit": lambda: IdleLimit(60.0),
    "forgetful_nat": lambda: ForgetfulNat(60.0),
}


@pytest.mark.parametrize("name", QUICK)
async def test_in_good_weather_all_passes(name, through, client):
    url = await through(QUICK[name]())
    for size in (0, 1, 1_000_000):
        async with client.post(f"{url}/echo", data=bytes(size)) as response:
            assert (response.status, await response.read()) == (200, bytes(size))
    async with client.ws_connect(f"{url}/socket") as socket:
        await socket.send_str("x" * 500_000)
        assert await socket.receive_str() == "x" * 500_000


async def test_drops_resets_all_and_refuses_new_ones_and_is_over_again(through, connect, upstream):
    box = Drops(every=0.3, lasts=0.3)
    url = await through(box)
    idle, _ = await connect(url)
    waiting, writer = await connect(url)
    writer.write(GET)
    await within(2, upstream.arrived.wait())
    for reader in (idle, waiting):
        with pytest.raises(ConnectionResetError):
            await within(2, reader.read(1))
    assert (box.drops, box.resets) == (1, 2)
    with pytest.raises(ConnectionRefusedError):
        await connect(url)
    await within(2, upstream.gone.wait())
    await asyncio.sleep(0.35)
    reader, writer = await connect(url)
    writer.write(SOME)
    assert (await within(2, reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 200 ")


async def test_what_is_under_way_when_a_drop_begins_is_lost(through, connect, upstream):
    box = Drops(every=0.2, lasts=0.2, under_way=0.3)
    reader, writer = await connect(await through(box))
    await asyncio.sleep(0.3)
    writer.write(SOME)
    with pytest.raises(ConnectionResetError):
        await within(2, reader.read(1))
    assert upstream.reads == []


async def test_holds_keeps_bytes_back_and_then_passes_them_on(through, connect, upstream):
    box = Holds(every=0.3, lasts=0.5)
    reader, writer = await connect(await through(box))
    await asyncio.sleep(0.4)
    began = time.monotonic()
    writer.write(SOME)
    assert (await within(2, reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 200 ")
    assert (box.drops, box.resets) == (1, 0)
    assert 0.2 < time.monotonic() - began < 1.5


async def test_fails_one_in_ten_before_and_one_in_ten_after_the_server_has_acted(through, client, upstream):
    box = FailsOneInTen(seed=1, path="/echo")
    url = await through(box)
    statuses = []
    for _ in range(200):
        async with client.post(f"{url}/echo", data=b"hi") as response:
            statuses.append(response.status)
    assert set(statuses) == {200, 502}
    assert statuses.count(502) == box.refused + box.lost
    assert len(upstream.reads) == 200 - box.refused
    assert 10 <= box.refused <= 30
    assert 10 <= box.lost <= 30


async def test_small_bodies_answers_413_to_a_long_post_and_closes(through, connect, upstream):
    box = SmallBodies(post=1000, path="/echo")
    url = await through(box)
    for size, status in ((1000, b"HTTP/1.1 200 "), (1001, b"HTTP/1.1 413 ")):
        reader, writer = await connect(url)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(bytes(size))
        assert (await within(2, reader.readuntil(b"\r\n\r\n"))).startswith(status)
        if size > 1000:
            assert b"too much" in await within(2, reader.read())
    assert (sum(upstream.reads), box.refused) == (1000, 1)


async def test_small_bodies_cuts_a_long_answer_or_answers_502(through, client, upstream):
    box = SmallBodies(answer=1000, path="/echo")
    url = await through(box)
    async with client.post(f"{url}/echo", data=bytes(1000)) as response:
        assert await response.read() == bytes(1000)
    async with client.post(f"{url}/echo", data=bytes(1001)) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    async with client.post(f"{url}/echo", data=bytes(1001)) as response:
        assert response.status == 502
    assert box.cut == 2


async def test_far_away_takes_a_round_trip_to_connect_and_one_to_ask_and_carries_as_much_as_you_like(
    through, client
):
    url = await through(FarAway(0.4))
    began = time.monotonic()
    async with client.post(f"{url}/echo", data=b"hi") as response:
        assert await response.read() == b"hi"
    assert 0.75 < time.monotonic() - began < 1.5
    began = time.monotonic()
    async with client.post(f"{url}/echo", data=bytes(1_000_000)) as response:
        assert await response.read() == bytes(1_000_000)
    assert 0.35 < time.monotonic() - began < 2


async def test_an_idle_limit_answers_504_and_resets_in_turn_and_closes_what_asks_nothing(through, connect):
    box = IdleLimit(0.3)
    url = await through(box)
    reader, writer = await connect(url)
    writer.write(GET)
    assert (await within(2, reader.read())).startswith(b"HTTP/1.1 504 ")
    reader, writer = await connect(url)
    writer.write(GET)
    with pytest.raises(ConnectionResetError):
        await within(2, reader.read())
    reader, writer = await connect(url)
    writer.write(HANDSHAKE)
    assert (await within(2, reader.read())).endswith(b"\r\n\r\n")
    assert (box.idle, box.resets) == (3, 1)


@pytest.mark.parametrize("make", [IdleLimit, ForgetfulNat])
async def test_a_connection_that_is_used_is_not_idle(make, through, connect):
    box = make(0.3)
    reader, writer = await connect(await through(box))
    for _ in range(4):
        await asyncio.sleep(0.15)
        writer.write(SOME)
        await within(2, reader.readuntil(b"hi"))
    assert box.idle == 0


async def test_a_forgetful_nat_tells_neither_side(through, connect, upstream):
    box = ForgetfulNat(0.3)
    reader, writer = await connect(await through(box))
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.5)
    writer.write(HI)
    with pytest.raises(TimeoutError):
        await within(0.3, reader.read(1))
    writer.close()
    await asyncio.sleep(0.2)
    assert (box.idle, upstream.gone.is_set()) == (1, False)
