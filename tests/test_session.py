"""The session protocol against a whole gateway: a session outlives its connections, and loses nothing.

The rules are those of `docs/protocol.md`. The bytes of frames are tested in `protocol/test_frames.py`, and
the page's side of all this in `client/test/`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway import Gateway, Refuse, Route
from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.protocol import frames
from gateway.protocol.reasons import Reason
from gateway.protocol.sending import UNDER_WAY
from gateway.session import Session, SessionChannel
from tests.support.running import PATIENCE, Log, running
from tests.support.session_client import CARRIERS, SessionClient, in_parts

pytestmark = pytest.mark.parametrize("transport", ["websocket", "polling"])

TIMES = Timeouts(grace=0.6, leave=0.15, poll_hold=0.2, poll_grace=0.2, close=0.5, handler=0.5, drain=3.0)
SETTINGS = Settings(ping=Ping(5.0, 5.0), timeouts=TIMES)


@pytest.fixture
async def log() -> Log:
    return Log()


@pytest.fixture
async def base(log):
    """A gateway with the routes of these tests."""
    async with running(Gateway(routes(log), settings=SETTINGS)) as url:
        yield url


def routes(log: Log) -> list[Route]:
    echo = Route("/echo/{room}")

    @echo.open
    async def _(handler):
        log.note("open", handler.path_kwargs["room"])

    @echo.on_message
    async def _(handler, message):
        log.note("message", message)
        await handler.write_message(message)

    @echo.on_close
    async def _(handler, closing):
        log.note("close", closing.reason, closing.code, closing.text)

    refuse = Route("/refuse")

    @refuse.open
    async def _(handler):
        raise Refuse(418, "no coffee")

    push = Route("/push")

    @push.open
    async def _(handler):
        for index in range(int(handler.get_argument("count"))):
            handler.write_message(str(index))

    closer = Route("/closer")

    @closer.on_message
    async def _(handler, message):
        handler.close(int(message), "so be it")

    picky = Route("/picky", origins=["https://good.example"])

    @picky.open
    async def _(handler):
        log.note("open", "picky")

    choosy = Route("/choosy")

    @choosy.open
    async def _(handler):
        handler.selected_subprotocol = handler.subprotocols[-1]

    return [echo, refuse, push, closer, picky, choosy]


@pytest.fixture
async def client(base, transport):
    made = SessionClient(base, transport=transport)
    await made.connect()
    yield made
    await made.close()


# -- channels ------------------------------------------------------------------------------------


async def test_a_channel_carries_text_and_bytes(client):
    channel = await client.open("/echo/a")
    for data in ("text", b"\x00\xff", "", b"", "a\x1eb\\", "\x00", "😀"):
        await client.send(channel, data)
        assert await client.message() == data


async def test_channels_are_independent(client, log):
    one, two = await client.open("/echo/one"), await client.open("/echo/two")
    await client.send(two, "2")
    await client.send(one, "1")
    assert [await client.next(), await client.next()] == [frames.Data(two, "2"), frames.Data(one, "1")]
    await client.post(frames.Close(one))
    assert await client.next() == frames.Close(one)
    await client.send(two, "still here")
    assert await client.message() == "still here"


async def test_a_refusal_carries_the_status(client):
    number = await client.ask("/refuse")
    assert await client.next() == frames.Refuse(number, 418, "no coffee")
    number = await client.ask("/nowhere")
    assert (await client.refusal()).status == 404


@pytest.mark.parametrize(
    "url", ["/echo%2Fa", "/echo/../echo/a", "/echo/%2e%2e/echo/a", "/echo\\a", "/echo/%00", "//echo/a"]
)
async def test_a_dishonest_path_is_the_path_of_nothing(client, url):
    await client.ask(url)
    assert (await client.refusal()).status == 404


async def test_the_application_chooses_the_subprotocol(client):
    number = await client.ask("/choosy", ("v1", "v2"))
    assert await client.next() == frames.Accept(number, "v2")


@pytest.mark.parametrize(
    ("close", "code", "text"),
    [
        (frames.Close(1), 1005, ""),
        (frames.Close(1, 1000), 1000, ""),
        (frames.Close(1, 4321, "bye"), 4321, "bye"),
    ],
)
async def test_a_close_of_the_client_is_answered_and_told(client, log, close, code, text):
    await client.open("/echo/a")
    await client.post(close)
    assert await client.next() == frames.Close(1)
    await log.until("close", Reason.CLIENT_CLOSE, code, text)


async def test_channels_that_were_closed_are_forgotten(client, log):
    for number in range(1, 6):
        await client.open("/echo/a")
        await client.post(frames.Close(number))
        assert await client.next() == frames.Close(number)
    await log.until_count(5, ("close", Reason.CLIENT_CLOSE, 1005, ""))
    last = await client.open("/echo/a")
    gc.collect()
    # Not isinstance, which asks what a dead weak proxy stood for.
    channels = [each for each in gc.get_objects() if type(each) is SessionChannel]
    assert [each._number for each in channels if each.id == client.welcome.session] == [last]


async def test_a_close_of_the_application_reaches_the_client(client):
    channel = await client.open("/closer")
    await client.send(channel, "4000")
    assert await client.next() == frames.Close(channel, 4000, "so be it")
    await client.post(frames.Close(channel))
    await client.send(channel, "was under way")
    await client.open("/echo/a")


async def test_too_many_channels_are_refused_and_the_session_lives(log, transport):
    settings = Settings(timeouts=TIMES, limits=Limits(channels=2))
    async with running(Gateway(routes(log), settings=settings)) as base:
        client = SessionClient(base, transport=transport)
        await client.connect()
        await client.open("/echo/1")
        channel = await client.open("/echo/2")
        await client.ask("/echo/3")
        assert (await client.refusal()).status == 429
        await client.post(frames.Close(channel))
        assert await client.next() == frames.Close(channel)
        await client.open("/echo/4")
        await client.close()


async def test_each_route_checks_its_own_origins(base, transport):
    # The sessions' endpoint takes the origins of all routes, each channel those of its own.
    good = SessionClient(base, transport=transport, headers={"Origin": "https://good.example"})
    await good.connect()
    await good.open("/picky")
    await good.ask("/echo/a")
    assert (await good.refusal()).status == 403
    await good.close()


async def test_an_origin_that_no_route_lists_gets_no_session(base, transport):
    evil = SessionClient(base, transport=transport, headers={"Origin": "https://evil.example"})
    with pytest.raises((ConnectionRefusedError, InvalidStatus), match="403"):
        await evil.connect()


# -- resume --------------------------------------------------------------------------------------


async def test_what_a_cut_swallowed_is_replayed_from_both_sides_once(client, log):
    channel = await client.open("/echo/a")
    sent = []
    for cut in range(5):
        for index in range(20):
            sent.append(f"{cut}.{index}")
            await client.send(channel, sent[-1])
        # Cut at once: some messages did not arrive, some echoes were not read.
        await client.cut()
        welcome = await client.resume()
        assert welcome.resumed
    echoes = [await client.message() for _ in sent]
    assert echoes == sent
    assert [entry[1] for entry in log.entries if entry[0] == "message"] == sent
    assert [entry for entry in log.entries if entry[0] in ("open", "close")] == [("open", "a")]


async def test_what_is_sent_while_nobody_is_there_waits(base, log, transport):
    ticking = asyncio.Event()
    late = Route("/late")

    @late.on_message
    async def _(handler, message):
        await ticking.wait()
        handler.write_message("while you were away")
        log.note("written")

    async with running(Gateway([late], settings=SETTINGS)) as url:
        client = SessionClient(url, transport=transport)
        await client.connect()
        channel = await client.open("/late")
        await client.send(channel, "go")
        while client.unacknowledged:  # until it is known to have arrived
            frame = await client.frame()
            assert isinstance(frame, frames.Ack)
            client._drop(frame.count)
        await client.cut()
        ticking.set()
        await log.until("written")
        assert (await client.resume()).resumed
        assert await client.message() == "while you were away"
        await client.close()


async def test_the_token_changes_and_the_last_but_one_still_counts(client):
    channel = await client.open("/echo/a")
    first = client.welcome.token
    await client.cut()
    await client.resume()
    second = client.welcome.token
    assert second != first
    # The welcome with `second` was lost on its way: the client comes with what it has.
    await client.cut()
    assert (await client.connect(client.resume_hello(token=first))).resumed
    await client.cut()
    third = client.welcome.token
    assert (await client.connect(client.resume_hello(token=third))).resumed
    await client.send(channel, "still the same session")
    assert await client.message() == "still the same session"


@pytest.mark.parametrize(
    "forged",
    [
        {"token": "x" * 43},
        {"token": "ü"},
        {"epoch": "another"},
        {"session": "unknown"},
        {"received": 10_000},
    ],
)
async def test_what_cannot_be_resumed_is_a_new_session(client, forged):
    await client.open("/echo/a")
    old = client.welcome
    await client.cut()
    welcome = await client.connect(client.resume_hello(**forged))
    assert not welcome.resumed
    assert welcome.session != old.session
    assert welcome.received == 0


async def test_half_a_character_is_a_wrong_token_like_any_other(client, caplog):
    await client.cut()
    hello = frames.encode(client.resume_hello(token="TOKEN"))
    assert isinstance(hello, str)
    await client.attach(hello.replace("TOKEN", r"\ud800"))
    welcome = await client.frame()
    assert isinstance(welcome, frames.Welcome)
    assert not welcome.resumed
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_token_that_is_two_resumes_old_is_worth_nothing(client):
    await client.open("/echo/a")
    first = client.welcome.token
    for _ in range(2):
        await client.cut()
        assert (await client.resume()).resumed
    await client.cut()
    assert not (await client.connect(client.resume_hello(token=first))).resumed


async def test_a_second_connection_takes_the_session_from_the_first(client):
    channel = await client.open("/echo/a")
    first = client.carrier
    assert (await client.resume()).resumed
    await client.send(channel, "on the second")
    assert await client.message() == "on the second"
    async with asyncio.timeout(PATIENCE):
        while await first.incoming.get() is not None:
            pass


# -- the end -------------------------------------------------------------------------------------


async def test_without_a_connection_it_ends_once_after_the_grace(client, log):
    await client.open("/echo/a")
    await client.open("/echo/b")
    loop = asyncio.get_running_loop()
    await client.cut()
    start = loop.time()
    await log.until_count(2, ("close", Reason.TRANSPORT_CLOSE, 1006, ""))
    took = loop.time() - start
    # On polling the loss of a waiting GET is given `poll_grace` first.
    assert TIMES.grace - 0.05 <= took <= TIMES.grace + TIMES.poll_grace + 0.4
    welcome = await client.connect(client.resume_hello())
    assert not welcome.resumed
    assert [entry[0] for entry in log.entries].count("close") == 2


async def test_bye_ends_it_within_the_leave_time(client, log):
    await client.open("/echo/a")
    loop = asyncio.get_running_loop()
    await client.carrier.send("B")
    start = loop.time()
    await log.until("close", Reason.CLIENT_CLOSE, 1006, "")
    assert loop.time() - start <= TIMES.leave + 0.3


async def test_a_reload_after_bye_keeps_the_session(client, log):
    channel = await client.open("/echo/a")
    await client.carrier.send("B")
    assert (await client.resume()).resumed
    await client.send(channel, "back again")
    assert await client.message() == "back again"
    assert "close" not in [entry[0] for entry in log.entries]


@pytest.mark.parametrize(
    "wire",
    ["?", "O1{}", "1", "9:never opened", "+5", "+-1", 'H{"v":1}', 'A1{"protocol":""}', "C1[]", b"", b"\x00x"],
)
async def test_a_protocol_error_ends_this_session_only(base, client, log, transport, wire):
    other = SessionClient(base, transport=transport)
    await other.connect()
    channel = await other.open("/echo/other")
    await client.carrier.send(wire)
    end = await client.next()
    assert isinstance(end, frames.End)
    assert (end.code, end.retry) == (1002, False)
    assert await client.next() is None
    await other.send(channel, "undisturbed")
    assert await other.message() == "undisturbed"
    await other.close()


@pytest.mark.parametrize("wire", ["1:data", "B", "+0", "H", 'H{"v":2}', 'H{"v":1,"token":"x"}', b"x"])
async def test_the_first_frame_is_a_hello(base, transport, wire):
    client = SessionClient(base, transport=transport)
    await client.attach(wire)
    end = await client.frame()
    assert isinstance(end, frames.End)
    assert (end.code, end.retry) == (1002, False)
    await client.close()


async def test_a_client_that_never_says_hello_is_sent_away(log, transport):
    settings = Settings(ping=Ping(5.0, 5.0), timeouts=Timeouts(connect=0.2, close=0.5))
    async with running(Gateway(routes(log), settings=settings)) as base:
        carrier = await CARRIERS[transport].open(base, {})
        async with asyncio.timeout(PATIENCE):
            assert await carrier.incoming.get() is None
        await carrier.leave()


async def test_a_stop_tells_the_client_to_come_back(log, transport):
    gateway = Gateway(routes(log), settings=SETTINGS)
    async with running(gateway) as base:
        client = SessionClient(base, transport=transport)
        await client.connect()
        await client.open("/echo/a")
        await gateway.stop()
        # Now the application has been told, and so has the client.
        assert ("close", Reason.SHUTDOWN, 1012, "") in log.entries
        end = await client.next()
        assert isinstance(end, frames.End)
        assert end.retry
        with pytest.raises((ConnectionRefusedError, InvalidStatus), match="503"):
            await client.connect()
        await client.close()


async def test_what_waits_goes_out_before_the_end(log, transport):
    gateway = Gateway([bursts(log)], settings=Settings(timeouts=TIMES, limits=Limits(outbound_messages=60)))
    async with running(gateway) as base:
        client = SessionClient(base, transport=transport)
        await client.connect()
        channel = await client.open("/burst")
        await client.send(channel, "50")
        await log.until("said")
        await gateway.stop()
        got = [await client.next() for _ in range(51)]
        assert got[:50] == [frames.Data(channel, str(index)) for index in range(50)]
        assert isinstance(got[50], frames.End)
        await client.close()


# -- acknowledgements and pressure -----------------------------------------------------------------


async def test_acks_come_in_time_and_in_number(client):
    channel = await client.open("/echo/a")
    for index in range(100):
        await client.send(channel, str(index))
    for index in range(100):
        assert await client.message() == str(index)
    loop = asyncio.get_running_loop()
    start = loop.time()
    while client.unacknowledged:
        frame = await client.frame()
        assert isinstance(frame, frames.Ack)
        client.acked.append(frame.count)
        client._drop(frame.count)
    assert client.acked[0] == 64
    assert client.acked[-1] == 101
    assert loop.time() - start <= 1.3


@asynccontextmanager
async def connected(transport, routes, **limits):
    """A client of a gateway with these routes and bounds."""
    settings = Settings(timeouts=TIMES, ping=Ping(5.0, 5.0), limits=Limits(**limits))
    gateway = Gateway(routes, settings=settings)
    async with running(gateway) as base:
        client = SessionClient(base, transport=transport)
        await client.connect()
        try:
            yield client
        finally:
            await client.close()


def bursts(log, overflow="close"):
    """A route that says so many things at once, without waiting."""
    route = Route("/burst", overflow=overflow)

    @route.on_message
    async def _(handler, message):
        for index in range(int(message)):
            handler.write_message(str(index))
        log.note("said")

    @route.on_close
    async def _(handler, closing):
        log.note("close", closing.reason, closing.code, closing.text)

    return route


async def everything(client, until):
    """All frames up to the first of this kind, each of them acknowledged."""
    got: list[Any] = []
    while not got or not isinstance(got[-1], until):
        got.append(await client.next())
        await client.acknowledge()
    return got


async def test_a_channel_that_sends_too_much_is_closed_and_the_session_lives(log, transport):
    async with connected(transport, [bursts(log), *routes(log)], outbound_messages=50) as client:
        other = await client.open("/echo/a")
        channel = await client.open("/burst")
        await client.send(channel, "200")
        await log.until("said")
        *said, end = await everything(client, frames.Close)
        assert end == frames.Close(channel, 4008, "slow consumer")
        assert said == [frames.Data(channel, str(index)) for index in range(len(said))]
        assert len(said) < 50
        await log.until("close", Reason.SLOW_CONSUMER, 4008, "slow consumer")
        await client.send(other, "still here")
        assert await client.message() == "still here"


async def test_what_is_said_before_the_channel_is_accepted_is_bounded(log, transport):
    async with connected(transport, routes(log), outbound_messages=50) as client:
        await client.ask("/push?count=40")
        frame, *said = [await client.next() for _ in range(25)]
        assert frame == frames.Accept(1)
        await client.acknowledge()
        said += [await client.next() for _ in range(16)]
        assert [frame.data for frame in said] == [str(index) for index in range(40)]
        await client.ask("/push?count=200")
        assert await client.next() == frames.Accept(2)
        assert await client.next() == frames.Close(2, 4008, "slow consumer")


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", 20), ("latest", 1)])
async def test_what_is_dropped_is_told_where_it_stood(log, transport, overflow, kept):
    async with connected(transport, [bursts(log, overflow)], outbound_messages=50) as client:
        channel = await client.open("/burst")
        await client.send(channel, "200")
        await log.until("said")
        got: list[Any] = []
        while not got or got[-1] != frames.Data(channel, "199"):
            got.append(await client.next())
            await client.acknowledge()
        texts = [frame.data for frame in got if isinstance(frame, frames.Data)]
        gaps = [frame.messages for frame in got if isinstance(frame, frames.Dropped)]
        before = next(at for at, frame in enumerate(got) if isinstance(frame, frames.Dropped))
        assert len(gaps) == 1
        assert texts == [str(n) for n in (*range(before), *range(before + gaps[0], 200))]
        assert len(texts) - before >= kept


async def test_the_channel_that_is_to_blame_is_closed_not_the_one_that_notices(log, transport):
    async with connected(transport, [bursts(log), *routes(log)], outbound_messages=50) as client:
        first, second = await client.open("/burst"), await client.open("/burst")
        await client.send(first, "46")
        await log.until("said")
        await client.send(second, "10")
        await log.until_count(2, "said")
        ends = {frames.Close(first, 4008, "slow consumer"), "9"}
        texts = []
        while ends:
            frame = await client.next()
            await client.acknowledge()
            if isinstance(frame, frames.Data) and frame.channel == second:
                texts.append(frame.data)
            ends -= {frame if isinstance(frame, frames.Close) else texts[-1] if texts else ""}
        assert texts == [str(n) for n in range(10)]


async def test_one_message_of_a_channel_that_has_nothing_waiting_always_fits(log, transport):
    async with connected(transport, [bursts(log), *routes(log)], outbound_messages=50) as client:
        channel, other = await client.open("/burst"), await client.open("/echo/a")
        await client.send(channel, "48")
        await log.until("said")
        for text in ("there", "is", "room"):
            await client.send(other, text)
        got = [await client.next() for _ in range(23)]
        for _ in range(28):
            await client.acknowledge()
            got.append(await client.next())
        assert [frame.data for frame in got if frame.channel == other] == ["there", "is", "room"]
        assert [frame.data for frame in got if frame.channel == channel] == [str(n) for n in range(48)]


async def test_whoever_opens_and_closes_without_an_ack_is_let_go(log, transport):
    async with connected(transport, routes(log), outbound_messages=20) as client:
        with suppress(ConnectionClosed, AssertionError):  # somewhere in the middle
            for number in range(1, 60):
                await client.post(frames.Open(number, "/nowhere"), frames.Close(number))
        while isinstance(frame := await client.next(), frames.Refuse | frames.Close):
            pass
        assert frame is None or frame.code == 4008
        assert not (await client.resume()).resumed


async def test_an_echo_of_much_more_than_all_buffers_comes_back(client):
    """The client sends 4 MB before it acknowledges anything: neither side may wait for the other."""
    channel = await client.open("/echo/a")
    sent = [bytes([index]) * 40_000 for index in range(100)]

    async def send():
        for data in sent:
            await client.send(channel, data)

    sending = asyncio.create_task(send())
    for index, data in enumerate(sent):
        assert await client.message() == data
        if index % 4 == 3:
            await client.acknowledge()
    await sending


def slow(log, gate):
    """A route whose handler waits at the gate."""
    route = Route("/slow")

    @route.on_message
    async def _(handler, message):
        await gate.wait()
        log.note(len(message))

    @route.on_close
    async def _(handler, closing):
        log.note("close", closing.reason, closing.code, closing.text)

    return route


@asynccontextmanager
async def reading(client):
    """Read and acknowledge all that comes: a log of the frames."""
    heard = Log()

    async def read():
        while (frame := await client.next()) is not None:
            heard.note(frame)
            await client.acknowledge()

    task = asyncio.create_task(read())
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_slow_handler_stops_its_channel_and_no_other(log, transport):
    gate = asyncio.Event()
    async with connected(transport, [slow(log, gate), *routes(log)], inbound_bytes=10_000) as client:
        channel, other = await client.open("/slow"), await client.open("/echo/a")
        async with reading(client) as heard:
            sending = asyncio.create_task(send_many(client, channel, 20))
            pings = 0
            while client.credit[channel] > 0 or pings < 2:
                pings += 1
                await client.send(other, f"is anybody there? {pings}")
                await heard.until(frames.Data(other, f"is anybody there? {pings}"))
            # Half a window is granted again while no more than half a one waits, and one is with the handler.
            assert client.credit[channel] <= 0
            assert not sending.done()
            gate.set()
            await sending
            await log.until_count(20, 1000)


async def send_many(client, channel, count):
    for _ in range(count):
        await client.send(channel, b"x" * 1000)


async def test_more_than_was_granted_closes_the_channel(log, transport):
    gate = asyncio.Event()
    async with connected(transport, [slow(log, gate), *routes(log)], inbound_bytes=10_000) as client:
        channel, other = await client.open("/slow"), await client.open("/echo/a")
        for _ in range(20):
            await client.post(frames.Data(channel, b"x" * 1000))
        assert await client.next() == frames.Close(channel, 1008, "more was sent than was granted")
        await client.post(frames.Data(channel, b"ignored"), frames.Close(channel))
        await client.send(other, "still here")
        assert await client.message() == "still here"
        gate.set()
        await log.until("close", Reason.PARSE_ERROR, 1008, "more was sent than was granted")
        assert 8 <= log.entries.count(1000) <= 13, "all that was granted was handled"


async def test_a_message_over_the_limit_closes_its_channel(log, transport):
    async with connected(transport, [*routes(log)], message=100_000) as client:
        assert client.welcome.message == 100_000
        channel, other = await client.open("/echo/a"), await client.open("/echo/b")
        await client.send(channel, "x" * 100_000)
        assert await client.message() == "x" * 100_000
        for data in ("x" * 100_001, "é" * 50_001, b"x" * 100_001):
            await client.send(channel, data)
            assert await client.next() == frames.Close(channel, 1009, "the message is too big")
            await client.post(frames.Close(channel))
            channel = await client.open("/echo/a")
        await client.send(other, "still here")
        assert await client.message() == "still here"


async def test_the_application_may_not_send_more_than_the_limit_either(log, transport):
    big = Route("/big")

    @big.on_message
    async def _(handler, message):
        handler.write_message("first")
        handler.write_message("x" * int(message))

    async with connected(transport, [big], message=100_000) as client:
        channel = await client.open("/big")
        await client.send(channel, "100000")
        assert [await client.message(), await client.message()] == ["first", "x" * 100_000]
        await client.send(channel, "100001")
        assert await client.message() == "first"
        assert await client.next() == frames.Close(channel, 1009, "the message is too big")


async def test_what_is_unfinished_is_bounded_over_all_channels(log, transport):
    async with connected(transport, [*routes(log)], message=50_000) as client:
        channels = [await client.open(f"/echo/{index}") for index in range(5)]
        for channel in channels:
            await client.post(frames.Data(channel, b"x" * 24_000, True))
        late = frames.Close(channels[4], 1009, "too many messages of this page are unfinished")
        assert await client.next() == late
        await client.post(frames.Data(channels[0], b"end"))
        assert await client.message() == b"x" * 24_000 + b"end"


async def test_parts_of_two_kinds_end_the_session(client):
    channel = await client.open("/echo/a")
    await client.post(frames.Data(channel, "text", True), frames.Data(channel, b"bytes"))
    end = await client.next()
    assert isinstance(end, frames.End)
    assert end.code == 1002


def session_of(client: SessionClient) -> Session:
    gc.collect()
    (session,) = (
        each for each in gc.get_objects() if type(each) is Session and each.id == client.welcome.session
    )
    return session


async def until_true(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it has not come to that")


async def test_a_page_that_fills_every_channel_is_not_read_any_further(log, transport):
    gate = asyncio.Event()
    bounds = {"inbound_bytes": 10_000, "message": 20_000}
    async with connected(transport, [slow(log, gate), *routes(log)], **bounds) as client:
        session = session_of(client)
        channels = [await client.open("/slow") for _ in range(12)]
        other = await client.open("/echo/other")
        sending = asyncio.create_task(fill(client, channels, other))
        await until_true(lambda: session.held.is_full)
        for _ in range(2_000):  # turns in which more would be read
            await asyncio.sleep(0)
        assert session.held.is_full
        assert session.held.size <= session.held.limit + 9_256
        log.note("gate")
        gate.set()
        await sending
        await log.until_count(24, 9_000)
        await log.until("message", "behind it all")
        assert log.entries.index(("message", "behind it all")) > log.entries.index("gate")
        await until_true(lambda: session.held.size == 0)


async def test_messages_that_handlers_are_at_work_with_count_too(log, transport):
    gate = asyncio.Event()
    bounds = {"inbound_bytes": 10_000, "message": 20_000}
    async with connected(transport, [slow(log, gate), *routes(log)], **bounds) as client:
        session = session_of(client)
        channels = [await client.open("/slow") for _ in range(12)]
        sending = asyncio.create_task(client.post(*(frames.Data(each, b"x" * 9_000) for each in channels)))
        await until_true(lambda: session.held.is_full)
        gate.set()
        await sending
        await log.until_count(12, 9_000)
        await until_true(lambda: session.held.size == 0)


async def fill(client, channels, other):
    """Two messages on each channel: as much as may be sent."""
    for channel in channels * 2:
        await client.post(frames.Data(channel, b"x" * 9_000))
    await client.post(frames.Data(other, "behind it all"))


MUCH: dict[str, Any] = {"text": "xé" + "x" * 5_000_000, "bytes": bytes(range(256)) * 20_000}


@pytest.mark.parametrize("kind", MUCH)
async def test_a_huge_message_each_way_delays_no_other_channel(client, kind):
    """Counted in frames that lie between, not in time."""
    huge, other = await client.open("/echo/huge"), await client.open("/echo/other")
    wires = in_parts(huge, MUCH[kind])
    assert len(wires) > 150
    async with reading(client) as heard:
        await client.send(other, "before")
        sending = asyncio.create_task(client.send(huge, MUCH[kind]))
        for index in range(3):
            await client.send(other, f"up {index}")
            await heard.until(frames.Data(other, f"up {index}"))
        assert not sending.done(), "the others did not wait for all of it"
        await sending
        first = frames.decode(in_parts(huge, MUCH[kind])[0])
        await heard.until(first)
        begun = heard.entries.index(first)
        asked = len(heard.entries)
        await client.send(other, "down")
        await heard.until(frames.Data(other, "down"))
        between = heard.entries.index(frames.Data(other, "down")) - asked
        last = frames.decode(wires[-1])
        await heard.until(last)
        echo = [frame.data for frame in heard.entries if frame.channel == huge]
    assert echo[0][:0].join(echo) == MUCH[kind]
    assert asked < begun + len(wires) / 2
    # What was under way, and as much again that left before the question had arrived.
    assert between <= 2 * UNDER_WAY / 24_000
