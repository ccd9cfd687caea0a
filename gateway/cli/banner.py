"""What a terminal shows at the start and at the end.

The URL stands alone on its line, so that a program that started us can find it.
"""

from __future__ import annotations

import os
from typing import TextIO

from gateway.config import Listen
from gateway.configfile import Config
from gateway.session_store import SessionStore
from gateway.stores.sqlite import SqliteStore

from .terminal import BOLD, DIM, GREEN, Painter

_SHOWN = 8  # routes; the rest is counted


def banner(version: str, listen: Listen, config: Config, store: SessionStore, out: TextIO) -> str:
    """Where to look, what is served, how to stop."""
    paint = Painter(out)
    where = f"{listen.url}/" if listen.url else str(listen)
    rows = [("listens on", str(listen)), *_served(config), ("sessions", _kept(store)), *_hooks(config)]
    ping = config.settings.ping
    rows += [
        ("heartbeat", f"who has vanished is missed within {ping.interval + ping.timeout + 0.2:g} s"),
        ("to stop", _how_to_stop(config.settings.exit_when_empty)),
    ]
    lines = [f"{paint('gateway', BOLD)} {paint(version, DIM)}", "", paint(where, GREEN), ""]
    lines += [f"{paint(f'{label:<11}', DIM)}{text}" for label, text in rows]
    return "\n" + "\n".join(f"  {line}" if line else "" for line in lines) + "\n"


def good_bye(out: TextIO) -> str:
    """The last line."""
    return f"\n  {Painter(out)('gateway', BOLD)} has stopped.\n"


def _served(config: Config) -> list[tuple[str, str]]:
    patterns = [route.pattern.text for route in config.routes]
    rows = [("routes" if index == 0 else "", text) for index, text in enumerate(patterns[:_SHOWN])]
    if len(patterns) > _SHOWN:
        rows.append(("", f"and {len(patterns) - _SHOWN} more"))
    return [*rows, ("demo page", "/_gateway/" if "/" in patterns else "/")]


def _kept(store: SessionStore) -> str:
    """Where sessions are recorded, briefly."""
    if not store.lasting:
        return "in memory: they end with this process"
    if not isinstance(store, SqliteStore):
        return store.url
    home = os.environ.get("HOME", "")  # as a shell understands `~`
    path = str(store.path)
    return f"~{path.removeprefix(home)}" if home and path.startswith(home + "/") else path


def _hooks(config: Config) -> list[tuple[str, str]]:
    everywhere = [hook.label for hook in config.cleanup]
    of_routes = [f"{hook.label} ({route.pattern.text})" for route in config.routes for hook in route.hooks]
    hooks = [*everywhere, *of_routes]
    rows = [("cleanup" if index == 0 else "", text) for index, text in enumerate(hooks[:_SHOWN])]
    return [*rows, ("", f"and {len(hooks) - _SHOWN} more")] if len(hooks) > _SHOWN else rows


def _how_to_stop(when_empty: float | None) -> str:
    return "Ctrl+C" if when_empty is None else f"Ctrl+C, or {when_empty:g} s after the last browser has gone"
