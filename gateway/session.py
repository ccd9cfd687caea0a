"""The session of our own client: it outlives its connections, and holds many channels.

An `Application` to the Engine.IO channels that carry it (its *carriers*), and the source of the channels
that routes serve. Knows the session protocol (`docs/protocol.md`), nothing of HTTP or of what serves a route.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from math import inf

from .application import Application, Channel, Directory, Request
from .application import Refused as ApplicationRefused
from .channels import ServedChannel, short
from .config import Settings
from .protocol import frames
from .protocol.frames import FrameError
from .protocol.handshake import POLLING, Refused
from .protocol.packets import Wire
from .protocol.paths import read_path
from .protocol.reasons import Closing, Reason
from .protocol.replay import Inbox, Outbox, ReplayError
from .registry import Deadlines

log = logging.getLogger("gateway")

_PROTOCOL_ERROR = 1002  # RFC 6455 section 7.4.1
_TRY_AGAIN = 1012  # registered with IANA as "service restart"
_REPLAY_SHARE = 15 / 16  # of what may wait for a client


class SessionError(Exception):
    """The client broke a rule of the session protocol."""


class SessionChannel(ServedChannel):
    """A virtual WebSocket: one channel of a session."""

    def __init__(self, session: Session, number: int, request: Request, settings: Settings) -> None:
        super().__init__(session.id, request, _NOBODY, settings)
        self._session = session
        self._number = number
        self._opening = True  # until `open` returns
        self._accepted = False
        self._left = False  # the client closed it before it was accepted
        self._early: list[Wire] = []  # what the application says before the client knows the channel
        self._text_prefix = frames.channel_text(number)
        self._binary_prefix = frames.binary_prefix(number)

    @property
    def transport(self) -> str:
        return self._session.transport

    @property
    def congested(self) -> bool:
        return self._session.congested

    async def drain(self) -> None:
        await self._session.drain()

    def send(self, data: str | bytes) -> None:
        if self.is_over:
            return
        if isinstance(data, str):
            self._post(frames.text_frame(self._text_prefix, data))
        else:
            self._post(self._binary_prefix + data)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self.is_over:
            return
        self._post(frames.encode(frames.Close(self._number, code, reason)))
        self.over(Closing(Reason.SERVER_CLOSE, code, reason))

    def _post(self, frame: Wire) -> None:
        if self._accepted:
            self._session.post(frame)
        else:
            self._early.append(frame)

    @property
    def is_busy(self) -> bool:
        """Whether the application is at work for it."""
        return self._opening or self._mailbox.is_running

    async def open(self, directory: Directory, offered: tuple[str, ...]) -> None:
        """Find who serves it, ask, and tell the client."""
        try:
            await self._open_at(directory, offered)
        finally:
            self._opening = False

    async def _open_at(self, directory: Directory, offered: tuple[str, ...]) -> None:
        self.offered = offered
        try:
            served = await directory.find(self.request)
            if self.is_over:  # it left while `auth` was asked: nothing is opened any more
                return
            self.request, self.user = served.request, served.user
            self.serve_by(served.application)
            await self.admit()
        except (Refused, ApplicationRefused) as refused:
            if not self._left:
                reason = refused.message if isinstance(refused, Refused) else refused.reason
                self._session.refuse(self._number, refused.status, reason)
            return
        if self._left:
            return
        self._accepted = True
        self._session.post(frames.encode(frames.Accept(self._number, self.protocol)))
        for frame in self._early:
            self._session.post(frame)
        self._early.clear()

    def receive(self, data: str | bytes) -> None:
        """One message of the client, which may send none before it is accepted."""
        if not self._accepted:
            raise SessionError("a message on a channel that is not accepted")
        self.deliver(data)

    def closed_by_client(self, code: int, reason: str) -> None:
        """The client said `C`: answer, unless this was the answer."""
        if not self.is_over:
            self._left = True
            self._session.post(frames.encode(frames.Close(self._number)))
            self.over(Closing(Reason.CLIENT_CLOSE, code, reason))

    def _pause(self) -> None:
        self._session.behind(self)

    def _resume(self) -> None:
        self._session.caught_up(self)


class Session:
    """`carrier` is None while it is detached. `scheduled` belongs to the deadlines' heap."""

    def __init__(self, sessions: Sessions, session_id: str, token: str) -> None:
        self.id = session_id
        self.token = token
        self.scheduled = inf
        self._previous_token = token
        self._sessions = sessions
        self._settings = sessions.settings
        self._carrier: Channel | None = None
        self._last_transport = POLLING
        self._outbox = Outbox()
        self._inbox = Inbox()
        self._channels: dict[int, SessionChannel] = {}
        self._leavers: list[SessionChannel] = []  # closed by the client, but the application is at work yet
        self._last_channel = 0
        self._behind: set[SessionChannel] = set()
        self._caught_up = asyncio.Event()
        self._drained = asyncio.Event()
        self._grace_until = inf
        self._leaving = False
        self._lost = Reason.TRANSPORT_CLOSE
        self._over = False

    # -- connections -------------------------------------------------------------------------------

    @property
    def transport(self) -> str:
        """How the browser is connected now; while it is not, how it last was."""
        return self._carrier.transport if self._carrier is not None else self._last_transport

    def accepts(self, resume: frames.Resume) -> bool:
        """Whether this hello may have the session, and nothing that it needs is gone."""
        token = resume.token.encode("utf-8", "surrogatepass")
        known = compare_digest(token, self.token.encode())
        known |= compare_digest(token, self._previous_token.encode("utf-8", "surrogatepass"))
        return known and self._outbox.acked <= resume.received <= self._outbox.sent

    def attach(self, carrier: Channel, resume: frames.Resume | None = None) -> None:
        """Go on over this connection: welcome, then everything that the client may not have."""
        older, self._carrier = self._carrier, carrier
        if older is not None:
            older.data[_SESSION] = None
            older.close()
        self._grace_until = inf
        self._leaving = False
        received = self._inbox.acknowledged()
        if resume is not None:
            self._previous_token, self.token = resume.token, self._sessions.new_token()
            self._acknowledge(resume.received)
        welcome = frames.Welcome(
            self.id,
            self.token,
            self._sessions.epoch,
            resume is not None,
            received,
            round(self._settings.timeouts.grace * 1000),
        )
        carrier.send(frames.encode(welcome))
        for frame in self._outbox.replay():
            carrier.send(frame)

    def detach(self, carrier: Channel, reason: Reason) -> None:
        """The connection is gone; the session waits for another one."""
        if self._carrier is not carrier or self._over:
            return
        self._carrier = None
        self._last_transport = carrier.transport
        self._lost = reason
        timeouts = self._settings.timeouts
        grace = timeouts.leave if self._leaving or not self._channels else timeouts.grace
        self._grace_until = self._sessions.deadlines.now() + grace
        self._sessions.deadlines.schedule(self)

    def end(self, reason: Reason, *, code: int = 1006) -> None:
        """It is over: its channels end, and the client is told if it can be."""
        if self._over:
            return
        self._over = True
        self._sessions.forget(self)
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.data[_SESSION] = None
            carrier.send(frames.encode(frames.End(reason.code, reason.text, reason.value.retry)))
            carrier.close()
        for channel in list(self._channels.values()):
            channel.over(Closing(reason, code, ""))
        self._channels.clear()
        self._caught_up.set()
        self._drained.set()

    # -- sending -----------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Whether more than half of what may wait for an ack is waiting."""
        limits = self._settings.limits
        return not self._over and (
            self._outbox.size * 2 > limits.outbound_bytes or len(self._outbox) * 2 > limits.outbound_messages
        )

    async def drain(self) -> None:
        """Return when it is not congested, or over."""
        while self.congested:
            self._drained.clear()
            await self._drained.wait()

    def post(self, frame: Wire) -> None:
        """Send a numbered frame, now or after the next resume."""
        if self._over:
            return
        limits = self._settings.limits
        outbox = self._outbox
        # A carrier has the same bounds, and a welcome and acks to carry beside a whole replay.
        full = outbox.size >= limits.outbound_bytes * _REPLAY_SHARE
        if full or len(outbox) >= limits.outbound_messages * _REPLAY_SHARE:
            self.end(Reason.SLOW_CONSUMER)
            return
        outbox.add(frame)
        if self._carrier is not None:
            self._carrier.send(frame)
        if self.congested:
            self._caught_up.set()  # see `_wait_caught_up`

    def refuse(self, number: int, status: int, reason: str) -> None:
        """The channel is not opened; its number is spent."""
        self._channels.pop(number, None)
        self.post(frames.encode(frames.Refuse(number, status, reason)))

    def _acknowledge(self, count: int) -> None:
        self._outbox.acknowledge(count)
        if not self.congested:
            self._drained.set()

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self, data: str | bytes) -> Awaitable[None] | None:
        """One frame. Raises `FrameError`, `ReplayError` or `SessionError`: the client is broken.

        What it returns is to be awaited before the next frame: an application is behind.
        """
        frame = frames.decode(data)
        match frame:
            case frames.Ack(count):
                self._acknowledge(count)
                return None
            case frames.Bye():
                self._bye()
                return None
            case frames.Data(number, message):
                self._count(len(data))
                channel = self._channel(number)
                if channel is not None:
                    channel.receive(message)
                return self._wait_caught_up() if self._behind else None
            case frames.Open():
                self._count(len(data))
                self._open(frame)
            case frames.Close(number, code, reason):
                self._count(len(data))
                channel = self._channel(number)
                if channel is not None:
                    del self._channels[number]
                    channel.closed_by_client(1005 if code is None else code, reason)
                    self._note_leavers(channel)
            case _:
                raise SessionError("a client does not send this")
        return None

    def _count(self, size: int) -> None:
        first = self._inbox.ack_at is None
        if self._inbox.add(size, self._sessions.deadlines.now()):
            self._send_ack()
        elif first:
            self._sessions.deadlines.schedule(self)

    def _send_ack(self) -> None:
        if self._carrier is not None:
            self._carrier.send(frames.encode(frames.Ack(self._inbox.acknowledged())))

    def _channel(self, number: int) -> SessionChannel | None:
        """The channel; None if it is over. A number that was never opened is an error."""
        if number > self._last_channel:
            raise SessionError("a channel that was never opened")
        return self._channels.get(number)

    def _open(self, frame: frames.Open) -> None:
        if frame.channel <= self._last_channel:
            raise SessionError("a channel number is used twice")
        self._last_channel = frame.channel
        self._note_leavers()
        if len(self._channels) + len(self._leavers) >= self._settings.limits.channels:
            self.refuse(frame.channel, 429, "too many open sockets in one page")
            return
        channel = self._sessions.new_channel(self, frame)
        self._channels[frame.channel] = channel
        self._sessions.spawn(channel.open(self._sessions.directory, frame.protocols))

    def _note_leavers(self, *more: SessionChannel) -> None:
        self._leavers = [channel for channel in (*self._leavers, *more) if channel.is_busy]

    def _bye(self) -> None:
        """The page is being left: a reload is back at once, or nobody is."""
        self._leaving = True
        carrier = self._carrier
        if carrier is not None:
            self.detach(carrier, Reason.CLIENT_CLOSE)
            carrier.data[_SESSION] = None
            carrier.close()

    def behind(self, channel: SessionChannel) -> None:
        """An application has more waiting than it may: stop reading."""
        self._behind.add(channel)
        self._caught_up.clear()

    def caught_up(self, channel: SessionChannel) -> None:
        """It has not any more."""
        self._behind.discard(channel)
        if not self._behind:
            self._caught_up.set()

    async def _wait_caught_up(self) -> None:
        """Read no further while an application is behind.

        Unless we are congested: an application may be behind because it waits for the acks that stand
        behind all this data. Then reading goes on, within the bounds of `Mailbox.is_overfull`.
        """
        while self._behind and not self.congested and not self._over:
            self._caught_up.clear()
            await self._caught_up.wait()
        if any(channel.is_overfull for channel in self._behind):
            self.end(Reason.SLOW_CONSUMER)

    @property
    def request(self) -> Request:
        """The request of the connection in use."""
        assert self._carrier is not None
        return self._carrier.request

    # -- time --------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `judge` wants to be called next."""
        if self._over:
            return inf
        if self._carrier is None:
            return self._grace_until
        return inf if self._inbox.ack_at is None else self._inbox.ack_at

    def spare(self, now: float) -> None:
        """After a stall: whoever was about to come back has `leave` seconds more."""
        if self._carrier is None:
            self._grace_until = max(self._grace_until, now + self._settings.timeouts.leave)

    def judge(self, now: float) -> None:
        """An ack is due, or the grace is over."""
        if self._carrier is not None:
            self._send_ack()
        elif now >= self._grace_until:
            self.end(self._lost)


_SESSION = "gateway.session"


class Sessions(Application):
    """All sessions of this process; serves the carriers.

    `new_id` and `new_token` make unguessable text of at least 128 and 256 bits.
    """

    def __init__(
        self,
        directory: Directory,
        settings: Settings,
        deadlines: Deadlines,
        *,
        new_id: Callable[[], str],
        new_token: Callable[[], str],
        epoch: str,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.deadlines = deadlines
        self.new_token = new_token
        self.epoch = epoch
        self._new_id = new_id
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    # What carriers call (`Application`).

    def open(self, channel: Channel) -> None:
        """Who it is will be told by the hello."""
        channel.data[_SESSION] = None

    def message(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        """One frame of a carrier."""
        session: Session | None = channel.data[_SESSION]
        try:
            if session is not None:
                return session.receive(data)
            if not channel.data.get(_DONE):
                self._hello(channel, data)
        except (FrameError, ReplayError, SessionError) as error:
            self._broken(channel, session, error)
        return None

    def close(self, channel: Channel, closing: Closing) -> None:
        """A carrier is gone."""
        session: Session | None = channel.data[_SESSION]
        if session is not None:
            session.detach(channel, closing.reason)

    def _hello(self, channel: Channel, data: str | bytes) -> None:
        hello = frames.decode(data)
        if not isinstance(hello, frames.Hello):
            raise SessionError("the first frame is not a hello")
        channel.data[_DONE] = True
        session = self._resumable(hello.resume)
        if session is None:
            session = Session(self, self._new_id(), self.new_token())
            self._sessions[session.id] = session
            channel.data[_SESSION] = session
            session.attach(channel)
        else:
            channel.data[_SESSION] = session
            session.attach(channel, hello.resume)

    def _resumable(self, resume: frames.Resume | None) -> Session | None:
        if resume is None or resume.epoch != self.epoch:
            return None
        session = self._sessions.get(resume.session)
        return session if session is not None and session.accepts(resume) else None

    def _broken(self, channel: Channel, session: Session | None, error: Exception) -> None:
        log.info("session protocol error of %s: %s", short(channel.id), error)
        if session is not None:
            session.end(Reason.PARSE_ERROR)
            return
        channel.data[_DONE] = True
        channel.send(frames.encode(frames.End(_PROTOCOL_ERROR, "protocol error", False)))
        channel.close()

    # What sessions call.

    def new_channel(self, session: Session, frame: frames.Open) -> SessionChannel:
        """The channel of an open frame. A URL without an honest path is the URL of nothing."""
        query = frame.url.partition("?")[2]
        carrier = session.request
        request = Request(
            path=read_path(frame.url) or "",
            query_string=query,
            headers=carrier.headers,
            remote=carrier.remote,
            scheme=carrier.scheme,
            host=carrier.host,
            raw=carrier.raw,
        )
        return SessionChannel(session, frame.channel, request, self.settings)

    def spawn(self, opening: Awaitable[None]) -> None:
        """Open a channel beside the reading of frames."""
        task = asyncio.ensure_future(opening)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, session: Session) -> None:
        """It is over."""
        self._sessions.pop(session.id, None)
        self.deadlines.forget(session)

    def shutdown(self) -> None:
        """End all of them; the clients are told to come back."""
        for session in list(self._sessions.values()):
            session.end(Reason.SHUTDOWN, code=_TRY_AGAIN)


_DONE = "gateway.hello"


class _Nobody(Application):
    """Serves a channel until the directory has found who does."""

    def open(self, channel: Channel) -> None:
        raise AssertionError("opened before it was found")

    def message(self, channel: Channel, data: str | bytes) -> None:
        raise AssertionError("a message before it was opened")

    def close(self, channel: Channel, closing: Closing) -> None:
        """It left before it was found."""


_NOBODY = _Nobody()
