"""Where the real programs are that the tests talk to.

Decides what happens when one is missing: a person's test run skips, with the reason; a CI run fails,
because nobody would notice there that a test no longer runs. Installs nothing: `make test` does.
"""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The top of the repository."""

NODE_MODULES = ROOT / "tests" / "node_modules"

# Debian puts servers where the PATH of an ordinary user does not look.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

_PROGRAMS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "git": ("git",),
    "make": ("make",),
    "nginx": ("nginx",),
    "node": ("node",),
    "npm": ("npm",),
    "openssl": ("openssl",),
    "redis": ("redis-server", "valkey-server"),
    "squid": ("squid",),
}


def in_ci() -> bool:
    """Whether `CI` is set to anything."""
    return bool(os.environ.get("CI"))


def part(name: str) -> str:
    """The path of a program: chromium, git, make, nginx, node, npm, openssl, redis or squid.

    Skips the test when it is not installed; fails it when `CI` is set.
    """
    for program in _PROGRAMS[name]:
        found = shutil.which(program, path=_PATH)
        if found:
            return found
    missing(f"{name} is not installed (as root, `make test` installs it)")


def npm_package(name: str) -> Path:
    """The directory of an npm package of `tests/package.json`; skips or fails as `part` does."""
    found = NODE_MODULES / name
    if (found / "package.json").is_file():
        return found
    missing(f"the npm package {name} is not installed (`make test` installs it)")


def missing(reason: str) -> NoReturn:
    """Skip the test for this reason; fail it when `CI` is set."""
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
