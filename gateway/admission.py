"""Who may come in: how many of one address, of one user and in all, and how often.

Nothing but counts. Time is an argument, in monotonic seconds. Knows addresses and users as text, not what
they open.
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, ip_address
from math import ceil
from typing import Final

from .config import Limits
from .protocol.handshake import Code, Refused

_LATER: Final = 5  # s: when to come back to a place that is full
_FEW: Final = 1_000  # addresses that may be remembered although they have nothing to answer for


class Admission:
    """What one process lets in. Whoever has entered settles at most once, and leaves once.

    What is too much is `protocol.handshake.Refused`: 429 for one address or user, 503 for everybody.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inside: Counter[str] = Counter()
        self._half_open: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self._quiet_at: dict[str, float] = {}  # when an address will have its first burst again
        self._sweep_at = _FEW
        self.total = 0

    # -- how often ---------------------------------------------------------------------------------

    def knock(self, address: str, now: float) -> None:
        """A handshake of `address` begins. Raises `Refused` (429) if there were too many of late.

        A token bucket: `half_open` at once, then `handshakes` per second. One that is refused takes nothing.
        """
        limits = self._limits
        who = _group(address)
        price = 1 / limits.handshakes
        quiet_at = max(self._quiet_at.get(who, now), now) + price
        wait = quiet_at - now - limits.half_open * price
        if wait > price / 1e6:  # the rounding of large sums
            raise _full("too many handshakes of this address; come back later", after=ceil(wait))
        self._quiet_at[who] = quiet_at
        if len(self._quiet_at) > self._sweep_at:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Forget those that have been quiet for long enough: so there are as many as there is traffic."""
        self._quiet_at = {who: when for who, when in self._quiet_at.items() if when > now}
        self._sweep_at = max(_FEW, 2 * len(self._quiet_at))

    # -- how many connections ----------------------------------------------------------------------

    def enter(self, address: str) -> str:
        """One connection more; what is to be given to `settle` and `leave`. Raises `Refused`."""
        limits = self._limits
        who = _group(address)
        if self.total >= limits.connections:
            raise _full("this gateway holds as many connections as it may", 503)
        if self._inside[who] >= limits.per_address:
            raise _full("this address has as many connections as one may have")
        if self._half_open[who] >= limits.half_open:
            raise _full("too many handshakes from this address have led to nothing")
        self.total += 1
        self._inside[who] += 1
        self._half_open[who] += 1
        return who

    def settle(self, who: str) -> None:
        """It has proved itself by a second request."""
        _decrease(self._half_open, who)

    def leave(self, who: str) -> None:
        """It is gone. Call `settle` first, if it has not been."""
        self.total -= 1
        _decrease(self._inside, who)

    # -- how many sessions -------------------------------------------------------------------------

    def sign_in(self, user: str) -> None:
        """One session more of this user. Raises `Refused`."""
        if self._users[user] >= self._limits.per_user:
            raise _full("this user has as many sessions as one may have; close one of them")
        self._users[user] += 1

    def sign_out(self, user: str) -> None:
        """One session less."""
        _decrease(self._users, user)


def _full(reason: str, status: int = 429, after: int = _LATER) -> Refused:
    return Refused(Code.FORBIDDEN, reason, status, retry_after=after)


def _decrease(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _group(address: str) -> str:
    """Whom an address stands for: of IPv6, one subscriber has at least a /64."""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    return str(parsed.ipv4_mapped) if parsed.ipv4_mapped else parsed.exploded[:19] + "::/64"
