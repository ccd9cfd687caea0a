"""The browser's script and the demo page, served from memory under exact names.

Decides their headers. There is no path to a file in any request, so there is none to escape from.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from aiohttp import hdrs, web

from gateway.protocol.handshake import Code, Refused
from gateway.protocol.origins import parse_origin
from gateway.wires.request import refusal

from .table import PREFIX

_PACKAGE = Path(__file__).parent.parent
# In the wheel it lies inside of the package, in a clone beside it.
_FOLDERS = (_PACKAGE / "static", _PACKAGE.parent / "static")

_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".map": "application/json",
    ".svg": "image/svg+xml",
    ".ts": "text/plain",
}
_CLIENT = ("client.js", "client.js.map", "client.d.ts")
_DEMO = ("demo.js", "demo.css", "icon.svg")


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    headers: dict[str, str]


class Files:
    """`static_prefix` is the URL of the folder that `client.js` comes from; "" is here."""

    def __init__(self, static_prefix: str = "", *, demo: bool = True) -> None:
        self._prefix = static_prefix.rstrip("/")
        folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
        names = _CLIENT + (_DEMO if demo else ())
        self._files = {
            PREFIX + name: self._read(folder / name) for name in names if (folder / name).is_file()
        }
        if demo and (folder / "demo.html").is_file():
            self._files[PREFIX] = self._files["/"] = self._read(folder / "demo.html")

    def __contains__(self, path: str) -> bool:
        return path in self._files

    async def answer(self, path: str, request: web.Request) -> web.StreamResponse:
        """The file at this path, which must be there; 304 if the browser has it."""
        file = self._files[path]
        if request.method not in ("GET", "HEAD"):
            response = refusal(Refused(Code.METHOD, "this is a file; GET it", 405), close=True)
            response.headers[hdrs.ALLOW] = "GET, HEAD"
            return response
        known = [
            tag.strip().removeprefix("W/") for tag in request.headers.get(hdrs.IF_NONE_MATCH, "").split(",")
        ]
        if file.headers[hdrs.ETAG] in known:
            return web.Response(status=304, headers=file.headers)
        return web.Response(body=file.body, headers=file.headers)

    def _read(self, path: Path) -> _File:
        body = path.read_bytes()
        kind = _TYPES[path.suffix]
        headers = {
            hdrs.CONTENT_TYPE: kind if kind.endswith("json") else f"{kind}; charset=utf-8",
            hdrs.CACHE_CONTROL: "no-cache",
            "X-Content-Type-Options": "nosniff",
        }
        if path.suffix == ".html":
            if self._prefix:
                body = body.replace(b'"/_gateway/client.js"', f'"{self._prefix}/client.js"'.encode())
            headers["Content-Security-Policy"] = self._policy()
            headers["Referrer-Policy"] = "no-referrer"
        elif path.name in _CLIENT:
            # Pages of other origins load it from here: that is what a static prefix of theirs means.
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        headers[hdrs.ETAG] = f'"{sha256(body).hexdigest()[:32]}"'
        return _File(body, headers)

    def _policy(self) -> str:
        origin = parse_origin("/".join(self._prefix.split("/")[:3]))
        scripts = f"script-src 'self' {origin}; " if origin is not None else ""
        return (
            f"default-src 'self'; {scripts}connect-src 'self' ws: wss:; base-uri 'none'; "
            "frame-ancestors 'self'; object-src 'none'"
        )
