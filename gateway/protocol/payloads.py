"""Polling payloads: several packets in one HTTP body, separated by U+001E.

Source: Engine.IO protocol v4, "Payload encoding". There is no escape: text that holds U+001E
cannot travel over polling, and `can_carry` tells so before it is too late.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .packets import PacketError, PacketType, Wire, decode_polling, encode_polling

SEPARATOR = "\x1e"

# How many packets one POST may hold. A browser packs by bytes (`maxPayload`), never by count, so this
# only has to stop payloads that are made of separators. python-engineio's 16 dropped real traffic.
MAX_PACKETS = 100_000


def decode_payload(body: bytes, max_packets: int = MAX_PACKETS) -> list[tuple[PacketType, str | bytes]]:
    """Every packet of `body`, or `PacketError`: all or nothing."""
    return next(decode_in_steps(body, max_packets, max_packets))


def decode_in_steps(
    body: bytes, step: int, max_packets: int = MAX_PACKETS
) -> Iterator[list[tuple[PacketType, str | bytes]]]:
    """The packets of `body`, at most `step` at a time. `PacketError` may come at each step.

    They are counted before anything is split, so a body of separators costs its length only.
    """
    if body.count(b"\x1e") >= max_packets:
        raise PacketError(f"more than {max_packets} packets in one payload")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PacketError("payload is not UTF-8") from error
    packets = text.split(SEPARATOR)
    for start in range(0, len(packets), step):
        yield [decode_polling(packet) for packet in packets[start : start + step]]


def encode_payload(packets: Iterable[Wire]) -> str:
    """The body of a poll answer."""
    return SEPARATOR.join([encode_polling(packet) for packet in packets])


def can_carry(packet: Wire) -> bool:
    """Whether `packet` survives a polling payload."""
    return not isinstance(packet, str) or SEPARATOR not in packet


def count_fitting(packets: Sequence[Wire], room: int) -> int:
    """How many of the first packets make a payload of no more than `room` bytes; one at the least."""
    size = -1  # the first needs no separator
    for count, packet in enumerate(packets):
        size += 1 + _size(packet)
        if size > room and count:
            return count
    return len(packets)


def _size(packet: Wire) -> int:
    """Bytes of a packet in a payload; binary is base64 there, after a `b`."""
    if not isinstance(packet, str):
        return 1 + (len(packet) + 2) // 3 * 4
    return len(packet) if packet.isascii() else len(packet.encode("utf-8", "replace"))
