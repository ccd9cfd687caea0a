"""`make lab`: the gateway behind every middlebox and behind Squid, to try by hand until Ctrl+C.

Decides what is printed. Arguments are those of the gateway.
"""

import asyncio
import inspect
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.network.boxes import BOXES, WEATHER
from tests.support.processes import ProcessFailed
from tests.support.servers import Gateway, Squid

SHELVES = {
    "A page notices none of these:": BOXES,
    "Weather, which takes its time (see docs/weather.md):": WEATHER,
}


def caption(text: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(text) or "").partition("\n")[0]


async def lab(arguments: list[str]) -> None:
    """Runs everything until SIGINT or SIGTERM."""
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway = stack.enter_context(Gateway(*arguments, directory=directory))
        print(f"{gateway.url:<26}the gateway itself")
        for title, boxes in SHELVES.items():
            print(title)
            for name, make in boxes.items():
                box = await stack.enter_async_context(make())
                host, port = await box.start(gateway.host, gateway.port)
                print(f"http://{f'{host}:{port}':<19}{name:<18}{caption(box)}")
        show_squid(stack, gateway)
        print("Ctrl+C ends it.", flush=True)
        await over.wait()


def show_squid(stack: AsyncExitStack, gateway: Gateway) -> None:
    """Starts Squid where it is installed, and says how a browser goes through it."""
    try:
        squid = stack.enter_context(Squid())
    except pytest.skip.Exception as missing:
        print(missing)
        return
    print(f"{squid.url:<28}Squid, a proxy that lets no WebSocket through:")
    print(f"  chromium --proxy-server={squid.url} '--proxy-bypass-list=<-loopback>' {gateway.url}/")


def main() -> int:
    """Exit code: 0, or 1 when the gateway does not start."""
    try:
        asyncio.run(lab(sys.argv[1:]))
    except ProcessFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
