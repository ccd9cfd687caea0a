"""The numbered requests of docs/protocol.md over real HTTP: repeated, early, cut, lost, and wrong ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from gateway.config import Limits, Ping, Settings, Timeouts
from tests.support.raw import TEXT, Raw, Response, request, text, upgrade
from tests.support.witness import POLLING, WEBSOCKET, Endpoint, serve

SETTINGS = Settings(
    ping=Ping(1.0, 30.0),
    limits=Limits(payload=200_000),
    timeouts=Timeouts(poll_hold=10.0, poll_grace=5.0, body=0.4),
)


@pytest.fixture(params=[False, True], ids=["our-server", "plain-aiohttp"])
async def endpoint(request) -> AsyncIterator[Endpoint]:
    async with serve(SETTINGS, plain=request.param, numbered=True) as running:
        yield running


class Client:
    """One connection whose requests are numbered by the test."""

    def __init__(self, endpoint: Endpoint, sid: str, stack: AsyncExitStack) -> None:
        self.endpoint = endpoint
        self.sid = sid
        self._stack = stack

    @property
    def heard(self) -> list[str | bytes]:
        """What has been delivered."""
        return self.endpoint.witness.messages[self.sid]

    @property
    def url(self) -> str:
        return f"{POLLING}&sid={self.sid}"

    def say(self, data: str) -> None:
        """The gateway's side sends a message."""
        self.endpoint.witness.channels[self.sid].send(data)

    async def begin(self, data: bytes) -> Raw:
        """Send this on a connection of its own, and wait for nothing."""
        raw = await self._stack.enter_async_context(self.endpoint.raw())
        await raw.send(data)
        return raw

    def get_bytes(self, n: int, more: str = "") -> bytes:
        return request("GET", f"{self.url}&n={n}{more}")

    def post_bytes(self, n: int, body: bytes, more: str = "") -> bytes:
        return request("POST", f"{self.url}&n={n}{more}", body=body)

    async def get(self, n: int, more: str = "") -> Response:
        return await self.endpoint.ask(self.get_bytes(n, more))

    async def post(self, n: int, body: bytes, more: str = "") -> Response:
        return await self.endpoint.ask(self.post_bytes(n, body, more))

    async def until_waiting(self) -> None:
        """A GET waits at the gateway."""
        polling = self.endpoint.registry.connections[self.sid].polling
        assert polling is not None
        async with asyncio.timeout(5):
            while not polling.writable:
                await self.endpoint.get("unknown")


@pytest.fixture
async def client(endpoint) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        sid = await endpoint.handshake()
        assert ok(await endpoint.post(sid, b"3"))  # there is no connection before its first request
        yield Client(endpoint, sid, stack)
        await endpoint.post(sid, b"1")


def ok(response: Response) -> bool:
    return (response.status, response.body) == (200, b"ok")


async def test_a_connection_does_not_keep_its_first_request_with_its_body(client):
    request = client.endpoint.witness.channels[client.sid].request
    assert request.raw is None
    assert "Host" in request.headers


# -- POSTs -----------------------------------------------------------------------------------------


async def test_early_posts_wait_and_are_delivered_in_order(client):
    third = await client.begin(client.post_bytes(3, b"43"))
    second = await client.begin(client.post_bytes(2, b"42"))
    await client.endpoint.get("unknown")
    assert client.heard == []
    assert ok(await client.post(1, b"41"))
    assert ok(await second.response())
    assert ok(await third.response())
    assert client.heard == ["1", "2", "3"]


async def test_the_body_of_an_early_post_is_not_read_before_its_turn(client):
    """What the kernel and aiohttp hold is bounded, and is not ours."""
    early = await client.begin(
        client.post_bytes(2, b"42").replace(b"Content-Length: 2", b"Content-Length: 100")
    )
    assert ok(await client.post(1, b"41"))
    assert client.heard == ["1"], "the second is not complete"
    await early.send(b"x" * 98)
    assert ok(await early.response())
    assert client.heard == ["1", "2" + "x" * 98]


async def test_an_early_post_whose_predecessor_does_not_come_may_be_sent_again(client):
    late = await client.post(2, b"42")
    assert (late.status, late.headers["retry-after"]) == (503, "1")
    assert ok(await client.post(1, b"41"))
    assert ok(await client.post(2, b"42"))
    assert client.heard == ["1", "2"]


async def test_a_post_that_comes_again_is_answered_ok_and_delivered_once(client):
    for _ in range(3):
        assert ok(await client.post(1, b"4a"))
    assert ok(await client.post(2, b"4b"))
    assert ok(await client.post(1, b"4a"))
    assert client.heard == ["a", "b"]


async def test_a_post_whose_body_was_cut_leaves_its_number_free(client):
    cut = await client.begin(client.post_bytes(1, b"4a").replace(b"Content-Length: 2", b"Content-Length: 9"))
    await client.endpoint.get("unknown")
    cut.reset()
    assert ok(await client.post(1, b"4whole"))
    assert client.heard == ["whole"]


async def test_a_post_that_hangs_is_replaced_by_its_repetition_at_once():
    patient = replace(SETTINGS, timeouts=replace(SETTINGS.timeouts, body=60.0))
    async with serve(patient, numbered=True) as endpoint, AsyncExitStack() as stack:
        client = Client(endpoint, await endpoint.handshake(), stack)
        whole = client.post_bytes(1, b"4a")
        hangs = await client.begin(whole.replace(b"Content-Length: 2", b"Content-Length: 9"))
        await endpoint.get("unknown")
        assert ok(await client.post(1, b"4whole"))
        assert (await hangs.response()).status == 503
        assert client.heard == ["whole"]
        await endpoint.post(client.sid, b"1")


async def test_a_post_in_parts(client):
    assert (await client.post(1, b"4c", "&skip=2")).status == 400, "its beginning is missing"
    assert ok(await client.post(1, b"4a\x1e4b", "&skip=0&more=1"))
    early = await client.begin(client.post_bytes(2, b"4e"))
    assert ok(await client.post(1, b"4b\x1e4c", "&skip=1&more=1"))
    assert client.heard == ["a", "b", "c"]
    assert ok(await client.post(1, b"4a\x1e4b\x1e4c\x1e4d"))
    assert ok(await early.response())
    assert client.heard == ["a", "b", "c", "d", "e"]


async def test_a_beacon_is_delivered_beside_posts_that_wait(client):
    await client.begin(client.get_bytes(1))
    await client.until_waiting()
    await client.begin(client.post_bytes(2, b"42"))
    assert ok(await client.endpoint.post(client.sid, b"4B"))
    assert client.heard == ["B"]


async def test_a_post_that_is_too_large_takes_no_number(client):
    assert (await client.post(1, b"4" + b"x" * 200_000)).status == 413
    assert ok(await client.post(1, b"4a"))


async def test_eight_early_posts_and_no_more(client):
    waiting = [await client.begin(client.post_bytes(n, b"4%d" % n)) for n in range(2, 9)]
    refused = await client.post(9, b"49")
    assert (refused.status, refused.code) == (400, 3)
    assert ok(await client.post(1, b"41"))
    for raw in waiting:
        assert ok(await raw.response())
    assert client.heard == list("12345678")


# -- GETs ------------------------------------------------------------------------------------------


async def test_a_get_that_comes_again_gets_the_same_answer(client):
    client.say("a")
    for _ in range(3):
        assert (await client.get(1)).body == b"4a"
    client.say("b")
    assert (await client.get(1)).body == b"4a"
    assert (await client.get(2)).body == b"4b"
    assert (await client.get(1)).status == 400
    assert (await client.get(4)).status == 400
    assert (await client.get(2)).body == b"4b"


async def test_an_answer_that_got_lost_comes_again(client):
    for n in range(1, 4):
        raw = await client.begin(client.get_bytes(n))
        await client.until_waiting()
        raw.reset()
        client.say(str(n))
        assert (await client.get(n)).body == b"4%d" % n


async def test_a_get_that_comes_again_while_it_waits_both_get_a_noop(client):
    first = await client.begin(client.get_bytes(1))
    await client.until_waiting()
    assert (await client.get(1)).body == b"6"
    assert (await first.response()).body == b"6"
    client.say("a")
    assert (await client.get(2)).body == b"4a"


async def test_an_answer_has_no_more_than_max_bytes_and_one_packet_at_the_least(client):
    for data in ("aaaa", "bbbb", "cccc", "dddd"):
        client.say(data)
    assert (await client.get(1, "&max=17")).body == b"4aaaa\x1e4bbbb\x1e4cccc"
    assert (await client.get(1, "&max=16")).body == b"4aaaa\x1e4bbbb"
    assert (await client.get(1, "&max=17")).body == b"4aaaa\x1e4bbbb"
    assert (await client.get(2, "&max=1")).body == b"4cccc"
    client.say("eeee")
    assert (await client.get(3, "&max=1000")).body == b"4dddd\x1e4eeee"


async def test_hold_is_how_long_a_get_waits_and_the_ping_interval_is_the_most(client):
    began = time.monotonic()
    assert (await client.get(1, "&hold=50")).body == b"6"
    assert 0.04 < time.monotonic() - began < 0.9
    bodies = [(await client.get(n, "&hold=60000")).body for n in (2, 3)]
    assert b"2" in bodies, "the ping"
    assert time.monotonic() - began < 5


# -- beside that -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query", ["n=0", "n=x", "n=1&n=1", "n=1&hold=-1", "n=1&max=0", "n=1&skip=x", "hold=1.5"]
)
async def test_bad_numbers_are_refused_and_end_nothing(client, query):
    for bad in (
        request("GET", f"{client.url}&{query}"),
        request("POST", f"{client.url}&{query}", body=b"4x"),
    ):
        refused = await client.endpoint.ask(bad)
        assert (refused.status, refused.code) == (400, 3)
    assert ok(await client.post(1, b"4a"))
    assert client.heard == ["a"]


async def test_what_a_proxy_has_kept_until_the_websocket_is_there_is_refused(client):
    assert ok(await client.post(1, b"4a"))
    waiting = await client.begin(client.get_bytes(1))
    await client.until_waiting()
    early = await client.begin(client.post_bytes(3, b"4c"))
    async with client.endpoint.raw() as raw:
        assert (await raw.ask(upgrade(f"{WEBSOCKET}&sid={client.sid}"))).status == 101
        await raw.send(text("2probe"))
        assert await raw.frame() == (TEXT, b"3probe")
        assert (await waiting.response()).body == b"6"
        await raw.send(text("5"))
        await raw.send(text("4b"))
        await client.endpoint.witness.heard(client.sid, 2)
        assert (await early.response()).status == 400
        for kept in (client.get(1), client.post(1, b"4a"), client.post(2, b"4c")):
            refused = await kept
            assert (refused.status, refused.code) == (400, 3)
        await raw.send(text("4d"))
        assert await client.endpoint.witness.heard(client.sid, 3) == ["a", "b", "d"]


async def test_a_post_that_waits_until_more_is_read_is_replaced_by_its_repetition_at_once(client):
    connection = client.endpoint.registry.connections[client.sid]
    connection.pause()
    first = await client.begin(client.post_bytes(1, b"4a"))
    async with asyncio.timeout(5):
        while not connection._resumed:
            await client.endpoint.get("unknown")
    second = await client.begin(client.post_bytes(1, b"4a"))
    assert (await first.response()).status == 503
    assert len(connection._resumed) == 1, "nothing is left of the first"
    connection.resume()
    assert ok(await second.response())
    assert client.heard == ["a"]


async def test_after_the_end_the_connection_is_unknown(client):
    early = await client.begin(client.post_bytes(3, b"4c"))
    async with asyncio.timeout(5):
        while not client.endpoint.registry.connections[client.sid].polling._early:
            await client.endpoint.get("unknown")
    assert ok(await client.post(1, b"1"))
    assert (await early.response()).code == 1
    for late in (client.get(1), client.post(1, b"1"), client.post(2, b"4a")):
        refused = await late
        assert (refused.status, refused.code) == (400, 1)


async def test_elsewhere_a_query_of_the_client_means_nothing():
    async with serve(SETTINGS) as stock:
        sid = await stock.handshake()
        target = f"{POLLING}&sid={sid}&n=x&max=0&hold=-1&more=&skip=z"
        for _ in range(2):
            assert ok(await stock.ask(request("POST", target, body=b"4a")))
        assert stock.witness.messages[sid] == ["a", "a"]
        stock.witness.channels[sid].send("b")
        assert (await stock.ask(request("GET", target))).body == b"4b"
        await stock.post(sid, b"1")
