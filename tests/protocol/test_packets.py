"""Packets: every type, what is refused, and that a message comes back as it was."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.packets import (
    CLOSE,
    MESSAGE,
    NOOP,
    OPEN,
    PING,
    PONG,
    UPGRADE,
    PacketError,
    decode_polling,
    decode_text,
    encode_polling,
    message,
)

MESSAGES = st.one_of(st.text(), st.binary())


@pytest.mark.parametrize(
    ("wire", "kind", "data"),
    [
        ("0{}", OPEN, "{}"),
        ("1", CLOSE, ""),
        ("2", PING, ""),
        ("2probe", PING, "probe"),
        ("3", PONG, ""),
        ("3probe", PONG, "probe"),
        ("4", MESSAGE, ""),
        ("4hello", MESSAGE, "hello"),
        ("44", MESSAGE, "4"),
        ("4\x1e", MESSAGE, "\x1e"),
        ("5", UPGRADE, ""),
        ("6", NOOP, ""),
    ],
)
def test_text_packets(wire, kind, data):
    assert decode_text(wire) == (kind, data)


@pytest.mark.parametrize("wire", ["", "7", "9", "x", "bAAA", "٤x", "４x", "²", "-1", " 4", "\n4"])
def test_what_is_no_packet_is_refused(wire):
    with pytest.raises(PacketError) as error:
        decode_text(wire)
    assert not wire or wire not in str(error.value), "the input is quoted"


@pytest.mark.parametrize(
    ("wire", "data"), [("b", b""), ("bAQIDBA==", b"\x01\x02\x03\x04"), ("b+/8=", b"\xfb\xff")]
)
def test_binary_in_a_polling_payload(wire, data):
    assert decode_polling(wire) == (MESSAGE, data)
    assert encode_polling(data) == wire


@pytest.mark.parametrize(
    "wire", ["b!!!!", "bAAA", "bA", "b=", "bAQ=", "bAQID BA==", "bAQI\nDBA==", "b-_8=", "bAQ==AQ==", "bé"]
)
def test_base64_is_read_strictly(wire):
    with pytest.raises(PacketError):
        decode_polling(wire)


@pytest.mark.parametrize(
    "text", ["true", "12", " 12", "null", "NaN", '{"a":1,"a":2}', '"abc"', "-1", "[" * 200_000, "1" * 10**6]
)
def test_text_that_looks_like_json_stays_text(text):
    assert decode_polling(encode_polling(message(text))) == (MESSAGE, text)


@given(MESSAGES)
def test_a_message_comes_back_as_it_was(data):
    assert decode_polling(encode_polling(message(data))) == (MESSAGE, data)


@given(st.text())
def test_any_text_is_a_packet_or_a_packet_error(text):
    for decode in (decode_text, decode_polling):
        try:
            decode(text)
        except PacketError:
            continue


def test_a_message_is_a_copy_of_what_may_change():
    data: Any = bytearray(b"ab")
    wire = message(data)
    data[0] = 0
    assert wire == b"ab"
