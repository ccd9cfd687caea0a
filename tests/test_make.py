"""A stranger's first minute: a fresh clone, `make run`, a page.

The clone holds what would be committed now, so that a file which was forgotten, or is ignored by
mistake, is missed here and not by the stranger.
"""

import os
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.support.parts import ROOT, part
from tests.support.processes import Process, free_port

pytestmark = pytest.mark.slow


def git(*arguments: str) -> str:
    # In a container the clone often belongs to somebody else than the user who runs the tests.
    command = [part("git"), "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The files of the work tree that are not ignored."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    directory: Path = tmp_path_factory.mktemp("clone")
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    return directory


def make(clone: Path, *arguments: str) -> Process:
    """Runs make as a stranger would: without our environment, and not as a part of our own make."""
    ours = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CI")
    path = [entry for entry in os.environ["PATH"].split(os.pathsep) if ".venv" not in entry]
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept["PATH"] = os.pathsep.join(path)
    command = ["env", "-i", *(f"{name}={value}" for name, value in kept.items())]
    return Process([*command, part("make"), *arguments], name="make", cwd=clone)


def test_make_alone_says_what_there_is(clone):
    process = make(clone)
    assert process.wait() == 0
    for target in ("run", "test", "check", "client", "bench", "lab", "weather"):
        assert f"make {target} " in process.output


def test_make_run_sets_up_and_serves_and_does_not_set_up_twice(clone):
    for first in (True, False):
        port = free_port()
        with make(clone, "run", f"ARGS=--port {port}") as process:
            process.wait_for_output(rf"http://[^\s/]+:{port}", timeout=100)
            process.wait_for_port(port)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
                assert b"<html" in page.read()
            assert ("installing requirements.txt" in process.output) is first
