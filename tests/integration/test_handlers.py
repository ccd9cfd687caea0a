"""Handler routes as browsers reach them: a plain WebSocket, a stock Engine.IO client, our own protocol.

What is said about one way in is said about all three, wherever a test is parametrised by `way`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import engineio
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway import Gateway, Refuse, Route
from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.protocol import frames
from gateway.protocol.reasons import Reason
from tests.support.parts import ROOT
from tests.support.running import PATIENCE, Log, running
from tests.support.session_client import SessionClient

WAYS = pytest.mark.parametrize("way", ["plain", "engine.io", "session"])
SETTINGS = Settings(
    ping=Ping(0.3, 0.3),
    timeouts=Timeouts(grace=0.3, leave=0.1, poll_hold=0.2, close=0.3, handler=0.5, drain=2.0, send=1.0),
)


class Refused(Exception):
    """The way in answered with this HTTP status."""


class Plain:
    """A browser's own WebSocket."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    @classmethod
    async def open(cls, base: str, path: str, **headers: str) -> Plain:
        url = base.replace("http", "ws", 1) + path
        try:
            socket = await connect(url, additional_headers=headers, compression=None, proxy=None)
        except InvalidStatus as error:
            raise Refused(error.response.status_code) from error
        return cls(socket)

    async def send(self, data: str | bytes) -> None:
        await self._socket.send(data)

    async def receive(self) -> str | bytes:
        async with asyncio.timeout(PATIENCE):
            data: str | bytes = await self._socket.recv()
            return data

    async def close(self) -> None:
        await self._socket.close()


class StockEngine:
    """python-engineio's client."""

    def __init__(self) -> None:
        self._client = engineio.AsyncClient()
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._client.on("message", self._received)

    async def _received(self, data: str | bytes) -> None:
        self._messages.put_nowait(data)

    @classmethod
    async def open(cls, base: str, path: str, **headers: str) -> StockEngine:
        made = cls()
        path, _, query = path.partition("?")
        url = f"{base}/?{query}"
        try:
            await made._client.connect(url, headers=headers, engineio_path=f"{path}/engine.io")
        except engineio.exceptions.ConnectionError as error:
            if made._client.http is not None:
                await made._client.http.close()
            raise Refused(await _status(base, path, headers)) from error
        return made

    async def send(self, data: str | bytes) -> None:
        await self._client.send(data)

    async def receive(self) -> str | bytes:
        async with asyncio.timeout(PATIENCE):
            return await self._messages.get()

    async def close(self) -> None:
        await self._client.disconnect()


async def _status(base: str, path: str, headers: dict[str, str]) -> int:
    url = f"{base}{path}/engine.io/?EIO=4&transport=polling"
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
        return answer.status


class Virtual:
    """A channel of a session, over polling."""

    def __init__(self, client: SessionClient, channel: int) -> None:
        self._client = client
        self._channel = channel

    @classmethod
    async def open(cls, base: str, path: str, **headers: str) -> Virtual:
        client = SessionClient(base, transport="polling", headers=headers)
        try:
            await client.connect()
        except ConnectionRefusedError as error:
            raise Refused(int(str(error)[:3])) from error
        channel = await client.ask(path)
        answer = await client.next()
        if isinstance(answer, frames.Refuse):
            await client.close()
            raise Refused(answer.status)
        return cls(client, channel)

    async def send(self, data: str | bytes) -> None:
        await self._client.send(self._channel, data)

    async def receive(self) -> str | bytes:
        return await self._client.message()

    async def close(self) -> None:
        await self._client.carrier.send("B")
        await self._client.close()


_CLIENTS: dict[str, Any] = {"plain": Plain, "engine.io": StockEngine, "session": Virtual}


async def come(way: str, base: str, path: str, **headers: str) -> Any:
    return await _CLIENTS[way].open(base, path, **headers)


@asynccontextmanager
async def gateway_with(*routes: Route, settings: Settings = SETTINGS) -> AsyncIterator[str]:
    async with running(Gateway(routes, settings=settings)) as base:
        yield base


@pytest.fixture
async def log() -> Log:
    return Log()


def echo(log: Log, pattern: str = "/echo", **options: Any) -> Route:
    """Blocking functions that echo and write down what they are called with."""
    return Route(
        pattern,
        open=lambda handler: log.note("open"),
        on_message=lambda handler, message: handler.write_message(message),
        on_close=lambda handler, closing: log.note("close", closing.reason),
        **options,
    )


# -- what functions see ------------------------------------------------------------------------------


@WAYS
async def test_blocking_functions_are_served(log, way):
    route = echo(log)
    route.functions["on_close"] = lambda handler: log.note("closed")
    async with gateway_with(route) as base:
        client = await come(way, base, "/echo")
        for data in ("text", b"\x00\xff", "ü"):
            await client.send(data)
            assert await client.receive() == data
        await client.close()
        await log.until("closed")
        assert log.entries == ["open", "closed"]


@WAYS
async def test_coroutine_functions_are_served(log, way):
    route = Route("/echo")

    @route.open
    async def _(handler):
        await handler.write_message({"hello": "</script>"})

    @route.on_message
    async def _(handler, message):
        handler.write_message(message, binary=True)

    @route.on_close
    async def _(handler):
        log.note("close")

    async with gateway_with(route) as base:
        client = await come(way, base, "/echo")
        # python-engineio's client decodes JSON, browsers and ours do not.
        assert await client.receive() in ('{"hello": "<\\/script>"}', {"hello": "</script>"})
        await client.send("ü")
        assert await client.receive() == "ü".encode()
        await client.close()
        await log.until("close")


@WAYS
async def test_the_handler_knows_the_request(log, way):
    route = Route("/rooms/{room}/{seat}", auth=lambda request: {"name": request.headers["X-Name"]})

    @route.open
    def _(handler):
        handler.mine = "kept"
        log.note(handler.path_kwargs, handler.path_args, handler.current_user)
        log.note(handler.get_argument("q"), handler.get_argument("none", "x"), handler.get_arguments("q"))
        log.note(handler.request.path, handler.request.remote_ip)
        log.note(handler.get_cookie("c"), handler.get_cookie("d"))

    @route.on_message
    def _(handler, message):
        handler.session["count"] = handler.session.get("count", 0) + 1
        handler.write_message(f"{handler.mine} {handler.session['count']} {bool(handler.session['id'])}")

    async with gateway_with(route) as base:
        path = "/rooms/caf%C3%A9/7?q=1&q=%202%2B%26%20"
        client = await come(way, base, path, **{"X-Name": "Ada", "Cookie": "c=biscuit"})
        for count in (1, 2):
            await client.send("")
            assert await client.receive() == f"kept {count} True"
        await client.close()
    assert log.entries == [
        ({"room": "café", "seat": "7"}, [], {"name": "Ada"}),
        ("2+&", "x", ["1", "2+&"]),
        ("/rooms/café/7", "127.0.0.1"),
        ("biscuit", None),
    ]


# -- who may come ------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(("error", "status"), [(Refuse(418, "tea"), 418), (RuntimeError("bug"), 500)])
async def test_open_refuses_by_raising(log, way, blocking, error, status, caplog):
    def refuse(handler):
        raise error

    async def refuse_later(handler):
        raise error

    route = Route(
        "/no", open=refuse if blocking else refuse_later, on_close=lambda handler: log.note("close")
    )
    async with gateway_with(route) as base:
        with pytest.raises(Refused, match=str(status)):
            await come(way, base, "/no")
    assert log.entries == []
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert bool(logged) == (status == 500)
    assert all("/no" in record.getMessage() for record in logged)


@WAYS
@pytest.mark.parametrize("blocking", [True, False])
async def test_auth_decides_for_every_way_in(log, way, blocking, caplog):
    def check(request):
        if "X-Bug" in request.headers:
            raise RuntimeError("bug")
        if "X-Gone" in request.headers:
            raise Refuse(410, "gone")
        return request.headers.get("X-User")

    async def check_later(request):
        return check(request)

    route = echo(log, auth=check if blocking else check_later)
    async with gateway_with(route) as base:
        for headers, status in (({}, 401), ({"X-Bug": "1"}, 500), ({"X-Gone": "1"}, 410)):
            with pytest.raises(Refused, match=str(status)):
                await come(way, base, "/echo", **headers)
        assert log.entries == []
        client = await come(way, base, "/echo", **{"X-User": "Ada"})
        await client.close()
    assert "/echo: auth failed" in caplog.text


OWN = "http://{host}"
ORIGINS = [
    # origins:, Origin, welcome
    (None, OWN, True),
    (None, "http://localhost:1", False),
    (None, "https://{host}", False),
    (None, "null", False),
    (["good.example"], "https://good.example", True),
    (["good.example"], "https://good.example.evil.example", False),
    (["good.example"], "https://evilgood.example", False),
    (["https://good.example"], "http://good.example", False),
    (["https://good.example"], "https://good.example:444", False),
    (["https://good.example"], "https://GOOD.example", True),
    (["*.example"], "https://a.b.example", True),
    (["*.example"], "https://example", False),
    (["*"], "https://anything.example", True),
]


@WAYS
@pytest.mark.parametrize(("origins", "origin", "welcome"), ORIGINS)
async def test_origins_are_compared_exactly_on_every_way_in(log, way, origins, origin, welcome):
    async with gateway_with(echo(log, origins=origins)) as base:
        headers = {"Origin": origin.format(host=base.removeprefix("http://"))}
        if not welcome:
            with pytest.raises(Refused, match="403"):
                await come(way, base, "/echo", **headers)
            return
        client = await come(way, base, "/echo", **headers)
        await client.send("x")
        assert await client.receive() == "x"
        await client.close()


@pytest.mark.parametrize("path", ["/echo/engine.io/", "/_gateway/engine/"])
async def test_a_wrong_origin_is_refused_on_get_post_and_upgrade_alike(log, path):
    evil = {"Origin": "https://evil.example"}
    async with gateway_with(echo(log)) as base, aiohttp.ClientSession() as http:
        url = f"{base}{path}?EIO=4&transport="
        async with http.get(url + "polling") as answer:
            sid = (await answer.text()).split('"')[3]
        for method, query in (("GET", ""), ("GET", f"&sid={sid}"), ("POST", f"&sid={sid}")):
            async with http.request(method, f"{url}polling{query}", headers=evil) as answer:
                assert (answer.status, (await answer.json())["code"]) == (403, 4)
        for query in ("", f"&sid={sid}"):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await http.ws_connect(f"{url}websocket{query}", headers=evil)
        async with http.post(f"{url}polling&sid={sid}", data="1") as answer:
            assert await answer.text() == "ok"


# -- when functions fail or take their time ----------------------------------------------------------


@WAYS
async def test_a_function_that_raises_ends_nothing_but_its_call(log, way, caplog):
    route = echo(log)
    route.functions["on_message"] = lambda handler, message: handler.write_message(str(1 / int(message)))
    async with gateway_with(route) as base:
        client = await come(way, base, "/echo")
        await client.send("0")
        await client.send("1")
        assert await client.receive() == "1.0"
        await client.close()
    assert "/echo: on_message failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_that_exits_ends_nothing_but_its_call(log, is_async, caplog):
    def leave(handler, message):
        if message == "leave":
            raise SystemExit(3)
        handler.write_message(message)

    async def leave_async(handler, message):
        leave(handler, message)

    route = echo(log)
    route.functions["on_message"] = leave_async if is_async else leave
    async with gateway_with(route) as base:
        client = await come("session", base, "/echo")
        await client.send("leave")
        await client.send("stay")
        assert await client.receive() == "stay"
        await client.close()
    assert "sys.exit does not end one client" in caplog.text


@WAYS
async def test_calls_of_one_connection_are_in_order_and_one_at_a_time(log, way):
    inside = []

    def slow(handler, message):
        inside.append(message)
        assert len(inside) == 1
        time.sleep(0.002)
        inside.clear()
        log.note(message)

    async with gateway_with(Route("/slow", on_message=slow)) as base:
        client = await come(way, base, "/slow")
        for index in range(150):
            await client.send(str(index))
        await log.until("149")
        await client.close()
    assert log.entries == [str(index) for index in range(150)]


@WAYS
async def test_a_function_that_sleeps_stops_no_heartbeat_and_nobody_else(log, way):
    """It sleeps for two heartbeats. The round trips of others are measured meanwhile."""
    asleep, seconds = threading.Event(), 1.3

    def sleep(handler, message):
        asleep.set()
        time.sleep(seconds)
        handler.write_message("slept well")

    async with gateway_with(Route("/sleep", on_message=sleep), echo(log)) as base:
        sleeper, other = await come(way, base, "/sleep"), await come(way, base, "/echo")
        await sleeper.send("now")
        await asyncio.to_thread(asleep.wait, PATIENCE)
        start = time.monotonic()
        worst = 0.0
        while time.monotonic() - start < seconds - 0.2:
            sent = time.monotonic()
            await other.send("?")
            assert await other.receive() == "?"
            worst = max(worst, time.monotonic() - sent)
        assert await sleeper.receive() == "slept well"
        assert worst < 0.25, f"{worst * 1000:.0f} ms"
        assert ("close", Reason.PING_TIMEOUT) not in log.entries
        for client in (sleeper, other):
            await client.close()


@WAYS
async def test_a_handler_that_is_behind_stops_reading_and_loses_nothing(log, way):
    go = threading.Event()

    def wait(handler, message):
        go.wait(PATIENCE)
        log.note(len(message))

    async with gateway_with(Route("/wait", on_message=wait), echo(log)) as base:
        client, other = await come(way, base, "/wait"), await come(way, base, "/echo")
        message = b"x" * 50_000
        sending = asyncio.ensure_future(_send(client, [message] * 200))
        # Ten megabytes do not fit into a megabyte: somebody waits.
        done, _ = await asyncio.wait([sending], timeout=0.7)
        assert not done or way == "engine.io"  # python-engineio's client queues by itself
        await other.send("undisturbed")
        assert await other.receive() == "undisturbed"
        go.set()
        await log.until_count(200, 50_000)
        await sending
        for each in (client, other):
            await each.close()


async def _send(client: Any, messages: list[bytes]) -> None:
    for message in messages:
        await client.send(message)


async def test_what_a_slow_open_opens_is_closed_although_the_browser_has_left(log, caplog):
    opening, go = threading.Event(), threading.Event()

    def slow(handler):
        opening.set()
        go.wait(PATIENCE)
        log.note("open")

    route = Route("/slow", open=slow, on_close=lambda handler, closing: log.note("close", closing.code))
    async with gateway_with(route) as base:
        client = SessionClient(base)
        await client.connect()
        number = await client.ask("/slow")
        await asyncio.to_thread(opening.wait, PATIENCE)
        await client.post(frames.Close(number))
        assert await client.next() == frames.Close(number)
        await log.until_logged("waits no longer", caplog)
        go.set()
        await log.until("close", 1006)
        assert log.entries == ["open", ("close", 1006)]
        await client.close()


@WAYS
async def test_any_thread_may_write(log, way):
    handlers: list[Any] = []
    route = Route("/push", open=handlers.append)

    def push() -> None:
        for index in range(300):
            handlers[0].write_message(str(index))
        handlers[0].close()
        handlers[0].write_message("too late")

    async with gateway_with(route) as base:
        client = await come(way, base, "/push")
        await asyncio.to_thread(push)
        assert [await client.receive() for _ in range(300)] == [str(index) for index in range(300)]
        await client.close()
    await asyncio.to_thread(handlers[0].write_message, "long gone")


async def test_what_cannot_be_written_is_an_error_of_the_caller(log):
    wrong = []
    route = Route("/wrong")

    @route.open
    def _(handler):
        for call in (
            lambda: handler.write_message(["a list"]),
            lambda: handler.close(1005),
            lambda: handler.close(999),
            lambda: handler.close(1000, "x" * 124),
            lambda: setattr(handler, "selected_subprotocol", "not offered"),
        ):
            try:
                call()
            except (TypeError, ValueError) as error:
                wrong.append(str(error))

    async with gateway_with(route) as base:
        await (await come("plain", base, "/wrong")).close()
    assert len(wrong) == 5


# -- plain websockets ----------------------------------------------------------------------------------


async def plain(base: str, path: str = "/echo", **options: Any) -> Any:
    return await connect(base.replace("http", "ws", 1) + path, compression=None, proxy=None, **options)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, ""), (3000, "why"), (4999, "ü" * 61)])
async def test_a_plain_close_is_told_with_code_and_reason(log, code, reason):
    route = Route("/echo", on_close=lambda handler, closing: log.note(closing.code, closing.text))
    async with gateway_with(route) as base:
        socket = await plain(base)
        await socket.close(code, reason)
        assert socket.close_code == code
        await log.until(code, reason)


async def test_a_plain_close_without_a_code_is_1005(log):
    route = Route("/echo", on_close=lambda handler, closing: log.note(closing.reason, closing.code))
    async with gateway_with(route) as base, aiohttp.ClientSession() as http:
        socket = await http.ws_connect(base + "/echo")
        # An empty close frame, masked.
        await socket._writer.send_frame(b"", aiohttp.WSMsgType.CLOSE)
        await log.until(Reason.CLIENT_CLOSE, 1005)
        await socket.close()


async def test_the_handler_closes_a_plain_websocket_after_what_it_wrote(log):
    route = Route("/echo")

    @route.open
    def _(handler):
        handler.write_message("first")
        handler.close(4001, "then this")

    async with gateway_with(route) as base:
        socket = await plain(base)
        assert await socket.recv() == "first"
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (4001, "then this")


async def test_a_plain_websocket_gets_the_subprotocol_that_was_chosen(log):
    route = Route("/echo")

    @route.open
    def _(handler):
        log.note(handler.subprotocols)
        handler.selected_subprotocol = "v2"

    async with gateway_with(route, echo(log, "/any")) as base:
        async with await plain(base, subprotocols=["v1", "v2"]) as socket:
            assert socket.subprotocol == "v2"
        assert log.entries[0] == ("v1", "v2")
        async with await plain(base, "/any", subprotocols=["v1"]) as socket:
            assert socket.subprotocol is None


async def test_a_request_without_upgrade_is_told_what_this_is(log):
    async with gateway_with(echo(log)) as base, aiohttp.ClientSession() as http:
        async with http.get(base + "/echo") as answer:
            assert answer.status == 426
            assert answer.headers["Upgrade"] == "websocket"
            assert "WebSocket endpoint" in (await answer.json())["message"]
        async with http.post(base + "/echo", data="x") as answer:
            assert answer.status == 405


@pytest.mark.parametrize("answers", [True, False])
async def test_a_plain_client_that_answers_no_ping_is_gone(log, answers):
    async with gateway_with(echo(log)) as base, aiohttp.ClientSession() as http:
        start = time.monotonic()
        socket = await http.ws_connect(base + "/echo", autoping=answers)
        reading = asyncio.ensure_future(_read(socket))
        if answers:
            done, _ = await asyncio.wait([reading], timeout=1.2)
            assert not done
        else:
            await log.until("close", Reason.PING_TIMEOUT)
            ping = SETTINGS.ping
            assert ping.interval + ping.timeout <= time.monotonic() - start + 0.02
            assert time.monotonic() - start <= ping.interval + ping.timeout + 0.2
        await socket.close()
        await reading


async def _read(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


async def test_a_plain_client_that_reads_nothing_is_let_go(log):
    handlers: list[Any] = []
    route = Route("/flood", open=handlers.append, on_close=lambda handler, closing: log.note(closing.reason))
    settings = Settings(timeouts=SETTINGS.timeouts, limits=Limits(outbound_bytes=100_000))

    def flood() -> None:
        for _ in range(1000):
            handlers[0].write_message(b"x" * 50_000)

    async with gateway_with(route, settings=settings) as base:
        socket = await plain(base, "/flood", max_queue=1)
        flooding = asyncio.ensure_future(asyncio.to_thread(flood))
        await log.until(Reason.SLOW_CONSUMER)
        await flooding
        socket.transport.abort()


async def test_a_stop_tells_plain_clients_to_come_back(log):
    gateway = Gateway([echo(log)], settings=SETTINGS)
    async with running(gateway) as base:
        socket = await plain(base)
        await gateway.stop()
        assert ("close", Reason.SHUTDOWN) in log.entries
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1012


async def test_a_stop_does_not_wait_for_ever(log, caplog):
    go = threading.Event()
    route = Route("/stuck", on_close=lambda handler: go.wait(PATIENCE))
    settings = Settings(timeouts=Timeouts(drain=0.5, close=0.2))
    gateway = Gateway([route], settings=settings)
    async with running(gateway) as base:
        await plain(base, "/stuck")
        start = time.monotonic()
        await gateway.stop()
        assert time.monotonic() - start < 0.8
        assert "/stuck (1)" in caplog.text
        go.set()


# -- the sample of Gramex's documentation --------------------------------------------------------------


async def test_the_gramex_sample_runs_as_it_stands(gateway_process):
    """examples/chatbot holds the documentation's YAML and Python, unchanged."""
    config = (ROOT / "examples" / "chatbot" / "gateway.yaml").read_text()
    process = await asyncio.to_thread(
        gateway_process, "--config", str(ROOT / "examples" / "chatbot" / "gateway.yaml")
    )
    assert "function: pingbot.open" in config
    for way in _CLIENTS:
        for headers in ({}, {"Origin": "https://gramener.com"}, {"Origin": "http://localhost:9988"}):
            client = await come(way, process.url, "/pingbot", **headers)
            await client.send("Hello world")
            assert await client.receive() == "Got message: Hello world"
            await client.close()
        with pytest.raises(Refused, match="403"):
            await come(way, process.url, "/pingbot", Origin="https://gramener.com.evil.example")
    await asyncio.to_thread(process.wait_for_output, r"Chatbot opened for \S{10}")
    await asyncio.to_thread(process.wait_for_output, r"Got message Hello world for \S{10}")
    await asyncio.to_thread(process.wait_for_output, r"Chatbot closed for \S{10}")


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",  # RFC 6455 section 1.3
}


@pytest.mark.parametrize("cookie", ["user=bert", None])
async def test_b15_a_sid_is_worth_nothing_with_another_login(log, cookie):
    route = echo(log, auth=lambda request: request.headers.get("Cookie"))
    expected = 401 if cookie is None else 403
    async with running(Gateway([route])) as base, aiohttp.ClientSession() as http:
        polling = f"{base}/echo/engine.io/?EIO=4&transport=polling"
        anna = {"Cookie": "user=anna", "Origin": base}
        other = {"Origin": base} if cookie is None else {"Cookie": cookie, "Origin": base}
        async with http.get(polling, headers=anna) as answer:
            connection = f"{polling}&sid={json.loads((await answer.text())[1:])['sid']}"
        for ask in (
            http.get(connection, headers=other),
            http.post(connection, headers=other, data="4stolen"),
            http.get(connection.replace("polling", "websocket"), headers=other | UPGRADE),
        ):
            async with ask as answer:
                assert answer.status == expected
        async with http.post(connection, headers=anna, data="4mine") as answer:
            assert await answer.text() == "ok"
        async with http.get(connection, headers=anna) as answer:
            assert await answer.text() == "4mine"
