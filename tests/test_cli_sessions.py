"""`python -m gateway sessions` as a person meets it: real stores, real processes, their output."""

import asyncio
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from gateway.cli import sessions as command
from gateway.cli.main import main
from gateway.cli.terminal import width
from gateway.config import Listen
from gateway.session_store import Phase, Row, Session
from gateway.stores import default_path, open_store
from tests.support.parts import ROOT
from tests.support.servers import Redis

IDS = {"open": "aa-open", "parked": "ab-parked", "closing": "ac-closing", "failed": "ad-failed", "more": "-e"}


@pytest.fixture(scope="module")
def redis():
    server = Redis()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
    """A store with one session in each phase."""
    if request.param == "sqlite":
        url = f"sqlite://{tmp_path}/sessions.sqlite3"
    else:
        url = f"{request.getfixturevalue('redis').url}?prefix={tmp_path.name}"
    fill(url)
    return url


def fill(url):
    asyncio.run(_fill(open_store(url)))


async def _fill(store):
    await store.open()
    await store.join("node", 1000)
    now = time.time()
    for phase, session_id in IDS.items():
        user = {"open": "Ada", "failed": "\x1b[31mEve\n"}.get(phase)
        session = Session(session_id, user, ("/lab", "/chat"), {"laser": [1]}, now - 7200, now - 300)
        assert await store.add("node", session)
        if phase == "parked":
            await store.park("node", [(session_id, 1000, b"")])
        elif phase != "open":
            claim = await store.claim("node", session, "PING_TIMEOUT")
            assert claim is not None
            if phase == "closing":
                await store.put_off("node", claim, 240, ("lab.off",), "lab.off: OSError: busy")
            else:
                await store.bury("node", claim, ("lab.off",), "lab.off: OSError: no such device")
    await store.close()


def look(url, act):
    """What the store says when it is asked."""
    return asyncio.run(_look(open_store(url), act))


async def _look(store, act):
    await store.open()
    try:
        return await act(store)
    finally:
        await store.close()


def phases(url):
    rows = look(url, lambda store: store.rows())
    return {row.session.id: row.phase for row in rows}


@pytest.fixture
def run(tmp_path):
    """`run("--failed")` is the output of `python -m gateway sessions --failed`."""

    def run(*arguments, code=0, **env):
        words = [sys.executable, "-m", "gateway", "sessions", *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
        done = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == code, done.stderr
        if code:
            assert done.stdout == ""
            (line,) = done.stderr.splitlines()
            assert line.startswith("gateway: ")
            return line
        assert done.stderr == ""
        return done.stdout

    return run


# -- looking -----------------------------------------------------------------------------------------


def test_the_list(run, url):
    head, *rows, _, hint = run("--store", url).splitlines()
    assert re.split(r"  +", head) == [
        *("id", "state", "user", "since", "seen"),
        *("routes", "reason", "attempt", "next try", "error"),
    ]
    assert [row.split()[0] for row in rows] == list(IDS.values())
    cells = [re.split(r"  +", row) for row in rows]
    assert cells[0] == ["aa-open", "open", "Ada", "2 h ago", "/lab /chat"], "it is there: not last seen"
    assert cells[1] == ["ab-parked", "parked", "2 h ago", "5 min ago", "/lab /chat"]
    assert cells[2][4:7] == ["/lab /chat", "ping_timeout", "1"]
    assert cells[2][7] in ("in 4 min", "in 240 s")
    assert cells[2][8] == "lab.off: OSError: busy"
    assert cells[3][2] == "\\x1b[31mEve\\n"
    assert cells[3][-1] == "lab.off: OSError: no such device"
    assert len({row.index("/lab") for row in rows}) == 1
    assert hint == "2 sessions failed: --retry ID, or --retry all, tries again"


def test_those_that_have_failed(run, url):
    lines = run("--store", url, "--failed").splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["id", "ad-failed", "-e"]
    assert "next try" not in lines[0]


def test_for_programs(run, url):
    rows = json.loads(run("--store", url, "--json"))
    assert [(row["id"], row["state"]) for row in rows] == [
        (session_id, {"more": "failed"}.get(phase, phase)) for phase, session_id in IDS.items()
    ]
    assert rows[3]["user"] == "\x1b[31mEve\n"
    assert rows[3]["data"] == {"laser": [1]}
    assert (rows[3]["reason"], rows[3]["error"]) == ("ping_timeout", "lab.off: OSError: no such device")
    assert [row["id"] for row in json.loads(run("--store", url, "--json", "--failed"))] == ["ad-failed", "-e"]


def test_an_empty_store(run, tmp_path):
    url = f"sqlite://{tmp_path}/empty%20%C3%BC.sqlite3"
    look(url, lambda store: store.counts())
    assert run("--store", url) == f"no sessions in {tmp_path}/empty ü.sqlite3\n"
    assert run("--store", url, "--failed") == f"no failed sessions in {tmp_path}/empty ü.sqlite3\n"
    assert run("--store", url, "--json") == "[]\n"


def test_a_reader_that_has_seen_enough(tmp_path):
    url = f"sqlite://{tmp_path}/many.sqlite3"
    asyncio.run(_add(open_store(url), 3000))
    words = f"{sys.executable} -m gateway sessions --json --store {url} | head -1"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, shell=True, env=env, capture_output=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == (b"[\n", b"")


async def _add(store, count):
    await store.open()
    await store.join("node", 1000)
    for number in range(count):
        await store.add("node", Session(f"s{number}"))
    await store.close()


def test_a_long_list_is_cut_and_says_so(run, tmp_path):
    url = f"sqlite://{tmp_path}/many.sqlite3"
    asyncio.run(_add(open_store(url), 1003))
    lines = run("--store", url).splitlines()
    assert len(lines) == 1002
    assert lines[-1] == "and 3 more: --json lists all"


def row(session_id, error=None, **fields):
    phase = Phase.FAILED if error else Phase.OPEN
    return Row(Session(session_id, **fields), phase, "node", error=error)


def test_a_table_is_as_wide_as_the_terminal():
    long = {"user": "日本" * 30, "routes": ("/a-route", "/another-route", "/a-third-one"), "opened": 1.0}
    rows = [row("a" * 30, error="x" * 300, **long), row("b" * 30, error="short", **long)]
    head, first, below, second, short = command.table(rows, 9000, 80, io.StringIO()).splitlines()
    assert (below, short) == ("  " + "x" * 300, "  short"), "an error is shown in full"
    assert max(map(width, (head, first, second))) <= 80
    assert first.index("/a-route") == second.index("/a-route")
    lines = command.table(rows, 9000, 0, io.StringIO()).splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["error", "x" * 300, "short"]
    assert len({width(line[: line.rindex("  ")]) for line in lines}) == 1


def test_ids_are_shown_as_far_as_it_takes_to_tell_them_apart():
    rows = [row("same-beginning-1x"), row("same-beginning-2x"), row("other")]
    lines = command.table(rows, 0, 0, io.StringIO()).splitlines()
    assert [line.split()[0] for line in lines] == ["id", "same-beginning-1", "same-beginning-2", "other"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (86400 * 3, "3 d")],
)
def test_durations(seconds, text):
    assert command._duration(seconds) == text


def test_colours_are_for_terminals(url):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        words = [sys.executable, "-m", "gateway", "sessions", "--store", url]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
        env.pop("NO_COLOR", None)
        subprocess.run(words, env=env, stdout=terminal, timeout=30, check=True)
    seen = os.read(master, 100_000).decode()
    os.close(master)
    assert "\x1b[31mad-failed" in seen
    assert "\x1b[31mEve" not in seen


# -- acting ------------------------------------------------------------------------------------------


def test_retry(run, url):
    assert run("--store", url, "--retry", "ad").startswith("ad-failed will be cleaned up again, as soon as")
    assert phases(url)["ad-failed"] is Phase.CLOSING


def test_retry_of_an_id_with_a_hyphen(run, url):
    assert run("--store", url, "--retry", "-e").startswith("-e will be cleaned up again")
    assert phases(url)["-e"] is Phase.CLOSING


def test_retry_all(run, url):
    assert run("--store", url, "--retry", "all").startswith("2 sessions will be cleaned up again")
    assert Phase.FAILED not in phases(url).values()
    assert run("--store", url, "--retry", "all").startswith("no failed sessions in ")


def test_close(run, url):
    assert run("--store", url, "--close", "aa-open") == "aa-open will be closed\n"
    assert look(url, lambda store: store.asked_to_close("node")) == ["aa-open"]
    assert run("--store", url, "--close", "ab-parked") == "ab-parked will be closed\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--retry", "aa-open"], "aa-open: this session has not failed: it is alive"),
        (["--retry", "ac-closing"], "this session has not failed: its cleanup hooks run now, or wait"),
        (["--close", "ad-failed"], "this session is over: its cleanup has failed; --retry tries again"),
        (["--retry", "nobody"], "there is no session 'nobody': python -m gateway sessions lists all"),
        (["--close", ""], "there is no session ''"),
        (["--close", "a"], "4 sessions begin with 'a': give more of the id"),
        (["--retry", "x", "--close", "y"], "--retry and --close: give one or the other"),
    ],
)
def test_what_cannot_be_done(run, url, arguments, said):
    before = phases(url)
    assert said in run("--store", url, *arguments, code=2)
    assert phases(url) == before


# -- which store -------------------------------------------------------------------------------------


def test_the_store_is_that_of_the_address(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    line = run("--port", "8123", code=2)
    assert "there is no " in line
    assert "127.0.0.1-8123.sqlite3: has a gateway run at 127.0.0.1:8123? Give --listen, --config or" in line
    assert not (tmp_path / "state").exists()
    fill(f"sqlite://{default_path(Listen(port=8123))}")
    for arguments in (["--port", "8123"], ["--listen", "127.0.0.1:8123"]):
        assert "aa-open" in run(*arguments)


def test_the_store_of_a_configuration_whose_functions_are_not_touched(run, tmp_path):
    (tmp_path / "gateway.yaml").write_text(
        "store: sqlite:here.sqlite3\nroutes: {/lab: {open: lab.open}}\ncleanup: lab.off\n"
    )
    (tmp_path / "lab.py").write_text("open('opened', 'w')")
    assert "here.sqlite3: no gateway has used it yet" in run("--config", "gateway.yaml", code=2)
    assert not (tmp_path / "here.sqlite3").exists()
    fill(f"sqlite://{tmp_path}/here.sqlite3")
    assert "aa-open" in run("--config", "gateway.yaml")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--store", "memory:"], "sessions in memory are seen by their own process alone"),
        (["--port", "0"], "a gateway at port 0 has its sessions in memory"),
        (["--store", "sqlite:nowhere.sqlite3"], "nowhere.sqlite3: no gateway has used it yet"),
        (["--store", "sqlite:broken.sqlite3"], "broken.sqlite3 is damaged, or is no SQLite database: move"),
        (["--store", "redis+unix:///nowhere/redis.sock"], "nowhere"),
        (["--store", "nonsense"], "that is no URL of a store: write memory:"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
    ],
)
def test_a_store_that_cannot_be_looked_at(run, tmp_path, arguments, said):
    (tmp_path / "broken.sqlite3").write_text("not a database" * 1000)
    assert said in run(*arguments, code=2)
    assert not (tmp_path / "nowhere.sqlite3").exists()


@pytest.mark.parametrize("flag", [["--failed"], ["--json"], ["--retry", "x"], ["--close", "x"]])
def test_its_flags_go_with_it(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main(flag)
    assert ended.value.code == 2
    assert f"{flag[0]} goes with sessions: python -m gateway sessions {flag[0]}" in capsys.readouterr().err


# -- a gateway with it -------------------------------------------------------------------------------

LAB = """
import os, pathlib
def on_message(handler, message): handler.write_message(message)
def off(end):
    if os.path.exists("stuck"): raise OSError("no such device")
    with open("effects", "a") as file: file.write(end.session + " " + str(end.attempt) + chr(10))
"""
YAML = "cleanup: {function: lab.off, attempts: 1}\nroutes: {/lab: {on_message: lab.on_message}}\n"


@contextmanager
def connected(port):
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/lab") as socket:
        socket.send("x")
        assert socket.recv() == "x"
        yield socket


def test_a_failed_cleanup_is_tried_again_by_hand(gateway_process, run, tmp_path):
    """The story of the document: it fails, the log says so, a person mends it, and says --retry."""
    (tmp_path / "lab.py").write_text(LAB)
    (tmp_path / "stuck").touch()
    running = gateway_process(config=YAML)
    port = ("--port", str(running.port))
    with connected(running.port):
        listed = run(*port).splitlines()
        assert listed[0].split() == ["id", "state", "since", "routes"]
        assert " open " in listed[1]
    running.wait_for_output("lab.off is given up after attempt 1: OSError: no such device; see `python -m")
    (failed,) = json.loads(run(*port, "--failed", "--json"))
    (tmp_path / "stuck").unlink()
    run(*port, "--retry", failed["id"][:8])
    running.wait_for_output("lab.off has cleaned up")
    assert (tmp_path / "effects").read_text() == f"{failed['id']} 2\n"
    assert "no sessions in " in run(*port)


def test_a_session_is_closed_by_hand(gateway_process, run, tmp_path):
    (tmp_path / "lab.py").write_text(LAB)
    running = gateway_process(config=YAML)
    with connected(running.port) as socket:
        (row,) = json.loads(run("--port", str(running.port), "--json"))
        assert "will be closed" in run("--port", str(running.port), "--close", row["id"])
        with pytest.raises(Exception, match="received 1000"):
            socket.recv(timeout=10)
    running.wait_for_output("lab.off has cleaned up")


def test_it_ends_when_the_last_browser_has_gone(gateway_process, tmp_path):
    (tmp_path / "lab.py").write_text(LAB)
    running = gateway_process("--exit-when-empty", "500ms", config=YAML)
    running.wait_for_output("Ctrl\\+C, or 0.5 s after the last browser has gone")
    with connected(running.port):
        pass
    assert running.wait(timeout=15) == 0
    assert "lab.off has cleaned up" in running.output


def test_a_hook_that_a_kill_cut_runs_at_the_next_start(gateway_process, tmp_path):
    (tmp_path / "lab.py").write_text(
        LAB + "import time\ndef off(end):\n"
        "    with open('effects', 'a') as file: print(end.key, end.attempt, file=file)\n"
        "    print('begun', flush=True)\n    time.sleep(60 if end.attempt == 1 else 0)\n"
    )
    config = YAML + f"timeouts: {{lease: 1s}}\nstore: sqlite://{tmp_path}/lab.sqlite3\n"
    first = gateway_process(config=config)
    with connected(first.port):
        pass
    first.wait_for_output("begun")
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = gateway_process(config=config)
    second.wait_for_output("lab.off has cleaned up")
    (key, one), (same, two) = [line.split() for line in (tmp_path / "effects").read_text().splitlines()]
    assert (key, one, two) == (same, "1", "2")
    assert key.endswith(":lab.off")
