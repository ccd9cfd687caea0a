"""Contract 2: what every session store promises. `tests/support/stores.py` lists the stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.session_store import Claim, MemoryStore, Phase, Session, SessionStore
from tests.support.servers import Redis
from tests.support.stores import MemoryWorld, RedisWorld, SqliteWorld, World

LEASE = 15.0
WORLDS = ["memory", "sqlite", "redis"]


@pytest.fixture(scope="module")
def _redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.remove()


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made: World
    if request.param == "memory":
        made = MemoryWorld()
    elif request.param == "sqlite":
        made = SqliteWorld(tmp_path / "state" / "sessions.sqlite3")
    else:
        made = RedisWorld(request.getfixturevalue("_redis"))
    yield made
    for store in made.stores:
        await store.close()


@pytest.fixture
async def store(world: World) -> SessionStore:
    """The store of node `a`, which has joined."""
    made = await world.store()
    await made.join("a", LEASE)
    return made


@pytest.fixture
async def other(world: World, store: SessionStore) -> SessionStore:
    """The store of node `b`, which has joined."""
    made = await world.store()
    await made.join("b", LEASE)
    return made


def session(name: str = "s", **more: Any) -> Session:
    return Session(
        name, **{"user": "mia", "routes": ("/lab",), "data": {"lamp": 7}, "opened": 5.0, "seen": 6.0, **more}
    )


async def opened(store: SessionStore, name: str = "s", node: str = "a") -> Session:
    made = session(name)
    assert await store.add(node, made)
    return made


async def claimed(store: SessionStore, name: str = "s", node: str = "a") -> Claim:
    claim = await store.claim(node, await opened(store, name, node), "PING_TIMEOUT", 12.5)
    assert claim
    return claim


async def bring(store: SessionStore, phase: Phase | None) -> Claim | None:
    """Session `s` of node `a`, into that phase; None: it is over."""
    await opened(store)
    if phase is Phase.PARKED:
        await store.park("a", [("s", 60.0, b"state")])
    if phase in (Phase.OPEN, Phase.PARKED):
        return None
    claim = await store.claim("a", session(), "CLIENT_CLOSE")
    assert claim
    if phase is Phase.FAILED:
        assert await store.bury("a", claim, ("hook",), "it broke")
    if phase is None:
        assert await store.finish("a", claim)
    return claim


async def phase_of(store: SessionStore, name: str = "s") -> Phase | None:
    return next((row.phase for row in await store.rows() if row.session.id == name), None)


# -- a session, from its beginning to its end ------------------------------------------------------------


async def test_what_was_recorded_is_what_a_claim_brings(store: SessionStore) -> None:
    made = await opened(store)
    claim = await store.claim("a", made, "PING_TIMEOUT", 12.5)
    assert claim == Claim(made, "PING_TIMEOUT", 1, 1, None, 12.5)
    assert await store.finish("a", claim)
    assert await store.rows() == []
    assert await store.counts() == dict.fromkeys(Phase, 0)


async def test_a_claim_records_the_last_data(store: SessionStore, world: World, other: SessionStore) -> None:
    await opened(store)
    assert await store.claim("a", session(data={"lamp": 8}, seen=9.0), "SERVER_CLOSE")
    world.advance(LEASE + 1)
    await other.join("b", LEASE)
    assert [c.session for c in await other.claim_orphans("b", 10)] == [session(data={"lamp": 8}, seen=9.0)]


async def test_saving_changes_what_is_recorded(store: SessionStore) -> None:
    await opened(store, "s")
    await opened(store, "t")
    changed = session("s", user=None, routes=("/lab", "/x"), data={"new": [1, None, 2.5, "ü"]}, seen=9.0)
    await store.save("a", [changed, session("unknown")])
    assert [row.session for row in await store.rows()] == [changed, session("t")]


async def test_what_is_recorded_does_not_change_with_the_object(store: SessionStore) -> None:
    data = {"lamp": 7}
    await store.add("a", session(data=data))
    data["lamp"] = 8
    assert (await store.rows())[0].session.data == {"lamp": 7}


async def test_removed_is_forgotten(store: SessionStore) -> None:
    await opened(store)
    await store.remove("a", "s")
    await store.remove("a", "s")
    assert await store.rows() == []
    assert await store.add("a", session())


# -- every phase meets every act ---------------------------------------------------------------------------

ACTS: dict[str, Any] = {
    "add": lambda store, node, claim: store.add(node, session()),
    "save": lambda store, node, claim: store.save(node, [session(data={"saved": True})]),
    "remove": lambda store, node, claim: store.remove(node, "s"),
    "park": lambda store, node, claim: store.park(node, [("s", 60.0, b"other")]),
    "parked": lambda store, node, claim: store.parked("s"),
    "resume": lambda store, node, claim: store.resume(node, "s"),
    "claim": lambda store, node, claim: store.claim(node, session(), "SERVER_CLOSE"),
    "claim_orphans": lambda store, node, claim: store.claim_orphans(node, 10),
    "finish": lambda store, node, claim: store.finish(node, claim or Claim(session(), "X", 1)),
    "put_off": lambda store, node, claim: store.put_off(
        node, claim or Claim(session(), "X", 1), 60.0, ("h",), "no"
    ),
    "bury": lambda store, node, claim: store.bury(node, claim or Claim(session(), "X", 1), ("h",), "no"),
    "retry": lambda store, node, claim: store.retry("s"),
    "ask_to_close": lambda store, node, claim: store.ask_to_close("s"),
    "asked_to_close": lambda store, node, claim: store.asked_to_close(node),
}

# phase -> act -> (whether it says yes, the phase afterwards), for the node whose session it is or was.
MOVES: dict[Phase | None, dict[str, tuple[bool, Phase | None]]] = {
    Phase.OPEN: {
        "add": (True, Phase.OPEN),  # said again
        "save": (False, Phase.OPEN),
        "remove": (False, None),
        "park": (False, Phase.PARKED),
        "resume": (True, Phase.OPEN),  # said again
        "claim": (True, Phase.CLOSING),
        "ask_to_close": (True, Phase.OPEN),
    },
    Phase.PARKED: {
        "parked": (True, Phase.PARKED),
        "resume": (True, Phase.OPEN),
        "ask_to_close": (True, Phase.PARKED),
    },
    Phase.CLOSING: {
        "claim": (True, Phase.CLOSING),  # said again
        "finish": (True, None),
        "put_off": (True, Phase.CLOSING),
        "bury": (True, Phase.FAILED),
    },
    Phase.FAILED: {"retry": (True, Phase.CLOSING)},
    None: {"add": (True, Phase.OPEN)},
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("phase", MOVES, ids=lambda phase: phase.name if phase else "OVER")
async def test_each_phase_meets_each_act(store: SessionStore, phase: Phase | None, act: str) -> None:
    claim = await bring(store, phase)
    before = await store.rows()
    says, after = MOVES[phase].get(act, (False, phase))
    assert bool(await ACTS[act](store, "a", claim)) is says
    assert await phase_of(store) is after
    if act not in MOVES[phase]:
        assert await store.rows() == before, "an act that does not apply has changed something"
    counts = await store.counts()
    assert counts == {**dict.fromkeys(Phase, 0), **({after: 1} if after else {})}


NOT_JOINED = ["never", "left", "lost"]


@pytest.mark.parametrize("act", [act for act in ACTS if act not in ("parked", "retry", "ask_to_close")])
@pytest.mark.parametrize("phase", MOVES, ids=lambda phase: phase.name if phase else "OVER")
@pytest.mark.parametrize("why", NOT_JOINED)
async def test_a_node_that_is_not_there_changes_nothing(
    store: SessionStore, other: SessionStore, world: World, why: str, phase: Phase | None, act: str
) -> None:
    """Also when nobody has taken its sessions yet."""
    await store.join("z", LEASE / 2)
    await opened(store, "bait", "z")
    claim = await bring(store, phase)
    if why == "left":
        await store.leave("a")
    elif why == "lost":
        world.advance(LEASE + 1)
        await other.renew("b", LEASE)
        assert [found.session.id for found in await other.claim_orphans("b", 1)] == ["bait"]
    node = "never" if why == "never" else "a"
    before = await store.rows()
    assert not await ACTS[act](store, node, claim)
    assert await store.rows() == before


# -- nodes and their leases --------------------------------------------------------------------------------


async def test_a_node_that_is_late_and_was_not_missed_goes_on(store: SessionStore, world: World) -> None:
    await opened(store)
    world.advance(LEASE * 10)
    assert await store.claim_orphans("a", 10) == []  # nobody declares himself lost
    assert await store.renew("a", LEASE)
    assert await store.claim("a", session(), "CLIENT_CLOSE")


async def test_a_renewed_lease_is_counted_from_now(
    store: SessionStore, other: SessionStore, world: World
) -> None:
    await opened(store)
    world.advance(LEASE - 1)
    assert await store.renew("a", LEASE)
    assert await other.renew("b", LEASE * 3)
    world.advance(LEASE - 1)
    assert await other.claim_orphans("b", 10) == []
    world.advance(2)
    assert [claim.session.id for claim in await other.claim_orphans("b", 10)] == ["s"]


async def test_the_sessions_of_a_lost_node_are_taken_once(
    store: SessionStore, other: SessionStore, world: World
) -> None:
    kept = await opened(store)
    await store.claim("a", await opened(store, "t"), "CLIENT_CLOSE", 3.5)
    world.advance(LEASE + 1)
    assert await other.renew("b", LEASE)
    claims = {claim.session.id: claim for claim in await other.claim_orphans("b", 10)}
    assert claims == {
        "s": Claim(kept, "NODE_LOST", 1, 1, None, None),
        "t": Claim(session("t"), "CLIENT_CLOSE", 2, 2, None, 3.5),
    }
    assert await other.claim_orphans("b", 10) == []
    assert await store.renew("a", LEASE) is False


async def test_what_a_paused_node_does_late_does_nothing(
    store: SessionStore, other: SessionStore, world: World
) -> None:
    mine = await claimed(store, "s")
    await opened(store, "t")
    world.advance(LEASE + 1)
    await other.renew("b", LEASE)
    theirs = {claim.session.id: claim for claim in await other.claim_orphans("b", 10)}
    before = await other.rows()
    assert await store.renew("a", LEASE) is False
    assert await store.claim("a", session("t"), "CLIENT_CLOSE") is None
    await store.save("a", [session("t", data={"stale": True})])
    await store.remove("a", "t")
    await store.park("a", [("t", 60.0, b"stale")])
    assert await store.finish("a", mine) is False
    assert await store.put_off("a", mine, 1.0, (), "stale") is False
    assert await store.bury("a", mine, (), "stale") is False
    await store.leave("a")
    assert await store.add("a", session("u")) is False
    assert await store.asked_to_close("a") == []
    assert await other.rows() == before
    assert all([await other.finish("b", claim) for claim in theirs.values()])


async def test_a_lost_node_comes_back_under_a_new_name(
    store: SessionStore, other: SessionStore, world: World
) -> None:
    await opened(store)
    world.advance(LEASE + 1)
    await other.renew("b", LEASE)
    (claim,) = await other.claim_orphans("b", 10)
    await store.join("a2", LEASE)
    await opened(store, "t", "a2")
    assert await store.claim("a2", session("s"), "CLIENT_CLOSE") is None
    assert await store.claim("a2", session("t"), "CLIENT_CLOSE")
    assert await other.finish("b", claim)


async def test_what_a_node_leaves_behind_is_anyones_at_once(store: SessionStore, other: SessionStore) -> None:
    await opened(store, "open")
    await claimed(store, "closing")
    await store.leave("a")
    claims = {claim.session.id: claim for claim in await other.claim_orphans("b", 10)}
    assert (claims["open"].reason, claims["open"].attempt) == ("NODE_LOST", 1)
    assert (claims["closing"].reason, claims["closing"].attempt) == ("PING_TIMEOUT", 2)
    assert await store.renew("a", LEASE) is False


async def test_nodes_without_sessions_leave_nothing_behind(
    store: SessionStore, other: SessionStore, world: World
) -> None:
    await store.leave("a")
    for number in range(5):
        await other.join(f"n{number}", 1.0)
    world.advance(2)
    assert await other.claim_orphans("b", 10) == []
    assert [await other.renew(f"n{number}", 1.0) for number in range(5)] == [False] * 5


# -- parking ---------------------------------------------------------------------------------------------


async def test_a_parked_session_is_resumed_with_its_state(store: SessionStore, other: SessionStore) -> None:
    state = bytes(range(256)) * 400
    made = await opened(store)
    await store.park("a", [("s", 60.0, state), ("unknown", 60.0, b"")])
    await store.leave("a")
    assert await phase_of(other) is Phase.PARKED
    assert await other.parked("s") == state
    assert await other.parked("unknown") is None
    assert await other.resume("b", "s") == made
    assert await other.parked("s") is None
    assert await other.claim("b", made, "CLIENT_CLOSE")


async def test_a_grace_that_is_over_is_over(store: SessionStore, other: SessionStore, world: World) -> None:
    made = await opened(store)
    await store.park("a", [("s", 60.0, b"state")])
    world.advance(59)
    await other.join("b", LEASE)
    assert await other.claim_orphans("b", 10) == []
    assert await other.parked("s") == b"state"
    world.advance(2)
    assert await other.parked("s") is None
    assert await other.resume("b", "s") is None
    assert await other.claim_orphans("b", 10) == [Claim(made, "SHUTDOWN", 1, 1, None, None)]


async def test_resume_and_cleanup_exclude_each_other(store: SessionStore, other: SessionStore) -> None:
    """At the moment when the grace ends, both try."""
    names = [f"s{number:03}" for number in range(200)]
    for name in names:
        await opened(store, name)
    await store.park("a", [(name, -1.0 if number % 2 else 60.0, b"") for number, name in enumerate(names)])
    resumed, claims = await asyncio.gather(
        asyncio.gather(*(store.resume("a", name) for name in names)),
        asyncio.gather(*(other.claim_orphans("b", 10) for _ in range(20))),
    )
    alive = {found.id for found in resumed if found}
    over = [claim.session.id for many in claims for claim in many]
    assert sorted([*alive, *over]) == names


async def test_two_nodes_resume_and_one_gets_it(store: SessionStore, other: SessionStore) -> None:
    names = [f"s{number:03}" for number in range(100)]
    for name in names:
        await opened(store, name)
    await store.park("a", [(name, 60.0, b"state") for name in names])
    got = await asyncio.gather(
        *(taker.resume(node, name) for name in names for taker, node in ((store, "a"), (other, "b")))
    )
    assert [sum(found is not None for found in got[at : at + 2]) for at in range(0, 200, 2)] == [1] * 100


async def test_many_sessions_are_parked_in_one_call(store: SessionStore) -> None:
    names = [f"s{number:04}" for number in range(5_000)]
    await asyncio.gather(*(store.add("a", session(name)) for name in names))
    await store.park("a", ((name, 60.0, name.encode()) for name in names))
    assert (await store.counts())[Phase.PARKED] == 5_000
    assert await store.parked("s4999") == b"s4999"


async def test_a_store_that_does_not_last_parks_nothing() -> None:
    store = MemoryStore()
    await store.join("a", LEASE)
    await opened(store)
    with pytest.raises(ValueError, match="memory"):
        await store.park("a", [("s", 60.0, b"")])
    assert await phase_of(store) is Phase.OPEN
    assert not store.lasting


# -- hooks that fail ---------------------------------------------------------------------------------------


async def test_put_off_until_it_is_due(store: SessionStore, other: SessionStore, world: World) -> None:
    claim = await claimed(store)
    assert await store.put_off("a", claim, 10.0, ("lamp", "door"), "HTTP 500")
    (row,) = await store.rows()
    assert (row.phase, row.node, row.reason, row.attempt) == (Phase.CLOSING, None, "PING_TIMEOUT", 1)
    assert row.error == "HTTP 500"
    assert row.retry_in is not None
    assert 8 < row.retry_in <= 10
    assert await other.claim_orphans("b", 10) == []
    world.advance(11)
    assert (await store.rows())[0].retry_in == 0
    (again,) = await other.claim_orphans("b", 10)
    assert again == replace(claim, fence=2, attempt=2, pending=("lamp", "door"))
    assert await store.claim_orphans("a", 10) == []
    assert await other.put_off("b", again, 0.0, (), "no")
    (third,) = await store.claim_orphans("a", 10)
    assert third == replace(claim, fence=3, attempt=3, pending=())


@pytest.mark.parametrize("given_up", ["put_off", "bury"])
async def test_a_claim_that_was_given_up_is_void(store: SessionStore, given_up: str) -> None:
    claim = await claimed(store)
    assert await ACTS[given_up](store, "a", claim)
    before = [replace(row, retry_in=None) for row in await store.rows()]
    for act in ("finish", "put_off", "bury"):
        assert await ACTS[act](store, "a", claim) is False
    assert await store.claim("a", session(), "SERVER_CLOSE") is None
    assert [replace(row, retry_in=None) for row in await store.rows()] == before


async def test_an_old_claim_of_the_same_node_is_void(store: SessionStore) -> None:
    old = await claimed(store)
    await store.put_off("a", old, 0.0, (), "no")
    (new,) = await store.claim_orphans("a", 10)
    for act in ("finish", "put_off", "bury"):
        assert await ACTS[act](store, "a", old) is False
    assert await store.finish("b", new) is False
    assert await store.finish("a", new)


async def test_what_failed_waits_for_a_person(store: SessionStore, other: SessionStore, world: World) -> None:
    await opened(store, "fine")
    claim = await claimed(store)
    assert await store.bury("a", claim, ("lamp",), "gone: 410")
    world.advance(1_000_000)
    await other.join("b", LEASE)
    await store.join("c", LEASE)
    assert {found.session.id for found in await other.claim_orphans("b", 10)} == {"fine"}
    (row,) = await store.rows(failed=True)
    assert (row.phase, row.node, row.error, row.retry_in) == (Phase.FAILED, None, "gone: 410", None)
    assert await store.retry("s")
    assert await store.retry("s") is False
    (again,) = await store.claim_orphans("c", 10)
    assert again == replace(claim, fence=2, attempt=2, pending=("lamp",))


# -- people ------------------------------------------------------------------------------------------------


async def test_asked_to_close_is_told_once_to_its_node(store: SessionStore, other: SessionStore) -> None:
    await opened(store, "s")
    await opened(store, "t")
    await opened(other, "u", "b")
    assert await other.ask_to_close("s")
    assert await store.ask_to_close("u")
    assert await store.asked_to_close("a") == ["s"]
    assert await store.asked_to_close("a") == []
    assert await other.asked_to_close("b") == ["u"]
    assert await other.ask_to_close("s"), "may be asked again"
    assert await store.asked_to_close("a") == ["s"]
    assert await other.ask_to_close("unknown") is False


async def test_a_parked_session_that_is_to_close_is_over(store: SessionStore) -> None:
    await opened(store, "s")
    await opened(store, "t")
    await store.park("a", [("s", 60.0, b"")])
    assert await store.ask_to_close("s")
    assert await store.ask_to_close("t")
    await store.park("a", [("t", 60.0, b"")])  # before its node was told
    assert await store.resume("a", "s") is None
    assert await store.parked("t") is None
    assert {claim.session.id for claim in await store.claim_orphans("a", 10)} == {"s", "t"}


async def test_asked_in_vain_when_it_ends_by_itself(store: SessionStore) -> None:
    await opened(store)
    await store.ask_to_close("s")
    assert await store.claim("a", session(), "CLIENT_CLOSE")
    assert await store.asked_to_close("a") == []


async def test_rows_and_counts(store: SessionStore) -> None:
    for number in range(6):
        await opened(store, f"s{number}")
    await store.claim("a", session("s1"), "CLIENT_CLOSE")
    await store.park("a", [("s2", 60.0, b""), ("s3", 60.0, b"")])
    claim = await store.claim("a", session("s4"), "CLIENT_CLOSE")
    assert claim
    await store.bury("a", claim, (), "no")
    assert [row.session.id for row in await store.rows()] == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert [row.session.id for row in await store.rows(limit=4)] == ["s0", "s1", "s2", "s3"]
    assert await store.rows(limit=0) == []
    assert [row.session.id for row in await store.rows(failed=True)] == ["s4"]
    assert [(row.node, row.fence) for row in await store.rows()] == [
        ("a", 0), ("a", 1), (None, 0), (None, 0), (None, 1), ("a", 0),
    ]  # fmt: skip
    assert await store.counts() == {
        Phase.OPEN: 2,
        Phase.PARKED: 2,
        Phase.CLOSING: 1,
        Phase.FAILED: 1,
    }


# -- order and races ---------------------------------------------------------------------------------------


async def test_the_longest_overdue_comes_first(
    store: SessionStore, other: SessionStore, world: World
) -> None:
    for name in ("lost 1", "lost 2", "lost 3", "due", "parked"):
        await opened(store, name)
    await other.join("c", 1000.0)
    await store.join("d", 1000.0)
    for name, delay in (("late", 30.0), ("early", 5.0)):
        await other.put_off("c", await claimed(other, name, "c"), delay, (), "no")
    await store.park("a", [("parked", 20.0, b"")])
    world.advance(40)
    found = [await other.claim_orphans("c", 2) for _ in range(4)]
    # After 5, 15 (the lease of node a), 20 and 30 seconds.
    assert [claim.session.id for claims in found for claim in claims] == [
        "early", "lost 1", "lost 2", "lost 3", "due", "parked", "late",
    ]  # fmt: skip


async def test_calls_take_effect_in_the_order_in_which_they_were_made(store: SessionStore) -> None:
    await opened(store)
    calls = [asyncio.ensure_future(store.save("a", [session(data={"n": n})])) for n in range(200)]
    claim = asyncio.ensure_future(store.claim("a", session(data={"n": "last"}), "CLIENT_CLOSE"))
    late = asyncio.ensure_future(store.save("a", [session(data={"n": "late"})]))
    await asyncio.gather(*calls, claim, late)
    assert (await store.rows())[0].session.data == {"n": "last"}
    seen: list[bool] = []
    for n in range(50):
        again: list[Any] = [
            asyncio.ensure_future(store.add("a", session(f"t{n}"))),
            asyncio.ensure_future(store.remove("a", f"t{n}")),
            asyncio.ensure_future(store.add("a", session(f"t{n}", user=str(n)))),
        ]
        seen.append([await call for call in again][2])
    assert seen == [True] * 50
    assert [row.session.user for row in (await store.rows())[1:]] == [str(n) for n in range(50)]


async def test_many_orphans_and_two_nodes_each_once(
    store: SessionStore, other: SessionStore, world: World
) -> None:
    names = {f"s{number:04}" for number in range(1_000)}
    await store.join("dead", 1.0)
    await asyncio.gather(*(store.add("dead", session(name)) for name in names))
    world.advance(2)

    async def take(taker: SessionStore, node: str) -> list[str]:
        mine = []
        while claims := await taker.claim_orphans(node, 7):
            mine += [claim.session.id for claim in claims]
            assert all(await asyncio.gather(*(taker.finish(node, claim) for claim in claims)))
        return mine

    taken = await asyncio.gather(*(take(*who) for who in [(store, "a"), (other, "b")] for _ in range(3)))
    everything = [name for mine in taken for name in mine]
    assert len(everything) == len(names)
    assert set(everything) == names


async def test_an_id_is_recorded_once(store: SessionStore, other: SessionStore) -> None:
    added = await asyncio.gather(
        *(
            taker.add(node, session(f"s{n}"))
            for n in range(50)
            for taker, node in ((store, "a"), (other, "b"))
        )
    )
    assert [sum(added[at : at + 2]) for at in range(0, 100, 2)] == [1] * 50


# -- what is recorded ----------------------------------------------------------------------------------------

TEXTS = [
    "",
    "x" * 100_000,
    "\0",
    "a\0b",
    "ü 漢 🦊",
    "\ud800",
    "\x1e",
    "'; DROP TABLE sessions; --",
    "{}",
    "%s",
]


@pytest.mark.parametrize("text", TEXTS, ids=[ascii(text[:9]) for text in TEXTS])
async def test_any_text_survives(store: SessionStore, text: str) -> None:
    odd = session("s", user=text, routes=(text, "/x"), data={text: [text]})
    assert await store.add("a", odd)
    assert [row.session for row in await store.rows()] == [odd]
    claim = await store.claim("a", odd, "CLIENT_CLOSE")
    assert claim
    assert claim.session == odd
    await store.put_off("a", claim, 0.0, (text.encode("ascii", "replace").decode(),), text)
    (row,) = await store.rows()
    assert row.error == text[:2_000].replace("\ud800", "\\ud800")
    (again,) = await store.claim_orphans("a", 1)
    assert again.session == odd
    assert again.pending == (text.encode("ascii", "replace").decode(),)


@pytest.mark.parametrize("name", [text for text in TEXTS if text != "\ud800"], ids=ascii)
async def test_any_text_that_can_be_encoded_is_an_id(store: SessionStore, name: str) -> None:
    made = await opened(store, name)
    await opened(store, name + "2")
    await store.join(f"node {name}", LEASE)
    await store.park("a", [(name, 60.0, b"state")])
    assert await store.parked(name) == b"state"
    assert await store.resume(f"node {name}", name) == made
    claim = await store.claim(f"node {name}", made, "CLIENT_CLOSE")
    assert claim
    assert await store.finish(f"node {name}", claim)
    assert [row.session.id for row in await store.rows()] == [name + "2"]


async def test_what_cannot_be_recorded_is_refused_and_spoils_nothing(store: SessionStore) -> None:
    await opened(store)
    bad: Any
    for bad in ({"x": object()}, {"x": {1, 2}}, {"x": float("nan")}, {"x": b""}, {(1, 2): 3}, 7):
        waiting = asyncio.ensure_future(store.add("a", session(f"beside {bad!r}")))
        with pytest.raises((TypeError, ValueError)):
            await store.add("a", session("bad", data=bad))
        with pytest.raises((TypeError, ValueError)):
            await store.save("a", [session(data={"saved": True}), session("s", data=bad)])
        with pytest.raises((TypeError, ValueError)):
            await store.claim("a", session(data=bad), "CLIENT_CLOSE")
        assert await waiting
    with pytest.raises(ValueError, match="surrogates"):
        await store.add("a", session("\ud800"))
    with pytest.raises(ValueError, match="surrogates"):
        await store.join("\ud800", LEASE)
    assert (await store.rows())[0].session == session()
    assert await phase_of(store, "bad") is None


# -- the store itself ------------------------------------------------------------------------------------


async def test_closed_twice_and_opened_again(world: World, store: SessionStore) -> None:
    await opened(store)
    await store.close()
    await store.close()
    again = await world.store()
    assert (await again.counts())[Phase.OPEN] == 1
    assert await again.claim("a", session(), "CLIENT_CLOSE"), "the node and its lease are recorded, too"


async def test_its_birth_is_the_same_for_all_until_it_is_emptied(
    world: World, store: SessionStore, other: SessionStore
) -> None:
    born = await store.born()
    await opened(store)
    world.advance(LEASE * 10)
    await other.claim_orphans("b", 10)
    await store.leave("a")
    assert {await store.born(), await other.born(), await (await world.store()).born()} == {born}
    for each in world.stores:
        await each.close()
    assert await (await world.store()).born() == born
    await world.stores[-1].close()
    world.empty()
    anew = await world.store()
    assert await anew.counts() == dict.fromkeys(Phase, 0)
    assert await anew.renew("b", LEASE) is False
    assert await anew.born() not in ("", born)
    assert await anew.born() == await (await world.store()).born()


async def test_closing_finishes_what_was_asked_for(world: World, store: SessionStore) -> None:
    calls = [asyncio.ensure_future(store.add("a", session(f"s{number}"))) for number in range(100)]
    await asyncio.sleep(0)  # they are made
    await store.close()
    assert await asyncio.gather(*calls) == [True] * 100
    assert (await (await world.store()).counts())[Phase.OPEN] == 100


async def test_a_cancelled_call_spoils_no_other(store: SessionStore) -> None:
    calls = [asyncio.ensure_future(store.add("a", session(f"s{number}"))) for number in range(20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    assert await asyncio.gather(*calls[1::2]) == [True] * 10
    assert await store.renew("a", LEASE)


async def test_its_url_opens_it(world: World, store: SessionStore) -> None:
    assert store.lasting
    if not isinstance(world, MemoryWorld):
        from gateway.stores import open_store

        again = open_store(store.url)
        await again.open()
        assert again.url == store.url
        await again.close()
