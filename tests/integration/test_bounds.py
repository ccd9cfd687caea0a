"""What a stranger may cost: connections, sessions, handshakes and memory, each within its limit.

A whole gateway on a real port, and raw sockets. How limits are counted is tested in `test_admission.py`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import tracemalloc
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from gateway import Gateway, Route
from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.wires.server import Site, make_runner
from tests.support.raw import Raw, Response, request, upgrade
from tests.support.running import PATIENCE, Log, port_of, running
from tests.support.session_client import SessionClient

OWN = "/_gateway/engine/?EIO=4&transport="
STOCK = "/chat/engine.io/?EIO=4&transport="
PLAIN = "/chat"

SETTINGS = Settings(
    ping=Ping(5.0, 5.0),
    timeouts=Timeouts(poll_hold=0.2, poll_grace=0.2, close=0.2, grace=0.3, leave=0.2, connect=0.3, send=0.3),
)


def limited(**limits: int) -> Settings:
    return replace(SETTINGS, limits=Limits(**limits))


def chat(log: Log, *, user: str | None = None) -> Route:
    """Notes what happens, and greets."""
    route = Route("/chat")

    @route.open
    async def _(handler: Any) -> None:
        log.note("open")

    @route.on_message
    async def _(handler: Any, message: str) -> None:
        log.note("message", message)
        await handler.write_message("you said " + message)

    @route.on_close
    async def _(handler: Any, closing: Any) -> None:
        log.note("close", closing.reason.name)

    if user is not None:
        route.authenticate(lambda request: user)
    return route


@pytest.fixture
async def log() -> Log:
    return Log()


async def ask(base: str, data: bytes) -> Response:
    async with Raw(port_of(base)) as raw:
        return await raw.ask(data)


async def handshake(base: str, target: str = OWN) -> Response:
    return await ask(base, request("GET", target + "polling"))


def sid_of(response: Response) -> str:
    found: str = json.loads(response.body[1:])["sid"]
    return found


# -- how many connections --------------------------------------------------------------------------

KINDS = {
    "our client on polling": request("GET", OWN + "polling"),
    "our client on a websocket": upgrade(OWN + "websocket"),
    "stock on polling": request("GET", STOCK + "polling"),
    "stock on a websocket": upgrade(STOCK + "websocket"),
    "plain": upgrade(PLAIN),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_one_address_has_so_many_connections_of_all_kinds(log, kind):
    settings = replace(limited(per_address=5), timeouts=replace(SETTINGS.timeouts, connect=5.0))
    async with running(Gateway([chat(log)], settings=settings)) as base:
        lines = [await Raw(port_of(base)).__aenter__() for _ in KINDS]
        for line, data in zip(lines, KINDS.values(), strict=True):
            assert (await line.ask(data)).status in (101, 200)
        full = await ask(base, KINDS[kind])
        assert full.status == 429
        assert int(full.headers["retry-after"]) > 0
        assert b"this address has as many connections as one may have" in full.body
        for line in lines:
            await line.__aexit__(None, None, None)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_place_is_free_again_when_its_connection_is_gone(log, kind):
    async with running(Gateway([chat(log)], settings=limited(per_address=1))) as base:
        for _ in range(3):
            async with Raw(port_of(base)) as line:
                answer = await line.ask(KINDS[kind])
                assert answer.status in (101, 200)
            answer = await ask(base, KINDS["stock on polling"])
            while answer.status == 429:
                assert b"as one may have" in answer.body
                answer = await ask(base, KINDS["stock on polling"])
            await ask(base, request("POST", f"{STOCK}polling&sid={sid_of(answer)}", body=b"1"))


async def test_a_gateway_that_is_full_says_503(log):
    async with (
        running(Gateway([chat(log)], settings=limited(connections=1))) as base,
        Raw(port_of(base)) as line,
    ):
        assert (await line.ask(KINDS["plain"])).status == 101
        for data in KINDS.values():
            assert (await ask(base, data)).status == 503


# -- how many sessions -----------------------------------------------------------------------------


async def test_one_user_has_so_many_sessions_of_all_kinds(log):
    gateway = Gateway([chat(log, user="ann")], settings=limited(per_user=3))
    async with running(gateway) as base:
        stock, plain, client = Raw(port_of(base)), Raw(port_of(base)), SessionClient(base)
        async with stock, plain:
            assert (await stock.ask(KINDS["stock on a websocket"])).status == 101
            assert (await plain.ask(KINDS["plain"])).status == 101
            await client.connect()
            await client.open("/chat")
            await client.open("/chat")  # of the same session

            for kind in ("stock on a websocket", "stock on polling", "plain"):
                full = await ask(base, KINDS[kind])
                assert full.status == 429, kind
                assert b"this user has as many sessions as one may have" in full.body
            other = SessionClient(base)
            await other.connect()
            await other.ask("/chat")
            refusal = await other.refusal()
            assert refusal.status == 429
            assert "close one of them" in refusal.reason
            await other.close()
            assert log.entries == ["open"] * 4

            await client.close()
            await log.until_count(2, ("close", "TRANSPORT_CLOSE"))
            assert (await ask(base, KINDS["stock on polling"])).status == 200


async def test_who_signs_in_nowhere_is_no_user(log):
    async with running(Gateway([chat(log)], settings=limited(per_user=1))) as base:
        for _ in range(5):
            assert (await handshake(base, STOCK)).status == 200


# -- how often -------------------------------------------------------------------------------------


async def test_f17_who_comes_too_often_is_told_to_wait_and_the_others_notice_nothing(log):
    """Sixty connections at once where ten are allowed; a session that was there goes on."""
    settings = limited(half_open=10, handshakes=1)
    async with running(Gateway([chat(log)], settings=settings)) as base:
        client = SessionClient(base)
        await client.connect()
        channel = await client.open("/chat")
        answers = []
        for n in range(60):
            answers.append(await ask(base, list(KINDS.values())[n % len(KINDS)]))
            await client.send(channel, str(n))
            assert await client.message() == f"you said {n}"
        refused = [answer for answer in answers if answer.status == 429]
        assert 50 <= len(refused) + 1 <= 52, "the session's own handshake counts; one a second is let in"
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        await client.close()


async def test_whoever_fails_to_sign_in_is_slowed_down_too(log):
    asked: list[Any] = []
    route = chat(log)
    route.authenticate(asked.append)
    async with running(Gateway([route], settings=limited(half_open=3, handshakes=1))) as base:
        statuses = [(await handshake(base, STOCK)).status for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert len(asked) == 3


# -- half-open handshakes --------------------------------------------------------------------------


async def test_a_handshake_costs_less_than_a_kilobyte_until_somebody_comes_back(log, record_property):
    settings = replace(SETTINGS, timeouts=replace(SETTINGS.timeouts, connect=60.0))
    gateway = Gateway([chat(log)], settings=settings)
    async with running(gateway) as base:
        async with Raw(port_of(base)) as line:
            for _ in range(50):
                assert (await line.ask(KINDS["our client on polling"])).status == 200
            gc.collect()
            tracemalloc.start()
            for _ in range(1_000):
                await line.ask(KINDS["our client on polling"])
            gc.collect()
            each = tracemalloc.get_traced_memory()[0] / 1_000
            tracemalloc.stop()
        assert gateway._running is not None
        assert gateway._running.registry.admission.total == 1_050
        assert len(gateway._running.sessions) == 0
    record_property("bytes", round(each))
    print(f"\na half-open handshake: {each:.0f} bytes")
    assert each < 1_000


@pytest.mark.parametrize("target", [OWN, STOCK])
async def test_f8_a_handshake_that_nothing_follows_is_forgotten_in_time(log, target):
    gateway = Gateway([chat(log)], settings=SETTINGS)
    async with running(gateway) as base:
        answer = await handshake(base, target)
        assert gateway._running is not None
        registry = gateway._running.registry
        began = asyncio.get_running_loop().time()
        assert registry.admission.total == 1
        while registry.admission.total:
            assert asyncio.get_running_loop().time() - began < PATIENCE
            await asyncio.sleep(0.01)
        assert 0.2 <= asyncio.get_running_loop().time() - began <= 0.3 + 0.2 + 0.1
        late = await ask(base, request("GET", f"{target}polling&sid={sid_of(answer)}"))
        assert (late.status, late.code) == (400, 1)
        if target == STOCK:
            await log.until("close", "NEVER_OPENED")
        else:
            assert log.entries == []


async def test_a_handshake_that_is_followed_is_a_connection(log):
    gateway = Gateway([chat(log)], settings=limited(half_open=2, handshakes=1_000))
    async with running(gateway) as base:
        for _ in range(5):  # each settles before the next one begins
            sid = sid_of(await handshake(base))
            hello = b'4H{"v":1}'
            assert (await ask(base, request("POST", f"{OWN}polling&sid={sid}", body=hello))).body == b"ok"
            answer = await ask(base, request("GET", f"{OWN}polling&sid={sid}"))
            assert answer.body.startswith(b"4W{")
        assert gateway._running is not None
        assert len(gateway._running.sessions) == 5


# -- who does not read -----------------------------------------------------------------------------


@pytest.fixture
def pushing(log):
    """A route that writes far more than anybody's buffer, and does not wait for the client."""
    route = Route("/chat")

    @route.on_message
    async def _(handler: Any, message: str) -> None:
        log.note("message", message)
        while not handler.channel.is_over:
            handler.write_message("x" * 100_000)
            await asyncio.sleep(0)

    @route.on_close
    async def _(handler: Any, closing: Any) -> None:
        log.note("close", closing.reason.name)

    return route


async def test_f13_a_websocket_that_is_never_read_costs_its_bound_and_no_more(log, pushing):
    async with running(Gateway([pushing], settings=SETTINGS)) as base, Raw(port_of(base)) as line:
        assert (await line.ask(KINDS["stock on a websocket"])).status == 101
        tasks = len(asyncio.all_tasks())
        tracemalloc.start()
        line.stop_reading()
        await line.send(b"\x81\x83\0\0\0\x004go")
        await log.until("close", "SLOW_CONSUMER")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000, "1 MiB of queue, and what the kernel had not taken"
        assert len(asyncio.all_tasks()) <= tasks


async def test_f14_a_polling_client_that_never_asks_costs_its_bound_and_no_more(log, pushing):
    async with running(Gateway([pushing], settings=SETTINGS)) as base:
        sid = sid_of(await handshake(base, STOCK))
        tracemalloc.start()
        posted = await ask(base, request("POST", f"{STOCK}polling&sid={sid}", body=b"4go"))
        assert posted.status == 200
        await log.until("close", "SLOW_CONSUMER")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000


async def test_f16_a_reader_of_one_byte_at_a_time_is_a_slow_consumer(log, pushing):
    async with running(Gateway([pushing], settings=SETTINGS)) as base, Raw(port_of(base)) as line:
        assert (await line.ask(KINDS["stock on a websocket"])).status == 101
        await line.send(b"\x81\x83\0\0\0\x004go")
        sock = line._writer.get_extra_info("socket")
        line.stop_reading()
        drip = asyncio.create_task(_drip(sock))
        await log.until("close", "SLOW_CONSUMER")
        drip.cancel()


async def _drip(sock: Any) -> None:
    own = socket.socket(fileno=socket.dup(sock.fileno()))
    with own:
        own.setblocking(False)
        while True:
            await asyncio.get_running_loop().sock_recv(own, 1)
            await asyncio.sleep(0.01)


async def test_f15_who_speaks_and_never_answers_a_ping_is_heard_until_then_and_not_after(log):
    settings = replace(SETTINGS, ping=Ping(0.3, 0.3))
    async with running(Gateway([chat(log)], settings=settings)) as base:
        async with Raw(port_of(base)) as line:
            assert (await line.ask(KINDS["stock on a websocket"])).status == 101
            began = asyncio.get_running_loop().time()
            while ("close", "PING_TIMEOUT") not in log.entries:
                await line.send(b"\x81\x83\0\0\0\x004hi")
                await asyncio.sleep(0.005)
            took = asyncio.get_running_loop().time() - began
            await line.send(b"\x81\x83\0\0\0\x004hi" * 10)
            await line.ended()
        assert log.entries[-1] == ("close", "PING_TIMEOUT")
        assert 0.55 <= took <= 0.6 + 0.2 + 0.1


# -- the kernel ------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
async def test_the_kernel_gives_up_a_peer_that_is_silent(log, caplog):
    gateway = Gateway([chat(log)], settings=SETTINGS)
    seen: list[tuple[int, int]] = []
    app = gateway.application()

    async def look(request: Any) -> Any:
        sock = request.transport.get_extra_info("socket")
        option = partial(sock.getsockopt, socket.IPPROTO_TCP)
        seen.append((option(socket.TCP_USER_TIMEOUT), option(socket.TCP_KEEPIDLE)))
        seen.append((sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), option(socket.TCP_KEEPINTVL)))
        raise ConnectionResetError

    app.router.add_get("/look", look)
    runner = make_runner(app, SETTINGS)
    await runner.setup()
    await Site(runner, SETTINGS, "127.0.0.1", 0).start()
    caplog.set_level(logging.CRITICAL, "aiohttp.server")
    async with Raw(runner.addresses[0][1]) as line:
        await line.send(request("GET", "/look"))
        await line.ended()
    await runner.cleanup()
    assert seen == [(10_000, 10), (1, 3)]
