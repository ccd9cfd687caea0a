"""Contract 2 once more: whatever is done to a store, it answers as the simplest one does.

Hypothesis thinks up the acts; `MemoryStore`, which the contract suite judges, is the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.session_store import Claim, Session, SessionStore
from tests.support.servers import Redis
from tests.support.stores import MemoryWorld, RedisWorld, SqliteWorld, World

IDS = ("s", "t", "u")
LEASE = 10.0

nodes = st.sampled_from(("a", "b", "c"))
ids = st.sampled_from(IDS)
seconds = st.sampled_from((0.0, 5.0, 10.0, 20.0))
data = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.none(), max_size=2)
sessions = st.builds(Session, ids, user=st.none() | st.text(max_size=3), data=data)
fences = st.integers(1, 3)
claims = st.builds(lambda key, fence: Claim(Session(key), "X", fence), ids, fences)
limits = st.sampled_from((0, 100))

acts = st.one_of(
    st.tuples(st.just("advance"), seconds),
    st.tuples(st.just("join"), nodes),
    st.tuples(st.just("renew"), nodes, st.just(LEASE)),
    st.tuples(st.just("leave"), nodes),
    st.tuples(st.just("add"), nodes, sessions),
    st.tuples(st.just("save"), nodes, st.lists(sessions, max_size=2)),
    st.tuples(st.just("remove"), nodes, ids),
    st.tuples(st.just("park"), nodes, st.lists(st.tuples(ids, seconds, st.binary(max_size=3)), max_size=2)),
    st.tuples(st.just("parked"), ids),
    st.tuples(st.just("resume"), nodes, ids),
    st.tuples(st.just("claim"), nodes, sessions, st.sampled_from(("CLIENT_CLOSE", "PING_TIMEOUT"))),
    st.tuples(st.just("claim_orphans"), nodes, limits),
    st.tuples(st.just("finish"), nodes, claims),
    st.tuples(st.just("put_off"), nodes, claims, seconds, st.just(("hook",)), st.text(max_size=3)),
    st.tuples(st.just("bury"), nodes, claims, st.just(()), st.text(max_size=3)),
    st.tuples(st.just("retry"), ids),
    st.tuples(st.just("ask_to_close"), ids),
    st.tuples(st.just("asked_to_close"), nodes),
)


class Subject:
    """A store, and its world. A name that a node has given up is not used again, as the contract asks."""

    def __init__(self, world: World, store: SessionStore) -> None:
        self.world = world
        self.store = store
        self.lives = dict.fromkeys("abc", 0)

    async def do(self, act: str, *args: Any) -> object:
        if act == "advance":
            return self.world.advance(*args)
        if act == "join":
            # A new life under a new name, if the old one is over.
            (node,) = args
            if not await self.store.renew(f"{node}{self.lives[node]}", LEASE):
                self.lives[node] += 1
                await self.store.join(f"{node}{self.lives[node]}", LEASE)
            return None
        if args[0] in self.lives:
            args = (f"{args[0]}{self.lives[args[0]]}", *args[1:])
        found = await getattr(self.store, act)(*args)
        if act in ("claim_orphans", "asked_to_close"):
            return sorted(found, key=lambda one: one if isinstance(one, str) else one.session.id)
        return found

    async def state(self) -> object:
        rows = [
            replace(row, retry_in=row.retry_in and round(row.retry_in)) for row in await self.store.rows()
        ]
        return rows, await self.store.rows(failed=True), await self.store.counts()


@pytest.fixture(scope="module")
def _redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.remove()


async def _agree(world: World, story: list[tuple[Any, ...]]) -> None:
    model_world = MemoryWorld()
    model = Subject(model_world, await model_world.store())
    store = await world.store()
    subject = Subject(world, store)
    try:
        for step in [("join", "a"), ("join", "b"), *story]:
            assert await subject.do(*step) == await model.do(*step), step
            assert await subject.state() == await model.state(), step
    finally:
        await store.close()


def _run(world: World, story: list[tuple[Any, ...]]) -> None:
    asyncio.run(_agree(world, story))


_patient = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_patient
@given(story=st.lists(acts, min_size=10, max_size=40))
def test_sqlite_agrees(story: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as folder:
        _run(SqliteWorld(Path(folder) / "sessions.sqlite3"), story)


@settings(_patient, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(story=st.lists(acts, min_size=10, max_size=40))
def test_redis_agrees(_redis: Redis, story: list[tuple[Any, ...]]) -> None:  # noqa: PT019 - it is used
    _run(RedisWorld(_redis), story)
