"""What of a session outlives its process: enough for another one to go on with it.

No token is in it, only what tells a right one from a wrong one. Knows nothing of stores.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

from .packets import Wire


def key_of(epoch: str, token: str) -> bytes:
    """What is kept of a token. Half a character is a wrong token like any other."""
    return hashlib.sha256(f"{epoch}:{token}".encode("utf-8", "surrogatepass")).digest()


def is_known(key: bytes, keys: Iterable[bytes]) -> bool:
    """Whether it is one of them; the time that this takes does not say which."""
    known = False
    for each in keys:
        known |= compare_digest(key, each)
    return known


@dataclass(frozen=True, slots=True)
class Parked:
    """`keys` are of the tokens that resume it. `sent` and `received` count numbered frames, `kept` are the
    last of those sent. `channel` is the last channel number; `users` are the URLs of the channels, with who
    they were for, as text.
    """

    keys: tuple[bytes, ...]
    sent: int
    received: int
    channel: int
    users: tuple[tuple[str, str | None], ...]
    kept: tuple[Wire, ...]

    def accepts(self, key: bytes, received: int | None) -> bool:
        """Whether this token resumes it, and every frame after `received` is here. None: none is wanted."""
        if not is_known(key, self.keys):
            return False
        return received is None or self.sent - len(self.kept) <= received <= self.sent


def write_parked(parked: Parked) -> bytes:
    """As ASCII."""
    state = {
        "version": 1,
        "keys": [key.hex() for key in parked.keys],
        "sent": parked.sent,
        "received": parked.received,
        "channel": parked.channel,
        "users": parked.users,
        "kept": [frame if isinstance(frame, str) else [_base64(frame)] for frame in parked.kept],
    }
    return json.dumps(state, separators=(",", ":")).encode("ascii")


def read_parked(state: bytes) -> Parked:
    """Raises `ValueError` for what `write_parked` has not written, or a later version of it has."""
    try:
        fields: dict[str, Any] = json.loads(state)
        if fields["version"] != 1:
            raise ValueError("another version")
        return Parked(
            tuple(bytes.fromhex(key) for key in fields["keys"]),
            int(fields["sent"]),
            int(fields["received"]),
            int(fields["channel"]),
            tuple((str(url), user) for url, user in fields["users"]),
            tuple(
                frame if isinstance(frame, str) else base64.b64decode(frame[0]) for frame in fields["kept"]
            ),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError("this is no parked session") from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
