"""The composition: what is served where, beside whose application, and how it stops."""

from __future__ import annotations

import asyncio
import gzip

import aiohttp
import pytest
from aiohttp import web

from gateway import EngineServer, Gateway, Route
from gateway.config import Settings, Timeouts
from tests.support.running import running
from tests.support.session_client import SessionClient

QUICK = Settings(timeouts=Timeouts(close=0.2, drain=1.0))


def echo(pattern="/echo"):
    return Route(pattern, on_message=lambda handler, message: handler.write_message(message))


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def base():
    async with running(Gateway([echo()], settings=QUICK)) as url:
        yield url


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/_gateway/", "text/html; charset=utf-8"),
        ("/_gateway/demo.js", "text/javascript; charset=utf-8"),
        ("/_gateway/demo.css", "text/css; charset=utf-8"),
        ("/_gateway/icon.svg", "image/svg+xml; charset=utf-8"),
        ("/_gateway/client.js", "text/javascript; charset=utf-8"),
        ("/_gateway/client.js.map", "application/json"),
        ("/_gateway/client.d.ts", "text/plain; charset=utf-8"),
    ],
)
async def test_files_are_served_by_their_exact_names(base, http, path, kind):
    async with http.get(base + path) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == kind
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert ("Content-Security-Policy" in answer.headers) == kind.startswith("text/html")
        tag = answer.headers["ETag"]
        body = await answer.read()
    async with http.get(base + path, headers={"If-None-Match": f'"other", W/{tag}'}) as answer:
        assert (answer.status, await answer.read()) == (304, b"")
    async with http.head(base + path) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(body)))
    async with http.post(base + path) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


async def test_the_script_is_small_enough(base, http):
    async with http.get(base + "/_gateway/client.js") as answer:
        assert len(gzip.compress(await answer.read())) <= 20_000


async def test_the_script_may_come_from_elsewhere(http):
    gateway = Gateway(static_prefix="https://static.example.com/gateway/", settings=QUICK)
    async with running(gateway) as base, http.get(base + "/") as answer:
        page = await answer.text()
        assert '"https://static.example.com/gateway/client.js"' in page
        assert '"/_gateway/client.js"' not in page
        policy = answer.headers["Content-Security-Policy"]
        assert "script-src 'self' https://static.example.com;" in policy


# -- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/echo/",
        "/Echo",
        "/_gateway",
        "/_gateway/engine",
        "/_gateway/client.js/",
        "/_gateway/app.py",
        "/_gateway/../gateway/app.py",
        "/_gateway/%2e%2e/pyproject.toml",
        "/_gateway%2Fclient.js",
        "/_gateway/client%2Ejs/..",
        "//engine.io/..;/",
        "//echo",
        "/echo%2F",
        "/echo%00",
        "/ech%6",
        "/echo/engine.io//",
        "/nope/engine.io/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
async def test_what_is_not_served_is_404_in_json(base, path, method):
    host, port = base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    )
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith("HTTP/1.1 404")
    assert answer.endswith('{"code": 3, "message": "Bad request: nothing is served at this path"}')


async def test_an_encoded_letter_is_the_same_path(base, http):
    async with http.get(base + "/%65cho") as answer:
        assert answer.status == 426


async def test_a_route_may_have_the_root(http):
    async with running(Gateway([echo("/")], settings=QUICK)) as base:
        async with http.get(base + "/") as answer:
            assert answer.status == 426
        async with http.get(base + "/_gateway/") as answer:
            assert answer.status == 200
        async with http.get(base + "/engine.io/?EIO=4&transport=polling") as answer:
            assert answer.status == 200


@pytest.mark.parametrize("pattern", ["/_gateway/x", "/_gateway/engine/"])
def test_the_gateways_own_paths_are_taken(pattern):
    with pytest.raises(ValueError, match="belongs to the gateway"):
        Gateway([Route(pattern)])


@pytest.mark.parametrize("settings", [{"trusted_proxies": ["x"]}, {"origins": ["http://x/y"]}])
def test_what_cannot_work_is_said_before_it_runs(settings):
    with pytest.raises(ValueError, match=r".+"):
        Gateway(**settings)


async def test_origins_of_the_gateway_are_for_routes_without_their_own(http):
    own = Route("/own", origins=["https://own.example"])
    gateway = Gateway([echo(), own], origins=["https://all.example"], settings=QUICK)
    async with running(gateway) as base:
        for path, origin, status in (
            ("/echo", "https://all.example", 200),
            ("/echo", "https://own.example", 403),
            ("/own", "https://own.example", 200),
            ("/own", "https://all.example", 403),
        ):
            url = f"{base}{path}/engine.io/?EIO=4&transport=polling"
            async with http.get(url, headers={"Origin": origin}) as answer:
                assert answer.status == status


# -- the status ------------------------------------------------------------------------------------


async def test_the_status_counts(base, http):
    client = SessionClient(base, transport="polling")
    await client.connect()
    socket = await http.ws_connect(base + "/echo")
    async with http.get(base + "/_gateway/status") as answer:
        counts = await answer.json()
    assert counts == {
        "sessions": {"new": 1, "open": 1, "detached": 0, "closing": 0},
        "connections": {"polling": 1, "websocket": 0, "plain": 1},
        "store": {"url": "memory:", "state": "ok"},
        "hooks": {"done": 0, "failed": 0, "retried": 0, "redelivered": 0, "running": 0, "waiting": 0},
        "resumes": {"ok": 0, "state_lost": 0},
        "stalls": 0,
    }
    await socket.close()
    await client.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "public.example"},
        {"X-Forwarded-For": "192.0.2.1"},
        {"Via": "1.1 proxy"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_the_status_is_for_this_machine(base, http, headers):
    async with http.get(base + "/_gateway/status", headers=headers) as answer:
        assert answer.status == 404


# -- beside an application of the user ---------------------------------------------------------------


async def test_it_leaves_an_applications_own_paths_alone(http):
    async def hello(request):
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/echo/page", hello)
    gateway = Gateway([echo()], settings=QUICK)
    gateway.attach(app)
    async with running(gateway, app) as base:
        for path, status in (("/", 200), ("/echo/page", 200), ("/nope", 404), ("/echo", 426)):
            async with http.get(base + path) as answer:
                assert answer.status == status, path
        async with http.ws_connect(base + "/echo") as socket:
            await socket.send_str("hi")
            assert await socket.receive_str() == "hi"
        async with http.get(base + "/_gateway/client.js") as answer:
            assert answer.status == 200


async def test_it_lives_beside_an_engine_server(http):
    app = web.Application()
    eio = EngineServer()
    eio.attach(app)
    gateway = Gateway([echo()], settings=QUICK, demo=False)
    gateway.attach(app)
    async with running(gateway, app) as base:
        for path, status in (
            ("/engine.io/", 200),
            ("/echo/engine.io/", 200),
            ("/_gateway/engine/", 200),
            ("/_gateway/demo/engine.io/", 404),
        ):
            async with http.get(f"{base}{path}?EIO=4&transport=polling") as answer:
                assert answer.status == status, path


def test_a_sub_application_is_no_place_for_it():
    sub = web.Application()
    Gateway().attach(sub)
    with pytest.raises(ValueError, match="outermost"):
        web.Application().add_subapp("/sub", sub)


async def test_nothing_new_begins_during_a_stop(http):
    gateway = Gateway([echo()], settings=QUICK)
    async with running(gateway) as base:
        await gateway.stop()
        await gateway.stop()
        for path in ("/echo", "/", "/_gateway/engine/?EIO=4&transport=polling"):
            async with http.get(base + path) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
