"""What `import gateway` gives, also in the eyes of a type checker.

mypy reads this file in `make check`, where `assert_type` is the test: a decorated function keeps its type.
"""

from __future__ import annotations

from typing import assert_type

import pytest
from aiohttp import web

import gateway
from gateway import EngineServer, Request, Route, run_app


def disconnected(sid: str, reason: str) -> int:
    return len(sid + reason)


def sign_in(request: Request) -> str | None:
    return request.headers.get("X-User")


def test_what_is_exported_exists() -> None:
    assert all(hasattr(gateway, name) for name in gateway.__all__)


def test_a_decorated_function_keeps_its_type() -> None:
    route, eio = Route("/chat"), EngineServer()
    assert_type(route.authenticate(sign_in)(Request("/chat")), str | None)
    assert_type(eio.on("disconnect", disconnected)("sid", "reason"), int)
    assert_type(eio.on("disconnect")(disconnected)("sid", "reason"), int)


def test_run_app_drops_no_routes() -> None:
    with pytest.raises(ValueError, match="attach"):
        run_app(web.Application(), routes=[Route("/chat")])
