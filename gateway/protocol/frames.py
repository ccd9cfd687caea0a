"""Frames of the session protocol: bytes to values and back. `docs/protocol.md` is the source.

Knows nothing of sessions; which frame is legal when is decided there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from .payloads import SEPARATOR

LAST_CHANNEL = 46_655  # "zzz" in base 36: three characters, so that a data frame costs four at most
PART = b"\0"  # before the channel number of a binary part, of which more follows
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_CHANNEL = re.compile(r"[1-9a-z][0-9a-z]{0,2}")
_TEXT = re.compile(r"([1-9a-z][0-9a-z]{0,2})([:;.,])")
_COUNT = re.compile(r"0|[1-9][0-9]{0,15}")
_MAX_CONTROL = 16_384  # characters; a URL and some subprotocols, not a message
_MAX_REASON = 123  # bytes: RFC 6455 section 5.5, a control frame holds 125 with the code


class FrameError(ValueError):
    """The peer sent what is no frame, or one with wrong fields."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The part of a hello that asks for an existing session.

    `received` is None for a page that was loaded anew: it has nothing of what was before.
    """

    session: str
    token: str
    epoch: str
    received: int | None = None


@dataclass(frozen=True, slots=True)
class Hello:
    resume: Resume | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    session: str
    token: str
    epoch: str
    resumed: bool
    received: int
    grace: int  # ms
    message: int  # bytes of one message
    window: int  # bytes that may be sent on a new channel before the first grant


@dataclass(frozen=True, slots=True)
class Ack:
    count: int


@dataclass(frozen=True, slots=True)
class Bye:
    pass


@dataclass(frozen=True, slots=True)
class End:
    code: int
    reason: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Open:
    channel: int
    url: str
    protocols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accept:
    channel: int
    protocol: str = ""


@dataclass(frozen=True, slots=True)
class Refuse:
    channel: int
    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class Close:
    channel: int
    code: int | None = None
    reason: str = ""


@dataclass(slots=True)  # not frozen: that would make each of them cost twice as much
class Data:
    """A message, or with `more` a part of one: the last part has none."""

    channel: int
    data: str | bytes
    more: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    channel: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Dropped:
    channel: int
    messages: int


Frame: TypeAlias = Hello | Welcome | Ack | Bye | End | Open | Accept | Refuse | Close | Data | Grant | Dropped


# -- writing ---------------------------------------------------------------------------------------


def channel_text(channel: int) -> str:
    """The channel number in base 36.

    >>> channel_text(46655)
    'zzz'
    """
    text = ""
    while channel:
        channel, digit = divmod(channel, 36)
        text = _DIGITS[digit] + text
    return text


def _json(**fields: object) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def text_frame(prefix: str, text: str) -> str:
    """A text message, or its last part; `prefix` is the `channel_text`."""
    if SEPARATOR not in text:
        return f"{prefix}:{text}"
    return f"{prefix};{_escaped(text)}"


def text_part(prefix: str, text: str) -> str:
    """A part of a text message, of which more follows."""
    if SEPARATOR not in text:
        return f"{prefix}.{text}"
    return f"{prefix},{_escaped(text)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(SEPARATOR, "\\e")


def binary_prefix(channel: int) -> bytes:
    """The channel number as LEB128, which stands before a binary message. After `PART` it begins a part."""
    out = bytearray()
    while channel > 0x7F:
        out.append(channel & 0x7F | 0x80)
        channel >>= 7
    out.append(channel)
    return bytes(out)


def encode(frame: Frame) -> str | bytes:
    """The wire form of a frame. Channels encode their data with `text_frame` themselves."""
    match frame:
        case Data(channel, str() as text, more):
            return (text_part if more else text_frame)(channel_text(channel), text)
        case Data(channel, bytes() as data, more):
            return (PART if more else b"") + binary_prefix(channel) + data
        case Ack(count):
            return f"+{count}"
        case Bye():
            return "B"
        case Hello(None):
            return "H" + _json(v=1)
        case Hello(Resume(session, token, epoch, None)):
            return "H" + _json(v=1, session=session, token=token, epoch=epoch)
        case Hello(Resume(session, token, epoch, received)):
            return "H" + _json(v=1, session=session, token=token, epoch=epoch, received=received)
        case Welcome(session, token, epoch, resumed, received, grace, message, window):
            return "W" + _json(
                session=session,
                token=token,
                epoch=epoch,
                resumed=resumed,
                received=received,
                grace=grace,
                message=message,
                window=window,
            )
        case End(code, reason, retry):
            return "X" + _json(code=code, reason=reason, retry=retry)
    return _encode_of_channel(frame)


def _encode_of_channel(frame: Frame) -> str:
    match frame:
        case Open(channel, url, protocols):
            return f"O{channel_text(channel)}" + _json(url=url, protocols=list(protocols))
        case Accept(channel, protocol):
            return f"A{channel_text(channel)}" + _json(protocol=protocol)
        case Refuse(channel, status, reason):
            return f"R{channel_text(channel)}" + _json(status=status, reason=reason)
        case Close(channel, None):
            return f"C{channel_text(channel)}{{}}"
        case Close(channel, code, ""):
            return f"C{channel_text(channel)}" + _json(code=code)
        case Close(channel, code, reason):
            return f"C{channel_text(channel)}" + _json(code=code, reason=reason)
        case Grant(channel, size):
            return f"G{channel_text(channel)}" + _json(bytes=size)
        case Dropped(channel, messages):
            return f"D{channel_text(channel)}" + _json(messages=messages)
    raise TypeError(f"not a frame: {type(frame).__name__}")


# -- reading ---------------------------------------------------------------------------------------


def decode(data: str | bytes) -> Frame:
    """Read one frame; `FrameError` says what is wrong with it, without quoting it."""
    if not isinstance(data, str):
        return _binary(data)
    found = _TEXT.match(data)
    if found:
        separator = found[2]
        return Data(int(found[1], 36), _text(separator, data[found.end() :]), separator in ".,")
    if len(data) > _MAX_CONTROL:
        raise FrameError("control frame is too long")
    reader = _CONTROL.get(data[:1])
    if reader is None:
        raise FrameError("unknown frame")
    return reader(data[1:])


def _binary(data: bytes) -> Data:
    more = data[:1] == PART
    begin = 1 if more else 0
    channel = shift = 0
    for at, byte in enumerate(data[begin : begin + 3]):
        channel |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if not 0 < channel <= LAST_CHANNEL or (byte == 0 and at > 0):
                break
            return Data(channel, data[begin + at + 1 :], more)
    raise FrameError("binary frame without a channel")


def _text(separator: str, text: str) -> str:
    if separator in ":.":
        return text
    if SEPARATOR in text:
        raise FrameError("escaped text holds a raw separator")
    # A row of backslashes begins with an escape, so that its pairs are found from the left.
    pieces = [piece.replace("\\e", SEPARATOR) for piece in text.split("\\\\")]
    if any("\\" in piece for piece in pieces):
        raise FrameError("unknown escape")
    return "\\".join(pieces)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameError("control frame is not JSON") from error
    if not isinstance(value, dict):
        raise FrameError("control frame is not a JSON object")
    return value


def _field(fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    # `type() is`, because True is an int to isinstance.
    if type(value) is not kind:
        raise FrameError(f"{name} is missing or not of type {kind.__name__}")
    return value


def _counted(fields: dict[str, Any], name: str) -> int:
    value = _field(fields, name, int)
    if not 0 <= value < 10**16:
        raise FrameError(f"{name} is out of range")
    return int(value)


def _hello(text: str) -> Hello:
    fields = _object(text)
    if _field(fields, "v", int) != 1:
        raise FrameError("unknown version of the session protocol")
    if not fields.keys() & {"session", "token", "epoch", "received"}:
        return Hello()
    return Hello(
        Resume(
            _field(fields, "session", str),
            _field(fields, "token", str),
            _field(fields, "epoch", str),
            _counted(fields, "received") if "received" in fields else None,
        )
    )


def _welcome(text: str) -> Welcome:
    fields = _object(text)
    return Welcome(
        _field(fields, "session", str),
        _field(fields, "token", str),
        _field(fields, "epoch", str),
        _field(fields, "resumed", bool),
        _counted(fields, "received"),
        _counted(fields, "grace"),
        _counted(fields, "message"),
        _counted(fields, "window"),
    )


def _ack(text: str) -> Ack:
    if not _COUNT.fullmatch(text):
        raise FrameError("ack is not a count")
    return Ack(int(text))


def _bye(text: str) -> Bye:
    if text:
        raise FrameError("unknown frame")
    return Bye()


def _end(text: str) -> End:
    fields = _object(text)
    return End(_code(fields), _field(fields, "reason", str), _field(fields, "retry", bool))


def _channel(text: str) -> tuple[int, dict[str, Any]]:
    found = _CHANNEL.match(text)
    if not found:
        raise FrameError("control frame without a channel")
    return int(found[0], 36), _object(text[found.end() :])


def _open(text: str) -> Open:
    channel, fields = _channel(text)
    url = _field(fields, "url", str)
    protocols = _field(fields, "protocols", list)
    if not url.startswith("/"):
        raise FrameError("url is not a path")
    if any(type(name) is not str for name in protocols):
        raise FrameError("protocols is not a list of text")
    return Open(channel, url, tuple(protocols))


def _accept(text: str) -> Accept:
    channel, fields = _channel(text)
    return Accept(channel, _field(fields, "protocol", str))


def _refuse(text: str) -> Refuse:
    channel, fields = _channel(text)
    return Refuse(channel, _counted(fields, "status"), _field(fields, "reason", str))


def _code(fields: dict[str, Any]) -> int:
    code = _field(fields, "code", int)
    if not 1000 <= code <= 65535:
        raise FrameError("code is out of range")
    return int(code)


def _close(text: str) -> Close:
    channel, fields = _channel(text)
    if not fields:
        return Close(channel)
    reason = _field(fields, "reason", str) if "reason" in fields else ""
    if len(reason.encode("utf-8", "surrogatepass")) > _MAX_REASON:
        raise FrameError("reason is too long")
    return Close(channel, _code(fields), reason)


def _grant(text: str) -> Grant:
    channel, fields = _channel(text)
    return Grant(channel, _counted(fields, "bytes"))


def _dropped(text: str) -> Dropped:
    channel, fields = _channel(text)
    return Dropped(channel, _counted(fields, "messages"))


_CONTROL: dict[str, Callable[[str], Frame]] = {
    "H": _hello,
    "W": _welcome,
    "+": _ack,
    "B": _bye,
    "X": _end,
    "O": _open,
    "A": _accept,
    "R": _refuse,
    "C": _close,
    "G": _grant,
    "D": _dropped,
}
