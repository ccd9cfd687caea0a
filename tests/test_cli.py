"""`python -m gateway` as a person meets it: real processes, their output, their exit codes."""

import os
import pty
import re
import signal
import socket
import sys
import tomllib
import urllib.error
import urllib.request

import pytest

import gateway
from gateway.cli.main import main
from tests.support.parts import ROOT
from tests.support.processes import Process, free_port


@pytest.fixture
def run(tmp_path):
    """`run("--flag")` starts `python -m gateway` in an empty directory."""
    started = []

    def start(*arguments, **env):
        command = [sys.executable, "-m", "gateway", *arguments]
        process = Process(command, name="gateway", cwd=tmp_path, env={"PYTHONPATH": str(ROOT), **env})
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop()


def refused(process):
    """The one line of a process that did not start."""
    assert process.wait() == 2
    (line,) = process.output.splitlines()
    assert line.startswith("gateway: ")
    return line


def status(url):
    """The status of an answer that is an error."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=5)
    with caught.value as answer:
        return answer.code


# -- a good start ----------------------------------------------------------------------------------


def test_it_prints_where_to_look_and_serves_the_demo(run):
    process = run("--port", "0")
    url = process.wait_for_output(r"^\s*(http://127\.0\.0\.1:\d+)/$")[1]
    process.wait_for_output("Ctrl\\+C")
    for path in ("/", "/_gateway/"):
        with urllib.request.urlopen(url + path, timeout=5) as page:
            assert b"<html" in page.read()
            policy = page.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'")
            assert page.headers["X-Content-Type-Options"] == "nosniff"
    for text in ("gateway " + gateway.__version__, "demo page", "within 20.2 s"):
        assert text in process.output
    assert "\x1b" not in process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(run, number):
    process = run("--port", "0")
    process.wait_for_output("Ctrl\\+C")
    process.send_signal(number)
    assert process.wait(timeout=5) == 0
    assert "gateway has stopped" in process.output
    assert "Traceback" not in process.output


def test_a_signal_to_the_process_and_to_its_group_is_one_signal(run):
    """As `timeout` sends it: sessions are to be kept for the next start."""
    process = run("--port", "0")
    process.wait_for_output(r"http://127\.0\.0\.1:(\d+)/")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.wait_for_output("has stopped")
    assert process.wait(timeout=5) == 0


def test_a_second_signal_ends_it_at_once(run, tmp_path):
    (tmp_path / "stuck.py").write_text("import time\ndef on_close(handler): time.sleep(60)\n")
    (tmp_path / "gateway.yaml").write_text("routes: {/stuck: {on_close: stuck.on_close}}\n")
    process = run("--port", "0", "--config", "gateway.yaml")
    port = int(process.wait_for_output(r"http://127\.0\.0\.1:(\d+)/")[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(
            b"GET /stuck HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 101 " in client.recv(1000)
        process.send_signal(signal.SIGTERM)
        process.wait_for_output("stopping: telling 1 client;")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=3) == 128 + signal.SIGTERM


def test_a_unix_socket(run, tmp_path):
    process = run("--listen", f"unix:{tmp_path}/here.sock")
    process.wait_for_output(r"unix:\S+here\.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "here.sock"))
        client.sendall(b"GET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 404")


def test_a_unix_socket_in_use(run, tmp_path):
    path = f"unix:{tmp_path}/here.sock"
    first = run("--listen", path)
    first.wait_for_output("Ctrl\\+C")
    assert "here.sock is in use" in refused(run("--listen", path))
    first.kill()
    run("--listen", path).wait_for_output("Ctrl\\+C")


def test_flags_win_over_the_file(run, tmp_path):
    (tmp_path / "gateway.yaml").write_text(f"listen: 127.0.0.1:{free_port()}\nping: compat\n")
    process = run("serve", "--config", "gateway.yaml", "--port", "0", "--ping", "1s+500ms")
    process.wait_for_output(r"http://127\.0\.0\.1:\d+/")
    process.wait_for_output(r"within 1\.7 s")
    assert (tmp_path / "gateway.yaml").read_text().split(":")[2].split()[0] not in process.output


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_are_for_terminals(monkeypatch, env, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "gateway", "--port", "0"]
    with os.fdopen(slave, "w") as terminal:
        child = os.posix_spawn(
            sys.executable,
            command,
            {**os.environ, "PYTHONPATH": str(ROOT)},
            file_actions=[(os.POSIX_SPAWN_DUP2, terminal.fileno(), 1)],
        )
    seen = b""
    while b"Ctrl+C" not in seen:
        seen += os.read(master, 1000)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    os.close(master)
    assert (b"\x1b[" in seen) is coloured


def test_sids_are_not_logged(run):
    process = run("--port", "0", "--log-level", "debug", "--ping", "100ms+100ms")
    url = process.wait_for_output(r"(http://127\.0\.0\.1:\d+)/")[1]
    with urllib.request.urlopen(url + "/_gateway/engine/?EIO=4&transport=polling", timeout=5) as answer:
        sid = answer.read().decode().split('"')[3]
    with urllib.request.urlopen(
        f"{url}/_gateway/engine/?EIO=4&transport=polling&sid={sid}", timeout=5
    ) as answer:
        assert answer.read() == b"2"  # and nobody answers the ping
    process.wait_for_output("/_gateway/engine/ 200")
    assert status(f"{url}/%0d%0aforged") == 404
    process.wait_for_output(sid[:6] + "… ended")
    assert sid not in process.output
    assert not [line for line in process.output.splitlines() if line.startswith("forged")]


# -- where sessions are recorded -------------------------------------------------------------------


def test_the_default_store_is_a_file_of_the_address(run, tmp_path):
    port = free_port()
    process = run("--port", str(port), XDG_STATE_HOME=f"{tmp_path}/state")
    file = tmp_path / "state" / "gateway" / f"127.0.0.1-{port}.sqlite3"
    assert process.wait_for_output(r"^  sessions +(.*)$")[1] == str(file)
    assert file.stat().st_mode & 0o777 == 0o600


def test_at_port_0_sessions_are_in_memory(run, tmp_path):
    process = run("--port", "0", XDG_STATE_HOME=f"{tmp_path}/state")
    process.wait_for_output(r"^  sessions +in memory: they end with this process$")
    assert not (tmp_path / "state").exists()


def test_without_a_place_for_the_file_it_warns_and_goes_on_in_memory(run, tmp_path):
    (tmp_path / "state").write_text("no folder")
    process = run("--port", str(free_port()), XDG_STATE_HOME=f"{tmp_path}/state")
    process.wait_for_output(r"^  sessions +in memory")
    (warning,) = re.findall("^.*WARNING.*$", process.output, re.MULTILINE)
    assert (
        "sessions are recorded in memory only, and forgotten when this process ends: cannot write" in warning
    )


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("sqlite:damaged.sqlite3", "damaged.sqlite3 is damaged, or is no SQLite database: move"),
        ("sqlite:///dev/null/x.sqlite3", "cannot write /dev/null/x.sqlite3"),
        ("redis+unix:///nowhere/redis.sock", "/nowhere/redis.sock"),
    ],
)
def test_a_store_that_was_asked_for_and_cannot_be_opened(run, tmp_path, store, said):
    (tmp_path / "damaged.sqlite3").write_text("no database" * 1000)
    assert said in refused(run("--port", "0", "--store", store))


def test_a_default_store_that_needs_a_person(run, tmp_path):
    port = free_port()
    file = tmp_path / "gateway" / f"127.0.0.1-{port}.sqlite3"
    file.parent.mkdir()
    file.write_text("no database" * 1000)
    assert f"{file} is damaged" in refused(run("--port", str(port), XDG_STATE_HOME=str(tmp_path)))
    assert file.read_text() == "no database" * 1000


def test_the_banner_shows_hooks_and_when_it_ends(run, tmp_path):
    (tmp_path / "lab.py").write_text("def on_message(handler, message): ...\ndef off(end): ...\n")
    (tmp_path / "gateway.yaml").write_text(
        "store: sqlite:here ü.sqlite3\n"
        "cleanup: [lab.off, {webhook: 'https://hooks.example.com/T0/secret'}]\n"
        "routes: {/lab: {on_message: lab.on_message, cleanup: {command: touch over}}}\n"
    )
    process = run("--config", "gateway.yaml", "--port", "0", "--exit-when-empty", "2m", HOME=str(tmp_path))
    process.wait_for_output("Ctrl\\+C, or 120 s after the last browser has gone")
    lines = [line.strip() for line in process.output.splitlines()]
    assert "sessions   ~/here ü.sqlite3" in lines
    first = lines.index("cleanup    lab.off")
    assert lines[first + 1 : first + 3] == ["webhook:hooks.example.com", "command:touch (/lab)"]
    assert "secret" not in process.output


# -- a bad start -----------------------------------------------------------------------------------


def test_a_port_in_use(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(run("--port", str(port)))
    assert f"port {port} on 127.0.0.1 is in use" in line
    assert f"--port {port % 65535 + 1}" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "80000"], "'80000' is no port: 0 to 65535"),
        (["--port", "http"], "'http' is no port"),
        (["--ping", "often"], "'often' is no heartbeat: write compat, default, fast, or 10s+5s"),
        (["--listen", "here"], "'here' is no address"),
        (["--listen", ":0", "--port", "1"], "give one or the other"),
        (["--host", "192.0.2.1", "--port", "0"], "192.0.2.1 is no address of this machine"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["--listen", "unix:/nowhere/at.sock"], "cannot listen on unix:/nowhere/at.sock: No such file"),
        (["--wat"], "--wat is not known"),
        (["--prot", "1"], "--prot is not known; did you mean --port?"),
        (["start"], "'start' is no command"),
        (["--store", "mysql://u:secret@x/"], "--store: mysql: is no kind of store: write memory:, sqlite:"),
        (["--exit-when-empty", "soon"], "'soon' is no duration"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, arguments, said):
    assert said in refused(run(*arguments))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lisen: 8000", "gateway.yaml:1: lisen: is not a key here; did you mean listen?"),
        ("routes:\n  /a:\n    open: chat.open", "gateway.yaml:3: routes./a.open: no module named 'chat'"),
    ],
)
def test_a_bad_configuration_is_one_line(run, tmp_path, text, said):
    (tmp_path / "gateway.yaml").write_text(text)
    assert said in refused(run("--config", "gateway.yaml"))


# -- words -----------------------------------------------------------------------------------------


def test_help_is_wide_and_has_examples(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("--config", "--port", "examples:", "python -m gateway --config gateway.yaml", "Ctrl+C"):
        assert word in text


def test_the_version_is_the_one_of_the_distribution(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"gateway {project['version']}\n"


def test_run_app_serves_a_list_of_routes(tmp_path):
    (tmp_path / "app.py").write_text(
        "import gateway\n"
        "chat = gateway.Route('/chat')\n"
        "@chat.on_message\n"
        "def on_message(handler, message): handler.write_message(message)\n"
        "gateway.run_app(routes=[chat], port=0, ready=lambda listen: print(listen.url, flush=True))\n"
    )
    env = {"PYTHONPATH": str(ROOT)}
    with Process([sys.executable, "app.py"], name="app", cwd=tmp_path, env=env) as process:
        url = process.wait_for_output(r"http://\S+")[0]
        assert status(url + "/chat") == 426
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
