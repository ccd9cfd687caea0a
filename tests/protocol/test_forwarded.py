"""Who is believed about whom, behind proxies. B90 and B91 of the list of bad inputs, and chains."""

import pytest
from multidict import CIMultiDict

from gateway.protocol.forwarded import Peer, parse_networks, read_peer

PROXY = "10.0.0.1"
HEADERS = {
    "Host": "inside:8000",
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "chat.example",
}


def read(peer=PROXY, headers=None, trusted=("10.0.0.0/8",)):
    return read_peer(peer, "http", CIMultiDict(headers or HEADERS), parse_networks(trusted))


def test_b90_a_stranger_is_not_believed():
    assert read(peer="198.51.100.9") == Peer("198.51.100.9", "http", "inside:8000")


def test_b90_nobody_is_believed_by_default():
    assert read(trusted=()) == Peer(PROXY, "http", "inside:8000")


def test_a_trusted_proxy_is_believed():
    assert read() == Peer("203.0.113.7", "https", "chat.example")


def test_a_trusted_proxy_that_says_nothing():
    assert read(headers={"Host": "inside:8000"}) == Peer(PROXY, "http", "inside:8000")


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("1.2.3.4, 203.0.113.7", "203.0.113.7"),
        ("1.2.3.4, 203.0.113.7, 10.0.0.2", "203.0.113.7"),
        ("1.2.3.4,203.0.113.7,10.0.0.2,10.0.0.3", "203.0.113.7"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("unknown, 10.0.0.2", "10.0.0.2"),
        ("203.0.113.7, evil", PROXY),
        ("", PROXY),
        (",", PROXY),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("10.0.0.9\r\nX: y", PROXY),
        ("1.2.3.4, 203.0.113.7:50123", "203.0.113.7"),
        ("203.0.113.7:50123, 10.0.0.2:443", "203.0.113.7"),
        ("[2001:db8::7]:50123", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
    ],
)
def test_of_a_chain_the_last_that_is_not_trusted_is_the_browser(chain, address):
    assert read(headers={**HEADERS, "X-Forwarded-For": chain}).address == address


def test_a_proxy_that_adds_a_line_of_its_own_is_believed_and_not_the_line_before():
    headers = CIMultiDict(HEADERS)
    headers["X-Forwarded-For"] = "1.2.3.4"
    headers.add("X-Forwarded-For", "203.0.113.7")
    assert read(headers=headers).address == "203.0.113.7"


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [("https", "https"), ("HTTPS", "https"), ("http", "http"), ("wss", "http"), ("javascript", "http"),
     ("https, http", "http"), ("", "http")],
)  # fmt: skip
def test_the_scheme_is_http_or_https(proto, scheme):
    assert read(headers={**HEADERS, "X-Forwarded-Proto": proto}).scheme == scheme


@pytest.mark.parametrize("value", ['for="evil\r\nX: y";host=evil', "for=1.2.3.4;proto=https;host=evil"])
def test_b91_the_forwarded_header_is_not_read(value):
    assert read(headers={"Host": "inside", "Forwarded": value}) == Peer(PROXY, "http", "inside")


def test_an_ipv4_proxy_on_an_ipv6_socket_is_the_same_machine():
    assert read(peer="::ffff:10.0.0.1").address == "203.0.113.7"


@pytest.mark.parametrize("peer", ["", "unknown", "fe80::1%eth0"])
def test_an_address_that_is_none_is_trusted_by_nobody(peer):
    assert read(peer=peer).host == "inside:8000"


def test_networks():
    assert parse_networks(["10.1.2.3/8", " ::1 "]) == parse_networks(["10.0.0.0/8", "::1/128"])
    with pytest.raises(ValueError, match=r"nginx\.internal"):
        parse_networks(["nginx.internal"])
