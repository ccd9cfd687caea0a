"""The path of a request target: read once, strictly, so that every route sees the same one.

Proxies and frameworks disagree about `%2F`, backslashes and `..`, and what one lets pass the next
takes for another path. No route needs them, so a path that holds them is the path of nothing. So is
one with half a character, which the JSON of our own client can write, and no URL can.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_REFUSED = re.compile(r"%(2f|5c|0[0-9a-f]|1[0-9a-f]|7f)|[\\\x00-\x20\x7f\ud800-\udfff]", re.IGNORECASE)
_BROKEN_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


def read_path(target: str) -> str | None:
    """The decoded path of an origin-form target (`/path?query`), or None if it has no honest one.

    >>> read_path("/caf%C3%A9?x=1")
    '/café'
    """
    path = target.partition("?")[0].partition("#")[0]
    if not path.startswith("/") or _REFUSED.search(path) or _BROKEN_ESCAPE.search(path):
        return None
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError:
        return None
    dotted = "/." in decoded and any(
        segment.partition(";")[0] in (".", "..") for segment in decoded.split("/")
    )
    return None if dotted else decoded
