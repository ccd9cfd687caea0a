"""`python -m gateway sessions`: who is there, whose cleanup has failed, and what a person may do about it.

0: it is done. 2: it cannot be done, and one line on standard error says why. Looks at the store alone, so
that it works while a gateway runs, and while none does. Never creates a store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Final, TextIO

from gateway.config import Listen
from gateway.configfile import Config
from gateway.session_store import MemoryStore, Phase, Row, SessionStore, StoreError
from gateway.stores import default_path, open_store
from gateway.stores.sqlite import SqliteStore

from .terminal import BOLD, DIM, RED, Painter, harmless, shortened, width

_SHOWN: Final = 10  # characters of an id; more where that is not enough to tell them apart
_MANY: Final = 1000  # rows of a table
_ALL: Final = 10_000_000
_LEAST: Final = 12  # columns of a user or of routes, where not all fits
_ON_ITS_WAY: Final = "its cleanup hooks run now, or wait to be tried again"


class Impossible(Exception):
    """What was asked for cannot be done. The text is one line, which says what to do."""


def sessions(flags: argparse.Namespace, config: Config) -> int:
    """Carry out the command. The exit code."""
    try:
        print(asyncio.run(_run(flags, config)), flush=True)
    except BrokenPipeError:  # `| head` has seen enough; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Impossible, StoreError, ValueError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    return 0


async def _run(flags: argparse.Namespace, config: Config) -> str:
    store = _store(config)
    await store.open()
    try:
        if flags.retry is not None:
            return await _retry(store, flags.retry)
        if flags.close is not None:
            return await _close(store, flags.close)
        if flags.json:
            return _as_json(await store.rows(failed=flags.failed, limit=_ALL))
        return await _list(store, failed=flags.failed)
    finally:
        await store.close()


def _store(config: Config) -> SessionStore:
    """The store that a gateway with this configuration uses. Raises `Impossible` if there is none."""
    listen = config.listen or Listen()
    if config.store is not None:
        store = open_store(config.store)
        hint = "no gateway has used it yet"
    elif not listen.path and listen.port == 0:
        raise Impossible("a gateway at port 0 has its sessions in memory: give the --store of another")
    else:
        store = SqliteStore(default_path(listen))
        hint = f"has a gateway run at {listen}? Give --listen, --config or --store as you gave it there"
    if isinstance(store, MemoryStore):
        raise Impossible(
            "sessions in memory are seen by their own process alone: start the gateway with --store sqlite:…"
        )
    if isinstance(store, SqliteStore) and not store.path.exists():
        raise Impossible(f"there is no {store.path}: {hint}")
    return store


def _name(store: SessionStore) -> str:
    return str(store.path) if isinstance(store, SqliteStore) else store.url


# -- acts ----------------------------------------------------------------------------------------------


async def _retry(store: SessionStore, wanted: str) -> str:
    if wanted == "all":
        failed = await store.rows(failed=True, limit=_ALL)
        count = sum([await store.retry(row.session.id) for row in failed])
        if not count:
            return f"no failed sessions in {_name(store)}"
        return f"{_sessions(count)} will be cleaned up again, as soon as a gateway runs on {_name(store)}"
    row = await _find(store, wanted)
    if row.phase is not Phase.FAILED or not await store.retry(row.session.id):
        raise Impossible(f"{wanted}: this session has not failed: {_stands(row)}")
    return f"{row.session.id} will be cleaned up again, as soon as a gateway runs on {_name(store)}"


async def _close(store: SessionStore, wanted: str) -> str:
    row = await _find(store, wanted)
    if not await store.ask_to_close(row.session.id):
        raise Impossible(f"{wanted}: this session is over: {_stands(row)}")
    return f"{row.session.id} will be closed"


async def _find(store: SessionStore, wanted: str) -> Row:
    rows = [row for row in await store.rows(limit=_ALL) if row.session.id.startswith(wanted)]
    exact = [row for row in rows if row.session.id == wanted]
    if not rows or not wanted:
        raise Impossible(f"there is no session {wanted!r}: python -m gateway sessions lists all")
    if len(rows) > 1 and not exact:
        raise Impossible(f"{len(rows)} sessions begin with {wanted!r}: give more of the id")
    return (exact or rows)[0]


def _stands(row: Row) -> str:
    if row.phase is Phase.CLOSING:
        return _ON_ITS_WAY
    return "its cleanup has failed; --retry tries again" if row.phase is Phase.FAILED else "it is alive"


# -- the list ------------------------------------------------------------------------------------------


async def _list(store: SessionStore, *, failed: bool) -> str:
    rows = await store.rows(failed=failed, limit=_MANY)
    counts = await store.counts()
    if not rows:
        return f"no {'failed ' if failed else ''}sessions in {_name(store)}"
    columns = shutil.get_terminal_size((0, 0)).columns if sys.stdout.isatty() else 0
    lines = [table(rows, time.time(), columns, sys.stdout)]
    total = counts[Phase.FAILED] if failed else sum(counts.values())
    if total > len(rows):
        lines.append(f"and {total - len(rows)} more: --json lists all")
    if counts[Phase.FAILED]:
        lines.append(f"\n{_sessions(counts[Phase.FAILED])} failed: --retry ID, or --retry all, tries again")
    return "\n".join(lines)


def table(rows: Sequence[Row], now: float, columns: int, out: TextIO) -> str:
    """Aligned, without the columns that nobody needs. `now` in s since the epoch; `columns` 0: no end.

    An error stands at the end of its line, or on a line of its own where not all of them fit.
    """
    paint = Painter(out)
    shown = _enough([row.session.id for row in rows])
    heads = ("id", "state", "user", "since", "seen", "routes", "reason", "attempt", "next try")
    cells = [_cells(row, shown, now) for row in rows]
    used = [index for index in range(len(heads)) if index == 0 or any(line[index] for line in cells)]
    widths = [min(max(width(line[index]) for line in [heads, *cells]), 40) for index in used]
    for index in (heads.index("routes"), heads.index("user")):
        if columns and index in used:
            place = used.index(index)
            too_wide = max(sum(widths) + 2 * (len(widths) - 1) - columns, 0)
            widths[place] = max(widths[place] - too_wide, min(widths[place], _LEAST))
    errors = [harmless(row.error or "") for row in rows]
    rest = columns - sum(widths) - 2 * len(widths)
    below = bool(columns) and max(map(width, errors)) > rest
    errors = ["error" if any(errors) and not below else "", *errors]
    lines = [_line([line[index] for index in used], widths) for line in [heads, *cells]]
    lines = [
        f"{line.rstrip()}\n  {error}" if below and error else f"{line}  {error}".rstrip()
        for line, error in zip(lines, errors, strict=True)
    ]
    styles = [
        BOLD,
        *(RED if row.phase is Phase.FAILED else DIM * (row.phase is Phase.PARKED) for row in rows),
    ]
    return "\n".join(paint(line, style) if style else line for line, style in zip(lines, styles, strict=True))


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    parts = []
    for cell, columns in zip(cells, widths, strict=True):
        text = shortened(cell, columns)
        parts.append(text + " " * (columns - width(text)))
    return "  ".join(parts)


def _cells(row: Row, shown: int, now: float) -> list[str]:
    session = row.session
    return [
        harmless(session.id[:shown]),
        row.phase.value,
        harmless(session.user or ""),
        _ago(session.opened, now),
        # Of one that is open nobody has written down when it was heard of last.
        "" if row.phase is Phase.OPEN else _ago(session.seen, now),
        harmless(" ".join(session.routes)),
        (row.reason or "").lower(),
        str(row.attempt or ""),
        "" if row.phase is not Phase.CLOSING or row.retry_in is None else _in(row.retry_in),
    ]


def _enough(ids: Sequence[str]) -> int:
    """How many characters of each id tell them apart."""
    shown = _SHOWN
    while len({each[:shown] for each in ids}) < len(set(ids)):
        shown += 1
    return shown


def _ago(then: float, now: float) -> str:
    return f"{_duration(max(now - then, 0.0))} ago" if then else ""


def _in(seconds: float) -> str:
    return f"in {_duration(seconds)}" if seconds > 0 else "now"


def _duration(seconds: float) -> str:
    for unit, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _sessions(count: int) -> str:
    return f"{count} session{'s'[: count != 1]}"


def _as_json(rows: Iterable[Row]) -> str:
    return json.dumps(
        [
            {
                **asdict(row.session),
                "state": row.phase.value,
                "node": row.node,
                "reason": row.reason.lower() if row.reason else None,
                "fence": row.fence,
                "attempt": row.attempt,
                "retry_in": row.retry_in,
                "error": row.error,
            }
            for row in rows
        ],
        indent=2,
    )
