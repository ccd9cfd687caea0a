"""Contract 3: what serves a channel.

A channel is what an application sees of one browser socket, whichever way it came: a plain
WebSocket, a stock Engine.IO connection, or a virtual WebSocket of our own client. `Echo` is the
simplest complete application.

Promises to an application, for each channel:
- calls come one at a time and in order: `open`, then every `message`, then `close`;
- `close` comes exactly once if `open` has returned, and not at all if it has raised;
- a call that returns an awaitable is awaited before the next one is made; one that returns None
  costs no task;
- an application that is behind stops the reading of that channel; nothing is dropped, and the
  channel is not expired for its silence meanwhile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from .protocol.reasons import Closing

Overflow = Literal["close", "drop_oldest", "latest"]
OVERFLOWS: Final[tuple[Overflow, ...]] = get_args(Overflow)


@dataclass(frozen=True, slots=True)
class Request:
    """What is known of the browser: taken from the request that opened the channel.

    `path` is decoded, `query_string` is not; `headers` is case-insensitive. `remote` is the
    browser's address, `scheme` and `host` are as the browser used them (see `trusted_proxies`).
    `params` is what the route's pattern found in the path. `raw` is the web framework's request
    where there is one.
    """

    path: str
    query_string: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    remote: str = ""
    scheme: str = "http"
    host: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    raw: Any = None


class Refused(Exception):
    """Raised by `Application.open`: the channel is not for this client.

    `status` is the HTTP status that says so; `reason` is shown to the client. `body` is JSON text that
    a stock Engine.IO client gets in place of Engine.IO's own answer.
    """

    def __init__(self, status: int = 403, reason: str = "Forbidden", body: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.body = body


@dataclass(frozen=True, slots=True)
class Served:
    """What a directory found: who serves the channel, for which user, and the route's pattern."""

    application: Application
    request: Request
    user: Any = None
    route: str = ""


class Directory(ABC):
    """Finds what serves a path. `protocol.handshake.Refused` says why there is nothing."""

    @abstractmethod
    async def find(self, request: Request) -> Served:
        """Origin and user are checked by the route that is found."""

    @abstractmethod
    async def check(self, request: Request, admitted: Request | None, user: Any) -> None:
        """The browser of a channel is back: `request` has the channel's URL, and what came with it now.

        Origin and user are checked again. `user` is who it was, by the `admitted` request; as text
        (`ledger.user_text`) where that request is not known any more. Raises `Refused` as `find` does.
        """


class Channel(ABC):
    """One browser socket. Use it from the event loop's thread only.

    `id` is public and names the session. `data` belongs to the application. `offered` are the
    subprotocols that the browser offers; an application sets `protocol` to one of them in `open`.

    `overflow` says what becomes of a message for which the buffer of our own client is full. `close`: the
    channel that has most waiting is closed. `drop_oldest`, `latest`: the oldest message of this channel, or
    all but the new one, are dropped, and the browser is told so. Clients of other kinds are closed.
    """

    overflow: Overflow = "close"

    id: str
    request: Request
    offered: tuple[str, ...]
    protocol: str
    user: Any
    data: dict[str, Any]
    entry: Any = None  # the session's `ledger.Entry`, where sessions are recorded

    @property
    @abstractmethod
    def transport(self) -> str:
        """`polling` or `websocket`: how the browser is connected now."""

    @property
    def away(self) -> float:
        """For how many seconds it had been known, at the end, that nobody was there any more."""
        return 0.0

    @abstractmethod
    def send(self, data: str | bytes) -> None:
        """Send one message. Never blocks; a no-op once the channel is over.

        A client that does not read is closed when its buffer is full (`Reason.SLOW_CONSUMER`), unless
        `overflow` says otherwise: whoever sends much at once awaits `drain` while the channel is `congested`.
        """

    @property
    @abstractmethod
    def congested(self) -> bool:
        """Whether more than half of the buffer is waiting for the client, some of it from this channel."""

    @abstractmethod
    async def drain(self) -> None:
        """Return when the channel is not congested, or over."""

    @abstractmethod
    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it: 1000 or 3000 to 4999, and at most 123 bytes of reason. A no-op once it is over."""


class Application(ABC):
    """What serves channels. Each method may be a plain function or a coroutine function."""

    @abstractmethod
    def open(self, channel: Channel) -> Awaitable[None] | None:
        """A browser asks for a channel. Raise `Refused` to send it away."""

    @abstractmethod
    def message(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        """One message, exactly as the browser sent it."""

    @abstractmethod
    def close(self, channel: Channel, closing: Closing) -> Awaitable[None] | None:
        """The channel is over."""


class Echo(Application):
    """Sends every message back."""

    def open(self, channel: Channel) -> None:
        """Everyone is welcome."""

    def message(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        """Back it goes; a client that does not read its echo is not read any further."""
        channel.send(data)
        return channel.drain() if channel.congested else None

    def close(self, channel: Channel, closing: Closing) -> None:
        """Nothing to clean up."""
