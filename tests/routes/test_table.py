"""Which route serves a path: patterns, their order, and what cannot be a pattern."""

import re

import pytest

from gateway.application import Echo, Request
from gateway.protocol.handshake import Refused
from gateway.protocol.origins import OriginPolicy, own_origin
from gateway.routes.table import Mount, Pattern, RouteTable, engine_base, union_of


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("/chat", "/chat", {}),
        ("/chat", "/chat/", None),
        ("/chat", "/Chat", None),
        ("/chat", "/chat\n", None),
        ("/a.b", "/axb", None),
        ("/", "/", {}),
        ("/chat/{room}", "/chat/7", {"room": "7"}),
        ("/chat/{room}", "/chat/", None),
        ("/chat/{room}", "/chat/a/b", None),
        ("/chat/{room}/{seat}", "/chat/a/b", {"room": "a", "seat": "b"}),
        ("/v{version}/x", "/v2/x", {"version": "2"}),
        (re.compile("/bot"), "/bot", {}),
        (re.compile("/bot"), "/bots", None),
        (re.compile("/bot"), "/x/bot", None),
        (re.compile("^/bot$"), "/bot", {}),
        (re.compile("/(a|b)/([0-9]+)?"), "/a/7", {"0": "a", "1": "7"}),
        (re.compile("/(a|b)/([0-9]+)?"), "/b/", {"0": "b", "1": ""}),
        (re.compile("/(?P<room>.+)"), "/a/b", {"room": "a/b"}),
    ],
)
def test_a_pattern_fits_the_whole_path_or_not(pattern, path, found):
    assert Pattern(pattern).match(path) == found


@pytest.mark.parametrize("pattern", ["chat", "", "/{}", "/{a b}", "/{a}/{a}", "/{a", "/a}", "/{a}{"])
def test_what_is_no_pattern_says_so(pattern):
    with pytest.raises(ValueError, match=r"/"):
        Pattern(pattern)


def table(*patterns):
    return RouteTable([Mount(Pattern(pattern), Echo()) for pattern in patterns])


def test_the_first_that_fits_wins():
    routes = table("/chat/all", "/chat/{room}")
    for path, index in (("/chat/all", 0), ("/chat/7", 1)):
        mount, _ = routes.match(path)
        assert mount is routes.mounts[index]
    assert table("/{any}", "/chat").match("/chat")[1] == {"any": "chat"}


def test_a_pattern_cannot_be_there_twice():
    with pytest.raises(ValueError, match="two routes have the pattern '/a'"):
        table("/a", "/b", "/a")


async def test_what_nobody_serves_is_404():
    with pytest.raises(Refused) as caught:
        await table("/a").find(Request("/b"))
    assert caught.value.status == 404


async def test_what_is_found_knows_its_parameters():
    served = await table("/a/{b}").find(Request("/a/1", headers={}))
    assert served.request.params == {"b": "1"}


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("/chat/engine.io/", "/chat"),
        ("/chat/engine.io", "/chat"),
        ("/engine.io/", "/"),
        ("/chat/engine.io/x", None),
        ("/chatengine.io/", None),
        ("/chat", None),
    ],
)
def test_the_path_of_an_engine_endpoint_names_its_route(path, base):
    assert engine_base(path) == base


def test_the_shared_endpoint_takes_whom_any_route_takes():
    def policy(*lists):
        mounts = [Mount(Pattern(f"/{n}"), Echo(), OriginPolicy(each)) for n, each in enumerate(lists)]
        return union_of(mounts).origins

    own = own_origin("http", "here:80")
    some = policy(None, ["https://a.example"], ["*.b.example"])
    for origin, welcome in (
        ("http://here", True),
        ("https://a.example", True),
        ("http://a.example", False),
        ("https://x.b.example", True),
        ("https://c.example", False),
        ("null", False),
    ):
        assert some.allows(origin, own) is welcome, origin
    assert not some.any
    assert policy(None, ["*"]).any
    assert not policy(None).lists("http://here")
