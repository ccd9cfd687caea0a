"""Counting what comes, and when an ack is due."""

from gateway.protocol.receiving import ACK_AFTER, ACK_BYTES, ACK_FRAMES, Inbox


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
