"""A gateway, a page and the network between them, in one thread, on a clock that moves when it is told to.

The gateway is the real one from the store to the polling transport: `Sessions`, `Ledger`, `Registry`,
`Connection`, `PollingTransport`, `MemoryStore`. What is missing is HTTP: `Server.get` and `Server.post` do
what `wires/http.py` does with a request. The page does what `static/client.js` does, without its pace: it
moves when it is told to, and loses what it is told to lose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

from gateway.application import Application, Channel, Directory, Request, Served
from gateway.channels import EngineChannel
from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.ledger import Ledger
from gateway.protocol import frames
from gateway.protocol.packets import PacketError, decode_text, message
from gateway.protocol.payloads import decode_payload, encode_payload
from gateway.protocol.reasons import Closing
from gateway.registry import Registry
from gateway.session import Sessions
from gateway.session_store import Claim, MemoryStore, StoreUnavailable
from gateway.transports import MemoryTransport, Overlap, Turn, WrongNumber

SETTINGS = Settings(
    ping=Ping(4.0, 3.0),
    limits=Limits(inbound_bytes=2_000, outbound_bytes=100_000, message=20_000, half_open=1_000_000),
    timeouts=Timeouts(
        connect=5.0, upgrade=3.0, poll_hold=2.0, poll_grace=2.0, close=2.0, handler=1.0, grace=8.0, lease=3.0
    ),
)
HOOK = 0.3  # s that a cleanup hook takes
SLOW = 0.2  # s that a handler takes with some messages
FRAME_COST = 256  # `docs/protocol.md`, rule 10


# -- time ------------------------------------------------------------------------------------------


class _Selector:
    """Where a real loop waits, this one passes the time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        assert timeout is not None, "everybody waits, and nothing will happen"
        self._loop.pass_by(timeout)
        return []

    def close(self) -> None:
        """Nothing to let go of."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without sockets, whose time is a number."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Selector(self)
        self._now = 1_000.0

    def time(self) -> float:
        return self._now

    def pass_by(self, seconds: float) -> None:
        """It is later now, and nothing has been done meanwhile: as when the loop is blocked."""
        self._now += max(0.0, seconds)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do at this moment."""
        ready: Any = self._ready  # type: ignore[attr-defined]
        return not ready

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps."""


async def settle() -> None:
    """Return when nothing is left to do at this moment."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    calm = 0
    while calm < 3:
        await asyncio.sleep(0)
        calm = calm + 1 if loop.is_idle else 0


class NoWatch:
    """In the place of the thread that looks for stalls: it would measure real time."""

    def beat(self) -> None:
        """Nobody looks."""

    def culprit(self) -> str:
        """It was the test."""
        return ""

    def stop(self) -> None:
        """Nobody looks."""


# -- the gateway -----------------------------------------------------------------------------------


@dataclass
class Book:
    """What all gateways of a world have been told and have done, by the key in a channel's URL."""

    got: dict[str, list[str]] = field(default_factory=dict)
    sent: dict[str, list[str]] = field(default_factory=dict)
    channels: dict[str, Any] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, list[int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)  # promises; whoever asked would only log an exception
    cleaned: dict[str, int] = field(default_factory=dict)

    def insist(self, kept: bool, promise: str) -> None:
        """Write down that a promise was not kept."""
        if not kept:
            self.broken.append(promise)


class App(Application, Directory):
    """Writes down everything. Every fifth message takes a while."""

    def __init__(self, book: Book) -> None:
        self.book = book

    async def find(self, request: Request) -> Served:
        return Served(self, request, None, "/lab/{key}")

    async def check(self, request: Request, admitted: Request | None, user: Any) -> None:
        """Everybody is welcome."""

    def open(self, channel: Channel) -> None:
        key = channel.request.path.rpartition("/")[2]
        self.book.insist(key not in self.book.got, f"{key} is opened once")
        self.book.got[key], self.book.sent[key] = [], []
        self.book.channels[key] = channel
        self.book.sessions[key] = channel.id
        channel.data["key"] = key

    def message(self, channel: Channel, data: str | bytes) -> Any:
        key = channel.data["key"]
        assert isinstance(data, str)
        self.book.insist(key not in self.book.closed, f"{key} gets nothing after its end")
        self.book.got[key].append(data)
        return asyncio.sleep(SLOW) if len(self.book.got[key]) % 5 == 0 else None

    def close(self, channel: Channel, closing: Closing) -> None:
        key = channel.data["key"]
        self.book.insist(key not in self.book.closed, f"{key} is closed once")
        self.book.closed[key] = closing.code
        self.book.channels.pop(key, None)


class Cord:
    """The store as one process sees it, until that process is killed."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        if self.is_cut:
            raise StoreUnavailable("this process is dead")
        return getattr(self._store, name)


class Answer:
    """What becomes of one request. `status` is None until it is answered."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = ""
        self.respond = self._respond

    def _respond(self, body: str) -> None:
        assert self.status is None, "answered twice"
        self.status, self.body = 200, body

    def refuse(self) -> None:
        """400."""
        assert self.status is None, "answered twice"
        self.status = 400


class Server:
    """One process. Everything but `start`, `stop` and `kill` is called while the loop runs."""

    def __init__(self, store: MemoryStore, book: Book, number: int, wall: Callable[[], float]) -> None:
        self.cord = Cord(store)
        self.store = cast(MemoryStore, self.cord)
        self.book = book
        ids = count(1)
        self.answers: list[Answer] = []
        self.registry = Registry(SETTINGS)
        nodes = count(1)
        self.ledger = Ledger(
            self.store,
            SETTINGS,
            clean=self._clean,
            new_node=lambda: f"node-{number}-{next(nodes)}",
            now=self.registry.now,
            wall=wall,
        )
        self.app = App(book)
        self.sessions = Sessions(
            self.app,
            SETTINGS,
            self.registry.deadlines,
            self.registry.admission,
            self.ledger,
            new_id=lambda: f"session-{number}-{next(ids)}",
            new_token=lambda: f"token-{number}-{next(ids)}",
            epoch=f"epoch-{number}",
        )
        self._sids = (f"sid-{number}-{n}" for n in count(1))

    async def start(self) -> None:
        """Join the store."""
        await self.ledger.start()
        self.ledger.run()

    async def stop(self) -> None:
        """As SIGTERM does it: see `app.py`."""
        await self.sessions.shutdown()
        await self.registry.shutdown()
        async with asyncio.timeout(SETTINGS.timeouts.drain):
            await self.ledger.drained()
        await self.ledger.stop()

    async def kill(self) -> None:
        """As SIGKILL does it: nothing of it is heard of again."""
        self.cord.is_cut = True
        self.registry.deadlines.stop()
        own = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not own]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for key in list(self.book.channels):  # whoever held them does not hold them any more
            del self.book.channels[key]

    async def _clean(self, claim: Claim) -> None:
        attempts = self.book.attempts.setdefault(claim.session.id, [])
        self.book.insist(claim.attempt not in attempts, f"{claim.session.id} is cleaned up once an attempt")
        self.book.insist(claim.session.id not in self.book.cleaned, f"{claim.session.id} is cleaned up once")
        attempts.append(claim.attempt)
        await asyncio.sleep(HOOK)
        if await self.store.finish(self.ledger.node, claim):
            self.book.cleaned[claim.session.id] = self.book.cleaned.get(claim.session.id, 0) + 1

    # What HTTP would do (`wires/http.py`).

    def handshake(self) -> str:
        """The `sid` of a new polling connection."""
        sid = next(self._sids)
        self.registry.reserve(sid, "a")
        return sid

    def _find(self, sid: str) -> Any:
        connection = self.registry.find(sid)
        if connection is not None:
            return connection
        connection = self.registry.redeem(sid)
        if connection is not None:
            EngineChannel(connection, Request("/"), self.sessions, SETTINGS).admit_now()
            connection.start_polling()
            self.registry.settle(sid)
        return connection

    def websocket(self) -> MemoryTransport:
        """A new websocket connection."""
        connection = self.registry.create(next(self._sids), "a")
        EngineChannel(connection, Request("/"), self.sessions, SETTINGS).admit_now()
        transport = MemoryTransport(connection)
        connection.start_websocket(transport)
        self.registry.settle(connection.sid)
        return transport

    def upgrade(self, sid: str) -> MemoryTransport | None:
        """A websocket that wants to take over."""
        connection = self._find(sid)
        if connection is None:
            return None
        transport = MemoryTransport(connection)
        return transport if connection.offer(transport) else None

    def get(self, sid: str, number: int) -> Answer:
        """A GET."""
        answer = Answer()
        connection = self._find(sid)
        if connection is None or not self.registry.judge(connection) or connection.polling is None:
            answer.refuse()
            return answer
        self.answers.append(answer)
        try:
            connection.poll(connection.polling, answer.respond, number, 2.0, 50_000)
        except (Overlap, WrongNumber):
            answer.refuse()
        return answer

    def departed(self, sid: str, answer: Answer) -> None:
        """The client has closed its end while its GET was waiting: there is nobody to answer."""
        connection = self.registry.find(sid)
        if answer.status is None and connection is not None and connection.polling is not None:
            self.answers.remove(answer)
            connection.poll_abandoned(connection.polling, answer.respond)

    def post(self, sid: str, number: int, body: bytes) -> Answer:
        """A POST."""
        answer = Answer()
        connection = self._find(sid)
        polling = None if connection is None else connection.polling
        if polling is None or connection.state.is_over:
            answer.refuse()
            return answer
        self.answers.append(answer)
        try:
            post = connection.begin_post(polling, number)
        except (Overlap, WrongNumber):
            answer.refuse()
            return answer

        def go_on() -> None:
            try:
                if post.turn is Turn.NOW:
                    polling.post(body, post)
            except (PacketError, WrongNumber):
                answer.refuse()
            finally:
                polling.end_post(post)
            if answer.status is None:
                answer.refuse() if post.turn is Turn.STALE else answer.respond("ok")

        if post.turn is Turn.LATER:
            post.moved = go_on
        else:
            go_on()
        return answer


# -- the page --------------------------------------------------------------------------------------


@dataclass
class Socket:
    """One socket of the page. `ended` is the code of its `close` event; it is `gone` with its page."""

    key: str
    number: int = 0
    wanted: list[str] = field(default_factory=list)  # all that the page has sent
    waiting: list[str] = field(default_factory=list)  # for a grant
    got: list[str] = field(default_factory=list)
    credit: int = 0
    known: bool = False  # to the gateway, perhaps
    accepted: bool = False
    ended: int | None = None
    gone: bool = False

    @property
    def is_open(self) -> bool:
        return self.accepted and self.ended is None and not self.gone


class Polling:
    """One Engine.IO connection over GETs and POSTs, one of each at a time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.sid = server.handshake()
        self.getting: Answer | None = None
        self.posting: Answer | None = None
        self.candidate: MemoryTransport | None = None
        self._gets = 0
        self._posts = 0
        self._body = b""
        self._out: list[str | bytes] = []
        self.lost = False

    def send(self, *packets: str | bytes) -> None:
        """Put these into the next POST."""
        self._out += packets

    @property
    def left(self) -> list[str | bytes]:
        """What goes over to the websocket."""
        return self._out

    @property
    def is_idle(self) -> bool:
        """Whether the next packets would leave at once."""
        return self.posting is None and not self._out and self.candidate is None

    def move(self) -> list[str | bytes]:
        """Do what is to be done now; what has arrived."""
        arrived: list[str | bytes] = []
        if self.getting is not None and self.getting.status is not None:
            answer, self.getting = self.getting, None
            if answer.status == 400:
                self.lost = True
                return arrived
            arrived = [*_packets(answer.body)]
        if self.posting is not None and self.posting.status is not None:
            answer, self.posting = self.posting, None
            self.lost = self.lost or answer.status == 400
        if self.lost:
            return arrived
        if self.candidate is None or not self._is_probed:
            self._ask()
        elif self.getting is None and self.posting is None:
            self.candidate.feed("5")
        return arrived

    def _ask(self) -> None:
        if self.posting is None and self._out:
            self._posts += 1
            self._body, self._out = encode_payload(self._out).encode(), []
            self.posting = self._server.post(self.sid, self._posts, self._body)
        if self.getting is None:
            self._gets += 1
            self.getting = self._server.get(self.sid, self._gets)

    @property
    def _is_probed(self) -> bool:
        return self.candidate is not None and "3probe" in self.candidate.sent

    # What the network does to it.

    def lose_answer_of_get(self, *, told: bool) -> None:
        """Its connection is cut; the page sends it again. `told`: the gateway notices."""
        if self.getting is not None and not self._is_probed:
            if told:
                self._server.departed(self.sid, self.getting)
            self.getting = self._server.get(self.sid, self._gets)

    def lose_answer_of_post(self) -> None:
        """The page sends it again, although it was delivered."""
        if self._posts:
            again = self._server.post(self.sid, self._posts, self._body)
            if self.posting is not None:
                self.posting = again

    def cut(self, *, told: bool) -> None:
        """It is over."""
        if told and self.getting is not None:
            self._server.departed(self.sid, self.getting)

    def probe(self) -> None:
        """A websocket wants to take over."""
        if self.candidate is None:
            self.candidate = self._server.upgrade(self.sid)
            if self.candidate is not None:
                self.candidate.feed("2probe")

    def fail_probe(self) -> None:
        """It is lost again."""
        candidate, self.candidate = self.candidate, None
        if candidate is not None and candidate.closed_with is None:
            candidate.cut()


class WebSocket:
    """One Engine.IO connection over a websocket. `heard`: frames that were read before."""

    def __init__(self, transport: MemoryTransport, heard: int) -> None:
        self._transport = transport
        self._heard = heard
        self._out: list[str | bytes] = []

    @property
    def lost(self) -> bool:
        return self._transport.closed_with is not None and self._heard == len(self._transport.sent)

    @property
    def is_idle(self) -> bool:
        return not self._out

    def send(self, *packets: str | bytes) -> None:
        self._out += packets

    def move(self) -> list[str | bytes]:
        sent = self._transport.sent
        arrived, self._heard = sent[self._heard :], len(sent)
        out, self._out = self._out, []
        for packet in out:
            if self._transport.closed_with is None:
                self._transport.feed(packet)
        return arrived

    def cut(self, *, told: bool) -> None:
        if told and self._transport.closed_with is None:
            self._transport.cut()


def _packets(body: str) -> list[str | bytes]:
    return [
        data if isinstance(data, bytes) else kind.value + data for kind, data in decode_payload(body.encode())
    ]


class Page:
    """Our own client, as far as the gateway can tell. Its sockets are at `/lab/KEY`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sockets: list[Socket] = []
        self.link: Polling | WebSocket | None = None
        self.welcomed = False
        self._keys = count(1)
        self._texts = count(1)
        self.resume: frames.Welcome | None = None
        self._anew = False
        self._begin()

    def _begin(self) -> None:
        self._kept: list[str | bytes] = []
        self._acked = 0
        self._written = 0  # frames that this connection has carried, and those before
        self._received = 0
        self._told = 0
        self._last = 0
        self._by_number: dict[int, Socket] = {}

    # What its user does.

    def open(self) -> None:
        """A new socket."""
        socket = Socket(f"{self.name}-{next(self._keys)}")
        self.sockets.append(socket)
        self._ask_for(socket)

    def _ask_for(self, socket: Socket) -> None:
        self._last += 1
        socket.number = self._last
        self._by_number[socket.number] = socket
        self._keep(frames.Open(socket.number, f"/lab/{socket.key}", ()))

    def say(self, socket: Socket, size: int) -> None:
        """A message."""
        text = f"{next(self._texts)} {'é' * size}"
        socket.wanted.append(text)
        socket.waiting.append(text)

    def close(self, socket: Socket) -> None:
        """`socket.close()`."""
        socket.ended = 1005
        socket.waiting.clear()
        self._keep(frames.Close(socket.number))

    def reload(self, *, told: bool) -> None:
        """The same page again: it knows the session and nothing else."""
        self.cut(told=told)
        for socket in self.sockets:
            socket.gone = True
        self._begin()
        self._anew = True

    def leave(self) -> None:
        """Say good-bye and go; it may be back."""
        if self.welcomed and self.link is not None and self.link.is_idle:
            self.link.send(message("B"))
            self.link.move()
        self.cut(told=True)

    # Its connection.

    def connect(self, server: Server, kind: str) -> None:
        """Another connection, with a hello."""
        assert self.link is None
        self.link = Polling(server) if kind == "polling" else WebSocket(server.websocket(), 1)
        self.welcomed = False
        resume = None
        if self.resume is not None:
            received = None if self._anew else self._received
            last = self.resume
            resume = frames.Resume(last.session, last.token, last.epoch, received)
        self.link.send(message(frames.encode(frames.Hello(resume))))

    def cut(self, *, told: bool) -> None:
        """Lose the connection. `told`: the gateway notices."""
        if self.link is not None:
            self.link.cut(told=told)
        self.link, self.welcomed = None, False

    def move(self) -> None:
        """Do what is to be done now."""
        if self.link is None:
            return
        self._write()
        for packet in self.link.move():
            self._hear(packet)
            if self.link is None:
                return
        if self.link.lost:
            self.cut(told=False)
            return
        if isinstance(self.link, Polling):
            self._follow(self.link)

    def _follow(self, link: Polling) -> None:
        """Go over to the candidate, or forget it."""
        candidate = link.candidate
        if candidate is None:
            return
        if candidate.closed_with is not None:
            link.candidate = None
        elif "3probe" in candidate.sent and link.getting is None and link.posting is None:
            self.link = WebSocket(candidate, candidate.sent.index("3probe") + 1)
            self.link.send(*link.left)

    def _write(self) -> None:
        if not self.welcomed or self.link is None or not self.link.is_idle:
            return
        for socket in self._by_number.values():
            while socket.waiting and socket.is_open and socket.credit > 0:
                text = socket.waiting.pop(0)
                socket.credit -= len(text.encode()) + FRAME_COST
                self._keep(frames.Data(socket.number, text))
        done = self._written - self._acked
        self.link.send(*map(message, self._kept[done:]))
        self._written = self._acked + len(self._kept)
        for socket in self._by_number.values():
            socket.known = True
        if self._told != self._received:
            self._told = self._received
            self.link.send(message(frames.encode(frames.Ack(self._received))))

    def _keep(self, frame: frames.Frame) -> None:
        self._kept.append(frames.encode(frame))

    def _hear(self, packet: str | bytes) -> None:
        assert self.link is not None
        assert isinstance(packet, str)
        if packet in ("6", "3probe"):
            return
        if packet == "2":
            self.link.send("3")
        elif packet == "1":
            self.cut(told=False)
        else:
            self._frame(frames.decode(decode_text(packet)[1]))

    def _frame(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Welcome():
                self._welcome(frame)
                return
            case frames.Ack(number):
                self._drop(number)
                return
            case frames.End():
                self._lost_state()
                self.cut(told=False)
                return
        self._received += 1
        socket = self._by_number[frame.channel]  # type: ignore[union-attr]
        match frame:
            case frames.Accept():
                socket.accepted = True
                assert self.resume is not None
                socket.credit += self.resume.window
            case frames.Data(_, data) if socket.ended is None:
                socket.got.append(str(data))
            case frames.Grant(_, size):
                socket.credit += size
            case frames.Close(_, code) if socket.ended is None:
                socket.ended = 1005 if code is None else code
                self._keep(frames.Close(socket.number))
            case frames.Refuse() if socket.ended is None:
                socket.ended = 1006

    def _welcome(self, welcome: frames.Welcome) -> None:
        assert not self.welcomed
        self.welcomed = True
        if not welcome.resumed:
            self._lost_state()
        else:
            assert self.resume is not None
            assert welcome.session == self.resume.session
            self._drop(welcome.received)
        self._written = self._acked
        self.resume, self._anew = welcome, False
        self._told = self._received

    def _drop(self, number: int) -> None:
        assert self._acked <= number <= self._acked + len(self._kept)
        del self._kept[: number - self._acked]
        self._acked = number
        self._written = max(self._written, number)

    def _lost_state(self) -> None:
        """All that the gateway knew is over. What it was never asked for is asked for again."""
        sockets = [socket for socket in self._by_number.values() if socket.ended is None]
        self.resume, self._anew = None, False
        self._begin()
        for socket in sockets:
            if socket.known:
                socket.ended = 1006
            else:
                self._ask_for(socket)
