"""The mailbox: one call at a time, in order, bounded, and never ended by what a call does."""

import asyncio
import logging

import pytest

from gateway.mailbox import Mailbox


class Owner:
    """Writes down what it is told, and what the calls did."""

    def __init__(self, max_calls: int = 4, max_bytes: int = 100) -> None:
        self.log: list[str] = []
        self.box = Mailbox(
            max_calls, max_bytes, lambda: self.log.append("full"), lambda: self.log.append("drained")
        )
        self.gate = asyncio.Event()
        self.done = asyncio.Event()

    def sync(self, name: str) -> None:
        self.log.append(name)

    async def slow(self, name: str) -> None:
        self.log.append(f"{name} begins")
        await self.gate.wait()
        self.log.append(f"{name} ends")

    def last(self) -> None:
        self.log.append("last")
        self.done.set()

    async def finished(self) -> list[str]:
        self.box.post(self.last)
        async with asyncio.timeout(5):
            await self.done.wait()
        return self.log[:-1]


@pytest.fixture
async def owner() -> Owner:
    return Owner()


async def test_a_plain_function_runs_at_once_and_without_a_task(owner):
    before = asyncio.all_tasks()
    owner.box.post(owner.sync, "a")
    assert owner.log == ["a"]
    assert asyncio.all_tasks() == before


async def test_calls_keep_their_order_across_kinds(owner):
    owner.box.post(owner.sync, "a")
    owner.box.post(owner.slow, "b")
    owner.box.post(owner.sync, "c")
    owner.box.post(owner.slow, "d")
    assert owner.log == ["a"], "a coroutine begins in a turn of its own"
    owner.gate.set()
    assert await owner.finished() == ["a", "b begins", "b ends", "c", "d begins", "d ends"]


async def test_a_call_that_posts_is_not_entered_again(owner):
    def outer() -> None:
        owner.log.append("outer begins")
        owner.box.post(owner.sync, "inner")
        owner.log.append("outer ends")

    owner.box.post(outer)
    assert owner.log == ["outer begins", "outer ends", "inner"]


async def test_full_and_drained_are_told_once_each_and_with_room_between(owner):
    owner.box.post(owner.slow, "a")
    for n in range(6):
        owner.box.post(owner.sync, str(n))
    assert owner.box.is_full
    assert owner.log.count("full") == 1
    owner.gate.set()
    log = await owner.finished()
    assert not owner.box.is_full
    assert log.count("full") == log.count("drained") == 1
    assert log.index("drained") > log.index("2")


async def test_bytes_count_too(owner):
    owner.box.post(owner.slow, "a")
    owner.box.post(owner.sync, "b", size=99)
    assert not owner.box.is_full
    owner.box.post(owner.sync, "c", size=1)
    assert owner.box.is_full


async def test_nothing_is_dropped_when_it_is_full(owner):
    owner.box.post(owner.slow, "a")
    for n in range(50):
        owner.box.post(owner.sync, str(n), size=10)
    assert owner.box.size == 500
    assert owner.box.size == 500
    owner.gate.set()
    log = await owner.finished()
    assert [entry for entry in log if entry.isdigit()] == [str(n) for n in range(50)]


def fail(error: BaseException) -> None:
    raise error


async def fail_later(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("call", [fail, fail_later])
@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError(), asyncio.CancelledError(), TimeoutError()], ids=repr
)
async def test_a_call_that_fails_ends_nothing_but_itself_and_is_logged(owner, caplog, call, error):
    owner.box.post(call, error)
    owner.box.post(owner.sync, "after")
    assert await owner.finished() == ["after"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_call_that_waits_for_what_was_cancelled_ends_nothing_but_itself(owner):
    other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    owner.box.post(asyncio.wait_for, other, 5)
    await asyncio.sleep(0)
    other.cancel()
    owner.box.post(owner.sync, "after")
    assert await owner.finished() == ["after"]


async def test_the_last_call_waits_for_those_before_it(owner):
    owner.box.post(owner.slow, "a")
    owner.box.finish(owner.last, limit=5)
    assert not owner.done.is_set()
    owner.gate.set()
    await asyncio.wait_for(owner.done.wait(), 5)
    assert owner.log == ["a begins", "a ends", "last"]


async def test_the_last_call_waits_no_longer_than_its_limit(owner, caplog):
    owner.box.post(owner.slow, "never")
    owner.box.post(owner.sync, "given up")
    owner.box.finish(owner.last, limit=0.05)
    await asyncio.wait_for(owner.done.wait(), 5)
    assert owner.log == ["never begins", "last"]
    assert "waits no longer" in caplog.text


async def test_the_last_call_of_an_idle_mailbox_is_made_at_once(owner):
    owner.box.finish(owner.last, limit=5)
    assert owner.log == ["last"]


async def test_the_mailbox_that_is_cancelled_from_outside_ends(owner):
    before = asyncio.all_tasks()
    owner.box.post(owner.slow, "a")
    await asyncio.sleep(0)
    (task,) = asyncio.all_tasks() - before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert owner.log == ["a begins"]
