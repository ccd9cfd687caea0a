"""The channel of a stock Engine.IO client, in virtual time: what reaches the application and when.

What an application may rely on is `tests/contract/test_applications.py`; here stands what the channel
does to its connection.
"""

import asyncio
import logging

import pytest

from gateway.application import Application, Echo, Refused, Request
from gateway.channels import EngineChannel
from gateway.config import Limits, Settings, Timeouts
from gateway.connection import Connection
from gateway.ledger import Ledger
from gateway.protocol.reasons import Closing, Reason
from gateway.session_store import Claim, MemoryStore
from gateway.transports import MemoryTransport
from tests.support.clock import VirtualLoop

SETTINGS = Settings(limits=Limits(inbound_messages=4), timeouts=Timeouts(handler=0.05))


class Behind(Application):
    """Handles a message only when `gate` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        self.closings: list[Closing] = []

    def open(self, channel):
        """Everyone is welcome."""

    async def message(self, channel, data):
        await self.gate.wait()
        await self.messages.put(data)

    def close(self, channel, closing):
        self.closings.append(closing)


def channel_of(application: Application) -> EngineChannel:
    connection = Connection("sid", SETTINGS, VirtualLoop())
    return EngineChannel(connection, Request("/x"), application, SETTINGS, user="ada")


async def open_channel(application: Application) -> tuple[EngineChannel, MemoryTransport]:
    channel = channel_of(application)
    await channel.admit()
    transport = MemoryTransport(channel.connection)
    channel.connection.start_websocket(transport)
    transport.sent.clear()
    return channel, transport


async def test_messages_go_in_and_out_as_they_are():
    channel, transport = await open_channel(Echo())
    for data in ("text", b"bytes", "", b""):
        transport.feed("4" + data if isinstance(data, str) else data)
    assert transport.sent == ["4text", b"bytes", "4", b""]
    assert (channel.id, channel.transport, channel.user, channel.data) == (
        "sid",
        "websocket",
        "ada",
        {"id": "sid"},
    )


async def test_an_application_that_is_behind_stops_the_reading_and_nothing_is_lost():
    application = Behind()
    channel, transport = await open_channel(application)
    for n in range(6):
        transport.feed(f"4{n}")
    assert transport.paused
    assert channel.is_full
    application.gate.set()
    assert [await application.messages.get() for _ in range(6)] == [str(n) for n in range(6)]
    assert not transport.paused
    transport.feed("46")
    assert await application.messages.get() == "6"


async def test_the_end_of_the_connection_is_the_end_of_the_channel(caplog):
    application = Behind()
    caplog.set_level(logging.DEBUG)
    _, transport = await open_channel(application)
    transport.cut()
    assert application.closings == [Closing(Reason.TRANSPORT_CLOSE, 1006, "transport close")]
    assert "transport close" in caplog.text


async def _ends_after(begin) -> float | None:
    """What the ledger hears of how long the end of a polling client took to be noticed."""
    loop = VirtualLoop()
    channel = EngineChannel(Connection("sid", SETTINGS, loop), Request("/x"), Echo(), SETTINGS)
    ledger = Ledger(MemoryStore(loop.now), SETTINGS, clean=_clean_nothing, new_node=lambda: "a", now=loop.now)
    await ledger.start()
    channel.enlist(ledger, "/x")
    await channel.admit()
    channel.connection.start_polling()
    begin(channel.connection)
    loop.advance(60)
    assert channel.is_over
    assert channel.entry is not None
    return channel.entry.detected_after


async def _clean_nothing(claim: Claim) -> None:
    """No hook."""


async def test_the_time_until_it_was_noticed_is_told_of_a_client_that_dropped_its_request():
    def respond(body):
        """The GET that it is about never gets one."""

    def begin(connection):
        connection.poll(connection.polling, respond)
        connection.poll_abandoned(connection.polling, respond)

    assert await _ends_after(begin) == SETTINGS.timeouts.poll_grace


async def test_the_time_until_it_was_noticed_is_told_of_a_client_that_never_came_back():
    assert await _ends_after(lambda connection: None) == SETTINGS.timeouts.connect


async def test_close_lets_go_out_what_was_sent_before():
    application = Behind()
    channel, transport = await open_channel(application)
    channel.send("last")
    channel.close()
    channel.close(4000, "again")
    channel.send("late")
    assert transport.sent == ["4last", "1"]
    assert [closing.reason for closing in application.closings] == [Reason.SERVER_CLOSE]


async def test_a_refusal_reaches_the_one_who_asked():
    class Closed(Echo):
        def open(self, channel):
            raise Refused(402, "pay first")

    with pytest.raises(Refused) as refused:
        await channel_of(Closed()).admit()
    assert (refused.value.status, refused.value.reason) == (402, "pay first")


@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError()], ids=repr)
async def test_an_application_that_fails_to_open_refuses(error):
    class Broken(Behind):
        async def open(self, channel):
            raise error

    with pytest.raises(Refused) as refused:
        await asyncio.wait_for(channel_of(Broken()).admit(), 5)
    assert refused.value.status in (500, 503)


async def test_an_application_that_never_opens_is_given_up_when_the_client_leaves():
    class Hangs(Behind):
        async def open(self, channel):
            await asyncio.Event().wait()

    application = Hangs()
    channel = channel_of(application)
    admission = asyncio.create_task(channel.admit())
    await asyncio.sleep(0)
    channel.connection.close(Reason.TRANSPORT_CLOSE)
    with pytest.raises(Refused):
        await asyncio.wait_for(admission, 5)
    assert application.closings == [], "what has not been opened is not closed"


async def test_a_client_that_leaves_while_it_is_admitted_is_closed_after_it_was_opened():
    class Slow(Behind):
        async def open(self, channel):
            await self.gate.wait()

    application = Slow()
    channel = channel_of(application)
    admission = asyncio.create_task(channel.admit())
    await asyncio.sleep(0)
    channel.connection.close(Reason.TRANSPORT_CLOSE)
    assert application.closings == []
    application.gate.set()
    await asyncio.wait_for(admission, 5)
    await asyncio.sleep(0)
    assert [closing.reason for closing in application.closings] == [Reason.TRANSPORT_CLOSE]
