"""Middleboxes: what stands between browsers and servers in offices, hotels, trains and mobile networks.

Each one decides what happens to a request that asks for a WebSocket, to a connection, or to the body
of a POST; all else passes, byte for byte, in order, with back-pressure. None knows Engine.IO.

A new middlebox is a subclass with a docstring that names who does this in the world, and a line in
`BOXES`: every test that drives a client through all of them then drives it through the new one.
"""

import asyncio
from collections.abc import Callable
from typing import Self

from tests.network.flows import LIMIT, Flow, content_length, wants_upgrade


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
        self._upstream = ("", 0)
        self._flows: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Stands in front of `host:port`; gives the address to use instead."""
        self._upstream = (host, port)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=LIMIT)
        address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return address

    async def stop(self) -> None:
        """Ends all connections, and listens no longer. Idempotent."""
        if self._server:
            self._server.close()
            self._server = None
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


async def _answer(flow: Flow, status: bytes, text: bytes) -> None:
    page = b"<!doctype html><title>%b</title><p>%b" % (status, text)
    flow.writer.write(
        b"HTTP/1.1 %b\r\nContent-Type: text/html\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (status, len(page), page)
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
"""All of them by name, each with the values that tests of clients use."""
