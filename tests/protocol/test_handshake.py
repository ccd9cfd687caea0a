"""Which requests Engine.IO v4 allows. The names of the rows (B1 …) are those of the list of bad inputs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.handshake import (
    POLLING,
    WEBSOCKET,
    Code,
    Query,
    Refused,
    open_packet,
    read_query,
)

SID = "abcDEF-_09"
EIO4 = ("EIO", "4")
POLL = ("transport", "polling")
SOCKET = ("transport", "websocket")
WITH_SID = ("sid", SID)


def read(method, *pairs, upgrade=False, transports=(POLLING, WEBSOCKET), numbered=False):
    return read_query(method, pairs, upgrade=upgrade, transports=transports, numbered=numbered)


@pytest.mark.parametrize(
    ("method", "pairs", "upgrade", "query"),
    [
        ("GET", [EIO4, POLL], False, Query(POLLING, None)),
        ("GET", [EIO4, POLL, ("t", "a"), ("t", "b"), ("x", "")], False, Query(POLLING, None)),
        ("GET", [EIO4, SOCKET], True, Query(WEBSOCKET, None)),
        ("GET", [EIO4, POLL, WITH_SID], False, Query(POLLING, SID)),
        ("POST", [EIO4, POLL, WITH_SID], False, Query(POLLING, SID)),
        ("POST", [POLL, WITH_SID], False, Query(POLLING, SID)),
        ("GET", [EIO4, SOCKET, WITH_SID], True, Query(WEBSOCKET, SID)),
    ],
)
def test_good_requests(method, pairs, upgrade, query):
    assert read(method, *pairs, upgrade=upgrade) == query


BAD = [
    ("B1-no-EIO", "GET", [POLL], False, Code.VERSION),
    ("B1-no-EIO-websocket", "GET", [SOCKET], True, Code.VERSION),
    ("B2-EIO-3", "GET", [("EIO", "3"), POLL], False, Code.VERSION),
    ("B2-EIO-5", "GET", [("EIO", "5"), POLL], False, Code.VERSION),
    ("B2-EIO-abc", "GET", [("EIO", "abc"), POLL], False, Code.VERSION),
    ("B2-EIO-empty", "GET", [("EIO", ""), POLL], False, Code.VERSION),
    ("B2-EIO-full-width", "GET", [("EIO", "４"), POLL], False, Code.VERSION),
    ("B2-EIO-04", "GET", [("EIO", "04"), POLL], False, Code.VERSION),
    ("B3-EIO-twice", "GET", [EIO4, EIO4, POLL], False, Code.BAD_REQUEST),
    ("B3-transport-twice", "GET", [EIO4, POLL, SOCKET], False, Code.BAD_REQUEST),
    ("B4-transport-abc", "GET", [EIO4, ("transport", "abc")], False, Code.TRANSPORT),
    ("B4-transport-case", "GET", [EIO4, ("transport", "Polling")], False, Code.TRANSPORT),
    ("B4-webtransport", "GET", [EIO4, ("transport", "webtransport")], False, Code.TRANSPORT),
    ("B5-no-transport", "GET", [EIO4], False, Code.TRANSPORT),
    ("B5-nothing", "GET", [], False, Code.TRANSPORT),
    ("B7-sid-empty", "GET", [EIO4, POLL, ("sid", "")], False, Code.SESSION),
    ("B7-sid-10-kB", "GET", [EIO4, POLL, ("sid", "a" * 10_240)], False, Code.SESSION),
    ("B7-sid-NUL", "GET", [EIO4, POLL, ("sid", "\0")], False, Code.SESSION),
    ("B7-sid-CRLF", "GET", [EIO4, POLL, ("sid", "a\r\nb")], False, Code.SESSION),
    ("B7-sid-trailing-LF", "GET", [EIO4, POLL, ("sid", SID + "\n")], False, Code.SESSION),
    ("B7-sid-not-UTF-8", "GET", [EIO4, POLL, ("sid", "\udcff")], False, Code.SESSION),
    ("B8-two-sids", "GET", [EIO4, POLL, WITH_SID, WITH_SID], False, Code.BAD_REQUEST),
    ("B9-EIO-of-an-upgrade", "GET", [("EIO", "3"), SOCKET, WITH_SID], True, Code.VERSION),
    *[
        (f"B10-{method}", method, [EIO4, POLL, WITH_SID], False, Code.METHOD)
        for method in ("PUT", "DELETE", "HEAD", "TRACE", "PATCH", "CONNECT", "get", "")
    ],
    ("B10-POST-handshake", "POST", [EIO4, POLL], False, Code.METHOD),
    ("B10-POST-websocket", "POST", [EIO4, SOCKET, WITH_SID], True, Code.METHOD),
    ("B11-JSONP", "GET", [EIO4, POLL, ("j", "0")], False, Code.BAD_REQUEST),
    ("B16-no-upgrade", "GET", [EIO4, SOCKET], False, Code.BAD_REQUEST),
    ("B16-no-upgrade-sid", "GET", [EIO4, SOCKET, WITH_SID], False, Code.BAD_REQUEST),
    ("B17-polling-upgrade", "GET", [EIO4, POLL], True, Code.BAD_REQUEST),
    ("B17-polling-upgrade-sid", "GET", [EIO4, POLL, WITH_SID], True, Code.BAD_REQUEST),
]


@pytest.mark.parametrize(
    ("method", "pairs", "upgrade", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_bad_requests(method, pairs, upgrade, code):
    with pytest.raises(Refused) as refused:
        read(method, *pairs, upgrade=upgrade)
    assert (refused.value.code, refused.value.status) == (code.value[0], 400)


def test_b18_a_transport_that_is_switched_off_is_unknown():
    with pytest.raises(Refused) as refused:
        read("GET", EIO4, SOCKET, upgrade=True, transports=(POLLING,))
    assert refused.value.code == Code.TRANSPORT.value[0]


OURS = [("n", "12"), ("hold", "4500"), ("max", "48000")]


def test_what_our_own_client_adds_is_read_at_our_own_endpoint_alone():
    asked = [EIO4, POLL, WITH_SID, *OURS]
    assert read("GET", *asked, numbered=True) == Query(POLLING, SID, 12, 4.5, 48_000)
    assert read("GET", *asked) == Query(POLLING, SID)
    assert read("POST", POLL, WITH_SID, ("n", "1"), numbered=True) == Query(POLLING, SID, 1)
    part = [("n", "1"), ("skip", "3"), ("more", "1")]
    assert read("POST", POLL, WITH_SID, *part, numbered=True) == Query(POLLING, SID, 1, skip=3, more=True)
    assert read("GET", POLL, WITH_SID, ("hold", "0"), numbered=True).hold == 0.0


@pytest.mark.parametrize("name", ["n", "hold", "max", "skip", "more"])
@pytest.mark.parametrize("value", ["", "x", "-1", "+1", " 1", "1.5", "01", "1e3", "٤", "9" * 16, "\0"])
def test_bad_numbers_are_refused_at_our_own_endpoint_alone(name, value):
    with pytest.raises(Refused) as refused:
        read("GET", EIO4, POLL, WITH_SID, (name, value), numbered=True)
    assert (refused.value.code, refused.value.status) == (3, 400)
    assert read("GET", EIO4, POLL, WITH_SID, (name, value)) == Query(POLLING, SID)


@pytest.mark.parametrize("pairs", [[("n", "0")], [("max", "0")], [("n", "1"), ("n", "2")]])
def test_numbers_from_1_on_and_one_of_each(pairs):
    with pytest.raises(Refused) as refused:
        read("GET", EIO4, POLL, WITH_SID, *pairs, numbered=True)
    assert refused.value.code == Code.BAD_REQUEST.value[0]
    assert read("GET", EIO4, POLL, WITH_SID, *pairs) == Query(POLLING, SID)


FLAG = st.booleans()
NAMES = st.one_of(st.sampled_from(["EIO", "transport", "sid", "j", "t", "n", "max"]), st.text(max_size=5))
VALUES = st.one_of(st.sampled_from(["4", "polling", "websocket", SID]), st.text(max_size=5))


@given(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.lists(st.tuples(NAMES, VALUES), max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_any_query_is_read_or_refused_without_being_quoted(method, pairs, upgrade, numbered):
    try:
        query = read_query(method, pairs, upgrade=upgrade, numbered=numbered)
    except Refused as error:
        refused = error
    else:
        assert dict(pairs)["transport"] == query.transport
        assert dict(pairs).get("sid") == query.sid
        return
    assert json.loads(refused.body) == {"code": refused.code, "message": refused.message}
    assert refused.status == 400


def test_a_refusal_does_not_quote_the_request():
    mark = "<script>mark</script>"
    for pairs in ([("transport", mark)], [POLL, ("EIO", mark)], [EIO4, POLL, ("sid", mark + " ")]):
        with pytest.raises(Refused) as refused:
            read("GET", *pairs)
        assert "mark" not in refused.value.body


def test_codes_are_those_of_engine_io():
    assert [code.value[:2] for code in Code] == [
        (0, "Transport unknown"),
        (1, "Session ID unknown"),
        (2, "Bad handshake method"),
        (3, "Bad request"),
        (4, "Forbidden"),
        (5, "Unsupported protocol version"),
    ]


@pytest.mark.parametrize(
    ("seconds", "ms"), [(25, 25_000), (0.3, 300), (2.5, 2_500), (0.0005, 0), (1.1, 1_100)]
)
def test_seconds_are_told_in_milliseconds(seconds, ms):
    packet = open_packet("s", upgrades=["websocket"], interval=seconds, timeout=seconds, max_payload=7)
    assert packet[0] == "0"
    assert json.loads(packet[1:]) == {
        "sid": "s",
        "upgrades": ["websocket"],
        "pingInterval": ms,
        "pingTimeout": ms,
        "maxPayload": 7,
    }
