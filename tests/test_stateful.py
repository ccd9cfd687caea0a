"""Whatever page, network and gateway do to each other, in any order: nothing is lost in silence.

Hypothesis chooses what happens, in the world of `tests/support/world.py`. Always: what was delivered is a
prefix of what was sent, on each socket and in both directions, and a hook has succeeded at most once. In the
end, when the network is good again: everything has arrived on sockets that are open. And when nobody is there
any more: every request was answered, each session's hook has succeeded exactly once, and nothing is left.

`WALKS=5000` and `STEPS=100` in the environment take longer walks.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway import registry
from gateway.session_store import MemoryStore
from tests.support.parts import in_ci
from tests.support.world import SETTINGS, Book, NoWatch, Page, Polling, Server, Socket, VirtualLoop, settle

WALKS = int(os.environ.get("WALKS", "300"))
STEPS = int(os.environ.get("STEPS", "40"))

RESTARTS = 3  # of the gateway in one walk
PULSE = 0.25  # s between two moves of a page that lives
GONE = 60.0  # s, which is more than every patience of the gateway in a row
KINDS = st.sampled_from(["polling", "websocket"])
SIZES = st.sampled_from([0, 10, 500])
FEW = st.integers(min_value=1, max_value=8)


class World(RuleBasedStateMachine):
    """Two pages of one gateway, which has successors."""

    @initialize()
    def begin(self) -> None:
        self.loop = VirtualLoop()
        self.wall = 1_700_000_000.0
        self.store = MemoryStore(self.loop.time, lasting=True)
        self.book = Book()
        self.servers = 0
        self.run(self._start())
        self.pages = [Page("a"), Page("b")]
        for page in self.pages:
            page.open()
        self.run(self._live(1.0, "polling"))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        async def work_and_settle() -> None:
            await work
            await settle()

        self.loop.run_until_complete(work_and_settle())

    async def _start(self) -> None:
        self.servers += 1
        self.server = Server(self.store, self.book, self.servers, lambda: self.wall)
        await self.server.start()

    async def _move(self, page: Page) -> None:
        for _ in range(3):
            page.move()
            await settle()

    async def _live(self, seconds: float, kind: str) -> None:
        """The network is good, and both pages do what they should."""
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            for page in self.pages:
                if page.link is None:
                    page.connect(self.server, kind)
                await self._move(page)
            await _sleep(PULSE)

    # -- what users and the application do ---------------------------------------------------------

    pages_ = st.integers(min_value=0, max_value=1)

    @rule(which=pages_)
    def open_socket(self, which: int) -> None:
        if len(self.pages[which].sockets) < 12:
            self.pages[which].open()

    @rule(which=pages_, nth=st.integers(min_value=0), many=FEW, size=SIZES)
    def page_sends(self, which: int, nth: int, many: int, size: int) -> None:
        sockets = self._open_sockets(which)
        if sockets:
            for _ in range(many):
                self.pages[which].say(sockets[nth % len(sockets)], size)

    @rule(nth=st.integers(min_value=0), many=FEW, size=SIZES)
    def application_sends(self, nth: int, many: int, size: int) -> None:
        keys = sorted(self.book.channels)
        if keys:
            self.run(self._send(keys[nth % len(keys)], many, size))

    async def _send(self, key: str, many: int, size: int) -> None:
        channel = self.book.channels.get(key)
        for _ in range(many):
            if channel is None or channel.is_over:  # its buffer was full
                return
            text = f"{len(self.book.sent[key])} {'ß' * size}"
            self.book.sent[key].append(text)
            channel.send(text)

    @rule(which=pages_, nth=st.integers(min_value=0))
    def page_closes(self, which: int, nth: int) -> None:
        sockets = self._open_sockets(which)
        if sockets:
            self.pages[which].close(sockets[nth % len(sockets)])

    @rule(nth=st.integers(min_value=0))
    def application_closes(self, nth: int) -> None:
        keys = sorted(self.book.channels)
        if keys:
            self.run(self._close(keys[nth % len(keys)]))

    async def _close(self, key: str) -> None:
        self.book.channels[key].close(4000, "so be it")

    @rule(which=pages_, told=st.booleans())
    def reload(self, which: int, told: bool) -> None:
        self.run(self._call(lambda: self.pages[which].reload(told=told)))

    @rule(which=pages_)
    def leave(self, which: int) -> None:
        self.run(self._call(self.pages[which].leave))

    # -- what the network does ---------------------------------------------------------------------

    @rule(which=pages_, kind=KINDS)
    def connect(self, which: int, kind: str) -> None:
        page = self.pages[which]
        if page.link is None:
            self.run(self._call(lambda: page.connect(self.server, kind)))

    @rule(which=pages_)
    def move(self, which: int) -> None:
        self.run(self._move(self.pages[which]))

    @rule(which=pages_, told=st.booleans())
    def drop(self, which: int, told: bool) -> None:
        self.run(self._call(lambda: self.pages[which].cut(told=told)))

    @rule(which=pages_, told=st.booleans())
    def lose_the_answer_of_a_get(self, which: int, told: bool) -> None:
        link = self.pages[which].link
        if isinstance(link, Polling):
            self.run(self._call(lambda: link.lose_answer_of_get(told=told)))

    @rule(which=pages_)
    def lose_the_answer_of_a_post(self, which: int) -> None:
        link = self.pages[which].link
        if isinstance(link, Polling):
            self.run(self._call(link.lose_answer_of_post))

    @rule(which=pages_)
    def probe(self, which: int) -> None:
        link = self.pages[which].link
        if isinstance(link, Polling):
            self.run(self._call(link.probe))

    @rule(which=pages_)
    def fail_the_probe(self, which: int) -> None:
        link = self.pages[which].link
        if isinstance(link, Polling):
            self.run(self._call(link.fail_probe))

    async def _call(self, call: Any) -> None:
        call()

    # -- what happens to the gateway, and time -----------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(_sleep(seconds))

    @rule(seconds=st.sampled_from([0.3, 0.5, 1.0, 2.0]), kind=KINDS)
    def all_is_well(self, seconds: float, kind: str) -> None:
        self.run(self._live(seconds, kind))

    @rule(seconds=st.sampled_from([0.3, 1.0]), kind=KINDS, size=SIZES, many=FEW)
    def there_is_traffic(self, seconds: float, kind: str, size: int, many: int) -> None:
        self._talk(many, size)
        self.run(self._live(seconds, kind))

    def _talk(self, many: int, size: int) -> None:
        """Everybody has something to say, to everybody."""
        for which, page in enumerate(self.pages):
            for socket in self._open_sockets(which):
                for _ in range(many):
                    page.say(socket, size)
        for key in sorted(self.book.channels):
            self.run(self._send(key, many, size))

    @rule(told=st.booleans(), kinds=st.tuples(KINDS, KINDS), size=SIZES, many=FEW, moved=st.booleans())
    def all_that_is_under_way_is_lost(
        self, told: bool, kinds: tuple[str, str], size: int, many: int, moved: bool
    ) -> None:
        self.run(self._live(0.5, kinds[0]))
        self._talk(many, size)
        for page in self.pages:
            if moved:
                self.run(self._call(page.move))
                self._talk(many, size)
            self.run(self._call(lambda page=page: page.cut(told=told)))
        self.run(self._live(0.5, kinds[1]))

    @rule(told=st.booleans(), size=SIZES, many=FEW)
    def answers_are_lost(self, told: bool, size: int, many: int) -> None:
        self.run(self._live(0.5, "polling"))
        self._talk(many, size)
        for page in self.pages:
            self.run(self._call(page.move))
            if isinstance(page.link, Polling):
                self.run(self._call(lambda link=page.link: link.lose_answer_of_get(told=told)))
                self.run(self._call(page.link.lose_answer_of_post))
        self.run(self._live(0.5, "polling"))

    @rule(size=SIZES, many=FEW, failing=st.booleans())
    def everybody_changes_transport_while_talking(self, size: int, many: int, failing: bool) -> None:
        self.run(self._live(0.5, "polling"))
        for page in self.pages:
            self._talk(many, size)
            if isinstance(page.link, Polling):
                self.run(self._call(page.link.probe))
                self._talk(many, size)
                self.run(self._call(page.move))
                if failing and isinstance(page.link, Polling):  # or else it has gone over already
                    self.run(self._call(page.link.fail_probe))
            self._talk(many, size)
        self.run(self._live(0.5, "polling"))

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def the_loop_is_blocked(self, seconds: float) -> None:
        self.loop.pass_by(seconds)

    @rule(seconds=st.sampled_from([-3_600.0, 3_600.0]))
    def the_wall_clock_steps(self, seconds: float) -> None:
        self.wall += seconds

    @precondition(lambda self: self.servers <= RESTARTS)
    @rule()
    def the_gateway_is_killed_and_restarted(self) -> None:
        self.run(self._replace(self.server.kill))

    @precondition(lambda self: self.servers <= RESTARTS)
    @rule()
    def the_gateway_is_stopped_and_restarted(self) -> None:
        self.run(self._replace(self.server.stop))

    async def _replace(self, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await end()
        for page in self.pages:
            page.cut(told=False)
        await self._start()

    # -- what must be true -------------------------------------------------------------------------

    @invariant()
    def what_was_delivered_is_a_prefix_of_what_was_sent(self) -> None:
        for socket in self._sockets():
            got = self.book.got.get(socket.key, [])
            assert got == socket.wanted[: len(got)], "from the page"
            sent = self.book.sent.get(socket.key, [])
            assert socket.got == sent[: len(socket.got)], "to the page"

    @invariant()
    def promises_are_kept(self) -> None:
        assert self.book.broken == []
        assert all(times == 1 for times in self.book.cleaned.values())

    @invariant()
    def memory_is_bounded(self) -> None:
        limits = SETTINGS.limits
        for connection in self.server.registry.connections.values():
            assert connection._queued_bytes <= 2 * limits.outbound_bytes
        assert len(self.server.registry.connections) <= self.server.registry.admission.total

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        try:
            self.run(self._live(30.0, "polling"))
            self._all_has_arrived()
            for page in self.pages:
                page.link = None  # both have gone, and nobody is told
            self.run(_sleep(GONE))
            self._nothing_is_left()
            self.run(self.server.stop())
        finally:
            self.loop.run_until_complete(self.server.kill())  # a walk that failed has tasks yet
            self.loop.close()

    def _all_has_arrived(self) -> None:
        for socket in self._sockets():
            if socket.gone or socket.ended is not None:
                continue
            assert socket.accepted, "neither opened nor closed"
            assert self.book.got[socket.key] == socket.wanted
            assert socket.got == self.book.sent[socket.key]

    def _nothing_is_left(self) -> None:
        server = self.server
        assert all(answer.status is not None for answer in server.answers), "a request without an answer"
        assert not server.registry.connections
        assert server.registry.admission.total == 0
        assert len(server.sessions) == 0
        assert not server.ledger.entries
        assert not self.store._records
        assert not self.book.channels
        had = set(self.book.sessions.values())
        assert self.book.cleaned == dict.fromkeys(had, 1), "exactly once, for each that had a socket"

    def _sockets(self) -> list[Socket]:
        return [socket for page in self.pages for socket in page.sockets]

    def _open_sockets(self, which: int) -> list[Socket]:
        return [each for each in self.pages[which].sockets if each.ended is None and not each.gone]


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@pytest.mark.timeout(600)
def test_any_walk(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(registry, "StallWatch", NoWatch)
    caplog.set_level(logging.CRITICAL, "gateway")  # it is told of every stall
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        World,
        settings=settings(
            max_examples=WALKS,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=in_ci(),
            suppress_health_check=list(HealthCheck),
        ),
    )
