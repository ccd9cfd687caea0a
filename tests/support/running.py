"""A whole gateway on a real port, in the test's own process, and a log book for its handlers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from gateway import Gateway
from gateway.wires.server import make_runner

PATIENCE = 10.0  # s for what is usually a matter of milliseconds


@asynccontextmanager
async def running(gateway: Gateway, app: web.Application | None = None) -> AsyncIterator[str]:
    """Serve it, or an application that it is attached to; `http://127.0.0.1:PORT`."""
    served = gateway.application() if app is None else app
    runner = make_runner(served, gateway.settings, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def port_of(base: str) -> int:
    """The port in such an address."""
    return int(base.rpartition(":")[2])


class Log:
    """What happened, in order. Any thread may write, the test waits for an entry."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def note(self, *entry: Any) -> None:
        """Write down `entry`, or its only part."""
        self.entries.append(entry[0] if len(entry) == 1 else entry)
        self._loop.call_soon_threadsafe(self._changed.set)

    async def until(self, *entry: Any) -> None:
        """Return when there is such an entry."""
        wanted = entry[0] if len(entry) == 1 else entry
        await self.until_count(1, wanted)

    async def until_logged(self, text: str, caplog: pytest.LogCaptureFixture) -> None:
        """Return when the program's own log holds this text."""
        heard = logging.Handler()
        heard.emit = lambda record: self.note("logged")  # type: ignore[method-assign]
        logging.getLogger().addHandler(heard)
        try:
            while text not in caplog.text:
                await self.until_count(self.entries.count("logged") + 1, "logged")
        finally:
            logging.getLogger().removeHandler(heard)
            self.entries = [entry for entry in self.entries if entry != "logged"]

    async def until_count(self, count: int, wanted: Any) -> None:
        """Return when there are so many of them."""
        async with asyncio.timeout(PATIENCE):
            while self.entries.count(wanted) < count:
                self._changed.clear()
                await self._changed.wait()
