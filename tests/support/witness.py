"""An Engine.IO endpoint on a real port, in the test's own process, and an application that remembers.

`serve` runs it on our own HTTP server or on aiohttp's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from gateway.access import Access
from gateway.application import Application, Channel
from gateway.config import Settings
from gateway.protocol.origins import OriginPolicy
from gateway.protocol.reasons import Closing
from gateway.registry import Registry
from gateway.wires.http import EngineEndpoint
from gateway.wires.server import make_runner
from tests.support.raw import PATIENCE, TEXT, Raw, request, text, upgrade

PATH = "/engine.io/"
POLLING = f"{PATH}?EIO=4&transport=polling"
WEBSOCKET = f"{PATH}?EIO=4&transport=websocket"


class Witness(Application):
    """Echoes what begins with "echo", and writes down all the rest."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self.messages: dict[str, list[str | bytes]] = {}
        self.closings: dict[str, Closing] = {}
        self._changed = asyncio.Condition()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def open(self, channel: Channel) -> None:
        self.channels[channel.id] = channel
        self.messages[channel.id] = []

    async def message(self, channel: Channel, data: str | bytes) -> None:
        assert channel.id not in self.closings, "a message after the end"
        if isinstance(data, str) and data.startswith("echo"):
            channel.send(data)
            return
        self.messages[channel.id].append(data)
        await self._tell()

    async def close(self, channel: Channel, closing: Closing) -> None:
        assert channel.id not in self.closings, "the end is told twice"
        self.closings[channel.id] = closing
        await self._tell()

    async def closing(self, sid: str, patience: float = PATIENCE) -> Closing:
        """How this channel ends; waits for it."""
        async with asyncio.timeout(patience), self._changed:
            await self._changed.wait_for(lambda: sid in self.closings)
        return self.closings[sid]

    async def heard(self, sid: str, count: int, patience: float = PATIENCE) -> list[str | bytes]:
        """The messages of this channel, as soon as there are so many."""
        async with asyncio.timeout(patience), self._changed:
            await self._changed.wait_for(lambda: len(self.messages[sid]) >= count)
        return self.messages[sid]


class PromptWitness(Witness):
    """Is not awaited at the beginning, as what serves our own endpoint."""

    def open(self, channel: Channel) -> None:  # type: ignore[override]
        self.channels[channel.id] = channel
        self.messages[channel.id] = []


class Endpoint:
    """What a test sees of the server."""

    def __init__(self, settings: Settings, witness: Witness, registry: Registry) -> None:
        self.settings = settings
        self.witness = witness
        self.registry = registry
        self.port = 0
        self.runner: web.AppRunner

    def raw(self) -> Raw:
        """A new TCP connection."""
        return Raw(self.port)

    async def ask(self, data: bytes) -> Any:
        """One request on a connection of its own, and the answer."""
        async with self.raw() as raw:
            return await raw.ask(data)

    async def handshake(self, *headers: str, target: str = POLLING) -> str:
        """A new polling session's `sid`."""
        response = await self.ask(request("GET", target, *headers))
        assert response.status == 200, response
        return json.loads(response.body.split(b"\x1e")[0][1:])["sid"]

    async def get(self, sid: str) -> Any:
        """One GET of a polling session."""
        return await self.ask(request("GET", f"{POLLING}&sid={sid}"))

    async def post(self, sid: str, body: bytes) -> Any:
        """One POST of a polling session."""
        return await self.ask(request("POST", f"{POLLING}&sid={sid}", body=body))

    async def websocket(self, raw: Raw, target: str = WEBSOCKET) -> str:
        """Make a websocket of this connection; its `sid`."""
        response = await raw.ask(upgrade(target))
        assert response.status == 101, response
        opcode, data = await raw.frame()
        assert opcode == TEXT
        return json.loads(data[1:])["sid"]


@asynccontextmanager
async def serve(
    settings: Settings,
    *,
    access: Access | None = None,
    plain: bool = False,
    numbered: bool = False,
    **options: Any,
) -> AsyncIterator[Endpoint]:
    """Run an endpoint at `PATH`, `numbered` as our own is. `plain`: on aiohttp's own server; `options` are
    the runner's.
    """
    witness = PromptWitness() if numbered else Witness()
    registry, ids = Registry(settings), itertools.count(1)
    engine = EngineEndpoint(
        witness,
        settings,
        registry,
        access or Access(OriginPolicy()),
        lambda: f"sid-{next(ids)}",
        numbered=numbered,
    )
    app = web.Application()
    app.router.add_route("*", PATH, engine.handle)

    async def stop(_: web.Application) -> None:
        await registry.shutdown()

    app.on_shutdown.append(stop)
    options = {"access_log": None, "shutdown_timeout": 1.0, **options}
    endpoint = Endpoint(settings, witness, registry)
    endpoint.runner = web.AppRunner(app, **options) if plain else make_runner(app, settings, **options)
    await endpoint.runner.setup()
    try:
        site = web.TCPSite(endpoint.runner, "127.0.0.1", 0)
        await site.start()
        endpoint.port = endpoint.runner.addresses[0][1]
        yield endpoint
    finally:
        await endpoint.runner.cleanup()


@asynccontextmanager
async def canary(endpoint: Endpoint) -> AsyncIterator[None]:
    """Somebody else's sessions, one on each transport: they echo before, and they echo after."""
    async with endpoint.raw() as raw:
        await endpoint.websocket(raw)
        sid = await endpoint.handshake()
        await _sings(endpoint, raw, sid)
        yield
        await _sings(endpoint, raw, sid)


async def _sings(endpoint: Endpoint, raw: Raw, sid: str) -> None:
    await raw.send(text("4echo websocket"))
    assert await raw.frame() == (TEXT, b"4echo websocket")
    response = await endpoint.post(sid, b"4echo polling")
    assert (response.status, response.body) == (200, b"ok")
    response = await endpoint.get(sid)
    assert (response.status, response.body) == (200, b"4echo polling")
