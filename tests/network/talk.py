"""The other end of client/test/support/weather.js: a gateway's functions that number what they send, and
check what comes. Prints a line of JSON for each channel that is over.
"""

import asyncio
import json
from dataclasses import asdict, dataclass, field
from typing import Any

PATTERN = "ünïcode \x1e \\e 😀 <b> "
_PATTERN_BYTES = len(PATTERN.encode())

CONFIG = """
routes:
  /talk:
    open: tests.network.talk.begin
    on_message: tests.network.talk.hear
    on_close: tests.network.talk.end
  /big:
    on_message: tests.network.talk.big
"""


def text_of(n: int, size: int) -> str:
    """Message n in `size` bytes, about."""
    return f"{n}|{PATTERN * (size // _PATTERN_BYTES)}"


def size_of(kind: str, n: int) -> int:
    """Bytes of message n, about; as in weather.js."""
    if kind == "mixed":
        return n * 7919 % 40_000
    return 200_000 + n % 1000 if kind == "large" else n % 120


@dataclass
class Tally:
    """What one channel has sent and heard."""

    name: str
    sent: int = 0
    heard: int = 0
    disordered: int = 0
    doubled: int = 0
    wrong: int = 0
    seen: set[int] = field(default_factory=set)
    last: int = -1

    def count(self, kind: str, message: str | bytes) -> None:
        """A message has come."""
        binary = isinstance(message, bytes)
        text = message.decode(errors="replace") if isinstance(message, bytes) else message
        head = text.partition("|")[0]
        if not head.isdecimal():
            self.wrong += 1
            return
        n = int(head)
        if n in self.seen:
            self.doubled += 1
        else:
            self.heard += 1
            self.disordered += n != self.last + 1
        self.wrong += text != text_of(n, size_of(kind, n)) or binary != (n % 2 == 1 and kind != "tick")
        self.seen.add(n)
        self.last = n


async def begin(handler: Any) -> None:
    """A channel opens: `?name=…&kind=…&rate=…`, the rate in messages per second."""
    handler.tally = Tally(handler.get_argument("name"))
    handler.kind = handler.get_argument("kind")
    handler.ending = asyncio.Event()
    handler.over = False
    handler.speaker = asyncio.create_task(speak(handler, float(handler.get_argument("rate"))))


async def speak(handler: Any, rate: float) -> None:
    """Sends all that is due, until the other side ends."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    tally: Tally = handler.tally
    while not (handler.ending.is_set() or handler.over):
        while tally.sent < (loop.time() - began) * rate and not handler.over:
            text = text_of(tally.sent, size_of(handler.kind, tally.sent))
            binary = tally.sent % 2 == 1 and handler.kind != "tick"
            await handler.write_message(text.encode() if binary else text)
            tally.sent += 1
        # The same step as in weather.js; small, for a thousand messages in a second.
        await asyncio.sleep(0.001 if rate > 100 else 0.05)
    await handler.write_message(f"end|{tally.sent}")


async def hear(handler: Any, message: str | bytes) -> None:
    """A message has come."""
    if isinstance(message, str) and message.startswith("end|"):
        handler.ending.set()
    else:
        handler.tally.count(handler.kind, message)


async def end(handler: Any) -> None:
    """A channel is over."""
    handler.over = True
    handler.speaker.cancel()
    tally = asdict(handler.tally)
    del tally["seen"], tally["last"]
    print(json.dumps({"over": tally}), flush=True)


async def big(handler: Any, message: str | bytes) -> None:
    """`send text 4000000` or `send bytes …` is answered so; anything else must be such a message."""
    if isinstance(message, str) and message.startswith("send "):
        _, kind, size = message.split()
        text = text_of(0, int(size))
        await handler.write_message(text if kind == "text" else text.encode())
        return
    kind, data = ("text", message.encode()) if isinstance(message, str) else ("bytes", message)
    repeats, rest = divmod(len(data) - 2, _PATTERN_BYTES)
    good = rest == 0 and data == text_of(0, repeats * _PATTERN_BYTES).encode()
    await handler.write_message(f"{'got' if good else 'broken'} {kind} {len(data)}")
