"""A browser that goes, in all the ways in which browsers go: how soon the gateway knows, and what it does.

Chromium and `python -m gateway`, with WebSockets and without. What is measured is from the act to the line
that a handler, or a cleanup hook, prints.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from tests.support.parts import missing
from tests.support.servers import Gateway

LEAVE = 2.0  # s, the default
SOON = 3.0  # s from a closed tab to its hook
GRACE = 3.0  # s

CONFIG = f"""
store: sqlite:sessions.sqlite3
ping: 2s+2s
timeouts:
  grace: {GRACE}
  lease: 2s
cleanup:
  function: lab.cleanup
routes:
  /lab:
    open: lab.open
    on_message: lab.on_message
    on_close: lab.on_close
"""

LAB = """
import json
import time


def note(what, session, **more):
    print("NOTE", json.dumps({"at": time.monotonic(), "what": what, "session": session, **more}), flush=True)


def open(handler):
    handler.data["opened"] = handler.data.get("opened", 0) + 1
    note("open", handler.channel.id, opened=handler.data["opened"])


def on_message(handler, message):
    handler.write_message(message)


def on_close(handler, closing):
    note("close", handler.channel.id, reason=closing.reason.name, code=closing.code)


def cleanup(end):
    note("cleanup", end.session, reason=end.reason, data=end.data, routes=list(end.routes))
"""

# Opens the socket of the laboratory, and says which session it belongs to.
BEGIN = """
async () => {
  window.lab = new GatewaySocket(location.href.replace(/^http/, 'ws').replace(/[^/]*$/, 'lab'));
  window.isClosed = false;
  window.ended = new Promise((resolve) => {
    lab.onclose = ({ code, wasClean }) => { isClosed = true; resolve([code, wasClean]); };
  });
  await new Promise((resolve, reject) => { lab.onopen = resolve; lab.onerror = reject; });
  return GatewaySocket.connection.session;
}
"""

ECHO = """
async (text) => {
  const answer = new Promise((resolve) => { lab.onmessage = ({ data }) => resolve(data); });
  lab.send(text);
  return await answer;
}
"""

UPGRADED = """
async () => {
  while (GatewaySocket.connection.transport !== 'websocket') await new Promise((soon) => setTimeout(soon));
}
"""

SHOWN = "window.persisted = null; addEventListener('pageshow', (event) => { persisted = event.persisted; });"


class Lab:
    """A gateway with the laboratory's functions, and what these have printed."""

    def __init__(self, start: Callable[..., Gateway], directory: Path) -> None:
        (directory / "lab.py").write_text(LAB, encoding="utf-8")
        self._start = start
        self.gateway = start(config=CONFIG)

    def notes(self, what: str, session: str) -> list[dict[str, Any]]:
        """What has been noted of this session, so far."""
        found = [json.loads(line) for line in re.findall(r"^NOTE (.*)$", self.gateway.output, re.MULTILINE)]
        return [note for note in found if (note["what"], note["session"]) == (what, session)]

    async def note(self, what: str, session: str, patience: float = 20.0) -> dict[str, Any]:
        """The first such note; waits for it."""
        pattern = rf'NOTE .*"what": "{what}", "session": "{re.escape(session)}"'
        await asyncio.to_thread(self.gateway.wait_for_output, pattern, patience)
        return self.notes(what, session)[0]

    def restart(self) -> None:
        """Another process in the place of the one that has ended."""
        self.gateway = self._start(config=CONFIG, port=self.gateway.port)


@pytest.fixture
def lab(gateway_process: Callable[..., Gateway], tmp_path: Path) -> Lab:
    return Lab(gateway_process, tmp_path)


# As the demo page's own switch: it is as if the network let no WebSocket through. A page without a storage
# has no socket either.
BLOCK = """
try {
  sessionStorage.setItem('gateway:block-websocket', '1');
  for (const storage of [localStorage, sessionStorage]) storage.setItem('gateway-demo:blocked', 'yes');
} catch {}
"""


async def tab(context: BrowserContext, kind: str) -> Page:
    """A new tab, in which the client stays on `kind`."""
    if kind == "polling":
        await context.add_init_script(BLOCK)
    return await context.new_page()


async def begin(page: Page, kind: str) -> str:
    """Open the socket; the session's id, once the page is on the transport that it will stay on."""
    session: str = await page.evaluate(BEGIN)
    await settle(page, kind)
    return session


async def settle(page: Page, kind: str) -> None:
    if kind == "websocket":
        await page.evaluate(UPGRADED)  # the page's own policy forbids what `wait_for_function` does
    else:
        assert await page.evaluate("GatewaySocket.connection.transport") == "polling"


def report(what: str, seconds: float, record_property: Callable[[str, object], None]) -> None:
    record_property(what, f"{seconds:.2f} s")
    print(f"\n{what}: {seconds:.2f} s")


pytestmark = pytest.mark.parametrize("kind", ["polling", "websocket"])


async def test_a_closed_tab_is_cleaned_up_in_three_seconds(lab, chromium, kind, record_property) -> None:
    opener = await tab(await chromium(), kind)
    await opener.goto(f"{lab.gateway.url}/")
    async with opener.expect_popup() as popped:
        await opener.evaluate("window.tab = window.open('/', '_blank', 'popup')")
    page = await popped.value
    await page.wait_for_function("'GatewaySocket' in window")
    session = await begin(page, kind)

    began = time.monotonic()
    await opener.evaluate("tab.close()")
    closed = await lab.note("close", session)
    cleaned = await lab.note("cleanup", session)

    report(f"tab closed on {kind}: on_close after", closed["at"] - began, record_property)
    report(f"tab closed on {kind}: cleanup hook after", cleaned["at"] - began, record_property)
    assert cleaned["at"] - began <= SOON
    assert (closed["reason"], cleaned["reason"]) == ("CLIENT_CLOSE", "client_close")
    assert cleaned["routes"] == ["/_gateway/demo", "/lab"]
    assert cleaned["data"] == {"opened": 1}


async def test_a_tab_that_navigates_away_is_cleaned_up_in_three_seconds(
    lab, chromium, kind, record_property
) -> None:
    page = await tab(await chromium(), kind)
    await page.goto(f"{lab.gateway.url}/")
    session = await begin(page, kind)

    began = time.monotonic()
    await page.goto("about:blank")
    cleaned = await lab.note("cleanup", session)

    report(f"navigated away on {kind}: cleanup hook after", cleaned["at"] - began, record_property)
    assert cleaned["at"] - began <= SOON
    assert cleaned["reason"] == "client_close"


async def test_a_reload_goes_on_with_the_session_and_its_data(lab, chromium, kind) -> None:
    page = await tab(await chromium(), kind)
    await page.goto(f"{lab.gateway.url}/")
    session = await begin(page, kind)

    for count in (2, 3):
        await page.reload()
        assert await begin(page, kind) == session
        assert await page.evaluate(ECHO, f"hello {count}") == f"hello {count}"
        assert lab.notes("open", session)[-1]["opened"] == count
    assert len(lab.notes("close", session)) == 2
    assert {note["code"] for note in lab.notes("close", session)} == {1001}
    await asyncio.sleep(LEAVE + 0.5)  # long enough for a clean-up that should not come
    assert lab.notes("cleanup", session) == []
    assert await page.evaluate(ECHO, "still here") == "still here"

    await page.goto("about:blank")
    assert (await lab.note("cleanup", session))["data"] == {"opened": 3}
    assert len(lab.notes("cleanup", session)) == 1


@pytest.mark.parametrize("pause", [0.2, LEAVE + 1.0], ids=["at once", "too late"])
async def test_a_page_from_the_back_forward_cache_copes(lab, chromium, kind, pause) -> None:
    context = await chromium(without=["--disable-back-forward-cache"])
    page = await tab(context, kind)
    url = lab.gateway.url
    await page.goto(f"{url}/")
    session = await begin(page, kind)
    await page.evaluate(SHOWN)

    await page.goto(f"{url}/_gateway/nothing-is-here")
    await asyncio.sleep(pause)
    await page.go_back(wait_until="commit")

    if not await page.evaluate("window.persisted ?? false"):
        missing("this Chromium did not keep the page")
    if pause < LEAVE:
        assert await page.evaluate(ECHO, "back") == "back"
        assert await page.evaluate("GatewaySocket.connection.session") == session
        assert not await page.evaluate("isClosed")
        assert lab.notes("close", session) == []
    else:
        await lab.note("cleanup", session)
        assert await page.evaluate("ended") == [1006, False]
        assert await begin(page, kind) != session
        assert await page.evaluate(ECHO, "new") == "new"
    assert len(lab.notes("cleanup", session)) == (pause > LEAVE)


async def test_a_killed_browser_is_cleaned_up_after_its_grace(
    lab, chromium, kind, tmp_path, record_property
) -> None:
    context, process = await chromium.to_kill(tmp_path / "profile")
    page = await tab(context, kind)
    await page.goto(f"{lab.gateway.url}/")
    session = await begin(page, kind)

    began = time.monotonic()
    process.send_signal(signal.SIGKILL)
    cleaned = await lab.note("cleanup", session)

    report(f"browser killed on {kind}: cleanup hook after", cleaned["at"] - began, record_property)
    assert GRACE - 0.1 <= cleaned["at"] - began <= GRACE + 1.0
    assert cleaned["reason"] == "transport_close"
    assert len(lab.notes("close", session)) == 1


async def test_a_gateway_that_restarts_has_its_page_back_with_its_session(lab, chromium, kind) -> None:
    page = await tab(await chromium(), kind)
    await page.goto(f"{lab.gateway.url}/")
    session = await begin(page, kind)

    stopped = lab.gateway
    await asyncio.to_thread(stopped.send_signal, signal.SIGTERM)
    assert await asyncio.to_thread(stopped.wait, 15) == 0
    assert [note for note in _notes(stopped) if note["what"] == "cleanup"] == []
    await asyncio.to_thread(lab.restart)

    assert await page.evaluate("ended") == [1012, True]
    assert await begin(page, kind) == session
    assert await page.evaluate(ECHO, "there again") == "there again"
    assert lab.notes("open", session)[-1]["opened"] == 2
    await page.goto("about:blank")
    assert (await lab.note("cleanup", session))["data"] == {"opened": 2}


async def test_a_gateway_that_is_killed_has_its_page_back_and_cleans_up_once(lab, chromium, kind) -> None:
    page = await tab(await chromium(), kind)
    await page.goto(f"{lab.gateway.url}/")
    session = await begin(page, kind)

    await asyncio.to_thread(lab.gateway.kill)
    await asyncio.to_thread(lab.restart)

    assert await page.evaluate("ended") == [1006, False]
    assert await begin(page, kind) != session
    assert await page.evaluate(ECHO, "there again") == "there again"
    cleaned = await lab.note("cleanup", session)
    assert cleaned["reason"] == "node_lost"
    assert len(lab.notes("cleanup", session)) == 1


def _notes(gateway: Gateway) -> list[dict[str, Any]]:
    return [json.loads(line) for line in re.findall(r"^NOTE (.*)$", gateway.output, re.MULTILINE)]
