"""Where sessions may be recorded: `open_store` reads the URL of a store, and makes the store.

Decides which URLs there are, and where the store is of somebody who has given none. Knows nothing of
what is recorded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote
from zlib import crc32

from gateway.config import Listen
from gateway.session_store import MemoryStore, SessionStore

_REDIS = ("redis://", "rediss://", "redis+unix://", "unix://")
_FORMS = "memory:, sqlite:///absolute/path, sqlite:relative/path, redis://host:6379/0 or redis+unix:///path"


def open_store(url: str) -> SessionStore:
    """The store of a URL, not yet opened. Nothing is created or connected before its `open`.

    Raises `ValueError` with one sentence that shows no password.
    """
    if url == "memory:":
        return MemoryStore()
    if url.startswith("sqlite:"):
        from .sqlite import SqliteStore

        return SqliteStore(_path(url))
    if url.startswith(_REDIS):
        from .redis import RedisStore

        return RedisStore(url)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url)
    what = f"{scheme[0]} is no kind of store" if scheme else "that is no URL of a store"
    raise ValueError(f"{what}: write {_FORMS}")


def default_path(listen: Listen) -> Path:
    """The SQLite file of a gateway that was told of no store, named after its address.

    In `$XDG_STATE_HOME` or `~/.local/state`. Raises `ValueError` if there is neither.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        # The specification says that a relative path is to be ignored.
        folder = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise ValueError("there is no home directory to keep a store in: give --store") from error
    address = f"{listen.host}-{listen.port}"
    if listen.path:  # with a sum: two gateways that share a file would clean up with each other's hooks
        path = str(Path(listen.path).resolve())
        address = f"{path}-{crc32(os.fsencode(path)):08x}"
    name = re.sub(r"[^A-Za-z0-9._]+", "-", address).strip("-.")
    return folder / "gateway" / f"{name}.sqlite3"


def _path(url: str) -> Path:
    rest = url.removeprefix("sqlite:")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(f"{url!r} is no file: write sqlite:///absolute/path, or sqlite:relative/path")
        rest = slash + path
    if not rest.strip("/") or "\0" in rest or "?" in rest:
        raise ValueError(f"{url!r} names no file: write sqlite:///absolute/path, or sqlite:relative/path")
    found = Path(unquote(rest))
    try:
        return (found.expanduser() if rest.startswith("~/") else found).absolute()
    except RuntimeError as error:
        raise ValueError(f"{url!r}: there is no home directory; write an absolute path") from error
