"""The watch that names what blocks the loop."""

import sys
import time

import pytest

from gateway.stalls import LATE, StallWatch, describe


@pytest.fixture
def watch():
    started = StallWatch()
    yield started
    started.stop()


def wait_for(condition) -> bool:
    """Blocks this thread on purpose, with a bound."""
    end = time.monotonic() + 5
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def test_the_blocking_function_is_named_and_then_forgotten(watch):
    assert wait_for(lambda: watch._seen)
    culprit = watch.culprit()
    assert "wait_for" in culprit
    assert "test_stalls.py:" in culprit
    watch.beat()
    assert watch.culprit() == ""


def test_a_loop_that_beats_is_not_suspected(watch):
    end = time.monotonic() + 4 * LATE
    while time.monotonic() < end:
        watch.beat()
        time.sleep(0.02)
    assert watch.culprit() == ""


def test_its_thread_ends_with_it():
    watch = StallWatch()
    watch.stop()
    assert not watch._thread.is_alive()
    watch.stop()


def test_the_application_is_named_before_the_library_that_it_called():
    import json

    seen = []

    class Spy(dict):
        def items(self):
            seen.append(describe(sys._getframe()))
            return super().items()

    def on_message() -> None:
        json.dumps(Spy(a=1), indent=1)

    on_message()
    assert "Spy.items (test_stalls.py:" in seen[0]
