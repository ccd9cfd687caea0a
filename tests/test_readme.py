"""What the README shows is run as it stands there."""

import asyncio
import re
import sys
from collections.abc import Callable

import engineio
import pytest
from websockets.asyncio.client import connect

from tests.support.parts import ROOT
from tests.support.processes import Process, free_port
from tests.support.servers import Gateway

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def chat(gateway_process: Callable[..., Gateway], tmp_path) -> Gateway:
    """The gateway with the README's configuration and function."""
    (tmp_path / "chat.py").write_text(blocks("python")[0], encoding="utf-8")
    return gateway_process(config=blocks("yaml")[0])


async def test_the_function_answers(chat: Gateway) -> None:
    async with connect(f"ws://{chat.host}:{chat.port}/chat") as socket:
        await socket.send("hello")
        assert await socket.recv() == "You said: hello"


async def test_the_page_gets_an_answer(chat: Gateway, chromium) -> None:
    (script,) = re.findall(r"<script>\n(.*?)</script>", blocks("html")[0], re.DOTALL)
    page = await (await chromium()).new_page()
    await page.goto(chat.url)
    async with page.expect_console_message(lambda message: "You said" in message.text) as said:
        await page.evaluate(f"() => {{ {script} }}")
    assert (await said.value).text == "You said: hello"


async def test_the_engineio_application_answers(tmp_path) -> None:
    port = free_port()
    program = blocks("python")[1].replace(
        "web.run_app(app)", f"web.run_app(app, host='127.0.0.1', port={port})"
    )
    (tmp_path / "application.py").write_text(program, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "application.py")]
    with Process(command, name="application", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as process:
        process.wait_for_port(port)
        client = engineio.AsyncClient()
        received: asyncio.Queue[str] = asyncio.Queue()
        client.on("message", received.put_nowait)
        await client.connect(f"http://127.0.0.1:{port}")
        await client.send("hello")
        assert await received.get() == "hello"
        await client.disconnect()
