"""One Engine.IO v4 packet: how it looks on the wire, and what is refused.

Knows nothing of transports, payloads or of which packet is legal when (see `moves.py`).
Source: Engine.IO protocol v4, "Packet encoding".

A packet that is to be sent is kept in its websocket form, `Wire`: a `str` is a text packet with its
type digit in front, a `bytes` is a binary message. Both transports start from that form, so a
broadcast is encoded once.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from enum import Enum
from typing import TypeAlias

Wire: TypeAlias = str | bytes


class PacketType(Enum):
    """The seven packet types; the value is the digit on the wire."""

    OPEN = "0"
    CLOSE = "1"
    PING = "2"
    PONG = "3"
    MESSAGE = "4"
    UPGRADE = "5"
    NOOP = "6"


# A dict of ASCII digits: `int()` would also accept the digits of other scripts ("٤").
_TYPES = {member.value: member for member in PacketType}

OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = PacketType

CLOSE_WIRE = "1"
PING_WIRE = "2"
NOOP_WIRE = "6"
PROBE = "probe"
PROBE_ANSWER = "3probe"


class PacketError(ValueError):
    """The peer sent something that is no Engine.IO packet."""


def message(data: str | bytes) -> Wire:
    """The packet that carries `data`, untouched: text stays text, whatever it looks like."""
    return "4" + data if isinstance(data, str) else bytes(data)


def decode_text(text: str) -> tuple[PacketType, str]:
    """Read a packet from a websocket text frame. A binary frame is a message by itself.

    >>> decode_text("4hello")
    (<PacketType.MESSAGE: '4'>, 'hello')
    """
    kind = _TYPES.get(text[:1])
    if kind is None:
        raise PacketError("empty packet" if not text else "unknown packet type")
    return kind, text[1:]


def decode_polling(text: str) -> tuple[PacketType, str | bytes]:
    """Read one packet of a polling payload, where binary messages are `b` and base64."""
    if text[:1] != "b":
        return decode_text(text)
    try:
        return MESSAGE, a2b_base64(text[1:], strict_mode=True)
    except (Base64Error, ValueError) as error:
        raise PacketError("binary packet is not base64") from error


def encode_polling(packet: Wire) -> str:
    """The form of `packet` inside a polling payload."""
    if isinstance(packet, str):
        return packet
    return "b" + b2a_base64(packet, newline=False).decode("ascii")
