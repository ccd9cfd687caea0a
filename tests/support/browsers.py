"""A real Chromium, driven by Playwright, with or without a proxy in its way.

Decides the flags that keep Chromium quiet: nothing but the page under test uses the network. Knows
nothing about pages. One browser per test: it costs a third of a second, and gives each test an event
loop, a cache and a memory of broken connections of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from playwright.async_api import BrowserContext, Playwright, async_playwright

from tests.support.parts import part
from tests.support.processes import Process

QUIET = (
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browsers:
    """Opens browsers; made by `browsers()`, which closes them."""

    def __init__(self, playwright: Playwright, stack: AsyncExitStack) -> None:
        self._playwright = playwright
        self._stack = stack

    async def __call__(
        self, *, proxy: str | None = None, arguments: Sequence[str] = (), without: Sequence[str] = ()
    ) -> BrowserContext:
        """A new browser with one fresh context: `page = await (await chromium()).new_page()`.

        `proxy` is `http://host:port`; loopback addresses go through it too, which Chromium does not
        do by itself. `arguments` are further flags of its command line, `without` some of Playwright's
        that it goes without.
        """
        flags = [*QUIET, *arguments]
        if proxy is not None:
            flags += [f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>"]
        browser = await self._playwright.chromium.launch(
            executable_path=part("chromium"), args=flags, ignore_default_args=list(without)
        )
        self._stack.push_async_callback(browser.close)
        return await browser.new_context()

    async def to_kill(self, profile: Path) -> tuple[BrowserContext, Process]:
        """The same, as a process of our own that a test may kill. `profile` is a new directory."""
        options = ("--headless", "--remote-debugging-port=0", "--no-first-run", f"--user-data-dir={profile}")
        process = Process([part("chromium"), *QUIET, *options, "about:blank"], name="chromium")
        self._stack.callback(process.stop)
        found = await asyncio.to_thread(process.wait_for_output, r"DevTools listening on (ws://\S+)")
        browser = await self._playwright.chromium.connect_over_cdp(found[1])
        return browser.contexts[0], process


@asynccontextmanager
async def browsers() -> AsyncIterator[Browsers]:
    """Closes all browsers that were opened inside it."""
    part("chromium")
    async with async_playwright() as playwright, AsyncExitStack() as stack:
        yield Browsers(playwright, stack)
