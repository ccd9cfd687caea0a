"""Who may come back to a session, with what, and what is left of it: against a whole gateway.

Replay is tested in `test_session.py`, real restarts in `integration/test_restart.py`.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType

from gateway import Gateway, Refuse, Route
from gateway.config import Ping, Settings, Timeouts
from gateway.protocol import frames
from gateway.protocol.reasons import Reason
from gateway.session_store import MemoryStore, Phase, StoreUnavailable
from tests.support.running import PATIENCE, Log, running
from tests.support.session_client import SessionClient

TIMES = Timeouts(grace=0.6, leave=0.15, close=0.3, handler=0.5, drain=3.0, lease=0.6)
SETTINGS = Settings(ping=Ping(5.0, 5.0), timeouts=TIMES)


class Clock:
    """The store's. It stands still until a test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Store(MemoryStore):
    """Outlives its gateways, and cannot be reached while `fault` is there."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fault: Exception | None = None
        super().__init__(self.clock, lasting=True)

    async def park(self, node: str, parked: Any) -> None:
        if self.fault is not None:
            raise self.fault
        await super().park(node, parked)


@pytest.fixture
async def log() -> Log:
    return Log()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def make(log, store):
    """`make()` is a gateway over the one store; its hooks and handlers write into the log."""

    def make(**options: Any) -> Gateway:
        async def cleanup(end: Any) -> None:
            log.note("cleanup", end.session, end.reason)

        return Gateway(routes(log), **{"settings": SETTINGS, "store": store, "cleanup": cleanup, **options})

    return make


def routes(log: Log) -> list[Route]:
    room = Route("/room")

    @room.open
    async def _(handler):
        handler.data["opened"] = handler.data.get("opened", 0) + 1
        log.note("open", handler.id, handler.data["opened"])

    @room.on_message
    async def _(handler, message):
        await handler.write_message(message)

    @room.on_close
    async def _(handler, closing):
        log.note("close", closing.reason, closing.code)

    private = Route("/private/{who}")

    @private.authenticate
    async def _(request):
        log.note("asked", request.path)
        return {"name": request.headers.get("Cookie"), "path": request.path}

    @private.on_message
    async def _(handler, message):
        await handler.write_message(message)

    foreign = Route("/foreign", origins=["https://good.example", "https://other.example"])

    @foreign.on_message
    async def _(handler, message):
        await handler.write_message(message)

    threaded = Route("/threaded")

    @threaded.on_message
    def _(handler, message):
        assert threading.current_thread() is not threading.main_thread()
        handler.data["message"] = {message} if message == "bad" else message
        try:
            handler.write_message(f"saved {bool(handler.save())}")
        except TypeError as error:
            handler.write_message(str(error))

    refusing = Route("/refusing")

    @refusing.open
    async def _(handler):
        raise Refuse(403, "no")

    return [room, private, foreign, threaded, refusing]


async def opened(base: str, url: str = "/room", **headers: str) -> SessionClient:
    """A client with one open channel."""
    client = SessionClient(base, headers=headers)
    await client.connect()
    await client.open(url)
    return client


# -- who ---------------------------------------------------------------------------------------------


async def test_the_same_login_is_not_asked_again(make, log):
    async with running(make()) as base:
        client = await opened(base, "/private/ada", Cookie="user=ada")
        await client.cut()
        assert (await client.resume()).resumed
        assert log.entries.count(("asked", "/private/ada")) == 1
        await client.close()


async def test_another_login_of_the_same_user_is_asked_and_let_in(make, log):
    async with running(make()) as base:
        client = await opened(base, "/private/ada", Cookie="user=ada")
        client.headers = {"Cookie": "user=ada", "Authorization": "renewed"}
        await client.cut()
        assert (await client.resume()).resumed
        assert log.entries.count(("asked", "/private/ada")) == 2
        await client.close()


@pytest.mark.parametrize("cookie", [{"Cookie": "user=eve"}, {}], ids=["another", "none"])
async def test_another_user_gets_a_new_session_and_the_old_one_is_untouched(make, cookie):
    async with running(make()) as base:
        client = await opened(base, "/private/ada", Cookie="user=ada")
        thief = SessionClient(base, headers=cookie)
        thief.welcome, thief.received = client.welcome, client.received
        stolen = await thief.connect(thief.resume_hello())
        assert not stolen.resumed
        assert stolen.session != client.welcome.session
        # Still connected, and its token still good.
        await client.send(1, "still mine")
        assert await client.message() == "still mine"
        await client.cut()
        assert (await client.resume()).resumed
        await client.close()
        await thief.close()


async def test_a_page_of_an_origin_that_the_route_does_not_list_gets_a_new_session(make):
    async with running(make(origins=["https://third.example"])) as base:
        client = await opened(base, "/foreign", Origin="https://good.example")
        for origin, resumed in (("https://third.example", False), ("https://other.example", True)):
            client.headers = {"Origin": origin}
            before = client.welcome
            await client.cut()
            assert (await client.resume()).resumed is resumed
            if not resumed:
                client.welcome = before
        await client.close()


# -- a page that was loaded anew -------------------------------------------------------------------------


async def test_a_reload_keeps_the_id_and_the_data_and_begins_to_count_anew(make, log):
    async with running(make()) as base:
        client = await opened(base)
        await client.send(1, "never read")
        session = client.welcome.session
        await client.carrier.send("B")
        page = SessionClient(base)
        page.welcome = client.welcome
        welcome = await page.connect(page.resume_hello(received=None))
        assert (welcome.resumed, welcome.session, welcome.received) == (True, session, 0)
        await log.until("close", Reason.CLIENT_CLOSE, 1001)
        assert await page.open("/room") == 1
        await log.until("open", session, 2)
        await page.send(1, "anew")
        assert await page.message() == "anew"
        # And it goes on as any other.
        await page.cut()
        assert (await page.resume()).resumed
        assert [entry for entry in log.entries if entry[0] == "cleanup"] == []
        await page.close()
        await client.close()


# -- data ----------------------------------------------------------------------------------------------


async def test_all_channels_of_a_page_share_one_id_and_one_dict(make, log, store):
    async with running(make()) as base:
        client = await opened(base)
        await client.open("/room")
        session = client.welcome.session
        assert [entry for entry in log.entries if entry[0] == "open"] == [
            ("open", session, 1),
            ("open", session, 2),
        ]
        (row,) = await store.rows()
        assert (row.session.id, dict(row.session.data)) == (session, {"opened": 2})
        await client.close()


async def test_data_is_saved_from_threads_and_what_is_not_json_is_said(make, store):
    async with running(make()) as base:
        client = await opened(base, "/threaded")
        await client.send(1, "one")
        assert await client.message() == "saved True"
        await client.send(1, "bad")
        assert "kept as JSON" in str(await client.message())
        (row,) = await store.rows()
        assert row.session.data == {"message": "one"}
        await client.close()


# -- the end -------------------------------------------------------------------------------------------


async def test_whoever_is_refused_leaves_nothing_behind(make, log, store):
    async with running(make()) as base:
        client = SessionClient(base)
        await client.connect()
        await client.ask("/refusing")
        assert (await client.refusal()).status == 403
        await client.ask("/nowhere")
        assert (await client.refusal()).status == 404
        assert await store.rows() == []
        await client.open("/room")
        assert len(await store.rows()) == 1
        await client.close()
    assert [entry for entry in log.entries if entry[0] == "cleanup"] == []  # it is parked


async def test_a_resume_that_comes_while_the_hooks_run_is_too_late(make, log):
    running_hook, go = asyncio.Event(), asyncio.Event()

    async def cleanup(end: Any) -> None:
        log.note("cleanup", end.session, end.reason)
        running_hook.set()
        await go.wait()

    async with running(make(cleanup=cleanup)) as base:
        client = await opened(base)
        await client.cut()
        async with asyncio.timeout(PATIENCE):
            await running_hook.wait()
        old = client.welcome.session
        assert not (await client.resume()).resumed
        go.set()
        await client.close()
    assert log.entries.count(("cleanup", old, "transport_close")) == 1


async def test_a_store_that_ends_with_the_process_runs_the_hooks_at_the_stop(make, log):
    gateway = make(store=MemoryStore())
    async with running(gateway) as base:
        client = await opened(base)
        await gateway.stop()
        assert log.entries[-2:] == [
            ("close", Reason.SHUTDOWN, 1012),
            ("cleanup", client.welcome.session, "shutdown"),
        ]
        end = await client.next()
        assert isinstance(end, frames.End)
        assert (end.code, end.retry) == (1012, True)
        await client.close()


async def test_a_handler_that_blocks_leaves_time_for_the_hooks_of_a_stop(make, log):
    go = threading.Event()
    settings = Settings(timeouts=Timeouts(drain=1.0, handler=5.0, close=0.2))
    gateway = make(store=MemoryStore(), settings=settings)
    gateway.table.mounts[1].application._on_close = lambda handler, closing: go.wait(PATIENCE)
    async with running(gateway) as base:
        client = await opened(base)
        await gateway.stop()
        assert log.entries[-1] == ("cleanup", client.welcome.session, "shutdown")
        go.set()
        await client.close()


async def test_what_cannot_be_parked_is_told_to_come_back_and_cleaned_up_after(make, log, store):
    gateway = make()
    async with running(gateway) as base:
        client = await opened(base)
        store.fault = StoreUnavailable("not now")
        stopping = asyncio.ensure_future(gateway.stop())
        assert await client.next() == frames.Close(1, 1012)
        end = await client.next()
        assert isinstance(end, frames.End)
        assert (end.code, end.retry) == (1012, True)
        await stopping
        assert ("cleanup", client.welcome.session, "shutdown") in log.entries
        await client.close()


async def test_whoever_comes_back_to_a_gateway_that_stops_just_then_finds_everything_at_the_next(
    make, log, store, monkeypatch
):
    asked, go = asyncio.Event(), asyncio.Event()
    resume = store.resume

    async def slow(node: str, session_id: str) -> Any:
        asked.set()
        await go.wait()
        return await resume(node, session_id)

    first, second = make(), make()
    async with running(first) as base:
        client = await opened(base)
        await first.stop()
    monkeypatch.setattr(store, "resume", slow)
    async with running(second) as base:
        client.base = base
        resuming = asyncio.ensure_future(client.resume())
        await asked.wait()
        stopping = asyncio.ensure_future(second.stop())
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(AssertionError, match="None"):  # the connection ends without an answer
            await resuming
        await stopping
    monkeypatch.undo()
    async with running(make()) as base:
        client.base = base
        assert (await client.resume()).resumed
        assert await client.next() == frames.Close(1, 1012)
        await client.close()
    assert [entry for entry in log.entries if entry[0] == "cleanup"] == []


async def test_no_token_is_in_the_store(make, store):
    gateway = make()
    async with running(gateway) as base:
        client = await opened(base)
        await gateway.stop()
        state = await store.parked(client.welcome.session)
        assert state is not None
        assert client.welcome.token.encode() not in state
        assert (await store.counts())[Phase.PARKED] == 1
        await client.close()


async def test_a_state_that_nobody_can_read_is_a_new_session(make, store, monkeypatch):
    gateway = make()
    async with running(gateway) as base:
        client = await opened(base)
        await gateway.stop()

    async def parked(session_id: str) -> bytes:
        return b'{"version":2}'

    monkeypatch.setattr(store, "parked", parked)
    async with running(make()) as base:
        client.base = base
        assert not (await client.resume()).resumed
        await client.close()


# -- a node that is lost ----------------------------------------------------------------------------------


async def test_a_lost_node_sends_every_kind_of_client_away_and_runs_no_hook(make, log, store):
    async with running(make()) as base, ClientSession() as http:
        page = await opened(base)
        plain = await http.ws_connect(base + "/room")
        stock = await http.ws_connect(base + "/room/engine.io/?EIO=4&transport=websocket")
        await stock.receive()
        assert len(await store.rows()) == 3
        # Another node finds that this one is silent.
        await store.join("another", 1_000.0)
        store.clock.now += 100.0
        assert len(await store.claim_orphans("another", 10)) == 3
        end = await page.next()
        assert isinstance(end, frames.End)
        assert (end.code, end.retry) == (4011, True)
        assert (await plain.receive()).type is WSMsgType.CLOSE
        assert plain.close_code == 4011
        assert (await stock.receive()).data == "1"
        await log.until_count(3, ("close", Reason.NODE_LOST, 4011))
        # It is in charge of whoever comes now.
        welcome = await page.resume()
        assert not welcome.resumed
        await page.close()
    assert [entry for entry in log.entries if entry[0] == "cleanup"] == []
