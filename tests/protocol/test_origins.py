"""Origins: compared part by part. Rows named B82 … are those of the list of bad inputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.origins import (
    Origin,
    OriginPolicy,
    own_origin,
    parse_origin,
    split_host,
)

OWN = Origin("https", "good.com", 443)

# Origins that are not https://good.com, however they may look.
STRANGERS = {
    "B82-null": "null",
    "B82-empty": "",
    "B83-good-as-prefix": "https://good.com.evil.com",
    "B83-good-as-suffix": "https://evilgood.com",
    "B83-subdomain": "https://a.good.com",
    "B84-other-port": "https://good.com:444",
    "B85-dot-is-a-dot": "https://goodXcom",
    "B86-other-scheme": "http://good.com",
    "B86-websocket-scheme": "wss://good.com",
    "B86-no-scheme": "good.com",
    "B86-no-scheme-slashes": "//good.com",
    "B87-user-info": "https://good.com@evil.com",
    "B87-user-info-good": "https://evil.com@good.com",
    "path": "https://good.com/",
    "query": "https://good.com?x",
    "fragment": "https://good.com#x",
    "two": "https://good.com, https://good.com",
    "two-spaced": "https://good.com https://evil.com",
    "leading-space": " https://good.com",
    "trailing-space": "https://good.com ",
    "newline": "https://good.com\n",
    "NUL": "https://good.com\0",
    "port-0": "https://good.com:0",
    "port-65536": "https://good.com:65979",
    "port-empty": "https://good.com:",
    "port-signed": "https://good.com:+443",
    "port-arabic": "https://good.com:٤٤٣",
    "port-long": "https://good.com:000443",
    "backslash": "https://good.com\\evil.com",
    "percent": "https://good.com%2eevil.com",
    "star": "*",
    "star-host": "https://*",
    "dotless-i": "https://good.\u0131com",
}

SAME = {
    "plain": "https://good.com",
    "default-port": "https://good.com:443",
    "B88-upper-case": "https://GOOD.Com",
    "B88-scheme-case": "HTTPS://good.com",
    "B88-trailing-dot": "https://good.com.",
    "B88-trailing-dot-and-port": "https://good.com.:443",
}


@pytest.mark.parametrize("text", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize(
    "policy", [OriginPolicy(), OriginPolicy(["https://good.com"])], ids=["same-origin", "listed"]
)
def test_strangers_are_refused(policy, text):
    assert not policy.allows(text, OWN)


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
@pytest.mark.parametrize(
    "policy", [OriginPolicy(), OriginPolicy(["https://good.com"])], ids=["same-origin", "listed"]
)
def test_the_same_origin_in_other_spellings(policy, text):
    assert policy.allows(text, OWN)


@pytest.mark.parametrize(
    ("entry", "origin", "allowed"),
    [
        ("good.com", "https://good.com", True),
        ("good.com", "http://good.com", True),
        ("good.com", "http://good.com:8080", True),
        ("good.com", "https://a.good.com", False),
        ("good.com", "https://good.com.evil.com", False),
        ("good.com:8080", "http://good.com:8080", True),
        ("good.com:8080", "http://good.com", False),
        ("GOOD.com.", "http://good.com", True),
        ("https://good.com:444", "https://good.com:444", True),
        ("https://good.com:444", "https://good.com", False),
        ("https://good.com", "https://good.com:443", True),
        ("https://good.com", "http://good.com", False),
        ("http://good.com:443", "https://good.com", False),
        ("*.good.com", "https://a.good.com", True),
        ("*.good.com", "http://a.b.good.com:81", True),
        ("*.good.com", "https://good.com", False),
        ("*.good.com", "https://evilgood.com", False),
        ("*.good.com", "https://a.good.com.evil.com", False),
        ("https://*.good.com", "https://a.good.com", True),
        ("https://*.good.com", "http://a.good.com", False),
        ("https://*.good.com", "https://a.good.com:444", False),
        ("*.good.com:81", "http://a.good.com:81", True),
        ("*.good.com:81", "http://a.good.com", False),
        ("localhost", "http://localhost:3000", True),
        ("127.0.0.1", "http://127.0.0.1:3000", True),
        ("[::1]", "http://[::1]:3000", True),
        ("[::1]:80", "http://[::1]", True),
        ("http://[::1]", "http://[::2]", False),
        ("*", "https://anyone.example", True),
        ("*", "null", True),
    ],
)
def test_entries(entry, origin, allowed):
    assert OriginPolicy([entry]).allows(origin, OWN) is allowed


def test_a_list_allows_exactly_what_it_lists():
    assert not OriginPolicy(["other.com"]).allows("https://good.com", OWN)
    assert not OriginPolicy([]).allows("https://good.com", OWN)


def test_what_a_list_names_is_told_apart_from_what_it_lets_pass():
    assert OriginPolicy(["good.com"]).lists("https://good.com")
    assert not OriginPolicy(["*"]).lists("https://good.com")
    assert not OriginPolicy().lists("https://good.com")


@pytest.mark.parametrize(
    "entry",
    ["", "https://", "ftp://good.com", "https://good.com/", "good.com/*", "*.", "*good.com", "a.*.com",
     "good.com:x", "null", "://good.com", "good com", "https://*"],
)  # fmt: skip
def test_an_entry_that_is_no_origin_is_told_at_the_start(entry):
    if entry == "null":
        assert not OriginPolicy([entry]).allows("null", OWN), "a host named null is not the null origin"
        return
    with pytest.raises(ValueError, match="is not an origin"):
        OriginPolicy([entry])


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("good.com", ("good.com", None)),
        ("good.com:80", ("good.com", 80)),
        ("[::1]", ("[::1]", None)),
        ("[::1]:80", ("[::1]", 80)),
        ("a_b.example", ("a_b.example", None)),
        ("", None),
        (":80", None),
        ("[::1", None),
        ("::1", None),
        ("good.com:80:80", None),
        ("good.com..", None),
        ("-good.com", None),
        (".good.com", None),
    ],
)
def test_host_headers(text, split):
    assert split_host(text) == split


@pytest.mark.parametrize("host", ["", "good.com/evil", "a b", "good.com, evil.com"])
def test_a_host_header_that_is_none_is_nobodys_origin(host):
    own = own_origin("https", host)
    assert own is None
    assert not OriginPolicy().allows(f"https://{host}", own)


def test_own_origin_knows_the_default_port():
    assert own_origin("https", "GOOD.com") == OWN
    assert own_origin("http", "good.com:443") != OWN


@given(st.text(max_size=40))
def test_any_text_is_an_origin_or_none_and_reads_the_same_again(text):
    parsed = parse_origin(text)
    if parsed is not None:
        assert parse_origin(str(parsed)) == parsed


@given(st.text(max_size=20), st.text(max_size=20))
def test_nothing_around_a_good_origin_is_good(before, after):
    policy = OriginPolicy(["https://good.com"])
    text = f"{before}https://good.com{after}"
    if policy.allows(text, OWN):
        assert before == ""
        assert after in ("", ".", ":443", ".:443", ":0443", ".:0443", ":00443", ".:00443")
