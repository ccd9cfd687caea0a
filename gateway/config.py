"""Every setting: its unit, its default, and why it is what it is.

Reads them from text; knows nothing of files (`configfile.py`) or flags (`gateway/cli/`), nor of what is
done with a setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from .protocol.handshake import POLLING, WEBSOCKET

MAX_PAYLOAD: Final = 1_000_000  # bytes; the default of Node's engine.io and of python-engineio


@dataclass(frozen=True, slots=True)
class Ping:
    """Heartbeat. A vanished client is noticed within `interval + timeout + 0.2` seconds."""

    interval: float = 10.0  # s; under every idle limit of 30 s, and 20 s to notice a pulled cable
    timeout: float = 10.0  # s; long enough for a bad mobile line
    slack: float = 0.0  # s; added to the interval that clients are told, for those with a slow clock


PROFILES: Final = {
    "compat": Ping(25.0, 20.0),  # what Engine.IO servers use
    "default": Ping(),
    "fast": Ping(3.0, 3.0),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds. Nothing that a client does may cost more than these."""

    payload: int = MAX_PAYLOAD  # bytes of one message, frame or POST
    outbound_bytes: int = 1_048_576  # waiting to be sent to one client (as Centrifugo)
    outbound_messages: int = 16_384  # ten thousand small ones in one turn of the loop are ordinary
    inbound_bytes: int = 1_048_576  # waiting for one client's handler
    inbound_messages: int = 64
    message: int = 8_388_608  # bytes of one message of our own client, which cuts it into parts
    connections: int = 100_000  # per process
    # A company behind one proxy is one address, and so is everybody behind a proxy that nobody has declared.
    per_address: int = 20_000  # connections
    per_user: int = 1_000  # sessions, where a route asks for a user
    handshakes: int = 100  # per second and address, after a first `half_open` at once
    hooks: int = 100  # cleanup hooks at the same time
    attempts: int = 18  # of a cleanup hook; waits of 1 s, 2 s, 4 s, … 6 h between them: 21 hours in all
    # Handshakes of one address without a second request. After a restart all users of a proxy come back
    # in the same second, and a proxy that nobody has declared makes the whole site one address.
    half_open: int = 4_000
    channels: int = 256  # open virtual WebSockets of one page
    threads: int = 64  # for blocking handlers; each waits for its turn beyond that
    pings: int = 100  # WebSocket pings per second; a browser cannot send any
    fragments: int = 4_096  # WebSocket frames of one message, empty ones included

    def is_full(self, size: int, count: int) -> bool:
        """Whether so many bytes, and messages, are all that may wait for one client."""
        return size >= self.outbound_bytes or count >= self.outbound_messages

    def is_congested(self, size: int, count: int) -> bool:
        """Whether they are more than half of it."""
        return size * 2 > self.outbound_bytes or count * 2 > self.outbound_messages


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds."""

    connect: float = 10.0  # from the handshake to the first request after it
    upgrade: float = 10.0  # from the probe's WebSocket to the end of the upgrade (as Node's engine.io)
    poll_hold: float = 4.0  # a waiting GET is answered after this: 5 s idle limits exist, 4 s passed all
    poll_grace: float = 5.0  # from the loss of a waiting GET to the next request
    body: float = 15.0  # for the body of a POST
    send: float = 10.0  # a write that is stuck for this long is a client that does not read
    close: float = 10.0  # for what is still to be sent when a connection is closed
    handler: float = 5.0  # for the last handler, before `close` is called anyway
    grace: float = 15.0  # a session without a connection is kept (as Shiny Server)
    leave: float = 2.0  # the same after the page said good-bye: a reload is back sooner
    lease: float = 15.0  # a node that has not been heard of for this long is lost, and others clean up
    hook: float = 30.0  # for one attempt of a cleanup hook
    drain: float = 10.0  # for a stop
    header: float = 10.0  # for the head of a request


@dataclass(frozen=True, slots=True)
class Settings:
    """What a gateway, or one `EngineServer`, runs with."""

    ping: Ping = field(default_factory=Ping)
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    transports: tuple[str, ...] = (POLLING, WEBSOCKET)
    upgrades: bool = True
    exit_when_empty: float | None = None  # s after the end of the last session

    @property
    def offered_upgrades(self) -> tuple[str, ...]:
        """What the open packet of a polling connection offers."""
        return (WEBSOCKET,) if self.upgrades and WEBSOCKET in self.transports else ()


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: a host and port (0: any free one), or the path of a unix socket."""

    host: str = "127.0.0.1"  # nobody else, until somebody decides otherwise
    port: int = 8000
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it; "" for a unix socket."""
        if self.path:
            return ""
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{here}]:{self.port}" if ":" in here else f"http://{here}:{self.port}"


_LISTEN = re.compile(r"(?:(?P<host>[^:\[\]\s]*|\[[0-9a-fA-F:.]+\]):)?(?P<port>[0-9]{1,5})")


def read_listen(text: str) -> Listen:
    """`host:port`, `:port` for every address of this machine, `port`, or `unix:/path`.

    Raises `ValueError` with a sentence that says so.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Listen(path=text.removeprefix("unix:"))
    found = _LISTEN.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise ValueError(f"{text!r} is no address: write 127.0.0.1:8000, :8000 for all, or unix:/path")
    host = "127.0.0.1" if found["host"] is None else found["host"].strip("[]") or "0.0.0.0"  # noqa: S104
    return Listen(host, int(found["port"]))


_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|m|h|)")


def read_duration(text: str) -> float:
    """Seconds: `10`, `10s`, `500ms`, `2m`. Raises `ValueError` with a sentence that says so."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0.001 <= seconds <= 86_400:
        raise ValueError(f"{text!r} is no duration: write 10, 10s, 500ms or 2m")
    return seconds


def read_ping(text: str) -> Ping:
    """A profile's name, or `interval+timeout` as in `10s+5s`. Raises `ValueError`."""
    if text in PROFILES:
        return PROFILES[text]
    interval, plus, timeout = text.partition("+")
    if not plus:
        raise ValueError(f"{text!r} is no heartbeat: write {', '.join(PROFILES)}, or 10s+5s")
    return Ping(read_duration(interval), read_duration(timeout))
