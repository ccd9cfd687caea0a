"""The one heap of deadlines, and the limits on connections."""

import asyncio
import logging
import time
from math import inf

import pytest

from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.protocol.handshake import Refused
from gateway.protocol.reasons import Reason
from gateway.registry import Deadlines, Registry
from gateway.transports import MemoryTransport
from tests.support.clock import Recorder


class Item:
    """Wants to be judged at `deadline`; then it is done."""

    def __init__(self, deadlines: Deadlines, after: float) -> None:
        self.scheduled = inf
        self.deadline = deadlines.now() + after
        self.judged_at: list[float] = []
        self.spared = 0
        self.done = asyncio.Event()
        deadlines.schedule(self)

    def judge(self, now: float) -> None:
        self.judged_at.append(now)
        self.deadline = inf
        self.done.set()

    def spare(self, now: float) -> None:
        self.spared += 1


@pytest.fixture
async def deadlines():
    heap = Deadlines()
    yield heap
    heap.stop()


async def wait(item: Item) -> None:
    await asyncio.wait_for(item.done.wait(), 5)


async def test_each_is_judged_at_its_time_whatever_the_order(deadlines):
    items = [Item(deadlines, after) for after in (0.09, 0.03, 0.06, 0.03)]
    wanted = [item.deadline for item in items]
    for item in items:
        await wait(item)
    for item, when in zip(items, wanted, strict=True):
        assert when <= item.judged_at[0] < when + 0.05


async def test_a_deadline_that_moved_later_is_not_kept(deadlines):
    moved, fixed = Item(deadlines, 0.02), Item(deadlines, 0.04)
    moved.deadline += 0.04
    await wait(fixed)
    assert moved.judged_at == []
    await wait(moved)


async def test_a_deadline_that_came_closer_is_kept_once_it_is_told(deadlines):
    item = Item(deadlines, 60)
    item.deadline = deadlines.now() + 0.02
    deadlines.schedule(item)
    await wait(item)
    await asyncio.sleep(0.03)
    assert len(item.judged_at) == 1


async def test_one_that_fails_does_not_end_the_heartbeat_of_the_others(deadlines):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    class Bad(Item):
        def judge(self, now):
            self.deadline = inf
            raise ZeroDivisionError

    Bad(deadlines, 0.01)
    item = Item(deadlines, 0.02)
    await wait(item)
    assert [type(error) for error in reported] == [ZeroDivisionError]


async def test_nothing_to_wait_for_is_no_timer_and_no_thread(deadlines):
    item = Item(deadlines, 0.01)
    assert deadlines._timer is not None
    await wait(item)
    await asyncio.sleep(0)
    assert deadlines._timer is None
    assert deadlines._watch is None


async def test_a_stall_is_noticed_and_named_and_spares_everybody(deadlines, caplog):
    item = Item(deadlines, 0.1)
    await asyncio.sleep(0)

    def block_the_loop() -> None:
        time.sleep(1.0)

    block_the_loop()
    await wait(item)
    assert item.spared >= 1
    assert deadlines.stalls == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "block_the_loop (test_registry.py:" in record.getMessage()
    assert "blocked for 1." in record.getMessage()


async def test_a_busy_loop_is_no_stall(deadlines, caplog):
    item = Item(deadlines, 0.3)
    while not item.done.is_set():
        time.sleep(0.02)  # noqa: ASYNC251 - busy on purpose
        await asyncio.sleep(0)
    assert deadlines.stalls == 0
    assert item.spared == 0


async def test_very_many_that_are_due_together_leave_turns_to_the_others(deadlines):
    """Each takes 0.1 ms: all of them in one tick would be a stall."""
    judged_in_turn: list[int] = []
    judged = 0

    class Slow(Item):
        def judge(self, now):
            nonlocal judged
            judged += 1
            until = time.perf_counter() + 0.0001
            while time.perf_counter() < until:
                pass
            super().judge(now)

    items = [Slow(deadlines, 0.02) for _ in range(3_000)]
    while judged < len(items):
        before = judged
        await asyncio.sleep(0)
        judged_in_turn.append(judged - before)
    assert max(judged_in_turn) < 200
    assert deadlines.stalls == 0


async def test_those_that_are_over_do_not_stay_in_memory(deadlines):
    living = Item(deadlines, 0.05)
    for _ in range(1_000):
        over = Item(deadlines, 60)
        over.deadline = inf
        deadlines.forget(over)
        deadlines.forget(over)
    assert len(deadlines._heap) < 200
    await wait(living)


async def test_one_that_is_judged_early_is_not_judged_again(deadlines):
    item = Item(deadlines, -0.01)
    deadlines.judge(item)
    deadlines.judge(item)
    await asyncio.sleep(0.02)
    assert len(item.judged_at) == 1


# -- connections -----------------------------------------------------------------------------------


def registry(**limits: int) -> Registry:
    return Registry(Settings(ping=Ping(0.05, 0.05), limits=Limits(**limits), timeouts=Timeouts(close=0.1)))


def opened(registry: Registry, sid: str, address: str = "a") -> Recorder:
    connection = registry.create(sid, address)
    heard = Recorder()
    connection.listener = heard
    connection.start_polling()
    return heard


async def test_no_more_connections_than_allowed_in_all():
    live = registry(connections=2)
    heard = opened(live, "1", "a")
    opened(live, "2", "b")
    with pytest.raises(Refused) as full:
        live.create("3", "c")
    assert full.value.status == 503
    live.connections["1"].close(Reason.TRANSPORT_CLOSE)
    assert heard.reason is Reason.TRANSPORT_CLOSE
    opened(live, "3", "c")
    await live.shutdown()


async def test_two_thousand_may_come_at_once_from_one_address():
    live = Registry(Settings())
    for number in range(2_000):
        live.create(str(number), "a proxy")
    assert len(live.connections) == 2_000


async def test_handshakes_that_lead_to_nothing_are_counted_by_address():
    live = registry(half_open=2)
    opened(live, "1", "a")
    opened(live, "2", "a")
    with pytest.raises(Refused) as full:
        live.create("3", "a")
    assert full.value.status == 429
    opened(live, "4", "b")
    assert live.find("1") is not None, "the second request of this client"
    assert live.find("1") is not None
    opened(live, "5", "a")
    with pytest.raises(Refused):
        live.create("6", "a")
    await live.shutdown()


async def test_counts_go_back_to_nothing():
    live = registry(half_open=5)
    for sid in "12345":
        opened(live, sid)
    for sid in "12":
        live.find(sid)
    for connection in list(live.connections.values()):
        connection.close(Reason.TRANSPORT_CLOSE)
    assert live.connections == {}
    assert live.admission.total == 0
    assert not live._inside
    assert not live._opening
    live.deadlines.stop()


async def test_a_silent_client_is_forgotten_in_time():
    live = registry()
    began = live.now()
    connection = live.create("1", "a")
    connection.listener = heard = Recorder()
    connection.start_websocket(MemoryTransport(connection))
    while live.connections:
        assert live.now() < began + 0.4
        await asyncio.sleep(0.005)
    assert heard.reason is Reason.PING_TIMEOUT
    assert live.now() >= began + 0.1


async def test_judge_says_whether_it_is_still_there():
    live = registry()
    opened(live, "1")
    connection = live.connections["1"]
    assert live.judge(connection)
    connection.close(Reason.TRANSPORT_CLOSE)
    assert not live.judge(connection)
    assert live.find("1") is None


async def test_shutdown_tells_everybody_and_waits_for_those_who_listen(caplog):
    live = registry()
    heard = [opened(live, str(n)) for n in range(3)]
    answers: list[str] = []
    for connection in live.connections.values():
        assert connection.polling is not None
        connection.poll(connection.polling, answers.append)
    await live.shutdown()
    assert answers == ["1"] * 3
    assert [each.reason for each in heard] == [Reason.SHUTDOWN] * 3


async def test_shutdown_does_not_wait_for_ever():
    live = registry()
    opened(live, "1")
    began = live.now()
    await live.shutdown()
    assert live.now() - began < 1.0


# -- handshakes that nothing has followed yet ------------------------------------------------------


async def test_a_reserved_place_becomes_a_connection_once():
    live = Registry(Settings())
    live.reserve("1", "a")
    assert live.admission.total == 1
    assert live.find("1") is None
    connection = live.redeem("1")
    assert connection is not None
    assert live.redeem("1") is None
    assert live.find("1") is connection
    assert live.admission.total == 1
    connection.listener = Recorder()
    connection.start_polling()
    connection.close(Reason.TRANSPORT_CLOSE)
    assert live.admission.total == 0
    live.deadlines.stop()


async def test_a_reserved_place_is_kept_for_so_long_and_no_longer():
    live = Registry(Settings(timeouts=Timeouts(connect=0.1)))
    began = live.now()
    for number in range(3):
        live.reserve(str(number), "a")
    assert live.redeem("1") is not None
    while live.admission.total > 1:
        assert live.now() < began + 2.0
        await asyncio.sleep(0.005)
    assert live.now() >= began + 0.1
    assert live.redeem("0") is None
    assert not live._reserved._until
    live.deadlines.stop()


async def test_reserved_places_are_gone_with_the_stop():
    live = Registry(Settings())
    live.reserve("1", "a")
    await live.shutdown()
    assert live.redeem("1") is None


async def test_a_user_has_so_many_sessions():
    live = registry(per_user=1)
    connection = live.create("1", "a", "ann")
    connection.listener = Recorder()
    with pytest.raises(Refused) as full:
        live.create("2", "a", "ann")
    assert full.value.status == 429
    assert live.admission.total == 1
    with pytest.raises(Refused), live.guest("3", "a", "ann"):
        pass
    connection.start_polling()
    connection.close(Reason.TRANSPORT_CLOSE)
    with live.guest("4", "a", "ann"):
        assert live.admission.total == 1
    assert live.admission.total == 0
    live.deadlines.stop()
