"""Frames of the session protocol: the shared vectors byte for byte, then anything that Hypothesis makes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import frames as f

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "session_frames.json").read_text("utf-8"))


def wire(vector: dict[str, Any]) -> str | bytes:
    return bytes.fromhex(vector["hex"]) if "hex" in vector else vector["frame"]


def value(vector: dict[str, Any]) -> f.Frame:
    """What a vector says, as a value."""
    fields = dict(vector.get("fields", {}))
    channel = vector.get("channel", 0)
    match vector["kind"]:
        case "hello":
            del fields["v"]
            return f.Hello(f.Resume(**fields) if fields else None)
        case "welcome":
            return f.Welcome(**fields)
        case "ack":
            return f.Ack(vector["count"])
        case "bye":
            return f.Bye()
        case "end":
            return f.End(**fields)
        case "open":
            return f.Open(channel, fields["url"], tuple(fields["protocols"]))
        case "accept":
            return f.Accept(channel, **fields)
        case "refuse":
            return f.Refuse(channel, **fields)
        case "close":
            return f.Close(channel, **fields)
        case "text":
            return f.Data(channel, vector["text"], vector.get("more", False))
        case "binary":
            return f.Data(channel, bytes.fromhex(vector["data"]), vector.get("more", False))
        case "grant":
            return f.Grant(channel, **fields)
        case "dropped":
            return f.Dropped(channel, **fields)
    raise AssertionError(vector)


def named(vector: dict[str, Any]) -> str:
    return vector.get("why") or ascii(vector.get("frame") or vector.get("hex"))[:40]


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=named)
def test_a_vector_is_read(vector):
    assert f.decode(wire(vector)) == value(vector)


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=named)
def test_a_vector_is_written_byte_for_byte(vector):
    assert f.encode(value(vector)) == wire(vector)


@pytest.mark.parametrize("vector", VECTORS["bad"], ids=named)
def test_a_bad_vector_is_refused(vector):
    with pytest.raises(f.FrameError):
        f.decode(wire(vector))


@pytest.mark.parametrize(
    "frame",
    [
        'H{"v":2}',
        'H{"v":"1"}',
        'H{"v":1.0}',
        'H{"v":true}',
        'H{"v":1}x',
        'H{"v":1,"received":1}',
        'H{"v":1,"session":"s","token":"t","epoch":"e","received":1e3}',
        'H{"v":1,"session":"s","token":"t","epoch":"e","received":10000000000000000}',
        "H[]",
        "H",
        "Hnull",
        "B ",
        "+1 ",
        "+1\n",
        "X{}",
        'X{"code":999,"reason":"","retry":true}',
        'X{"code":1000,"reason":"","retry":1}',
        'O1{"url":"/"}',
        'O1{"url":"/","protocols":null}',
        'O0{"url":"/","protocols":[]}',
        'O{"url":"/","protocols":[]}',
        'Ozzzz{"url":"/","protocols":[]}',
        'O1 {"url":"","protocols":[]}',
        "A1{}",
        'A1{"protocol":null}',
        'R1{"status":"404","reason":""}',
        'R1{"status":-1,"reason":""}',
        'C1{"code":true}',
        'C1{"code":1000,"reason":null}',
        'C1{"code":1000,"reason":"' + "\u20ac" * 42 + '"}',
        'O1{"url":"/' + "x" * 16_384 + '","protocols":[]}',
        'C1{"code":' + "1" * 5_000 + "}",
        "1",
        "zzzz:x",
        "-1:x",
        "\u0661:x",
        " 1:x",
    ],
)
def test_more_bad_frames(frame):
    with pytest.raises(f.FrameError) as error:
        f.decode(frame)
    assert len(str(error.value)) < 80, "the frame is not quoted"


@pytest.mark.parametrize(
    ("frame", "read"),
    [
        ('H{"v":1,"later":[{}]}', f.Hello()),
        ('O1{"protocols":[],"x":1,"url":"/"}', f.Open(1, "/")),
        ('C1{"code":1000,"x":1}', f.Close(1, 1000)),
        ('A1 { "protocol" : "p" } ', f.Accept(1, "p")),
    ],
)
def test_what_a_receiver_does_not_know_is_ignored(frame, read):
    assert f.decode(frame) == read


CHANNEL = st.integers(1, f.LAST_CHANNEL)
TEXT = st.text(st.one_of(st.sampled_from("\x1e\\e:;b"), st.characters(codec="utf-8")))
COUNT = st.integers(0, 10**16 - 1)
REASON = TEXT.filter(lambda text: len(text.encode()) <= 123)
FRAMES = st.one_of(
    st.builds(
        f.Hello, st.one_of(st.none(), st.builds(f.Resume, TEXT, TEXT, TEXT, st.one_of(st.none(), COUNT)))
    ),
    st.builds(f.Welcome, TEXT, TEXT, TEXT, st.booleans(), COUNT, COUNT, COUNT, COUNT),
    st.builds(f.Ack, COUNT),
    st.builds(f.Bye),
    st.builds(f.End, st.integers(1000, 65535), TEXT, st.booleans()),
    st.builds(f.Open, CHANNEL, TEXT.map("/".__add__), st.lists(TEXT, max_size=3).map(tuple)),
    st.builds(f.Accept, CHANNEL, TEXT),
    st.builds(f.Refuse, CHANNEL, COUNT, TEXT),
    st.builds(f.Close, CHANNEL),
    st.builds(f.Close, CHANNEL, st.integers(1000, 65535), REASON),
    st.builds(f.Data, CHANNEL, st.one_of(TEXT, st.binary()), st.booleans()),
    st.builds(f.Grant, CHANNEL, COUNT),
    st.builds(f.Dropped, CHANNEL, COUNT),
)


@given(FRAMES)
def test_what_goes_in_comes_out(frame):
    assert f.decode(f.encode(frame)) == frame


@given(FRAMES)
def test_no_frame_would_split_a_polling_payload(frame):
    encoded = f.encode(frame)
    assert isinstance(encoded, bytes) or "\x1e" not in encoded


@given(CHANNEL, st.text(st.characters(codec="utf-8", exclude_characters="\x1e")), st.binary())
def test_a_data_frame_costs_four_bytes_at_most(channel, text, data):
    for more in (False, True):
        frame = f.encode(f.Data(channel, text, more))
        assert isinstance(frame, str)
        assert len(frame.encode()) <= len(text.encode()) + 4
        assert len(f.encode(f.Data(channel, data, more))) <= len(data) + 4


@given(st.one_of(st.text(), st.binary(), FRAMES.map(f.encode).map(lambda frame: frame[:-1])))
def test_anything_is_a_frame_or_a_frame_error(data):
    try:
        frame = f.decode(data)
    except f.FrameError:
        return
    assert f.decode(f.encode(frame)) == frame


@given(CHANNEL)
def test_channel_numbers_are_base_36(channel):
    assert int(f.channel_text(channel), 36) == channel
