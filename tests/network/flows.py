"""One TCP connection through a middlebox: read as HTTP requests on the browser's side, bytes on the other.

Decides where one request ends and the next begins, and which one asks for an upgrade. What is done
with them is the business of the middlebox. Knows nothing of Engine.IO and nothing of WebSocket frames.
"""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

LIMIT = 256 * 1024
"""Bytes of the head of a request or an answer, and of one read."""

_END = b"\r\n\r\n"
_UPGRADE = re.compile(rb"^upgrade:\s*websocket", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^content-length:\s*(\d+)", re.IGNORECASE | re.MULTILINE)
_CHUNKED = re.compile(rb"^transfer-encoding:.*chunked", re.IGNORECASE | re.MULTILINE)
_RESET = struct.pack("ii", 1, 0)


def wants_upgrade(head: bytes) -> bool:
    """Whether a request asks to become a WebSocket."""
    return bool(_UPGRADE.search(head))


def content_length(head: bytes) -> int:
    """Bytes of the body, as far as the head says; 0 for a chunked one."""
    found = _LENGTH.search(head)
    return int(found.group(1)) if found else 0


Carry = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Passes the bytes of one direction on until their end, and then the end itself."""


def length_of_body(answer: bytes) -> int:
    """Bytes of the body of a whole answer."""
    return len(answer) - answer.index(_END) - len(_END)


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A `Carry` that changes nothing, and is no faster than the bytes are taken."""
    while data := await reader.read(LIMIT):
        writer.write(data)
        await writer.drain()
    end_of_stream(writer)


def pipe_after(wait: Callable[[bytes], Awaitable[object]]) -> Carry:
    """A `Carry` that awaits `wait(piece)` before it passes a piece on, and `wait(b"")` before the end."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(LIMIT):
            await wait(data)
            writer.write(data)
            await writer.drain()
        await wait(b"")
        end_of_stream(writer)

    return carry


async def swallow(reader: asyncio.StreamReader) -> None:
    """Takes bytes and drops them, until the end."""
    while await reader.read(LIMIT):
        pass


def end_of_stream(writer: asyncio.StreamWriter) -> None:
    """Sends a FIN; reading goes on."""
    # A peer that has already vanished needs none.
    with contextlib.suppress(OSError):
        if not writer.is_closing():
            writer.write_eof()


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(_END)
    if _CHUNKED.search(head):
        raise NotImplementedError("an answer in chunks")
    return head + await reader.readexactly(content_length(head))


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST: what was not sent yet is lost."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class Flow:
    """The browser's connection (`reader`, `writer`) and, from its first request on, ours to the upstream."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: tuple[str, int]
    ) -> None:
        self.reader = reader
        self.writer = writer
        self._address = upstream
        self._upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._answers: asyncio.Task[None] | None = None

    async def next_head(self) -> bytes:
        """The next request, up to and with its empty line; empty when the browser has no more."""
        try:
            return await self.reader.readuntil(_END)
        except asyncio.IncompleteReadError:
            return b""

    async def body(self, head: bytes) -> AsyncIterator[bytes]:
        """The body of the request that began with `head`, in parts, framed as it came."""
        if _CHUNKED.search(head):
            async for part in self._chunks():
                yield part
        left = content_length(head)
        while left:
            part = await self.reader.read(min(left, LIMIT))
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(part)
            yield part

    async def _chunks(self) -> AsyncIterator[bytes]:
        size = -1
        while size:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            yield line + await self.reader.readexactly(size + 2 if size else 0)
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            yield line
        yield line

    async def send(self, data: bytes) -> None:
        """Sends bytes of requests upstream; answers flow back by themselves from then on."""
        if self._upstream is None:
            self._upstream = await asyncio.open_connection(*self._address, limit=LIMIT)
            self._answers = asyncio.create_task(self._pass_answers(self._upstream[0]))
        self._upstream[1].write(data)
        await self._upstream[1].drain()

    async def finish(self) -> None:
        """The browser has no more requests: says so upstream, and passes on what is still answered."""
        if self._upstream and self._answers:
            end_of_stream(self._upstream[1])
            await self._answers

    async def connect(self) -> None:
        """Our connection to the upstream, for a box that does not look at requests."""
        self._upstream = await asyncio.open_connection(*self._address, limit=LIMIT)

    async def upgrade(self, head: bytes) -> bool:
        """Sends a request to upgrade upstream, on a connection of its own, and passes back the head
        of its answer, not a byte more. True if that was a 101.
        """
        self._leave_upstream()
        reader, writer = self._upstream = await asyncio.open_connection(*self._address, limit=LIMIT)
        writer.write(head)
        answer = await reader.readuntil(_END)
        self.writer.write(answer)
        await self.writer.drain()
        return answer.startswith(b"HTTP/1.1 101 ")

    async def tunnel(self, up: Carry = pipe, down: Carry = pipe) -> None:
        """After `upgrade` or `connect`: bytes in both directions, until both have ended."""
        assert self._upstream
        reader, writer = self._upstream
        await asyncio.gather(up(self.reader, writer), down(reader, self.writer))

    async def ask(self, request: bytes) -> bytes:
        """Sends a whole request upstream, on a connection of its own, and gives the whole answer."""
        reader, writer = await asyncio.open_connection(*self._address, limit=LIMIT)
        try:
            writer.write(request)
            return await _read_answer(reader)
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def while_there(self) -> AsyncIterator[None]:
        """Cancels what is done in it, and resets, when the browser leaves before it is done."""
        task = asyncio.current_task()
        assert task
        watch = asyncio.create_task(self.reader.read(1))
        gone = False

        def left(read: asyncio.Task[bytes]) -> None:
            nonlocal gone
            if not read.cancelled():
                gone = True
                task.cancel()

        watch.add_done_callback(left)
        try:
            yield
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
            raise ConnectionResetError("the browser has left") from None
        finally:
            watch.remove_done_callback(left)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def tunnel_until_deaf(self, seconds: float) -> None:
        """After `upgrade`: what comes from the browser later than that vanishes."""
        assert self._upstream
        reader, writer = self._upstream
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await pipe(self.reader, writer)
        await asyncio.gather(swallow(self.reader), pipe(reader, self.writer))

    async def silence(self) -> None:
        """Takes what comes from both sides, and keeps both connections: neither hears of the other's end."""
        readers = [self.reader, *([self._upstream[0]] if self._upstream else [])]
        await asyncio.gather(*map(swallow, readers), return_exceptions=True)
        await asyncio.Event().wait()

    async def first_byte(self) -> None:
        """After `upgrade`: until either side has sent something, or has gone."""
        assert self._upstream
        reads = [asyncio.create_task(r.read(1)) for r in (self.reader, self._upstream[0])]
        try:
            await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)

    def reset(self) -> None:
        """RST to both sides."""
        _reset(self.writer)
        if self._upstream:
            _reset(self._upstream[1])

    def close(self) -> None:
        """Ends both connections. Idempotent."""
        self._leave_upstream()
        self.writer.close()

    def _leave_upstream(self) -> None:
        if self._answers:
            self._answers.cancel()
            self._answers = None
        if self._upstream:
            self._upstream[1].close()
            self._upstream = None

    async def _pass_answers(self, reader: asyncio.StreamReader) -> None:
        try:
            await pipe(reader, self.writer)
        except OSError:
            self.reset()
            return
        # An upstream that has closed answers no further request on this connection.
        self.writer.close()
