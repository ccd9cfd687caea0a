"""The session of our own client: it outlives its connections, and holds many channels.

An `Application` to the Engine.IO channels that carry it (its *carriers*), and the source of the channels
that routes serve. Knows the session protocol (`docs/protocol.md`), nothing of HTTP or of what serves a route.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from math import inf
from sys import maxsize
from typing import Any, TypeVar
from urllib.parse import quote

from .admission import Admission
from .application import Application, Channel, Directory, Request
from .application import Refused as ApplicationRefused
from .channels import EngineChannel, ServedChannel, short, silence
from .config import Limits, Settings
from .ledger import Entry, Ledger, user_text
from .mailbox import Mailbox, Pool
from .protocol import frames
from .protocol.frames import FrameError
from .protocol.handshake import POLLING, Refused
from .protocol.packets import Wire
from .protocol.parked import Parked, is_known, key_of, read_parked, write_parked
from .protocol.paths import read_path
from .protocol.reasons import Closing, Reason
from .protocol.receiving import Assembly, Inbox, ReplayError
from .protocol.sending import (
    SMALL_BYTES,
    SMALL_TEXT,
    UNDER_WAY,
    UNDER_WAY_FRAMES,
    Sender,
    binary_parts,
    text_parts,
)
from .registry import Deadlines

log = logging.getLogger("gateway")

T = TypeVar("T")

_PROTOCOL_ERROR = 1002  # RFC 6455 section 7.4.1
_TRY_AGAIN = 1012  # registered with IANA as "service restart"
_GOING_AWAY = 1001  # RFC 6455 section 7.4.1: a page that is left
_PARKED_AT_ONCE = 1_000  # sessions in one write
_ENDED_AT_ONCE = 100  # sessions, before others have a turn
_POLICY = 1008  # RFC 6455 section 7.4.1
_TOO_BIG = 1009  # RFC 6455 section 7.4.1
_FRAME_COST = 256  # bytes that a data frame counts as beside its data: `docs/protocol.md`, rule 10
_LAST_FRAMES = 0  # no channel's number: the lane of refusals and of closes
# Times `inbound_bytes`, and two messages: one that an application is at work with, and one that waits for it.
# What all applications of a session have of it before nothing is read.
_HELD = 4


class SessionError(Exception):
    """The client broke a rule of the session protocol."""


class SessionChannel(ServedChannel):
    """A virtual WebSocket: one channel of a session."""

    def __init__(self, session: Session, number: int, request: Request, settings: Settings) -> None:
        self._session = session
        self._number = number
        self._window = self._credit = settings.limits.inbound_bytes  # the client may send while any is left
        self._assembly: Assembly | None = None
        super().__init__(session.id, request, _NOBODY, settings)
        self.entry = session.entry
        self._opening = True  # until `open` returns
        self._accepted = False
        self._left = False  # the client closed it before it was accepted
        self._text_prefix = frames.channel_text(number)
        self._binary_prefix = frames.binary_prefix(number)

    @property
    def transport(self) -> str:
        return self._session.transport

    @property
    def number(self) -> int:
        """What the client calls it."""
        return self._number

    @property
    def congested(self) -> bool:
        # What is said before it is accepted waits for that, and so would whoever waits for it. A channel that
        # drops messages never asks anybody to wait.
        if not self._accepted or self.is_over or self.overflow != "close":
            return False
        return self._session.congests(self._number)

    async def drain(self) -> None:
        while self.congested:
            await self._session.wait_for_client()

    def send(self, data: str | bytes) -> None:
        if self.is_over:
            return
        if isinstance(data, str):
            if len(data) <= SMALL_TEXT:
                self._session.send(self, frames.text_frame(self._text_prefix, data))
                return
        elif len(data) <= SMALL_BYTES:
            self._session.send(self, self._binary_prefix + data)
            return
        self._send_parts(data)

    def _send_parts(self, data: str | bytes) -> None:
        if _size(data) > self._settings.limits.message:
            self.fail(Reason.SERVER_CLOSE, _TOO_BIG, "the message is too big")
        elif isinstance(data, str):
            self._session.send(self, *text_parts(self._text_prefix, data))
        else:
            self._session.send(self, *binary_parts(self._binary_prefix, data))

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self.is_over:
            return
        self._post(frames.encode(frames.Close(self._number, code, reason)))
        self.over(Closing(Reason.SERVER_CLOSE, code, reason))

    def _post(self, frame: Wire) -> None:
        self._session.post(self._number, frame, hold=not self._accepted)

    def fail(self, reason: Reason, code: int, text: str) -> None:
        """It cannot go on."""
        log.log(reason.value.level, "channel %d of %s: %s", self._number, short(self.id), text)
        if reason is Reason.SLOW_CONSUMER:
            self._session.forget_messages(self._number)
        self._post(frames.encode(frames.Close(self._number, code, text)))
        self.over(Closing(reason, code, text))

    def over(self, closing: Closing) -> None:
        self._forget_parts()
        super().over(closing)

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
            self.serve_by(served.application, served.route)
            self._session.sign_in(served.user)
            await self.admit()
        except (Refused, ApplicationRefused) as refused:
            if not self._left:
                reason = refused.message if isinstance(refused, Refused) else refused.reason
                self._session.refuse(self._number, refused.status, reason)
            return
        if self._left:
            return
        self._accepted = True
        self._session.accept(self._number, self.protocol)

    @property
    def is_accepted(self) -> bool:
        """Whether the client knows that it is open."""
        return self._accepted

    def receive(self, data: str | bytes, more: bool = False) -> None:
        """A message of the client, or with `more` a part of one. It may send none before it is accepted."""
        if not self._accepted:
            raise SessionError("a message on a channel that is not accepted")
        if self.is_over:
            return
        size = _size(data)
        if self._credit <= 0:
            self.fail(Reason.PARSE_ERROR, _POLICY, "more was sent than was granted")
            return
        self._credit -= size + _FRAME_COST
        if more or self._assembly is not None:
            self._assemble(data, size, more)
        elif size > self._settings.limits.message:
            self.fail(Reason.PARSE_ERROR, _TOO_BIG, "the message is too big")
            return
        else:
            self._mailbox.post(self._application.message, self, data, size=size + _FRAME_COST)
        if self._credit * 2 <= self._window:
            self._grant()

    def _assemble(self, data: str | bytes, size: int, more: bool) -> None:
        assembly = self._assembly
        if assembly is None:
            assembly = self._assembly = Assembly()
        assembly.add(data, size)
        self._session.unfinished += size + _FRAME_COST
        limit = self._settings.limits.message
        if assembly.size > limit:
            self.fail(Reason.PARSE_ERROR, _TOO_BIG, "the message is too big")
        elif self._session.unfinished > 2 * limit:
            self.fail(Reason.PARSE_ERROR, _TOO_BIG, "too many messages of this page are unfinished")
        elif not more:
            self._forget_parts()
            size = assembly.size + _FRAME_COST
            self._mailbox.post(self._application.message, self, assembly.message(), size=size)

    def _forget_parts(self) -> None:
        assembly, self._assembly = self._assembly, None
        if assembly is not None:
            self._session.unfinished -= assembly.size + assembly.count * _FRAME_COST

    def _grant(self) -> None:
        """Let the client send as much again as has come, once no more than half a window waits here."""
        used = self._window - self._credit
        if self._mailbox.size * 2 <= self._window and used * 2 >= self._window and not self.is_over:
            self._credit = self._window
            self._session.grant(self._number, used)

    def _new_mailbox(self, limits: Limits) -> Mailbox:
        half = limits.inbound_bytes // 2
        return Mailbox(maxsize, half + 1, _nothing, self._grant, low=half, pool=self._session.held)

    def closed_by_client(self, code: int, reason: str) -> None:
        """The client said `C`: answer, unless this was the answer."""
        if not self.is_over:
            self._left = True
            self._session.forget(self._number)
            self._session.post(self._number, frames.encode(frames.Close(self._number)))
            self.over(Closing(Reason.CLIENT_CLOSE, code, reason))

    def give_back(self) -> None:
        """The gateway stops: the client is told, and may ask whoever comes next."""
        if self.is_over:
            return
        if self._accepted:
            self._post(frames.encode(frames.Close(self._number, _TRY_AGAIN)))
        else:
            self._left = True
            self._session.refuse(self._number, 503, "the gateway is stopping; try again")
        self.over(Closing(Reason.SHUTDOWN, _TRY_AGAIN, ""))

    def left_behind(self) -> None:
        """The page was loaded anew, and knows nothing of this channel."""
        self._left = True
        self.over(Closing(Reason.CLIENT_CLOSE, _GOING_AWAY, ""))

    def _pause(self) -> None:
        """Its grants run out."""

    def _resume(self) -> None:
        self._grant()


def _nothing() -> None:
    pass


def _size(data: str | bytes) -> int:
    """In bytes; text as UTF-8."""
    if isinstance(data, str) and not data.isascii():
        return len(data.encode("utf-8", "surrogatepass"))
    return len(data)


class Session:
    """`carrier` is None while it is detached. `scheduled` belongs to the deadlines' heap."""

    def __init__(self, sessions: Sessions, session_id: str, entry: Entry | None = None) -> None:
        self.id = session_id
        self.scheduled = inf
        self.entry = entry or sessions.ledger.begin(session_id, self.told_to_end)
        self._keys = (b"", b"")  # of the last token, and of the last one that was used
        self._sessions = sessions
        self._settings = sessions.settings
        self._carrier: EngineChannel | None = None
        self._last_transport = POLLING
        limits = sessions.settings.limits
        self.unfinished = 0  # bytes of messages of which not all parts have come
        self.held = Pool(_HELD * limits.inbound_bytes + 2 * limits.message, self._has_room)
        self._sender = _new_sender(limits)
        self._inbox = Inbox()
        self._channels: dict[int, SessionChannel] = {}
        self._leavers: list[SessionChannel] = []  # closed by the client, but the application is at work yet
        self._last_channel = 0
        self._caught_up = asyncio.Event()
        self._drained = asyncio.Event()
        self._grace_until = inf
        self._leaving = False
        self._lost = Reason.TRANSPORT_CLOSE
        self._over = False
        self._users: set[str] = set()

    # -- connections -------------------------------------------------------------------------------

    @property
    def transport(self) -> str:
        """How the browser is connected now; while it is not, how it last was."""
        return self._carrier.transport if self._carrier is not None else self._last_transport

    @property
    def carrier(self) -> EngineChannel | None:
        """The connection in use."""
        return self._carrier

    def accepts(self, resume: frames.Resume) -> bool:
        """Whether this hello may have the session, and nothing that it needs is gone."""
        if self._over or not is_known(key_of(resume.epoch, resume.token), self._keys):
            return False
        return resume.received is None or self._sender.acked <= resume.received <= self._sender.sent

    def attach(self, carrier: EngineChannel, resume: frames.Resume | None = None) -> None:
        """Go on over this connection: welcome, then everything that the client may not have."""
        older, self._carrier = self._carrier, carrier
        if older is not None:
            older.data[_SESSION] = None
            older.close()
        self._grace_until = inf
        self._leaving = False
        self.entry.attach()
        epoch, token = self._sessions.epoch, self._sessions.new_token()
        key = key_of(epoch, token)
        self._keys = (key, key if resume is None else key_of(resume.epoch, resume.token))
        if resume is not None and resume.received is not None:
            self._sender.acknowledge(resume.received)
        elif resume is not None:
            self._begin_anew()
        welcome = frames.Welcome(
            self.id,
            token,
            epoch,
            resume is not None,
            self._inbox.acknowledged(),
            round(self._settings.timeouts.grace * 1000),
            self._settings.limits.message,
            self._settings.limits.inbound_bytes,
        )
        carrier.send(frames.encode(welcome))
        self._sender.rewind()
        carrier.when_ready(self._pump)
        self._pump()

    def detach(self, carrier: Channel, reason: Reason) -> None:
        """The connection is gone; the session waits for another one."""
        if self._carrier is not carrier or self._over:
            return
        self._carrier = None
        self._last_transport = carrier.transport
        self._lost = reason
        self.entry.detach(silence(reason, self._settings) + carrier.away)
        self._wait_for_client(carrier.away)

    def _wait_for_client(self, away: float = 0.0) -> None:
        timeouts = self._settings.timeouts
        worth_it = self._channels or self.entry.is_kept
        grace = timeouts.leave if self._leaving or not worth_it else timeouts.grace
        self._grace_until = self._sessions.deadlines.now() + max(0.0, grace - away)
        self._sessions.deadlines.schedule(self)

    def _begin_anew(self) -> None:
        """The page was loaded anew: its channels are over, and both sides count from 0 again."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.left_behind()
        self._note_leavers(*channels.values())
        self._sender, self._inbox = _new_sender(self._settings.limits), Inbox()
        self._last_channel = 0
        self._caught_up.set()
        self._drained.set()

    async def check(self, request: Request) -> None:
        """Whoever comes back with this request may have all of its channels. Raises `Refused`."""
        for channel in list(self._channels.values()):
            first = channel.request
            now = replace(request, path=first.path, query_string=first.query_string)
            await self._sessions.directory.check(now, first, channel.user)

    def told_to_end(self, reason: Reason) -> None:
        """Somebody else has ended it: an operator, or the node that has it now."""
        self.end(reason, code=reason.code)

    def end(self, reason: Reason, *, code: int = 1006) -> None:
        """It is over: its channels end, and the client is told if it can be."""
        if self._over:
            return
        self._over = True
        self.entry.end(reason)
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.data[_SESSION] = None
            if reason is not Reason.SLOW_CONSUMER and reason is not Reason.PARSE_ERROR:
                for wire in self._sender.rest():
                    carrier.send(wire)
            _say_end(carrier, reason)
        for channel in list(self._channels.values()):
            channel.over(Closing(reason, code, ""))
        self._leave()
        self._sender = _new_sender(self._settings.limits)  # the heap of deadlines may know it for a while

    def _leave(self) -> None:
        self._over = True
        self._sessions.forget(self)
        for user in self._users:
            self._sessions.admission.sign_out(user)
        self._channels.clear()
        self._caught_up.set()
        self._drained.set()

    # -- from one process to the next ----------------------------------------------------------------

    def freeze(self) -> tuple[float, bytes]:
        """The gateway stops: the channels are over, nothing more is heard, and no end is told.

        The seconds that are left of the grace, and the state for whoever goes on with it.
        """
        accepted = [each for each in self._channels.values() if each.is_accepted]
        users = dict.fromkeys((_url(each.request), user_text(each.user)) for each in accepted)
        for channel in list(self._channels.values()):
            channel.give_back()
        self._leave()
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.data[_SESSION] = None
        left = min(self._grace_until - self._sessions.deadlines.now(), self._settings.timeouts.grace)
        sent, kept = self._sender.export()
        state = Parked(self._keys, sent, self._inbox.received, self._last_channel, tuple(users), kept)
        return max(left, 0.001), write_parked(state)

    def thaw(self, parked: Parked, key: bytes) -> None:
        """Go on where another process has stopped, for whoever comes with this key."""
        self._keys = (key, key)
        self._sender.restore(parked.sent, parked.kept)
        self._inbox.received = parked.received
        self._last_channel = parked.channel
        self._wait_for_client()

    # -- users ---------------------------------------------------------------------------------------

    def sign_in(self, user: Any) -> None:
        """A route knows who it is. Raises `Refused` if this user has too many sessions."""
        name = user_text(user)
        if name is not None and name not in self._users and not self._over:
            self._sessions.admission.sign_in(name)
            self._users.add(name)

    # -- sending -----------------------------------------------------------------------------------

    @property
    def _is_congested(self) -> bool:
        """Whether more than half of what may wait for the client does, and some of it is not written."""
        sender = self._sender
        return sender.is_waiting and self._settings.limits.is_congested(sender.size, sender.count)

    def congests(self, number: int) -> bool:
        """Whether this channel should not send: it would be full soon, and it has something waiting."""
        return not self._over and self._sender.waits(number) and self._is_congested

    async def wait_for_client(self) -> None:
        """Return when the client has taken something, or it is over."""
        if not self._over:
            self._drained.clear()
            await self._drained.wait()

    def send(self, channel: SessionChannel, *wires: Wire) -> None:
        """One message of a channel, in its frames: at once if nothing waits, or when it is its turn."""
        if self._over:
            return
        if channel.is_accepted and len(wires) == 1 and self._write(wires[0]):
            return
        if self._fits(channel, wires) or self._make_room(channel, wires):
            self._queue(channel.number, wires, not channel.is_accepted)

    def post(self, number: int, wire: Wire, *, hold: bool = False) -> None:
        """A frame that is no message. `hold`: until the channel is accepted."""
        if self._over or (not hold and not self._sender.waits(number) and self._write(wire)):
            return
        if self._sender.count >= 2 * self._settings.limits.outbound_messages:
            self.end(Reason.SLOW_CONSUMER)  # it opens and closes, and acknowledges nothing
            return
        # The last frame of a channel that has nothing else waiting needs no lane of its own.
        self._queue(number if hold or self._sender.waits(number) else _LAST_FRAMES, (wire,), hold)

    def accept(self, number: int, protocol: str) -> None:
        """The application has said yes; what it has said since goes next."""
        if not self._over:
            self._sender.release(number, frames.encode(frames.Accept(number, protocol)))
            self._pump()

    def refuse(self, number: int, status: int, reason: str) -> None:
        """The channel is not opened; its number is spent."""
        self._channels.pop(number, None)
        self.forget(number)
        self.post(number, frames.encode(frames.Refuse(number, status, reason)))

    def grant(self, number: int, size: int) -> None:
        """The client may send so much more on a channel. What waits for the client does not delay it."""
        if not self._over:
            self._sender.queue_first(frames.encode(frames.Grant(number, size)))
            self._pump()

    def forget(self, number: int) -> None:
        """Nobody wants what waits of this channel."""
        self._sender.discard(number)

    def forget_messages(self, number: int) -> None:
        """Nobody wants the messages that wait of this channel."""
        self._sender.discard_messages(number)

    def _write(self, wire: Wire) -> bool:
        """Hand a frame to the connection, if nothing waits and it takes it."""
        carrier, sender = self._carrier, self._sender
        if carrier is None or not sender.is_idle or not carrier.send_now(wire):
            return False
        sender.write(wire)
        return True

    def _queue(self, number: int, wires: tuple[Wire, ...], hold: bool) -> None:
        self._sender.queue(number, *wires, hold=hold)
        self._pump()
        if self._is_congested:
            self._caught_up.set()  # see `_wait_caught_up`

    def _pump(self) -> None:
        """Write what waits, as far as the client takes it."""
        carrier = self._carrier
        if carrier is None:
            return
        took = False
        while (room := carrier.room) > 0 and (batch := self._sender.take(room)):
            took = True
            for wire in batch:
                carrier.send(wire)
        if took:
            self._drained.set()

    def _fits(self, channel: SessionChannel, wires: tuple[Wire, ...]) -> bool:
        """Whether there is room for a message.

        One message always fits while it is not full. When it is, a channel that has nothing waiting may send
        one all the same, because it is not the one who sends too much.
        """
        limits, sender = self._settings.limits, self._sender
        if not limits.is_full(sender.size, sender.count):
            return True
        size = sum(map(len, wires))
        most = limits.outbound_bytes + 2 * limits.message
        return not sender.waits(channel.number) and sender.size + size <= most

    def _make_room(self, channel: SessionChannel, wires: tuple[Wire, ...]) -> bool:
        """Do what the channel wants done when it is full. Whether there is room then."""
        if channel.overflow != "close":
            return self._drop(channel, wires)
        while not channel.is_over and not self._fits(channel, wires):
            self._fullest(channel).fail(Reason.SLOW_CONSUMER, Reason.SLOW_CONSUMER.code, "slow consumer")
            self._drained.set()
        return not channel.is_over

    def _fullest(self, channel: SessionChannel) -> SessionChannel:
        """Who has most waiting behind its next message, or else this one."""
        others = [each for each in self._channels.values() if not each.is_over and each.overflow == "close"]
        fullest = max(others, key=lambda each: self._sender.excess(each.number), default=channel)
        return fullest if self._sender.excess(fullest.number) else channel

    def _drop(self, channel: SessionChannel, wires: tuple[Wire, ...]) -> bool:
        sender, number = self._sender, channel.number
        while not self._fits(channel, wires) or channel.overflow == "latest":
            if not sender.drop_oldest(number):
                break
        limits = self._settings.limits
        if self._fits(channel, wires) or sender.size < limits.outbound_bytes + limits.message:
            return True
        sender.note_dropped(number, hold=not channel.is_accepted)
        self._pump()
        return False

    def _acknowledge(self, count: int) -> None:
        self._sender.acknowledge(count)
        if self._sender.is_waiting:
            self._pump()
        self._drained.set()

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self, data: str | bytes) -> Awaitable[None] | None:
        """One frame. Raises `FrameError`, `ReplayError` or `SessionError`: the client is broken.

        What it returns is to be awaited before the next frame: an application is behind.
        """
        frame = frames.decode(data)
        if isinstance(frame, frames.Data):
            self._count(len(data))
            channel = self._channel(frame.channel)
            if channel is not None:
                channel.receive(frame.data, frame.more)
            return self._wait_caught_up() if self._is_behind() else None
        match frame:
            case frames.Ack(count):
                self._acknowledge(count)
                return None
            case frames.Bye():
                self._bye()
                return None
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

    def _has_room(self) -> None:
        self._caught_up.set()

    def _is_behind(self) -> bool:
        """Whether nothing more should be read. Far beyond that, each new connection may have brought more."""
        if self.held.size > 2 * self.held.limit:
            self.end(Reason.SLOW_CONSUMER)
        return self.held.is_full and not self._over

    async def _wait_caught_up(self) -> None:
        """Read no further while all applications together are far behind.

        Unless we are congested: they may be behind because they wait for the acks that stand behind all
        this data. Then reading goes on, within the bound of `_is_behind`.
        """
        while self.held.is_full and not self._is_congested and not self._over:
            self._caught_up.clear()
            await self._caught_up.wait()

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


def _new_sender(limits: Limits) -> Sender:
    """Half of what may wait for a client may be under way."""
    return Sender(
        min(UNDER_WAY, limits.outbound_bytes // 2), min(UNDER_WAY_FRAMES, limits.outbound_messages // 2)
    )


def _say_end(carrier: Channel, reason: Reason) -> None:
    carrier.send(frames.encode(frames.End(reason.code, reason.text, reason.value.retry)))
    carrier.close()


def _url(request: Request) -> str:
    """Of a channel, as the browser may have written it."""
    path = quote(request.path)
    return f"{path}?{request.query_string}" if request.query_string else path


def _located(request: Request, url: str) -> Request:
    """The request of a channel. A URL without an honest path is the URL of nothing."""
    return Request(
        path=read_path(url) or "",
        query_string=url.partition("?")[2],
        headers=request.headers,
        remote=request.remote,
        scheme=request.scheme,
        host=request.host,
        raw=request.raw,
    )


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
        admission: Admission,
        ledger: Ledger,
        *,
        new_id: Callable[[], str],
        new_token: Callable[[], str],
        epoch: str,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.deadlines = deadlines
        self.admission = admission
        self.ledger = ledger
        self.resumed = 0
        self.lost = 0
        self._stopping = False
        self.new_token = new_token
        self.epoch = epoch
        self._new_id = new_id
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    # What carriers call (`Application`).

    def open(self, channel: Channel) -> None:
        """Who it is will be told by the hello, which is not waited for longer than a handshake is."""
        channel.data[_SESSION] = None
        loop = asyncio.get_running_loop()
        channel.data[_HELLO] = loop.call_later(self.settings.timeouts.connect, channel.close)

    def message(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        """One frame of a carrier."""
        session: Session | None = channel.data[_SESSION]
        try:
            if session is not None:
                return session.receive(data)
            if _expects_hello(channel):
                return self._hello(channel, data)
        except (FrameError, ReplayError, SessionError) as error:
            self._broken(channel, session, error)
        return None

    def close(self, channel: Channel, closing: Closing) -> None:
        """A carrier is gone."""
        _expects_hello(channel)
        session: Session | None = channel.data[_SESSION]
        if session is not None:
            session.detach(channel, closing.reason)

    def _hello(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        hello = frames.decode(data)
        if not isinstance(hello, frames.Hello):
            raise SessionError("the first frame is not a hello")
        assert isinstance(channel, EngineChannel), "a session is carried by Engine.IO"
        if self._stopping:
            self._send_away(channel, hello.resume)
            return None
        if hello.resume is not None:
            return self._resume(channel, hello.resume)
        self._begin(channel)
        return None

    def _send_away(self, channel: Channel, resume: frames.Resume | None) -> None:
        """We stop. A session that is parked is resumed at the next process: its client is told nothing."""
        if resume is not None and self.ledger.store.lasting:
            channel.close()
        else:
            _say_end(channel, Reason.SHUTDOWN)

    def _begin(self, channel: EngineChannel) -> None:
        session = Session(self, self._new_id())
        self._sessions[session.id] = session
        channel.data[_SESSION] = session
        session.attach(channel)

    async def _resume(self, channel: EngineChannel, resume: frames.Resume) -> None:
        """Go on with the session, or begin a new one: the client never learns why."""
        session = await self._find(resume, channel.request)
        # Meanwhile it may have ended, or somebody else may have resumed it.
        if self._stopping:
            self._send_away(channel, resume)
            return
        if session is None or not session.accepts(resume):
            self.lost += 1
            self._begin(channel)
            return
        self.resumed += 1
        channel.data[_SESSION] = session
        session.attach(channel, resume)

    async def _find(self, resume: frames.Resume, request: Request) -> Session | None:
        session = self._sessions.get(resume.session)
        if session is None:
            return await self._unpark(resume, request)
        if not session.accepts(resume):
            return None
        try:
            await session.check(request)
        except (Refused, ApplicationRefused) as refused:
            log.info("session %s is not resumed: %s", short(session.id), refused)
            return None
        return session

    async def _unpark(self, resume: frames.Resume, request: Request) -> Session | None:
        """A session that another process has parked, if this client may have it."""
        if not resume.session.isascii():
            return None
        state = await self.ledger.parked(resume.session)
        if state is None:
            return None
        key = key_of(resume.epoch, resume.token)
        try:
            parked = read_parked(state)
            if not parked.accepts(key, resume.received):
                return None
            for url, user in parked.users:
                await self.directory.check(_located(request, url), None, user)
        except (Refused, ApplicationRefused) as refused:
            log.info("session %s is not resumed: %s", short(resume.session), refused)
            return None
        except ValueError as error:
            log.error("session %s cannot be resumed: %s", short(resume.session), error)
            return None
        # A task of its own: what has been taken is served, also if this client has just left.
        return await asyncio.shield(self.spawn(self._take(resume.session, parked, key)))

    async def _take(self, session_id: str, parked: Parked, key: bytes) -> Session | None:
        entry = await self.ledger.resume(session_id, lambda reason: self._told_to_end(session_id, reason))
        if entry is None:  # too late, or somebody was faster: perhaps here
            return self._sessions.get(session_id)
        if self._stopping:
            await self.ledger.park([(entry, self.settings.timeouts.grace, write_parked(parked))])
            return None
        session = self._sessions[session_id] = Session(self, session_id, entry)
        session.thaw(parked, key)
        return session

    def _told_to_end(self, session_id: str, reason: Reason) -> None:
        session = self._sessions.get(session_id)
        if session is not None:
            session.told_to_end(reason)

    def _broken(self, channel: Channel, session: Session | None, error: Exception) -> None:
        log.info("session protocol error of %s: %s", short(channel.id), error)
        if session is not None:
            session.end(Reason.PARSE_ERROR)
            return
        channel.send(frames.encode(frames.End(_PROTOCOL_ERROR, "protocol error", False)))
        channel.close()

    # What sessions call.

    def new_channel(self, session: Session, frame: frames.Open) -> SessionChannel:
        """The channel of an open frame."""
        return SessionChannel(session, frame.channel, _located(session.request, frame.url), self.settings)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do it beside the reading of frames."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def forget(self, session: Session) -> None:
        """It is over."""
        self._sessions.pop(session.id, None)
        self.deadlines.forget(session)

    async def shutdown(self) -> None:
        """End all of them, or park them where the store outlives this process.

        The connections are left to whoever closes them next; only then the clients come back.
        """
        self._stopping = True
        sessions = list(self._sessions.values())
        if self.ledger.store.lasting:
            parked = [session for session in sessions if session.entry.is_kept]
            for begin in range(0, len(parked), _PARKED_AT_ONCE):
                await self._park(parked[begin : begin + _PARKED_AT_ONCE])
        for index, session in enumerate(sessions):
            if index % _ENDED_AT_ONCE == _ENDED_AT_ONCE - 1:
                await asyncio.sleep(0)
            session.end(Reason.SHUTDOWN, code=_TRY_AGAIN)

    async def _park(self, sessions: list[Session]) -> None:
        carriers = [(session.carrier, session) for session in sessions]
        states = [(session.entry, *session.freeze()) for session in sessions]
        if await self.ledger.park(states):
            return
        for carrier, session in carriers:
            session.entry.end(Reason.SHUTDOWN)
            if carrier is not None:
                _say_end(carrier, Reason.SHUTDOWN)


_HELLO = "gateway.hello"


def _expects_hello(channel: Channel) -> bool:
    """Whether its first frame is still to come; from now on it is not."""
    timer: asyncio.TimerHandle | None = channel.data.pop(_HELLO, None)
    if timer is not None:
        timer.cancel()
    return timer is not None


class _Nobody(Application):
    """Serves a channel until the directory has found who does."""

    def open(self, channel: Channel) -> None:
        raise AssertionError("opened before it was found")

    def message(self, channel: Channel, data: str | bytes) -> None:
        raise AssertionError("a message before it was opened")

    def close(self, channel: Channel, closing: Closing) -> None:
        """It left before it was found."""


_NOBODY = _Nobody()
