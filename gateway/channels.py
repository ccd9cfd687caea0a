"""A channel that is served by an application: opens it, hands it messages, closes it once.

Knows the application and its mailbox, not where the messages come from. `EngineChannel` is the one
over a stock Engine.IO connection.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable
from typing import Any

from .application import Application, Channel, Refused, Request
from .config import Settings
from .connection import Connection
from .mailbox import Mailbox
from .protocol.packets import message
from .protocol.reasons import Closing, Reason

log = logging.getLogger("gateway.application")


def short(identity: str) -> str:
    """Enough of an id to find it again in the log: whoever has all of it has the connection."""
    return identity[:6] + "…"


class ServedChannel(Channel):
    """Call `admit` first, then `deliver` for every message, and `over` at the end."""

    def __init__(
        self,
        channel_id: str,
        request: Request,
        application: Application,
        settings: Settings,
        *,
        user: Any = None,
        offered: tuple[str, ...] = (),
    ) -> None:
        self.id = channel_id
        self.request = request
        self.user = user
        self.offered = offered
        self.protocol = ""
        self.data: dict[str, Any] = {"id": channel_id}
        self._application = application
        self._limit = settings.timeouts.handler
        self._opened = False
        self._over = False
        self._mailbox = Mailbox(
            settings.limits.inbound_messages,
            settings.limits.inbound_bytes,
            self._pause,
            self._resume,
        )

    @abstractmethod
    def _pause(self) -> None:
        """The application is behind: stop reading."""

    @abstractmethod
    def _resume(self) -> None:
        """Read again."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._over

    def serve_by(self, application: Application) -> None:
        """Set who serves it, before `admit`."""
        self._application = application

    @property
    def is_full(self) -> bool:
        """Whether the application is so far behind that nothing should be read."""
        return self._mailbox.is_full

    @property
    def is_overfull(self) -> bool:
        """Whether it is so far behind, although nothing should have been read, that it has to end."""
        return self._mailbox.is_overfull

    async def admit(self) -> None:
        """Ask the application. Raises `Refused`; an application that fails refuses with 500."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._mailbox.post(self._open, answer)
        await answer

    def deliver(self, data: str | bytes) -> None:
        """One message of the browser."""
        if not self._over:
            self._mailbox.post(self._application.message, self, data, size=len(data))

    def over(self, closing: Closing) -> None:
        """The channel has ended. Only the first call counts."""
        if not self._over:
            self._over = True
            log.log(closing.reason.value.level, "%s ended: %s", short(self.id), closing.reason.text)
            self._mailbox.finish(self._close, closing, limit=self._limit)

    async def _open(self, answer: asyncio.Future[None]) -> None:
        try:
            awaitable = self._application.open(self)
            if awaitable is not None:
                await awaitable
            self._opened = True
        except Refused as refused:
            if not answer.done():
                answer.set_exception(refused)
        except asyncio.CancelledError:
            if not answer.done():
                answer.set_exception(Refused(503, "the application did not answer"))
            raise
        except Exception:  # the application's own code: anything may come out of it
            log.exception("open failed for %s", self.request.path)
            if not answer.done():
                answer.set_exception(Refused(500, "the application failed"))
        else:
            if not answer.done():
                answer.set_result(None)

    def _close(self, closing: Closing) -> Awaitable[None] | None:
        return self._application.close(self, closing) if self._opened else None


class EngineChannel(ServedChannel):
    """The channel of a stock Engine.IO client. Its id is the `sid`."""

    def __init__(
        self,
        connection: Connection,
        request: Request,
        application: Application,
        settings: Settings,
        *,
        user: Any = None,
    ) -> None:
        super().__init__(connection.sid, request, application, settings, user=user)
        self.connection = connection
        connection.listener = self

    @property
    def transport(self) -> str:
        return self.connection.transport_name

    def send(self, data: str | bytes) -> None:
        self.connection.send(message(data))

    @property
    def congested(self) -> bool:
        return self.connection.congested

    async def drain(self) -> None:
        drained = asyncio.Event()
        self.connection.when_drained(drained.set)
        await drained.wait()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Engine.IO has no close codes: what was sent before goes out, then the client is told."""
        self.connection.close(Reason.SERVER_CLOSE)

    # What the connection calls (`connection.Listener`).

    def message(self, data: str | bytes) -> None:
        """One message of the client."""
        self.deliver(data)

    def closed(self, reason: Reason) -> None:
        """The connection is over."""
        self.over(Closing.by(reason))

    def _pause(self) -> None:
        self.connection.pause()

    def _resume(self) -> None:
        self.connection.resume()
