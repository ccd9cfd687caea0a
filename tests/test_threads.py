"""A pool of threads: bounded, reused, and never in the way of a stop."""

import asyncio
import contextvars
import threading

import pytest

from gateway.threads import Threads


@pytest.fixture
def threads():
    pool = Threads(2)
    yield pool
    pool.stop()


async def test_results_and_errors_come_back(threads):
    assert await threads.run(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.run(next, iter(()))
    with pytest.raises(SystemExit):
        await threads.run(exit)


async def test_no_more_run_at_once_than_the_limit(threads):
    both, go = threading.Barrier(3), threading.Event()
    most, inside, lock = [0], [0], threading.Lock()

    def work():
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        if not go.is_set():
            both.wait(5)
        go.wait(5)
        with lock:
            inside[0] -= 1

    calls = [threads.run(work) for _ in range(10)]
    await asyncio.to_thread(both.wait, 5)
    go.set()
    await asyncio.gather(*calls)
    assert most == [2]


async def test_an_idle_thread_is_used_again(threads):
    names = {await threads.run(lambda: threading.current_thread().name) for _ in range(20)}
    assert len(names) == 1


async def test_threads_do_not_keep_the_process(threads):
    assert await threads.run(lambda: threading.current_thread().daemon)


async def test_the_context_of_the_caller_is_seen(threads):
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("mine")
    assert await threads.run(variable.get) == "mine"


async def test_a_call_that_was_cancelled_while_it_waited_is_not_made(threads):
    go = threading.Event()
    made: list[int] = []
    busy = [threads.run(go.wait, 5) for _ in range(2)]
    waiting = threads.run(made.append, 1)
    waiting.cancel()
    go.set()
    await asyncio.gather(*busy)
    assert await threads.run(lambda: "next") == "next"
    assert made == []


def test_a_result_that_comes_after_the_loop_is_dropped(threads):
    go, done = threading.Event(), threading.Event()

    def late():
        go.wait(5)
        done.set()

    async def leave():
        threads.run(late)

    asyncio.run(leave())
    go.set()
    assert done.wait(5)
