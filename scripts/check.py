"""Everything about the project that a machine can judge without running it: `make check`.

Decides which checks there are and in which order they are told; runs all of them, also after one has
failed. Does not repair anything: the advice beside each check says what does.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import check_docs

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PYTHON_CODE = ["gateway", "tests", "scripts", "bench", "examples"]


@dataclass(frozen=True)
class Check:
    """One line of the result. `run` gives its complaints, as text; empty means that all is well."""

    name: str
    run: Callable[[], str]
    advice: str


def command(*words: str | Path, cwd: Path = ROOT) -> Callable[[], str]:
    """A check that runs a program: its output is the complaint when it fails."""

    def run() -> str:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return ""
        return done.stdout or f"ended with exit code {done.returncode}"

    return run


def checks() -> list[Check]:
    """All that apply to what is there."""
    code = [name for name in PYTHON_CODE if any((ROOT / name).rglob("*.py"))]
    found = [
        Check("format", command(BIN / "ruff", "format", "--check", *code), "run ruff format"),
        Check("lint", command(BIN / "ruff", "check", *code), "run ruff check --fix, or see above"),
        Check("types", command(BIN / "mypy"), "see above"),
        Check("imports", command(BIN / "lint-imports", "--no-logo"), "the layers are in pyproject.toml"),
        Check("docs", check_docs.run, "see above"),
    ]
    if (ROOT / "client" / "package.json").exists():
        rebuild = command("npm", "--silent", "run", "check", cwd=ROOT / "client")
        found.append(Check("client", rebuild, "run make client"))
    return found


def main() -> int:
    """Prints one line per check; 1 when any of them complains."""
    failed = 0
    for check in checks():
        began = time.monotonic()
        complaints = check.run()
        seconds = time.monotonic() - began
        print(f"  {check.name:<8} {'FAILED' if complaints else 'ok':<6} {seconds:5.1f} s")
        if complaints:
            failed += 1
            print(complaints.rstrip())
            print(f"  -> {check.advice}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
