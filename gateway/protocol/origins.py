"""Which pages may talk to us: exact comparison of (scheme, host, port), for every transport alike.

Three allow-lists of this field were bypassed because they matched prefixes, suffixes or unanchored
patterns (`good.com.evil.com`). So an origin is parsed first and compared part by part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")


@dataclass(frozen=True, slots=True)
class Origin:
    """A parsed origin: lower-case host without trailing dot, port always known."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        port = "" if self.port == _PORTS.get(self.scheme) else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"


def split_host(text: str) -> tuple[str, int | None] | None:
    """`host[:port]` as in a Host header, or None if it is not one."""
    host, colon, port = text.lower().rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text.lower(), ""
    host = host.removesuffix(".")
    if not _HOST.fullmatch(host):
        return None
    if not port:
        return (host, None) if not colon or text.endswith("]") else None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        return None
    return host, int(port)


def parse_origin(text: str, schemes: Iterable[str] = ("http", "https")) -> Origin | None:
    """`scheme://host[:port]`, nothing before, nothing behind; None for `null` and all else."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    split = split_host(rest)
    if not separator or scheme not in schemes or split is None:
        return None
    host, port = split
    return Origin(scheme, host, port or _PORTS.get(scheme, 0))


def own_origin(scheme: str, host: str) -> Origin | None:
    """The origin at which a request reached us; None if its Host header is no host."""
    return parse_origin(f"{scheme}://{host}")


class OriginPolicy:
    """An allow-list of origins. Without a list: the same origin only.

    Entries: `https://host[:port]` exactly; `host` or `host:port` with http or https (a bare host
    with any port); `*.example.com` for one or more whole labels to the left; `*` for everyone.
    """

    __slots__ = ("any", "same_only", "_entries")

    def __init__(self, entries: Iterable[str] | None = None) -> None:
        entries = list(entries) if entries is not None else None
        self.same_only = entries is None
        self.any = entries is not None and "*" in entries
        self._entries = [_entry(text) for text in entries or () if text != "*"]

    def allows(self, origin: str, own: Origin | None) -> bool:
        """Whether a page of `origin` (the header's text) may talk to us at `own`."""
        if self.any:
            return True
        if self.same_only:
            parsed = parse_origin(origin)
            return parsed is not None and parsed == own
        return self.lists(origin)

    def lists(self, origin: str) -> bool:
        """Whether an entry of the list names this origin."""
        parsed = parse_origin(origin) if self._entries else None
        return parsed is not None and any(entry.matches(parsed) for entry in self._entries)


@dataclass(frozen=True, slots=True)
class _Entry:
    scheme: str | None
    host: str
    port: int | None
    below: bool

    def matches(self, origin: Origin) -> bool:
        if self.scheme is not None and self.scheme != origin.scheme:
            return False
        if self.port is not None and self.port != origin.port:
            return False
        if self.below:
            return origin.host.endswith("." + self.host)
        return self.host == origin.host


def _entry(text: str) -> _Entry:
    """Read one entry; `ValueError` says what an entry looks like."""
    scheme, separator, rest = text.strip().rpartition("://")
    below = rest.startswith("*.")
    split = split_host(rest[2:] if below else rest)
    if split is None or (separator and scheme.lower() not in _PORTS):
        raise ValueError(f"{text!r} is not an origin: write https://host[:port], host, *.example.com or *")
    host, port = split
    if not separator:
        return _Entry(None, host, port, below)
    return _Entry(scheme.lower(), host, port or _PORTS[scheme.lower()], below)
