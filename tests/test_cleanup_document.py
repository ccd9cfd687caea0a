"""What docs/cleanup.md shows is run as it stands there."""

import asyncio
import json
import re
import subprocess
import sys
import time

import pytest
from websockets.sync.client import connect

from gateway.config import Limits, Settings
from gateway.configfile import load
from gateway.hooks import FIRST_WAIT, LAST_WAIT, Hooks, SessionEnd, WebhookHook, signature
from gateway.protocol.reasons import Reason
from gateway.session_store import MemoryStore, Session
from tests.support.parts import ROOT
from tests.support.processes import Process, free_port

TEXT = (ROOT / "docs" / "cleanup.md").read_text(encoding="utf-8")


def blocks(language):
    """The code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_recipe_switches_the_laser_off(gateway_process, tmp_path):
    (tmp_path / "lab.py").write_text(blocks("python")[0])
    running = gateway_process(config=blocks("yaml")[0])
    with connect(f"ws://127.0.0.1:{running.port}/lab?bench=1") as socket:
        socket.send("up")
        assert socket.recv() == "moved up"
        assert (tmp_path / "laser1").read_text() == "on"
    running.wait_for_output("lab.switch_off has cleaned up")
    assert (tmp_path / "laser1").read_text() == "off"


def test_the_three_kinds_load(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", "x")
    monkeypatch.setenv("HOOK_TOKEN", "x")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lab.py").write_text(blocks("python")[0])
    (tmp_path / "gateway.yaml").write_text(blocks("yaml")[1])
    config = load(tmp_path / "gateway.yaml")
    del sys.modules["lab"]
    labels = [hook.label for hook in config.cleanup]
    assert labels == ["lab.switch_off", "webhook:hooks.example.com", "command:touch"]


@pytest.fixture
def receiver(tmp_path):
    """The document's receiver of webhooks, and its port."""
    port = free_port()
    (tmp_path / "receiver.py").write_text(blocks("python")[1].replace("port=8001", f"port={port}"))
    command = [sys.executable, "receiver.py"]
    with Process(command, name="receiver", cwd=tmp_path, env={"HOOK_SECRET": "s3cret"}) as process:
        process.wait_for_port(port)
        yield process, port


async def test_the_receiver_takes_what_the_gateway_signs(receiver):
    process, port = receiver
    for secret, rows in (("s3cret", 0), ("other", 1)):
        store = MemoryStore()
        await store.join("node", 1000)
        url = f"http://127.0.0.1:{port}/session-ended"
        hooks = Hooks([WebhookHook(url, secret=secret, private=True)], store, "node", Settings())
        session = Session("s1")
        await store.add("node", session)
        claim = await store.claim("node", session, "CLIENT_CLOSE")
        assert claim is not None
        await hooks.run(claim)
        await hooks.close(1)
        assert len(await store.rows()) == rows
    await asyncio.to_thread(process.wait_for_output, r"^over: s1 client_close$")


def test_the_receiver_refuses_what_is_old_and_does_what_is_repeated_once(receiver):
    import urllib.error
    import urllib.request

    process, port = receiver
    body = json.dumps({"session": "s1", "reason": "node_lost"}).encode()

    def post(age, **changed):
        timestamp = str(int(time.time() - age))
        headers = {
            "Gateway-Timestamp": timestamp,
            "Gateway-Signature": signature("s3cret", timestamp, body),
            "Idempotency-Key": "s1:hook",
            **changed,
        }
        request = urllib.request.Request(f"http://127.0.0.1:{port}/session-ended", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert post(400) == 403
    assert post(0, **{"Gateway-Signature": "v1=00"}) == 403
    assert post(0) == post(0) == 204
    process.wait_for_output(r"^over: s1 node_lost$")
    assert process.output.count("over:") == 1


def test_the_shell_says_the_same():
    (line,) = [block for block in blocks("sh") if "openssl" in block]
    env = {"timestamp": "1700000000", "body": '{"a":1}', "HOOK_SECRET": "s3cret"}
    done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, check=True)
    expected = signature("s3cret", "1700000000", b'{"a":1}').removeprefix("v1=")
    assert done.stdout.split()[-1] == expected


def test_the_tables_are_complete():
    fields = re.findall(
        r"`(\w+)`", TEXT.partition("## What a hook is given")[2].partition("A command also")[0]
    )
    assert set(SessionEnd.__dataclass_fields__) <= set(fields)
    (reasons,) = re.findall(r"^\| `reason` \| (.*) \|$", TEXT, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", reasons)) <= {reason.name.lower() for reason in Reason}


def test_the_waits_are_those_that_are_promised():
    attempts = Limits().attempts
    hours = sum(min(FIRST_WAIT * 2**number, LAST_WAIT) for number in range(attempts - 1)) / 3600
    assert f"{attempts} attempts take about {hours:.0f} hours" in TEXT
