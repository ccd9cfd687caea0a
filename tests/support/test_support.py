"""The tools of the tests do what they say: programs end, their output is shown, parts are found."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.support import parts
from tests.support.processes import Process, ProcessFailed, free_port
from tests.support.servers import Squid

SERVER = """
import socket, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("child", child.pid)
time.sleep(60)
"""


def python(code: str, *arguments: str) -> Process:
    return Process([sys.executable, "-c", code, *arguments])


def test_a_program_is_ready_and_ends_with_its_children():
    port = free_port()
    with python(SERVER, str(port)) as process:
        child = process.wait_for_output(r"^child (\d+)$").group(1)
        process.wait_for_port(port)
        assert process.running
    assert not process.running
    assert not parts.Path(f"/proc/{child}/cmdline").exists() or not (
        parts.Path(f"/proc/{child}/cmdline").read_bytes()
    )


def test_a_program_that_ends_too_early_is_reported_with_its_output():
    with python("print('out of luck')") as process, pytest.raises(ProcessFailed, match="luck"):
        process.wait_for_output("ready")
    with python("print('out of luck')") as process, pytest.raises(ProcessFailed, match="luck"):
        process.wait_for_port(free_port())


def test_a_program_that_says_nothing_is_reported_in_time():
    with python("import time; time.sleep(60)") as process:
        with pytest.raises(ProcessFailed, match=r"within 0\.1 s"):
            process.wait_for_output("ready", timeout=0.1)
        with pytest.raises(ProcessFailed, match=r"after 0\.1 s"):
            process.wait_for_port(free_port(), timeout=0.1)
        with pytest.raises(ProcessFailed, match="still runs"):
            process.wait(timeout=0.1)


def test_a_program_that_ignores_sigterm_is_killed():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up')\n"
    with python(code + "time.sleep(60)") as process:
        process.wait_for_output("up")
        process.stop(timeout=0.1)
        assert process.popen.returncode == -signal.SIGKILL


def test_the_exit_code_is_given():
    assert python("raise SystemExit(3)").wait() == 3


def test_a_missing_part_skips_for_a_person_and_fails_in_ci(monkeypatch):
    monkeypatch.setitem(parts._PROGRAMS, "squid", ("no-such-program",))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="squid is not installed"):
        parts.part("squid")
    with pytest.raises(pytest.skip.Exception, match="no-such-package is not installed"):
        parts.npm_package("no-such-package")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="squid is not installed"):
        parts.part("squid")


def test_two_squids_share_no_memory_and_leave_none_behind():
    # Squids of different users that share a name cannot run at the same time.
    with Squid() as one, Squid() as other:
        memory = [set(Path("/dev/shm").glob(f"*{each.port}-*")) for each in (one, other)]
        assert all(memory)
    assert not [left for each in memory for left in each if left.exists()]


async def test_chromium_goes_through_squid_to_loopback(chromium, squid):
    """And a plain request comes back with what Squid was given, so the way is open for polling."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"<title>reached</title>"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        page = await (await chromium(proxy=squid.url)).new_page()
        response = await page.goto(url)
        assert await page.title() == "reached"
        assert "squid" in (await response.all_headers())["via"]


def test_node_runs_with_the_test_peers(node):
    assert node("tests/support/peers.js").wait_for_output(r"engine\.io-client (\d)").group(1) == "4"
