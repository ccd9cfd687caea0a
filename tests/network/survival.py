"""`python -m tests.network.survival`: many sessions of the real client, through bad weather, counted.

Decides which weather there is for `make weather`, and what a row of its table says. A row is the truth about
one run: it judges nothing, the tests do. Who sends what is in client/test/support/weather.js and talk.py.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.network import talk
from tests.network.boxes import BOXES, WEATHER, FarAway, Plain, SmallBodies
from tests.support.parts import ROOT, part
from tests.support.processes import Process
from tests.support.servers import Gateway

PAGES = ROOT / "client" / "test" / "support" / "weather.js"
ALL = BOXES | WEATHER
PATIENCE = 300.0  # s beyond the time that a run is given, for a busy machine


@dataclass(frozen=True)
class Run:
    """One run: `boxes` from the browser to the gateway, and what the pages do."""

    name: str
    boxes: tuple[Callable[[], Plain], ...]
    kind: str = "talk"  # or idle, big, changes
    transport: str = "polling"
    sessions: int = 50
    seconds: float = 120.0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """For weather.js, but for the port."""
        return {
            "kind": self.kind,
            "transport": self.transport,
            "sessions": self.sessions,
            "seconds": self.seconds,
            **self.more,
        }


@dataclass
class Result:
    """What a run has shown. Messages are counted in both directions together."""

    run: Run
    sent: int = 0
    delivered: int = 0
    disordered: int = 0
    doubled: int = 0
    wrong: int = 0
    closed: int = 0  # channels that were closed by somebody else than us
    unfinished: int = 0  # channels whose end did not come
    pages: list[dict[str, Any]] = field(default_factory=list)
    took: dict[str, int | None] = field(default_factory=dict)  # ms, of one message; None: it did not come
    answered: int | None = None  # ms for a word and its answer, after idleness
    changes: int = 0
    requests: int = 0  # while idle
    connections: int = 0  # TCP connections, while idle

    @property
    def lost(self) -> int:
        """Messages that were sent and never came."""
        return self.sent - self.delivered

    @property
    def whole(self) -> bool:
        """Whether all has come, in order, once, and unchanged."""
        return not (
            self.lost or self.disordered or self.doubled or self.wrong or self.closed or self.unfinished
        )

    @property
    def reconnects(self) -> int:
        """Connections of pages beyond their first."""
        return sum(page["connections"] - 1 for page in self.pages)

    @property
    def silence(self) -> float:
        """The longest time in which a page heard nothing, in seconds."""
        return max((page["silence"] for page in self.pages), default=0) / 1000

    @property
    def on_websocket(self) -> float:
        """The part of the time that was spent on a WebSocket."""
        return sum(page["websocket"] for page in self.pages) / max(1, len(self.pages))

    def told(self, what: str) -> int:
        """How often pages were told that a connection was lost (`lost`), or a state (`gaps`)."""
        return sum(int(page[what]) for page in self.pages)


async def survive(run: Run) -> Result:
    """Does a run. Raises `ProcessFailed` when a program does not start, or the pages do not end."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway = stack.enter_context(
            Gateway(directory=directory, config=talk.CONFIG, env={"XDG_STATE_HOME": str(directory / "state")})
        )
        host, port = gateway.host, gateway.port
        boxes = [make() for make in reversed(run.boxes)]
        if run.kind == "idle":
            # The outermost counts what the browsers do.
            boxes.append(Plain())
        for box in boxes:
            await stack.enter_async_context(box)
            host, port = await box.start(host, port)
        command: list[str | Path] = [part("node"), PAGES, json.dumps({"port": port, **run.options})]
        pages = stack.enter_context(Process(command, name="pages"))
        result = Result(run)
        if run.kind == "idle":
            await _watch_idleness(result, pages, boxes[-1])
        patience = run.seconds + PATIENCE
        said = await asyncio.to_thread(pages.wait_for_output, r'^\{"talks".*$', patience)
        await asyncio.to_thread(pages.wait)
        await asyncio.to_thread(gateway.stop)
        _read(result, json.loads(said[0]), gateway.output)
        return result


async def _watch_idleness(result: Result, pages: Process, outer: Plain) -> None:
    patience = result.run.seconds + PATIENCE
    await asyncio.to_thread(pages.wait_for_output, r'^\{"idle":true\}$', PATIENCE)
    requests, connections = outer.requests, outer.connections
    await asyncio.to_thread(pages.wait_for_output, r'^\{"idle":false\}$', patience)
    result.requests = outer.requests - requests
    result.connections = outer.connections - connections


def _read(result: Result, said: dict[str, Any], output: str) -> None:
    """Compares what the pages say with what the gateway's functions have printed."""
    heard = [json.loads(line)["over"] for line in output.splitlines() if line.startswith('{"over"')]
    by_name = {tally["name"]: tally for tally in heard}
    for one in said["talks"]:
        other = by_name.pop(one["name"], {"sent": 0, "heard": 0, "disordered": 0, "doubled": 0, "wrong": 0})
        for tally in (one, other):
            result.sent += tally["sent"]
            result.delivered += tally["heard"]
            result.disordered += tally["disordered"]
            result.doubled += tally["doubled"]
            result.wrong += tally["wrong"]
        result.closed += one["closed"] is not None
        result.unfinished += one["ended"] is None or one["ended"] != other["sent"]
    # A channel that nobody has opened, or whose function was called twice.
    result.wrong += len(by_name) + len(heard) - len({tally["name"] for tally in heard})
    result.pages = said["pages"]
    result.took = said.get("took", {})
    result.answered = said.get("answered")
    result.changes = said.get("changes", 0)


HEAD = """
| weather | what came of it | new connections | told | silence |
|---|---|---|---|---|"""


def show(result: Result) -> str:
    """A row of the table, for a person. Told: how often pages heard that they are without a connection."""
    silence = f"{result.silence:.1f} s" if result.run.kind in ("talk", "changes") else ""
    words = {"talk": _talk, "changes": _changes, "idle": _idle, "big": _big}[result.run.kind](result)
    return f"| {result.run.name} | {words} | {result.reconnects} | {result.told('lost')} | {silence} |"


def _talk(result: Result) -> str:
    percent = 100 * result.delivered / max(1, result.sent)
    # 99.996 is not 100.
    words = [f"{result.delivered} of {result.sent}: {f'{percent:.3f}' if result.lost else '100'} %"]
    words.append("in order, once" if result.whole else _complaints(result))
    if result.run.transport == "websocket":
        words.append(f"{100 * result.on_websocket:.0f} % of the time on a WebSocket")
    return ", ".join(words)


def _complaints(result: Result) -> str:
    channels = result.closed + result.unfinished
    return (
        f"**{result.lost} lost, {result.disordered} out of order, {result.doubled} doubled,"
        f" {result.wrong} wrong, {channels} channels lost, {result.told('gaps')} states lost**"
    )


def _changes(result: Result) -> str:
    return f"{result.changes} changes; {_talk(result)}"


def _idle(result: Result) -> str:
    run = result.run
    words = f"{result.requests / run.seconds / run.sessions:.2f} requests/s, then an answer in "
    words += f"{result.answered} ms"
    return words if result.whole else f"{words}; {_complaints(result)}"


def _big(result: Result) -> str:
    took = result.took.items()
    return ", ".join(f"{what} {'**never**' if ms is None else f'{ms / 1000:.1f} s'}" for what, ms in took)


def weather(seconds: float = 120.0, sessions: int = 50) -> list[Run]:
    """All runs of `make weather`."""
    drops, holds = WEATHER["drops"], WEATHER["holds"]
    few = {"sessions": 10, "seconds": seconds}
    many = {"sessions": sessions, "seconds": seconds}
    runs = [
        Run(f"{name}, {transport}", (box,), transport=transport, **many)  # type: ignore[arg-type]
        for name, box in (("2 s drops", drops), ("2 s held back", holds))
        for transport in ("polling", "websocket")
    ]
    runs.append(Run("1 in 10 fails, 1 in 10 lost", (WEATHER["fails_one_in_ten"],), **many))  # type: ignore[arg-type]
    for name, boxes, transport in (
        ("4 MB, POST 64 kB, answer 256 kB", (SmallBodies,), "polling"),
        ("4 MB, 600 ms away, polling", (FarAway,), "polling"),
        ("4 MB, 600 ms away, websocket", (FarAway,), "websocket"),
        ("4 MB, both, polling", (FarAway, SmallBodies), "polling"),
    ):
        runs.append(Run(name, boxes, "big", transport, sessions=1, more={"bytes": 4_000_000}))
    for name in ("idle_5_s", "idle_8_s", "idle_10_s", "forgetful_nat"):
        runs.append(Run(f"idle page, {name}", (WEATHER[name],), "idle", **few))  # type: ignore[arg-type]
        runs.append(Run(f"idle page, {name}, websocket", (WEATHER[name],), "idle", "websocket", **few))  # type: ignore[arg-type]
    runs.append(
        Run("200 changes at 1,000 messages/s", (), "changes", sessions=1, more={"changes": 200, "rate": 1000})
    )
    return runs


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.network.survival", description=__doc__)
    parser.add_argument(
        "--box", action="append", choices=sorted(ALL), help="from the browser on; without: all"
    )
    parser.add_argument("--kind", choices=("talk", "idle", "big", "changes"), default="talk")
    parser.add_argument("--transport", choices=("polling", "websocket"), default="polling")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--only", help="of all, those whose name holds this")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one row per run. Exit code 1 when something was lost, doubled or out of order."""
    flags = _flags(arguments)
    seconds = flags.minutes * 60
    if flags.box:
        more = {"bytes": 4_000_000, "changes": 200, "rate": 1000}
        runs = [
            Run(
                ", ".join([*flags.box, flags.transport]),
                tuple(ALL[name] for name in flags.box),
                flags.kind,
                flags.transport,
                flags.sessions,
                seconds,
                more,
            )
        ]
    else:
        runs = [run for run in weather(seconds, flags.sessions) if (flags.only or "") in run.name]
    whole = True
    print(HEAD.strip(), flush=True)
    for run in runs:
        result = asyncio.run(survive(run))
        print(show(result), flush=True)
        whole &= result.whole and None not in result.took.values()
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
