"""Contract 3: what every application may rely on, whichever channel it serves.

A new kind of channel adds a function that returns one, and its line in `CHANNELS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.application import Application, Refused, Request
from gateway.channels import EngineChannel, ServedChannel
from gateway.config import Limits, Settings, Timeouts
from gateway.connection import Connection
from gateway.protocol.reasons import Closing, Reason
from gateway.transports import MemoryTransport
from tests.support.clock import VirtualLoop

SETTINGS = Settings(limits=Limits(inbound_messages=8, inbound_bytes=1000), timeouts=Timeouts(handler=0.05))
CLOSING = Closing(Reason.CLIENT_CLOSE, 1000, "bye")

MakeChannel = Callable[[Application], ServedChannel]


class Bare(ServedChannel):
    """The least that a channel can be."""

    transport = "websocket"
    congested = False
    reading = True

    def send(self, data):
        """Nobody listens."""

    def close(self, code=1000, reason=""):
        self.over(Closing(Reason.SERVER_CLOSE, code, reason))

    async def drain(self):
        """Nothing waits."""

    def _pause(self):
        self.reading = False

    def _resume(self):
        self.reading = True


def bare(application: Application) -> ServedChannel:
    return Bare("id", Request("/"), application, SETTINGS)


def engine(application: Application) -> ServedChannel:
    connection = Connection("sid", replace(SETTINGS), VirtualLoop())
    channel = EngineChannel(connection, Request("/"), application, SETTINGS)
    connection.start_websocket(MemoryTransport(connection))
    return channel


CHANNELS = {"bare": bare, "engine": engine}


class Witness(Application):
    """Writes down every call, checks that none overlaps, and behaves as its `script` says.

    `script[name]` is an exception to raise, or an event to wait for.
    """

    def __init__(self, *, sync: bool, **script: BaseException | asyncio.Event) -> None:
        self.calls: list[object] = []
        self._sync = sync
        self._script = script
        self._inside = 0
        self.closed = asyncio.Event()

    def open(self, channel):
        return self._do("open")

    def message(self, channel, data):
        return self._do(data)

    def close(self, channel, closing):
        return self._do(closing)

    def _do(self, what):
        return self._now(what) if self._sync else self._later(what)

    def _note(self, what) -> None:
        self.calls.append(what)
        if isinstance(what, Closing):
            self.closed.set()

    def _now(self, what) -> None:
        self._note(what)
        task = self._script.get(what if isinstance(what, str) else "close")
        if isinstance(task, BaseException):
            raise task

    async def _later(self, what) -> None:
        self._inside += 1
        assert self._inside == 1, "two calls at a time"
        try:
            task = self._script.get(what if isinstance(what, str) else "close")
            self._note(what)
            if isinstance(task, BaseException):
                raise task
            await (task.wait() if task is not None else asyncio.sleep(0))
        finally:
            self._inside -= 1


@pytest.fixture(params=CHANNELS)
def make(request) -> MakeChannel:
    return CHANNELS[request.param]


@pytest.fixture(params=[True, False], ids=["sync", "async"])
def sync(request) -> bool:
    return request.param


async def end(channel: ServedChannel, witness: Witness) -> list[object]:
    channel.over(CLOSING)
    await asyncio.wait_for(witness.closed.wait(), 5)
    return witness.calls


async def test_open_then_messages_in_order_then_close(make, sync):
    witness = Witness(sync=sync)
    channel = make(witness)
    await channel.admit()
    sent = [f"m{n}" for n in range(50)]
    for data in sent:
        channel.deliver(data)
    assert await end(channel, witness) == ["open", *sent, CLOSING]


async def test_close_comes_once(make, sync):
    witness = Witness(sync=sync)
    channel = make(witness)
    await channel.admit()
    for _ in range(3):
        channel.over(CLOSING)
    channel.over(Closing.by(Reason.PING_TIMEOUT))
    channel.deliver("late")
    assert await end(channel, witness) == ["open", CLOSING]
    await asyncio.sleep(0.01)
    assert witness.calls == ["open", CLOSING]


@pytest.mark.parametrize("error", [Refused(), ValueError("x")], ids=["refused", "failed"])
async def test_what_has_not_been_opened_is_not_closed(make, sync, error):
    witness = Witness(sync=sync, open=error)
    channel = make(witness)
    with pytest.raises(Refused) as refused:
        await channel.admit()
    assert refused.value.status == (403 if isinstance(error, Refused) else 500)
    channel.deliver("x")
    channel.over(CLOSING)
    await asyncio.sleep(0.01)
    assert CLOSING not in witness.calls


async def test_an_error_ends_nothing_but_its_call(make, sync, caplog):
    witness = Witness(sync=sync, bad=ValueError("x"))
    channel = make(witness)
    await channel.admit()
    for data in ("a", "bad", "b"):
        channel.deliver(data)
    assert await end(channel, witness) == ["open", "a", "bad", "b", CLOSING]
    assert "failed" in caplog.text


async def test_an_error_in_close_harms_nobody(make, sync, caplog):
    witness = Witness(sync=sync, close=TypeError("x"))
    channel = make(witness)
    await channel.admit()
    await end(channel, witness)
    await asyncio.sleep(0.01)
    assert witness.calls == ["open", CLOSING], "called once, also when it raises TypeError"
    assert "failed" in caplog.text


async def test_close_waits_for_a_handler_that_is_running(make):
    gate = asyncio.Event()
    witness = Witness(sync=False, slow=gate)
    channel = make(witness)
    await channel.admit()
    channel.deliver("slow")
    channel.over(CLOSING)
    await asyncio.sleep(0)
    assert witness.calls == ["open", "slow"]
    gate.set()
    assert await end(channel, witness) == ["open", "slow", CLOSING]


async def test_close_does_not_wait_for_ever(make):
    witness = Witness(sync=False, stuck=asyncio.Event())
    channel = make(witness)
    await channel.admit()
    for data in ("stuck", "given up"):
        channel.deliver(data)
    assert await end(channel, witness) == ["open", "stuck", CLOSING]


async def test_an_application_that_is_behind_loses_nothing(make):
    gate = asyncio.Event()
    witness = Witness(sync=False, slow=gate)
    channel = make(witness)
    await channel.admit()
    channel.deliver("slow")
    for n in range(20):
        channel.deliver(f"m{n}")
    assert channel.is_full
    gate.set()
    assert await end(channel, witness) == ["open", "slow", *[f"m{n}" for n in range(20)], CLOSING]
    assert not channel.is_full
