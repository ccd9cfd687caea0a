"""A browser, a hostile network, and Python: what the project is for.

Chromium loads a page of the gateway through a real Squid and through each middlebox, and exchanges
200 messages each way with a Python function. None may be lost, doubled or reordered, whatever the
network does to WebSockets.
"""

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from tests.network.boxes import BOXES, LoseUplink

MESSAGES = 200

CONFIG = """
routes:
  /echo:
    on_message: echo.on_message
"""

ECHO = """
def on_message(handler, message):
    handler.write_message(message)
"""

# Opens a socket as soon as the page is there, and sends a message every `pause` ms. Every answer
# names the message that it answers, so that the order of both directions is seen at once.
EXCHANGE = """
async ({ count, pause }) => {
  const loaded = performance.getEntriesByType('navigation')[0].loadEventEnd;
  const socket = new GatewaySocket(location.href.replace(/^http/, 'ws') + 'echo');
  const answers = [];
  const losses = [];
  addEventListener('gateway:lost', ({ detail }) => losses.push(detail.reason));
  let first = null;
  let transport = null;
  const done = new Promise((resolve, reject) => {
    socket.onmessage = ({ data }) => {
      first ??= performance.now() - loaded;
      transport ??= GatewaySocket.connection.transport;
      answers.push(data);
      if (answers.length === count) resolve();
    };
    socket.onclose = ({ code, reason }) => reject(new Error(`closed ${code} ${reason}`));
  });
  await new Promise((resolve) => { socket.onopen = resolve; });
  for (let n = 0; n < count; n += 1) {
    socket.send(`message ${n} – ünïcode`);
    if (pause) await new Promise((resolve) => setTimeout(resolve, pause));
  }
  await done;
  return { first, transport, answers, losses };
}
"""

EXPECTED = [f"message {n} – ünïcode" for n in range(MESSAGES)]

# Boxes that let a WebSocket live for a while, so that the page may have moved to one, or back.
EITHER = {"plain", "kill_after_3_s", "split_posts"}

# Long enough for the connection to be killed on the way.
PAUSES = {"kill_after_3_s": 20}


@pytest.fixture
def gateway(gateway_process, tmp_path: Path):
    """A gateway with an echo route, whose functions are files beside its configuration."""
    (tmp_path / "echo.py").write_text(ECHO, encoding="utf-8")
    return gateway_process(config=CONFIG)


async def _open(context: BrowserContext, url: str) -> Page:
    page = await context.new_page()
    await page.goto(f"{url}/")
    return page


async def _exchange(page: Page, pause: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = await page.evaluate(EXCHANGE, {"count": MESSAGES, "pause": pause})
    return result


async def _transport(page: Page) -> str:
    name: str = await page.evaluate("GatewaySocket.connection.transport")
    return name


async def test_nothing_in_the_way_ends_on_a_websocket(gateway, chromium) -> None:
    page = await _open(await chromium(), gateway.url)

    result = await _exchange(page)

    assert result["answers"] == EXPECTED
    await page.wait_for_function("GatewaySocket.connection.transport === 'websocket'")


async def test_through_squid_the_page_is_live_over_polling(gateway, squid, chromium) -> None:
    page = await _open(await chromium(proxy=squid.url), gateway.url)

    result = await _exchange(page)

    assert result["answers"] == EXPECTED
    assert result["transport"] == "polling"
    assert result["first"] < 1000, "ms from the page's load event to the first message"
    # The probe has been made and has failed by the time that the reason is known.
    await page.wait_for_function("/proxy|WebSocket/.test(GatewaySocket.connection.why)")
    assert await _transport(page) == "polling"


@pytest.mark.parametrize("name", sorted(BOXES))
async def test_through_each_middlebox_no_message_is_lost(name, gateway, chromium) -> None:
    async with BOXES[name]() as box:
        host, port = await box.start(gateway.host, gateway.port)
        page = await _open(await chromium(), f"http://{host}:{port}")

        result = await _exchange(page, pause=PAUSES.get(name, 10))

        assert result["answers"] == EXPECTED
        assert result["first"] < 1000, "ms from the page's load event to the first message"
        assert result["losses"] == [], "nothing here is away for a second"
        if name not in EITHER:
            assert await _transport(page) == "polling"


async def test_a_websocket_that_loses_what_the_browser_sends_is_left_alone(
    gateway_process, chromium, tmp_path
) -> None:
    (tmp_path / "echo.py").write_text(ECHO, encoding="utf-8")
    # The gateway is the only one that can notice: it says 4001, in good order.
    gateway = gateway_process(config="ping: 1s+1s\n" + CONFIG)
    async with LoseUplink(0.5) as box:
        host, port = await box.start(gateway.host, gateway.port)
        page = await _open(await chromium(), f"http://{host}:{port}")

        result = await _exchange(page, pause=40)

        assert result["answers"] == EXPECTED
        assert "died early twice" in await page.evaluate("GatewaySocket.connection.why")
        assert await _transport(page) == "polling"
