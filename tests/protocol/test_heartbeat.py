"""The heartbeat in plain numbers: interval 10 s, timeout 5 s, begun at 100."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.heartbeat import Heartbeat


@pytest.fixture
def beat() -> Heartbeat:
    return Heartbeat(10.0, 5.0, 100.0)


def test_the_first_ping_is_due_after_the_interval(beat):
    assert beat.deadline == 110.0
    assert not beat.ping_due(109.9)
    assert beat.ping_due(110.0)


def test_a_ping_is_due_once(beat):
    assert beat.ping_due(110.0)
    assert not beat.ping_due(110.0)
    assert not beat.ping_due(1000.0)


def test_a_ping_that_is_sent_late_ends_no_later(beat):
    assert beat.ping_due(110.5)
    assert beat.deadline == 115.0
    assert not beat.expired(114.9)
    assert beat.expired(115.0)


def test_a_ping_that_is_sent_very_late_leaves_most_of_the_timeout(beat):
    assert beat.ping_due(113.0)
    assert beat.deadline == 116.75
    assert not beat.expired(116.5)
    assert beat.expired(116.75)


def test_nobody_expires_who_was_not_asked(beat):
    assert not beat.expired(10_000.0)


def test_a_pong_begins_the_next_interval(beat):
    beat.ping_due(110.0)
    beat.pong(111.0)
    assert beat.deadline == 121.0
    assert not beat.expired(10_000.0)
    assert beat.ping_due(121.0)


def test_a_pong_that_nobody_asked_for_changes_nothing(beat):
    for now in (100.0, 105.0, 109.0):
        beat.pong(now)
    assert beat.deadline == 110.0


def test_a_second_pong_does_not_put_the_next_ping_off(beat):
    beat.ping_due(110.0)
    beat.pong(111.0)
    beat.pong(119.0)
    assert beat.deadline == 121.0


def test_spare_puts_the_end_off_and_never_nearer(beat):
    beat.ping_due(110.0)
    beat.spare(112.0)
    assert beat.deadline == 115.0
    beat.spare(117.0)
    assert beat.deadline == 117.0
    assert not beat.expired(116.9)
    assert beat.expired(117.0)


def test_spare_does_not_delay_a_ping(beat):
    beat.spare(200.0)
    assert beat.ping_due(110.0)


@given(st.lists(st.tuples(st.integers(1, 320), st.booleans()), max_size=50))
def test_the_silent_expire_in_time_and_the_living_never(steps):
    """A client that answers only sometimes is expired exactly when a pong is overdue by the timeout."""
    now, beat, due, asked = 0.0, Heartbeat(10.0, 5.0, 0.0), 10.0, None
    for step, answers in steps:
        now += step / 16  # no rounding
        assert asked is None or beat.expired(now) == (now >= beat.deadline)
        if beat.expired(now):
            assert asked is not None
            expected = max(due + 5.0, asked + 3.75)
            assert beat.deadline == pytest.approx(expected, rel=1e-12)
            return
        if beat.ping_due(now):
            asked = now
        if answers and asked is not None:
            beat.pong(now)
            due, asked = now + 10.0, None
