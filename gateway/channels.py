"""A channel that is served by an application: opens it, hands it messages, closes it once.

Knows the application and its mailbox, not where the messages come from. `EngineChannel` is the one
over a stock Engine.IO connection.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from .application import Application, Channel, Refused, Request
from .config import Limits, Settings
from .connection import Connection
from .ledger import Entry, Ledger
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
        self._settings = settings
        self._limit = settings.timeouts.handler
        self.entry: Entry | None = None
        self._route = ""
        self._is_session = False
        self._asked = False  # by `admit`; its end is told to the entry
        self._opened = False
        self._over = False
        self._mailbox = self._new_mailbox(settings.limits)

    def _new_mailbox(self, limits: Limits) -> Mailbox:
        return Mailbox(limits.inbound_messages, limits.inbound_bytes, self._pause, self._resume)

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

    def serve_by(self, application: Application, route: str = "") -> None:
        """Set who serves it, before `admit`."""
        self._application = application
        self._route = route

    def enlist(self, ledger: Ledger | None, route: str) -> None:
        """It is a session of its own, and is recorded when it is admitted."""
        if ledger is not None:
            self.entry = ledger.begin(self.id, self.end)
            self._route = route
            self._is_session = True

    def end(self, reason: Reason) -> None:
        """End it for a reason of our own, if it is a session of its own."""
        raise NotImplementedError

    @property
    def is_full(self) -> bool:
        """Whether the application is so far behind that nothing should be read."""
        return self._mailbox.is_full

    async def admit(self) -> None:
        """Ask the application. Raises `Refused`; an application that fails refuses with 500."""
        if self.entry is not None:
            await self.entry.ask(self._route, self.user)
            if self._over:  # it has left meanwhile, and nobody was asked
                self.entry.refused()
                raise Refused(503, "the client has left")
        self._asked = True
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._mailbox.post(self._open, answer)
        await answer

    def admit_now(self) -> None:
        """The same for an application that lets everybody in, without being awaited."""
        self._application.open(self)
        self._opened = True

    def deliver(self, data: str | bytes) -> None:
        """One message of the browser."""
        if not self._over:
            self._mailbox.post(self._application.message, self, data, size=len(data))

    def over(self, closing: Closing) -> None:
        """The channel has ended. Only the first call counts."""
        if not self._over:
            self._over = True
            log.log(closing.reason.value.level, "%s ended: %s", short(self.id), closing.reason.text)
            if self._is_session and self.entry is not None:
                self.entry.end(closing.reason, silence(closing.reason, self._settings) + self.away)
            self._mailbox.finish(self._close, closing, limit=self._limit)

    async def _open(self, answer: asyncio.Future[None]) -> None:
        try:
            awaitable = self._application.open(self)
            if awaitable is not None:
                await awaitable
            self._opened = True
            await self._accepted_by_application()
        except Refused as refused:
            self._refused()
            if not answer.done():
                answer.set_exception(refused)
        except asyncio.CancelledError:
            if self.entry is not None:
                self.entry.accepted()  # nobody knows: a thread goes on, and may accept yet
            if not answer.done():
                answer.set_exception(Refused(503, "the application did not answer"))
            raise
        except Exception:  # the application's own code: anything may come out of it
            self._refused()
            log.exception("open failed for %s", self.request.path)
            if not answer.done():
                answer.set_exception(Refused(500, "the application failed"))
        else:
            if not answer.done():
                answer.set_result(None)

    def _refused(self) -> None:
        self._asked = False
        if self.entry is not None:
            self.entry.refused()

    async def _accepted_by_application(self) -> None:
        if self.entry is not None:
            self.entry.accepted()
            await self.entry.saved()  # what `open` has begun is known before the client is let in

    def _close(self, closing: Closing) -> Awaitable[None] | None:
        awaitable = None
        try:
            awaitable = self._application.close(self, closing) if self._opened else None
        finally:
            if awaitable is None:
                self._release()
        return None if awaitable is None else self._release_after(awaitable)

    async def _release_after(self, awaitable: Awaitable[None]) -> None:
        try:
            await awaitable
        finally:
            self._release()

    def _release(self) -> None:
        """The application is done with it."""
        if self._asked and self.entry is not None:
            self._asked = False
            self.entry.left()


def silence(reason: Reason, settings: Settings) -> float:
    """For how long, in s, nothing had been heard when an end for this reason was noticed."""
    if reason is Reason.PING_TIMEOUT:
        return settings.ping.interval + settings.ping.timeout
    return settings.timeouts.connect if reason is Reason.NEVER_OPENED else 0.0


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

    @property
    def away(self) -> float:
        return self.connection.away

    def send(self, data: str | bytes) -> None:
        self.connection.send(message(data))

    @property
    def congested(self) -> bool:
        return self.connection.congested

    def send_now(self, data: str | bytes) -> bool:
        """Send a message if the client gets it with the next write. False, and nothing is sent, if not."""
        return self.connection.send_now(message(data))

    @property
    def room(self) -> int:
        """Bytes that the client gets with the next write."""
        return self.connection.room

    def when_ready(self, call: Callable[[], None]) -> None:
        """Call it whenever there is `room` again."""
        self.connection.when_ready = call

    async def drain(self) -> None:
        drained = asyncio.Event()
        self.connection.when_drained(drained.set)
        await drained.wait()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Engine.IO has no close codes: what was sent before goes out, then the client is told."""
        self.connection.close(Reason.SERVER_CLOSE)

    def end(self, reason: Reason) -> None:
        self.connection.close(reason)

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
