"""A bounded pool of threads for functions that block.

The threads are daemons: one that never returns must not keep a gateway from stopping, and those of
`concurrent.futures` are waited for at exit. Does not know what runs in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

_Job = Callable[[], None]


class Threads:
    """At most `limit` calls at the same time; what is beyond waits its turn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def run(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Call it in a thread. Cancelling the future does not stop a call that runs."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> None:
            result: Any = None
            error: BaseException | None = None
            if not future.cancelled():
                try:
                    result = context.run(function, *args)
                except BaseException as raised:  # noqa: BLE001 - raised again where it is awaited
                    error = raised
            self._idle.release()  # before the caller, who may have another job, hears of the result
            with contextlib.suppress(RuntimeError):  # the loop has ended; nobody waits for it
                loop.call_soon_threadsafe(_settle, future, result, error)

        self._jobs.put(job)
        self._grow()
        return future

    def stop(self) -> None:
        """End the threads that are idle now, and the others when their call returns."""
        for _ in range(self._count):
            self._jobs.put(None)
        self._count = 0

    def _grow(self) -> None:
        if self._idle.acquire(blocking=False) or self._count >= self._limit:
            return
        self._count += 1
        threading.Thread(target=self._work, name=f"gateway-{self._count}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        # A future refuses to hold it: it would end the coroutine that awaits it, silently.
        future.set_exception(RuntimeError("the function raised StopIteration"))
    else:
        future.set_exception(error)
