"""What every test may ask for: real programs, ended when the test is over, shown when it fails. And
what every test gets: an error when the gateway blocks the event loop.

Decides how long a program lives: Squid for the whole run, since it keeps no state that a test could
notice, all others for one test.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from tests.support.browsers import Browsers, browsers
from tests.support.parts import ROOT, npm_package, part
from tests.support.processes import Process
from tests.support.servers import Gateway, Nginx, Squid


@pytest.fixture
def gateway_process(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """`gateway_process("--flag", config="listen: …", env={…})` is a ready Gateway with its `url`.

    It runs in an empty directory, which is on its import path: `directory` names another one.
    """
    with ExitStack() as stack:

        def start(*arguments: str, directory: Path = tmp_path, **options: object) -> Gateway:
            started = Gateway(*arguments, directory=directory, **options)  # type: ignore[arg-type]
            return stack.enter_context(started)

        yield start


@pytest.fixture(scope="session")
def _squid() -> Iterator[Squid]:
    with Squid() as running:
        yield running


@pytest.fixture
def squid(_squid: Squid) -> Squid:
    """A running Squid with Debian's rules: `url` is the proxy's address."""
    Process.started.append(_squid)
    return _squid


@pytest.fixture
def nginx() -> Iterator[Callable[[str, int], Nginx]]:
    """`nginx(http, port)` is a running nginx with that text in its `http` block."""
    with ExitStack() as stack:
        yield lambda http, port: stack.enter_context(Nginx(http, port))


@pytest.fixture
async def chromium() -> AsyncIterator[Browsers]:
    """`await chromium(proxy="http://host:port")` is a context of a new browser; see Browsers."""
    async with browsers() as opened:
        yield opened


@pytest.fixture
def node() -> Iterator[Callable[..., Process]]:
    """`node("tests/peers/client.js", "argument")` runs a script with the npm test peers at hand.

    The path is relative to the top of the repository. Give the process your patience:
    `node(…).wait_for_output("ready")`, `node(…).wait()`.
    """
    with ExitStack() as stack:

        def start(script: str, *arguments: str) -> Process:
            npm_package("engine.io-client")
            command = [part("node"), str(ROOT / script), *arguments]
            return stack.enter_context(Process(command, name=script, cwd=ROOT / "tests"))

        yield start


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("blocks_the_loop"):
        yield
        return
    with blockbuster_ctx("gateway") as watch:
        # The thread that looks for stalls is waited for when the last connection is over.
        watch.functions["threading.Lock.acquire"].can_block_in("gateway/stalls.py", "stop")
        yield


@pytest.fixture(autouse=True)
def _a_state_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default store of a gateway is not that of the person who runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))


@pytest.fixture(autouse=True)
def _forget_programs() -> Iterator[None]:
    Process.started.clear()
    yield
    Process.started.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Puts the output of each program beside the traceback of the test that failed."""
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        report.sections += [  # type: ignore[attr-defined]
            (f"output of {process.name}", process.output) for process in Process.started
        ]
    return report
