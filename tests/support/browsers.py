"""A real Chromium, driven by Playwright, with or without a proxy in its way.

Decides the flags that keep Chromium quiet: nothing but the page under test uses the network. Knows
nothing about pages. One browser per test: it costs a third of a second, and gives each test an event
loop, a cache and a memory of broken connections of its own.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from playwright.async_api import BrowserContext, Playwright, async_playwright

from tests.support.parts import part

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

    async def __call__(self, *, proxy: str | None = None, arguments: Sequence[str] = ()) -> BrowserContext:
        """A new browser with one fresh context: `page = await (await chromium()).new_page()`.

        `proxy` is `http://host:port`; loopback addresses go through it too, which Chromium does not
        do by itself. `arguments` are further flags of its command line.
        """
        flags = [*QUIET, *arguments]
        if proxy is not None:
            flags += [f"--proxy-server={proxy}", "--proxy-bypass-list=<-loopback>"]
        browser = await self._playwright.chromium.launch(executable_path=part("chromium"), args=flags)
        self._stack.push_async_callback(browser.close)
        return await browser.new_context()


@asynccontextmanager
async def browsers() -> AsyncIterator[Browsers]:
    """Closes all browsers that were opened inside it."""
    part("chromium")
    async with async_playwright() as playwright, AsyncExitStack() as stack:
        yield Browsers(playwright, stack)
