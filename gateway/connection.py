"""One Engine.IO connection: its queue, its transports, its deadlines.

Carries out what the table of moves (`protocol/moves.py`) says. Does not know HTTP, sockets, routes or
applications; a `Listener` is told of messages and of the end.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

from .config import Settings
from .protocol.handshake import POLLING, open_packet
from .protocol.heartbeat import SPARE, Heartbeat
from .protocol.moves import Action, IllegalMove, Input, State, move
from .protocol.packets import (
    CLOSE_WIRE,
    PING,
    PING_WIRE,
    PROBE,
    PROBE_ANSWER,
    UPGRADE,
    PacketType,
    Wire,
)
from .protocol.payloads import can_carry, count_fitting, encode_payload
from .protocol.reasons import Reason
from .transports import PollingTransport, Post, Respond, Transport

# While a client is between `3probe` and `5` it waits for its GET to end before it goes on.
_PROBED_HOLD = 0.1  # s
_ANSWER = 524_288  # bytes in a poll answer, where the client says nothing else: a few at 600 ms make 4 MB
_WRITE = 65_536  # bytes in one write to a websocket
# Ends that leave the client's end of the line alone: what was sent before is delivered first.
_POLITE = frozenset((Reason.SERVER_CLOSE, Reason.SHUTDOWN, Reason.REPLACED))

_INPUTS = {kind: Input(kind.value) for kind in PacketType}


class Listener(Protocol):
    """Whom a connection tells."""

    def message(self, data: str | bytes) -> None:
        """One message, in order."""

    def closed(self, reason: Reason) -> None:
        """The connection is over: once, after the last message."""


class Loop(Protocol):
    """What a connection needs of the world: the time, a later turn, and a place in the heap."""

    def now(self) -> float:
        """Monotonic seconds."""

    def soon(self, call: Callable[[], None]) -> None:
        """Call it in the next turn."""

    def schedule(self, item: Connection) -> None:
        """`item.deadline` has come closer."""

    def gone(self, item: Connection) -> None:
        """It is closed, and will not be heard of again."""


def settings_packet(sid: str, settings: Settings, upgrades: tuple[str, ...]) -> str:
    """The open packet of a connection with these settings."""
    return open_packet(
        sid,
        upgrades=upgrades,
        interval=settings.ping.interval + settings.ping.slack,
        timeout=settings.ping.timeout,
        max_payload=settings.limits.payload,
    )


class Connection:
    """`listener` must be set before `start_*`."""

    __slots__ = (
        "sid",
        "settings",
        "listener",
        "state",
        "transport",
        "reason",
        "scheduled",
        "_loop",
        "_candidate",
        "_heartbeat",
        "_queue",
        "_queued_bytes",
        "_drained",
        "when_ready",
        "_flushing",
        "_paused",
        "_resumed",
        "_hold_until",
        "_grace_until",
        "_away_since",
        "_connect_until",
        "_upgrade_until",
        "_close_until",
        "_spared_until",
        "__weakref__",
    )

    listener: Listener

    def __init__(self, sid: str, settings: Settings, loop: Loop) -> None:
        self.sid = sid
        self.settings = settings
        self.state = State.OPENING
        self.reason: Reason | None = None
        self.scheduled = inf
        self.transport: Transport | None = None
        self._loop = loop
        self._candidate: Transport | None = None
        self._heartbeat = Heartbeat(settings.ping.interval, settings.ping.timeout, inf)
        self._queue: list[Wire] = []
        self._queued_bytes = 0
        self._drained: list[Callable[[], None]] = []
        self.when_ready: Callable[[], None] | None = None  # called whenever there is `room` again
        self._flushing = False
        self._paused = False
        self._resumed: list[Callable[[], None]] = []
        self._hold_until = inf
        self._grace_until = inf
        self._away_since = inf
        self._connect_until = inf
        self._upgrade_until = inf
        self._close_until = inf
        self._spared_until = -inf

    # -- the beginning -----------------------------------------------------------------------------

    def start_polling(self, batch: int | None = None) -> str:
        """The application has said yes to a GET: the body of its answer.

        `batch` is how many packets the client can read at once, if it is known to be few.
        """
        self._move(Input.ACCEPT_POLLING)
        self.transport = PollingTransport(self, batch)
        now = self._loop.now()
        self._heartbeat = Heartbeat(self.settings.ping.interval, self.settings.ping.timeout, now)
        self._connect_until = now + self.settings.timeouts.connect
        self._loop.schedule(self)
        return encode_payload([self._open_packet(self.settings.offered_upgrades), *self._take(batch)])

    def start_websocket(self, transport: Transport) -> None:
        """The application has said yes to a websocket, which is open."""
        if self._move(Input.ACCEPT_WEBSOCKET) is not Action.START:
            transport.close(self.reason or Reason.SERVER_CLOSE)  # it has ended meanwhile
            return
        self.transport = transport
        self._heartbeat = Heartbeat(self.settings.ping.interval, self.settings.ping.timeout, self._loop.now())
        self._loop.schedule(self)
        self._write(transport, [self._open_packet(()), *self._take()])

    def _open_packet(self, upgrades: tuple[str, ...]) -> str:
        return settings_packet(self.sid, self.settings, upgrades)

    # -- what the application does -----------------------------------------------------------------

    @property
    def transport_name(self) -> str:
        """`polling` or `websocket`."""
        return POLLING if self.transport is None else self.transport.name

    @property
    def is_paused(self) -> bool:
        """Whether the application is behind, so that nothing should be read."""
        return self._paused

    def send(self, packet: Wire) -> None:
        """Queue a packet, and write it if the transport takes it. A no-op when it is over.

        Raises `ValueError` for text that polling cannot carry (U+001E), while on polling.
        """
        if self.state.is_over:
            return
        transport = self.transport
        if transport is None or transport.coalesces:
            if not can_carry(packet):
                raise ValueError("text with U+001E cannot travel over Engine.IO polling: send it as bytes")
            self._enqueue(packet)
            self._flush_soon()
        elif not self._queue and transport.writable:
            self._write(transport, [packet])
        else:
            self._enqueue(packet)

    @property
    def congested(self) -> bool:
        """Whether more than half of what may wait for the client is waiting."""
        return self.settings.limits.is_congested(self._queued_bytes, len(self._queue))

    def send_now(self, packet: Wire) -> bool:
        """Send a packet if the client gets it with the next write. False, and nothing is sent, if not."""
        transport = self.transport
        if transport is None or self.state.is_over or not transport.writable:
            return False
        if transport.coalesces:
            if self.room <= 0:
                return False
            self.send(packet)
        elif self._queue:
            return False
        else:
            self._write(transport, [packet])
        return True

    @property
    def room(self) -> int:
        """Bytes that the client gets with the next write. Whoever has a queue of its own sends no more."""
        transport = self.transport
        if transport is None or self.state.is_over or not transport.writable:
            return 0
        if transport.coalesces:
            return (transport.room or _ANSWER) - self._queued_bytes
        return 0 if self._queue else _WRITE

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call once when it is not congested any more, or over."""
        if self.congested:
            self._drained.append(call)
        else:
            call()

    def close(self, reason: Reason = Reason.SERVER_CLOSE) -> None:
        """End it. What was sent before still goes out, for `timeouts.close` at the most."""
        if not self.state.is_over:
            self._end(reason)

    def pause(self) -> None:
        """Stop reading. A client that is not read is not expired for its silence."""
        self._paused = True
        if self.transport is not None:
            self.transport.pause()

    def when_resumed(self, call: Callable[[], None]) -> None:
        """Call once when reading goes on."""
        self._resumed.append(call)

    def forget_resumed(self, call: Callable[[], None]) -> None:
        """Nobody waits for it any more. A no-op if it has been called."""
        if call in self._resumed:
            self._resumed.remove(call)

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        waiting, self._resumed = self._resumed, []
        for call in waiting:
            call()
        self._heartbeat.spare(self._loop.now() + self.settings.ping.timeout)
        self._loop.schedule(self)
        if self.transport is not None:
            self.transport.resume()

    # -- what a wire does --------------------------------------------------------------------------

    @property
    def polling(self) -> PollingTransport | None:
        """The transport for GETs and POSTs, or None once the connection is on a websocket."""
        return self.transport if isinstance(self.transport, PollingTransport) else None

    def poll(
        self,
        transport: PollingTransport,
        respond: Respond,
        number: int | None = None,
        hold: float | None = None,
        room: int | None = None,
    ) -> None:
        """A GET arrived; see `PollingTransport.poll`. `hold` is for how long it may wait, in seconds."""
        transport.poll(respond, number, room)
        self._heard()
        if not transport.writable:
            self._hold_until = inf
            return
        if self.state is State.PROBED:
            hold = _PROBED_HOLD
        elif hold is None:
            hold = self.settings.timeouts.poll_hold
        else:
            hold = min(hold, self.settings.ping.interval)
        self._hold_until = self._loop.now() + hold
        self._loop.schedule(self)

    def poll_abandoned(self, transport: PollingTransport, respond: Respond) -> None:
        """The client closed its end while its GET was waiting."""
        if transport.abandon(respond) and not self.state.is_over:
            self._hold_until = inf
            self._begin_grace()

    def _begin_grace(self) -> None:
        self._away_since = self._loop.now()
        timeouts = self.settings.timeouts
        self._grace_until = self._away_since + min(timeouts.poll_grace, timeouts.grace)
        self._loop.schedule(self)

    @property
    def away(self) -> float:
        """For how many seconds it has been known that a polling client has gone; 0 while it is there."""
        return max(0.0, self._loop.now() - self._away_since)

    def begin_post(self, transport: PollingTransport, number: int | None = None) -> Post:
        """A POST arrived; see `PollingTransport.begin_post`."""
        post = transport.begin_post(number)
        self._heard()
        return post

    def offer(self, candidate: Transport) -> bool:
        """A websocket wants to take over. False if it may not; then the caller closes it."""
        self._heard()
        action = self._move(Input.CANDIDATE)
        if action is not Action.TAKE_CANDIDATE:
            return False
        self._candidate = candidate
        self._upgrade_until = self._loop.now() + self.settings.timeouts.upgrade
        self._loop.schedule(self)
        return True

    def _heard(self) -> None:
        self._connect_until = inf
        self._grace_until = inf
        self._away_since = inf

    # -- what transports call ----------------------------------------------------------------------

    def received(self, transport: Transport, kind: PacketType, data: str | bytes) -> None:
        """One packet of the transport in use, or of the candidate. Others are not listened to."""
        if transport is self.transport:
            happened = _INPUTS[kind]
        elif transport is self._candidate:
            happened = _candidate_input(kind, data)
        else:
            return
        try:
            action = self._move(happened)
        except IllegalMove:
            self._end(Reason.PARSE_ERROR)
            return
        if action is Action.DELIVER:
            self.listener.message(data)
        elif action is Action.PONG:
            self._heartbeat.pong(self._loop.now())
        elif action is Action.CLOSE:
            self._finish_end(Reason.CLIENT_CLOSE)
        elif action is Action.ANSWER_PROBE:
            self._answer_probe()
        elif action is Action.SWITCH:
            self._switch()
        elif action is Action.DROP_CANDIDATE:
            self._drop_candidate(Reason.PARSE_ERROR)

    def ready(self, transport: Transport) -> None:
        """The transport takes packets again."""
        if transport is self.transport:
            self._hold_until = inf
            if transport.coalesces:
                self._ask_for_more()  # one answer holds it all
                self._flush()
            else:
                self._flush()
                self._ask_for_more()

    def _ask_for_more(self) -> None:
        if self.when_ready is not None:
            self.when_ready()

    def returned(self, transport: Transport, packets: list[Wire]) -> None:
        """Packets that never left go first again. Their client has gone, and may come back."""
        if transport is self.transport:
            self._queue[:0] = packets
            self._queued_bytes += sum(map(len, packets))
            self._begin_grace()

    def lost(self, transport: Transport, reason: Reason) -> None:
        """A transport is gone, or its peer broke the rules."""
        if transport is self._candidate:
            self._move(Input.CANDIDATE_LOST)
            self._drop_candidate(reason)
        elif transport is not self.transport:
            return
        elif not self.state.is_over:
            self._end(reason)
        else:
            self._finish()

    # -- time --------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When `judge` wants to be called next."""
        if self.state is State.CLOSED:
            return inf
        if self.state is State.CLOSING:
            return self._close_until
        return min(
            inf if self._paused else self._heartbeat.deadline,
            self._stuck_until,
            self._hold_until,
            self._grace_until,
            self._connect_until,
            self._upgrade_until,
        )

    @property
    def _stuck_until(self) -> float:
        """When a write has been stuck for too long."""
        stuck = self.transport.busy_since if self.transport is not None else None
        return inf if stuck is None else max(stuck + self.settings.timeouts.send, self._spared_until)

    def spare(self, now: float) -> None:
        """The loop has just come back from a stall: the client was not silent, we were deaf."""
        until = now + min(self.settings.ping.timeout, SPARE)
        self._heartbeat.spare(until)
        self._spared_until = until
        if self._grace_until < until:
            self._grace_until = until
        if self._connect_until < until:
            self._connect_until = until

    def judge(self, now: float) -> None:
        """Do what is due at `now`."""
        if self.state is State.CLOSING:
            if now >= self._close_until:
                self._abort()
            return
        if now >= self._upgrade_until:
            self._move(Input.CANDIDATE_LOST)
            self._drop_candidate(Reason.NEVER_OPENED)
        if now >= self._hold_until:
            self._hold_until = inf
            polling = self.polling
            if polling is not None:
                polling.noop()
        overdue = self._overdue(now)
        if overdue is not None:
            self._end(overdue)
        elif not self._paused and self._heartbeat.ping_due(now):
            self._enqueue(PING_WIRE)
            self._flush()

    def _overdue(self, now: float) -> Reason | None:
        """Why the client should be given up now, if it should."""
        if now >= self._grace_until:
            return Reason.TRANSPORT_CLOSE
        if now >= self._connect_until:
            return Reason.NEVER_OPENED
        if now >= self._stuck_until:
            return Reason.SLOW_CONSUMER
        if not self._paused and self._heartbeat.expired(now):
            return Reason.PING_TIMEOUT
        return None

    # -- the upgrade -------------------------------------------------------------------------------

    def _answer_probe(self) -> None:
        assert self._candidate is not None
        self._candidate.write([PROBE_ANSWER])
        polling = self.polling
        if polling is not None:
            polling.noop()

    def _switch(self) -> None:
        polling, self.transport, self._candidate = self.transport, self._candidate, None
        self._upgrade_until = self._hold_until = self._grace_until = self._away_since = inf
        assert polling is not None
        polling.close(Reason.CLIENT_CLOSE)
        if self._paused and self.transport is not None:
            self.transport.pause()
        self._flush()
        self._ask_for_more()

    def _drop_candidate(self, reason: Reason) -> None:
        candidate, self._candidate = self._candidate, None
        self._upgrade_until = inf
        if candidate is not None:
            candidate.close(reason)

    # -- the queue ---------------------------------------------------------------------------------

    def _enqueue(self, packet: Wire) -> None:
        """Queue it. The bounds are looked at before it is added: one large message always fits."""
        if self.settings.limits.is_full(self._queued_bytes, len(self._queue)):
            self._flush()
            if self._queue:
                self._end(Reason.SLOW_CONSUMER)
                return
        self._queue.append(packet)
        self._queued_bytes += len(packet)

    def _take_for(self, transport: Transport) -> list[Wire]:
        """As much of what waits as `transport` takes in one write."""
        batch, room = transport.batch, transport.room
        # A character is four bytes at the most, and base64 makes less of a byte.
        if room is not None and self._queued_bytes * 4 + len(self._queue) * 2 > room:
            fitting = count_fitting(self._queue, room)
            batch = fitting if batch is None else min(batch, fitting)
        return self._take(batch)

    def _take(self, batch: int | None = None) -> list[Wire]:
        """Everything that waits, or the first `batch` packets of it."""
        packets = self._queue[:batch]
        del self._queue[:batch]
        self._queued_bytes -= sum(map(len, packets))
        if self._drained and not self.congested:
            waiting, self._drained = self._drained, []
            for call in waiting:
                self._loop.soon(call)
        return packets

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        transport = self.transport
        if transport is None or not transport.writable:
            return
        if self.state is State.CLOSING:
            self._say_goodbye(transport)
        elif self._queue:
            self._write(transport, self._take_for(transport))

    def _write(self, transport: Transport, packets: list[Wire]) -> None:
        transport.write(packets)
        if transport.busy_since is not None:
            self._loop.schedule(self)

    # -- the end -----------------------------------------------------------------------------------

    def _end(self, reason: Reason) -> None:
        probed = self.state is State.PROBED
        self._move(Input.END)
        self._finish_end(reason, probed=probed)

    def _finish_end(self, reason: Reason, *, probed: bool = False) -> None:
        """Tell the listener, and end the transport in the way that the reason asks for."""
        self.reason = reason
        if not (probed and reason in _POLITE):
            self._drop_candidate(reason)  # or else the client may never poll again: its next word is `5`
        transport = self.transport
        if reason not in _POLITE:
            self._take()
        if transport is None:
            self._finish()
        elif reason is Reason.SLOW_CONSUMER or reason is Reason.TRANSPORT_CLOSE:
            self._abort()
        elif reason is Reason.CLIENT_CLOSE:
            transport.close(reason)
            self._finish()
        elif transport.writable:
            self._say_goodbye(transport)
        elif reason in _POLITE:
            self._linger()
        else:
            self._abort()
        self.listener.closed(reason)

    def _linger(self) -> None:
        """Wait for the client to fetch what was sent before."""
        self._close_until = self._loop.now() + self.settings.timeouts.close
        self._loop.schedule(self)

    def _say_goodbye(self, transport: Transport) -> None:
        assert self.reason is not None
        packets = self._take_for(transport)
        if self._queue:
            transport.write(packets)
            self._linger()
            return
        transport.write([*packets, CLOSE_WIRE])
        transport.close(self.reason)
        self._finish()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        self._finish()

    def _finish(self) -> None:
        if self.state is State.CLOSED:
            return
        self._move(Input.DRAINED)
        self._drop_candidate(self.reason or Reason.SERVER_CLOSE)
        self._take()
        self._loop.gone(self)

    def _move(self, happened: Input) -> Action:
        action, self.state = move(self.state, happened)
        return action


def _candidate_input(kind: PacketType, data: str | bytes) -> Input:
    if kind is PING and data == PROBE:
        return Input.CANDIDATE_PROBE
    if kind is UPGRADE:
        return Input.CANDIDATE_UPGRADE
    return Input.CANDIDATE_OTHER
