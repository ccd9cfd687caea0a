"""`EngineServer` keeps what python-engineio's users were promised, and none of what went wrong there.

The server runs under a plain aiohttp application on loopback; requests are made with aiohttp's client.
What the protocol itself asks for is in `integration/test_official_rules.py`.
"""

import asyncio
import gc
import inspect
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import engineio
import engineio.async_socket
import engineio.payload
import pytest
from aiohttp import web
from engineio.packet import MESSAGE, Packet

from gateway import EngineServer
from gateway.config import Limits, Timeouts
from gateway.engine import decode
from gateway.protocol.reasons import Reason
from tests.support.parts import ROOT
from tests.support.processes import Process, free_port

HANDSHAKE = "EIO=4&transport=polling"
QUICK = Timeouts(close=0.1)  # for the clients that a test leaves behind


class Peer:
    """A polling client: one request at a time, nothing in the background."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.http = http
        self.sid = ""

    async def open(self, query: str = "", **options: Any) -> tuple[int, str]:
        status, text = await self._request("GET", query, **options)
        if status == 200:
            self.sid = json.loads(text.split("\x1e")[0][1:])["sid"]
        return status, text

    async def get(self) -> tuple[int, str]:
        return await self._request("GET", f"&sid={self.sid}")

    async def post(self, body: str) -> tuple[int, str]:
        return await self._request("POST", f"&sid={self.sid}", data=body)

    async def leave(self) -> None:
        await self.post("1")

    async def _request(self, method: str, query: str, **options: Any) -> tuple[int, str]:
        async with self.http.request(method, f"{self.url}?{HANDSHAKE}{query}", **options) as answer:
            return answer.status, await answer.text()

    def websocket(self) -> Any:
        return self.http.ws_connect(f"{self.url}?EIO=4&transport=websocket")


Serve = Callable[[EngineServer], Awaitable[Peer]]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


@pytest.fixture
async def serve(http: aiohttp.ClientSession) -> AsyncIterator[Serve]:
    """`await serve(eio)` runs it in an application of its own and returns a client for it."""
    runners = []

    async def start(eio: EngineServer) -> Peer:
        app = web.Application()
        eio.attach(app)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return Peer(f"http://127.0.0.1:{runner.addresses[0][1]}/engine.io/", http)

    yield start
    for runner in runners:
        await runner.cleanup()


async def soon(queue: "asyncio.Queue[Any]") -> Any:
    return await asyncio.wait_for(queue.get(), 5)


# -- the API ---------------------------------------------------------------------------------------


def parameters(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds]


def test_takes_every_parameter_of_python_engineio_in_its_order() -> None:
    assert parameters(EngineServer.__init__) == parameters(engineio.AsyncServer.__init__)


def public_methods() -> list[str]:
    methods = inspect.getmembers(engineio.AsyncServer, inspect.isfunction)
    return [name for name, _ in methods if not name.startswith("_")]


@pytest.mark.parametrize("name", public_methods())
def test_public_methods_take_what_they_took(name: str) -> None:
    theirs, ours = getattr(engineio.AsyncServer, name), getattr(EngineServer, name)
    if name == "handle_request":  # theirs takes what any framework gives; ours is for one
        assert parameters(ours) == ["self", "request"]
        return
    assert parameters(ours) == parameters(theirs)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


async def test_no_machinery_of_python_engineio_runs(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("python-engineio's machinery runs")

    for owner, name in [
        (engineio.async_socket.AsyncSocket, "__init__"),
        (engineio.payload.Payload, "__init__"),
        (Packet, "encode"),
        (Packet, "decode"),
        (EngineServer, "_service_task"),
        (EngineServer, "_handle_connect"),
        (EngineServer, "_trigger_event"),
    ]:
        monkeypatch.setattr(owner, name, must_not_run)
    eio = EngineServer(timeouts=QUICK)
    eio.on("message", eio.send)
    peer = await serve(eio)
    await peer.open()
    await peer.post('4one\x1e4{"two":2}')
    assert await peer.get() == (200, '4one\x1e4{"two":2}')
    async with peer.websocket() as ws:
        await ws.receive_str()
        await ws.send_str("4one")
        assert await ws.receive_str() == "4one"
    await peer.leave()


@pytest.mark.parametrize(
    "options", [{"async_mode": "asgi"}, {"transports": ["pigeon"]}, {"cors_allowed_origins": "what?"}]
)
def test_refuses_values_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        EngineServer(**options)


def test_names_an_option_that_it_does_not_know(caplog: pytest.LogCaptureFixture) -> None:
    EngineServer(ping_intervall=3, logger=logging.getLogger("test"))
    assert "ping_intervall" in caplog.text


async def test_inherited_helpers_work() -> None:
    eio = EngineServer()
    queue = eio.create_queue()
    event = eio.create_event()

    async def background(value: int) -> None:
        await eio.sleep(0)
        queue.put_nowait(value)
        event.set()

    task = eio.start_background_task(background, 7)
    gc.collect()
    await asyncio.wait_for(event.wait(), 5)
    await task
    assert queue.get_nowait() == 7
    with pytest.raises(eio.get_queue_empty_exception()):
        queue.get_nowait()


# -- connect ---------------------------------------------------------------------------------------


async def test_the_environ_is_that_of_a_wsgi_server(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    seen: dict[str, Any] = {}
    eio.on("connect", lambda sid, environ: seen.update(environ))
    peer = await serve(eio)
    await peer.open("&room=a%20%26b", headers={"X-Name": "value", "X-Forwarded-For": "6.6.6.6"})
    assert seen["REQUEST_METHOD"] == "GET"
    assert seen["PATH_INFO"] == "/engine.io/"
    assert seen["QUERY_STRING"] == HANDSHAKE + "&room=a%20%26b"  # as sent
    assert seen["HTTP_X_NAME"] == "value"
    assert seen["HTTP_HOST"].startswith("127.0.0.1:")
    assert seen["REMOTE_ADDR"] == "127.0.0.1"
    assert int(seen["REMOTE_PORT"]) > 0
    assert seen["SERVER_PORT"] == seen["HTTP_HOST"].rpartition(":")[2]
    assert seen["wsgi.url_scheme"] == "http"
    assert isinstance(seen["aiohttp.request"], web.Request)
    await peer.leave()


async def test_only_trusted_proxies_say_who_the_client_is(serve: Serve) -> None:
    eio = EngineServer(trusted_proxies=["127.0.0.0/8"], timeouts=QUICK)
    seen: dict[str, Any] = {}
    eio.on("connect", lambda sid, environ: seen.update(environ))
    peer = await serve(eio)
    await peer.open(headers={"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"})
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"], seen["wsgi.url_scheme"]) == ("6.6.6.6", "0", "https")
    await peer.leave()


async def test_the_connect_handler_may_read_the_request(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    bodies = []

    @eio.on("connect")
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        request = environ["aiohttp.request"]
        bodies.append((request.can_read_body, await request.read(), dict(await request.post())))

    peer = await serve(eio)
    assert (await peer.open())[0] == 200
    assert bodies == [(False, b"", {})]
    await peer.leave()


def failing() -> None:
    raise KeyError("not what you think")


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (lambda: None, 200, None),
        (lambda: True, 200, None),
        (lambda: False, 401, "Unauthorized"),
        (lambda: "go away", 401, "go away"),
        (lambda: 42, 401, 42),
        (lambda: {"why": ["full"]}, 401, {"why": ["full"]}),
        (failing, 401, "Unauthorized"),
    ],
    ids=["None", "True", "False", "text", "number", "object", "exception"],
)
@pytest.mark.parametrize("kind", ["function", "coroutine function"])
async def test_the_connect_handler_decides(
    serve: Serve, answer: Callable[[], Any], status: int, body: Any, kind: str
) -> None:
    eio = EngineServer(timeouts=QUICK, logger=logging.getLogger("test"))

    async def connect(sid: str, environ: dict[str, Any]) -> Any:
        return answer()

    eio.on("connect", connect if kind != "function" else lambda sid, environ: answer())
    peer = await serve(eio)
    got, text = await peer.open()
    assert got == status
    if status == 401:
        assert json.loads(text) == body
        assert len(eio.sockets) == 0
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await peer.websocket()
        assert refused.value.status == 401
    else:
        await peer.leave()


async def test_a_message_can_be_sent_while_connecting(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)

    @eio.on("connect")
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await eio.send(sid, "welcome")

    peer = await serve(eio)
    _, text = await peer.open()
    assert text.split("\x1e")[1:] == ["4welcome"]
    await peer.leave()


async def test_disconnecting_while_connecting_refuses(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    reasons: asyncio.Queue[str] = asyncio.Queue()
    eio.on("connect", lambda sid, environ: eio.start_background_task(eio.disconnect, sid))
    eio.on("disconnect", lambda sid, reason: reasons.put_nowait(reason))

    @eio.on("connect")
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await eio.disconnect(sid)

    peer = await serve(eio)
    assert (await peer.open())[0] == 400
    assert await soon(reasons) == "server disconnect"
    assert len(eio.sockets) == 0


async def test_a_connect_handler_that_never_ends_is_given_up_when_the_client_leaves(
    serve: Serve, http: aiohttp.ClientSession
) -> None:
    eio = EngineServer(timeouts=Timeouts(close=0.1, handler=0.1))
    asked = asyncio.Event()
    given_up = asyncio.Event()

    @eio.on("connect")
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    peer = await serve(eio)
    request = asyncio.create_task(peer.open())
    await asked.wait()
    request.cancel()
    await asyncio.wait_for(given_up.wait(), 5)
    assert len(eio.sockets) == 0


# -- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "handed"),
    [
        ("hello", "hello"),
        ("", ""),
        ('{"a":1}', {"a": 1}),
        ('["a",{"b":null}]', ["a", {"b": None}]),
        ('{"a":1', '{"a":1'),
        ("[1,]", "[1,]"),
        ("[" * 100_000, "[" * 100_000),
        ("true", "true"),
        ("null", "null"),
        ('"abc"', '"abc"'),
        (" 12", " 12"),
        ("12", "12"),
        ("-1", "-1"),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        (' {"a":1}', ' {"a":1}'),
        ("[" + "9" * 200 + "]", "[" + "9" * 200 + "]"),
    ],
)
def test_finding_8_only_objects_and_arrays_are_decoded(text: str, handed: Any) -> None:
    assert decode(text) == handed
    assert type(decode(text)) is type(handed)


def test_binary_messages_are_never_decoded() -> None:
    assert decode(b'{"a":1}') == b'{"a":1}'


@pytest.mark.parametrize(
    ("data", "wire"),
    [
        ("hello", "4hello"),
        ("", "4"),
        ('{"a": 1}', '4{"a": 1}'),
        (b"\x00\xff", "bAP8="),
        (bytearray(b"\x01"), "bAQ=="),
        ({"a": [1, None]}, '4{"a":[1,null]}'),
        ([], "4[]"),
        (5, "45"),
        (None, "4"),
    ],
)
async def test_send_encodes_as_python_engineio_does(serve: Serve, data: Any, wire: str) -> None:
    eio = EngineServer(timeouts=QUICK)
    peer = await serve(eio)
    await peer.open()
    await eio.send(peer.sid, data)
    await eio.send_packet(peer.sid, Packet(MESSAGE, data))
    assert await peer.get() == (200, f"{wire}\x1e{wire}")
    assert Packet(MESSAGE, data).encode(b64=True) == wire
    await peer.leave()


async def test_a_packet_that_was_encoded_for_polling_goes_out_as_binary(serve: Serve) -> None:
    eio = EngineServer()
    packet = Packet(MESSAGE, b"\x01")
    assert packet.encode(b64=True) == "bAQ=="
    peer = await serve(eio)
    async with peer.websocket() as ws:
        sid = json.loads((await ws.receive_str())[1:])["sid"]
        await eio.send_packet(sid, packet)
        assert await ws.receive_bytes() == b"\x01"


async def test_text_that_polling_cannot_carry_is_refused_to_the_sender(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    peer = await serve(eio)
    await peer.open()
    with pytest.raises(ValueError, match="U\\+001E"):
        await eio.send(peer.sid, "a\x1eb")
    await peer.leave()


async def test_sending_to_nobody_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    eio = EngineServer(logger=logging.getLogger("test"))
    await eio.send("nobody", "hello")
    assert "Cannot send to sid nobody" in caplog.text


async def test_a_burst_waits_for_a_client_that_reads(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    peer = await serve(eio)
    await peer.open()

    async def burst() -> None:
        for i in range(20_000):
            await eio.send(peer.sid, str(i))
        await eio.send(peer.sid, "end")

    task = asyncio.create_task(burst())
    received: list[str] = []
    while not received or received[-1] != "4end":
        status, text = await peer.get()
        assert status == 200
        received += text.split("\x1e")
    await task
    assert received[:-1] == [f"4{i}" for i in range(20_000)]
    await peer.leave()


async def test_what_a_task_sends_in_one_go_stays_together(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK, limits=Limits(outbound_messages=8))
    peer = await serve(eio)
    await peer.open()

    async def send_threes(name: str) -> None:
        for i in range(50):
            for part in "abc":
                await eio.send(peer.sid, f"{name}{i}{part}")
            await eio.sleep(0)

    tasks = [asyncio.create_task(send_threes(name)) for name in "xyz"]
    received: list[str] = []
    while len(received) < 450:
        status, text = await peer.get()
        assert status == 200
        received += text.split("\x1e")
    await asyncio.gather(*tasks)
    for first, second, third in zip(*[iter(received)] * 3, strict=True):
        assert (first[-1], second[-1], third[-1]) == ("a", "b", "c")
        assert first[:-1] == second[:-1] == third[:-1]
    await peer.leave()


async def test_finding_22_a_client_that_never_reads_is_closed(serve: Serve) -> None:
    eio = EngineServer(timeouts=Timeouts(send=0.1), limits=Limits(outbound_bytes=10_000))
    reasons: asyncio.Queue[str] = asyncio.Queue()
    eio.on("disconnect", lambda sid, reason: reasons.put_nowait(reason))
    peer = await serve(eio)
    await peer.open()
    await asyncio.wait_for(eio.send(peer.sid, "x" * 6_000), 5)
    assert await soon(reasons) == Reason.SLOW_CONSUMER.text
    assert (await peer.get())[0] == 400


# -- the order of handlers -------------------------------------------------------------------------


async def test_finding_9_events_are_handled_in_order(serve: Serve) -> None:
    eio = EngineServer()
    seen: list[Any] = []
    over = asyncio.Event()

    @eio.on("message")
    async def message(sid: str, data: str) -> None:
        await asyncio.sleep(0.02 if data == "a" else 0)
        seen.append(data)

    @eio.on("disconnect")
    async def disconnect(sid: str, reason: str) -> None:
        seen.append(reason)
        over.set()

    peer = await serve(eio)
    await peer.open()
    await peer.post("4a\x1e4b\x1e1")
    await asyncio.wait_for(over.wait(), 5)
    assert seen == ["a", "b", "client disconnect"]


async def test_handlers_of_one_client_do_not_wait_for_another(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    release = asyncio.Event()

    @eio.on("message")
    async def message(sid: str, data: str) -> None:
        if data == "wait":
            await release.wait()
        await eio.send(sid, data)

    slow = await serve(eio)
    fast = Peer(slow.url, slow.http)
    await slow.open()
    await fast.open()
    await slow.post("4wait")
    await fast.post("4go")
    assert await fast.get() == (200, "4go")
    release.set()
    assert await slow.get() == (200, "4wait")
    await slow.leave()
    await fast.leave()


async def test_async_handlers_run_side_by_side_and_end_before_disconnect(serve: Serve) -> None:
    eio = EngineServer(async_handlers=True, limits=Limits(inbound_messages=3))
    log: list[str] = []
    release = asyncio.Event()
    started = asyncio.Queue[str]()
    over = asyncio.Event()

    @eio.on("message")
    async def message(sid: str, data: str) -> None:
        log.append(f"start {data}")
        started.put_nowait(data)
        await release.wait()
        log.append(f"end {data}")

    @eio.on("disconnect")
    def disconnect(sid: str, reason: str) -> None:
        log.append(reason)
        over.set()

    peer = await serve(eio)
    await peer.open()
    await peer.post("4a\x1e4b\x1e4c\x1e4d\x1e1")
    assert [await soon(started) for _ in range(3)] == ["a", "b", "c"]
    assert started.empty()
    release.set()
    await asyncio.wait_for(over.wait(), 5)
    assert [line for line in log if line.startswith("start")] == [f"start {n}" for n in "abcd"]
    assert log[-1] == "client disconnect"
    assert len(log) == 9


@pytest.mark.parametrize("async_handlers", [False, True])
async def test_disconnect_does_not_wait_for_ever(serve: Serve, async_handlers: bool) -> None:
    eio = EngineServer(async_handlers=async_handlers, timeouts=Timeouts(handler=0.1))
    reasons: asyncio.Queue[str] = asyncio.Queue()
    release = asyncio.Event()

    @eio.on("message")
    async def message(sid: str, data: str) -> None:
        await release.wait()

    eio.on("disconnect", lambda sid, reason: reasons.put_nowait(reason))
    peer = await serve(eio)
    await peer.open()
    await peer.post("4a\x1e1")
    assert await soon(reasons) == "client disconnect"
    release.set()


async def test_a_handler_that_fails_ends_nothing_but_itself(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    eio = EngineServer(timeouts=QUICK)

    @eio.on("message")
    async def message(sid: str, data: str) -> None:
        if data == "bad":
            raise LookupError("the handler's own")
        if data == "cancelled":
            raise asyncio.CancelledError
        await eio.send(sid, data)

    peer = await serve(eio)
    await peer.open()
    await peer.post("4bad\x1e4cancelled\x1e4good")
    assert await peer.get() == (200, "4good")
    assert "the handler's own" in caplog.text
    await peer.leave()


# -- disconnect ------------------------------------------------------------------------------------


async def test_a_disconnect_handler_may_take_one_argument(serve: Serve) -> None:
    eio = EngineServer()
    seen: asyncio.Queue[Any] = asyncio.Queue()

    @eio.on("disconnect")
    async def disconnect(sid: str) -> None:
        seen.put_nowait(sid)

    peer = await serve(eio)
    await peer.open()
    await peer.leave()
    assert await soon(seen) == peer.sid


async def test_finding_16_a_disconnect_handler_that_raises_typeerror_is_called_once(
    serve: Serve,
) -> None:
    eio = EngineServer()
    calls = []

    @eio.on("disconnect")
    def disconnect(sid: str, reason: str | None = None) -> None:
        calls.append(reason)
        len(None)  # type: ignore[arg-type]

    peer = await serve(eio)
    await peer.open()
    await peer.leave()
    assert calls == ["client disconnect"]
    assert len(eio.sockets) == 0


@pytest.mark.parametrize(
    ("event", "handler"),
    [
        ("connect", lambda sid: None),
        ("message", lambda: None),
        ("disconnect", lambda sid, reason, more: None),
    ],
)
def test_a_handler_that_cannot_be_called_is_refused_when_it_is_registered(
    event: str, handler: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError, match="is called with"):
        EngineServer().on(event, handler)


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(ValueError, match="messsage"):
        EngineServer().on("messsage")


async def test_finding_5_disconnecting_a_vanished_client_returns_at_once(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    reasons: asyncio.Queue[str] = asyncio.Queue()
    eio.on("disconnect", lambda sid, reason: reasons.put_nowait(reason))
    peer = await serve(eio)
    await peer.open()
    await eio.send(peer.sid, "never fetched")
    await asyncio.wait_for(eio.disconnect(peer.sid), 0.5)
    assert await soon(reasons) == "server disconnect"


async def test_finding_21_disconnecting_everybody(serve: Serve) -> None:
    eio = EngineServer()
    reasons: asyncio.Queue[str] = asyncio.Queue()
    eio.on("disconnect", lambda sid, reason: reasons.put_nowait(reason))
    await eio.disconnect()
    await eio.disconnect("nobody")
    first = await serve(eio)
    second = Peer(first.url, first.http)
    await first.open()
    await second.open()
    await eio.disconnect()
    assert await first.get() == (200, "1")
    assert await second.get() == (200, "1")
    assert [await soon(reasons), await soon(reasons)] == ["server disconnect"] * 2


async def test_a_handler_may_disconnect_its_own_client(serve: Serve) -> None:
    eio = EngineServer()
    seen: asyncio.Queue[Any] = asyncio.Queue()

    @eio.on("message")
    async def message(sid: str, data: str) -> None:
        await eio.send(sid, "bye")
        await eio.disconnect(sid)
        seen.put_nowait("message ended")

    eio.on("disconnect", lambda sid, reason: seen.put_nowait(reason))
    peer = await serve(eio)
    await peer.open()
    await peer.post("4go")
    assert await soon(seen) == "message ended"
    assert await soon(seen) == "server disconnect"
    assert await peer.get() == (200, "4bye\x1e1")


# -- session, sockets, transport -------------------------------------------------------------------


async def test_the_session_lives_from_connect_to_disconnect(serve: Serve) -> None:
    eio = EngineServer()
    seen: asyncio.Queue[Any] = asyncio.Queue()

    @eio.on("connect")
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        assert await eio.get_session(sid) == {}
        await eio.save_session(sid, {"name": "ada"})

    @eio.on("message")
    async def message(sid: str, data: str) -> None:
        async with eio.session(sid) as session:
            session["said"] = data

    @eio.on("disconnect")
    async def disconnect(sid: str) -> None:
        seen.put_nowait((await eio.get_session(sid), eio.transport(sid)))

    peer = await serve(eio)
    async with peer.websocket() as ws:
        sid = json.loads((await ws.receive_str())[1:])["sid"]
        await ws.send_str("4hello")
    assert await soon(seen) == ({"name": "ada", "said": "hello"}, "websocket")
    for ask in (eio.get_session(sid), eio.save_session(sid, {})):
        with pytest.raises(KeyError):
            await ask


async def test_sockets_shows_who_is_there(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    peer = await serve(eio)
    await peer.open()
    async with peer.websocket() as ws:
        sid = json.loads((await ws.receive_str())[1:])["sid"]
        assert set(eio.sockets) == {peer.sid, sid}
        assert [(s.sid, s.connected, s.upgraded, s.closed) for s in eio.sockets.values()] == [
            (peer.sid, True, False, False),
            (sid, True, True, False),
        ]
        assert (eio.transport(peer.sid), eio.transport(sid)) == ("polling", "websocket")
    with pytest.raises(TypeError):
        eio.sockets["x"] = None  # type: ignore[index]
    with pytest.raises(KeyError):
        eio.transport("nobody")
    await peer.leave()


async def test_generate_id_may_be_overridden(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    class Server(EngineServer):
        def generate_id(self) -> str:
            return "always-the-same"

    eio = Server(timeouts=QUICK)
    first = await serve(eio)
    await first.open()
    assert first.sid == "always-the-same"
    second = Peer(first.url, first.http)
    assert (await second.open())[0] == 500
    assert "id of a client that is connected" in caplog.text
    await eio.send(first.sid, "still here")
    assert await first.get() == (200, "4still here")
    await first.leave()


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "advertised"),
    [
        ({}, (25_000, 20_000, 1_000_000)),
        ({"ping_interval": 2.5, "ping_timeout": 0.25}, (2_500, 250, 1_000_000)),
        ({"ping_interval": (3, 1.5)}, (4_500, 20_000, 1_000_000)),
        ({"max_http_buffer_size": 5_000}, (25_000, 20_000, 5_000)),
        ({"limits": Limits(payload=7_000)}, (25_000, 20_000, 7_000)),
    ],
)
async def test_what_clients_are_told(
    serve: Serve, options: dict[str, Any], advertised: tuple[int, int, int]
) -> None:
    eio = EngineServer(timeouts=QUICK, **options)
    peer = await serve(eio)
    told = json.loads((await peer.open())[1][1:])
    assert (told["pingInterval"], told["pingTimeout"], told["maxPayload"]) == advertised
    assert eio.max_http_buffer_size == advertised[2]
    await peer.leave()


async def test_a_grace_period_does_not_delay_the_ping(serve: Serve) -> None:
    eio = EngineServer(ping_interval=(0.1, 60), timeouts=QUICK)
    peer = await serve(eio)
    await peer.open()
    assert await asyncio.wait_for(peer.get(), 2) == (200, "2")
    await peer.leave()


async def test_max_http_buffer_size_is_kept(serve: Serve) -> None:
    eio = EngineServer(max_http_buffer_size=1_000, timeouts=QUICK)
    peer = await serve(eio)
    await peer.open()
    assert (await peer.post("4" + "x" * 1_000))[0] == 413


@pytest.mark.parametrize("options", [{"transports": ["polling"]}, {"allow_upgrades": False}])
async def test_finding_28_no_upgrade_where_none_is_allowed(serve: Serve, options: dict[str, Any]) -> None:
    eio = EngineServer(timeouts=QUICK, **options)
    peer = await serve(eio)
    _, text = await peer.open()
    assert json.loads(text[1:])["upgrades"] == []
    for transport in ("websocket", "polling"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await peer.http.ws_connect(f"{peer.url}?EIO=4&transport={transport}&sid={peer.sid}")
        assert refused.value.status == 400
    await eio.send(peer.sid, "still polling")
    assert await peer.get() == (200, "4still polling")
    await peer.leave()


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        (None, None),
        ("io", "io={}; path=/; SameSite=Lax"),
        ({"name": "sid", "path": "/x", "HttpOnly": True, "Secure": False}, "sid={}; path=/x; HttpOnly"),
        ({"name": "sid", "Max-Age": lambda: "60"}, "sid={}; Max-Age=60"),
    ],
)
async def test_cookie(serve: Serve, cookie: Any, expected: str | None) -> None:
    eio = EngineServer(cookie=cookie, timeouts=QUICK)
    peer = await serve(eio)
    async with peer.http.get(f"{peer.url}?{HANDSHAKE}") as answer:
        sid = json.loads((await answer.text())[1:])["sid"]
        assert answer.headers.get("Set-Cookie") == (expected and expected.format(sid))
    peer.sid = sid
    await peer.leave()


# -- origins ---------------------------------------------------------------------------------------

APP = "https://app.example"


def with_environ(origin: str, environ: dict[str, Any]) -> bool:
    return origin == APP and environ["QUERY_STRING"].startswith("EIO")


ORIGINS = [
    (None, APP, 403, None),
    (None, "same", 200, "same"),
    (None, None, 200, None),
    ("*", APP, 200, "*"),
    (["*"], APP, 200, "*"),
    (APP, APP, 200, APP),
    (APP, "https://app.example.evil", 403, None),
    (APP, "http://app.example", 403, None),
    (["https://other.example", APP], APP, 200, APP),
    (["*.example"], APP, 200, APP),
    (["null", "capacitor://localhost"], "null", 200, "null"),
    (["null", "capacitor://localhost"], "capacitor://localhost", 200, "capacitor://localhost"),
    (["capacitor://localhost"], "null", 403, None),
    (lambda origin: origin == APP, APP, 200, APP),
    (lambda origin: origin == APP, "https://evil.example", 403, None),
    (with_environ, APP, 200, APP),
    (with_environ, "https://evil.example", 403, None),
    (with_environ, None, 200, None),
    ([], "https://evil.example", 200, None),
]


@pytest.mark.parametrize(("allowed", "origin", "status", "told"), ORIGINS)
async def test_origins(serve: Serve, allowed: Any, origin: str | None, status: int, told: str | None) -> None:
    eio = EngineServer(cors_allowed_origins=allowed, timeouts=QUICK)
    peer = await serve(eio)
    own = peer.url.removesuffix("/engine.io/")
    origin, told = (own if value == "same" else value for value in (origin, told))
    headers = {} if origin is None else {"Origin": origin}
    async with peer.http.get(f"{peer.url}?{HANDSHAKE}", headers=headers) as answer:
        assert answer.status == status
        seen = answer.headers
    if told != own:  # the same origin needs no permission, and may have it
        assert seen.get("Access-Control-Allow-Origin") == told
    credentials = None if told in (None, "*", own) else "true"
    if told != own:
        assert seen.get("Access-Control-Allow-Credentials") == credentials
    if told not in (None, "*") or status == 403:
        assert seen["Vary"] == "Origin"
    websocket = f"{peer.url}?EIO=4&transport=websocket"
    if status == 403:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await peer.http.ws_connect(websocket, headers=headers)
        assert refused.value.status == 403
    else:
        await (await peer.http.ws_connect(websocket, headers=headers)).close()


async def test_credentials_may_be_withheld(serve: Serve) -> None:
    eio = EngineServer(cors_allowed_origins=APP, cors_credentials=False, timeouts=QUICK)
    peer = await serve(eio)
    preflight = {"Origin": APP, "Access-Control-Request-Headers": "x-name"}
    async with peer.http.options(f"{peer.url}?{HANDSHAKE}", headers=preflight) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == APP
        assert answer.headers["Access-Control-Allow-Headers"] == "x-name"
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_finding_29_a_stranger_cannot_forward_itself_in(serve: Serve) -> None:
    eio = EngineServer(timeouts=QUICK)
    peer = await serve(eio)
    headers = {"Origin": "http://evil", "X-Forwarded-Host": "evil", "X-Forwarded-Proto": "http"}
    async with peer.http.get(f"{peer.url}?{HANDSHAKE}", headers=headers) as answer:
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers


# -- the end ---------------------------------------------------------------------------------------


async def test_shutdown_tells_everybody_and_runs_every_handler(serve: Serve) -> None:
    eio = EngineServer()
    seen: list[tuple[str, str]] = []

    @eio.on("disconnect")
    async def disconnect(sid: str, reason: str) -> None:
        await asyncio.sleep(0.05)
        seen.append((sid, reason))

    peer = await serve(eio)
    await peer.open()
    async with peer.websocket() as ws:
        sid = json.loads((await ws.receive_str())[1:])["sid"]
        waiting = asyncio.create_task(peer.get())
        stopping = asyncio.create_task(eio.shutdown())
        assert await ws.receive_str() == "1"
        await ws.receive()
        assert ws.close_code == 1012
        assert await waiting == (200, "1")
        await stopping
    assert sorted(seen) == sorted([(peer.sid, "server shutdown"), (sid, "server shutdown")])
    assert (await peer.open())[0] == 503


async def test_shutdown_does_not_wait_for_ever(serve: Serve) -> None:
    eio = EngineServer(timeouts=Timeouts(close=0.1, drain=0.1), logger=logging.getLogger("test"))
    release = asyncio.Event()

    @eio.on("disconnect")
    async def disconnect(sid: str, reason: str) -> None:
        await release.wait()

    peer = await serve(eio)
    await peer.open()
    await asyncio.wait_for(eio.shutdown(), 5)
    release.set()


SCRIPT = """
from aiohttp import web
from gateway import EngineServer
eio = EngineServer(cors_allowed_origins="*")
eio.on("disconnect", lambda sid, reason: print("gone", sid, reason))

@web.middleware
async def announce(request, handler):
    print("asked", request.query_string)
    return await handler(request)

app = web.Application(middlewares=[announce])
eio.attach(app)
web.run_app(app, host="127.0.0.1", port={port})
"""


async def test_finding_19_sigterm_under_run_app(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "app.py"
    file.write_text(SCRIPT.format(port=port), "utf-8")
    with Process([sys.executable, file], name="run_app", env={"PYTHONPATH": str(ROOT)}) as process:
        await asyncio.to_thread(process.wait_for_port, port)
        peer = Peer(f"http://127.0.0.1:{port}/engine.io/", http)
        silent = Peer(peer.url, http)
        await peer.open()
        await silent.open()
        async with peer.websocket() as ws:
            sid = json.loads((await ws.receive_str())[1:])["sid"]
            waiting = asyncio.create_task(peer.get())
            await asyncio.to_thread(process.wait_for_output, f"asked .*sid={peer.sid}")
            process.send_signal(signal.SIGTERM)
            assert await ws.receive_str() == "1"
            assert await waiting == (200, "1")
        assert await asyncio.to_thread(process.wait, 5) == 0
        gone = {line for line in process.output.splitlines() if line.startswith("gone")}
        assert gone == {f"gone {one} server shutdown" for one in (peer.sid, silent.sid, sid)}
