"""Cleanup hooks of a running gateway: what one of them does to everybody else, which is nothing."""

import time

from websockets.sync.client import connect

LAB = """
import pathlib, time

def on_message(handler, message): handler.write_message(message)

def sleep(end):
    print("sleeps", flush=True)
    time.sleep(60)

async def note(end):
    pathlib.Path("noted").write_text(end.reason)
"""

CONFIG = """
routes:
  /slow: {on_message: lab.on_message, cleanup: lab.sleep}
  /quick: {on_message: lab.on_message, cleanup: lab.note}
timeouts: {drain: 1s}
"""


def leave(count, url):
    """So many browsers come and go."""
    for _ in range(count):
        with connect(url):
            pass


def test_sleeping_hooks_hold_up_no_session_and_no_other_hook(gateway_process, tmp_path):
    (tmp_path / "lab.py").write_text(LAB)
    running = gateway_process(config=CONFIG)
    url = f"ws://127.0.0.1:{running.port}"
    leave(20, f"{url}/slow")
    running.wait_for_output("(?s)(sleeps.*){20}")
    longest = 0.0
    with connect(f"{url}/quick") as socket:
        for _ in range(200):
            before = time.monotonic()
            socket.send("x")
            assert socket.recv(timeout=30) == "x"
            longest = max(longest, time.monotonic() - before)
    assert longest < 5  # one sleep on the loop would make it 60
    running.wait_for_output("lab.note has cleaned up")
    assert (tmp_path / "noted").read_text() == "client_close"


def test_a_stop_ends_in_time_and_the_next_start_cleans_up(gateway_process, tmp_path):
    """With twenty hooks in `time.sleep`, which nothing can stop."""
    (tmp_path / "lab.py").write_text(LAB)
    config = CONFIG + f"store: sqlite://{tmp_path}/lab.sqlite3\n"
    first = gateway_process(config=config)
    leave(20, f"ws://127.0.0.1:{first.port}/slow")
    first.wait_for_output("(?s)(sleeps.*){20}")
    begun = time.monotonic()
    first.stop(timeout=20)
    assert first.popen.returncode == 0
    assert time.monotonic() - begun < 10  # `drain`, and what a busy machine needs
    assert "20 sessions are not cleaned up in time: the next start does" in first.output
    (tmp_path / "lab.py").write_text(LAB.replace("time.sleep(60)", "assert end.attempt == 2"))
    second = gateway_process(config=config)
    second.wait_for_output("(?s)(lab.sleep has cleaned up.*){20}")
