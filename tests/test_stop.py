"""A stop with 10,000 sessions: each is kept for the next start, or cleaned up after, within the drain.

Everything but the network is real: sessions, ledger, hooks, and the SQLite store.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from gateway import Gateway, Route
from gateway.app import _Running
from gateway.application import Request
from gateway.channels import EngineChannel
from gateway.config import Limits, Settings, Timeouts
from gateway.protocol import frames
from gateway.session_store import Phase
from gateway.stores.sqlite import SqliteStore
from gateway.transports import MemoryTransport, Owner
from tests.support.running import running

MANY = 10_000
SETTINGS = Settings(timeouts=Timeouts(drain=10.0, close=1.0), limits=Limits(half_open=2 * MANY))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


class Wire(MemoryTransport):
    """Says when something was written."""

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self.news = asyncio.Event()

    def write(self, packets: list[str | bytes]) -> None:
        super().write(packets)
        self.news.set()


class Page:
    """Our own client over a websocket without a network."""

    def __init__(self, gateway: Gateway, number: int) -> None:
        world = world_of(gateway)
        connection = world.registry.create(f"carrier-{number}", "192.0.2.1")
        self.channel = EngineChannel(connection, Request("/"), world.sessions, gateway.settings)
        self.channel.admit_now()
        self.wire = Wire(connection)
        connection.start_websocket(self.wire)

    def say(self, frame: frames.Frame) -> None:
        """Send one frame."""
        wire = frames.encode(frame)
        assert isinstance(wire, str)
        self.wire.feed("4" + wire)

    def heard(self) -> list[frames.Frame]:
        """All frames so far."""
        return [
            frames.decode(wire[1:]) for wire in self.wire.sent if isinstance(wire, str) and wire[0] == "4"
        ]

    async def until(self, count: int) -> list[frames.Frame]:
        """The first `count` frames."""
        while len(self.heard()) < count:
            self.wire.news.clear()
            await self.wire.news.wait()
        return self.heard()[:count]

    @property
    def welcome(self) -> frames.Welcome:
        """The first frame."""
        first = self.heard()[0]
        assert isinstance(first, frames.Welcome)
        return first


def world_of(gateway: Gateway) -> _Running:
    """What exists while it runs."""
    assert gateway._running is not None
    return gateway._running


async def settled(gateway: Gateway) -> None:
    """Return when all openings are done."""
    await asyncio.gather(*world_of(gateway).sessions._tasks)


async def test_every_session_is_kept_for_the_next_start(tmp_path: Path):
    async def opened(handler):
        handler.data["page"] = handler.id
        handler.write_message("under way")

    async def cleanup(end):
        raise AssertionError("nobody is gone")

    def gateway() -> Gateway:
        return Gateway(
            [Route("/r", open=opened)],
            settings=SETTINGS,
            store=SqliteStore(tmp_path / "sessions.sqlite3"),
            cleanup=cleanup,
        )

    first = gateway()
    async with running(first):
        pages = [Page(first, number) for number in range(MANY)]
        for page in pages:
            page.say(frames.Hello())
            page.say(frames.Open(1, "/r"))
        await settled(first)
        assert (await first.store.counts())[Phase.OPEN] == MANY
        began = time.monotonic()
        await first.stop()
        took = time.monotonic() - began
    print(f"{MANY} sessions parked in {took:.2f} s")
    assert took < SETTINGS.timeouts.drain
    assert not any(isinstance(frame, frames.End) for page in pages for frame in page.heard())
    assert all(page.wire.closed_with for page in pages)

    second = gateway()
    async with running(second):
        assert (await second.store.counts())[Phase.PARKED] == MANY
        for number, old in enumerate(pages[::500]):
            page, was = Page(second, number), old.welcome
            page.say(frames.Hello(frames.Resume(was.session, was.token, was.epoch, 0)))
            welcome, *others = await page.until(4)
            assert isinstance(welcome, frames.Welcome)
            assert welcome.resumed
            assert others == [
                frames.Accept(1),
                frames.Data(1, "under way"),
                frames.Close(1, 1012),
            ]


async def test_every_stock_client_is_cleaned_up_after(tmp_path: Path):
    ends: Counter[tuple[str, str]] = Counter()

    async def cleanup(end):
        ends[end.session, end.reason] += 1

    store = SqliteStore(tmp_path / "sessions.sqlite3")
    route = Route("/r", on_message=lambda handler, message: None)
    gateway = Gateway([route], settings=SETTINGS, store=store, cleanup=cleanup)
    async with running(gateway):
        world = world_of(gateway)
        (mount,) = (mount for mount in world.engines if mount.pattern.text == "/r")
        for number in range(MANY):
            connection = world.registry.create(f"stock-{number}", "192.0.2.1")
            channel = EngineChannel(connection, Request("/r/engine.io/"), mount.application, SETTINGS)
            channel.enlist(world.ledger, "/r")
            await channel.admit()
            connection.start_websocket(MemoryTransport(connection))
        began = time.monotonic()
        await gateway.stop()
        took = time.monotonic() - began
    print(f"{MANY} hooks run in {took:.2f} s")
    assert took < SETTINGS.timeouts.drain
    assert ends == {(f"stock-{number}", "shutdown"): 1 for number in range(MANY)}
