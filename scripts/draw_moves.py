"""Draws the table of moves of `gateway/protocol/moves.py` into `docs/engineio.md`.

    python scripts/draw_moves.py            writes the part between the two marks
    python scripts/draw_moves.py --check    only says whether it is current (exit code 1: it is not)

Decides how the table looks on paper. Does not know what a move means.
"""

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gateway.protocol.moves import MOVES, Action, Input, State  # noqa: E402

PAGE = ROOT / "docs" / "engineio.md"
BEGIN = "<!-- The rest of this part is drawn by scripts/draw_moves.py: change the table, not the text. -->"
END = "<!-- Here the drawing ends. -->"


def words(member: State | Input | Action) -> str:
    """`CANDIDATE_LOST` as people write it."""
    return member.name.lower().replace("_", " ")


def diagram() -> list[str]:
    """The moves that change the state, as a Mermaid diagram."""
    arrows: dict[tuple[State, State], list[str]] = defaultdict(list)
    for (before, happened), (_, after) in ordered():
        if before is not after:
            arrows[before, after].append(words(happened))
    lines = [f"    {a.name} --> {b.name}: {', '.join(names)}" for (a, b), names in arrows.items()]
    start, end = next(iter(State)), list(State)[-1]
    return [
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {start.name}",
        *lines,
        f"    {end.name} --> [*]",
        "```",
    ]


def table() -> list[str]:
    """Every listed move but those that do nothing."""
    rows = [
        f"| {before.name} | {words(happened)} | {words(action)} | {'·' if after is before else after.name} |"
        for (before, happened), (action, after) in ordered()
        if action is not Action.NOTHING
    ]
    return ["| state | input | action | next state |", "|---|---|---|---|", *rows]


def ordered() -> list[tuple[tuple[State, Input], tuple[Action, State]]]:
    """The table in the order of its enums."""
    return [((s, i), MOVES[s, i]) for s in State for i in Input if (s, i) in MOVES]


def drawn(page: str) -> str:
    """The page with a fresh drawing. `ValueError` if a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has lost one of its marks: {BEGIN!r}, {END!r}")
    return "\n".join([before + BEGIN, "", *diagram(), "", *table(), "", END + after])


def main(arguments: list[str]) -> int:
    """Draws, or checks."""
    page = PAGE.read_text("utf-8")
    fresh = drawn(page)
    if "--check" not in arguments:
        PAGE.write_text(fresh, "utf-8")
    elif fresh != page:
        print(f"{PAGE.relative_to(ROOT)} is not current: run python scripts/draw_moves.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
