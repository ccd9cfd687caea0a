"""Bad input over real sockets, row by row. The names (B1 …) are those of the project's list.

Each row says what the answer is. Around every row, and not repeated in it: somebody else's sessions
echo before and after, the process stands, and the log holds no error and no traceback.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
import tracemalloc
import zlib
from dataclasses import dataclass, replace

import pytest

from gateway.access import Access
from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.protocol.origins import OriginPolicy
from gateway.protocol.reasons import Reason
from tests.support.raw import (
    BINARY,
    CLOSE,
    KEY,
    PING,
    PONG,
    TEXT,
    Raw,
    close,
    frame,
    request,
    text,
    upgrade,
)
from tests.support.witness import PATH, POLLING, WEBSOCKET, canary, serve

SETTINGS = Settings(
    ping=Ping(30.0, 30.0),
    timeouts=Timeouts(header=0.4, body=0.4, poll_hold=0.2, close=0.03, upgrade=5.0),
    limits=Limits(payload=100_000),
)
CONT = 0x0


@pytest.fixture
async def endpoint(caplog):
    caplog.set_level(logging.INFO)
    async with serve(SETTINGS) as running, canary(running):
        yield running
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert errors == []


@dataclass
class Row:
    """`data` is sent; `{sid}` in it is a live session's. `code` is Engine.IO's, or None."""

    name: str
    data: bytes
    status: int
    code: int | None = None
    closes: bool = False


def rows(*table: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", table, ids=[row.name for row in table])


def get(query: str, *headers: str) -> bytes:
    return request("GET", f"{PATH}?{query}", *headers)


LIVE = "EIO=4&transport=polling&sid={sid}"


# -- query and handshake ---------------------------------------------------------------------------


@rows(
    Row("B1-no-EIO", get("transport=polling"), 400, 5),
    Row("B2-EIO-3", get("EIO=3&transport=polling"), 400, 5),
    Row("B2-EIO-5", get("EIO=5&transport=polling"), 400, 5),
    Row("B2-EIO-abc", get("EIO=abc&transport=polling"), 400, 5),
    Row("B2-EIO-full-width", get("EIO=%EF%BC%94&transport=polling"), 400, 5),
    Row("B2-EIO-full-width-raw", get("EIO=４&transport=polling"), 400, None, True),
    Row("B3-EIO-twice", get("EIO=4&EIO=4&transport=polling"), 400, 3),
    Row("B4-transport-abc", get("EIO=4&transport=abc"), 400, 0),
    Row("B5-no-transport", get("EIO=4"), 400, 0),
    Row("B6-sid-unknown", get("EIO=4&transport=polling&sid=unknown"), 400, 1),
    Row("B6-sid-unknown-POST", request("POST", f"{POLLING}&sid=unknown", body=b"4a"), 400, 1, True),
    Row("B6-sid-unknown-websocket", upgrade(f"{WEBSOCKET}&sid=unknown"), 400, 1, True),
    Row("B7-sid-proto", get("EIO=4&transport=polling&sid=__proto__"), 400, 1),
    Row("B7-sid-path", get("EIO=4&transport=polling&sid=../x"), 400, 1),
    Row("B7-sid-5-kB", get("EIO=4&transport=polling&sid=" + "x" * 5_000), 400, 1),
    Row("B7-sid-10-kB", get("EIO=4&transport=polling&sid=" + "x" * 10_240), 414, None, True),
    Row("B7-sid-NUL", get("EIO=4&transport=polling&sid=%00"), 400, 1),
    Row("B7-sid-ff", get("EIO=4&transport=polling&sid=%ff"), 400, 1),
    Row("B7-sid-CRLF", get("EIO=4&transport=polling&sid=%0d%0aX-Evil:1"), 400, 1),
    Row("B7-sid-script", get("EIO=4&transport=polling&sid=<script>"), 400, 1),
    Row("B8-two-sids", get(LIVE + "&sid={sid}"), 400, 3),
    Row("B9-EIO-of-an-upgrade", upgrade(PATH + "?EIO=3&transport=websocket&sid={sid}"), 400, 5, True),
    Row("B10-PUT", request("PUT", f"{PATH}?{LIVE}"), 400, 2),
    Row("B10-DELETE", request("DELETE", f"{PATH}?{LIVE}"), 400, 2),
    Row("B10-TRACE", request("TRACE", f"{PATH}?{LIVE}"), 400, 2),
    Row("B10-POST-without-sid", request("POST", POLLING, body=b"4a"), 400, 2, True),
    Row("B11-JSONP", get(LIVE + "&j=0"), 400, 3),
    Row("B11-JSONP-handshake", get("EIO=4&transport=polling&j=0"), 400, 3),
    Row("B12-URL-64-kB", get("EIO=4&transport=polling&x=" + "x" * 65_536), 414, None, True),
    Row("B13-path", request("GET", "//engine.io/..;/?EIO=4&transport=polling"), 404),
    Row("B14-absolute-form", request("GET", f"http://gateway.test{POLLING}"), 400, None, True),
    Row("B14-CONNECT", request("CONNECT", "gateway.test:443"), 400, None, True),
    Row("B14-star", request("OPTIONS", "*"), 400, None, True),
    Row("B14-method-unknown", request("BREW", POLLING), 400, None, True),
    Row("B16-no-Upgrade", get("EIO=4&transport=websocket"), 400, 3),
    Row("B16-no-Upgrade-sid", get("EIO=4&transport=websocket&sid={sid}"), 400, 3),
    Row("B17-polling-and-Upgrade", upgrade(POLLING), 400, 3, True),
    Row("B17-polling-and-Upgrade-sid", upgrade(f"{PATH}?{LIVE}"), 400, 3, True),
)  # fmt: skip
async def test_query(endpoint, row):
    await check(endpoint, row)


async def test_b10_head(endpoint):
    async with endpoint.raw() as raw:
        await raw.send(request("HEAD", POLLING, "Connection: close"))
        with pytest.raises(asyncio.IncompleteReadError) as cut:
            await raw.response()
    assert cut.value.partial == b"", "an answer to HEAD has no body"


@pytest.mark.parametrize(
    "settings", [replace(SETTINGS, upgrades=False), replace(SETTINGS, transports=("polling",))]
)
async def test_b18_upgrades_that_are_switched_off(settings):
    async with serve(settings) as endpoint:
        sid = await endpoint.handshake()
        response = await endpoint.ask(upgrade(f"{WEBSOCKET}&sid={sid}"))
        assert (response.status, response.code) == (400, 0)
        assert (await endpoint.post(sid, b"4a")).status == 200


async def check(endpoint, row: Row) -> None:
    """The answer, the fate of the TCP connection, and the session that was named still lives."""
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        response = await raw.ask(row.data.replace(b"{sid}", sid.encode()))
        assert (response.status, response.code) == (row.status, row.code)
        assert "x-evil" not in response.headers
        for mark in (b"<script>", b"__proto__", b"xxxx", b"Evil"):
            assert mark not in response.body, "the request is reflected"
        if row.closes:
            assert await raw.ended()
        else:
            again = await raw.ask(request("GET", f"{POLLING}&sid=unknown"))
            assert again.code == 1, "the connection is out of step"
    assert (await endpoint.post(sid, b"4echo")).body == b"ok"
    assert (await endpoint.get(sid)).body == b"4echo"


# -- HTTP framing ----------------------------------------------------------------------------------

POST = f"{PATH}?{LIVE}"
CHUNKED = "Transfer-Encoding: chunked"


@rows(
    Row("B19-CL-and-TE", request("POST", POST, "Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), 400),
    Row("B20-two-CL", request("POST", POST, "Content-Length: 2", "Content-Length: 3", body=b"4ab"), 400),
    Row("B20-two-equal-CL", request("POST", POST, "Content-Length: 2", "Content-Length: 2", body=b"4a"), 400),
    Row("B20-CL-list", request("POST", POST, "Content-Length: 2, 2", body=b"4a"), 400),
    Row("B21-CL-plus", request("POST", POST, "Content-Length: +5", body=b"4abcd"), 400),
    Row("B21-CL-hex", request("POST", POST, "Content-Length: 0x5", body=b"4abcd"), 400),
    Row("B21-CL-arabic", request("POST", POST, "Content-Length: ٥", body=b"4abcd"), 400),
    Row("B21-CL-negative", request("POST", POST, "Content-Length: -1", body=b"4abcd"), 400),
    Row("B21-CL-empty", request("POST", POST, "Content-Length:", body=b"4abcd"), 400),
    Row("B22-TE-xchunked", request("POST", POST, "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    Row("B22-TE-identity",
        request("POST", POST, "Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), 400),
    Row("B22-TE-twice", request("POST", POST, CHUNKED, CHUNKED, body=b"0\r\n\r\n"), 400),
    Row("B23-bare-LF", request("GET", POLLING).replace(b"\r\n", b"\n"), 400),
    Row("B24-obs-fold", request("GET", POLLING, "X-Folded: a\r\n b"), 400),
    Row("B25-NUL", request("GET", POLLING, "X-Nul: a\0b"), 400),
    Row("B25-CTL", request("GET", POLLING, "X-Ctl: a\x01b"), 400),
    Row("B25-CR", request("GET", POLLING, "X-Cr: a\rb"), 400),
    Row("B25-name-space", request("GET", POLLING, "X Bad: a"), 400),
    Row("B25-name-colon-space", request("GET", POLLING, "X-Bad : a"), 400),
    Row("B26-two-Hosts", request("GET", POLLING, "Host: other.test"), 400),
    Row("B26-no-Host", request("GET", POLLING, host=None), 400),
    Row("B27-upgrade-with-body", upgrade(WEBSOCKET, "Content-Length: 54").replace(b"\r\n\r\n",
        b"\r\n\r\n" + request("GET", "/smuggled?" + "x" * 20), 1), 400),
    Row("B29-101-headers", request("GET", POLLING, *[f"X-{n}: a" for n in range(101)]), 431),
    Row("B29-9-kB-header", request("GET", POLLING, "X-Long: " + "x" * 9_000), 431),
    Row("B29-9-kB-name", request("GET", POLLING, "x" * 9_000 + ": a"), 431),
    Row("garbage", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03garbage\r\n\r\n", 400),
    Row("HTTP-9", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    Row("websocket-frames", frame(TEXT, b"4hello") * 20, 400),
)  # fmt: skip
async def test_framing(endpoint, row):
    """Refused, closed, and nothing behind it is read as a request."""
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        response = await raw.ask(row.data.replace(b"{sid}", sid.encode()))
        assert response.status == row.status
        assert await raw.ended()
    assert endpoint.witness.messages[sid] == []
    assert (await endpoint.post(sid, b"4a")).status == 200


async def test_b27_the_body_of_an_upgrade_is_not_read_as_a_request(endpoint):
    smuggled = request("GET", f"{POLLING}&sid=unknown")
    async with endpoint.raw() as raw:
        response = await raw.ask(upgrade(WEBSOCKET, f"Content-Length: {len(smuggled)}") + smuggled)
        assert (response.status, response.code) == (400, 3)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await raw.response()


async def test_b28_two_hundred_pipelined_gets(endpoint):
    sid = await endpoint.handshake()
    waiting = request("GET", f"{POLLING}&sid={sid}")
    behind = request("GET", f"{POLLING}&sid=unknown")
    async with endpoint.raw() as raw:
        await raw.send(waiting + behind * 200)
        await endpoint.get("unknown")  # when this is answered, all that was sent before has been read
        queued = max(len(each._messages) for each in endpoint.runner.server.connections)
        assert 0 < queued <= 32, "what waits behind a request is bounded"
        assert (await raw.response()).body == b"6"
        codes = [(await raw.response()).code for _ in range(200)]
    assert codes == [1] * 200


async def test_b29_endless_trailers(endpoint):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        await raw.send(request("POST", POST.format(sid=sid), CHUNKED, body=b"2\r\n4a\r\n0\r\n"))
        for n in range(200):
            await raw.send(f"X-{n}: {'x' * 100}\r\n".encode())
        assert (await raw.response()).status in (400, 408, 431)
        assert await raw.ended()
    assert endpoint.witness.messages[sid] == []


@pytest.mark.parametrize("begun", [b"G", b"GET / HTTP/1.1\r\nHo", b"\r\n", request("GET", "/")[:-2]])
async def test_b30_a_request_head_that_never_ends(endpoint, begun):
    async with endpoint.raw() as raw:
        began = time.monotonic()
        await raw.send(begun)
        response = await raw.response()
        took = time.monotonic() - began
        assert response.status == 408
        assert await raw.ended()
    assert 0.35 <= took < 2.0


async def test_b30_a_request_head_at_a_byte_each_moment(endpoint):
    async with endpoint.raw() as raw:
        answer = asyncio.create_task(raw.response())
        began = time.monotonic()
        for byte in request("GET", POLLING, "X: " + "x" * 1000):
            await raw.send(bytes([byte]))
            if (await asyncio.wait([answer], timeout=0.02))[0]:
                break
        assert (await answer).status == 408
        assert time.monotonic() - began < 2.0


async def test_b30_a_second_request_has_its_own_time(endpoint):
    async with endpoint.raw() as raw:
        assert (await raw.ask(request("GET", f"{POLLING}&sid=unknown"))).code == 1
        assert not await raw.ended(patience=0.6), "an idle connection is kept"
        assert (await raw.ask(b"GET")).status == 408


async def test_b31_a_body_that_never_ends(endpoint):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        began = time.monotonic()
        response = await raw.ask(request("POST", POST.format(sid=sid), "Content-Length: 1000", body=b"4a"))
        assert response.status == 408
        assert 0.35 <= time.monotonic() - began < 2.0
    assert endpoint.witness.messages[sid] == []
    assert (await endpoint.post(sid, b"4b")).status == 200, "the session lives"


@pytest.mark.parametrize("end", ["finish", "reset"])
async def test_b32_a_body_that_is_cut(endpoint, end):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        await raw.send(request("POST", POST.format(sid=sid), "Content-Length: 1000", body=b"4aaaaaaaaa"))
        getattr(raw, end)()
        assert await raw.ended()
    response = await endpoint.post(sid, b"4b")
    while response.status == 400:
        pytest.fail("the cut POST still counts as under way")
    assert await endpoint.witness.heard(sid, 1) == ["b"]


async def test_b33_expect_100_continue(endpoint):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        head = request("POST", POST.format(sid=sid), "Content-Length: 2", "Expect: 100-continue")
        assert (await raw.ask(head)).status == 100
        assert (await raw.ask(b"4a")).body == b"ok"
    assert endpoint.witness.messages[sid] == ["a"]


def chunks(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 4096, 100_000])
async def test_b34_b35_a_chunked_body_is_accepted_fully(endpoint, size):
    sid = await endpoint.handshake()
    body = b"4" + b"x" * 50_000 + b"\x1e4end"
    async with endpoint.raw() as raw:
        response = await raw.ask(request("POST", POST.format(sid=sid), CHUNKED, body=chunks(body, size)))
    assert response.body == b"ok"
    assert endpoint.witness.messages[sid] == ["x" * 50_000, "end"]


async def test_b35_one_byte_chunks_beyond_the_cap(endpoint):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        response = await raw.ask(
            request("POST", POST.format(sid=sid), CHUNKED, body=chunks(b"4" * 150_000, 1))
        )
        assert response.status == 413
        assert await raw.ended()


# -- the payload of a POST -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"4one\x1ex\x1e4two", b"4one\x1e9\x1e4two", b"0", b"2", b"5", b"6", b"7", b"9", b"x", "٤".encode(),
     b"4\xff", b"4\xed\xa0\x80", b"b!!!!", b"bAAA", b"d=4hello", b"d=5%3A4hello", b"\x1e" * 99_000],
    ids=["B36-empty", "B45-good-bad-good", "B45-good-9-good", "B46-0", "B46-2", "B46-5", "B46-6", "B46-7",
         "B46-9", "B46-x", "B46-arabic", "B41-not-UTF-8", "B41-surrogate", "B48-b!!!!", "B48-bAAA",
         "B49-form", "B49-form-escaped", "B43-separators"],
)  # fmt: skip
async def test_a_bad_payload_is_refused_as_a_whole_and_ends_the_session(endpoint, body):
    sid = await endpoint.handshake()
    data = request("POST", POST.format(sid=sid), f"Content-Length: {len(body)}", body=body)
    response = await endpoint.ask(data)
    assert (response.status, response.code) == (400, 3)
    assert (await endpoint.witness.closing(sid)).reason is Reason.PARSE_ERROR
    assert endpoint.witness.messages[sid] == []
    response = await endpoint.get(sid)
    assert (response.status, response.code) == (400, 1)


@rows(
    Row("B37-declared", request("POST", POST, "Content-Length: 100001", body=b""), 413, 3),
    Row("B37-actual", request("POST", POST, CHUNKED, body=chunks(b"4" * 100_001, 50_000)), 413, 3),
    Row("B39-gzip", request("POST", POST, "Content-Encoding: gzip", body=gzip.compress(b"4a")), 415, 3),
    Row("B39-deflate", request("POST", POST, "Content-Encoding: deflate", body=zlib.compress(b"4a")), 415, 3),
    Row("B39-br", request("POST", POST, "Content-Encoding: br", body=b"\x0b\0\x804a\x03"), 415, 3),
    Row("B39-junk", request("POST", POST, "Content-Encoding: x", body=b"4a"), 415, 3),
    Row(
        "B40-bomb", request("POST", POST, "Content-Encoding: gzip", body=gzip.compress(b"4" * 10**7)), 415, 3
    ),
    Row("B42-octets", request("POST", POST, "Content-Type: application/octet-stream", body=b"4a"), 400, 3),
)
async def test_a_post_that_is_refused_before_it_is_read(endpoint, row):
    """Answered and closed; nothing is applied, and the session lives."""
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        response = await raw.ask(row.data.replace(b"{sid}", sid.encode()))
        assert (response.status, response.code) == (row.status, row.code)
        assert await raw.ended()
    assert (await endpoint.post(sid, b"4after")).status == 200
    assert endpoint.witness.messages[sid] == ["after"]


async def test_b37_exactly_max_payload_fits(endpoint):
    sid = await endpoint.handshake()
    assert (await endpoint.post(sid, b"4" * 100_000)).status == 200
    assert endpoint.witness.messages[sid] == ["4" * 99_999]


@pytest.mark.parametrize("size", [1, 2, 500, 1999])
async def test_b38_a_body_in_several_segments(endpoint, size):
    sid = await endpoint.handshake()
    body = b"4" + b"x" * 1_990 + b"\x1e4second"
    async with endpoint.raw() as raw:
        await raw.send(request("POST", POST.format(sid=sid), f"Content-Length: {len(body)}"))
        for at in range(0, len(body), size):
            await raw.send(body[at : at + size])
            await asyncio.sleep(0)
        assert (await raw.response()).body == b"ok"
    assert endpoint.witness.messages[sid] == ["x" * 1_990, "second"]


async def test_b43_separators_cost_their_length_only(endpoint):
    sid = await endpoint.handshake()
    polling = endpoint.registry.connections[sid].polling
    body = b"\x1e" * 1_000_000
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(ValueError, match="packets"):
        polling.post(body)
    took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 0.05
    assert peak < 2 * len(body)


async def test_b44_a_thousand_packets(endpoint):
    sid = await endpoint.handshake()
    texts = [f"message {n}" for n in range(1000)]
    assert (await endpoint.post(sid, "\x1e".join("4" + t for t in texts).encode())).status == 200
    assert await endpoint.witness.heard(sid, 1000) == texts


async def test_b47_ten_thousand_pongs(endpoint):
    sid = await endpoint.handshake()
    body = b"\x1e".join([b"3"] * 10_000)
    for _ in range(3):
        assert (await endpoint.post(sid, body)).body == b"ok"
    assert endpoint.witness.messages[sid] == []


EXACT = [
    "true", "12", " 12", "null", "NaN", "Infinity", "1e999", '{"a":1,"a":2}', '"abc"', "-1", "1" * 90_000,
    "[" * 90_000, "", "\ufeff", "\u2028\u2029", "a\0b", "\r\n", "😀", "\ufffd",
]  # fmt: skip


@pytest.mark.parametrize("data", EXACT, ids=[ascii(each)[:20] for each in EXACT])
async def test_b50_b51_text_is_relayed_byte_for_byte(endpoint, data):
    sid = await endpoint.handshake()
    assert (await endpoint.post(sid, ("4" + data).encode())).status == 200
    assert endpoint.witness.messages[sid] == [data]
    endpoint.witness.channels[sid].send(data)
    assert (await endpoint.get(sid)).body == ("4" + data).encode()


@pytest.mark.parametrize("data", [*EXACT, "a\x1eb"], ids=[ascii(each)[:20] for each in [*EXACT, "U+001E"]])
async def test_b51_b69_the_same_over_a_websocket(endpoint, data):
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        await raw.send(text("4" + data))
        assert await endpoint.witness.heard(sid, 1) == [data]
        endpoint.witness.channels[sid].send(data)
        assert await raw.frame() == (TEXT, ("4" + data).encode())


async def test_b52_binary_of_no_bytes(endpoint):
    sid = await endpoint.handshake()
    assert (await endpoint.post(sid, b"b")).status == 200
    assert endpoint.witness.messages[sid] == [b""]
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        await raw.send(frame(BINARY))
        assert await endpoint.witness.heard(sid, 1) == [b""]


@pytest.mark.parametrize("name", ["polling", "websocket"])
async def test_a_lone_surrogate_of_the_application_harms_nobody(endpoint, name):
    async with endpoint.raw() as raw:
        sid = await (endpoint.handshake() if name == "polling" else endpoint.websocket(raw))
        endpoint.witness.channels[sid].send("a\ud800b")
        endpoint.witness.channels[sid].send("after")
        if name == "polling":
            assert (await endpoint.get(sid)).body == b"4a?b\x1e4after"
        else:
            assert [await raw.frame(), await raw.frame()] == [(TEXT, b"4a?b"), (TEXT, b"4after")]


# -- websocket frames ------------------------------------------------------------------------------

START = frame(TEXT, b"4a", fin=False)

BROKEN = [
    ("B53-unmasked", frame(TEXT, b"4a", masked=False), 1002),
    ("B54-RSV1", frame(TEXT, b"4a", rsv=4), 1002),
    ("B54-RSV2", frame(TEXT, b"4a", rsv=2), 1002),
    ("B54-RSV3", frame(TEXT, b"4a", rsv=1), 1002),
    *[(f"B55-opcode-{n:X}", frame(n, b"4a"), 1002) for n in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
    ("B56-long-ping", frame(PING, b"x" * 126), 1002),
    ("B56-long-close", frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    ("B56-fragmented-ping", frame(PING, b"x", fin=False), 1002),
    ("B57-continuation-first", frame(CONT, b"4a"), 1002),
    ("B57-text-in-a-message", START + frame(TEXT, b"4b"), 1002),
    ("B58-not-UTF-8", frame(TEXT, b"4\xff"), 1007),
    ("B58-surrogate", frame(TEXT, b"4\xed\xa0\x80"), 1007),
    ("B58-not-UTF-8-fragmented", frame(TEXT, b"4\xe2\x82", fin=False) + frame(CONT, b"x"), 1007),
    ("B59-2^63-1", frame(TEXT, b"4", length=2**63 - 1), 1009),
    ("B59-2^63", frame(TEXT, b"4", length=2**63), 1009),
    ("B60-too-big", frame(TEXT, b"4" * 100_002), 1009),
    ("B60-too-big-fragmented", START + frame(CONT, b"x" * 60_000, fin=False) * 2, 1009),
    ("B61-empty-fragments", START + frame(CONT, fin=False) * 10_000 + frame(CONT), 1008),
    ("B61-byte-fragments", START + frame(CONT, b"x", fin=False) * 10_000 + frame(CONT), 1008),
    ("B62-close-1005", close(1005), 1002),
    ("B62-close-1006", close(1006), 1002),
    ("B62-close-999", close(999), 1002),
    ("B62-close-5000", close(5000), 1002),
    ("B62-close-1-byte", frame(CLOSE, b"\x03"), 1002),
    ("B62-close-not-UTF-8", close(1000, b"\xff"), 1007),
    ("B63-ping-flood", frame(PING) * 10_000, 1008),
]


@pytest.mark.parametrize(("data", "code"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
async def test_a_broken_frame_ends_the_websocket_with_its_code_and_the_session_at_once(endpoint, data, code):
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        await raw.send(text("4before") + data + text("4after"))
        assert await raw.close_code() == code
        assert await raw.ended()
    assert (await endpoint.witness.closing(sid)).reason in (Reason.PARSE_ERROR, Reason.TRANSPORT_CLOSE)
    assert endpoint.witness.messages[sid] == ["before"]


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_close_frame_is_answered_with_its_own_code(endpoint, code):
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        await raw.send(close(code, b"bye") + text("4after"))
        assert await raw.close_code() == code
        assert await raw.ended()
    assert (await endpoint.witness.closing(sid)).reason is Reason.TRANSPORT_CLOSE
    assert endpoint.witness.messages[sid] == [], "B64: frames after close are ignored"


async def test_an_empty_close_frame_is_answered(endpoint):
    async with endpoint.raw() as raw:
        await endpoint.websocket(raw)
        await raw.send(frame(CLOSE))
        assert await raw.close_code() == 1005


async def test_b60_a_message_of_max_payload_fits(endpoint):
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        await raw.send(text("4" + "x" * 100_000))
        assert await endpoint.witness.heard(sid, 1) == ["x" * 100_000]


async def test_b61_frames_in_reads_of_one_byte(endpoint):
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        for byte in text("4h", fin=False) + frame(PING, b"p") + frame(CONT, b"i"):
            await raw.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await raw.frame() == (PONG, b"p")
        assert await endpoint.witness.heard(sid, 1) == ["hi"]


async def test_b63_a_few_pings_are_answered(endpoint):
    async with endpoint.raw() as raw:
        await endpoint.websocket(raw)
        await raw.send(frame(PING, b"x") * 50)
        assert [await raw.frame() for _ in range(50)] == [(PONG, b"x")] * 50


HANDSHAKES = [
    ("B65-no-key", upgrade(WEBSOCKET).replace(f"Sec-WebSocket-Key: {KEY}\r\n".encode(), b""), 400),
    ("B65-key-short", upgrade(WEBSOCKET, key="AAAA"), 400),
    ("B65-key-junk", upgrade(WEBSOCKET, key="!" * 24), 400),
    ("B65-version-8", upgrade(WEBSOCKET, version="8"), 426),
    ("B65-version-none", upgrade(WEBSOCKET).replace(b"Sec-WebSocket-Version: 13\r\n", b""), 426),
    ("B65-version-list", upgrade(WEBSOCKET, version="13, 8"), 426),
    ("no-Connection", upgrade(WEBSOCKET).replace(b"Connection: Upgrade\r\n", b""), 400),
    ("hixie-76", upgrade(WEBSOCKET, "Sec-WebSocket-Key1: 4 @1  46546xW%0l 1 5"), 400),
]


@pytest.mark.parametrize(("data", "status"), [r[1:] for r in HANDSHAKES], ids=[r[0] for r in HANDSHAKES])
@pytest.mark.parametrize("query", ["", "&sid={sid}"], ids=["new", "sid"])
async def test_b65_a_bad_opening_request_is_no_tunnel(endpoint, data, status, query):
    sid = await endpoint.handshake()
    target = (WEBSOCKET + query.format(sid=sid)).encode()
    async with endpoint.raw() as raw:
        response = await raw.ask(data.replace(WEBSOCKET.encode(), target))
        assert response.status == status
        if status == 426:
            assert response.headers["sec-websocket-version"] == "13"
        assert await raw.ended()
    assert (await endpoint.post(sid, b"4a")).status == 200


@pytest.mark.parametrize(
    "header",
    ["Sec-WebSocket-Protocol: " + ", " * 4_000, "Sec-WebSocket-Protocol: a,b",
     "Sec-WebSocket-Extensions: junk;=;,,",
     "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"],
    ids=["B66-commas", "B66-protocols", "B67-junk", "B67-deflate"],
)  # fmt: skip
async def test_b66_b67_protocols_and_extensions_are_not_invented(endpoint, header):
    async with endpoint.raw() as raw:
        began = time.monotonic()
        response = await raw.ask(upgrade(WEBSOCKET, header))
        assert response.status == 101
        assert "sec-websocket-protocol" not in response.headers
        assert "sec-websocket-extensions" not in response.headers
        assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("data", ["", "xabc", "7", "bAAA", "٤x", "0{}", "2", "5", "6"], ids=ascii)
async def test_b68_a_bad_packet_is_the_end_at_once(endpoint, data):
    async with endpoint.raw() as raw:
        sid = await endpoint.websocket(raw)
        await raw.send(text(data) + text("4after"))
        assert await raw.close_code() == 1002
    assert (await endpoint.witness.closing(sid)).reason is Reason.PARSE_ERROR
    assert endpoint.witness.messages[sid] == []


async def upgraded(endpoint, raw: Raw) -> str:
    """A session that has moved from polling to `raw`."""
    sid = await endpoint.handshake()
    assert (await raw.ask(upgrade(f"{WEBSOCKET}&sid={sid}"))).status == 101
    await raw.send(text("2probe"))
    assert await raw.frame() == (TEXT, b"3probe")
    await raw.send(text("5") + text("4upgraded"))
    assert await endpoint.witness.heard(sid, 1) == ["upgraded"]
    return sid


async def test_b70_a_second_websocket_is_closed_and_the_first_lives(endpoint):
    async with endpoint.raw() as first, endpoint.raw() as second:
        sid = await upgraded(endpoint, first)
        assert (await second.ask(upgrade(f"{WEBSOCKET}&sid={sid}"))).status == 101
        await second.send(text("2probe"))
        assert await second.close_code() == 4009
        await first.send(text("4echo"))
        assert await first.frame() == (TEXT, b"4echo")


async def test_polling_after_an_upgrade_is_refused_and_the_websocket_lives(endpoint):
    async with endpoint.raw() as raw:
        sid = await upgraded(endpoint, raw)
        for response in (await endpoint.get(sid), await endpoint.post(sid, b"4x")):
            assert (response.status, response.code) == (400, 3)
        await raw.send(text("4echo"))
        assert await raw.frame() == (TEXT, b"4echo")


async def test_b71_a_websocket_to_a_session_that_is_over(endpoint):
    sid = await endpoint.handshake()
    assert (await endpoint.post(sid, b"1")).status == 200
    response = await endpoint.ask(upgrade(f"{WEBSOCKET}&sid={sid}"))
    assert (response.status, response.code) == (400, 1)


@pytest.mark.parametrize(
    "packets", [["2probe", "2probe"], ["5"], ["2probe", "4early"], ["4early"], ["x"], [""]], ids=str
)
async def test_b72_an_upgrade_that_goes_wrong_leaves_polling_alive(endpoint, packets):
    sid = await endpoint.handshake()
    async with endpoint.raw() as raw:
        assert (await raw.ask(upgrade(f"{WEBSOCKET}&sid={sid}"))).status == 101
        await raw.send(b"".join(map(text, packets)))
        assert await raw.close_code() == 1002
        assert await raw.ended()
    assert (await endpoint.post(sid, b"4echo")).body == b"ok"
    assert (await endpoint.get(sid)).body == b"4echo"
    assert endpoint.witness.messages[sid] == []


@pytest.mark.parametrize("protocol", ["h2c", "foo", "tcp"])
@pytest.mark.parametrize("target", [POLLING, WEBSOCKET], ids=["polling", "websocket"])
async def test_b99_an_upgrade_to_something_else_is_refused_and_no_tunnel(endpoint, protocol, target):
    """Closed, so that nobody waits for the answer to a request that stood behind it."""
    async with endpoint.raw() as raw:
        await raw.send(
            request("GET", target, f"Upgrade: {protocol}", "Connection: Upgrade")
            + request("GET", f"{POLLING}&sid=unknown")
        )
        assert (await raw.response()).status == 400
        assert await raw.ended()


async def test_b99_an_upgrade_header_that_no_connection_header_names_is_only_a_header(endpoint):
    async with endpoint.raw() as raw:
        assert (await raw.ask(request("GET", POLLING, "Upgrade: h2c"))).status == 200
        assert (await raw.ask(request("GET", f"{POLLING}&sid=unknown"))).code == 1


# -- origin and authentication ---------------------------------------------------------------------

STRANGERS = {
    "B82-null": "null",
    "B83-suffix": "https://good.com.evil.com",
    "B84-port": "https://good.com:444",
    "B85-dot": "https://goodXcom",
    "B86-scheme": "http://good.com",
    "B87-user-info": "https://good.com@evil",
}


@pytest.fixture
async def listed(caplog):
    async with serve(SETTINGS, access=Access(OriginPolicy(["https://good.com"]))) as running:
        yield running
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def asked(method: str, sid: str, *headers: str) -> bytes:
    """A request that would be fine but for its headers."""
    if method == "websocket":
        return upgrade(f"{WEBSOCKET}&sid={sid}" if sid else WEBSOCKET, *headers)
    body = b"4a" if method == "POST" else b""
    return request(method, f"{POLLING}&sid={sid}" if sid else POLLING, *headers, body=body)


@pytest.mark.parametrize("origin", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize(
    ("method", "with_sid"),
    [("GET", False), ("GET", True), ("POST", True), ("websocket", False), ("websocket", True)],
)
async def test_a_wrong_origin_is_refused_on_every_transport_alike(listed, origin, method, with_sid):
    sid = await listed.handshake()
    before = len(listed.witness.channels)
    response = await listed.ask(asked(method, sid if with_sid else "", f"Origin: {origin}"))
    assert (response.status, response.code) == (403, 4)
    assert "access-control-allow-origin" not in response.headers
    assert len(listed.witness.channels) == before, "the application was asked"
    assert listed.witness.messages[sid] == []


@pytest.mark.parametrize("origin", ["https://good.com", "https://GOOD.com.", "https://good.com:443"])
async def test_b88_the_right_origin_in_other_spellings(listed, origin):
    sid = await listed.handshake(f"Origin: {origin}")
    response = await listed.ask(asked("POST", sid, f"Origin: {origin}"))
    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert response.headers["vary"] == "Origin"
    async with listed.raw() as raw:
        assert (await raw.ask(asked("websocket", sid, f"Origin: {origin}"))).status == 101


async def test_b89_two_origin_headers(listed):
    response = await listed.ask(asked("GET", "", "Origin: https://good.com", "Origin: https://evil.com"))
    assert response.status == 400


@pytest.mark.parametrize(
    "headers",
    [("X-Forwarded-Host: evil.com", "X-Forwarded-Proto: http"), ('Forwarded: host="evil.com";proto=http',),
     ('Forwarded: host="evil.com\\";x',), ("X-Forwarded-Host: evil.com", "X-Forwarded-For: 127.0.0.1")],
    ids=["B90-host", "B91-forwarded", "B91-quotes", "B90-for"],
)  # fmt: skip
async def test_b90_b91_a_stranger_cannot_say_who_we_are(endpoint, headers):
    response = await endpoint.ask(asked("GET", "", "Origin: http://evil.com", *headers))
    assert (response.status, response.code) == (403, 4)


async def token(seen):
    """B92: this application knows one token."""
    return "ada" if seen.headers.get("Authorization") == "Bearer good" else None


@pytest.fixture
async def private(caplog):
    async with serve(SETTINGS, access=Access(None, token)) as running:
        yield running
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("headers", [(), ("Authorization: Bearer expired",), ("Authorization: none",)])
@pytest.mark.parametrize("method", ["GET", "websocket"])
async def test_b92_b93_without_a_good_token_nobody_gets_in(private, method, headers):
    response = await private.ask(asked(method, "", *headers))
    assert (response.status, response.code) == (401, 4)
    assert private.witness.channels == {}


async def test_b81_a_post_with_cookies_needs_an_origin(private):
    good = "Authorization: Bearer good"
    sid = await private.handshake(good)
    response = await private.ask(asked("POST", sid, good, "Cookie: a=b"))
    assert (response.status, response.code) == (403, 4)
    response = await private.ask(asked("POST", sid, good, "Cookie: a=b", "Origin: http://gateway.test"))
    assert response.status == 200
