"""The ledger: every session that an application has accepted is cleaned up after once, whatever happens.

Time is the test's own, for the ledger and for the store; `Faulty` is a store that can be broken and mended.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from gateway.application import Refused
from gateway.config import Limits, Settings, Timeouts
from gateway.ledger import Entry, Health, Ledger, user_text
from gateway.protocol.lifecycle import State
from gateway.protocol.reasons import Reason
from gateway.session_store import Claim, MemoryStore, Phase, StoreRefuses, StoreUnavailable

SETTINGS = Settings(timeouts=Timeouts(lease=15.0, handler=5.0))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


class Faulty(MemoryStore):
    """Raises `fault` at every call, while there is one. `writes` counts the calls that record something."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, lasting=True)
        self.fault: Exception | None = None
        self.lost = False  # whether the answers get lost
        self.gate: asyncio.Event | None = None
        self.writes = 0

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in _ACTS:
            return method

        async def act(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            if self.fault is not None:
                raise self.fault
            if self.gate is not None:
                await self.gate.wait()
            self.writes += name in _WRITES
            answer = await method(*args, **kwargs)
            if self.lost:
                raise StoreUnavailable("no answer")
            return answer

        return act

    def empty(self) -> None:
        """All of it is gone."""
        super().__init__(self._clock, lasting=True)


_WRITES = {"add", "save", "remove", "park", "resume", "claim", "finish", "put_off", "bury"}
_ACTS = _WRITES | {"born", "join", "renew", "leave", "claim_orphans", "parked", "counts", "asked_to_close"}


class Node:
    """A ledger, and what its hooks were given."""

    def __init__(
        self, store: MemoryStore, clock: Clock, name: str, settings: Settings = SETTINGS, **options: Any
    ) -> None:
        self.clock = clock
        self.store = store
        self.cleaned: list[Claim] = []
        self.ended: list[tuple[str, Reason]] = []
        self.empty = 0
        self.gate: asyncio.Event | None = None
        self._name = name
        self._joined = 0
        self.ledger = Ledger(
            store,
            settings,
            clean=self.clean,
            new_node=self._new_node,
            now=clock,
            wall=lambda: clock.wall,
            **options,
        )
        self.ledger.on_empty = self._on_empty

    def _new_node(self) -> str:
        self._joined += 1
        return f"{self._name}{self._joined}"

    def _on_empty(self) -> None:
        self.empty += 1

    async def clean(self, claim: Claim) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.cleaned.append(claim)
        await self.store.finish(self.ledger.node, claim)

    def begin(self, session_id: str):
        """A session whose owner ends it when it is told to."""

        def end(reason: Reason) -> None:
            self.ended.append((session_id, reason))
            entry.end(reason)

        entry = self.ledger.begin(session_id, end)
        return entry

    async def opened(self, session_id: str, route: str = "/r", user: Any = None):
        """A session that one application has accepted."""
        entry = self.begin(session_id)
        await entry.ask(route, user)
        entry.accepted()
        await settle()
        return entry

    async def close(self, entry, reason: Reason = Reason.CLIENT_CLOSE) -> None:
        """It ends, and its application is done with it."""
        entry.end(reason)
        entry.left()
        await settle()

    async def pass_(self, seconds: float) -> None:
        """Time passes, and the ledger looks every half second."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.pass_(0.5)
            await self.ledger.beat()
            await settle()

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return [(claim.session.id, claim.reason) for claim in self.cleaned]


async def settle() -> None:
    """Let what has been begun go on until nothing moves; no store of these tests waits for anything else."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock) -> Faulty:
    return Faulty(clock)


@pytest.fixture
async def node(store, clock):
    made = Node(store, clock, "a")
    await made.ledger.start()
    return made


async def phases(store: MemoryStore) -> dict[str, Phase]:
    return {row.session.id: row.phase for row in await store.rows()}


# -- the beginning ---------------------------------------------------------------------------------


async def test_nothing_is_recorded_before_an_application_is_asked(node, store):
    entry = node.begin("s")
    assert entry.state is State.NEW
    entry.detach()
    entry.attach()
    entry.end(Reason.TRANSPORT_CLOSE)
    await settle()
    assert entry.state is State.CLOSED
    assert store.writes == 0
    assert node.cleaned == []
    assert node.ledger.entries == {}


async def test_it_is_recorded_before_the_application_is_asked(node, store):
    entry = node.begin("s")
    await entry.ask("/r", {"name": "ada"})
    (row,) = await store.rows()
    assert (row.session.routes, row.session.user, row.phase) == (("/r",), '{"name": "ada"}', Phase.OPEN)
    assert row.session.opened == node.clock.wall


async def test_a_refusal_leaves_nothing_behind(node, store):
    entry = node.begin("s")
    await entry.ask("/r")
    entry.refused()
    await settle()
    assert entry.state is State.NEW
    assert await phases(store) == {}
    entry.end(Reason.CLIENT_CLOSE)
    await settle()
    assert node.cleaned == []


async def test_one_that_accepts_is_enough(node, store):
    entry = node.begin("s")
    await entry.ask("/one")
    await entry.ask("/two")
    entry.accepted()
    entry.refused()
    await settle()
    assert await phases(store) == {"s": Phase.OPEN}
    await node.close(entry)
    assert node.reasons == [("s", "CLIENT_CLOSE")]
    assert node.cleaned[0].session.routes == ("/one", "/two")


async def test_asked_again_at_once_after_a_refusal_it_is_recorded(node, store):
    entry = node.begin("s")
    await entry.ask("/one")
    entry.refused()
    await entry.ask("/two")
    entry.accepted()
    await settle()
    assert await phases(store) == {"s": Phase.OPEN}
    await node.close(entry)
    assert node.reasons == [("s", "CLIENT_CLOSE")]


async def test_two_applications_asked_at_once_are_both_recorded_before_they_are(node, store):
    store.gate = asyncio.Event()
    entry = node.begin("s")
    both = [asyncio.create_task(entry.ask(route)) for route in ("/one", "/two")]
    await settle()
    assert not any(task.done() for task in both)
    store.gate.set()
    await asyncio.gather(*both)
    (row,) = await store.rows()
    assert row.session.routes == ("/one", "/two")


async def test_whoever_leaves_while_the_application_is_asked_is_cleaned_up_after_if_it_accepts(node, store):
    accepting, refusing = node.begin("yes"), node.begin("no")
    for entry in (accepting, refusing):
        await entry.ask("/r")
        entry.end(Reason.TRANSPORT_CLOSE)
    await settle()
    assert await phases(store) == {"yes": Phase.CLOSING, "no": Phase.CLOSING}
    assert node.cleaned == []
    accepting.accepted()
    accepting.left()
    refusing.refused()
    await settle()
    assert node.reasons == [("yes", "TRANSPORT_CLOSE")]
    assert await phases(store) == {}


# -- the end -----------------------------------------------------------------------------------------


async def test_the_first_reason_wins_and_the_hook_runs_once(node):
    entry = await node.opened("s")
    entry.end(Reason.PING_TIMEOUT)
    entry.end(Reason.CLIENT_CLOSE)
    entry.left()
    await settle()
    entry.end(Reason.SHUTDOWN)
    await settle()
    assert node.reasons == [("s", "PING_TIMEOUT")]
    assert node.ledger.entries == {}


async def test_it_is_claimed_at_once_and_cleaned_up_when_the_handlers_have_returned(node, store):
    entry = await node.opened("s")
    entry.end(Reason.CLIENT_CLOSE)
    await settle()
    assert entry.state is State.CLOSING
    assert await phases(store) == {"s": Phase.CLOSING}
    assert node.cleaned == []
    entry.left()
    await settle()
    assert node.reasons == [("s", "CLIENT_CLOSE")]


async def test_a_handler_that_never_returns_is_not_waited_for_longer_than_its_limit(node):
    entry = await node.opened("s")
    entry.end(Reason.CLIENT_CLOSE)
    await settle()
    await node.pass_(9.5)
    assert node.cleaned == []
    await node.pass_(1)
    assert node.reasons == [("s", "CLIENT_CLOSE")]
    entry.left()
    await settle()
    assert len(node.cleaned) == 1


async def test_an_open_that_does_not_return_may_accept_yet_and_is_cleaned_up_after(node):
    entry = node.begin("s")
    await entry.ask("/r")
    entry.end(Reason.SHUTDOWN)
    node.ledger.hurry(2.0)
    await node.pass_(2.5)
    assert node.reasons == [("s", "SHUTDOWN")]


async def test_what_it_took_to_notice_is_told(node, clock):
    entry = await node.opened("s")
    clock.pass_(5)
    entry.detach(silence=20.0)
    clock.pass_(15)
    await node.close(entry, Reason.PING_TIMEOUT)
    (claim,) = node.cleaned
    assert claim.detected_after == 35.0
    assert claim.session.seen == clock.wall - 35.0


async def test_a_hook_that_fails_or_hangs_stops_no_other(node, monkeypatch):
    async def clean(claim: Claim) -> None:
        if claim.session.id == "bad":
            raise TypeError("a hook")
        if claim.session.id == "slow":
            await asyncio.Event().wait()
        await Node.clean(node, claim)

    monkeypatch.setattr(node.ledger, "_clean", clean)
    for name in ("bad", "slow", "good"):
        await node.close(await node.opened(name))
    assert node.reasons == [("good", "CLIENT_CLOSE")]
    await node.ledger.stop()


async def test_a_session_without_a_hook_costs_a_write_at_its_beginning_and_one_at_its_end(store, clock):
    node = Node(store, clock, "a", has_hooks=lambda routes: "/lab" in routes)
    await node.ledger.start()
    plain, lab = await node.opened("plain", "/chat"), await node.opened("lab", "/lab")
    await node.pass_(1.0)
    assert await phases(store) == {"plain": Phase.OPEN, "lab": Phase.OPEN}
    before = store.writes
    await node.close(plain)
    assert (plain.state, store.writes - before) == (State.CLOSED, 1)
    await node.close(lab)
    assert node.reasons == [("lab", "CLIENT_CLOSE")]
    assert await phases(store) == {}
    assert node.ledger.entries == {}


async def test_a_short_session_without_a_hook_costs_the_store_nothing(store, clock):
    node = Node(store, clock, "a", has_hooks=lambda routes: False)
    await node.ledger.start()
    before = store.writes
    entry = await node.opened("s")
    await node.close(entry)
    await node.pass_(1.0)
    assert (entry.state, store.writes - before) == (State.CLOSED, 0)
    assert node.ledger.entries == {}


async def test_a_session_that_ends_while_it_is_recorded_leaves_no_record(store, clock, monkeypatch):
    node = Node(store, clock, "a", has_hooks=lambda routes: False)
    await node.ledger.start()
    entry = await node.opened("s")
    added, answered = asyncio.Event(), asyncio.Event()
    add = store.add

    async def slow(*arguments: Any) -> bool:
        answer = await add(*arguments)
        added.set()
        await answered.wait()
        return answer

    monkeypatch.setattr(store, "add", slow)
    recording = asyncio.ensure_future(node.ledger.beat())
    await added.wait()
    await node.close(entry)
    answered.set()
    await recording
    await settle()
    assert (entry.state, await phases(store)) == (State.CLOSED, {})


async def test_a_second_route_with_a_hook_is_recorded_before_it_is_asked(store, clock):
    node = Node(store, clock, "a", has_hooks=lambda routes: "/lab" in routes)
    await node.ledger.start()
    entry = await node.opened("s", "/chat")
    assert await phases(store) == {}
    await entry.ask("/lab")
    assert await phases(store) == {"s": Phase.OPEN}


async def test_without_a_hook_for_it_a_session_is_dropped_when_the_store_is_back(store, clock):
    node = Node(store, clock, "a", has_hooks=lambda routes: False)
    await node.ledger.start()
    entry = await node.opened("s")
    await node.pass_(1.0)
    store.fault = StoreUnavailable("away")
    await node.close(entry)
    assert (entry.state, node.ledger.is_cleaning) == (State.CLOSING, True)
    store.fault = None
    await node.pass_(1.0)
    assert (entry.state, node.ledger.is_cleaning) == (State.CLOSED, False)
    assert await phases(store) == {}


async def test_many_that_end_together_are_each_cleaned_up_once(node):
    entries = [await node.opened(str(index)) for index in range(2_000)]
    for entry in entries:
        entry.end(Reason.TRANSPORT_CLOSE)
        entry.left()
    await node.ledger.drained()
    assert sorted(claim.session.id for claim in node.cleaned) == sorted(str(index) for index in range(2_000))
    assert node.ledger.counts.total() == 0


async def test_no_more_than_the_limit_run_at_the_same_time_and_all_run(store, clock):
    node = Node(store, clock, "a", replace(SETTINGS, limits=Limits(hooks=1)))
    await node.ledger.start()
    node.gate = asyncio.Event()
    running = 0
    most = 0

    async def clean(claim: Claim) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await Node.clean(node, claim)
        running -= 1

    node.ledger._clean = clean
    for index in range(20):
        await node.close(await node.opened(str(index)))
    node.gate.set()
    await node.ledger.drained()
    assert len(node.cleaned) == 20
    assert most == 4


# -- data ----------------------------------------------------------------------------------------------


async def recorded(store: MemoryStore) -> Any:
    (row,) = await store.rows()
    return dict(row.session.data)


async def test_data_is_saved_after_open_at_each_renewal_and_when_the_connection_is_lost(node, store):
    entry = node.begin("s")
    await entry.ask("/r")
    entry.data["step"] = 1
    entry.accepted()
    await entry.saved()
    assert await recorded(store) == {"step": 1}
    entry.data["step"] = 2
    await node.pass_(4.5)
    assert await recorded(store) == {"step": 1}
    await node.pass_(1)
    assert await recorded(store) == {"step": 2}
    entry.data["step"] = 3
    entry.detach()
    await settle()
    assert await recorded(store) == {"step": 3}
    entry.attach()
    entry.data["step"] = 4
    assert await entry.save()
    assert await recorded(store) == {"step": 4}


async def test_others_have_a_turn_while_much_data_is_looked_at(node, clock, monkeypatch):
    looks = []

    def changed(entry: Entry) -> bool:
        looks.append(entry.id)
        clock.pass_(0.003)  # a megabyte takes longer
        return False

    for each in ("a", "b", "c"):
        (await node.opened(each)).data["much"] = 1
    monkeypatch.setattr(Entry, "changed", changed)
    asyncio.get_running_loop().call_soon(looks.append, "another")
    await node.ledger._save_changed()
    assert looks == ["a", "another", "b", "c"]


async def test_what_has_not_changed_is_not_written(node, store):
    entry = await node.opened("s")
    entry.data["step"] = 1
    await node.pass_(6)
    before = store.writes
    await node.pass_(30)
    entry.detach()
    entry.attach()
    await settle()
    assert store.writes == before


async def test_the_hook_sees_what_close_has_changed(node):
    entry = await node.opened("s")
    entry.data["door"] = "open"
    entry.end(Reason.CLIENT_CLOSE)
    await settle()
    entry.data["door"] = "shut"
    entry.left()
    await settle()
    assert node.cleaned[0].session.data == {"door": "shut"}


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", float("nan"), object()], ids=repr)
async def test_what_is_not_json_is_said_at_save_and_harms_nothing(node, store, value, caplog):
    entry = await node.opened("s")
    entry.data["good"] = 1
    await entry.save()
    entry.data["bad"] = value
    with pytest.raises(TypeError, match=r"handler\.data is kept as JSON"):
        await entry.save()
    await node.pass_(20)
    assert await recorded(store) == {"good": 1}
    assert caplog.text.count("is not saved") == 1
    await node.close(entry)
    assert node.cleaned[0].session.data == {"good": 1}


async def test_too_much_data_is_said_at_save(node, store):
    entry = await node.opened("s")
    entry.data["log"] = "x" * 1_000_000
    with pytest.raises(TypeError, match="kept up to 1000000 characters"):
        await entry.save()
    assert await recorded(store) == {}


@pytest.mark.parametrize(
    ("user", "text"),
    [(None, None), ("ada", "ada"), ({"b": 1, "a": 2}, '{"a": 2, "b": 1}'), (7, "7"), ({1}, "{1}")],
)
def test_a_user_is_text(user, text):
    assert user_text(user) == text


def test_a_user_that_cannot_be_text_is_somebody_all_the_same():
    class User:
        def __str__(self):
            raise LookupError("not loaded")

    text = user_text(User())
    assert text is not None
    assert "User object at" in text


# -- other nodes -----------------------------------------------------------------------------------------


async def test_the_sessions_of_a_node_that_fell_silent_are_cleaned_up_by_another(node, store, clock):
    await node.opened("s")
    other = Node(store, clock, "b")
    await other.ledger.start()
    await other.pass_(14.5)
    assert other.cleaned == []
    await other.pass_(1)
    assert other.reasons == [("s", "NODE_LOST")]


async def test_the_sessions_of_a_lost_node_do_not_wait_for_one_look_after_the_other(
    node, store, clock, caplog
):
    caplog.set_level(logging.INFO)
    for index in range(2_000):
        await node.opened(str(index))
    other = Node(store, clock, "b", replace(SETTINGS, limits=Limits(hooks=10)))
    running = 0
    most = 0

    async def clean(claim: Claim) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await Node.clean(other, claim)
        running -= 1

    other.ledger._clean = clean
    other.ledger._capacity = lambda: 64 - running
    clock.pass_(16)
    await other.ledger.start()
    await other.ledger.beat()
    await other.ledger.drained()
    while len(other.cleaned) < 2_000:
        await settle()
    assert sorted(claim.session.id for claim in other.cleaned) == sorted(map(str, range(2_000)))
    assert most <= 64
    assert [record.message for record in caplog.records] == [
        "cleaning up after 64 sessions of a lost node, and more",
        "cleaning up after 2000 sessions of a lost node in all",
    ]


async def test_a_node_that_beats_is_not_lost(node, store, clock):
    entry = await node.opened("s")
    other = Node(store, clock, "b")
    await other.ledger.start()
    for _ in range(200):
        clock.pass_(0.5)
        await node.ledger.beat()
        await other.ledger.beat()
    await settle()
    assert other.cleaned == []
    assert entry.state is State.OPEN


async def test_a_node_that_was_paused_ends_its_sessions_and_runs_no_hook(node, store, clock):
    entry = await node.opened("s")
    ended = await node.opened("ended")
    idle = node.begin("new")
    other = Node(store, clock, "b")
    await other.ledger.start()
    await other.pass_(16)
    # It wakes up, and the end of a session is the first that it sees.
    ended.end(Reason.TRANSPORT_CLOSE)
    ended.left()
    await settle()
    await node.ledger.beat()
    await settle()
    assert node.ended == [("s", Reason.NODE_LOST)]
    assert node.cleaned == []
    assert sorted(other.reasons) == [("ended", "NODE_LOST"), ("s", "NODE_LOST")]
    assert entry.state is State.CLOSED
    assert idle.state is State.NEW
    # And it is there again, under another name.
    assert node.ledger.node == "a2"
    await node.close(await node.opened("later"))
    assert node.reasons == [("later", "CLIENT_CLOSE")]


async def test_a_lost_node_is_there_again_before_its_clients_are_told(node, store, clock):
    names = []
    entry = node.ledger.begin("s", lambda reason: names.append(node.ledger.node))
    await entry.ask("/r")
    other = Node(store, clock, "b")
    await other.ledger.start()
    await other.pass_(16)
    await node.ledger.beat()
    assert names == ["a2"]


async def test_what_waits_for_its_turn_on_a_lost_node_is_left_to_the_other(store, clock):
    node = Node(store, clock, "a", replace(SETTINGS, limits=Limits(hooks=1)))
    await node.ledger.start()
    node.gate = asyncio.Event()
    for index in range(10):
        await node.close(await node.opened(str(index)))
    slow = await node.opened("slow")
    slow.end(Reason.CLIENT_CLOSE)
    await settle()
    other = Node(store, clock, "b")
    await other.ledger.start()
    await other.pass_(16)
    assert len(other.cleaned) == 11
    await node.ledger.beat()
    slow.left()
    node.gate.set()
    await node.ledger.drained()
    assert len(node.cleaned) == 4, "those that were running when it was paused"
    assert node.ledger.entries == {}


async def test_a_session_that_begins_on_a_lost_node_is_refused(node, store, clock):
    other = Node(store, clock, "b")
    await other.ledger.start()
    await node.opened("s")
    await other.pass_(16)
    entry = node.begin("new")
    with pytest.raises(Refused) as refused:
        await entry.ask("/r")
    assert refused.value.status == 503
    await node.ledger.beat()
    await entry.ask("/r")
    entry.accepted()
    assert (await phases(store))["new"] is Phase.OPEN


async def test_what_a_node_leaves_behind_is_taken_up(node, store, clock):
    node.gate = asyncio.Event()
    entry = await node.opened("s")
    await node.close(entry)
    await node.ledger.stop()
    other = Node(store, clock, "b")
    await other.ledger.start()
    await other.pass_(0.5)
    (claim,) = other.cleaned
    assert (claim.session.id, claim.reason, claim.attempt) == ("s", "CLIENT_CLOSE", 2)


async def test_an_operator_ends_a_session(node, store):
    await node.opened("s")
    assert await store.ask_to_close("s")
    await node.pass_(0.5)
    assert node.ended == [("s", Reason.SERVER_CLOSE)]


async def test_a_parked_session_is_resumed_by_one_of_two(node, store, clock):
    entry = await node.opened("s", user="ada")
    entry.data["step"] = 1
    assert await node.ledger.park([(entry, 15.0, b"state")])
    assert entry.state is State.CLOSED
    await node.ledger.stop()
    others = [Node(store, clock, name) for name in "bc"]
    for other in others:
        await other.ledger.start()
    assert [await other.ledger.parked("s") for other in others] == [b"state", b"state"]
    taken = await asyncio.gather(*(other.ledger.resume("s", lambda reason: None) for other in others))
    (resumed,) = filter(None, taken)
    assert resumed.state is State.DETACHED
    assert (resumed.user, resumed.data, resumed.is_kept) == ("ada", {"step": 1}, True)
    resumed.attach()
    resumed.end(Reason.CLIENT_CLOSE)
    await settle()
    assert [other.reasons for other in others].count([("s", "CLIENT_CLOSE")]) == 1
    assert [other.reasons for other in others].count([]) == 1


async def test_two_resumes_of_one_session_at_one_node_are_one(node, store, clock):
    entry = await node.opened("s")
    await node.ledger.park([(entry, 15.0, b"")])
    twins = await asyncio.gather(*(node.ledger.resume("s", lambda reason: None) for _ in range(2)))
    (one,) = filter(None, twins)
    assert node.ledger.entries == {"s": one}
    assert node.ledger.counts[State.DETACHED] == 1


async def test_a_parked_session_that_nobody_resumes_is_cleaned_up_after_its_grace(node, store, clock):
    entry = await node.opened("s")
    await node.pass_(100)
    stopped = clock.wall
    assert await node.ledger.park([(entry, 15.0, b"state")])
    await node.ledger.stop()
    other = Node(store, clock, "b")
    await other.ledger.start()
    await other.pass_(14.5)
    assert other.cleaned == []
    await other.pass_(1)
    assert other.reasons == [("s", "SHUTDOWN")]
    assert other.cleaned[0].session.seen == stopped, "it was there until the stop"
    assert await other.ledger.resume("s", lambda reason: None) is None


async def test_parking_that_fails_leaves_them_as_they_are(node, store):
    entry = await node.opened("s")
    store.fault = StoreUnavailable("gone")
    assert not await node.ledger.park([(entry, 15.0, b"state")])
    store.fault = None
    await node.pass_(0.5)
    await node.close(entry, Reason.SHUTDOWN)
    assert node.reasons == [("s", "SHUTDOWN")]


async def test_a_store_that_does_not_answer_holds_up_a_stop_no_longer_than_it_may(
    node, store, monkeypatch, caplog
):
    monkeypatch.setattr("gateway.ledger._FAREWELL", 0.01)
    entries = [await node.opened(name) for name in "ab"]
    store.gate = asyncio.Event()
    node.ledger.hurry(0.01)
    assert not await node.ledger.park([(entries[0], 15.0, b"")])
    assert not await node.ledger.park([(entries[1], 15.0, b"")])
    await node.ledger.stop()
    assert caplog.text.count("could not be kept for the next start: it does not answer in time") == 1
    assert "was not told of the stop; the lease will run out. it does not answer" in caplog.text


async def test_a_step_of_the_wall_clock_changes_nothing(node, clock):
    entry = await node.opened("s")
    clock.wall -= 3_600
    await node.pass_(20)
    clock.wall += 7_200
    await node.pass_(20)
    assert entry.state is State.OPEN
    assert node.cleaned == []


# -- a store that is down ----------------------------------------------------------------------------------


async def test_while_the_store_is_away_sessions_go_on_and_nothing_is_claimed(node, store, caplog):
    caplog.set_level(logging.INFO)
    before, ends = await node.opened("before"), await node.opened("ends")
    store.fault = StoreUnavailable("no answer")
    await node.pass_(2)
    assert node.ledger.health is Health.UNAVAILABLE
    during = await node.opened("during")
    short = await node.opened("short")
    before.data["step"] = 1
    assert not await before.save()
    await node.close(ends)
    await node.close(short)
    await node.pass_(30)
    assert node.cleaned == []
    assert (before.state, during.state) == (State.OPEN, State.OPEN)
    store.fault = None
    await node.pass_(0.5)
    assert node.ledger.health is Health.OK
    assert sorted(node.reasons) == [("ends", "CLIENT_CLOSE"), ("short", "CLIENT_CLOSE")]
    assert await phases(store) == {"before": Phase.OPEN, "during": Phase.OPEN}
    assert {row.session.id: dict(row.session.data) for row in await store.rows()}["before"] == {"step": 1}
    assert caplog.text.count("cannot be reached") == 1
    assert caplog.text.count("the session store is back") == 1
    assert "1 new session recorded, 2 to clean up after" in caplog.text


async def test_a_store_that_takes_no_writes_refuses_new_sessions_only(node, store, caplog):
    old = await node.opened("old")
    ends = await node.opened("ends")
    store.fault = StoreRefuses("the disk is full")
    for name in ("one", "two"):
        entry = node.begin(name)
        with pytest.raises(Refused) as refused:
            await entry.ask("/r")
        assert refused.value.status == 503
        entry.end(Reason.REFUSED)
    await node.close(ends)
    await node.pass_(5)
    assert old.state is State.OPEN
    assert node.cleaned == []
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    assert "the disk is full" in caplog.text
    store.fault = None
    await node.pass_(0.5)
    assert node.reasons == [("ends", "CLIENT_CLOSE")]
    await node.opened("new")
    assert await phases(store) == {"old": Phase.OPEN, "new": Phase.OPEN}


async def test_a_node_whose_store_was_away_for_too_long_keeps_what_only_it_knows(node, store, clock):
    await node.opened("before")
    store.fault = StoreUnavailable("no answer")
    await node.pass_(1)
    during = await node.opened("during")
    short = await node.opened("short")
    await node.close(short)
    clock.pass_(20)
    store.fault = None
    other = Node(store, clock, "b")
    await other.ledger.start()
    await other.pass_(0.5)
    assert other.reasons == [("before", "NODE_LOST")]
    await node.pass_(0.5)
    assert node.ended == [("before", Reason.NODE_LOST)]
    assert node.reasons == [("short", "CLIENT_CLOSE")]
    assert during.state is State.OPEN
    assert await phases(store) == {"during": Phase.OPEN}


async def test_a_node_that_was_away_lets_the_others_be_heard_before_it_takes_their_sessions(
    node, store, clock
):
    other = Node(store, clock, "b")
    await other.ledger.start()
    dead = Node(store, clock, "c")
    await dead.ledger.start()
    await node.opened("mine")
    await other.opened("theirs")
    await dead.opened("nobody's")

    async def pass_(seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            clock.pass_(0.5)
            for each in (node, other):
                await each.ledger.beat()
                await settle()

    store.fault = StoreUnavailable("no answer")
    await pass_(30)
    store.fault = None
    await pass_(14)
    assert node.cleaned == other.cleaned == []
    await pass_(2)
    assert node.reasons + other.reasons == [("nobody's", "NODE_LOST")]
    assert node.ended == other.ended == []


async def test_a_resumed_session_of_which_only_the_answer_got_lost_is_cleaned_up_after(node, store, clock):
    other = Node(store, clock, "b")
    await other.ledger.start()
    await node.ledger.park([(await node.opened("s"), 100.0, b"state")])
    store.lost = True
    assert await other.ledger.resume("s", lambda reason: None) is None
    assert await phases(store) == {"s": Phase.OPEN}
    store.lost = False
    await other.pass_(0.5)
    assert other.reasons == [("s", "SHUTDOWN")]
    assert await phases(store) == {}
    assert other.ledger.entries == {}


async def test_a_resume_that_was_not_done_is_not_made_up_for_by_a_hook_that_somebody_else_runs(
    node, store, clock
):
    other = Node(store, clock, "b")
    await other.ledger.start()
    await node.ledger.park([(await node.opened("s"), 100.0, b"state")])
    store.fault = StoreUnavailable("no answer")
    assert await other.ledger.resume("s", lambda reason: None) is None
    store.fault = None
    assert await node.ledger.resume("s", lambda reason: None) is not None
    await other.pass_(0.5)
    assert other.cleaned == []
    assert await phases(store) == {"s": Phase.OPEN}


async def test_what_was_refused_while_the_store_was_away_is_forgotten_when_it_is_back(node, store):
    entry = node.begin("s")
    await entry.ask("/r")
    entry.refused()
    store.fault = StoreUnavailable("no answer")
    await settle()
    entry.end(Reason.CLIENT_CLOSE)
    store.fault = None
    await node.pass_(0.5)
    assert await phases(store) == {}
    assert node.cleaned == []


async def test_a_beat_that_fails_is_not_the_last(node, store, monkeypatch, caplog):
    beats = asyncio.Semaphore(0)

    async def beat() -> None:
        beats.release()
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(node.ledger, "beat", beat)
    monkeypatch.setattr("gateway.ledger._BEAT", 0.001)
    node.ledger.run()
    for _ in range(3):
        await beats.acquire()
    await node.ledger.stop()
    assert "the look at the session store failed" in caplog.text


async def test_what_begins_while_the_store_comes_back_is_recorded_too(node, store, monkeypatch):
    await node.opened("one")
    store.fault = StoreUnavailable("no answer")
    await node.pass_(1)
    await node.opened("two")
    store.fault = None

    async def slow() -> None:
        store.gate = asyncio.Event()

    monkeypatch.setattr(node.ledger, "_save_changed", slow)
    beat = asyncio.create_task(node.ledger.beat())
    await settle()
    await node.opened("three")
    store.gate.set()
    await beat
    assert await phases(store) == dict.fromkeys(("one", "two", "three"), Phase.OPEN)


# -- a store that was emptied ------------------------------------------------------------------------------


async def test_after_the_store_was_emptied_sessions_go_on_and_are_cleaned_up_after(node, store, caplog):
    entries = [await node.opened(str(number)) for number in range(600)]
    entries[0].data["lamp"] = 7
    store.empty()
    await node.pass_(6)
    assert node.ledger.node == "a2"
    assert set((await phases(store)).values()) == {Phase.OPEN}
    assert (await store.rows())[0].session.data == {"lamp": 7}
    assert node.ended == node.cleaned == []
    (said,) = caplog.records
    assert said.levelname == "WARNING"
    assert "was emptied: recording 600 sessions of this node again" in said.message
    for entry in entries:
        await node.close(entry)
    assert len(node.cleaned) == len(entries)
    assert await phases(store) == {}


async def test_what_ends_or_begins_before_it_is_noticed_is_cleaned_up_after(node, store, caplog):
    first, second, busy = [await node.opened(name) for name in ("first", "second", "busy")]
    store.empty()
    for entry in (first, second, busy):
        entry.end(Reason.CLIENT_CLOSE)
    first.left()
    second.left()
    await settle()
    assert sorted(node.reasons) == [("first", "CLIENT_CLOSE"), ("second", "CLIENT_CLOSE")]
    assert await phases(store) == {"busy": Phase.CLOSING}
    store.empty()
    await node.opened("new")
    assert await phases(store) == {"new": Phase.OPEN, "busy": Phase.CLOSING}
    busy.left()
    await settle()
    assert len(node.cleaned) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert not node.ledger.is_cleaning


async def test_what_waits_for_its_turn_in_an_emptied_store_is_claimed_again(store, clock):
    node = Node(store, clock, "a", replace(SETTINGS, limits=Limits(hooks=1)))
    await node.ledger.start()
    node.gate = asyncio.Event()
    for number in range(300):
        await node.close(await node.opened(str(number)))
    store.empty()
    await node.pass_(6)
    assert (await store.counts())[Phase.CLOSING] == 296, "all but those that are running"
    node.gate.set()
    await node.ledger.drained()
    assert len(node.cleaned) == len({claim.session.id for claim in node.cleaned}) == 300
    assert await phases(store) == {}


async def test_a_store_that_goes_away_once_more_is_made_up_for_when_it_is_back(node, store, monkeypatch):
    live, busy = await node.opened("live"), await node.opened("busy")
    busy.end(Reason.CLIENT_CLOSE)
    await settle()
    store.empty()
    monkeypatch.setattr(node.ledger, "on_join", lambda _: setattr(store, "fault", StoreUnavailable("gone")))
    await node.pass_(6)
    assert node.ledger.health is Health.UNAVAILABLE
    store.fault = None
    await node.pass_(0.5)
    assert await phases(store) == {"live": Phase.OPEN, "busy": Phase.CLOSING}
    busy.left()
    await node.close(live)
    assert sorted(node.reasons) == [("busy", "CLIENT_CLOSE"), ("live", "CLIENT_CLOSE")]
    assert node.ended == []


async def test_a_stop_right_after_it_was_emptied_parks_all_the_same(node, store):
    entry = await node.opened("s")
    store.empty()
    assert await node.ledger.park([(entry, 15.0, b"state")])
    assert await store.parked("s") == b"state"


async def test_a_claim_that_was_being_worked_on_is_made_again_and_one_of_a_lost_node_is_not(node, store):
    entry = await node.opened("s")
    claim = await store.claim("a1", entry.record(), "CLIENT_CLOSE")
    assert claim is not None
    claim = replace(claim, attempt=3, pending=("lamp",))
    assert await node.ledger.again("a1", claim) is None, "nobody has emptied it"
    store.empty()
    again = await node.ledger.again("a1", claim)
    assert again is not None
    assert (again.attempt, again.pending) == (3, ("lamp",))
    assert await store.put_off(node.ledger.node, again, 60.0, ("lamp",), "no")
    assert await node.ledger.again("a2", again) is None


# -- nobody is here ----------------------------------------------------------------------------------------


@pytest.fixture
async def brief(store, clock):
    made = Node(store, clock, "a", replace(SETTINGS, exit_when_empty=30.0))
    await made.ledger.start()
    return made


async def test_it_stops_when_the_last_has_been_gone_that_long(brief):
    await brief.pass_(100)
    assert brief.empty == 0, "nobody has been there yet"
    one, two = await brief.opened("one"), await brief.opened("two")
    await brief.close(one)
    await brief.pass_(100)
    two.detach()
    await brief.pass_(100)
    assert brief.empty == 0, "one may come back"
    await brief.close(two)
    await brief.pass_(29.5)
    assert brief.empty == 0
    await brief.pass_(1)
    assert brief.empty == 1
    await brief.pass_(100)
    assert brief.empty == 1, "once"


async def test_whoever_was_refused_has_not_been_there(brief):
    entry = brief.begin("s")
    await entry.ask("/r")
    entry.refused()
    await brief.pass_(100)
    assert brief.empty == 0


async def test_hooks_that_run_are_waited_for(brief):
    brief.gate = asyncio.Event()
    await brief.close(await brief.opened("one"))
    await brief.pass_(100)
    assert brief.empty == 0
    brief.gate.set()
    await brief.pass_(1)
    assert brief.empty == 1


async def test_a_gateway_that_stops_is_not_told_to_stop_once_more(brief):
    await brief.close(await brief.opened("one"))
    brief.ledger.hurry(60.0)
    await brief.pass_(100)
    assert brief.empty == 0


async def test_whoever_comes_in_time_starts_the_clock_anew(brief):
    await brief.close(await brief.opened("one"))
    await brief.pass_(29)
    two = await brief.opened("two")
    await brief.pass_(60)
    assert brief.empty == 0
    await brief.close(two)
    await brief.pass_(29)
    assert brief.empty == 0
    await brief.pass_(2)
    assert brief.empty == 1


async def test_a_parked_session_counts_as_present(brief, store, clock):
    before = Node(store, clock, "b")
    await before.ledger.start()
    await before.ledger.park([(await before.opened("parked"), 100.0, b"")])
    await before.ledger.stop()
    await brief.close(await brief.opened("one"))
    await brief.pass_(95)
    assert brief.empty == 0
    await brief.pass_(34)
    assert brief.reasons[-1] == ("parked", "SHUTDOWN")
    assert brief.empty == 0
    await brief.pass_(5)
    assert brief.empty == 1


async def test_without_the_setting_it_stays(node):
    await node.close(await node.opened("one"))
    await node.pass_(1_000)
    assert node.empty == 0
