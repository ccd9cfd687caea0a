"""What is the path of a request target, and what has none."""

import pytest

from gateway.protocol.paths import read_path


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/chat?room=1", "/chat"),
        ("/chat?path=../x", "/chat"),
        ("/chat#x", "/chat"),
        ("/caf%C3%A9", "/café"),
        ("/a%20b", "/a b"),
        ("/a%25b", "/a%b"),
        ("/a%252Fb", "/a%2Fb"),
        ("/a;v=1", "/a;v=1"),
        ("/a...b", "/a...b"),
        ("//a", "//a"),
    ],
)
def test_an_honest_path_is_decoded_once(target, path):
    assert read_path(target) == path


@pytest.mark.parametrize(
    "target",
    [
        "",
        "chat",
        "*",
        "http://127.0.0.1/chat",
        "/a%2Fb",
        "/a%2fb",
        "/a%5Cb",
        "/a\\b",
        "/a%00",
        "/a%0d%0ab",
        "/a%7f",
        "/a b",
        "/a/../b",
        "/a/./b",
        "/a/%2e%2e/b",
        "/a/%2E./b",
        "//engine.io/..;/",
        "/a/..;x=1/b",
        "/a%",
        "/a%g0",
        "/a%ff",
        "/a%C3",
        "/a\ud800",
        "/a\udcff%20b",  # a byte that is no UTF-8, as aiohttp reads it
    ],
)
def test_what_machines_read_differently_is_no_path(target):
    assert read_path(target) is None
