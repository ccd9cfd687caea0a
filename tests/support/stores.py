"""The stores that the contract suite runs over: how each is opened a second time, and how time passes.

A world holds the records of one test; `store()` opens them as another process would. A new store adds a
world, and its line in `WORLDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import redis

from gateway.session_store import MemoryStore, SessionStore
from gateway.stores.redis import RedisStore
from gateway.stores.sqlite import SqliteStore
from tests.support.servers import Redis


class World(ABC):
    """Records, and a clock."""

    def __init__(self) -> None:
        self.stores: list[SessionStore] = []

    async def store(self) -> SessionStore:
        """Another store object over the same records, opened."""
        made = self.make()
        await made.open()
        self.stores.append(made)
        return made

    @abstractmethod
    def make(self) -> SessionStore:
        """Another store object over the same records."""

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Let time pass."""

    @abstractmethod
    def empty(self) -> None:
        """Have all records gone. SQLite: while nobody has them open."""


class MemoryWorld(World):
    """One object for all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.empty()

    def make(self) -> SessionStore:
        return self._store

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def empty(self) -> None:
        self._store = MemoryStore(lambda: self.now, lasting=True)


class SqliteWorld(World):
    """A file, and the clock of a machine."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.now = 1000.0
        self.path = path

    def make(self) -> SessionStore:
        return SqliteStore(self.path, clock=lambda: self.now, boot="one")

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def empty(self) -> None:
        for end in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)


# Its clock cannot be set. What is recorded can be made older, which is the same.
_OLDER = """
for _, name in ipairs({"nodes", "gone", "due"}) do
    for _, member in ipairs(redis.call("ZRANGE", KEYS[1] .. name, 0, -1)) do
        redis.call("ZINCRBY", KEYS[1] .. name, -tonumber(ARGV[1]), member)
    end
end
"""


class RedisWorld(World):
    """A prefix of its own on a real server."""

    def __init__(self, server: Redis) -> None:
        super().__init__()
        self.server = server
        self.prefix = uuid4().hex

    def make(self) -> SessionStore:
        return RedisStore(f"{self.server.url}?prefix={self.prefix}")

    def advance(self, seconds: float) -> None:
        with redis_client(self.server) as client:
            client.eval(_OLDER, 1, f"{{{self.prefix}}}:", str(seconds))

    def empty(self) -> None:
        with redis_client(self.server) as client:
            client.delete(*client.keys(f"{{{self.prefix}}}:*"))


@contextmanager
def redis_client(server: Redis) -> Iterator[redis.Redis]:
    """A plain client, for what only a test does."""
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        yield client
