"""What is wrong with other engines, and is not wrong here: one test for each known fault.

The numbers are those of the study that this project began with. `HELD_BY` says which test holds a
finding; those that concern `EngineServer`'s API alone are in `tests/test_engine.py`.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import json
import logging
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.access import Access
from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.connection import Connection
from gateway.protocol.forwarded import parse_networks, read_peer
from gateway.protocol.origins import OriginPolicy
from gateway.protocol.reasons import Reason
from tests.support.raw import BINARY, PONG, TEXT, close, frame, request, text, upgrade
from tests.support.witness import POLLING, WEBSOCKET, Witness, serve

ROOT = Path(__file__).parents[2]
ENGINE = "tests/test_engine.py"
INPUT = "tests/integration/test_bad_input.py"
LOAD = "tests/test_heartbeat_load.py"
LATER = "the Socket.IO layer, which is not served yet"

HELD_BY: dict[int, list[str]] = {
    1: ["test_01_a_post_in_several_segments_arrives_whole"],
    2: ["test_02_a_chunked_post_arrives_and_a_compressed_one_is_refused"],
    3: ["test_03_seventeen_packets_in_one_post_are_seventeen_messages"],
    4: ["test_04_a_bad_packet_is_told_and_nothing_of_its_post_is_delivered"],
    5: [
        "test_05_a_refused_post_is_answered",
        f"{ENGINE}::test_finding_5_disconnecting_a_vanished_client_returns_at_once",
    ],
    6: ["test_06_a_lost_poll_loses_no_message"],
    7: ["test_07_two_gets_at_once_close_the_connection", "test_07_two_posts_at_once_close_the_connection"],
    8: [
        "test_08_text_that_looks_like_json_stays_text",
        f"{ENGINE}::test_finding_8_only_objects_and_arrays_are_decoded",
    ],
    9: [
        "test_09_messages_come_in_order_and_none_after_the_end",
        f"{ENGINE}::test_finding_9_events_are_handled_in_order",
    ],
    10: ["test_10_a_failed_upgrade_leaves_polling_working"],
    11: ["test_11_the_silent_are_detected_in_time", LOAD],
    12: ["test_12_the_end_of_a_waiting_get_is_noticed"],
    13: ["test_13_a_step_of_the_wall_clock_changes_nothing"],
    14: ["test_14_a_blocked_loop_expires_nobody"],
    15: ["test_15_a_client_that_is_expired_is_told"],
    16: [f"{ENGINE}::test_finding_16_a_disconnect_handler_that_raises_typeerror_is_called_once"],
    17: ["test_17_a_bad_frame_is_the_end_at_once"],
    18: ["test_18_an_application_that_fails_at_the_end_leaves_nobody_behind"],
    19: [
        "test_19_a_stop_tells_everybody_and_takes_no_time",
        f"{ENGINE}::test_finding_19_sigterm_under_run_app",
    ],
    20: ["test_20_peers_that_stop_reading_leave_nothing_behind"],
    21: [
        f"{ENGINE}::test_finding_21_disconnecting_everybody",
        "test_21_fractions_of_a_second_are_advertised",
    ],
    22: [
        "test_22_what_waits_for_a_client_is_bounded",
        f"{ENGINE}::test_finding_22_a_client_that_never_reads_is_closed",
    ],
    23: ["test_23_one_handler_at_a_time_and_what_waits_for_it_is_bounded"],
    24: ["test_24_handshakes_that_lead_to_nothing_are_bounded_and_forgotten"],
    25: [LATER],
    26: [f"{INPUT}::test_b30_a_request_head_that_never_ends", f"{INPUT}::test_b31_a_body_that_never_ends"],
    27: ["test_27_large_text_is_not_parsed"],
    28: [
        "test_28_what_is_switched_off_cannot_be_had",
        f"{ENGINE}::test_finding_28_no_upgrade_where_none_is_allowed",
    ],
    29: [
        "test_29_any_origin_never_means_with_credentials",
        f"{ENGINE}::test_finding_29_a_stranger_cannot_forward_itself_in",
    ],
    30: ["test_30_the_address_is_the_browsers_and_the_sid_is_in_no_log"],
    31: ["test_31_jsonp_is_not_there_and_nothing_is_sniffed"],
    32: [f"{INPUT}::test_a_broken_frame_ends_the_websocket_with_its_code_and_the_session_at_once",
         f"{INPUT}::test_b99_an_upgrade_to_something_else_is_refused_and_no_tunnel",
         f"{INPUT}::test_framing", f"{INPUT}::test_b27_the_body_of_an_upgrade_is_not_read_as_a_request"],
}  # fmt: skip

SETTINGS = Settings(
    ping=Ping(30.0, 30.0), timeouts=Timeouts(poll_hold=0.2, poll_grace=0.2, close=0.05, upgrade=0.3)
)
FAST = replace(SETTINGS, ping=Ping(0.2, 0.2))
CHUNKED = "Transfer-Encoding: chunked"


def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("number", range(1, 33))
def test_every_finding_is_held_by_tests_that_exist(number):
    for place in HELD_BY[number]:
        if place == LATER:
            continue
        file, _, name = place.rpartition("::")
        if name.endswith(".py"):
            assert (ROOT / name).exists()
        else:
            assert name in functions_of(file or str(Path(__file__).relative_to(ROOT)))


@pytest.fixture
async def endpoint():
    async with serve(SETTINGS) as running:
        yield running


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [1, 500, 1_000])
async def test_01_a_post_in_several_segments_arrives_whole(endpoint, split):
    sid = await endpoint.handshake()
    first, second = "x" * 999, "y" * 999
    body = f"4{first}\x1e4{second}".encode()
    data = request("POST", f"{POLLING}&sid={sid}", body=body)
    async with endpoint.raw() as raw:
        await raw.send(data[:-split])
        await endpoint.get("unknown")  # when this is answered, the first segment has been read
        await raw.send(data[-split:])
        assert (await raw.response()).body == b"ok"
    assert endpoint.witness.messages[sid] == [first, second]


async def test_01_a_post_of_900_kilobytes_arrives_whole(endpoint):
    sid = await endpoint.handshake()
    assert (await endpoint.post(sid, b"4" + b"x" * 900_000)).body == b"ok"
    assert endpoint.witness.messages[sid] == ["x" * 900_000]


async def test_02_a_chunked_post_arrives_and_a_compressed_one_is_refused(endpoint):
    sid = await endpoint.handshake()
    target = f"{POLLING}&sid={sid}"
    chunked = request("POST", target, CHUNKED, body=b"3\r\n4on\r\n1\r\ne\r\n0\r\n\r\n")
    assert (await endpoint.ask(chunked)).body == b"ok"
    assert (
        await endpoint.ask(request("POST", target, "Content-Encoding: gzip", body=b"\x1f\x8b"))
    ).status == 415
    assert endpoint.witness.messages[sid] == ["one"]


async def test_03_seventeen_packets_in_one_post_are_seventeen_messages(endpoint):
    sid = await endpoint.handshake()
    texts = [str(n) for n in range(17)]
    assert (await endpoint.post(sid, "\x1e".join("4" + each for each in texts).encode())).body == b"ok"
    assert endpoint.witness.messages[sid] == texts


@pytest.mark.parametrize(
    "bad",
    [b"", b"x", b"7", b"9", b"\xff", b"b!!!!", b"0", b"2", b"6"],
    ids=["empty", "x", "7", "9", "not UTF-8", "not base64", "open", "ping", "noop"],
)
async def test_04_a_bad_packet_is_told_and_nothing_of_its_post_is_delivered(endpoint, bad):
    sid = await endpoint.handshake()
    response = await endpoint.post(sid, b"4one\x1e" + bad + b"\x1e4two")
    assert (response.status, response.code) == (400, 3)
    assert endpoint.witness.messages[sid] == []
    assert (await endpoint.witness.closing(sid)).reason is Reason.PARSE_ERROR


@pytest.mark.parametrize(
    ("body", "status"), [(b"4" * 1_000_001, 413), (b"0", 400), (b"2", 400), (b"6", 400)], ids=["long", *"026"]
)
async def test_05_a_refused_post_is_answered(endpoint, body, status):
    sid = await endpoint.handshake()
    began = time.monotonic()
    assert (await endpoint.post(sid, body)).status == status
    assert time.monotonic() - began < 1.0


async def test_06_a_lost_poll_loses_no_message(endpoint):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        await raw.send(request("GET", f"{POLLING}&sid={sid}"))
        await endpoint.post(sid, b"4seen")
        raw.finish()
        assert await raw.ended()
    got: list[bytes] = []
    for data in ("msg0", "msg1", "msg2"):
        endpoint.witness.channels[sid].send(data)
        got += (await endpoint.get(sid)).body.split(b"\x1e")
    assert got == [b"4msg0", b"4msg1", b"4msg2"]


async def test_07_two_gets_at_once_close_the_connection(endpoint):
    sid = await endpoint.handshake()
    async with endpoint.raw() as first:
        await first.send(request("GET", f"{POLLING}&sid={sid}"))
        await endpoint.get("unknown")
        second = await endpoint.get(sid)
        assert (second.status, second.code) == (400, 3)
        assert (await first.response()).body == b"1"
    assert (await endpoint.get(sid)).code == 1
    assert (await endpoint.witness.closing(sid)).reason is Reason.TRANSPORT_ERROR


async def test_07_two_posts_at_once_close_the_connection(endpoint):
    sid = await endpoint.handshake()
    async with endpoint.raw() as first:
        await first.send(request("POST", f"{POLLING}&sid={sid}", "Content-Length: 10", body=b"4a"))
        await endpoint.get("unknown")
        second = await endpoint.post(sid, b"4b")
        assert (second.status, second.code) == (400, 3)
        await first.send(b"aaaaaaaa")
        assert (await first.response()).status == 400
    assert (await endpoint.witness.closing(sid)).reason is Reason.TRANSPORT_ERROR
    assert endpoint.witness.messages[sid] == []


@pytest.mark.parametrize(
    "data", ["true", "null", '"abc"', " 12", "-1", "NaN", '{"a":1,"a":2}', "123456789012345678901234567890"]
)
async def test_08_text_that_looks_like_json_stays_text(endpoint, data):
    sid = await endpoint.handshake()
    await endpoint.post(sid, b"4echo" + data.encode())
    assert (await endpoint.get(sid)).body == b"4echo" + data.encode()
    await endpoint.post(sid, b"4" + data.encode())
    assert endpoint.witness.messages[sid] == [data]


async def test_09_messages_come_in_order_and_none_after_the_end(monkeypatch):
    """`Witness` itself insists that nothing comes after the end, and that this comes once."""
    order = []
    handle = Witness.message

    async def slowly(self, channel, data):
        await asyncio.sleep(0.02 if data == "a" else 0)
        order.append(data)
        await handle(self, channel, data)

    monkeypatch.setattr(Witness, "message", slowly)
    async with serve(replace(SETTINGS, ping=Ping(0.1, 0.1))) as endpoint:
        sid = await endpoint.handshake()
        await endpoint.post(sid, b"4a\x1e4b\x1e1")
        assert (await endpoint.witness.closing(sid)).reason is Reason.CLIENT_CLOSE
        assert order == ["a", "b"]
        async with endpoint.raw() as raw:  # sends, but never answers a ping
            sid = await endpoint.websocket(raw)
            while sid not in endpoint.witness.closings:
                await raw.send(text("4busy"))
                await asyncio.sleep(0.01)
        assert endpoint.witness.closings[sid].reason is Reason.PING_TIMEOUT


@pytest.mark.parametrize(
    "how",
    ["close before the probe", "reset before the probe", "bad packet", "stall", "stall after the probe"],
)
async def test_10_a_failed_upgrade_leaves_polling_working(endpoint, how):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        assert (await raw.ask(upgrade(f"{WEBSOCKET}&sid={sid}"))).status == 101
        if "close" in how:
            await raw.send(close(1000))
        elif "reset" in how:
            raw.reset()
        elif "bad" in how:
            await raw.send(text("xabc"))
        elif "after" in how:
            await raw.send(text("2probe"))
            assert await raw.frame() == (TEXT, b"3probe")
        assert await raw.ended(), "given up after the upgrade's 0.3 s"
    began = time.monotonic()
    assert (await endpoint.get(sid)).body == b"6"
    assert time.monotonic() - began >= 0.19, "answered at once, again and again"
    endpoint.witness.channels[sid].send("still here")
    assert (await endpoint.get(sid)).body == b"4still here"
    assert sid not in endpoint.witness.closings


# -- liveness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 20])
async def test_11_the_silent_are_detected_in_time(count, monkeypatch):
    async with serve(FAST) as endpoint:
        loop = asyncio.get_running_loop()
        ended: dict[str, float] = {}
        handle = endpoint.witness.close

        async def note(channel, closing):
            ended[channel.id] = loop.time()
            await handle(channel, closing)

        monkeypatch.setattr(endpoint.witness, "close", note)
        lines, began = [], {}
        for n in range(count):
            if n % 2:
                began[await endpoint.handshake()] = loop.time()
            else:
                lines.append(await endpoint.raw().__aenter__())
                began[await endpoint.websocket(lines[-1])] = loop.time()
        for sid in began:
            assert (await endpoint.witness.closing(sid)).reason is Reason.PING_TIMEOUT
        for line in lines:
            await line.__aexit__(None, None, None)
    for sid, when in began.items():
        assert 0.35 <= ended[sid] - when <= 0.6


async def test_12_the_end_of_a_waiting_get_is_noticed(endpoint):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        await raw.send(request("GET", f"{POLLING}&sid={sid}"))
        await endpoint.post(sid, b"4seen")
    assert (await endpoint.witness.closing(sid, patience=1.0)).reason is Reason.TRANSPORT_CLOSE


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_13_a_step_of_the_wall_clock_changes_nothing(monkeypatch, step):
    real = time.time
    async with serve(FAST) as endpoint, endpoint.raw() as living, endpoint.raw() as silent:
        sid = await endpoint.websocket(living)
        silent_sid = await endpoint.websocket(silent)
        assert await living.frame() == (TEXT, b"2")
        monkeypatch.setattr(time, "time", lambda: real() + step)
        for _ in range(3):
            await living.send(text("3"))
            assert await living.frame() == (TEXT, b"2")
        assert endpoint.witness.closings[silent_sid].reason is Reason.PING_TIMEOUT
        assert sid not in endpoint.witness.closings


async def test_14_a_blocked_loop_expires_nobody(caplog):
    """20 clients have been pinged; their pongs are in the kernel while the loop is blocked."""
    async with serve(FAST) as endpoint:
        lines = [await endpoint.raw().__aenter__() for _ in range(10)]
        sids = [await endpoint.websocket(line) for line in lines]
        polling = [await endpoint.handshake() for _ in range(10)]
        for line in lines:
            assert await line.frame() == (TEXT, b"2")
        for sid in polling:
            while b"2" not in (await endpoint.get(sid)).body.split(b"\x1e"):
                pass
        posts = [await endpoint.raw().__aenter__() for _ in polling]
        for line in lines:
            line._writer.write(text("3"))
        for post, sid in zip(posts, polling, strict=True):
            post._writer.write(request("POST", f"{POLLING}&sid={sid}", body=b"3"))
        time.sleep(1.0)  # noqa: ASYNC251 - this is what must not kill anybody
        for line in lines:
            assert await line.frame() == (TEXT, b"2")
        assert not endpoint.witness.closings
        assert not set(sids + polling) - endpoint.registry.connections.keys()
        assert "The event loop was blocked for 1." in caplog.text
        assert "test_14_a_blocked_loop_expires_nobody" in caplog.text
        for line in [*lines, *posts]:
            await line.__aexit__(None, None, None)


async def test_15_a_client_that_is_expired_is_told():
    async with serve(FAST) as endpoint, endpoint.raw() as raw:
        await endpoint.websocket(raw)
        assert await raw.frame() == (TEXT, b"2")
        assert await raw.frame() == (TEXT, b"1")
        assert await raw.close_code() == Reason.PING_TIMEOUT.code
        sid = await endpoint.handshake()
        body = b""
        while body in (b"", b"2", b"6"):
            body = (await endpoint.get(sid)).body
        assert body == b"1"
        assert (await endpoint.get(sid)).code == 1


@pytest.mark.parametrize("data", ["xabc", "", "bAAA"])
async def test_17_a_bad_frame_is_the_end_at_once(endpoint, data):
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        await raw.send(text(data))
        closing = await endpoint.witness.closing(sid, patience=1.0)
    assert closing.reason is Reason.PARSE_ERROR


async def test_18_an_application_that_fails_at_the_end_leaves_nobody_behind(endpoint, monkeypatch, caplog):
    handle = endpoint.witness.close

    async def fail(channel, closing):
        await handle(channel, closing)
        raise TypeError("this handler is broken")

    monkeypatch.setattr(endpoint.witness, "close", fail)
    sids = [await endpoint.handshake() for _ in range(50)]
    for sid in sids:
        await endpoint.post(sid, b"1")
    for sid in sids:
        await endpoint.witness.closing(sid)
    assert not endpoint.registry.connections
    assert caplog.text.count("TypeError: this handler is broken") == 50


async def test_19_a_stop_tells_everybody_and_takes_no_time():
    async with serve(replace(SETTINGS, timeouts=Timeouts(poll_hold=10.0, close=5.0))) as endpoint:
        sockets = [await endpoint.raw().__aenter__() for _ in range(2)]
        sids = [await endpoint.websocket(each) for each in sockets]
        polls = [await endpoint.raw().__aenter__() for _ in range(2)]
        for each in polls:
            sids.append(await endpoint.handshake())
            await each.send(request("GET", f"{POLLING}&sid={sids[-1]}"))
        await endpoint.get("unknown")
        began = time.monotonic()
        stop = asyncio.create_task(endpoint.runner.cleanup())
        for each in polls:
            assert (await each.response()).body == b"1"
        for each in sockets:
            assert await each.frame() == (TEXT, b"1")
            assert await each.close_code() == 1012
            await each.send(close(1012))
            assert await each.ended()
        await stop
        assert time.monotonic() - began < 2.0
        for sid in sids:
            assert (await endpoint.witness.closing(sid)).reason is Reason.SHUTDOWN
        for each in [*sockets, *polls]:
            await each.__aexit__(None, None, None)


async def test_20_peers_that_stop_reading_leave_nothing_behind():
    settings = replace(SETTINGS, timeouts=Timeouts(send=0.2, close=0.2))
    async with serve(settings) as endpoint:
        before = len(asyncio.all_tasks())
        lines = [await endpoint.raw().__aenter__() for _ in range(5)]
        sids = [await endpoint.websocket(each) for each in lines]
        for each in lines:
            each.stop_reading()
        for sid in sids:
            transport = endpoint.registry.connections[sid].transport
            assert transport is not None
            while transport.writable:
                endpoint.witness.channels[sid].send("x" * 100_000)
        for sid in sids:
            assert (await endpoint.witness.closing(sid)).reason is Reason.SLOW_CONSUMER
        for each in lines:
            await each.__aexit__(None, None, None)
        await endpoint.get("unknown")
        assert not endpoint.registry.connections
        assert len(asyncio.all_tasks()) <= before + 1, "that of the last GET may still be there"


@pytest.mark.parametrize(("seconds", "ms"), [(2.5, 2500), (0.3, 300), (25, 25_000)])
async def test_21_fractions_of_a_second_are_advertised(seconds, ms):
    async with serve(replace(SETTINGS, ping=Ping(seconds, seconds))) as endpoint:
        opened = json.loads((await endpoint.ask(request("GET", POLLING))).body[1:])
    assert (opened["pingInterval"], opened["pingTimeout"]) == (ms, ms)


# -- limits ----------------------------------------------------------------------------------------


async def test_22_what_waits_for_a_client_is_bounded(endpoint):
    """It answers pings for ever, and fetches nothing."""
    sid = await endpoint.handshake()
    connection = endpoint.registry.connections[sid]
    channel = endpoint.witness.channels[sid]
    for n in range(100):
        channel.send("x" * 100_000)
        assert connection._queued_bytes <= 1_048_576 + 100_001
        if connection.state.is_over:
            break
        if n % 5 == 0:
            await endpoint.post(sid, b"3")
    assert (await endpoint.witness.closing(sid)).reason is Reason.SLOW_CONSUMER
    assert connection._queued_bytes == 0


async def test_23_one_handler_at_a_time_and_what_waits_for_it_is_bounded(monkeypatch):
    gate, done, running, most = asyncio.Event(), asyncio.Event(), 0, 0
    handled = []

    async def slow(self, channel, data):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        handled.append(data)
        running -= 1
        if data == "last":
            done.set()

    monkeypatch.setattr(Witness, "message", slow)
    async with serve(replace(SETTINGS, limits=Limits(inbound_messages=16))) as endpoint:
        async with endpoint.raw() as raw:
            sid = await endpoint.websocket(raw)
            await raw.send(frame(BINARY, b"x" * 2_000))
            flood = asyncio.create_task(raw.send(frame(BINARY, b"x" * 2_000) * 5_000))
            await asyncio.sleep(0.2)
            assert not flood.done(), "10 MB were read for a handler that is behind"
            assert endpoint.registry.connections[sid].is_paused
            gate.set()
            await asyncio.wait_for(flood, 10)
            await raw.send(text("4last"))
            await asyncio.wait_for(done.wait(), 10)
        assert len(handled) == 5_002
        assert most == 1
        assert handled[-1] == "last"


async def test_24_handshakes_that_lead_to_nothing_are_bounded_and_forgotten():
    settings = replace(SETTINGS, limits=Limits(half_open=20), timeouts=Timeouts(connect=0.3, close=0.05))
    async with serve(settings) as endpoint:
        sids = [await endpoint.handshake() for _ in range(20)]
        response = await endpoint.ask(request("GET", POLLING))
        assert response.status == 429
        assert int(response.headers["retry-after"]) > 0
        for sid in sids:
            assert (await endpoint.witness.closing(sid)).reason is Reason.NEVER_OPENED
        assert not endpoint.registry.connections
        await endpoint.handshake()


async def test_27_large_text_is_not_parsed(endpoint):
    data = "[" * 999_000
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        tracemalloc.start()
        await raw.send(text("4" + data))
        assert await endpoint.witness.heard(sid, 1) == [data]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 12_000_000, "python-engineio needed 41 MB"


# -- safety ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [replace(SETTINGS, upgrades=False), replace(SETTINGS, transports=("polling",))]
)
async def test_28_what_is_switched_off_cannot_be_had(settings):
    async with serve(settings) as endpoint:
        sid = await endpoint.handshake()
        assert (await endpoint.ask(upgrade(f"{WEBSOCKET}&sid={sid}"))).code == 0
        response = await endpoint.ask(upgrade(f"{POLLING}&sid={sid}"))
        assert (response.status, response.code) == (400, 3)
    async with serve(replace(SETTINGS, transports=("websocket",))) as endpoint:
        assert (await endpoint.ask(request("GET", POLLING))).code == 0


@pytest.mark.parametrize(
    ("origins", "told"),
    [
        (["*"], {"access-control-allow-origin": "*"}),
        (
            ["https://good.com"],
            {
                "access-control-allow-origin": "https://good.com",
                "access-control-allow-credentials": "true",
                "vary": "Origin",
            },
        ),
    ],
    ids=["any", "listed"],
)
async def test_29_any_origin_never_means_with_credentials(origins, told):
    async with serve(SETTINGS, access=Access(OriginPolicy(origins))) as endpoint:
        response = await endpoint.ask(request("GET", POLLING, "Origin: https://good.com"))
        assert response.status == 200
        cors = {k: v for k, v in response.headers.items() if k.startswith("access-control") or k == "vary"}
        assert cors == told


async def test_30_the_address_is_the_browsers_and_the_sid_is_in_no_log(endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    sid = await endpoint.handshake()
    assert endpoint.witness.channels[sid].request.remote == "127.0.0.1"
    assert (
        read_peer("10.0.0.1", "http", {"X-Forwarded-For": "1.2.3.4"}, parse_networks(["10.0.0.1"])).address
        == "1.2.3.4"
    )
    long = "s" * 40
    endpoint.registry.connections[long] = connection = endpoint.registry.connections.pop(sid)
    connection.listener.id = connection.sid = long
    await endpoint.post(long, b"1")
    await endpoint.witness.closing(long)
    assert long not in caplog.text


async def test_31_jsonp_is_not_there_and_nothing_is_sniffed(endpoint):
    sid = await endpoint.handshake()
    assert (await endpoint.ask(request("GET", f"{POLLING}&sid={sid}&j=0"))).code == 3
    endpoint.witness.channels[sid].send('x\\");alert(1)//\nz')
    response = await endpoint.get(sid)
    assert response.headers["content-type"] == "text/plain; charset=UTF-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"


async def test_32_pings_of_the_websocket_are_answered_and_unasked_pongs_ignored(endpoint):
    async with endpoint.raw() as raw:
        await endpoint.websocket(raw)
        await raw.send(frame(PONG, b"x") + frame(0x9, b"y"))
        assert await raw.frame() == (PONG, b"y")


async def test_connections_that_are_over_do_not_stay_in_memory(endpoint):
    for _ in range(300):
        sid = await endpoint.handshake()
        await endpoint.post(sid, b"1")
        await endpoint.witness.closing(sid)
        del endpoint.witness.messages[sid], endpoint.witness.channels[sid]
    gc.collect()
    assert sum(isinstance(each, Connection) for each in gc.get_objects()) < 150
