"""Every rule of the Engine.IO v4 protocol document, asked of `EngineServer` under plain aiohttp.

One test per rule, with a ping of 300 + 200 ms, as the protocol's own suite has it. Nothing here knows
our code: requests go in over TCP, answers are compared with what the document says. Time passes only
where the rule itself is about time.
Source: https://github.com/socketio/engine.io-protocol, version 4.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import EngineServer
from gateway.config import Timeouts

PING_INTERVAL = 0.3
PING_TIMEOUT = 0.2


class Rig:
    """A server that echoes, and one HTTP client without keep-alive between tests."""

    def __init__(self, port: int, http: aiohttp.ClientSession) -> None:
        self.url = f"http://127.0.0.1:{port}/engine.io/"
        self.http = http
        self.arrived: asyncio.Queue[str] = asyncio.Queue()

    async def request(self, method: str, query: str, body: str | None = None) -> tuple[int, str]:
        """Status and body of the answer."""
        async with self.http.request(method, f"{self.url}?{query}", data=body) as answer:
            return answer.status, await answer.text()

    async def handshake(self) -> str:
        """The id of a new polling connection."""
        _, text = await self.request("GET", "EIO=4&transport=polling")
        sid: str = json.loads(text[1:])["sid"]
        return sid

    async def get(self, sid: str) -> tuple[int, str]:
        return await self.request("GET", f"EIO=4&transport=polling&sid={sid}")

    async def post(self, sid: str, body: str) -> tuple[int, str]:
        return await self.request("POST", f"EIO=4&transport=polling&sid={sid}", body)

    async def waiting_get(self, sid: str) -> "asyncio.Task[tuple[int, str]]":
        """A GET that the server has taken, and has not answered."""
        while not self.arrived.empty():
            self.arrived.get_nowait()
        task = asyncio.create_task(self.get(sid))
        await self.arrived.get()
        return task

    def websocket(self, query: str = "EIO=4&transport=websocket") -> Any:
        """A websocket, as an asynchronous context manager."""
        return self.http.ws_connect(f"{self.url}?{query}")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    eio = EngineServer(
        ping_interval=PING_INTERVAL,
        ping_timeout=PING_TIMEOUT,
        cors_allowed_origins="*",
        timeouts=Timeouts(close=0.1),  # for the clients that a test leaves behind
    )
    eio.on("message", eio.send)

    @web.middleware
    async def announce(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        opened.arrived.put_nowait(request.method)
        return await handler(request)

    app = web.Application(middlewares=[announce])
    eio.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as http:
        opened = Rig(runner.addresses[0][1], http)
        yield opened
    await runner.cleanup()


def open_packet(text: str) -> dict[str, Any]:
    assert text[0] == "0"
    value: dict[str, Any] = json.loads(text[1:])
    return value


def check_open(value: dict[str, Any], upgrades: list[str]) -> None:
    sid = value.pop("sid")
    assert isinstance(sid, str)
    assert sid
    assert value == {
        "upgrades": upgrades,
        "pingInterval": 300,
        "pingTimeout": 200,
        "maxPayload": 1_000_000,
    }


async def probed(rig: Rig, sid: str) -> aiohttp.ClientWebSocketResponse:
    ws: aiohttp.ClientWebSocketResponse
    ws = await rig.websocket(f"EIO=4&transport=websocket&sid={sid}")
    await ws.send_str("2probe")
    assert await ws.receive_str() == "3probe"
    return ws


async def text_of(ws: aiohttp.ClientWebSocketResponse) -> str:
    """The next packet that is no ping."""
    while True:
        text = await ws.receive_str(timeout=5)
        if text != "2":
            return text


async def end_of(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    """Read until it is closed: the close code."""
    async for _ in ws:
        pass
    return ws.close_code


# -- handshake -------------------------------------------------------------------------------------


async def test_polling_handshake(rig: Rig) -> None:
    status, text = await rig.request("GET", "EIO=4&transport=polling")
    assert status == 200
    check_open(open_packet(text), ["websocket"])


async def test_websocket_handshake(rig: Rig) -> None:
    async with rig.websocket() as ws:
        check_open(open_packet(await ws.receive_str()), [])


BAD_QUERIES = [
    ("transport={}", 5, "no version"),
    ("EIO=abc&transport={}", 5, "an unknown version"),
    ("EIO=3&transport={}", 5, "an old version"),
    ("EIO=4", 0, "no transport"),
    ("EIO=4&transport=abc", 0, "an unknown transport"),
]


@pytest.mark.parametrize(("query", "code", "_what"), BAD_QUERIES, ids=[q[2] for q in BAD_QUERIES])
async def test_polling_handshake_refuses(rig: Rig, query: str, code: int, _what: str) -> None:
    status, body = await rig.request("GET", query.format("polling"))
    assert (status, json.loads(body)["code"]) == (400, code)


@pytest.mark.parametrize(("query", "_code", "_what"), BAD_QUERIES, ids=[q[2] for q in BAD_QUERIES])
async def test_websocket_handshake_refuses(rig: Rig, query: str, _code: int, _what: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await rig.websocket(query.format("websocket"))
    assert refused.value.status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_handshake_refuses_other_methods(rig: Rig, method: str) -> None:
    status, body = await rig.request(method, "EIO=4&transport=polling")
    assert (status, json.loads(body)["code"]) == (400, 2)


async def test_unknown_session_is_refused(rig: Rig) -> None:
    status, body = await rig.get("nobody")
    assert (status, json.loads(body)["code"]) == (400, 1)
    assert (await rig.post("nobody", "4hello"))[0] == 400


# -- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    ["4hello", "4test1\x1e4test2\x1e4test3", "4hello\x1ebAQIDBA=="],
    ids=["one", "several", "text and binary"],
)
async def test_polling_messages(rig: Rig, payload: str) -> None:
    sid = await rig.handshake()
    assert await rig.post(sid, payload) == (200, "ok")
    assert await rig.get(sid) == (200, payload)


@pytest.mark.parametrize("payload", ["abc", "", "4a\x1ex", "4a\x1e", "b!!!!", "0", "7"])
async def test_polling_closes_upon_an_invalid_packet(rig: Rig, payload: str) -> None:
    sid = await rig.handshake()
    status, body = await rig.post(sid, payload)
    assert (status, json.loads(body)["code"]) == (400, 3)
    assert (await rig.get(sid))[0] == 400


async def test_polling_closes_upon_a_second_get(rig: Rig) -> None:
    sid = await rig.handshake()
    first = await rig.waiting_get(sid)
    assert (await rig.get(sid))[0] == 400
    assert await first == (200, "1")
    assert (await rig.get(sid))[0] == 400


async def test_websocket_messages(rig: Rig) -> None:
    async with rig.websocket() as ws:
        await ws.receive_str()
        await ws.send_str("4hello")
        assert await text_of(ws) == "4hello"
        await ws.send_bytes(b"\x01\x02\x03\x04")
        assert await ws.receive_bytes() == b"\x01\x02\x03\x04"


async def test_websocket_messages_of_a_client_with_force_base64(rig: Rig) -> None:
    """Not in the document, but what engine.io-client, engine.io and python-engineio do."""
    async with rig.websocket("EIO=4&transport=websocket&b64=1") as ws:
        await ws.receive_str()
        await ws.send_str("bAQIDBA==")
        assert await text_of(ws) == "bAQIDBA=="
        await ws.send_str("4bAQIDBA==")
        assert await text_of(ws) == "4bAQIDBA=="


@pytest.mark.parametrize("frame", ["abc", "", "9", "b!"])
async def test_websocket_closes_upon_an_invalid_packet(rig: Rig, frame: str) -> None:
    async with rig.websocket() as ws:
        await ws.receive_str()
        await ws.send_str(frame)
        assert await end_of(ws) is not None


# -- heartbeat -------------------------------------------------------------------------------------


async def test_polling_heartbeat(rig: Rig) -> None:
    sid = await rig.handshake()
    for _ in range(3):
        assert await rig.get(sid) == (200, "2")
        assert await rig.post(sid, "3") == (200, "ok")


async def test_polling_closes_without_a_pong(rig: Rig) -> None:
    sid = await rig.handshake()
    await asyncio.sleep(PING_INTERVAL + PING_TIMEOUT)
    assert (await rig.get(sid))[0] == 400


async def test_websocket_heartbeat(rig: Rig) -> None:
    async with rig.websocket() as ws:
        await ws.receive_str()
        for _ in range(3):
            assert await ws.receive_str(timeout=PING_INTERVAL + PING_TIMEOUT) == "2"
            await ws.send_str("3")


async def test_websocket_closes_without_a_pong(rig: Rig) -> None:
    async with asyncio.timeout(2), rig.websocket() as ws:
        await ws.receive_str()
        assert await end_of(ws) is not None


# -- close -----------------------------------------------------------------------------------------


async def test_polling_close(rig: Rig) -> None:
    sid = await rig.handshake()
    waiting = await rig.waiting_get(sid)
    assert await rig.post(sid, "1") == (200, "ok")
    assert await waiting == (200, "6")
    assert (await rig.get(sid))[0] == 400


async def test_websocket_close(rig: Rig) -> None:
    async with rig.websocket() as ws:
        await ws.receive_str()
        await ws.send_str("1")
        assert await end_of(ws) == 1000


# -- upgrade ---------------------------------------------------------------------------------------


async def test_upgrade(rig: Rig) -> None:
    sid = await rig.handshake()
    ws = await probed(rig, sid)
    assert await rig.get(sid) == (200, "6")
    await ws.send_str("5")
    await ws.send_str("4hello")
    assert await text_of(ws) == "4hello"
    await ws.close()


async def test_upgrade_ends_the_waiting_get(rig: Rig) -> None:
    sid = await rig.handshake()
    waiting = await rig.waiting_get(sid)
    ws = await probed(rig, sid)
    assert await waiting == (200, "6")
    await ws.send_str("5")
    await ws.send_str("4hello")
    assert await text_of(ws) == "4hello"
    await ws.close()


async def test_http_after_the_upgrade_is_refused(rig: Rig) -> None:
    sid = await rig.handshake()
    ws = await probed(rig, sid)
    await ws.send_str("5")
    await ws.send_str("4before")
    assert await text_of(ws) == "4before"
    assert (await rig.get(sid))[0] == 400
    assert (await rig.post(sid, "4hello"))[0] == 400
    await ws.send_str("4after")
    assert await text_of(ws) == "4after"
    await ws.close()


async def test_a_second_websocket_after_the_upgrade_is_closed(rig: Rig) -> None:
    sid = await rig.handshake()
    ws = await probed(rig, sid)
    await ws.send_str("5")
    await ws.send_str("4before")
    assert await text_of(ws) == "4before"
    second = await rig.websocket(f"EIO=4&transport=websocket&sid={sid}")
    assert await end_of(second) is not None
    await ws.send_str("4after")
    assert await text_of(ws) == "4after"
    await ws.close()
