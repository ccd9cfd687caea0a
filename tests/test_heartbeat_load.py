"""The heartbeat's promise, kept for one client and for a thousand: `interval + timeout`, and 0.2 s.

The clients are raw sockets that do no more than they must. What is measured is the server's own time:
from the last sign of life of a client, which is a message with a pong behind it, to its disconnect.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from aiohttp import web

from gateway import EngineServer
from gateway.config import Timeouts
from tests.support.load import KINDS, Crowd, WebSocketClient, live_polling, live_websocket

INTERVAL = 1.0
TIMEOUT = 1.0
PROMISE = INTERVAL + TIMEOUT
MARGIN = 0.2


# -- the server ------------------------------------------------------------------------------------


class Server:
    """Remembers when each client was last heard, and how long after it was given up."""

    def __init__(self) -> None:
        self.eio = EngineServer(ping_interval=INTERVAL, ping_timeout=TIMEOUT, timeouts=Timeouts(close=0.1))
        self.eio.on("connect", self._connect)
        self.eio.on("message", self._message)
        self.eio.on("disconnect", self._disconnect)
        self.now = asyncio.get_running_loop().time
        self.heard: dict[str, float] = {}
        self.delays: dict[str, list[float]] = {"polling": [], "websocket": []}
        self.reasons: Counter[str] = Counter()
        self.expected = 0
        self.complete = asyncio.Event()
        self.opened = 0
        self.port = 0

    def _connect(self, sid: str, environ: dict[str, Any]) -> None:
        self.heard[sid] = self.now()
        self.opened += 1
        if self.opened == self.expected:
            self.complete.set()

    def _message(self, sid: str, data: str) -> None:
        if data == "block":
            block_the_loop()
        self.heard[sid] = self.now()

    def _disconnect(self, sid: str, reason: str) -> None:
        self.reasons[reason] += 1
        self.delays[self.eio.transport(sid)].append(self.now() - self.heard[sid])
        if sum(self.reasons.values()) == self.expected:
            self.complete.set()


def block_the_loop() -> None:
    """What a handler must not do."""
    time.sleep(BLOCKED)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    running = Server()
    app = web.Application()
    running.eio.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2_000).start()
    running.port = runner.addresses[0][1]
    yield running
    await runner.cleanup()


# -- silence ---------------------------------------------------------------------------------------


async def fall_silent(kind: str, port: int) -> Any:
    """Answer one ping and say no more; the TCP connection stays."""
    client = await KINDS[kind](port)
    await client.answer_ping("4alive")
    return client


@pytest.mark.parametrize("count", [1, 500])
async def test_silent_clients_are_noticed_in_time(
    server: Server, count: int, record_property: Callable[[str, object], None]
) -> None:
    server.expected = -1  # nothing is complete while they open
    kinds = [kind for kind in KINDS for _ in range(count)]
    silence = [asyncio.create_task(fall_silent(kind, server.port)) for kind in kinds]
    clients = await asyncio.gather(*silence)
    server.expected = len(clients)
    await asyncio.wait_for(server.complete.wait(), PROMISE + 5)
    for client in clients:
        await client.close()
    assert server.reasons == {"ping timeout": 2 * count}
    for kind, delays in server.delays.items():
        delays.sort()
        spread = f"{delays[0]:.3f} to {delays[-1]:.3f} s, median {delays[len(delays) // 2]:.3f} s"
        record_property(f"{kind} {count}", spread)
        print(f"\n{count} silent on {kind}: noticed after {spread}")
    for delays in server.delays.values():
        assert len(delays) == count
        assert delays[0] >= PROMISE
        assert delays[-1] <= PROMISE + MARGIN


# -- a blocked loop --------------------------------------------------------------------------------

CROWD = 200  # of each kind
BLOCKED = 5  # s, which is more than the heartbeat's two
LINE = 0.3  # s that a pong is under way, so that pings are unanswered when the loop is blocked


@pytest.mark.blocks_the_loop
async def test_finding_14_a_blocked_loop_expires_nobody(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server.expected = 2 * CROWD
    crowd = Crowd(
        partial(live, server.port, LINE) for live in (live_polling, live_websocket) for _ in range(CROWD)
    )
    with crowd:
        await asyncio.wait_for(server.complete.wait(), 20)
        trigger = await WebSocketClient.open(server.port)
        await trigger.answer_ping("4block")
        # Long enough for whoever was judged wrongly to be gone: that is what the rule is about.
        for _ in range(3):
            assert await trigger.receive() == "2"
            await trigger.say("3")
        assert server.reasons == {}
        assert len(server.eio.sockets) == 2 * CROWD + 1
        await trigger.close()
    assert crowd.failures == []
    # On a busy machine the crowd's arrival may be a short stall of its own.
    warnings = [record.getMessage() for record in caplog.records if "block_the_loop" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"The event loop was blocked for {BLOCKED}.")
    assert "block_the_loop (test_heartbeat_load.py:" in warnings[0]
