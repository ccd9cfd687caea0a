"""Draws the tables of moves of `gateway/protocol/` into the documents that explain them.

    python scripts/draw_moves.py            writes the part between the two marks of each
    python scripts/draw_moves.py --check    only says whether they are current (exit code 1: one is not)

Decides how a table looks on paper. Does not know what a move means.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gateway.protocol import lifecycle, moves  # noqa: E402

BEGIN = "<!-- The rest of this part is drawn by scripts/draw_moves.py: change the table, not the text. -->"
END = "<!-- Here the drawing ends. -->"


@dataclass(frozen=True)
class Drawing:
    """A page, and the table that stands in it: `(state, input) -> (action, next state)`."""

    page: Path
    table: Mapping[Any, tuple[Enum, Enum]]
    states: type[Enum]
    inputs: type[Enum]

    def drawn(self, page: str) -> str:
        """The page with a fresh drawing. `ValueError` if a mark is missing."""
        before, begin, rest = page.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{self.page.name} has lost one of its marks: {BEGIN!r}, {END!r}")
        return "\n".join([before + BEGIN, "", *self._diagram(), "", *self._rows(), "", END + after])

    def _diagram(self) -> list[str]:
        """The moves that change the state, as a Mermaid diagram."""
        arrows: dict[tuple[Enum, Enum], list[str]] = defaultdict(list)
        for (before, happened), (_, after) in self._ordered():
            if before is not after:
                arrows[before, after].append(words(happened))
        lines = [f"    {a.name} --> {b.name}: {', '.join(names)}" for (a, b), names in arrows.items()]
        start, end = next(iter(self.states)), list(self.states)[-1]
        return [
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {start.name}",
            *lines,
            f"    {end.name} --> [*]",
            "```",
        ]

    def _rows(self) -> list[str]:
        """Every listed move but those that do nothing and lead nowhere."""
        rows = []
        for (before, happened), (action, after) in self._ordered():
            following = "·" if after is before else after.name
            if action.name != "NOTHING" or before is not after:
                rows.append(f"| {before.name} | {words(happened)} | {words(action)} | {following} |")
        return ["| state | input | action | next state |", "|---|---|---|---|", *rows]

    def _ordered(self) -> list[tuple[tuple[Enum, Enum], tuple[Enum, Enum]]]:
        """The table in the order of its enums."""
        pairs = [(state, happened) for state in self.states for happened in self.inputs]
        return [(pair, self.table[pair]) for pair in pairs if pair in self.table]


def words(member: Enum) -> str:
    """`CANDIDATE_LOST` as people write it."""
    return member.name.lower().replace("_", " ")


DRAWINGS = (
    Drawing(ROOT / "docs" / "engineio.md", moves.MOVES, moves.State, moves.Input),
    Drawing(ROOT / "docs" / "sessions.md", lifecycle.MOVES, lifecycle.State, lifecycle.Event),
)


def main(arguments: list[str]) -> int:
    """Draws, or checks."""
    stale = 0
    for drawing in DRAWINGS:
        page = drawing.page.read_text("utf-8")
        fresh = drawing.drawn(page)
        if "--check" not in arguments:
            drawing.page.write_text(fresh, "utf-8")
        elif fresh != page:
            print(f"{drawing.page.relative_to(ROOT)} is not current: run python scripts/draw_moves.py")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
