"""Engine.IO over plain aiohttp: one endpoint, for handshakes, polls, posts and upgrades.

Turns requests into calls of a `Connection`, and what that answers into responses. Which request is
legal is decided in `protocol/handshake.py`, what a connection does with it in `connection.py`.
Works under any `web.run_app`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from aiohttp import hdrs, web

from gateway.access import Access
from gateway.application import Application, Request
from gateway.application import Refused as ApplicationRefused
from gateway.channels import EngineChannel
from gateway.config import Settings
from gateway.connection import Connection, settings_packet
from gateway.ledger import Ledger, user_text
from gateway.protocol.forwarded import Network
from gateway.protocol.handshake import POLLING, Code, Query, Refused, read_query
from gateway.protocol.moves import State
from gateway.protocol.packets import PacketError
from gateway.protocol.reasons import Reason
from gateway.registry import Registry
from gateway.transports import Overlap, PollingTransport, Post, Turn, WrongNumber

from .request import (
    forget_departure,
    on_departure,
    read_request,
    refusal,
    text_response,
    wants_websocket,
    websocket_key,
)
from .websocket import WebSocketTransport

log = logging.getLogger("gateway")

_TURN = 0.002  # s of one turn of the loop that one POST may have


class EngineEndpoint:
    """Serves one Engine.IO path.

    `new_sid` makes the ids; `headers` are added to the answer of a handshake (`Set-Cookie`);
    `registry` may be shared by several endpoints of one process; `numbered` is for the one that our own
    client uses. With a `ledger` each connection is a session, of this `route`.
    """

    def __init__(
        self,
        application: Application,
        settings: Settings,
        registry: Registry,
        access: Access,
        new_sid: Callable[[], str],
        *,
        trusted: list[Network] | None = None,
        headers: Callable[[str], dict[str, str]] | None = None,
        cors: Callable[[Request], dict[str, str]] | None = None,
        numbered: bool = False,
        ledger: Ledger | None = None,
        route: str = "",
    ) -> None:
        self._numbered = numbered
        self._ledger = ledger
        self._route = route
        self._application = application
        self._settings = settings
        self._registry = registry
        self._access = access
        self._new_sid = new_sid
        self._trusted = trusted or []
        self._headers = headers or _no_headers
        self._cors = cors or (lambda request: cors_headers(access, request))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, whatever it is."""
        seen = read_request(request, self._trusted)
        # What is left of a request that is refused early must not be read as the next request.
        close = request.can_read_body or wants_websocket(request)
        try:
            response = await self._answer(request, seen)
        except Refused as refused:
            response = refusal(refused, close=close)
        except ConnectionError:
            # The client has left. aiohttp notices when it writes this, and logs nothing.
            response = text_response("", 400)
        if not response.prepared:
            response.headers.update(self._cors(seen))
        return response

    async def _answer(self, request: web.Request, seen: Request) -> web.StreamResponse:
        self._access.check_origin(seen, request.method)
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Access-Control-Max-Age": "600"})
        query = read_query(
            request.method,
            request.query.items(),
            upgrade=wants_websocket(request),
            transports=self._settings.transports,
            numbered=self._numbered,
        )
        if query.sid is None:
            return await self._handshake(request, seen, query)
        connection = self._registry.find(query.sid) or self._redeem(query.sid, seen)
        if connection is None:
            raise Refused(Code.SESSION)
        channel = connection.listener
        if isinstance(channel, EngineChannel):
            await self._access.check_user(seen, channel.request, channel.user)
        if query.transport != POLLING:
            return await self._upgrade(request, connection)
        if request.method == "POST" and connection.state.is_over:
            raise Refused(Code.SESSION)
        polling = connection.polling
        if polling is None:
            raise Refused(Code.BAD_REQUEST, "the connection is on another transport")
        if request.method == "POST":
            return await self._post(request, query, connection, polling)
        return await self._poll(request, seen, query, connection, polling)

    # -- handshake ---------------------------------------------------------------------------------

    async def _handshake(self, request: web.Request, seen: Request, query: Query) -> web.StreamResponse:
        if query.transport != POLLING:
            websocket_key(request)
        self._registry.knock(seen.remote)
        if self._numbered and query.transport == POLLING:
            return self._reserve(seen)
        user = await self._access.authenticate(seen)
        connection = self._registry.create(self._new_sid(), seen.remote, user_text(user))
        channel = EngineChannel(connection, seen, self._application, self._settings, user=user)
        channel.enlist(self._ledger, self._route)
        try:
            return await self._begin(request, query, channel)
        finally:
            if connection.state is State.OPENING:  # failed, or cancelled
                connection.close(Reason.TRANSPORT_CLOSE)

    def _reserve(self, seen: Request) -> web.Response:
        """Our own client says who it is in its first frame: until then a handshake is a name and a time."""
        sid = self._new_sid()
        self._registry.reserve(sid, seen.remote)
        return text_response(settings_packet(sid, self._settings, self._settings.offered_upgrades))

    def _redeem(self, sid: str, seen: Request) -> Connection | None:
        """The second request: now it is worth a connection. The third may be right behind it."""
        connection = self._registry.redeem(sid)
        if connection is None:
            return None
        seen = replace(seen, raw=None)  # a POST with its body, most likely; the session outlives it
        channel = EngineChannel(connection, seen, self._application, self._settings)
        channel.admit_now()
        connection.start_polling()
        return self._registry.find(sid)

    async def _begin(self, request: web.Request, query: Query, channel: EngineChannel) -> web.StreamResponse:
        """Ask the application, then answer."""
        connection = channel.connection
        if query.transport == POLLING:
            on_departure(request, lambda: connection.close(Reason.TRANSPORT_CLOSE))
        try:
            await channel.admit()
        except ApplicationRefused as refused:
            connection.close(Reason.REFUSED)
            raise Refused(Code.FORBIDDEN, refused.reason, refused.status, refused.body) from refused
        if connection.state.is_over:  # closed by the application, or gone while it was asked
            raise Refused(Code.SESSION, "closed during the handshake")
        headers = self._headers(connection.sid)
        if query.transport == POLLING:
            response = text_response(connection.start_polling(_batch(channel.request)))
            response.headers.update(headers)
            return response
        return await self._open_websocket(request, connection)

    async def _open_websocket(self, request: web.Request, connection: Connection) -> web.StreamResponse:
        transport = self._websocket(request, connection)
        self._registry.settle(connection.sid)
        response = await transport.wire.open(request)
        connection.start_websocket(transport)
        await transport.wire.run(request)
        return response

    async def _upgrade(self, request: web.Request, connection: Connection) -> web.StreamResponse:
        transport = self._websocket(request, connection)
        if not self._settings.offered_upgrades:
            raise Refused(Code.TRANSPORT, "upgrades are switched off")
        response = await transport.wire.open(request)
        if not connection.offer(transport):
            transport.close(Reason.REPLACED)
        await transport.wire.run(request)
        return response

    def _websocket(self, request: web.Request, connection: Connection) -> WebSocketTransport:
        # A stock client with `forceBase64` says so. Source: Node's engine.io, no protocol document.
        return WebSocketTransport(self._settings, connection, base64="b64" in request.query)

    # -- polling -----------------------------------------------------------------------------------

    async def _poll(
        self,
        request: web.Request,
        seen: Request,
        query: Query,
        connection: Connection,
        polling: PollingTransport,
    ) -> web.StreamResponse:
        if not self._registry.judge(connection):
            raise Refused(Code.SESSION)
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def respond(body: str) -> None:
            if not answer.cancelled():  # or else `undelivered` brings it back
                answer.set_result(body)

        def departed() -> None:
            if not answer.done():
                connection.poll_abandoned(polling, respond)
                answer.set_result(None)

        on_departure(request, departed)
        try:
            connection.poll(polling, respond, query.number, query.hold, query.room)
        except (Overlap, WrongNumber) as error:
            raise Refused(Code.BAD_REQUEST, str(error)) from error
        try:
            body = await answer
        except asyncio.CancelledError:
            connection.poll_abandoned(polling, respond)
            polling.undelivered(respond)  # if it had just been answered
            raise
        finally:
            forget_departure(request)
        if body is None:
            raise ConnectionResetError("the client left while its GET was waiting")
        response = text_response(body)
        response.headers.update(self._cors(seen))
        try:
            # Written here, to learn whether it could be written.
            await response.prepare(request)
            await response.write_eof()
            if request.transport is None or request.transport.is_closing():
                # The kernel refused it: the client's reset was there, and not read yet.
                raise ConnectionResetError("the client left before its answer")
        except (ConnectionError, asyncio.CancelledError):
            polling.undelivered(respond)
            raise
        return response

    async def _post(
        self, request: web.Request, query: Query, connection: Connection, polling: PollingTransport
    ) -> web.StreamResponse:
        self._check_post(request)
        try:
            post = connection.begin_post(polling, query.number)
        except (Overlap, WrongNumber) as error:
            raise Refused(Code.BAD_REQUEST, str(error)) from error
        try:
            if post.turn is Turn.LATER:
                await self._wait_for_turn(post)
            if post.turn is Turn.NOW and connection.is_paused:
                await self._wait_until_read(connection, post)
            body = b"" if post.turn is Turn.STALE else await self._body(request, post)
            if post.turn is Turn.NOW:
                await _in_turns(polling.post_in_steps(body, post, query.skip, query.more))
        except (PacketError, WrongNumber) as error:
            raise Refused(Code.BAD_REQUEST, str(error)) from error
        finally:
            polling.end_post(post)
        if post.turn is Turn.STALE:
            raise _stale(connection, polling)
        return text_response("ok")

    async def _wait_for_turn(self, post: Post) -> None:
        """An earlier POST is under way, or was lost. What this one brings is not read before its turn."""
        moved = asyncio.Event()
        post.moved = moved.set
        try:
            async with asyncio.timeout(self._settings.timeouts.body):
                await moved.wait()
        except TimeoutError:
            raise Refused(Code.BAD_REQUEST, "an earlier POST is missing", 503, retry_after=1) from None

    def _check_post(self, request: web.Request) -> None:
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            raise Refused(Code.BAD_REQUEST, "send the body as it is, not compressed", status=415)
        # aiohttp calls a body without a Content-Type octets, too; some clients send none.
        if hdrs.CONTENT_TYPE in request.headers and request.content_type == "application/octet-stream":
            raise Refused(Code.BAD_REQUEST, "send text/plain; binary messages are base64")
        if (request.content_length or 0) > self._settings.limits.payload:
            raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(Code.BAD_REQUEST, f"more than maxPayload ({self._settings.limits.payload} bytes)", 413)

    async def _body(self, request: web.Request, post: Post) -> bytes:
        """The whole body, however many segments it comes in, and no more than `maxPayload`.

        Only that of a POST whose turn it is; what others bring is dropped, and their connection goes on.
        """
        parts = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.timeouts.body) as limit:
                post.moved = lambda: limit.reschedule(0)
                async for part in request.content.iter_any():
                    size += len(part)
                    if size > self._settings.limits.payload:
                        raise self._too_large()
                    if post.turn is Turn.NOW:
                        parts.append(part)
        except TimeoutError:
            if post.turn is Turn.STALE:
                return b""
            raise Refused(Code.BAD_REQUEST, "the body did not come in time", 408) from None
        except web.RequestPayloadError as error:
            raise Refused(Code.BAD_REQUEST, "the body is not what its headers say") from error
        finally:
            post.moved = _nothing
        return b"".join(parts)

    async def _wait_until_read(self, connection: Connection, post: Post) -> None:
        """The application is behind: hold the POST, and refuse it before anything was taken."""
        resumed = asyncio.Event()
        connection.when_resumed(resumed.set)
        post.moved = resumed.set
        try:
            async with asyncio.timeout(self._settings.timeouts.send):
                await resumed.wait()
        except TimeoutError:
            raise Refused(Code.BAD_REQUEST, "the application is behind", 503, retry_after=1) from None
        finally:
            connection.forget_resumed(resumed.set)


def _stale(connection: Connection, polling: PollingTransport) -> Refused:
    if connection.state.is_over:
        return Refused(Code.SESSION)
    if polling.closed:
        return Refused(Code.BAD_REQUEST, "the connection has left polling")
    return Refused(Code.BAD_REQUEST, "this POST was sent again meanwhile", 503, retry_after=1)


def _nothing() -> None:
    pass


async def _in_turns(steps: Iterator[None]) -> None:
    """Do all steps, and let the rest of the loop have its turns in between."""
    now = asyncio.get_running_loop().time
    until = now() + _TURN
    for _ in steps:
        if now() >= until:
            await asyncio.sleep(0)
            until = now() + _TURN


def cors_headers(access: Access, request: Request) -> dict[str, str]:
    """What lets a page of an allowed other origin read the answer.

    For `*` without credentials: reflecting any origin with them would hand every site the user's
    cookies.
    """
    origin = request.headers.get("Origin")
    if origin is None:
        return {}
    if access.origins.any:
        headers = {"Access-Control-Allow-Origin": "*"}
    elif access.origins.lists(origin):
        headers = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Vary": "Origin",
        }
    else:
        return {"Vary": "Origin"}
    wanted = request.headers.get("Access-Control-Request-Headers")
    if wanted is not None:
        headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
        headers["Access-Control-Allow-Headers"] = "Content-Type"
    return headers


# The client of python-engineio gives up at more than 16 packets in one answer, whoever sent them.
# Its requests come from aiohttp or from requests. One place is for the open or the close packet.
_PYTHON_CLIENTS = ("Python/", "python-requests/")
_PYTHON_BATCH = 15


def _batch(request: Request) -> int | None:
    """How many packets the client can read at once, if it is known to be few."""
    agent = request.headers.get("User-Agent", "")
    return _PYTHON_BATCH if agent.startswith(_PYTHON_CLIENTS) else None


def _no_headers(_sid: str) -> dict[str, str]:
    return {}
