"""Code that blocks: a handler, or a cleanup hook, that sleeps. Nobody else notices, and nobody is expired.

The others are raw clients in a thread of their own, which measure their round trips.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from gateway import Gateway, Route
from gateway.config import Ping, Settings, Timeouts
from tests.support.load import KINDS, OWN, Client, Crowd, WebSocketClient, live_polling, live_websocket
from tests.support.running import Log, port_of, running

SETTINGS = Settings(ping=Ping(1.0, 1.0), timeouts=Timeouts(grace=1.0, leave=0.2, connect=30.0, poll_hold=1.0))
QUIET = Settings(ping=Ping(30.0, 30.0), timeouts=SETTINGS.timeouts)  # for clients that answer no ping
CROWD = 200  # of each kind
BLOCKED = 5  # s
SLEEPY = 2  # s
SOON = 0.5  # s: a hundred times what a round trip takes, a quarter of what the sleeper sleeps
LINE = 0.3  # s that a pong is under way, so that pings are unanswered while the loop is blocked


@pytest.fixture
async def log() -> Log:
    return Log()


# -- a loop that is blocked ------------------------------------------------------------------------


def block_the_loop() -> None:
    """What a coroutine must not do."""
    time.sleep(BLOCKED)


def careless(log: Log) -> Route:
    route = Route("/chat")

    @route.open
    async def _(handler: Any) -> None:
        log.note("open")

    @route.on_message
    async def _(handler: Any, message: str) -> None:
        log.note("message")
        block_the_loop()

    @route.on_close
    async def _(handler: Any, closing: Any) -> None:
        log.note("close", closing.reason.name)

    return route


@pytest.mark.blocks_the_loop
async def test_f35_a_callback_that_blocks_the_loop_expires_nobody(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    gateway = Gateway([careless(log)], settings=SETTINGS)
    async with running(gateway) as base:
        port = port_of(base)
        with Crowd(
            partial(live, port, LINE, "/chat")
            for live in (live_polling, live_websocket)
            for _ in range(CROWD)
        ) as crowd:
            await log.until_count(2 * CROWD, "open")
            trigger = await WebSocketClient.open(port, OWN)
            await trigger.greet("/chat")
            await trigger.answer_ping("41:block")
            for _ in range(3):  # long enough for whoever was judged wrongly to be gone
                await trigger.answer_ping("4+0")
            assert "message" in log.entries
            assert [entry for entry in log.entries if entry not in ("open", "message")] == []
            inside = gateway._running
            assert inside is not None
            assert len(inside.sessions) == 2 * CROWD + 1
            assert len(inside.registry.connections) == 2 * CROWD + 1
            await trigger.close()
        assert crowd.failures == []
    (warning,) = [record.getMessage() for record in caplog.records if "blocked" in record.message]
    assert warning.startswith(f"The event loop was blocked for {BLOCKED}.")
    assert "block_the_loop (test_blocking.py:" in warning


# -- threads that sleep ----------------------------------------------------------------------------


class Pulse:
    """Round trips of one client after another, in s."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.beating = threading.Event()

    async def live(self, kind: str, port: int) -> None:
        """Echo without pause until cancelled."""
        client: Client = await KINDS[kind](port, OWN)
        await client.greet("/echo")
        try:
            while True:
                began = time.monotonic()
                await client.say("41:x")
                await client.hear("41:x")
                self.times.append(time.monotonic() - began)
                self.beating.set()
                await asyncio.sleep(0.005)
        finally:
            await client.close()

    async def begun(self) -> None:
        """Return when there is a first one."""
        await asyncio.to_thread(self.beating.wait, 10)

    def report(self, what: str, record_property: Callable[[str, object], None]) -> None:
        times = sorted(self.times)
        text = f"{len(times)} round trips, median {times[len(times) // 2] * 1000:.1f} ms, "
        text += f"longest {times[-1] * 1000:.0f} ms"
        record_property(what, text)
        print(f"\n{what}: {text}")


def routes(log: Log) -> list[Route]:
    echo = Route("/echo")

    @echo.on_message
    def _(handler: Any, message: str) -> None:
        handler.write_message(message)

    chat = Route("/chat")

    @chat.on_message
    def _(handler: Any, message: str) -> None:
        log.note("asleep")
        time.sleep(SLEEPY)
        log.note("awake")

    @chat.on_close
    def _(handler: Any) -> None:
        log.note("closed")

    return [echo, chat]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_sleeps_is_noticed_by_nobody_else(
    log: Log, kind: str, record_property: Callable[[str, object], None]
) -> None:
    pulse = Pulse()
    async with running(Gateway(routes(log), settings=QUIET)) as base:
        port = port_of(base)
        with Crowd([partial(pulse.live, kind, port)] * 3) as crowd:
            await pulse.begun()
            sleepers = [await WebSocketClient.open(port, OWN) for _ in range(10)]
            for each in sleepers:
                await each.greet("/chat")
                await each.say("41:sleep")
            await log.until_count(10, "awake")
            for each in sleepers:
                await each.close()
        assert crowd.failures == []
    pulse.report(f"while handlers sleep, on {kind}", record_property)
    assert len(pulse.times) > 30
    assert max(pulse.times) < SOON


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cleanup_hook_that_sleeps_is_noticed_by_nobody_else(
    log: Log, kind: str, record_property: Callable[[str, object], None]
) -> None:
    def hook(end: Any) -> None:
        log.note("hook begins")
        time.sleep(SLEEPY)
        log.note("hook ends")

    pulse = Pulse()
    async with running(Gateway(routes(log), settings=QUIET, cleanup=hook)) as base:
        port = port_of(base)
        with Crowd([partial(pulse.live, kind, port)] * 3) as crowd:
            await pulse.begun()
            for _ in range(10):
                leaver = await WebSocketClient.open(port, OWN)
                await leaver.greet("/chat")
                await leaver.say("4B")
                await leaver.close()
            await log.until_count(10, "hook ends")
            assert log.entries.count("hook begins") == 10
        assert crowd.failures == []
    pulse.report(f"while hooks sleep, on {kind}", record_property)
    assert len(pulse.times) > 30
    assert max(pulse.times) < SOON


async def test_a_session_whose_handler_sleeps_is_not_expired(log: Log) -> None:
    """It sleeps for longer than the heartbeat's patience, and the client answers its pings."""
    settings = Settings(ping=Ping(0.4, 0.4), timeouts=SETTINGS.timeouts)
    async with running(Gateway(routes(log), settings=settings)) as base:
        client = await WebSocketClient.open(port_of(base), OWN)
        await client.greet("/chat")
        await client.say("41:sleep")
        pongs = asyncio.create_task(_answer_pings(client))
        await log.until("awake")
        assert "closed" not in log.entries
        pongs.cancel()
        with suppress(asyncio.CancelledError):
            await pongs
        await client.close()
        await log.until("closed")


async def _answer_pings(client: Client) -> None:
    while True:
        await client.answer_ping("4+0")
