"""What aiohttp's request says, in our words, and the answers that every wire gives.

Knows aiohttp; knows nothing of connections.
"""

from __future__ import annotations

import base64
import binascii
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.streams import EMPTY_PAYLOAD, EmptyStreamReader

from gateway.application import Request
from gateway.protocol.forwarded import Network, read_peer
from gateway.protocol.handshake import Code, Refused

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
_TEXT_HEADERS = {hdrs.CONTENT_TYPE: "text/plain; charset=UTF-8", **_HEADERS}


def read_request(request: web.BaseRequest, trusted: list[Network]) -> Request:
    """The request as applications see it."""
    transport = request.transport
    peername = transport.get_extra_info("peername") if transport is not None else None
    peer = peername[0] if isinstance(peername, tuple) else ""
    seen = read_peer(peer, request.scheme, request.headers, trusted)
    return Request(
        path=request.path,
        query_string=request.rel_url.raw_query_string,
        headers=request.headers,
        remote=seen.address,
        scheme=seen.scheme,
        host=seen.host,
        raw=request,
    )


def text_response(body: str, status: int = 200) -> web.Response:
    """A plain answer that no cache keeps and no browser guesses at."""
    return web.Response(
        body=body.encode("utf-8", "replace"),  # a lone surrogate of the application ends nothing
        status=status,
        headers=_TEXT_HEADERS,
    )


def refusal(refused: Refused, *, close: bool = False) -> web.Response:
    """`{"code", "message"}`, in the manner of Engine.IO. `close` ends the TCP connection too."""
    response = web.Response(
        text=refused.body,
        status=refused.status,
        content_type="application/json",
        headers=_HEADERS,
    )
    if refused.status == 426:
        response.headers[hdrs.SEC_WEBSOCKET_VERSION] = "13"  # RFC 6455 section 4.4
    if refused.retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(refused.retry_after)
    if close:
        response.force_close()
    return response


def wants_websocket(request: web.BaseRequest) -> bool:
    """Whether the request asks to become a websocket."""
    return "websocket" in request.headers.get(hdrs.UPGRADE, "").lower()


def websocket_key(request: web.BaseRequest) -> str:
    """Check the upgrade request. Raises `Refused`: 426 for the version, 400 for the rest.

    Source: RFC 6455 section 4.2.1.
    """
    headers = request.headers
    if request.can_read_body:
        raise Refused(Code.BAD_REQUEST, "an upgrade request has no body")
    if "upgrade" not in headers.get(hdrs.CONNECTION, "").lower():
        raise Refused(Code.BAD_REQUEST, "no Connection: Upgrade; a proxy may have removed the header")
    if headers.get(hdrs.SEC_WEBSOCKET_VERSION) != "13":
        raise Refused(Code.BAD_REQUEST, "this server speaks WebSocket version 13", status=426)
    key = headers.get(hdrs.SEC_WEBSOCKET_KEY, "")
    try:
        if len(base64.b64decode(key, validate=True)) != 16:
            raise Refused(Code.BAD_REQUEST, "Sec-WebSocket-Key is not 16 bytes")
    except (binascii.Error, ValueError) as error:
        raise Refused(Code.BAD_REQUEST, "Sec-WebSocket-Key is not base64") from error
    return key


class _Departure(EmptyStreamReader):
    """Stands where a GET's body would: aiohttp tells it when the client has gone.

    aiohttp ends a request's body with an exception when the TCP connection is lost, and has no
    public way to tell a handler that is not reading (unless it is cancelled for it, which is the
    choice of whoever runs the server). `tests/contract/` fails if this stops working. To everybody
    else it is the empty body that a GET has.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def set_exception(self, _exc: BaseException, _cause: BaseException | None = None) -> None:
        """aiohttp: the connection is lost."""
        self._call()


def on_departure(request: web.BaseRequest, call: Callable[[], None]) -> None:
    """Call once when the client closes its end while `request` is being answered."""
    watched: Any = request
    watched._payload = _Departure(call)


def forget_departure(request: web.BaseRequest) -> None:
    """Let go of what `on_departure` was given: an idle TCP connection keeps its last request."""
    watched: Any = request
    watched._payload = EMPTY_PAYLOAD


def set_user_timeout(request: web.BaseRequest, seconds: float) -> None:
    """Let the kernel give up a peer that acknowledges nothing for this long (Linux)."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None or sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
    except OSError:
        return  # the peer has gone already; its end is noticed elsewhere
