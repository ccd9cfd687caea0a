"""What is installed is complete: the wheel, in an empty environment, in an empty directory, serves.

Decides nothing about what is served; only that the page and the browser's script are there.
"""

import subprocess
import sys
import urllib.request
import zipfile

import pytest

from tests.support.parts import ROOT
from tests.support.processes import Process, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel built from the work tree."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run([*command, "--outdir", str(directory), str(ROOT)])
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(tmp_path_factory, wheel):
    """The interpreter of an environment that holds the wheel and requirements.txt, nothing else."""
    directory = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", str(directory)])
    interpreter = directory / "bin" / "python"
    pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "-r", str(ROOT / "requirements.txt")])
    run([*pip, "install", "--no-deps", str(wheel)])
    run([*pip, "check"])
    return interpreter


def run(command: list[str]) -> None:
    with Process(command) as process:
        code = process.wait(timeout=100)
        assert code == 0, process.output


def get(url: str) -> tuple[str, str]:
    """Content type and text of an answer."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.headers["Content-Type"], response.read().decode()


def test_the_wheel_holds_what_the_gateway_reads(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    static = [f"static/{file.name}" for file in (ROOT / "static").iterdir()]
    assert "static/client.js" in static
    for name in ("py.typed", "stores/redis.lua", *static):
        assert f"gateway/{name}" in names
    # Nothing else lands at the top of site-packages.
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition("-")[0] for top in tops} == {"gateway", "fallback_gateway"}


def test_the_command_explains_itself(python, tmp_path):
    for command in ([python.parent / "gateway"], [python, "-m", "gateway"]):
        done = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "--port" in done.stdout


def test_it_serves_from_an_empty_directory(python, tmp_path):
    port = free_port()
    with Process([python, "-m", "gateway", "--port", str(port)], cwd=tmp_path) as process:
        process.wait_for_output(rf"http://[^\s/]+:{port}")
        process.wait_for_port(port)
        kind, page = get(f"http://127.0.0.1:{port}/")
        assert kind.startswith("text/html")
        assert "<html" in page
        kind, script = get(f"http://127.0.0.1:{port}/_gateway/client.js")
        assert kind.startswith("text/javascript")
        assert script == (ROOT / "static" / "client.js").read_text("utf-8")
