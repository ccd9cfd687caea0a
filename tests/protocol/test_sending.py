"""The sender: parts, turns, what is under way, what goes again, and what is dropped.

The last tests let Hypothesis queue, take, acknowledge, lose and resume in any order.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.protocol import frames
from gateway.protocol.packets import encode_polling, message
from gateway.protocol.receiving import Assembly, ReplayError
from gateway.protocol.sending import (
    PART_BYTES,
    SMALL_BYTES,
    SMALL_TEXT,
    Sender,
    binary_parts,
    text_parts,
)

ALL = 10**9


def data(channel: int, text: str) -> str:
    return f"{frames.channel_text(channel)}:{text}"


def part(channel: int, text: str) -> str:
    return f"{frames.channel_text(channel)}.{text}"


def sender(*wires: str | bytes, channel: int = 1, **bounds: int) -> Sender:
    made = Sender(**bounds)
    for wire in wires:
        made.queue(channel, wire)
    return made


def longest(wire: str | bytes) -> int:
    """Bytes on the wire that needs most."""
    return len(encode_polling(message(wire)).encode())


# -- parts -----------------------------------------------------------------------------------------


def joined(wires: list[Any]) -> str | bytes:
    """What a receiver makes of the frames of one message."""
    assembly = Assembly()
    for wire in wires:
        frame = frames.decode(wire)
        assert isinstance(frame, frames.Data)
        assert frame.channel == 46_655
        assert frame.more is (wire is not wires[-1])
        assembly.add(frame.data, len(frame.data))
    return assembly.message()


@pytest.mark.parametrize("character", ["a", "\\", "\x1e", "é", "€", "😀", "a\x1e\\é€😀"])
@pytest.mark.parametrize("length", [0, 1, SMALL_TEXT, PART_BYTES - 5, PART_BYTES, 200_000])
def test_text_is_cut_at_characters_and_no_frame_is_too_long(character, length):
    text = (character * length)[:length]
    wires = text_parts("zzz", text)
    assert joined(wires) == text
    assert max(map(longest, wires)) <= PART_BYTES
    assert not [wire for wire in wires if "\x1e" in str(wire)]
    if length <= SMALL_TEXT:
        assert len(wires) == 1


def test_long_ascii_text_fills_its_frames():
    wires = text_parts("1", "x" * 1_000_000)
    assert len(wires) == 31
    assert longest(wires[0]) > PART_BYTES - 8


@pytest.mark.parametrize("length", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, 2 * SMALL_BYTES, 200_000])
def test_bytes_are_cut_and_no_frame_is_too_long_as_base64(length):
    body = bytes(range(256)) * (length // 256 + 1)
    wires = binary_parts(frames.binary_prefix(46_655), body[:length])
    assert joined(wires) == body[:length]
    assert max(map(longest, wires)) <= PART_BYTES
    assert len(wires) == max(1, -(-length // SMALL_BYTES))


@given(st.text(st.one_of(st.sampled_from("\x1e\\"), st.characters(codec="utf-8")), max_size=50))
def test_any_text_is_what_it_was(text):
    wires = text_parts("zzz", text * 2_000)
    assert joined(wires) == text * 2_000
    assert max(map(longest, wires)) <= PART_BYTES


def test_parts_of_two_kinds_are_no_message():
    assembly = Assembly()
    assembly.add("a", 1)
    with pytest.raises(frames.FrameError):
        assembly.add(b"b", 1)


# -- numbers, acks and replay ----------------------------------------------------------------------


def test_a_frame_gets_its_number_when_it_is_written():
    out = sender("1:a", "1:b")
    assert (out.sent, out.count, out.size) == (0, 2, 6)
    assert out.take(1) == ["1:a"]
    assert (out.sent, out.acked, out.count) == (1, 0, 2)
    out.acknowledge(1)
    assert (out.sent, out.acked, out.count, out.size) == (1, 1, 1, 3)


def test_what_is_written_as_it_comes_is_kept_like_the_rest():
    out = Sender()
    assert out.is_idle
    out.write("1:a")
    assert out.is_idle
    assert out.take(ALL) == []
    out.rewind()
    assert not out.is_idle
    assert out.take(ALL) == ["1:a"]


def test_a_replay_comes_before_what_waits_and_in_small_steps():
    out = sender("1:a", "1:b", "1:c")
    assert out.take(6) == ["1:a", "1:b"]
    out.rewind()
    assert out.take(1) == ["1:a"]
    assert out.take(ALL) == ["1:b", "1:c"]
    assert out.sent == 3


@pytest.mark.parametrize("count", [-1, 0, 4, 10**16])
def test_an_ack_that_cannot_be(count):
    out = sender("1:a", "1:b", "1:c")
    out.take(ALL)
    out.acknowledge(1)
    with pytest.raises(ReplayError):
        out.acknowledge(count)
    out.rewind()
    assert out.take(ALL) == ["1:b", "1:c"], "a bad ack changes nothing"


def test_what_waits_cannot_be_acknowledged():
    out = sender("1:a", "1:b")
    out.take(1)
    with pytest.raises(ReplayError):
        out.acknowledge(2)


def test_no_more_is_under_way_than_the_window():
    out = sender(*(data(1, "x" * 98) for _ in range(20)), under_way=1000)
    assert len(out.take(ALL)) == 10
    assert not out.is_idle
    assert out.take(ALL) == []
    out.acknowledge(3)
    assert len(out.take(ALL)) == 3


def test_no_more_frames_are_under_way_than_the_window():
    out = sender(*(data(1, str(n)) for n in range(9)), frames_under_way=4)
    assert len(out.take(ALL)) == 4
    out.acknowledge(1)
    assert out.take(ALL) == ["1:4"]


def test_export_numbers_what_waits_and_another_goes_on():
    out = sender("1:a", "1:b", under_way=1)
    out.take(ALL)
    out.queue(2, b"\x02x")
    out.queue_first("G1{}")
    sent, kept = out.export()
    assert (sent, kept) == (4, ("1:a", "G1{}", "1:b", b"\x02x"))
    other = Sender()
    other.restore(sent, kept)
    assert (other.sent, other.acked, other.size) == (4, 0, out.size)
    other.acknowledge(1)
    other.rewind()
    assert other.take(ALL) == ["G1{}", "1:b", b"\x02x"]


def test_the_rest_is_what_this_connection_has_not_carried():
    out = sender("1:a", "1:b", "1:c", under_way=1)
    out.take(ALL)
    assert out.rest() == ["1:b", "1:c"]
    out.rewind()
    assert out.take(1) == ["1:a"]
    assert out.rest() == ["1:b", "1:c"]


# -- turns -----------------------------------------------------------------------------------------


def test_a_long_message_lets_others_between_its_parts():
    out = Sender()
    out.queue(1, *text_parts("1", "x" * 1_000_000))
    assert len(out.take(1)) == 1
    out.queue(2, "2:now")
    assert "2:now" in out.take(2 * PART_BYTES)


def test_lanes_take_turns_by_bytes_not_by_frames():
    out = Sender(under_way=ALL)
    for _ in range(1000):
        out.queue(1, data(1, "x" * 98))
    for _ in range(20):
        out.queue(2, data(2, "y" * 32_000))
    order = "".join(str(wire)[0] for wire in out.take(ALL))
    runs = order.rstrip("2").split("2")
    assert {len(run) for run in runs[:-1]} == {164}, "16 kB of small ones, then one large one"


def test_an_urgent_frame_waits_for_no_lane():
    out = sender(*text_parts("1", "x" * 100_000))
    out.take(1)
    out.queue_first("G1{}")
    assert out.take(1) == ["G1{}"]
    idle = Sender()
    idle.queue_first("G1{}")
    assert not idle.is_idle


def test_a_held_lane_waits_and_keeps_nobody_from_writing():
    out = Sender()
    out.queue(1, "1:early", hold=True)
    out.queue(1, "1:too")
    assert out.is_idle
    assert not out.is_waiting
    assert out.take(ALL) == []
    out.release(1, "A1{}")
    assert out.take(ALL) == ["A1{}", "1:early", "1:too"]
    assert not out.waits(1)


def test_releasing_what_was_never_held_sends_the_frame():
    out = Sender()
    out.release(1, "A1{}")
    assert out.take(ALL) == ["A1{}"]


# -- drops -----------------------------------------------------------------------------------------


def test_the_oldest_goes_and_a_mark_stands_there():
    out = sender("A1{}", "1:a", "1:b", "1:c")
    assert out.drop_oldest(1)
    assert out.drop_oldest(1)
    assert out.take(ALL) == ["A1{}", 'D1{"messages":2}', "1:c"]
    assert (out.count, out.sent) == (3, 3)
    out.acknowledge(3)
    assert (out.size, out.count) == (0, 0)


def test_a_message_is_dropped_with_all_its_parts():
    out = sender()
    out.queue(1, part(1, "a"), part(1, "b"), data(1, "c"))
    out.queue(1, b"\x00\x01a", b"\x01b")
    out.queue(1, data(1, "d"))
    assert out.drop_oldest(1)
    assert out.drop_oldest(1)
    assert out.take(ALL) == ['D1{"messages":2}', "1:d"]


def test_a_message_that_has_been_begun_is_finished():
    out = sender()
    out.queue(1, part(1, "a"), part(1, "b"), data(1, "c"))
    out.queue(1, data(1, "d"))
    out.queue(1, data(1, "e"))
    assert out.take(1) == ["1.a"]
    assert out.drop_oldest(1)
    assert out.take(ALL) == ["1.b", "1:c", 'D1{"messages":1}', "1:e"]


def test_there_is_nothing_to_drop():
    out = sender("1:a")
    assert not out.drop_oldest(2)
    assert out.drop_oldest(1)
    assert not out.drop_oldest(1)
    out.queue(2, part(2, "a"), data(2, "b"))
    out.take(1)
    out.take(1)
    assert not out.drop_oldest(2), "it has been begun"


def test_a_drop_after_a_mark_that_was_written_gets_a_mark_of_its_own():
    out = sender("1:a", "1:b", "1:c")
    out.drop_oldest(1)
    assert out.take(1) == ['D1{"messages":1}']
    out.drop_oldest(1)
    assert out.take(ALL) == ['D1{"messages":1}', "1:c"]


def test_what_was_dropped_before_it_was_queued_has_a_mark_at_the_end():
    out = sender()
    out.queue(1, part(1, "a"), data(1, "b"))
    out.take(1)
    out.note_dropped(1)
    out.note_dropped(1)
    out.queue(1, "1:c")
    assert out.take(ALL) == ["1:b", 'D1{"messages":2}', "1:c"]


def test_a_channel_can_be_forgotten_or_only_its_messages():
    out = sender("A1{}", "1:a", "C1{}")
    out.queue(2, "2:a")
    out.discard(2)
    out.discard_messages(1)
    out.discard_messages(9)
    out.discard(9)
    assert out.take(ALL) == ["A1{}", "C1{}"]
    out.acknowledge(2)
    assert (out.size, out.count) == (0, 0)


def test_the_excess_is_what_waits_behind_the_next_message():
    out = sender("1:a")
    out.queue(2, part(2, "xxxx"), data(2, "xxxx"))
    assert (out.excess(1), out.excess(2), out.excess(3)) == (0, 0, 0)
    out.queue(1, "1:bbb")
    assert out.excess(1) == 5


# -- any order -------------------------------------------------------------------------------------

CHANNELS = st.integers(1, 3)


class Session(RuleBasedStateMachine):
    """A sender, a network that loses connections, and a client that puts messages together again."""

    def __init__(self) -> None:
        super().__init__()
        self.out = Sender(under_way=40, frames_under_way=12)
        self.serial = 0
        self.queued: dict[int, list[str]] = {1: [], 2: [], 3: []}
        self.got: dict[int, list[str]] = {1: [], 2: [], 3: []}
        self.gaps = dict.fromkeys((1, 2, 3), 0)
        self.dropped = dict.fromkeys((1, 2, 3), 0)
        self.open: dict[int, str] = {}
        self.wire: list[str | bytes] = []
        self.received = 0

    def _text(self, channel: int, length: int) -> str:
        self.serial += 1
        text = f"{self.serial}".rjust(length, "-")
        self.queued[channel].append(text)
        return text

    @rule(channel=CHANNELS, parts=st.integers(1, 4))
    def send(self, channel, parts):
        text = self._text(channel, parts * 3)
        cut = [text[at : at + 3] for at in range(0, len(text), 3)]
        if len(cut) == 1 and self.out.is_idle:
            wire = data(channel, text)
            self.out.write(wire)
            self.wire.append(wire)
            return
        self.out.queue(channel, *(part(channel, each) for each in cut[:-1]), data(channel, cut[-1]))

    @rule(budget=st.integers(0, 60))
    def take(self, budget):
        self.wire += self.out.take(budget)

    @rule(channel=CHANNELS)
    def drop(self, channel):
        self.dropped[channel] += self.out.drop_oldest(channel)

    @rule()
    def grant(self):
        self.out.queue_first('G1{"bytes":1}')

    @precondition(lambda self: self.wire)
    @rule()
    def arrive(self):
        self._receive(self.wire.pop(0))

    @rule()
    def acknowledge(self):
        self.out.acknowledge(self.received)

    @rule()
    def lose_the_connection_and_resume(self):
        self.wire.clear()
        self.out.acknowledge(self.received)
        self.out.rewind()

    @rule()
    def go_on_in_another_process(self):
        self.wire.clear()
        sent, kept = self.out.export()
        self.out = Sender(under_way=40, frames_under_way=12)
        self.out.restore(sent, kept)
        self.out.acknowledge(self.received)

    def _receive(self, wire: Any) -> None:
        self.received += 1
        frame = frames.decode(wire)
        if isinstance(frame, frames.Dropped):
            assert frame.channel not in self.open, "between the parts of a message"
            self.gaps[frame.channel] += frame.messages
        elif isinstance(frame, frames.Data):
            whole = self.open.pop(frame.channel, "") + str(frame.data)
            if frame.more:
                self.open[frame.channel] = whole
            else:
                self.got[frame.channel].append(whole)

    @invariant()
    def nothing_is_doubled_or_out_of_order_and_every_gap_is_told(self):
        for channel, got in self.got.items():
            queued = iter(self.queued[channel])
            assert all(text in queued for text in got), "a subsequence of what was queued"
            assert self.gaps[channel] <= self.dropped[channel]
            lacking = self.queued[channel].index(got[-1]) + 1 - len(got) if got else 0
            assert lacking == self.gaps[channel] or not got or lacking < self.gaps[channel]

    @invariant()
    def the_sums_are_right(self):
        if not self.out.is_waiting:
            assert self.out.count == self.out.sent - self.out.acked
        assert self.out.size >= 0

    def teardown(self):
        """At rest everything has arrived, or its loss was told."""
        self.lose_the_connection_and_resume()
        while batch := self.out.take(50):
            for wire in batch:
                self._receive(wire)
            self.out.acknowledge(self.received)
        assert (self.out.size, self.out.count) == (0, 0)
        assert not self.open
        assert self.gaps == self.dropped
        for channel, got in self.got.items():
            assert len(got) + self.gaps[channel] == len(self.queued[channel])


TestSession = Session.TestCase
TestSession.settings = settings(deadline=None, max_examples=100)
