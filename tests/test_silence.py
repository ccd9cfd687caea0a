"""Sessions whose network falls silent: noticed in time, kept for their grace, then over, once.

The clients are raw sockets. What is measured is the gateway's own time: from a client's last sign of life,
which is a message with a pong behind it, to the moment at which its session waits for another connection, and
from there to `on_close`.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from gateway import Gateway, Route
from gateway.application import Channel
from gateway.config import Ping, Settings, Timeouts
from gateway.protocol.heartbeat import SPARE
from gateway.protocol.reasons import Reason
from gateway.session import Session
from tests.support.load import KINDS, OWN, Client, Crowd
from tests.support.running import port_of, running

INTERVAL = 1.0
TIMEOUT = 1.0
GRACE = 1.0
PROMISE = INTERVAL + TIMEOUT
MARGIN = 0.2
STALL = 1.0  # s that a stall may have taken
LATE = 0.1  # s: the message is noted by a task, which runs a little after the pong

SETTINGS = Settings(ping=Ping(INTERVAL, TIMEOUT), timeouts=Timeouts(grace=GRACE, connect=30.0))


@dataclass
class Watch:
    """What became of each session, by its id: seconds of the loop's clock."""

    heard: dict[str, float] = field(default_factory=dict)
    detached: dict[str, float] = field(default_factory=dict)
    closed: dict[str, float] = field(default_factory=dict)
    expected: Reason = Reason.PING_TIMEOUT
    reasons: Counter[tuple[Reason, str]] = field(default_factory=Counter)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, count: int, what: dict[str, float], patience: float) -> None:
        """Return when so many are in `what`."""
        async with asyncio.timeout(patience), self.changed:
            await self.changed.wait_for(lambda: len(what) >= count)

    async def note(self, what: dict[str, float], session_id: str) -> None:
        assert session_id not in what, "twice"
        what[session_id] = asyncio.get_running_loop().time()
        async with self.changed:
            self.changed.notify_all()


@pytest.fixture
async def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made = Watch()
    detach = Session.detach
    now = asyncio.get_running_loop().time

    def noted(self: Session, carrier: Channel, reason: Reason) -> None:
        assert self.id not in made.detached, "detached twice"
        made.detached[self.id] = now()
        made.reasons[reason, carrier.transport] += 1
        detach(self, carrier, reason)

    monkeypatch.setattr(Session, "detach", noted)
    return made


def chat(watch: Watch) -> Route:
    route = Route("/chat")

    @route.on_message
    async def _(handler: Any, message: str) -> None:
        await watch.note(watch.heard, handler.channel.id)

    @route.on_close
    async def _(handler: Any, closing: Any) -> None:
        assert closing.reason is watch.expected
        await watch.note(watch.closed, handler.channel.id)

    return route


async def leave(kind: str, port: int, *, asking: bool, reset: bool) -> None:
    """Be there until a ping, then close the TCP connection without a word: with FIN, or with RST."""
    client: Client = await KINDS[kind](port, OWN)
    await client.greet("/chat")
    await client.answer_ping("41:alive")
    if asking:
        await client.hear("4+2")  # then there is nothing that would answer the next GET
        await client.ask()  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)  # until the gateway has it
    if reset:
        client.reset()
    await client.close()


async def fall_silent(kind: str, port: int, *, asking: bool) -> None:
    """Answer one ping and say no more; the TCP connection stays. `asking`: with a GET that waits."""
    client: Client = await KINDS[kind](port, OWN)
    await client.greet("/chat")
    await client.answer_ping("41:alive")
    if asking:
        await client.ask()  # type: ignore[attr-defined]
    try:
        await asyncio.Event().wait()
    finally:
        await client.close()


async def one_of_many(index: int, life: Callable[[], Awaitable[None]]) -> None:
    """They arrive at 250 a second: a thousand at once would take longer to let in than a ping lasts."""
    await asyncio.sleep(index / 250)
    await life()


@pytest.fixture
def young() -> Iterator[None]:
    """What earlier tests have left is not looked through by the collector while a thousand are served."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


LIVES = {
    "polling": partial(fall_silent, "polling", asking=False),
    "waiting GET": partial(fall_silent, "polling", asking=True),
    "websocket": partial(fall_silent, "websocket", asking=False),
}


@pytest.mark.parametrize(
    "crowd",
    [*({kind: 1} for kind in LIVES), {"polling": 250, "waiting GET": 250, "websocket": 500}],
    ids=[*LIVES, "a thousand"],
)
async def test_f3_f4_silent_sessions_are_noticed_in_time_and_over_after_their_grace(
    young: None, watch: Watch, crowd: dict[str, int], record_property: Callable[[str, object], None]
) -> None:
    count = sum(crowd.values())
    gateway = Gateway([chat(watch)], settings=SETTINGS)
    async with running(gateway) as base:
        port = port_of(base)
        lives = [partial(LIVES[kind], port) for kind, many in crowd.items() for _ in range(many)]
        with Crowd(partial(one_of_many, index, life) for index, life in enumerate(lives)) as silent:
            await watch.until(count, watch.heard, 60)
            await watch.until(count, watch.closed, PROMISE + GRACE + 5)
            inside = gateway._running
            assert inside is not None
            assert len(inside.sessions) == 0
            assert not inside.registry.connections
            assert inside.registry.admission.total == 0
            # After a stall of the loop nobody is judged before all have been read: a busy machine has some.
            spare = SPARE + STALL if inside.registry.deadlines.stalls else 0.0
        assert silent.failures == []
    noticed = sorted(watch.detached[each] - watch.heard[each] for each in watch.heard)
    kept = sorted(watch.closed[each] - watch.detached[each] for each in watch.heard)
    for what, times in (("noticed", noticed), ("then over", kept)):
        spread = f"{times[0]:.3f} to {times[-1]:.3f} s, median {times[count // 2]:.3f} s"
        record_property(f"{what} {count}", spread)
        print(f"\n{count} silent: {what} after {spread}")
    assert {reason for reason, _ in watch.reasons} == {Reason.PING_TIMEOUT}
    assert len(noticed) == count
    assert noticed[0] >= PROMISE - LATE
    assert noticed[-1] <= PROMISE + MARGIN + spare
    assert kept[0] >= GRACE
    assert kept[-1] <= GRACE + 1.0


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("kind", ["waiting GET", "websocket"])
async def test_f1_f2_f5_sessions_whose_browser_was_killed_are_over_after_their_grace(
    watch: Watch, kind: str, reset: bool, record_property: Callable[[str, object], None]
) -> None:
    """The grace of a waiting GET that was cut is part of the session's: a user was told one figure."""
    watch.expected = Reason.TRANSPORT_CLOSE
    settings = replace(SETTINGS, timeouts=Timeouts(grace=GRACE, poll_grace=0.6))
    async with running(Gateway([chat(watch)], settings=settings)) as base:
        port = port_of(base)
        asking = kind == "waiting GET"
        await leave("polling" if asking else kind, port, asking=asking, reset=reset)
        began = asyncio.get_running_loop().time()
        await watch.until(1, watch.closed, GRACE + 5)
    (closed,) = watch.closed.values()
    record_property(f"{kind} {reset}", f"{closed - began:.3f} s")
    print(f"\n{kind}, {'RST' if reset else 'FIN'}: over after {closed - began:.3f} s")
    assert GRACE - LATE <= closed - began <= GRACE + MARGIN


async def test_f7_who_says_good_bye_is_over_at_once_unless_it_is_back(watch: Watch) -> None:
    watch.expected = Reason.CLIENT_CLOSE
    settings = replace(SETTINGS, timeouts=Timeouts(grace=10.0, leave=0.3))
    async with running(Gateway([chat(watch)], settings=settings)) as base:
        port = port_of(base)
        client = await KINDS["polling"](port, OWN)
        await client.greet("/chat")
        began = asyncio.get_running_loop().time()
        await client.say("4B")  # what `sendBeacon` posts
        await client.close()
        await watch.until(1, watch.closed, 5)
    (closed,) = watch.closed.values()
    assert 0.3 <= closed - began <= 0.3 + MARGIN
