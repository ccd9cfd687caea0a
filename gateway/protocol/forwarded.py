"""Who is at the other end, when a reverse proxy stands between.

`X-Forwarded-*` is believed only if the machine that sent it is one of `trusted_proxies`; from anyone
else it is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Peer:
    """The browser's address, and scheme and host as the browser used them."""

    address: str
    scheme: str
    host: str


def parse_networks(texts: Iterable[str]) -> list[Network]:
    """Addresses and networks (`10.0.0.0/8`); `ValueError` names the one that is neither."""
    return [ip_network(text.strip(), strict=False) for text in texts]


def _address(text: str) -> Address | None:
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:  # Azure's Application Gateway adds the port, and AWS's ALB on demand
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


def _trusts(networks: Iterable[Network], address: Address | None) -> bool:
    return address is not None and any(address in network for network in networks)


def _hops(headers: Mapping[str, str]) -> list[str]:
    """All of `X-Forwarded-For`. HAProxy adds a line of its own behind what the client has sent."""
    get_all = getattr(headers, "getall", None)
    lines = [headers.get("X-Forwarded-For", "")] if get_all is None else get_all("X-Forwarded-For", [])
    return ",".join(lines).split(",")


def read_peer(peer: str, scheme: str, headers: Mapping[str, str], trusted: list[Network]) -> Peer:
    """Where a request comes from. `peer` is the TCP peer's address, or "" for a unix socket.

    Of a chain of proxies the right-most address that is not trusted is the browser: everything to
    the left of it is only what that machine claims.
    """
    host = headers.get("Host", "")
    if not trusted or not _trusts(trusted, _address(peer)):
        return Peer(peer, scheme, host)
    address = peer
    for hop in reversed(_hops(headers)):
        parsed = _address(hop)
        if parsed is None:
            break
        address = str(parsed)
        if not _trusts(trusted, parsed):
            break
    proto = headers.get("X-Forwarded-Proto", "").strip().lower()
    forwarded_host = headers.get("X-Forwarded-Host", "").strip()
    return Peer(
        address,
        proto if proto in ("http", "https") else scheme,
        forwarded_host or host,
    )
