"""Cleanup hooks: real functions, real web servers, real programs, and a store whose clock the test moves."""

import asyncio
import functools
import json
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import gateway
from gateway import hooks as module
from gateway.config import Limits, Settings, Timeouts
from gateway.hooks import CommandHook, FunctionHook, Hooks, WebhookHook, as_hooks, is_private
from gateway.session_store import MemoryStore, Phase, Session, StoreRefuses, StoreUnavailable, StoreUnusable

NODE = "a-node"


class Bench:
    """A store with a clock, a node that has joined, and hooks that run its claims."""

    def __init__(self):
        self.now = 0.0
        self.store = MemoryStore(lambda: self.now)
        self.pauses = []
        self.hooks: Any = None

    async def pause(self, seconds):
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def start(self, *hooks, store=None, routes=None, limits=None, hook=30.0, chance=0.5):
        settings = Settings(limits=limits or Limits(), timeouts=replace(Timeouts(), hook=hook))
        await self.store.join(NODE, 1e9)
        self.hooks = Hooks(
            as_hooks(hooks),
            store or self.store,
            NODE,
            settings,
            routes=routes,
            pause=self.pause,
            chance=lambda: chance,
        )
        return self.hooks

    async def claim(self, session_id="s1", reason="PING_TIMEOUT", **fields):
        session = Session(session_id, **fields)
        assert await self.store.add(NODE, session)
        claim = await self.store.claim(NODE, session, reason, 1.5)
        assert claim is not None
        return claim

    async def run(self, session_id="s1", **fields):
        """Claim a new session and run its hooks."""
        await self.hooks.run(await self.claim(session_id, **fields))

    async def later(self, seconds):
        """Time passes; what is due by then is run."""
        self.now += seconds
        claims = await self.store.claim_orphans(NODE, 1000)
        await asyncio.gather(*map(self.hooks.run, claims))
        return claims

    async def row(self):
        """The only recorded session, or None."""
        rows = await self.store.rows()
        assert len(rows) <= 1
        return rows[0] if rows else None

    def counts(self):
        return {name: count for name, count in self.hooks.counts().items() if count}


async def until(condition):
    """Once it is true; for what nobody tells a test."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait for
            await asyncio.sleep(0.001)


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    if bench.hooks is not None:
        await bench.hooks.close(0)


@pytest.fixture
async def serve():
    """`url = await serve(handler)` is a web server on this machine."""
    runners = []

    async def start(handler):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/bye"

    yield start
    for runner in runners:
        await runner.cleanup()


# -- what a hook is given --------------------------------------------------------------------------


async def test_a_hook_is_given_all_there_is_to_know(bench):
    ends: list[Any] = []
    await bench.start(ends.append)
    await bench.run(
        "s1", user="Ada", routes=("/lab/{bench}",), data={"laser": [7]}, opened=1000.0, seen=1060.5
    )
    (end,) = ends
    assert end == gateway.SessionEnd(
        session="s1",
        user="Ada",
        reason="ping_timeout",
        routes=("/lab/{bench}",),
        data={"laser": [7]},
        opened=1000.0,
        seen=1060.5,
        detected_after=1.5,
        attempt=1,
        fence=end.fence,
        key="s1:" + FunctionHook(ends.append).label,
    )
    assert await bench.row() is None
    assert bench.counts() == {"done": 1}


async def test_without_hooks_the_record_goes(bench):
    await bench.start()
    await bench.run()
    assert await bench.row() is None
    assert bench.counts() == {}


async def test_hooks_of_a_route_are_for_those_who_used_it(bench):
    seen = []
    everywhere = FunctionHook(lambda end: seen.append(("all", end.session)), name="all")
    lab = FunctionHook(lambda end: seen.append(("lab", end.session)), name="lab")
    await bench.start(everywhere, routes={"/lab": [lab], "/more": [lab, everywhere], "/chat": []})
    await bench.run("s1", routes=("/lab", "/more", "/gone"))
    await bench.run("s2", routes=("/chat",))
    assert sorted(seen) == [("all", "s1"), ("all", "s2"), ("lab", "s1")]
    assert bench.hooks.names == ("all", "lab")


async def test_each_hook_has_its_own_data(bench):
    def spoil(end):
        end.data.clear()
        raise ValueError

    seen = []
    await bench.start(spoil, lambda end: seen.append(end.data))
    await bench.run(data={"laser": {"on": True}})
    assert seen == [{"laser": {"on": True}}]
    assert (await bench.row()).session.data == {"laser": {"on": True}}


def test_what_may_be_given_for_cleanup():
    def end(end): ...

    command = CommandHook(("true",))
    assert as_hooks(None) == ()
    assert as_hooks([end, command]) == (FunctionHook(end), command)
    assert gateway.Route("/a", cleanup=end).hooks == (FunctionHook(end),)
    assert gateway.Route("/a", cleanup=[command]).hooks == (command,)
    route = gateway.Route("/a", cleanup=command)
    assert route.cleanup(end) is end
    assert route.hooks == (command, FunctionHook(end))
    for wrong in ("lab.off", 7, [7]):
        with pytest.raises(TypeError, match="is not a function"):
            as_hooks(wrong)
    for takes_other in (lambda: None, lambda a, b: None):
        with pytest.raises(ValueError, match="is called with \\(end\\), but does not take that"):
            as_hooks(takes_other)
    assert as_hooks(lambda a, b=1: None)
    assert as_hooks(functools.partial(lambda a, b: None, 1))


async def test_names_are_stable_show_no_secret_and_differ(bench):
    hooks = [
        WebhookHook("https://hooks.example.com/T0/secret?token=secret", secret="secret"),
        WebhookHook("https://hooks.example.com/T0/other"),
        WebhookHook("https://hooks.example.com/T0/other"),
        CommandHook(("/opt/lab/off", "--password=secret")),
        WebhookHook("https://hooks.example.com/", name="mine"),
    ]
    await bench.start(*hooks)
    assert bench.hooks.names == (
        "webhook:hooks.example.com",
        "webhook:hooks.example.com#2",
        "command:off",
        "mine",
    )
    assert "secret" not in repr(hooks[0])


# -- functions -------------------------------------------------------------------------------------


class Callable:
    def __init__(self):
        self.ends = []

    async def __call__(self, end):
        self.ends.append(end.session)


async def test_kinds_of_functions(bench):
    seen = []

    async def coroutine(end):
        await asyncio.sleep(0)
        seen.append(("coroutine", threading.current_thread() is threading.main_thread()))

    def plain(end):
        seen.append(("plain", threading.current_thread() is threading.main_thread()))

    called = Callable()
    returns_one = FunctionHook(lambda end: coroutine(end))  # noqa: PLW0108 - what is returned is awaited
    await bench.start(coroutine, plain, called, returns_one, functools.partial(coroutine))
    await bench.run()
    assert sorted(seen) == [("coroutine", True)] * 3 + [("plain", False)]
    assert called.ends == ["s1"]
    assert bench.counts() == {"done": 5}


def stop_iteration(end):
    next(iter(()))


async def cancelled(end):
    raise asyncio.CancelledError


async def interrupted(end):
    raise KeyboardInterrupt


class Unspeakable(Exception):
    def __str__(self):
        raise LookupError("not loaded")


def unspeakable(end):
    raise Unspeakable


RAISING = [
    (lambda end: 1 / 0, "ZeroDivisionError: division by zero"),
    (lambda end: end.nothing, "AttributeError: 'SessionEnd' object has no attribute 'nothing'"),
    (lambda end: end + 7, "TypeError: "),
    (lambda end: sys.exit(3), "SystemExit: 3"),
    (stop_iteration, "RuntimeError: the function raised StopIteration"),
    (cancelled, "was cancelled"),
    (interrupted, "KeyboardInterrupt"),
    (unspeakable, "Unspeakable"),
]


@pytest.mark.parametrize(("function", "error"), RAISING, ids=[error for _, error in RAISING])
async def test_whatever_a_hook_raises_stays_with_its_session(bench, function, error):
    seen = []
    broken = FunctionHook(
        lambda end: function(end) if end.session == "s1" else seen.append(end.session), name="x"
    )
    await bench.start(broken, FunctionHook(lambda end: seen.append("other hook"), name="y"))
    await asyncio.gather(bench.run("s1"), bench.run("s2"))
    assert sorted(seen) == ["other hook", "other hook", "s2"]
    row = await bench.row()
    assert (row.phase, row.attempt, row.retry_in) == (Phase.CLOSING, 1, 1.0)
    assert row.error.startswith(f"x: {error}")
    assert bench.counts() == {"done": 3, "retried": 1}


async def test_a_coroutine_that_hangs_is_cut(bench):
    cut = asyncio.Event()

    async def hang(end):
        try:
            await asyncio.Event().wait()
        finally:
            cut.set()

    await bench.start(FunctionHook(hang, limit=0.05, name="hang"))
    await bench.run()
    assert cut.is_set()
    assert (await bench.row()).error == "hang: has not returned within 0.05 s"


async def test_a_coroutine_that_ignores_its_end_is_left_behind(bench, monkeypatch, caplog):
    monkeypatch.setattr(module, "_LET_GO", 0.01)
    go = asyncio.Event()

    async def stubborn(end):
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    await bench.start(FunctionHook(stubborn, limit=0.01, name="stubborn"), limits=Limits(hooks=1))
    await bench.run("s1")
    assert "stubborn does not let itself be cancelled" in caplog.text
    assert bench.hooks.capacity == 1
    go.set()


async def test_blocking_hooks_hold_up_nobody(bench):
    """Twenty hooks sit in `time.sleep`; the loop and another session's hook do not notice."""
    go = threading.Event()

    def slow(end):
        go.wait(30)

    seen = asyncio.Event()

    async def quick(end):
        seen.set()

    await bench.start(routes={"/slow": [FunctionHook(slow)], "/quick": [FunctionHook(quick)]})
    slow_runs = [asyncio.create_task(bench.run(f"slow{number}", routes=("/slow",))) for number in range(20)]
    await until(lambda: bench.hooks.counts()["running"] == 20)
    late = 0.0
    quick_run = asyncio.create_task(bench.run("quick", routes=("/quick",)))
    async with asyncio.timeout(5):
        await seen.wait()
        for _ in range(20):
            before = time.monotonic()
            await asyncio.sleep(0.005)
            late = max(late, time.monotonic() - before)
    assert late < 1.0  # each of the hooks would block the loop for 30 s
    go.set()
    await asyncio.gather(quick_run, *slow_runs)
    assert bench.counts() == {"done": 21}


async def test_a_call_that_outlives_its_limit_is_waited_for_not_repeated(bench):
    go, calls = threading.Event(), []

    def slow(end):
        calls.append(end.attempt)
        go.wait(30)

    await bench.start(FunctionHook(slow, limit=0.05, name="slow"))
    await bench.run()
    assert (await bench.row()).error == "slow: has not returned within 0.05 s"
    await bench.later(2)
    assert (await bench.row()).attempt == 2
    go.set()
    await bench.later(3)
    assert await bench.row() is None
    assert calls == [1]
    assert bench.counts() == {"done": 1, "retried": 2, "redelivered": 2}


async def test_a_call_that_fails_after_its_limit_is_made_again(bench):
    go, calls = threading.Event(), []

    def fails_once(end):
        calls.append(end.attempt)
        if len(calls) == 1:
            go.wait(30)
            raise OSError("the port is gone")

    await bench.start(FunctionHook(fails_once, limit=0.05))
    await bench.run()
    go.set()
    (late,) = bench.hooks._tools.calls(FunctionHook(fails_once, limit=0.05))._late.values()
    async with asyncio.timeout(5):
        await asyncio.wait([late.future])
    await bench.later(2)
    assert await bench.row() is None
    assert calls == [1, 2]


async def test_hooks_that_never_return_stop_no_other_hook(bench):
    go = threading.Event()
    seen = []
    stuck = FunctionHook(lambda end: go.wait(30), limit=0.02, name="stuck")
    await bench.start(
        stuck, FunctionHook(lambda end: seen.append(end.session), name="good"), limits=Limits(hooks=2)
    )
    for number in range(4):
        await bench.run(f"s{number}")
    assert seen == ["s0", "s1", "s2", "s3"]
    errors = [row.error for row in await bench.store.rows()]
    assert errors[:2] == ["stuck: has not returned within 0.02 s"] * 2
    assert errors[2:] == ["stuck: no thread is free: 2 earlier calls have not returned"] * 2
    go.set()


# -- again, and giving up --------------------------------------------------------------------------


async def test_waits_double_up_to_six_hours_then_it_is_given_up(bench, caplog):
    await bench.start(FunctionHook(lambda end: 1 / 0, name="broken"))
    await bench.run()
    waits = []
    while (row := await bench.row()).phase is Phase.CLOSING:
        waits.append(row.retry_in)
        claims = await bench.later(row.retry_in)
        assert [claim.attempt for claim in claims] == [len(waits) + 1]
    attempts = Limits().attempts
    assert waits == [min(2.0**number, 21600.0) for number in range(attempts - 1)]
    assert 20 * 3600 < sum(waits) < 28 * 3600
    assert (row.phase, row.error) == (Phase.FAILED, "broken: ZeroDivisionError: division by zero")
    assert bench.counts() == {"failed": 1, "retried": attempts - 1, "redelivered": attempts - 1}
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line == (
        f"session s1…: broken is given up after attempt {attempts}: ZeroDivisionError: division by zero; "
        "see `python -m gateway sessions --failed`"
    )


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
async def test_waits_have_jitter(bench, chance, wait):
    await bench.start(lambda end: 1 / 0, chance=chance)
    await bench.run()
    assert (await bench.row()).retry_in == pytest.approx(wait)


async def test_the_key_stays_the_attempt_and_the_fence_grow(bench):
    ends = []

    def fails_twice(end):
        ends.append(end)
        if len(ends) < 3:
            raise OSError

    await bench.start(fails_twice)
    await bench.run()
    await bench.later(2)
    await bench.later(3)
    assert [end.attempt for end in ends] == [1, 2, 3]
    assert len({end.key for end in ends}) == 1
    assert ends[0].fence < ends[1].fence < ends[2].fence
    assert await bench.row() is None


async def test_only_what_failed_is_run_again(bench):
    seen = []

    def fails_once(end):
        seen.append(("bad", end.attempt))
        if end.attempt == 1:
            raise OSError

    await bench.start(fails_once, lambda end: seen.append(("good", end.attempt)))
    await bench.run()
    await bench.later(2)
    assert sorted(seen) == [("bad", 1), ("bad", 2), ("good", 1)]


async def test_one_that_is_given_up_waits_for_the_others(bench, caplog):
    ends = []

    def fails_twice(end):
        if end.attempt < 3:
            raise OSError("not yet")

    def fails(end):
        ends.append(end.attempt)
        raise OSError

    await bench.start(FunctionHook(fails, name="short", attempts=1), FunctionHook(fails_twice, name="long"))
    await bench.run()
    assert (await bench.row()).phase is Phase.CLOSING
    await bench.later(2)
    await bench.later(3)
    assert (await bench.row()).phase is Phase.FAILED
    assert ends == [1]
    assert caplog.text.count("is given up") == 1
    # A person tries it again: the one that has failed, and no other.
    assert await bench.store.retry("s1")
    (claim,) = await bench.later(0)
    assert (claim.attempt, claim.pending) == (4, ("short",))
    assert ends == [1, 4]
    assert (await bench.row()).phase is Phase.FAILED


async def test_a_hook_that_is_not_configured_any_more_is_kept_for_a_person(bench, caplog):
    await bench.start(FunctionHook(lambda end: 1 / 0, name="old"))
    await bench.run()
    await bench.start(FunctionHook(lambda end: None, name="new"))
    await bench.later(2)
    row = await bench.row()
    assert (row.phase, row.error) == (Phase.FAILED, "old: is not configured here")
    assert "old is given up after attempt 2: is not configured here" in caplog.text


async def test_a_claim_that_is_void_changes_nothing(bench, caplog):
    await bench.start(lambda end: None)
    claim = await bench.claim()
    await bench.hooks.run(replace(claim, fence=claim.fence - 1))
    assert (await bench.row()).phase is Phase.CLOSING
    assert "another node has taken over" in caplog.text


@pytest.mark.parametrize(("attempts", "phase"), [(None, Phase.CLOSING), (1, Phase.FAILED)])
async def test_what_failed_while_the_store_was_emptied_is_tried_again_all_the_same(
    bench, attempts, phase, caplog
):
    hooks = await bench.start(FunctionHook(lambda end: 1 / 0, attempts=attempts, name="lamp"))
    claim = await bench.claim()
    await bench.store.finish(NODE, claim)
    asked = []

    async def again(node, claim):
        asked.append(node)
        if len(asked) == 1:
            raise StoreUnavailable("not just now")
        hooks.node = "anew"
        await bench.store.join("anew", 1000.0)
        await bench.store.add("anew", claim.session)
        return await bench.store.claim("anew", claim.session, claim.reason)

    hooks.again = again
    await hooks.run(claim)
    assert asked == [NODE, NODE]
    row = await bench.row()
    assert (row.phase, row.error) == (phase, "lamp: ZeroDivisionError: division by zero")
    assert "taken over" not in caplog.text


# -- many of them ----------------------------------------------------------------------------------


async def test_no_more_at_once_than_the_limit(bench):
    inside = most = 0

    async def count(end):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1

    hooks = await bench.start(
        FunctionHook(count, name="a"), FunctionHook(count, name="b"), limits=Limits(hooks=3)
    )
    assert hooks.capacity == 3
    runs = [asyncio.create_task(bench.run(f"s{number}")) for number in range(50)]
    await until(lambda: hooks.counts()["waiting"])
    assert hooks.capacity == 0
    await asyncio.gather(*runs)
    assert most == 3
    assert bench.counts() == {"done": 100}
    assert hooks.capacity == 3


async def test_cancelling_who_waits_leaves_the_others_their_turn(bench):
    go = asyncio.Event()
    seen = []

    async def wait(end):
        await go.wait()
        seen.append(end.session)

    await bench.start(wait, limits=Limits(hooks=1))
    runs = [asyncio.create_task(bench.run(f"s{number}")) for number in range(4)]
    await until(lambda: bench.hooks.counts()["waiting"] == 3)
    runs[0].cancel()  # its hook goes on
    runs[2].cancel()  # it has not had its turn, and leaves the claim in the store
    await asyncio.gather(runs[0], runs[2], return_exceptions=True)
    go.set()
    await asyncio.gather(runs[1], runs[3])
    assert seen == ["s0", "s1", "s3"]
    assert (await bench.row()).session.id == "s2"
    assert bench.hooks.capacity == 1


# -- the store is away -----------------------------------------------------------------------------


class Away(MemoryStore):
    """Refuses what hooks write until it is back."""

    def __init__(self, error, times):
        super().__init__()
        self.error = error
        self.times = times

    def _fail(self):
        if self.times:
            self.times -= 1
            raise self.error

    async def finish(self, node, claim):
        self._fail()
        return await super().finish(node, claim)

    async def put_off(self, node, claim, delay, pending, error):
        self._fail()
        return await super().put_off(node, claim, delay, pending, error)

    async def bury(self, node, claim, pending, error):
        self._fail()
        return await super().bury(node, claim, pending, error)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreRefuses("full"), StoreUnusable("damaged")])
@pytest.mark.parametrize(
    ("function", "attempts", "phase"),
    [
        (lambda end: None, None, None),
        (lambda end: 1 / 0, None, Phase.CLOSING),
        (lambda end: 1 / 0, 1, Phase.FAILED),
    ],
)
async def test_what_happened_is_recorded_when_the_store_is_back(bench, error, function, attempts, phase):
    calls = []
    bench.store = Away(error, 6)

    def call(end):
        calls.append(end)
        function(end)

    await bench.start(FunctionHook(call, attempts=attempts))
    await bench.run()
    assert len(calls) == 1
    assert bench.pauses == [0.5, 1.0, 2.0, 5.0, 5.0, 5.0]
    row = await bench.row()
    assert (row and row.phase) is phase


async def test_hooks_of_others_run_while_one_cannot_be_recorded(bench):
    bench.store = Away(StoreUnavailable("away"), 10_000)
    seen = []
    hooks = await bench.start(lambda end: seen.append(end.session), limits=Limits(hooks=1))
    runs = [asyncio.create_task(bench.run(f"s{number}")) for number in range(3)]
    await until(lambda: len(seen) == 3)
    bench.store.times = 0
    await asyncio.gather(*runs)
    assert sorted(seen) == ["s0", "s1", "s2"]
    assert await bench.row() is None
    assert hooks.counts()["running"] == 0


# -- the stop --------------------------------------------------------------------------------------


async def test_a_stop_waits_for_what_runs(bench):
    go = asyncio.Event()
    seen = []

    async def wait(end):
        await go.wait()
        seen.append(end.session)

    await bench.start(wait, limits=Limits(hooks=1))
    claims = [await bench.claim(f"s{number}") for number in range(3)]
    runs = [asyncio.create_task(bench.hooks.run(claim)) for claim in claims]
    closing = asyncio.create_task(bench.hooks.close(10))
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(closing, *runs)
    assert seen == ["s0", "s1", "s2"]
    assert await bench.row() is None


async def test_what_a_stop_cuts_is_left_for_the_next_start(bench, caplog):
    calls = []

    async def hang(end):
        calls.append((end.session, end.attempt, end.key))
        if end.attempt == 1:
            await asyncio.Event().wait()

    bench.store = MemoryStore(lambda: bench.now, lasting=True)
    hooks = await bench.start(FunctionHook(hang, name="hang"), limits=Limits(hooks=1))
    claims = [await bench.claim(f"s{number}") for number in range(2)]
    runs = [asyncio.create_task(hooks.run(claim)) for claim in claims]
    await hooks.close(0.01)
    await asyncio.gather(*runs)
    await hooks.run(claims[0])  # too late: it does nothing
    assert "2 sessions are not cleaned up in time: the next start does" in caplog.text
    assert hooks.capacity == 0
    assert [row.phase for row in await bench.store.rows()] == [Phase.CLOSING] * 2
    await bench.store.leave(NODE)

    next_start = Hooks([FunctionHook(hang, name="hang")], bench.store, "next", Settings())
    await bench.store.join("next", 1e9)
    for claim in await bench.store.claim_orphans("next", 10):
        await next_start.run(claim)
    await next_start.close(1)
    assert calls == [("s0", 1, "s0:hang"), ("s0", 2, "s0:hang"), ("s1", 2, "s1:hang")]
    assert await bench.row() is None


# -- webhooks --------------------------------------------------------------------------------------


async def test_a_webhook_is_signed_and_told_everything(bench, serve):
    requests = []

    async def take(request):
        requests.append((request.method, request.path_qs, request.headers.copy(), await request.read()))
        return web.Response(status=204)

    url = await serve(take)
    hook = WebhookHook(
        url + "?x=1", secret="s€cret", headers=(("Authorization", "Bearer 7"),), private=True, name="lab"
    )
    await bench.start(hook)
    before = int(time.time())
    await bench.run("s1", user="\ud800Ada\0", data={"laser": "ü\u2028"}, routes=("/lab",))
    ((method, path, headers, body),) = requests
    assert (method, path) == ("POST", "/bye?x=1")
    told = json.loads(body)
    assert (told["session"], told["reason"], told["routes"]) == ("s1", "ping_timeout", ["/lab"])
    assert (told["user"], told["data"]) == ("\ud800Ada\0", {"laser": "ü\u2028"})
    assert set(told) == set(gateway.SessionEnd.__dataclass_fields__)
    assert headers["Content-Type"] == "application/json"
    assert headers["Idempotency-Key"] == told["key"] == "s1:lab"
    assert headers["Authorization"] == "Bearer 7"
    assert headers["User-Agent"] == "gateway"
    timestamp = headers["Gateway-Timestamp"]
    assert before <= int(timestamp) <= time.time()
    assert headers["Gateway-Signature"] == module.signature("s€cret", timestamp, body)
    assert await bench.row() is None


def test_the_signature_is_this_one():
    """Checked with: printf '%s' '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret"""
    expected = "v1=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686"
    assert module.signature("secret", "1700000000", b'{"a":1}') == expected


async def test_without_a_secret_nothing_is_signed(bench, serve):
    headers = []

    async def take(request):
        headers.append(request.headers.copy())
        return web.Response()

    await bench.start(WebhookHook(await serve(take), private=True))
    await bench.run()
    assert "Gateway-Signature" not in headers[0]


@pytest.mark.parametrize(
    ("status", "headers", "error", "wait"),
    [
        (500, {}, "answered 500", 1.0),
        (400, {}, "answered 400", 1.0),
        (404, {"Retry-After": "600"}, "answered 404", 1.0),
        (503, {"Retry-After": "600"}, "answered 503", 600.0),
        (429, {"Retry-After": " 7 "}, "answered 429", 7.0),
        (429, {"Retry-After": "99999999999999"}, "answered 429", 21600.0),
        (429, {"Retry-After": "Fri, 01 Jan 2999 00:00:00 GMT"}, "answered 429", 21600.0),
        (429, {"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"}, "answered 429", 1.0),
        (429, {"Retry-After": "-5"}, "answered 429", 1.0),
        (429, {"Retry-After": "soon"}, "answered 429", 1.0),
        (302, {"Location": "/elsewhere"}, "answered 302: redirects are not followed; give the URL", 1.0),
    ],
)
async def test_answers_after_which_it_is_tried_again(bench, serve, status, headers, error, wait):
    keys, paths = [], []

    async def refuse(request):
        keys.append(request.headers["Idempotency-Key"])
        paths.append(request.path)
        return web.Response(status=status if len(keys) == 1 else 200, headers=headers)

    await bench.start(WebhookHook(await serve(refuse), private=True, name="lab"))
    await bench.run()
    row = await bench.row()
    assert row.error.startswith(f"lab: {error}")
    assert row.retry_in == wait
    await bench.later(wait)
    assert await bench.row() is None
    assert keys == ["s1:lab"] * 2
    assert paths == ["/bye"] * 2


async def test_after_410_it_is_never_tried_again(bench, serve):
    async def gone(request):
        return web.Response(status=410)

    await bench.start(WebhookHook(await serve(gone), private=True))
    await bench.run()
    row = await bench.row()
    assert (row.phase, row.error) == (Phase.FAILED, "webhook:127.0.0.1: answered 410: it wants no more")


async def test_a_webhook_that_does_not_answer_is_cut(bench, serve):
    async def hang(request):
        await asyncio.Event().wait()

    await bench.start(WebhookHook(await serve(hang), private=True, limit=0.1))
    await bench.run()
    assert (await bench.row()).error == "webhook:127.0.0.1: has not returned within 0.1 s"


async def test_a_webhook_that_nobody_listens_to(bench):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    await bench.start(WebhookHook(f"http://127.0.0.1:{port}/", private=True))
    await bench.run()
    assert "cannot connect: Connection refused" in (await bench.row()).error


async def test_an_answer_that_is_no_http(bench):
    async def nonsense(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"nonsense\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(nonsense, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await bench.start(WebhookHook(f"http://127.0.0.1:{port}/", private=True))
        await bench.run()
    assert "webhook:127.0.0.1: no answer: " in (await bench.row()).error


async def test_an_endless_answer_is_not_read(bench, serve):
    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:  # until the connection is closed, which raises
            await response.write(b"x" * 65536)

    await bench.start(WebhookHook(await serve(endless), private=True, limit=20))
    async with asyncio.timeout(10):
        await bench.run()
    assert await bench.row() is None


# B105


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "https://localhost/",
        "https://db.localhost/",
        "http://10.1.2.3:8080/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[fe80::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://0.0.0.0/",
    ],
)
def test_a_private_address_is_refused(url):
    with pytest.raises(ValueError, match="is an address of a private network; write `private: true`"):
        WebhookHook(url)
    WebhookHook(url, private=True)


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("rebound.example", "is an address of a private network"),
        ("0x7f000001", "is an address of a private network"),
        ("2130706433", "is not a canonical IPv4 address"),
        ("127.1", "is not a canonical IPv4 address"),
    ],
)
async def test_a_name_of_a_private_address_is_refused_when_it_is_connected(
    bench, serve, host, error, monkeypatch
):
    """Whatever DNS says at that moment: no connection is made."""
    asked = []

    async def take(request):
        asked.append(request)
        return web.Response()

    port = int((await serve(take)).split(":")[2].split("/")[0])
    answers = [
        (family, socket.SOCK_STREAM, 6, "", (address, port))
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "10.0.0.7"))
    ]

    async def resolve(*_, **__):
        return answers

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    await bench.start(WebhookHook(f"http://{host}:{port}/", name="lab"))
    await bench.run()
    assert not asked
    assert error in (await bench.row()).error


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("172.16.0.1", True),
        ("100.64.0.1", True),
        ("224.0.0.1", True),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("2002:7f00:1::", True),
        ("64:ff9b::808:808", False),
        ("::ffff:8.8.8.8", False),
    ],
)
def test_which_addresses_are_private(address, private):
    assert is_private(address) is private


@pytest.mark.parametrize(
    ("url", "fields", "said"),
    [
        ("hooks.example.com/x", {}, "it is no URL: write https://host/path"),
        ("ftp://hooks.example.com/x", {}, "it is no URL"),
        ("https://", {}, "it is no URL"),
        ("https://hooks.example.com:99999/", {}, "it is no URL"),
        ("https://ada:secret@hooks.example.com/", {}, "name and password have no place in the URL"),
        ("https://hooks.example.com/", {"secret": ""}, "the secret is empty"),
        ("https://hooks.example.com/", {"headers": (("X-A", "a\r\nX-B: b"),)}, "X-A holds a line break"),
        ("https://hooks.example.com/", {"headers": (("X A", "a"),)}, "'X A' is no name of a header"),
        ("https://hooks.example.com/", {"headers": (("gateway-signature", "a"),)}, "is set by the gateway"),
        ("https://hooks.example.com/", {"headers": (("Host", "a"),)}, "is set by the gateway"),
    ],
)
def test_a_webhook_that_cannot_work(url, fields, said):
    with pytest.raises(ValueError) as caught:
        WebhookHook(url, **fields)
    assert said in str(caught.value)
    assert "secret@" not in str(caught.value)


# -- commands --------------------------------------------------------------------------------------


def python(code, *arguments):
    """A command that runs this."""
    return CommandHook((sys.executable, "-c", code, *arguments), name="command")


async def test_a_command_is_told_everything(bench, tmp_path):
    hook = python(
        "import json, os, sys; keys = [key for key in os.environ if key.startswith('GATEWAY_')];"
        "json.dump([json.load(sys.stdin), {key: os.environ[key] for key in keys},"
        "os.getpgrp() == os.getpid(), sys.argv], open(sys.argv[1], 'w'))",
        str(tmp_path / "told"),
        "$HOME; *",
    )
    await bench.start(hook)
    await bench.run("s1", user="A\0da\ud800", data={"big": "x" * 200_000})
    told, env, own_group, argv = json.loads((tmp_path / "told").read_text())
    assert (told["session"], told["attempt"], told["data"]) == ("s1", 1, {"big": "x" * 200_000})
    assert env == {
        "GATEWAY_SESSION": "s1",
        "GATEWAY_REASON": "ping_timeout",
        "GATEWAY_USER": "Ada?",
        "GATEWAY_KEY": "s1:command",
        "GATEWAY_ATTEMPT": "1",
    }
    assert own_group
    assert argv[2] == "$HOME; *"  # no shell has seen it
    assert await bench.row() is None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import sys; print('one\\ntwo\\n\\n', file=sys.stderr); sys.exit(1)", "exit code 1: two"),
        ("import sys; sys.stderr.write('x' * 1_000_000 + '\\nlast'); sys.exit(1)", "exit code 1: last"),
        ("import sys; sys.stderr.buffer.write(b'\\xff\\n'); sys.exit(1)", "exit code 1: \ufffd"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
async def test_a_command_that_fails(bench, code, error):
    await bench.start(python(code))
    await bench.run("s1", data={"unread": "x" * 500_000})
    assert (await bench.row()).error == f"command: {error}"


async def test_a_command_that_does_not_exist(bench):
    await bench.start(CommandHook(("/nowhere/off",)))
    await bench.run()
    assert (await bench.row()).error == "command:off: cannot start /nowhere/off: No such file or directory"


def is_running(pid):
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_command_that_hangs_is_killed_with_its_children(bench, tmp_path):
    code = (
        "import os, pathlib, subprocess, sys, time;"
        "child = subprocess.Popen(['sleep', '60']);"
        "pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()} {child.pid}');"
        "time.sleep(60)"
    )
    await bench.start(replace(python(code, str(tmp_path / "pids")), limit=1.5))
    await bench.run()
    assert (await bench.row()).error == "command: has not returned within 1.5 s"
    pids = (tmp_path / "pids").read_text().split()
    await until(lambda: not any(map(is_running, pids)))


async def test_what_a_command_leaves_running_is_not_waited_for(bench, tmp_path):
    code = (
        "import pathlib, subprocess, sys; child = subprocess.Popen(['sleep', '60']);"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))"
    )
    await bench.start(python(code, str(tmp_path / "pid")))
    await bench.run()
    assert await bench.row() is None
    os.kill(int((tmp_path / "pid").read_text()), 9)


async def test_a_stop_kills_commands(bench, tmp_path):
    code = (
        "import os, pathlib, sys, time; pathlib.Path(sys.argv[1] + '.new').write_text(str(os.getpid()));"
        "os.rename(sys.argv[1] + '.new', sys.argv[1]); time.sleep(60)"
    )
    await bench.start(python(code, str(tmp_path / "pid")))
    run = asyncio.create_task(bench.run())
    await until((tmp_path / "pid").exists)
    await bench.hooks.close(0)
    await run
    assert not is_running((tmp_path / "pid").read_text())
    assert (await bench.row()).phase is Phase.CLOSING


@pytest.mark.parametrize(("argv", "said"), [((), "is empty"), (("",), "is empty"), (("a", "b\0"), "NUL")])
def test_a_command_that_cannot_work(argv, said):
    with pytest.raises(ValueError, match=said):
        CommandHook(argv)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_many_commands_leave_no_pipe_open(bench):
    before = open_files()
    await bench.start(CommandHook(("true",)), CommandHook(("false",)), CommandHook(("/nowhere",)))
    await asyncio.gather(*(bench.run(f"s{number}") for number in range(20)))
    assert bench.counts() == {"done": 20, "retried": 40}
    assert open_files() <= before + 1  # the loop's own watch over children


def test_commands_under_uvloop(tmp_path):
    """The loop of `python -m gateway`, whose processes are not those of asyncio."""
    import uvloop

    leaves = "import pathlib, subprocess, sys; child = subprocess.Popen(['sleep', '60']);"
    leaves += "pathlib.Path(sys.argv[1]).write_text(str(child.pid));"

    async def run():
        bench = Bench()
        await bench.start(
            replace(python("import sys; sys.stdin.read(); sys.exit('the last line')"), name="fails"),
            replace(python(leaves, str(tmp_path / "left")), name="leaves"),
            replace(python(leaves + "child.wait()", str(tmp_path / "hangs")), name="hangs", limit=2.0),
            CommandHook(("/nowhere",)),
        )
        await bench.run("s1", data={"unread": "x" * 500_000})
        await bench.hooks.close(0)
        return (await bench.row()).error.split("; ")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == [
            "fails: exit code 1: the last line",
            "hangs: has not returned within 2 s",
            "command:nowhere: cannot start /nowhere: No such file or directory",
        ]
    os.kill(int((tmp_path / "left").read_text()), 9)
    assert not is_running((tmp_path / "hangs").read_text())


# -- in all ----------------------------------------------------------------------------------------


async def test_a_thousand_slow_webhooks(bench, serve):
    """The claims wait in line, a hundred at a time; a hook of another kind is not behind them in time."""
    most = inside = 0

    async def slow(request):
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return web.Response()

    await bench.start(WebhookHook(await serve(slow), private=True))
    claims = [await bench.claim(f"s{number}") for number in range(1000)]
    await asyncio.gather(*map(bench.hooks.run, claims))
    assert most <= 100
    assert bench.counts() == {"done": 1000}
    assert await bench.row() is None
