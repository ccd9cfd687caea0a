"""Middleboxes: what stands between browsers and servers in offices, hotels, trains and mobile networks.

Each one decides what happens to a request that asks for a WebSocket, to a connection, or to the body
of a POST; all else passes, byte for byte, in order, with back-pressure. None knows Engine.IO. One may
stand in front of another.

A new middlebox is a subclass with a docstring that names who does this in the world, and a line in
`BOXES` or in `WEATHER`. Every test that drives one browser through all of `BOXES` then drives it through
the new one: nobody notices those, for the first message is there within a second and none is away for
as long. `WEATHER` is for what takes longer, or limits what may pass: see docs/weather.md.
"""

import asyncio
import random
import socket
from collections.abc import Callable
from typing import Self

from tests.network.flows import (
    LIMIT,
    Carry,
    Flow,
    content_length,
    end_of_stream,
    length_of_body,
    pipe_after,
    swallow,
    wants_upgrade,
)


class Plain:
    """Nothing in the way: a relay that changes nothing. What all others are measured against."""

    def __init__(self) -> None:
        self.connections = 0
        """Connections accepted."""
        self.requests = 0
        """Requests seen, those that ask for an upgrade among them."""
        self.upgrades = 0
        """Requests seen that ask for an upgrade."""
        self.resets = 0
        """Connections that this middlebox has reset."""
        self._server: asyncio.Server | None = None
        self._place: socket.socket | None = None
        self._upstream = ("", 0)
        self._flows: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Stands in front of `host:port`; gives the address to use instead."""
        self._upstream = (host, port)
        # Bound and never listening: it keeps the port for us while nobody listens there.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        await self.listen()
        address: tuple[str, int] = self._place.getsockname()
        return address

    async def listen(self) -> None:
        """Takes connections, after `start` or again after `leave`."""
        assert self._place
        host, port = self._place.getsockname()
        self._server = await asyncio.start_server(self._accept, host, port, limit=LIMIT, reuse_port=True)

    def leave(self) -> None:
        """Refuses new connections. Idempotent."""
        if self._server:
            self._server.close()
            self._server = None

    async def stop(self) -> None:
        """Ends all connections, and listens no longer. Idempotent."""
        self.leave()
        if self._place:
            self._place.close()
            self._place = None
        for flow in self._flows:
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def serve(self, flow: Flow) -> None:
        """One connection from its first byte to its last."""
        while head := await flow.next_head():
            self.requests += 1
            if wants_upgrade(head):
                self.upgrades += 1
                await self.upgrade(flow, head)
                return
            await self.forward(flow, head)
        await flow.finish()

    async def upgrade(self, flow: Flow, head: bytes) -> None:
        """A request to upgrade, the last one of its connection."""
        await flow.upgrade(head)
        await flow.tunnel()

    async def forward(self, flow: Flow, head: bytes) -> None:
        """Any other request."""
        await flow.send(head)
        async for part in flow.body(head):
            await flow.send(part)

    def reset(self, flow: Flow) -> None:
        """RST to both sides."""
        self.resets += 1
        flow.reset()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._run(Flow(reader, writer, self._upstream)))
        self._flows.add(task)
        task.add_done_callback(self._flows.discard)

    async def _run(self, flow: Flow) -> None:
        try:
            await self.serve(flow)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # One side broke off: so does the other. That is passed on, it is not our doing.
            flow.reset()
        finally:
            flow.close()


class SilentAfter101(Plain):
    """The 101 comes through, and then nothing in either direction, not even an end.

    Transparent proxies and mobile gateways that follow HTTP but not what comes after it.
    """

    async def upgrade(self, flow: Flow, head: bytes) -> None:
        if await flow.upgrade(head):
            await flow.silence()
        await flow.tunnel()


class ResetAfter101(Plain):
    """The 101 comes through, and the first byte after it is answered by a reset.

    Firewalls and virus scanners with HTTP inspection: a WebSocket frame is no HTTP that they know.
    """

    async def upgrade(self, flow: Flow, head: bytes) -> None:
        if not await flow.upgrade(head):
            await flow.tunnel()
        # A reset sent right after the 101 could overtake it in the browser, as data is thrown away.
        await flow.first_byte()
        self.reset(flow)


class RefuseUpgrade(Plain):
    """A request to upgrade is answered with 403 and a page that explains it to a person.

    Company web filters with a rule against WebSockets.
    """

    async def upgrade(self, flow: Flow, head: bytes) -> None:
        await _answer(flow, b"403 Forbidden", b"Blocked by the policy of your company.")


class NeverAnswer(Plain):
    """A request to upgrade gets no answer at all; its connection stays open.

    Proxies that wait for the end of a request that has none, and overloaded inspection.
    """

    async def upgrade(self, flow: Flow, head: bytes) -> None:
        await flow.silence()


class KillAfter(Plain):
    """Every connection, idle or busy, is reset some seconds after it was made.

    Load balancers and mobile networks with a limit on the age of connections.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def serve(self, flow: Flow) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.seconds, self.reset, flow)
        try:
            await super().serve(flow)
        finally:
            timer.cancel()


class SplitPosts(Plain):
    """The head of a POST and its body arrive in separate segments, with small pauses between.

    Slow uplinks with small packets, and proxies that forward a body as they receive it.
    """

    def __init__(self, pieces: int = 4, pause: float = 0.005) -> None:
        """`pause`: seconds between two segments."""
        super().__init__()
        self.pieces = pieces
        self.pause = pause
        self.segments = 0
        """Segments of bodies sent so far."""

    async def forward(self, flow: Flow, head: bytes) -> None:
        if not head.startswith(b"POST "):
            await super().forward(flow, head)
            return
        # asyncio sets TCP_NODELAY: each write is a segment of its own.
        await flow.send(head)
        length = content_length(head)
        async for part in flow.body(head):
            size = -(-(length or len(part)) // self.pieces)
            for start in range(0, len(part), size):
                await asyncio.sleep(self.pause)
                await flow.send(part[start : start + size])
                self.segments += 1


class KillWebSockets(Plain):
    """A WebSocket is reset some seconds after it was opened, idle or busy; nothing else is.

    Proxies with a limit on what is no ordinary request.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def upgrade(self, flow: Flow, head: bytes) -> None:
        timer = asyncio.get_running_loop().call_later(self.seconds, self.reset, flow)
        try:
            await super().upgrade(flow, head)
        finally:
            timer.cancel()


class LoseUplink(Plain):
    """Some seconds after a WebSocket was opened, nothing that the browser sends in it arrives any more.

    Firewalls that lose one direction of a connection: the server's pings still come through.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def upgrade(self, flow: Flow, head: bytes) -> None:
        await flow.upgrade(head)
        await flow.tunnel_until_deaf(self.seconds)


class Whole(RefuseUpgrade):
    """Takes whole requests and hands on whole answers, one at a time; lets no WebSocket through.

    Virus scanners and inspecting proxies. Their requests are repeated, and their answers are lost, in
    the subclasses.
    """

    def __init__(self, path: str = "/_gateway/engine/") -> None:
        """`path`: where what is treated so begins. The page itself should come through whole."""
        super().__init__()
        self._path = f" {path}".encode()
        self.treated = 0
        """Requests below `path`."""

    async def forward(self, flow: Flow, head: bytes) -> None:
        if self._path not in head:
            await super().forward(flow, head)
            return
        self.treated += 1
        request = head + b"".join([part async for part in flow.body(head)])
        async with flow.while_there():
            await self.treat(flow, request)
        await flow.writer.drain()

    async def treat(self, flow: Flow, request: bytes) -> None:
        """One request below `path`."""
        flow.writer.write(await flow.ask(request))


class RepeatPosts(Whole):
    """Every POST arrives twice; the second answer is handed on.

    Proxies that try again what seemed to fail, and browsers, whose connection was cut before the answer.
    """

    async def treat(self, flow: Flow, request: bytes) -> None:
        if request.startswith(b"POST "):
            await flow.ask(request)
        await super().treat(flow, request)


class LoseAnswers(Whole):
    """One answer in ten is lost after the server has acted: the connection is reset instead.

    Load balancers that lose a machine, mobile networks. Browsers then send a request again by themselves.
    """

    async def treat(self, flow: Flow, request: bytes) -> None:
        answer = await flow.ask(request)
        if self.treated % 10 == 0:
            self.reset(flow)
        else:
            flow.writer.write(answer)


class BadGateway(Whole):
    """One request in ten is answered with 502, in turn before and after the server has acted on it.

    Load balancers in front of a machine that is in trouble.
    """

    async def treat(self, flow: Flow, request: bytes) -> None:
        if self.treated % 10:
            await super().treat(flow, request)
            return
        if self.treated % 20:
            await flow.ask(request)
        await _answer(flow, b"502 Bad Gateway", b"Try again later.")


class FailsOneInTen(Whole):
    """One request in ten is answered with 502, and one in ten of the others after it was passed on.

    Which ones is chance. In the second case its own answer is thrown away.
    Load balancers with a machine that is going down, and proxies with too few connections.
    """

    def __init__(self, seed: int = 1, path: str = "/_gateway/engine/") -> None:
        """`seed`: of chance. The same requests in the same order then fail in the same way."""
        super().__init__(path)
        self._chance = random.Random(seed)
        self.refused = 0
        """Requests that were not passed on."""
        self.lost = 0
        """Answers that were thrown away."""

    async def treat(self, flow: Flow, request: bytes) -> None:
        refused = self._chance.random() < 0.1
        lost = self._chance.random() < 0.1
        if refused:
            self.refused += 1
        elif lost:
            await flow.ask(request)
            self.lost += 1
        else:
            await super().treat(flow, request)
            return
        await _answer(flow, b"502 Bad Gateway", b"Try again later.", close=False)


class SmallBodies(Whole):
    """A POST that is too long is answered with 413, an answer that is too long is cut or replaced by 502.

    The connection of such a POST is closed. Answers are cut in their middle and replaced in turn.
    nginx and others with a limit on bodies (`client_max_body_size`), and inspection with little memory.
    """

    def __init__(
        self, post: int = 64 * 1024, answer: int = 256 * 1024, path: str = "/_gateway/engine/"
    ) -> None:
        """`post`, `answer`: bytes that a body may have."""
        super().__init__(path)
        self.post = post
        self.answer = answer
        self.refused = 0
        """POSTs that were too long."""
        self.cut = 0
        """Answers that were too long."""

    async def forward(self, flow: Flow, head: bytes) -> None:
        if not head.startswith(b"POST ") or content_length(head) <= self.post:
            await super().forward(flow, head)
            return
        self.refused += 1
        await _answer(flow, b"413 Content Too Large", b"This is too much.")
        # A reset would overtake the answer: so it reads on, as nginx does.
        async for _ in flow.body(head):
            pass
        flow.writer.close()

    async def treat(self, flow: Flow, request: bytes) -> None:
        answer = await flow.ask(request)
        length = length_of_body(answer)
        if length <= self.answer:
            flow.writer.write(answer)
            return
        self.cut += 1
        if self.cut % 2:
            flow.writer.write(answer[: -length // 2])
            flow.writer.close()
        else:
            await _answer(flow, b"502 Bad Gateway", b"This is too much.", close=False)


class Drops(Plain):
    """Every few seconds all connections are reset, and for two seconds new ones are refused.

    What was under way is lost.
    Tunnels, lifts, a hand-over between two radio cells or from Wi-Fi to mobile, a proxy that restarts.
    """

    def __init__(self, every: float = 5.0, lasts: float = 2.0, under_way: float = 0.2) -> None:
        """Seconds between two drops, and of one drop; what is sent `under_way` before it is lost."""
        super().__init__()
        self.every = every
        self.lasts = lasts
        self.under_way = under_way
        self.drops = 0
        """Drops so far."""
        self._weather: asyncio.Task[None] | None = None
        self._losing = False
        self._open: set[Flow] = set()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        address = await super().start(host, port)
        self._weather = asyncio.create_task(self._change())
        return address

    async def stop(self) -> None:
        if self._weather:
            self._weather.cancel()
            await asyncio.gather(self._weather, return_exceptions=True)
            self._weather = None
        await super().stop()

    async def serve(self, flow: Flow) -> None:
        self._open.add(flow)
        try:
            await flow.connect()
            await flow.tunnel(self._carry, self._carry)
        finally:
            self._open.discard(flow)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(LIMIT):
            if self._losing:
                await swallow(reader)
                return
            writer.write(data)
            await writer.drain()
        end_of_stream(writer)

    async def _change(self) -> None:
        while True:
            await asyncio.sleep(self.every)
            self.drops += 1
            await self.begin()
            await asyncio.sleep(self.lasts)
            await self.end()

    async def begin(self) -> None:
        """A drop begins."""
        self._losing = True
        await asyncio.sleep(self.under_way)
        self._losing = False
        self.leave()
        for flow in self._open:
            self.reset(flow)

    async def end(self) -> None:
        """A drop is over."""
        await self.listen()


class Holds(Drops):
    """Every few seconds, for two, no byte comes through in any direction; then all of them do.

    The same places, when the connection survives: a phone that changes cells, Wi-Fi with a microwave oven.
    """

    def __init__(self, every: float = 5.0, lasts: float = 2.0) -> None:
        super().__init__(every, lasts)
        self._passing = asyncio.Event()
        self._passing.set()

    async def serve(self, flow: Flow) -> None:
        await self._passing.wait()
        await flow.connect()
        carry = pipe_after(lambda _: self._passing.wait())
        await flow.tunnel(carry, carry)

    async def begin(self) -> None:
        self._passing.clear()

    async def end(self) -> None:
        self._passing.set()


class FarAway(Plain):
    """Every byte takes its time, and so does a new connection; there is room for any number of them.

    Satellites, the other side of the world by way of a company's tunnel. What TCP itself does on a long
    way, to begin slowly, is not here: loopback knows nothing of the distance.
    """

    ROOM = 128  # pieces of up to 256 kB under way in one direction

    def __init__(self, round_trip: float = 0.6) -> None:
        """`round_trip`: seconds there and back."""
        super().__init__()
        self.round_trip = round_trip

    async def serve(self, flow: Flow) -> None:
        # The browser's SYN was answered by this machine, too soon by one round trip.
        connected = asyncio.get_running_loop().time() + self.round_trip
        await flow.connect()
        await flow.tunnel(self._carry(connected), self._carry(connected))

    def _carry(self, connected: float) -> Carry:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            loop = asyncio.get_running_loop()
            under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(self.ROOM)
            arrivals = asyncio.create_task(_arrive(under_way, writer))
            try:
                data = b"?"
                while data:
                    data = await reader.read(LIMIT)
                    await under_way.put((max(loop.time(), connected) + self.round_trip / 2, data))
                await arrivals
            finally:
                arrivals.cancel()
                await asyncio.gather(arrivals, return_exceptions=True)

        return carry


async def _arrive(under_way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due, data = await under_way.get()
        await asyncio.sleep(due - loop.time())
        if not data:
            end_of_stream(writer)
            return
        writer.write(data)
        await writer.drain()


class _Forgets(Plain):
    """Does something to a connection, once no byte has come through for some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.idle = 0
        """Connections that were idle for so long."""

    async def serve(self, flow: Flow) -> None:
        loop = asyncio.get_running_loop()
        moved = loop.time()
        asked = b""

        async def up(data: bytes) -> None:
            nonlocal moved, asked
            moved, asked = loop.time(), asked if wants_upgrade(asked) else data

        async def down(data: bytes) -> None:
            nonlocal moved, asked
            moved, asked = loop.time(), asked if wants_upgrade(asked) else b""

        await flow.connect()
        tunnel = asyncio.create_task(flow.tunnel(pipe_after(up), pipe_after(down)))
        try:
            while (left := moved + self.seconds - loop.time()) > 0:
                await asyncio.wait([tunnel], timeout=left)
                if tunnel.done():
                    await tunnel
                    return
        finally:
            tunnel.cancel()
            await asyncio.gather(tunnel, return_exceptions=True)
        self.idle += 1
        await self.forget(flow, waits=asked.startswith(b"GET ") and not wants_upgrade(asked))

    async def forget(self, flow: Flow, waits: bool) -> None:
        """It was idle for so long; `waits`: a GET has not been answered."""
        raise NotImplementedError


class IdleLimit(_Forgets):
    """A connection on which nothing comes through for some seconds is closed, also under a GET that waits.

    The GET is in turn answered with 504 and reset.
    Proxies and load balancers: 60 s are usual (nginx, AWS), 30 s are common, 5 to 10 s exist.
    """

    async def forget(self, flow: Flow, waits: bool) -> None:
        if not waits:
            return
        if self.idle % 2:
            await _answer(flow, b"504 Gateway Timeout", b"The server has not answered in time.")
        else:
            self.reset(flow)


class ForgetfulNat(_Forgets):
    """A connection on which nothing comes through for some seconds is dead, and neither side is told.

    Routers of mobile networks and hotels, whose tables are small.
    """

    async def forget(self, flow: Flow, waits: bool) -> None:
        await flow.silence()


async def _answer(flow: Flow, status: bytes, text: bytes, *, close: bool = True) -> None:
    page = b"<!doctype html><title>%b</title><p>%b" % (status, text)
    flow.writer.write(
        b"HTTP/1.1 %b\r\nContent-Type: text/html\r\n%bContent-Length: %d\r\n\r\n%b"
        % (status, b"Connection: close\r\n" if close else b"", len(page), page)
    )
    await flow.writer.drain()


BOXES: dict[str, Callable[[], Plain]] = {
    "plain": Plain,
    "silent_after_101": SilentAfter101,
    "reset_after_101": ResetAfter101,
    "refuse_upgrade": RefuseUpgrade,
    "never_answer": NeverAnswer,
    "kill_after_3_s": lambda: KillAfter(3.0),
    "split_posts": SplitPosts,
    "kill_websockets": lambda: KillWebSockets(0.5),
    "repeat_posts": RepeatPosts,
    "lose_answers": LoseAnswers,
    "bad_gateway": BadGateway,
}
"""Those for one browser, by name, each with the values that tests of clients use."""


WEATHER: dict[str, Callable[[], Plain]] = {
    "drops": Drops,
    "holds": Holds,
    "fails_one_in_ten": FailsOneInTen,
    "small_bodies": SmallBodies,
    "far_away": FarAway,
    "idle_5_s": lambda: IdleLimit(5.0),
    "idle_8_s": lambda: IdleLimit(8.0),
    "idle_10_s": lambda: IdleLimit(10.0),
    "forgetful_nat": lambda: ForgetfulNat(10.0),
}
"""Those that take their time: `python -m tests.network.survival` drives many sessions through them."""
