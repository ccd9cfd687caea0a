"""What can be shown in a terminal: colours where they are seen, and text that does nothing else."""

from __future__ import annotations

import os
import unicodedata
from typing import TextIO

BOLD, DIM, GREEN, RED = "1", "2", "1;32", "31"


class Painter:
    """Colours where they are seen, and nothing else where they are not."""

    def __init__(self, out: TextIO) -> None:
        self._plain = not out.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"

    def __call__(self, text: str, style: str) -> str:
        return text if self._plain or not text else f"\x1b[{style}m{text}\x1b[0m"


def harmless(text: str) -> str:
    """One line, its control characters made visible: users choose their names themselves."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def width(text: str) -> int:
    """Columns that it takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def shortened(text: str, columns: int) -> str:
    """The text, or its beginning and `…`, in so many columns."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…"
