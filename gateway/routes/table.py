"""Which route serves a path, and whether this client may have it.

The first pattern that matches wins, in the order of the configuration. Does not know what a route
does with a channel, nor which wire asks.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.access import Access, Authenticate
from gateway.application import Application, Channel, Directory, Request, Served
from gateway.ledger import user_text
from gateway.protocol.handshake import Code, Refused
from gateway.protocol.origins import Origin, OriginPolicy
from gateway.protocol.reasons import Closing

PREFIX = "/_gateway/"
ENGINE_SUFFIX = "/engine.io/"

_NAME = re.compile(r"\{([^{}]*)\}")


class Pattern:
    """A path with `{name}` for whole segments or parts of one, or a regular expression for all of it.

    Raises `ValueError` with a sentence that says what a pattern looks like.
    """

    __slots__ = ("text", "_expression")

    def __init__(self, pattern: str | re.Pattern[str]) -> None:
        if isinstance(pattern, re.Pattern):
            self.text = pattern.pattern
            self._expression = pattern
        else:
            self.text = pattern
            self._expression = _compile(pattern)

    def match(self, path: str) -> dict[str, str] | None:
        """What the pattern found in a decoded path, or None. Groups without a name are "0", "1", …."""
        found = self._expression.fullmatch(path)
        if found is None:
            return None
        names = {index: name for name, index in self._expression.groupindex.items()}
        values = enumerate(found.groups(default=""), start=1)
        return {names.get(index, str(index - 1)): value for index, value in values}


def _compile(pattern: str) -> re.Pattern[str]:
    if not pattern.startswith("/"):
        raise ValueError(f"{pattern!r} does not start with /")
    names = _NAME.findall(pattern)
    wrong = next((name for name in names if not name.isidentifier()), None)
    if wrong is not None:
        raise ValueError(f"{{{wrong}}} in {pattern!r} is not a name; write {{room}}, for example")
    if len(set(names)) < len(names):
        raise ValueError(f"{pattern!r} has the same name twice")
    literals = _NAME.split(pattern)[::2]
    if any(brace in "".join(literals) for brace in "{}"):
        raise ValueError(f"{pattern!r} has a brace too many or too few")
    parts = [re.escape(literals[0])]
    for name, literal in zip(names, literals[1:], strict=True):
        parts += [f"(?P<{name}>[^/]+)", re.escape(literal)]
    return re.compile("".join(parts))


class Mount:
    """An application, where it is, and who may talk to it."""

    def __init__(
        self,
        pattern: Pattern,
        application: Application,
        origins: OriginPolicy | None = None,
        authenticate: Authenticate | None = None,
    ) -> None:
        self.pattern = pattern
        self.application = application
        self.authenticate = authenticate
        self.access = Access(origins, authenticate)

    async def serve(self, request: Request, params: Mapping[str, str]) -> Served:
        """Check origin and user. Raises `protocol.handshake.Refused`."""
        located = replace(request, params=params)
        self.access.check_origin(located, "GET")
        user = await self.access.authenticate(located)
        return Served(self.application, located, user, self.pattern.text)

    async def check(self, request: Request, admitted: Request | None, user: Any) -> None:
        """See `Directory.check`."""
        self.access.check_origin(request, "GET")
        if admitted is not None:
            await self.access.check_user(request, admitted, user)
        elif user_text(await self.access.authenticate(request)) != user:
            raise Refused(Code.FORBIDDEN, "the session belongs to another user")


class RouteTable(Directory):
    """All routes of a gateway, in order. Raises `ValueError` when a pattern is there twice."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        self.mounts = mounts
        seen = set()
        for mount in mounts:
            if mount.pattern.text in seen:
                raise ValueError(f"two routes have the pattern {mount.pattern.text!r}")
            seen.add(mount.pattern.text)

    def match(self, path: str) -> tuple[Mount, dict[str, str]] | None:
        """The first route whose pattern fits, with what it found."""
        for mount in self.mounts:
            params = mount.pattern.match(path)
            if params is not None:
                return mount, params
        return None

    async def find(self, request: Request) -> Served:
        """Who serves this channel. Raises `Refused`: 404, 403, or 401."""
        found = self.match(request.path)
        if found is None:
            raise not_found()
        mount, params = found
        return await mount.serve(request, params)

    async def check(self, request: Request, admitted: Request | None, user: Any) -> None:
        """See `Directory.check`."""
        found = self.match(request.path)
        if found is None:
            raise not_found()
        mount, params = found
        await mount.check(replace(request, params=params), admitted, user)


def not_found() -> Refused:
    """The answer for a path that nobody serves."""
    return Refused(Code.BAD_REQUEST, "nothing is served at this path", status=404)


def engine_base(path: str) -> str | None:
    """The route's path if this is its Engine.IO endpoint, as `/chat` for `/chat/engine.io/`."""
    path = path if path.endswith("/") else path + "/"
    return path.removesuffix(ENGINE_SUFFIX) or "/" if path.endswith(ENGINE_SUFFIX) else None


class _Anyone(OriginPolicy):
    """What any of several policies allows, and always the same origin."""

    def __init__(self, policies: Iterable[OriginPolicy]) -> None:
        super().__init__()
        self._policies = [policy for policy in policies if not policy.same_only]
        self.any = any(policy.any for policy in self._policies)

    def allows(self, origin: str, own: Origin | None) -> bool:
        return super().allows(origin, own) or self.lists(origin)

    def lists(self, origin: str) -> bool:
        return any(policy.lists(origin) for policy in self._policies)


def union_of(mounts: Iterable[Mount]) -> Access:
    """Who may ask at all: the sessions' endpoint is shared, each route checks its own channels."""
    return Access(_Anyone(mount.access.origins for mount in mounts))


class AtEngineIO(Application):
    """A mount as stock Engine.IO clients see it: the path is the route's, without `/engine.io/`."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._application = mount.application
        self.access = Access(mount.access.origins, mount.authenticate and self._authenticate)

    async def _authenticate(self, request: Request) -> Any:
        return await self._mount.access.authenticate(self._located(request))

    def _located(self, request: Request) -> Request:
        path = engine_base(request.path) or request.path
        return replace(request, path=path, params=self._mount.pattern.match(path) or {})

    # What channels call (`Application`).

    def open(self, channel: Channel) -> Awaitable[None] | None:
        """From here on it is a channel like any other of the route."""
        channel.request = self._located(channel.request)
        return self._application.open(channel)

    def message(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        """One message."""
        return self._application.message(channel, data)

    def close(self, channel: Channel, closing: Closing) -> Awaitable[None] | None:
        """It is over."""
        return self._application.close(channel, closing)
