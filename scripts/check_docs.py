"""What the project's documents promise is there: files, headings, make commands and flags.

Decides what counts as a promise: a link from one of our Markdown files to a file or a heading, and in
code a `make something` or a flag of `python -m gateway`. Looks at nothing outside the repository, so
that it says the same offline. Also keeps registry addresses out of the npm lock files, which would tie
the project to one registry.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_ELSEWHERE = {".git", ".venv", "node_modules", "build", "dist"}
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_CODE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_MAKE = re.compile(r"(?:^|[`$;&]\s*)make ([a-z][a-z-]*)", re.MULTILINE)
_GATEWAY = re.compile(r"python3? -m gateway([^`#\n]*)")
_FLAG = re.compile(r"--[a-z][a-z-]*")
_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def run() -> str:
    """All complaints, one per line."""
    return "\n".join([*_broken_promises(), *_registry_addresses()])


def _files(pattern: str) -> Iterator[Path]:
    for file in sorted(ROOT.rglob(pattern)):
        if not _ELSEWHERE.intersection(file.relative_to(ROOT).parts):
            yield file


def _broken_promises() -> Iterator[str]:
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text("utf-8")))
    flags = _known_flags()
    for file in _files("*.md"):
        name = file.relative_to(ROOT)
        text = file.read_text("utf-8")
        for link in links(text):
            if not _resolves(file, link):
                yield f"{name}: the link {link} leads nowhere"
        for target in sorted(set(make_commands(text)) - targets):
            yield f"{name}: there is no `make {target}`"
        for flag in sorted(set(gateway_flags(text)) - flags):
            yield f"{name}: `python -m gateway --help` knows no {flag}"


def _known_flags() -> set[str]:
    command = [sys.executable, "-m", "gateway", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return set(_FLAG.findall(done.stdout))


def links(text: str) -> list[str]:
    """Where the links of a Markdown text lead to inside the repository."""
    prose = _FENCE.sub("", text)
    found = (markdown or html for markdown, html in _LINK.findall(prose))
    return [link for link in found if not re.match(r"[a-z][a-z0-9+.-]*:|//", link)]


def make_commands(text: str) -> list[str]:
    """What a reader is told to `make`."""
    return [target for code in _CODE.findall(text) for target in _MAKE.findall(code)]


def gateway_flags(text: str) -> list[str]:
    """The flags that a reader is told to give to `python -m gateway`."""
    commands = (line for code in _CODE.findall(text) for line in _GATEWAY.findall(code))
    return [flag for command in commands for flag in _FLAG.findall(command)]


def _resolves(file: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = file if not path else (file.parent / path).resolve()
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    if not heading or target.suffix != ".md":
        return True
    return heading in anchors(target.read_text("utf-8"))


def anchors(text: str) -> set[str]:
    """The names by which the headings of a Markdown text can be linked to, as code hosts make them."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        name = words.replace(" ", "-")
        again = 0
        while (f"{name}-{again}" if again else name) in found:
            again += 1
        found.add(f"{name}-{again}" if again else name)
    return found


def _registry_addresses() -> Iterator[str]:
    for file in _files("package-lock.json"):
        if '"resolved"' in file.read_text("utf-8"):
            yield f"{file.relative_to(ROOT)}: names a registry; see .npmrc beside it"
