"""Is this request one that Engine.IO v4 allows? Decided from method and query alone.

Errors carry Engine.IO's own codes, so that stock clients understand them. Nothing of the request is
ever repeated in an answer.
Source: Engine.IO protocol v4, "Handshake"; codes as in Node's engine.io.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

POLLING = "polling"
WEBSOCKET = "websocket"


class Code(Enum):
    """Engine.IO's error codes: code, message, HTTP status."""

    TRANSPORT = (0, "Transport unknown", 400)
    SESSION = (1, "Session ID unknown", 400)
    METHOD = (2, "Bad handshake method", 400)
    BAD_REQUEST = (3, "Bad request", 400)
    FORBIDDEN = (4, "Forbidden", 403)
    VERSION = (5, "Unsupported protocol version", 400)


class Refused(Exception):
    """The request gets an HTTP error with the body `{"code": …, "message": …}`.

    `hint` says what to do about it. It never quotes the request. `body` is JSON text of the
    application's, to be sent instead. `retry_after`: in so many seconds it may be tried again.
    """

    def __init__(
        self,
        code: Code,
        hint: str = "",
        status: int | None = None,
        body: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.code, message, default = code.value
        self.message = f"{message}: {hint}" if hint else message
        self.status = status or default
        self.retry_after = retry_after
        self._body = body
        super().__init__(self.message)

    @property
    def body(self) -> str:
        """The JSON text of the answer."""
        if self._body is not None:
            return self._body
        return json.dumps({"code": self.code, "message": self.message})


@dataclass(frozen=True, slots=True)
class Query:
    """What a request asks for. Without a `sid` it is a handshake.

    The rest is our own client's, see `docs/protocol.md`: the `number` of this GET or POST, for how many
    seconds a GET may `hold`, how many bytes of answer it has `room` for, how many packets of a POST went
    before (`skip`), and whether `more` of it follow.
    """

    transport: str
    sid: str | None
    number: int | None = None
    hold: float | None = None
    room: int | None = None
    skip: int = 0
    more: bool = False


# Any id that an overridden `generate_id` may reasonably make; no spaces, no controls, no megabytes.
_SID = re.compile(r"[!-~]{1,128}")
_STOCK = frozenset(("EIO", "transport", "sid"))
_NUMBERS = frozenset(("n", "hold", "max", "skip", "more"))  # of our own client
_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")


def read_query(
    method: str,
    pairs: Iterable[tuple[str, str]],
    *,
    upgrade: bool,
    transports: Sequence[str] = (POLLING, WEBSOCKET),
    numbered: bool = False,
) -> Query:
    """Check one request. `upgrade`: it asks to become a websocket. `numbered`: it may be our own client's.

    Raises `Refused` with the code that Engine.IO gives to what is wrong.
    """
    query: dict[str, str] = {}
    once = _STOCK | _NUMBERS if numbered else _STOCK
    for name, value in pairs:
        if name == "j":
            raise Refused(Code.BAD_REQUEST, "JSONP is not supported")
        if name in once:
            if name in query:
                raise Refused(Code.BAD_REQUEST, f"{name} is given twice")
            query[name] = value
    transport = query.get("transport", "")
    if transport not in transports:
        raise Refused(Code.TRANSPORT)
    sid = query.get("sid")
    if query.get("EIO", "" if sid is None else "4") != "4":
        raise Refused(Code.VERSION, "this server speaks EIO=4")
    if method not in (("GET",) if sid is None or transport == WEBSOCKET else ("GET", "POST")):
        raise Refused(Code.METHOD)
    if transport == WEBSOCKET and not upgrade:
        raise Refused(Code.BAD_REQUEST, "no WebSocket upgrade; a proxy may have removed the Upgrade header")
    if transport == POLLING and upgrade:
        raise Refused(Code.BAD_REQUEST, "a polling request cannot become a WebSocket")
    if sid is not None and not _SID.fullmatch(sid):
        raise Refused(Code.SESSION)
    if not numbered:
        return Query(transport, sid)
    hold = _number(query, "hold")
    return Query(
        transport,
        sid,
        _number(query, "n", 1),
        None if hold is None else hold / 1000,
        _number(query, "max", 1),
        _number(query, "skip") or 0,
        _number(query, "more", 1) is not None,
    )


def _number(query: dict[str, str], name: str, least: int = 0) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) < least:
        raise Refused(Code.BAD_REQUEST, f"{name} is a number from {least} on, in decimal digits")
    return int(text)


def open_packet(
    sid: str, *, upgrades: Sequence[str], interval: float, timeout: float, max_payload: int
) -> str:
    """The first packet of every connection. Seconds become milliseconds, fractions included."""
    return "0" + json.dumps(
        {
            "sid": sid,
            "upgrades": list(upgrades),
            "pingInterval": round(interval * 1000),
            "pingTimeout": round(timeout * 1000),
            "maxPayload": max_payload,
        },
        separators=(",", ":"),
    )
