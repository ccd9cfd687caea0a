"""A TCP connection that says exactly what a test wants, however malformed, and reads what comes back.

HTTP answers are read just well enough for tests; websocket frames are built bit by bit.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

PATIENCE = 5.0  # s, for whatever should come at once
KEY = "dGhlIHNhbXBsZSBub25jZQ=="

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


def request(
    method: str, target: str, *headers: str, body: bytes = b"", host: str | None = "gateway.test"
) -> bytes:
    """An HTTP/1.1 request. A body brings its Content-Length, unless a header speaks of its length."""
    lines = [f"{method} {target} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), *headers]
    framed = any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers)
    if body and not framed:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def upgrade(target: str, *headers: str, version: str = "13", key: str = KEY) -> bytes:
    """A websocket's opening request."""
    return request(
        "GET",
        target,
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Version: {version}",
        f"Sec-WebSocket-Key: {key}",
        *headers,
    )


def frame(
    opcode: int,
    data: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """A websocket frame. `length`: what it claims, in place of the truth. The mask is zero."""
    claimed = len(data) if length is None else length
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask = 0x80 if masked else 0
    if claimed < 126:
        head = struct.pack("!BB", first, mask | claimed)
    elif claimed < 65_536:
        head = struct.pack("!BBH", first, mask | 126, claimed)
    else:
        head = struct.pack("!BBQ", first, mask | 127, claimed)
    return head + (b"\0\0\0\0" if masked else b"") + data


def text(data: str, **options: Any) -> bytes:
    """A text frame."""
    return frame(TEXT, data.encode(), **options)


def close(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


@dataclass
class Response:
    """An HTTP answer. `headers` in lower case; the last of several wins."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def code(self) -> int | None:
        """Engine.IO's error code, where there is one."""
        if self.headers.get("content-type", "").startswith("application/json"):
            return json.loads(self.body).get("code")
        return None


class Raw:
    """`async with Raw(port) as raw`. Every read gives up after `PATIENCE` seconds."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Raw:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.transport.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Send it. That the other side has already closed is no error: its answer is read later."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            return

    def finish(self) -> None:
        """FIN: nothing more is sent."""
        self._writer.write_eof()

    def stop_reading(self) -> None:
        """Read nothing more: the window closes when the buffers are full."""
        cast(asyncio.Transport, self._writer.transport).pause_reading()

    def reset(self) -> None:
        """RST: the connection is gone, and what is under way with it."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def response(self, patience: float = PATIENCE) -> Response:
        """The next HTTP answer."""
        async with asyncio.timeout(patience):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            headers = dict(_header(line) for line in lines[1:] if line)
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Response(int(lines[0].split(" ")[1]), headers, body)

    async def ask(self, data: bytes) -> Response:
        """Send a request and read the answer to it."""
        await self.send(data)
        return await self.response()

    async def frame(self, patience: float = PATIENCE) -> tuple[int, bytes]:
        """The next websocket frame: opcode and payload."""
        async with asyncio.timeout(patience):
            first, second = await self._reader.readexactly(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", await self._reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self._reader.readexactly(8))
            return first & 0x0F, await self._reader.readexactly(length)

    async def close_code(self, patience: float = PATIENCE) -> int:
        """Read until a close frame; its code, 1005 for none, 1006 if the connection just ended."""
        try:
            while True:
                opcode, data = await self.frame(patience)
                if opcode == CLOSE:
                    return struct.unpack("!H", data[:2])[0] if data else 1005
        except (asyncio.IncompleteReadError, ConnectionError):
            return 1006

    async def ended(self, patience: float = PATIENCE) -> bool:
        """Whether the other side closes, within `patience` seconds; what it still sends is dropped."""
        try:
            async with asyncio.timeout(patience):
                while await self._reader.read(65_536):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()
