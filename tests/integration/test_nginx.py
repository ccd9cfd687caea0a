"""`deploy/nginx/gateway.conf` in a real nginx does what docs/deploy.md says of it.

The file is used as it is shipped: only ports, and the paths of a certificate, are put in, and its
TLS lines uncommented.
"""

import asyncio
import io
import json
import re
import ssl
import subprocess
import time

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from gateway import EngineServer
from tests.support.parts import ROOT, part
from tests.support.processes import free_port
from tests.support.servers import nginx_command

SHIPPED = ROOT / "deploy" / "nginx" / "gateway.conf"
ENDPOINT = "_gateway/engine/"
POLLING = {"EIO": "4", "transport": "polling"}


def once(text: str, old: str, new: str) -> str:
    """Replaces what must be there exactly once, outside comments."""
    pattern = re.compile(rf"^(\s*){re.escape(old)}", re.MULTILINE)
    text, found = pattern.subn(rf"\g<1>{new}", text)
    assert found == 1, f"{old!r} is there {found} times"
    return text


def configuration(upstream: int, port: int, tls: tuple[int, str, str] | None = None) -> str:
    """The shipped file. `tls`: port, path of the certificate, path of its key."""
    text = SHIPPED.read_text("utf-8")
    text = once(text, "listen 80;", f"listen 127.0.0.1:{port};")
    text = once(text, "server 127.0.0.1:8000;", f"server 127.0.0.1:{upstream};")
    if tls:
        text = re.sub(r"^( +)# (listen 443|ssl_)", r"\1\2", text, flags=re.MULTILINE)
        text = once(text, "listen 443 ssl", f"listen 127.0.0.1:{tls[0]} ssl")
        text = text.replace("/etc/ssl/certs/example.pem", tls[1])
        text = text.replace("/etc/ssl/private/example.key", tls[2])
    return text


class Upstream:
    """An Engine.IO echo, a stream, an upload and a mirror of headers."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.waiting = asyncio.Event()
        self.gone = asyncio.Event()
        self.engine = EngineServer(trusted_proxies=["127.0.0.1"])
        self.engine.on("message", self.engine.send)
        app = web.Application(client_max_size=2**21)
        self.engine.attach(app, ENDPOINT)
        app.router.add_get(f"/{ENDPOINT}wait", self.wait)
        app.router.add_get("/headers", self.headers)
        app.router.add_get("/stream", self.stream)
        app.router.add_post("/upload", self.upload)
        self.runner = web.AppRunner(app, handler_cancellation=True)

    @property
    def port(self) -> int:
        port: int = self.runner.addresses[0][1]
        return port

    async def headers(self, request: web.Request) -> web.Response:
        assert request.transport
        return web.json_response(
            {"peer": request.transport.get_extra_info("peername")[1]}
            | {name.lower(): value for name, value in request.headers.items()}
        )

    async def wait(self, request: web.Request) -> web.Response:
        self.waiting.set()
        try:
            await self.go_on.wait()
        finally:
            self.gone.set()
        return web.Response()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await self.go_on.wait()
        await response.write(b"second")
        return response

    async def upload(self, request: web.Request) -> web.Response:
        size = 0
        async for part_ in request.content.iter_any():
            self.go_on.set()
            size += len(part_)
        return web.json_response(size)


@pytest.fixture
async def upstream():
    server = Upstream()
    await server.runner.setup()
    await web.TCPSite(server.runner, "127.0.0.1", 0).start()
    yield server
    server.go_on.set()
    await server.runner.cleanup()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The paths of a certificate for 127.0.0.1, signed by itself, and of its key."""
    directory = tmp_path_factory.mktemp("tls")
    pem, key = directory / "gateway.pem", directory / "gateway.key"
    request = f"req -x509 -newkey rsa:2048 -nodes -days 2 -out {pem} -keyout {key}"
    name = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    command = [part("openssl"), *request.split(), *name.split()]
    subprocess.run(command, check=True, capture_output=True)
    return str(pem), str(key)


@pytest.fixture(params=["http", "https"])
def url(request, upstream, nginx, certificate):
    """The address of an nginx in front of the server, with and without TLS."""
    port, tls_port = free_port(), free_port()
    if request.param == "http":
        nginx(configuration(upstream.port, port), port)
        return URL(f"http://127.0.0.1:{port}")
    nginx(configuration(upstream.port, port, (tls_port, *certificate)), port)
    return URL(f"https://127.0.0.1:{tls_port}")


@pytest.fixture
def trust(certificate):
    """What a client must know to accept the certificate."""
    return ssl.create_default_context(cafile=certificate[0])


@pytest.fixture
async def front(url, trust):
    """A client whose paths are relative to `url`."""
    connector = aiohttp.TCPConnector(ssl=trust)
    timeout = aiohttp.ClientTimeout(10)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:
        yield session


async def handshake(client: aiohttp.ClientSession) -> dict[str, str]:
    """Opens a polling connection; the query of its further requests."""
    async with client.get(f"/{ENDPOINT}", params=POLLING) as response:
        assert response.status == 200
        return {**POLLING, "sid": json.loads((await response.text())[1:])["sid"]}


async def post(client: aiohttp.ClientSession, query: dict[str, str], body: str) -> int:
    headers = {"Content-Type": "text/plain;charset=UTF-8"}
    data = io.BytesIO(body.encode())
    async with client.post(f"/{ENDPOINT}", params=query, data=data, headers=headers) as response:
        return response.status


async def poll(client: aiohttp.ClientSession, query: dict[str, str]) -> str:
    async with client.get(f"/{ENDPOINT}", params=query) as response:
        assert response.status == 200
        return await response.text()


@pytest.mark.parametrize("tls", [False, True])
def test_nginx_finds_nothing_to_complain_about(tls, tmp_path, certificate):
    file = tmp_path / "nginx.conf"
    text = configuration(8000, free_port(), (free_port(), *certificate) if tls else None)
    file.write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{text}\n}}")
    done = subprocess.run(
        nginx_command(file, "-t"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "[warn]" not in done.stdout


async def test_a_waiting_poll_is_answered_when_a_message_comes(front, upstream):
    query = await handshake(front)
    waiting = asyncio.create_task(poll(front, query))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.3)
    began = time.monotonic()
    await upstream.engine.send(query["sid"], "news")
    assert await waiting == "4news"
    assert time.monotonic() - began < 1


async def test_a_poll_that_is_given_up_is_given_up_upstream(url, trust, upstream):
    # A bare connection that is cut: a client which takes leave by the rules of TLS, and then waits for
    # the answer, is noticed by nginx only when its time is over. Browsers do not wait.
    secure = trust if url.scheme == "https" else None
    _, writer = await asyncio.open_connection(url.host, url.port, ssl=secure)
    writer.write(f"GET /{ENDPOINT}wait HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await asyncio.wait_for(upstream.waiting.wait(), 2)
    writer.transport.abort()
    await asyncio.wait_for(upstream.gone.wait(), 2)


async def test_a_post_may_be_as_large_as_max_payload(front):
    query = await handshake(front)
    body = "4" + "x" * 900_000
    assert await post(front, query, body) == 200
    assert await poll(front, query) == body


async def test_a_larger_post_gets_413(front):
    query = await handshake(front)
    assert await post(front, query, "4" + "x" * 1_100_000) == 413
    assert await post(front, query, "4after") == 200
    assert await poll(front, query) == "4after"


async def test_a_websocket_works(front):
    query = await handshake(front)
    async with front.ws_connect(f"/{ENDPOINT}", params=query | {"transport": "websocket"}) as socket:
        await socket.send_str("2probe")
        assert await socket.receive_str() == "3probe"
        assert await poll(front, query) == "6"
        await socket.send_str("5")
        for message in ("4hi", "4" + "x" * 900_000):
            await socket.send_str(message)
            assert await socket.receive_str() == message


async def test_a_streamed_answer_arrives_as_it_is_written(front, upstream):
    async with front.get("/stream") as response:
        assert await response.content.readany() == b"first"
        upstream.go_on.set()
        assert await response.content.read() == b"second"


async def test_an_upload_arrives_while_it_is_sent(front, upstream):
    async def parts():
        yield b"x" * 10_000
        # Goes on only when the server has seen the first part.
        await upstream.go_on.wait()
        yield b"x" * 10_000

    async with front.post("/upload", data=parts()) as response:
        assert await response.json() == 20_000


async def test_the_gateway_is_told_what_the_browser_asked_for(front, url):
    names = ("X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-For")
    forged = dict.fromkeys(names, "forged")
    async with front.get("/headers", headers=forged) as response:
        seen = await response.json()
    assert seen["host"] == seen["x-forwarded-host"] == f"127.0.0.1:{url.port}"
    assert seen["x-forwarded-proto"] == url.scheme
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert "upgrade" not in seen


async def test_the_page_of_this_origin_may_connect_and_no_other(front, url):
    """Also with TLS, where the gateway is asked in plain HTTP: nginx is one of `trusted_proxies`."""
    other = {"http": "https", "https": "http"}[url.scheme]
    origins = {
        str(url.origin()): 200,
        f"{other}://{url.host}:{url.port}": 403,
        f"{url.scheme}://{url.host}": 403,
        "https://example.com": 403,
    }
    for origin, status in origins.items():
        headers = {"Origin": origin}
        async with front.get(f"/{ENDPOINT}", params=POLLING, headers=headers) as response:
            assert response.status == status, origin


async def test_connections_to_the_gateway_are_kept(front):
    ports = set()
    for _ in range(5):
        async with front.get("/headers") as response:
            ports.add((await response.json())["peer"])
    assert len(ports) == 1


GATEWAY = """
trusted_proxies: [127.0.0.1]
routes:
  /echo:
    on_message: echo.on_message
"""

ECHO = """
def on_message(handler, message):
    handler.write_message(message)
"""

CONVERSE = """
(url) => new Promise((resolve, reject) => {
  const socket = new GatewaySocket(url);
  socket.onopen = () => socket.send('hello');
  socket.onmessage = ({ data }) => resolve(data);
  socket.onclose = ({ code }) => reject(new Error(`closed ${code}`));
})
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_browser_behind_nginx_ends_on_a_websocket(
    scheme, gateway_process, nginx, chromium, certificate, tmp_path
):
    (tmp_path / "echo.py").write_text(ECHO)
    gateway = gateway_process(config=GATEWAY)
    port, tls_port = free_port(), free_port()
    nginx(configuration(gateway.port, port, (tls_port, *certificate)), port)
    base = {"http": f"http://127.0.0.1:{port}", "https": f"https://127.0.0.1:{tls_port}"}[scheme]
    context = await chromium(arguments=["--ignore-certificate-errors"])
    page = await context.new_page()
    await page.goto(f"{base}/")
    socket_url = base.replace("http", "ws", 1) + "/echo"
    assert await page.evaluate(CONVERSE, socket_url) == "hello"
    await page.wait_for_function("GatewaySocket.connection.transport === 'websocket'")
