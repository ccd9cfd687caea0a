"""Outbox and Inbox: one direction each, against a plain list of all that was ever sent."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.protocol.replay import ACK_AFTER, ACK_BYTES, ACK_FRAMES, Inbox, Outbox, ReplayError


def outbox(*frames: str | bytes) -> Outbox:
    box = Outbox()
    for frame in frames:
        box.add(frame)
    return box


def test_an_ack_forgets_what_it_names():
    box = outbox("a", "bb", b"ccc")
    assert (box.sent, box.size, len(box)) == (3, 6, 3)
    box.acknowledge(2)
    assert (box.sent, box.size, len(box)) == (3, 3, 1)
    assert box.replay() == (b"ccc",)


def test_the_same_ack_again_changes_nothing():
    box = outbox("a", "b")
    box.acknowledge(1)
    box.acknowledge(1)
    assert box.replay() == ("b",)


@pytest.mark.parametrize("count", [-1, 0, 4, 10**16])
def test_an_ack_that_cannot_be(count):
    box = outbox("a", "b", "c")
    box.acknowledge(1)
    with pytest.raises(ReplayError):
        box.acknowledge(count)
    assert box.replay() == ("b", "c"), "a bad ack changes nothing"


def test_a_replay_can_be_repeated():
    box = outbox("a", "b")
    assert box.replay() == box.replay() == ("a", "b")


def test_an_ack_is_due_after_a_second():
    box = Inbox()
    assert box.ack_at is None
    assert not box.add(1, 100.0)
    assert not box.add(1, 100.9)
    assert box.ack_at == 100.0 + ACK_AFTER
    assert box.acknowledged() == 2
    assert box.ack_at is None


def test_an_ack_is_due_after_64_frames():
    box = Inbox()
    assert [box.add(1, 0.0) for _ in range(ACK_FRAMES)] == [False] * (ACK_FRAMES - 1) + [True]
    assert box.acknowledged() == ACK_FRAMES
    assert not box.add(1, 0.0)


def test_an_ack_is_due_after_32_kilobytes():
    box = Inbox()
    assert not box.add(ACK_BYTES - 1, 0.0)
    assert box.add(1, 0.0)
    box.acknowledged()
    assert not box.add(ACK_BYTES - 1, 0.0)


class Sender(RuleBasedStateMachine):
    """An outbox, and a receiver that gets frames, loses connections and acknowledges."""

    def __init__(self) -> None:
        super().__init__()
        self.out = Outbox()
        self.into = Inbox()
        self.sent: list[str | bytes] = []
        self.wire: list[str | bytes] = []
        self.got: list[str | bytes] = []
        self.acked = 0

    @rule(frame=st.binary(max_size=3))
    def send(self, frame):
        self.out.add(frame)
        self.sent.append(frame)
        self.wire.append(frame)

    @precondition(lambda self: self.wire)
    @rule()
    def arrive(self):
        frame = self.wire.pop(0)
        self.into.add(len(frame), 0.0)
        self.got.append(frame)

    @rule()
    def acknowledge(self):
        self.acked = self.into.acknowledged()
        self.out.acknowledge(self.acked)

    @rule()
    def lose_the_connection_and_resume(self):
        self.acked = self.into.received
        self.out.acknowledge(self.acked)
        self.wire = list(self.out.replay())

    @invariant()
    def nothing_is_lost_doubled_or_out_of_order(self):
        assert self.got + self.wire == self.sent
        assert self.out.replay() == tuple(self.sent[self.acked :])
        assert self.out.size == sum(map(len, self.sent[self.acked :]))


TestSender = Sender.TestCase
TestSender.settings = settings(deadline=None, max_examples=50)
