"""Requests that end in the middle: whoever runs the server has aiohttp cancel them, or a function fails.

Nothing may stay behind then, and nothing that was sent may be lost.
"""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from gateway.config import Settings, Timeouts
from gateway.registry import Registry
from gateway.transports import PollingTransport
from gateway.wires import websocket
from gateway.wires.http import EngineEndpoint
from tests.support.raw import close, request, upgrade
from tests.support.witness import POLLING, WEBSOCKET, Witness, serve

SETTINGS = Settings(timeouts=Timeouts(close=0.05, handler=0.05))


@pytest.fixture
def gone(monkeypatch):
    """Set when a connection is gone."""
    event = asyncio.Event()
    forget = Registry.gone

    def note(self, item):
        forget(self, item)
        event.set()

    monkeypatch.setattr(Registry, "gone", note)
    return event


@pytest.mark.parametrize("opening", [request("GET", POLLING), upgrade(WEBSOCKET)], ids=["get", "upgrade"])
async def test_a_handshake_that_is_cancelled_leaves_nobody_behind(monkeypatch, gone, opening):
    asked, never = asyncio.Event(), asyncio.Event()

    async def ask(self, channel):
        asked.set()
        await never.wait()

    monkeypatch.setattr(Witness, "open", ask)
    async with serve(SETTINGS, handler_cancellation=True) as endpoint:
        async with endpoint.raw() as raw:
            await raw.send(opening)
            await asyncio.wait_for(asked.wait(), 3)
            assert len(endpoint.registry.connections) == 1
        await asyncio.wait_for(gone.wait(), 3)
        assert not endpoint.registry.connections


async def test_a_handshake_whose_headers_fail_leaves_nobody_behind(monkeypatch):
    def fail(sid):
        raise LookupError("no cookie today")

    monkeypatch.setattr("gateway.wires.http._no_headers", fail)
    async with serve(SETTINGS) as endpoint:
        response = await endpoint.ask(request("GET", POLLING))
        assert response.status == 500
        assert not endpoint.registry.connections


@pytest.mark.parametrize("order", ["cancelled, answered", "answered, cancelled"])
async def test_an_answer_that_is_cancelled_comes_again(monkeypatch, order):
    """aiohttp cancels a handler when the client leaves; its GET may be answered in the same turn."""
    waits = asyncio.Event()
    tasks: list[asyncio.Task] = []
    wire, poll = EngineEndpoint._poll, PollingTransport.poll

    async def note_task(self, *args):
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        return await wire(self, *args)

    def note_poll(self, *args):
        poll(self, *args)
        waits.set()

    monkeypatch.setattr(EngineEndpoint, "_poll", note_task)
    monkeypatch.setattr(PollingTransport, "poll", note_poll)
    async with serve(SETTINGS) as endpoint:
        sid = await endpoint.handshake()
        polling = endpoint.registry.connections[sid].polling
        assert polling is not None
        async with endpoint.raw() as raw:
            await raw.send(request("GET", f"{POLLING}&sid={sid}"))
            await asyncio.wait_for(waits.wait(), 3)
            for step in order.split(", "):
                if step == "cancelled":
                    tasks[0].cancel()
                else:
                    polling.write(["4once"])
            await asyncio.wait(tasks)
        assert (await endpoint.get(sid)).body == b"4once"


async def test_an_idle_line_keeps_no_connection_alive(gone):
    """aiohttp holds the last request of a TCP connection for as long as that is open."""
    async with serve(SETTINGS) as endpoint:
        sid = await endpoint.handshake()
        connection = weakref.ref(endpoint.registry.connections[sid])
        async with endpoint.raw() as raw:
            await raw.send(request("GET", f"{POLLING}&sid={sid}"))
            await endpoint.post(sid, b"1")
            assert (await raw.response()).body == b"6"
            await asyncio.wait_for(gone.wait(), 3)
            endpoint.witness.channels.clear()
            endpoint.registry.deadlines.stop()  # the heap keeps a few that are over
            gc.collect()
            assert connection() is None


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_websocket_that_has_ended_is_forgotten_at_once(monkeypatch, gone, who):
    """A timer that waits for the peer's good-bye must not outlive it, with all that hangs on it."""
    wires: weakref.WeakSet[websocket.WebSocketWire] = weakref.WeakSet()

    class Wire(websocket.WebSocketWire):
        def __init__(self, *args):
            super().__init__(*args)
            wires.add(self)

    monkeypatch.setattr(websocket, "WebSocketWire", Wire)
    async with serve(Settings()) as endpoint:
        async with endpoint.raw() as raw:
            sid = await endpoint.websocket(raw)
            if who == "server":
                endpoint.witness.channels[sid].close()
                assert await raw.close_code() == 1000
            await raw.send(close(1000))
            assert await raw.ended()
        await asyncio.wait_for(gone.wait(), 3)
        await endpoint.get("unknown")  # when this is answered, the handler of the other has ended
        endpoint.witness.channels.clear()
        endpoint.registry.deadlines.stop()  # the heap keeps a few that are over
        gc.collect()
        assert not wires
