"""Who may talk to a route: the page's origin, and the user. One code path for every transport.

`check` raises Engine.IO's `Refused`, with a hint for the person who configures it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from .application import Request
from .protocol.handshake import Code, Refused
from .protocol.origins import OriginPolicy, own_origin

log = logging.getLogger("gateway")

Authenticate = Callable[[Request], Awaitable[Any]]

_SHOWN = 200  # characters of what a stranger sent, in the log


class Access:
    """`authenticate` returns the user, or something false to send the client away."""

    __slots__ = ("origins", "_authenticate")

    def __init__(self, origins: OriginPolicy | None = None, authenticate: Authenticate | None = None) -> None:
        self.origins = origins or OriginPolicy()
        self._authenticate = authenticate

    def check_origin(self, request: Request, method: str) -> None:
        """Refuse pages of other origins. Programs that are no browser send no Origin.

        A browser's `Sec-Fetch-Site` cannot be set by a page: `same-origin` settles it even where a
        proxy has changed scheme or host on the way; `cross-site` where the browser sends no Origin.
        """
        headers = request.headers
        site = headers.get("Sec-Fetch-Site", "")
        origin = headers.get("Origin")
        if origin is None:
            if site in ("cross-site", "same-site") and not self.origins.any:
                raise Refused(Code.FORBIDDEN, "another site asks for this")
            if method == "POST" and self._authenticate is not None and "Cookie" in headers:
                raise Refused(Code.FORBIDDEN, "a POST with cookies needs an Origin header")
            return
        if _values(headers, "Origin") > 1:
            raise Refused(Code.BAD_REQUEST, "Origin is given twice")
        if site == "same-origin" and self.origins.same_only and origin != "null":
            return
        if self.origins.allows(origin, own_origin(request.scheme, request.host)):
            return
        # A page is told no more than 1006: whoever looks for the reason finds it here.
        log.info(
            "%r: a page of %r is refused; list it in `origins`, or behind a TLS proxy set `trusted_proxies`",
            request.path[:_SHOWN],
            origin[:_SHOWN],
        )
        raise Refused(
            Code.FORBIDDEN,
            "this origin may not connect; list it in `origins`, or behind a TLS proxy set `trusted_proxies`",
        )

    async def check_user(self, request: Request, first: Request, user: Any) -> None:
        """Refuse a request that carries somebody else's login than the `first` one did.

        As long as the login is the same, nobody is asked again.
        """
        if self._authenticate is None or _login(request) == _login(first):
            return
        if not _same_user(await self.authenticate(request), user):
            raise Refused(Code.FORBIDDEN, "the connection belongs to another user")

    async def authenticate(self, request: Request) -> Any:
        """The user, or None where nobody asks. Raises `Refused` with status 401."""
        if self._authenticate is None:
            return None
        user = await self._authenticate(request)
        if not user:
            raise Refused(Code.FORBIDDEN, "sign in first", status=401)
        return user


def _login(request: Request) -> tuple[str | None, str | None]:
    return request.headers.get("Cookie"), request.headers.get("Authorization")


def _same_user(one: Any, other: Any) -> bool:
    """Equal, or alike in all attributes: many user classes do not say what equal means."""
    if one == other:
        return True
    return type(one) is type(other) and hasattr(one, "__dict__") and bool(vars(one) == vars(other))


def _values(headers: Any, name: str) -> int:
    get_all = getattr(headers, "getall", None)
    return len(get_all(name)) if get_all is not None else 1
