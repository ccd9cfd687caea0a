"""Who may talk to a route: every combination of headers that decides it."""

from typing import Any

import pytest
from multidict import CIMultiDict

from gateway.access import Access
from gateway.application import Request
from gateway.protocol.handshake import Refused
from gateway.protocol.origins import OriginPolicy

OWN = "https://good.com"
EVIL = "https://evil.com"


def request(*headers: tuple[str, str], scheme: str = "https", host: str = "good.com") -> Request:
    return Request("/", headers=CIMultiDict(headers), scheme=scheme, host=host)


def answer(access: Access, method: str, asked: Request) -> int:
    """The status of the refusal, 200 for none."""
    try:
        access.check_origin(asked, method)
    except Refused as refused:
        return refused.status
    return 200


async def nobody(request: Request) -> Any:
    return None


SAME = Access()
LIST = Access(OriginPolicy([EVIL]))
ANY = Access(OriginPolicy(["*"]))
USERS = Access(None, nobody)


def test_who_looks_for_a_refused_page_finds_it_in_the_log_on_one_line(caplog):
    caplog.set_level("INFO")
    assert answer(SAME, "GET", request(("Origin", "https://evil.com\nforged" + "x" * 1000))) == 403
    (record,) = caplog.records
    line = record.getMessage()
    assert "'https://evil.com\\nforged" in line
    assert "origins" in line
    assert "\n" not in line
    assert len(line) < 500
    assert answer(SAME, "GET", request(("Origin", OWN))) == 200
    assert len(caplog.records) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    ("access", "headers", "status"),
    [
        (SAME, [], 200),
        (SAME, [("Origin", OWN)], 200),
        (SAME, [("Origin", EVIL)], 403),
        (SAME, [("Origin", "null")], 403),
        (SAME, [("Origin", "")], 403),
        (SAME, [("Origin", "http://good.com")], 403),
        (SAME, [("Origin", "https://good.com:444")], 403),
        (SAME, [("Origin", OWN), ("Origin", OWN)], 400),
        (SAME, [("Origin", OWN), ("Origin", EVIL)], 400),
        (LIST, [("Origin", EVIL)], 200),
        (LIST, [("Origin", OWN)], 403),
        (LIST, [], 200),
        (ANY, [("Origin", EVIL)], 200),
        (ANY, [("Origin", "null")], 200),
        (SAME, [("Sec-Fetch-Site", "cross-site")], 403),
        (SAME, [("Sec-Fetch-Site", "same-site")], 403),
        (SAME, [("Sec-Fetch-Site", "same-origin")], 200),
        (SAME, [("Sec-Fetch-Site", "none")], 200),
        (ANY, [("Sec-Fetch-Site", "cross-site")], 200),
        (LIST, [("Sec-Fetch-Site", "cross-site")], 403),
        (SAME, [("Origin", "http://inside:80"), ("Sec-Fetch-Site", "same-origin")], 200),
        (SAME, [("Origin", "null"), ("Sec-Fetch-Site", "same-origin")], 403),
        (SAME, [("Origin", EVIL), ("Sec-Fetch-Site", "cross-site")], 403),
        (LIST, [("Origin", OWN), ("Sec-Fetch-Site", "same-origin")], 403),
    ],
)
def test_origins(access, headers, status, method):
    assert answer(access, method, request(*headers)) == status


@pytest.mark.parametrize(
    ("access", "method", "cookies", "status"),
    [
        (USERS, "POST", True, 403),
        (USERS, "POST", False, 200),
        (USERS, "GET", True, 200),
        (SAME, "POST", True, 200),
    ],
)
def test_b81_a_post_with_cookies_says_where_it_comes_from(access, method, cookies, status):
    headers = [("Cookie", "a=b")] if cookies else []
    assert answer(access, method, request(*headers)) == status


async def test_nobody_asks_for_a_user():
    assert await Access().authenticate(request()) is None


@pytest.mark.parametrize("user", [None, False, "", 0, {}])
async def test_no_user_is_401(user):
    async def ask(_: Request) -> Any:
        return user

    with pytest.raises(Refused) as refused:
        await Access(None, ask).authenticate(request())
    assert (refused.value.status, refused.value.code) == (401, 4)


async def test_the_user_is_what_was_returned():
    async def ask(asked: Request) -> Any:
        return {"name": "ada"}

    assert await Access(None, ask).authenticate(request()) == {"name": "ada"}


class User:
    def __init__(self, name: str) -> None:
        self.name = name


async def whoever_the_cookie_names(request: Request) -> Any:
    name = request.headers.get("Cookie", "")
    return User(name.split("=")[1]) if name else None


COOKIES = Access(None, whoever_the_cookie_names)
ANNA = request(("Cookie", "user=anna"))
ANNA_AGAIN = request(("Cookie", "user=anna"), ("Authorization", "Bearer new"))
BERT = request(("Cookie", "user=bert"))


async def test_b15_somebody_elses_login_does_not_get_the_connection():
    anna = await COOKIES.authenticate(ANNA)
    with pytest.raises(Refused) as refused:
        await COOKIES.check_user(BERT, ANNA, anna)
    assert (refused.value.status, refused.value.code) == (403, 4)


async def test_b15_no_login_does_not_get_the_connection():
    anna = await COOKIES.authenticate(ANNA)
    with pytest.raises(Refused) as refused:
        await COOKIES.check_user(request(), ANNA, anna)
    assert refused.value.status == 401


async def test_a_new_login_of_the_same_user_goes_on():
    await COOKIES.check_user(ANNA_AGAIN, ANNA, await COOKIES.authenticate(ANNA))


async def test_nobody_is_asked_again_while_the_login_is_the_same():
    asked = []

    async def authenticate(one: Request) -> str:
        asked.append(one)
        return "anna"

    await Access(None, authenticate).check_user(ANNA, ANNA, "anna")
    assert asked == []
