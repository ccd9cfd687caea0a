"""Payloads: several packets in one body, whole or not at all, and cheap to refuse."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.packets import CLOSE, MESSAGE, PONG, PacketError, message
from gateway.protocol.payloads import can_carry, count_fitting, decode_payload, encode_payload

CARRIED = st.one_of(st.text(st.characters(exclude_characters="\x1e", codec="utf-8")), st.binary())


@pytest.mark.parametrize(
    ("body", "packets"),
    [
        (b"4hello", [(MESSAGE, "hello")]),
        (b"4", [(MESSAGE, "")]),
        (b"4a\x1e4b", [(MESSAGE, "a"), (MESSAGE, "b")]),
        (b"4\x1e4", [(MESSAGE, ""), (MESSAGE, "")]),
        (b"3\x1ebAQID\x1e1", [(PONG, ""), (MESSAGE, b"\x01\x02\x03"), (CLOSE, "")]),
        ("4€\x1e4\ufeff\u2028\0".encode(), [(MESSAGE, "€"), (MESSAGE, "\ufeff\u2028\0")]),
    ],
)
def test_bodies(body, packets):
    assert decode_payload(body) == packets


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x1e",
        b"4a\x1e",
        b"\x1e4a",
        b"4a\x1e\x1e4b",
        b"4one\x1e9\x1e4two",
        b"4one\x1ex\x1e4two",
        b"4one\x1eb!!!!\x1e4two",
        b"d=4hello",
        b"96:0{}",
        b"4\xff",
        b"4\xed\xa0\x80",
        b"4\xc0\x80",
        b"\xef\xbb\xbf4hello",
    ],
)
def test_one_bad_packet_spoils_the_whole_body(body):
    with pytest.raises(PacketError):
        decode_payload(body)


@pytest.mark.parametrize(("packets", "fits"), [(1, True), (3, True), (4, False)])
def test_the_bound_is_on_packets(packets, fits):
    body = b"\x1e".join([b"4"] * packets)
    if fits:
        assert len(decode_payload(body, max_packets=3)) == packets
    else:
        with pytest.raises(PacketError, match="more than 3 packets"):
            decode_payload(body, max_packets=3)


def test_a_thousand_packets_in_one_post():
    texts = [f"message {n}" for n in range(1000)]
    assert decode_payload(encode_payload(map(message, texts)).encode()) == [(MESSAGE, t) for t in texts]


def test_a_body_of_separators_is_counted_before_it_is_split():
    body = b"\x1e" * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(PacketError):
            decode_payload(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(body)


@given(st.lists(CARRIED, min_size=1))
def test_what_goes_in_comes_out(messages):
    packets = [message(data) for data in messages]
    assert all(map(can_carry, packets))
    assert decode_payload(encode_payload(packets).encode()) == [(MESSAGE, data) for data in messages]


@given(st.binary())
def test_any_body_is_packets_or_a_packet_error(body):
    try:
        decode_payload(body)
    except PacketError:
        return


@pytest.mark.parametrize(
    ("packet", "carried"), [("4a", True), ("4\x1e", False), ("4a\x1eb", False), (b"\x1e", True), ("4", True)]
)
def test_what_polling_can_carry(packet, carried):
    assert can_carry(packet) is carried


@given(st.lists(CARRIED, min_size=1), st.integers(0, 60))
def test_as_many_fit_as_there_is_room_for_and_one_at_the_least(packets, room):
    count = count_fitting(packets, room)
    assert count == 1 or len(encode_payload(packets[:count]).encode()) <= room
    assert count == len(packets) or len(encode_payload(packets[: count + 1]).encode()) > room
