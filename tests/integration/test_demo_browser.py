"""The demo page in a real Chromium: what a person sees who opens it, in one tab and in two.

Each tab collects what the browser complains about: errors in the console, uncaught exceptions,
violations of the page's Content-Security-Policy.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from playwright.async_api import BrowserContext, ConsoleMessage, Locator, Page, Route, expect

from gateway import Gateway as Application
from tests.support.browsers import Browsers
from tests.support.processes import free_port
from tests.support.servers import Gateway

LEFT_WITHIN = 3.0
"""Seconds after which a closed tab has vanished for all others."""

HEADLINES = {"websocket": "Live over WebSocket", "polling": "Live over HTTP long-polling"}
BLOCKED = "WebSockets are blocked in this tab by its own switch."

expect.set_options(timeout=15_000)


@dataclass
class Tab:
    page: Page
    complaints: list[str] = field(default_factory=list)

    @property
    def headline(self) -> Locator:
        return self.page.locator("#state")

    @property
    def lines(self) -> Locator:
        return self.page.locator("#log .said")

    @property
    def happened(self) -> Locator:
        return self.page.locator("#history li")

    def person(self, animal: str) -> Locator:
        return self.page.locator("#people li", has_text=animal)

    async def animal(self) -> str:
        """Who this tab is, once it is let in."""
        mine = self.page.locator("#people li", has=self.page.locator(".you"))
        await expect(mine).to_have_count(1)
        return (await mine.locator(".name").inner_text()).removesuffix("this tab").strip()

    async def is_live_over(self, transport: str) -> None:
        await expect(self.headline).to_have_text(HEADLINES[transport])
        mine = self.person("this tab").locator(".badge")
        await expect(mine).to_have_attribute("data-transport", transport)

    async def block_websocket(self, blocked: bool) -> None:
        await self.page.get_by_role("switch").set_checked(blocked, force=True)

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Your message").fill(text)
        await self.page.keyboard.press("Enter")

    async def figure(self, name: str) -> int:
        return int(await self.page.locator(f"#{name}").inner_text())

    async def lost_nothing(self) -> None:
        assert await self.figure("missing") == 0
        assert await self.figure("disorder") == 0


async def open_tab(context: BrowserContext, url: str) -> Tab:
    page = await context.new_page()
    tab = Tab(page)

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            tab.complaints.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    await page.add_init_script(
        "addEventListener('securitypolicyviolation',"
        " (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"
    )
    await page.goto(url)
    return tab


@pytest.fixture
def url(gateway_process: Callable[..., Gateway]) -> str:
    return gateway_process().url + "/"


@pytest.fixture
async def context(chromium: Browsers) -> BrowserContext:
    return await chromium()


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_two_tabs_meet_talk_and_part(context: BrowserContext, url: str, transport: str) -> None:
    here, there = await open_tab(context, url), await open_tab(context, url)
    await there.block_websocket(transport == "polling")
    await there.is_live_over(transport)
    animal = await there.animal()
    assert animal != await here.animal()
    badge = here.person(animal).locator(".badge")
    await expect(badge).to_have_attribute("data-transport", transport)
    await expect(here.page.locator("#people-count")).to_have_text("2 tabs")

    await there.say("hello from there")
    await here.say("hello from here")
    for tab in (here, there):
        await expect(tab.lines).to_have_count(2)
        await expect(tab.lines.first).to_contain_text("hello from there")
        await expect(tab.lines.last).to_contain_text("hello from here")

    await there.page.close(run_before_unload=True)
    await expect(here.person(animal)).to_have_count(0, timeout=LEFT_WITHIN * 1000)
    assert here.complaints == there.complaints == []


async def test_the_switch_moves_a_tab_to_polling_and_back_and_loses_nothing(
    context: BrowserContext, url: str
) -> None:
    here, there = await open_tab(context, url), await open_tab(context, url)
    await here.is_live_over("websocket")
    await there.is_live_over("websocket")
    said = []

    async def talk(*words: str) -> None:
        for word in words:
            said.append(word)
            await there.say(word)

    await talk("before")
    await asyncio.gather(here.block_websocket(True), talk("during"))
    await here.is_live_over("polling")
    await talk("after")
    await expect(here.page.locator("#why")).to_have_text(
        "WebSockets are blocked in this tab by its own switch."
    )
    await asyncio.gather(here.block_websocket(False), talk("once more"))
    await here.is_live_over("websocket")
    await talk("at last")
    await expect(here.lines).to_have_count(len(said))
    for line, word in zip(await here.lines.all_inner_texts(), said, strict=True):
        assert line.endswith(word)
    await here.lost_nothing()
    assert here.complaints == there.complaints == []


async def test_it_draws_the_round_trips_and_tells_what_happened(context: BrowserContext, url: str) -> None:
    tab = await open_tab(context, url)
    await tab.is_live_over("websocket")
    dots = tab.page.locator("#plot circle, #plot path")
    await expect(dots.nth(2)).to_be_attached()
    points = await tab.page.locator("#plot polyline").last.get_attribute("points")
    assert points is not None
    assert len(points.split()) >= 2
    assert float(await tab.page.locator("#median").inner_text()) > 0
    happened = [what.splitlines()[0] for what in await tab.happened.locator(".what").all_inner_texts()]
    assert happened[0].startswith("Moved up to WebSocket")
    assert happened[-1].startswith("Connected over HTTP long-polling")
    await tab.lost_nothing()
    assert tab.complaints == []


async def test_an_echo_comes_back_to_its_sender_only(context: BrowserContext, url: str) -> None:
    here, there = await open_tab(context, url), await open_tab(context, url)
    await there.animal()
    await here.animal()
    await here.page.get_by_label("echo to me").check(force=True)
    await here.say("<b>back</b> \U0001f980")
    await expect(here.lines).to_have_count(2)
    await expect(here.lines.last).to_contain_text("<b>back</b> \U0001f980")
    await here.page.get_by_label("to everyone").check(force=True)
    await here.say("now all")
    await expect(there.lines).to_have_count(1)
    assert here.complaints == there.complaints == []


async def test_a_reload_keeps_its_place(context: BrowserContext, url: str) -> None:
    here, there = await open_tab(context, url), await open_tab(context, url)
    await here.is_live_over("websocket")
    animal = await there.animal()
    await there.say("still here")
    await expect(here.lines).to_have_count(1)
    seen = await here.person(animal).element_handle()
    await there.page.reload()
    assert await there.animal() == animal
    await expect(there.lines).to_have_count(1)
    assert seen is not None
    assert await seen.evaluate("(element) => element.isConnected"), "it left and came back"
    assert here.complaints == there.complaints == []


async def test_a_tab_that_copies_the_storage_of_another_is_somebody_else(
    context: BrowserContext, url: str
) -> None:
    here = await open_tab(context, url)
    await here.page.reload()
    animal = await here.animal()
    async with context.expect_page() as opened:
        await here.page.evaluate("void open(location.href)")
    there = Tab(await opened.value)
    assert await there.animal() != animal
    await expect(here.page.locator("#people li")).to_have_count(2)


@asynccontextmanager
async def listening(port: int) -> AsyncIterator[None]:
    """A gateway in this process, which can be started again on the same port."""
    runner = web.AppRunner(Application().application())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield
    finally:
        await runner.cleanup()


async def test_it_says_when_the_server_is_gone_and_goes_on_when_it_is_back(context: BrowserContext) -> None:
    port = free_port()
    async with listening(port):
        tab = await open_tab(context, f"http://127.0.0.1:{port}/")
        await tab.is_live_over("websocket")
        animal = await tab.animal()
        await tab.say("before")
        await expect(tab.lines).to_have_count(1)
    await expect(tab.headline).to_have_text("Connection lost")
    await expect(tab.page.locator("body")).to_have_attribute("data-mood", "lost")
    async with listening(port):
        await tab.is_live_over("websocket")
        assert await tab.animal() == animal
        await expect(tab.page.locator("#log")).to_have_text("Nobody has said anything yet.")
        await tab.say("after")
        await expect(tab.lines).to_have_count(1)
        whats = "\n".join(await tab.happened.locator(".what").all_inner_texts())
        for what in ("The session was over", "Connection lost", "Connected again"):
            assert what in whats


async def test_a_full_room_is_said_and_tried_again(
    context: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.routes.demo.MAX_PEOPLE", 1)
    port = free_port()
    async with listening(port):
        here = await open_tab(context, f"http://127.0.0.1:{port}/")
        await here.animal()
        there = await open_tab(context, f"http://127.0.0.1:{port}/")
        await expect(there.page.locator("#note")).to_contain_text("The room is closed to this tab")
        await here.page.close(run_before_unload=True)
        await there.animal()
        await expect(there.page.locator("#note")).to_have_text("")
        assert there.complaints == []


async def test_it_says_so_when_the_client_script_is_missing(context: BrowserContext, url: str) -> None:
    errors: list[str] = []
    page = await context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.route("**/client.js", lambda route: route.abort())
    await page.goto(url)
    await expect(page.locator("#state")).to_have_text("The client script is missing")
    assert errors == []


@pytest.mark.parametrize("width", [360, 700, 1400])
async def test_it_fits_and_nothing_moves_when_its_state_changes(
    context: BrowserContext, url: str, width: int
) -> None:
    tab = await open_tab(context, "about:blank")
    page = tab.page
    may_connect = asyncio.Event()

    async def hold(route: Route) -> None:
        await may_connect.wait()
        await route.continue_()

    await page.route("**/_gateway/engine/**", hold)
    await page.set_viewport_size({"width": width, "height": 800})
    await page.emulate_media(reduced_motion="reduce")
    await page.goto(url)
    await expect(tab.headline).to_have_text("Connecting …")
    cards = "[...document.querySelectorAll('.card')].map((card) => card.offsetTop)"
    before = await page.evaluate(cards)
    may_connect.set()
    await tab.is_live_over("websocket")
    assert await page.evaluate(cards) == before
    await tab.block_websocket(True)
    await expect(page.locator("#why")).to_have_text(BLOCKED)
    assert await page.evaluate(cards) == before
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    assert tab.complaints == []
