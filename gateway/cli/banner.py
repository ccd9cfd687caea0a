"""What a terminal shows at the start and at the end.

The URL stands alone on its line, so that a program that started us can find it.
"""

from __future__ import annotations

import os
from typing import TextIO

from gateway.config import Listen
from gateway.configfile import Config

_BOLD, _DIM, _GREEN = "1", "2", "1;32"
_SHOWN = 8  # routes; the rest is counted


def banner(version: str, listen: Listen, config: Config, out: TextIO) -> str:
    """Where to look, what is served, how to stop."""
    paint = _painter(out)
    where = f"{listen.url}/" if listen.url else str(listen)
    rows = [("listens on", str(listen)), *_served(config)]
    ping = config.settings.ping
    rows += [
        ("heartbeat", f"who has vanished is missed within {ping.interval + ping.timeout + 0.2:g} s"),
        ("to stop", "Ctrl+C"),
    ]
    lines = [f"{paint('gateway', _BOLD)} {paint(version, _DIM)}", "", paint(where, _GREEN), ""]
    lines += [f"{paint(f'{label:<11}', _DIM)}{text}" for label, text in rows]
    return "\n" + "\n".join(f"  {line}" if line else "" for line in lines) + "\n"


def good_bye(out: TextIO) -> str:
    """The last line."""
    return f"\n  {_painter(out)('gateway', _BOLD)} has stopped.\n"


def _served(config: Config) -> list[tuple[str, str]]:
    patterns = [route.pattern.text for route in config.routes]
    rows = [("routes" if index == 0 else "", text) for index, text in enumerate(patterns[:_SHOWN])]
    if len(patterns) > _SHOWN:
        rows.append(("", f"and {len(patterns) - _SHOWN} more"))
    return [*rows, ("demo page", "/_gateway/" if "/" in patterns else "/")]


def _painter(out: TextIO) -> _Painter:
    plain = not out.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return _Painter(plain)


class _Painter:
    """Colours where they are seen, and nothing else where they are not."""

    def __init__(self, plain: bool) -> None:
        self._plain = plain

    def __call__(self, text: str, style: str) -> str:
        return text if self._plain else f"\x1b[{style}m{text}\x1b[0m"
