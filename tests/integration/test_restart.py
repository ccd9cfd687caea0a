"""Gateways that are stopped, killed and paused: what becomes of their sessions, and of the cleanup.

Real processes over one SQLite file, or one Redis. What the handlers and the hook do is printed, and read
from the output.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gateway.protocol import frames
from tests.support.processes import Process
from tests.support.servers import Gateway, Redis
from tests.support.session_client import SessionClient
from tests.support.stores import redis_client

GRACE = 3.0
LEASE = 1.5

_CONFIG = f"""
store: STORE
cleanup:
  function: door.cleanup
timeouts:
  grace: {GRACE}s
  lease: {LEASE}s
  leave: 500ms
  drain: 5s
  handler: 1s
  close: 300ms
routes:
  /door:
    open: door.opened
    on_message: door.message
    on_close: door.closed
  /private:
    auth: door.who
    on_message: door.message
  /slow:
    open: door.slow
  /late:
    on_close: door.slow
  /stubborn:
    on_close: door.stubborn
"""

_DOOR = """
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path


def say(*words):
    os.write(1, " ".join(map(str, ("said:", *words))).encode() + b"\\n")  # whole, whichever thread it is


def opened(handler):
    handler.data.setdefault("door", "open")
    say("opened", handler.id, handler.data["door"])


def message(handler, message):
    if message.startswith("count "):
        for number in range(int(message.split()[1])):
            handler.write_message(f"number {number}")
        say("counted")
    elif message.startswith("data "):
        handler.data["door"] = message.split()[1]
        handler.write_message(f"saved {bool(handler.save())}")
    else:
        handler.write_message(message)


def closed(handler, closing):
    say("closed", handler.id, closing.reason.name, closing.code)


def who(request):
    return request.headers.get("Cookie")


def slow(handler, closing=None):
    say("begins", "open" if closing is None else "close")
    time.sleep(60)


async def stubborn(handler):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass


def cleanup(end):
    say("cleanup", end.session, end.reason, end.attempt, end.key, end.data.get("door"))
    if Path("hang").exists():
        time.sleep(60)
"""


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> Iterator[Redis | None]:
    """The store of this test, if that is not SQLite."""
    server = Redis() if getattr(request, "param", "sqlite") == "redis" else None
    yield server
    if server:
        server.remove()


@pytest.fixture
def start(gateway_process, tmp_path: Path, redis: Redis | None):
    """`await start()` is a gateway over the one store of this test; several may run."""
    (tmp_path / "door.py").write_text(_DOOR)
    config = _CONFIG.replace("STORE", redis.url if redis else "sqlite:sessions.sqlite3")

    async def start(*arguments: str, lease: float = LEASE) -> Gateway:
        text = config.replace(f"lease: {LEASE}s", f"lease: {lease}s")
        started: Gateway = await asyncio.to_thread(gateway_process, *arguments, config=text)
        return started

    return start


over_both = pytest.mark.parametrize("redis", ["sqlite", "redis"], indirect=True)
over_redis = pytest.mark.parametrize("redis", ["redis"], indirect=True)


@pytest.fixture
async def client_of():
    """`await client_of(gateway)` is a client with a session."""
    made = []

    async def connected(gateway: Gateway, transport: str = "websocket", **headers: str) -> SessionClient:
        client = SessionClient(gateway.url, transport=transport, headers=headers)
        made.append(client)
        await client.connect()
        return client

    yield connected
    for client in made:
        await client.close()


async def until(process: Process, pattern: str) -> re.Match[str]:
    """The first match in its output."""
    return await asyncio.to_thread(process.wait_for_output, pattern)


async def ended(process: Process) -> int:
    """The exit code."""
    return await asyncio.to_thread(process.wait)


async def next_of(gateway: Gateway, start: Callable[[], Awaitable[Gateway]]) -> Gateway:
    """The process that takes the place of this one, which is stopped."""
    gateway.send_signal(signal.SIGTERM)
    assert await ended(gateway) == 0
    return await start()


async def move(client: SessionClient, gateway: Gateway) -> frames.Welcome:
    """The client comes to another process with what it has."""
    client.base = gateway.url
    return await client.resume()


async def closing(client: SessionClient) -> list[frames.Frame]:
    """All that the client is sent until the connection ends."""
    seen = []
    while (frame := await client.next()) is not None:
        seen.append(frame)
    return seen


# -- a stop -----------------------------------------------------------------------------------------


@over_both
@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_session_survives_a_restart_with_its_id_its_data_and_what_was_under_way(
    start, client_of, transport
):
    first = await start()
    client = await client_of(first, transport)
    channel = await client.open("/door")
    session = client.welcome.session
    await client.send(channel, "data ajar")
    assert await client.message() == "saved True"
    await client.send(channel, "count 300")
    assert [await client.message() for _ in range(10)] == [f"number {number}" for number in range(10)]
    await until(first, "said: counted")
    await client.cut()  # the others are lost on their way
    first.send_signal(signal.SIGTERM)
    assert await ended(first) == 0
    assert f"said: closed {session} SHUTDOWN 1012" in first.output

    second = await start()
    welcome = await move(client, second)
    assert (welcome.resumed, welcome.session) == (True, session)
    assert [await client.message() for _ in range(290)] == [f"number {number}" for number in range(10, 300)]
    assert await client.next() == frames.Close(channel, 1012)
    await client.post(frames.Close(channel))
    another = await client.open("/door")
    assert another == channel + 1
    await until(second, f"said: opened {session} ajar")
    assert "said: cleanup" not in first.output + second.output

    await client.carrier.send("B")
    await until(second, f"said: cleanup {session} client_close 1 {session}:\\S+ ajar")


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_connected_client_is_told_to_close_its_channels_and_nothing_of_an_end(
    start, client_of, transport
):
    first, second = await start(), await start()
    client = await client_of(first, transport)
    channel = await client.open("/door")
    first.send_signal(signal.SIGTERM)
    assert await closing(client) == [frames.Close(channel, 1012)]
    assert (await move(client, second)).resumed
    assert await ended(first) == 0
    assert "did not take their leave" not in first.output


async def test_a_page_that_was_loaded_anew_meanwhile_begins_from_nothing(start, client_of):
    first = await start()
    client = await client_of(first)
    await client.open("/door")
    session = client.welcome.session
    second = await next_of(first, start)
    page = SessionClient(second.url)
    page.welcome = client.welcome
    welcome = await page.connect(page.resume_hello(received=None))
    assert (welcome.resumed, welcome.session, welcome.received) == (True, session, 0)
    assert await page.open("/door") == 1
    await page.close()


@pytest.mark.parametrize("wrong", [{"token": "x" * 43}, {"epoch": "another"}, {"received": 10_000}])
async def test_what_does_not_fit_is_a_new_session_and_harms_nothing(start, client_of, wrong):
    first = await start()
    client = await client_of(first)
    await client.open("/door")
    session = client.welcome.session
    second = await next_of(first, start)
    stranger = SessionClient(second.url)
    stranger.welcome = client.welcome
    stranger.received = client.received
    welcome = await stranger.connect(stranger.resume_hello(**wrong))
    assert not welcome.resumed
    assert welcome.session != session
    assert (await move(client, second)).resumed
    await stranger.close()


@pytest.mark.parametrize(("cookie", "resumed"), [("user=ada", True), ("user=eve", False)])
async def test_it_is_resumed_for_the_same_user_only(start, client_of, cookie, resumed):
    first = await start()
    client = await client_of(first, Cookie="user=ada")
    await client.open("/private")
    second = await next_of(first, start)
    client.headers = {"Cookie": cookie}
    assert (await move(client, second)).resumed is resumed


async def test_whoever_does_not_come_back_in_time_is_cleaned_up_after(start, client_of):
    first = await start()
    client = await client_of(first)
    await client.open("/door")
    session = client.welcome.session
    second = await next_of(first, start)
    await until(second, f"said: cleanup {session} shutdown 1")
    assert not (await move(client, second)).resumed


@over_both
async def test_of_two_that_come_with_the_same_token_to_two_nodes_one_gets_it(start, client_of):
    first = await start()
    client = await client_of(first)
    await client.open("/door")
    first.send_signal(signal.SIGTERM)
    assert await ended(first) == 0
    nodes = [await start(), await start()]
    twins = []
    for node in nodes:
        twin = SessionClient(node.url)
        twin.welcome, twin.received = client.welcome, client.received
        twins.append(twin)
    welcomes = await asyncio.gather(*(twin.connect(twin.resume_hello()) for twin in twins))
    assert sorted(welcome.resumed for welcome in welcomes) == [False, True]
    for twin in twins:
        await twin.close()


async def test_clients_without_resume_are_cleaned_up_after_before_the_stop(start):
    gateway = await start()
    socket = connect(gateway.url.replace("http", "ws") + "/door", proxy=None)
    async with socket as plain, aiohttp.ClientSession() as http:
        async with http.get(f"{gateway.url}/door/engine.io/?EIO=4&transport=polling") as answer:
            sid = json.loads((await answer.text())[1:])["sid"]
        await until(gateway, f"said: opened {sid}")
        await until(gateway, r"(?s)said: opened .*said: opened ")
        gateway.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            await plain.recv()
        assert plain.close_code == 1012
    assert await ended(gateway) == 0
    assert gateway.output.count("said: closed") == 2
    assert len(re.findall(r"said: cleanup \S+ shutdown 1", gateway.output)) == 2
    assert gateway.output.rindex("said: closed") < gateway.output.rindex("said: cleanup")


@pytest.mark.parametrize("path", ["/slow", "/late", "/stubborn"])
async def test_a_stop_ends_in_time_although_a_handler_blocks(start, client_of, path):
    gateway = await start()
    client = await client_of(gateway)
    await client.ask(path)
    if path == "/slow":
        await until(gateway, "said: begins open")
    else:
        assert await client.next() == frames.Accept(1)
    began = time.monotonic()
    gateway.send_signal(signal.SIGTERM)
    assert await ended(gateway) == 0
    assert f"handlers that have not returned: {path} (1)" in gateway.output
    assert time.monotonic() - began < 5.0 + 3.0  # the drain, and the end of the process on a busy machine


async def test_a_terminal_that_is_closed_says_so_twice_and_stops_it(start, client_of):
    gateway = await start("--store", "memory:")
    client = await client_of(gateway)
    await client.open("/door")
    gateway.send_signal(signal.SIGHUP)
    await until(gateway, "stopping: telling 1 client")
    gateway.send_signal(signal.SIGHUP)
    assert await ended(gateway) == 0
    assert "said: cleanup" in gateway.output


async def test_under_nohup_it_goes_on(start, client_of):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the process inherits
    try:
        gateway = await start()
    finally:
        signal.signal(signal.SIGHUP, before)
    gateway.send_signal(signal.SIGHUP)
    client = await client_of(gateway)
    await client.open("/door")
    assert "stopping" not in gateway.output


async def test_a_second_signal_ends_it_at_once(start, client_of):
    gateway = await start()
    client = await client_of(gateway)
    await client.ask("/slow")
    await until(gateway, "said: begins open")
    gateway.send_signal(signal.SIGTERM)
    await until(gateway, "stopping: telling 1 client")
    gateway.send_signal(signal.SIGTERM)
    assert await ended(gateway) == 128 + signal.SIGTERM


async def test_it_stops_when_the_last_browser_has_been_gone_that_long(start, client_of):
    gateway = await start("--exit-when-empty", "300ms")
    client = await client_of(gateway)
    await client.open("/door")
    session = client.welcome.session
    await client.carrier.send("B")
    assert await ended(gateway) == 0
    assert f"said: cleanup {session} client_close 1" in gateway.output
    assert "nobody has been here for 0.3 s" in gateway.output


# -- a crash ------------------------------------------------------------------------------------------


@over_both
async def test_after_kill_9_another_node_cleans_up_within_the_lease(start, client_of):
    first, second = await start(), await start()
    client = await client_of(first)
    await client.open("/door")
    session = client.welcome.session
    first.kill()
    began = time.monotonic()
    await until(second, f"said: cleanup {session} node_lost 1 {session}:\\S+ open")
    took = time.monotonic() - began
    print(f"noticed after {took:.2f} s")
    assert took <= LEASE + 0.5 + 1.0  # the last second is for a busy machine
    assert not (await move(client, second)).resumed
    assert second.output.count("said: cleanup") == 1


async def test_after_kill_9_the_next_start_cleans_up(start, client_of):
    first = await start()
    client = await client_of(first)
    await client.open("/door")
    first.kill()
    second = await start()
    await until(second, f"said: cleanup {client.welcome.session} node_lost 1")


async def test_a_crash_in_the_middle_of_a_hook_repeats_it_with_the_same_key(start, client_of, tmp_path):
    first = await start()
    client = await client_of(first)
    await client.open("/door")
    (tmp_path / "hang").touch()
    await client.carrier.send("B")
    before = await until(first, r"said: cleanup (\S+) client_close 1 (\S+)")
    first.kill()
    (tmp_path / "hang").unlink()
    second = await start()
    after = await until(second, r"said: cleanup (\S+) client_close 2 (\S+)")
    assert before.groups() == after.groups()


@over_both
async def test_a_node_that_was_paused_for_too_long_sends_its_clients_away_and_cleans_up_nothing(
    start, client_of
):
    first, second = await start(), await start()
    client = await client_of(first)
    await client.open("/door")
    session = client.welcome.session
    first.send_signal(signal.SIGSTOP)
    await until(second, f"said: cleanup {session} node_lost 1")
    first.send_signal(signal.SIGCONT)
    end = (await closing(client))[-1]
    assert isinstance(end, frames.End)
    assert (end.code, end.retry) == (4011, True)
    # It is there again, and in charge of what comes now.
    newcomer = await client_of(first)
    await newcomer.open("/door")
    await newcomer.carrier.send("B")
    await until(first, f"said: cleanup {newcomer.welcome.session} client_close 1")
    assert first.output.count("said: cleanup") == 1
    assert second.output.count("said: cleanup") == 1


# -- a store that forgets ---------------------------------------------------------------------------------


@over_redis
@pytest.mark.parametrize("how", ["emptied", "restarted"])
async def test_a_redis_that_has_forgotten_everything_costs_no_session_and_no_hook(
    start, redis, client_of, how
):
    gateway = await start()
    client = await client_of(gateway)
    channel = await client.open("/door")
    session = client.welcome.session
    again = None
    if how == "emptied":
        with redis_client(redis) as direct:
            direct.flushall()
    else:
        await asyncio.to_thread(redis.kill)
        again = await asyncio.to_thread(Redis, directory=redis.directory)
    try:
        await until(gateway, "store was emptied: recording 1 session of this node again")
        await client.send(channel, "data ajar")
        # False while it is being recorded again: then it is saved with that.
        assert await client.message() in ("saved True", "saved False")
        await client.carrier.send("B")
        await until(gateway, f"said: cleanup {session} client_close 1 {session}:\\S+ ajar")
        gateway.send_signal(signal.SIGTERM)
        assert await ended(gateway) == 0
    finally:
        if again:
            await asyncio.to_thread(again.stop)
    assert gateway.output.count("said: cleanup") == 1
    assert "sent away" not in gateway.output
    assert "Traceback" not in gateway.output


@over_redis
async def test_who_leaves_or_stays_while_nobody_has_noticed_that_redis_was_emptied(start, redis, client_of):
    first = await start(lease=60)  # it looks every 20 s
    leaves, stays = await client_of(first), await client_of(first)
    for client in (leaves, stays):
        await client.open("/door")
    with redis_client(redis) as direct:
        direct.flushall()
    await leaves.carrier.send("B")
    await until(first, f"said: cleanup {leaves.welcome.session} client_close 1")
    with redis_client(redis) as direct:
        direct.flushall()
    second = await next_of(first, start)
    assert (await move(stays, second)).resumed
    await stays.carrier.send("B")
    await until(second, f"said: cleanup {stays.welcome.session} client_close 1")
    assert (first.output + second.output).count("said: cleanup") == 2
