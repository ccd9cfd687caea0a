"""Real programs on free loopback ports: started, waited for, read, and ended with all their children.

Decides when a program counts as ready (it printed a line, or accepts connections) and when it counts
as failed (it ended first, or time ran out). Does not know which program it is.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 30.0
"""Seconds for a program to be ready on a busy machine; it is usually a fraction of one."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


class ProcessFailed(AssertionError):
    """A program ended, or was silent, where something else was expected. Carries its output."""


class Process:
    """One running program in a process group of its own, standard error merged into its output.

    Blocking, so that tests with and without an event loop can use it; from a coroutine that must
    go on meanwhile, call the waiting methods through `asyncio.to_thread`.
    """

    started: list["Process"] = []  # noqa: RUF012 - the report of a failed test reads it
    """All programs since the list was last emptied, by the fixture that does so for each test."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        name: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it. `env` is laid over the environment of the tests."""
        self.name = name or Path(command[0]).name
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._silent = False
        self.popen = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {self.name}")
        self._reader.start()
        Process.started.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    @property
    def output(self) -> str:
        """What it has printed so far."""
        with self._news:
            return "".join(self._lines)

    def wait_for_output(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The first match of the regular expression in the output, once it is there.

        Raises ProcessFailed when the output ends or `timeout` seconds pass before.
        """
        end = time.monotonic() + timeout
        with self._news:
            while True:
                found = re.search(pattern, "".join(self._lines), re.MULTILINE)
                if found:
                    return found
                if self._silent:
                    raise self._failure(f"ended without printing {pattern!r}")
                if not self._news.wait(end - time.monotonic()):
                    raise self._failure(f"did not print {pattern!r} within {timeout:g} s")

    def wait_for_port(self, port: int, host: str = "127.0.0.1", timeout: float = PATIENCE) -> None:
        """Returns once it accepts connections. Raises ProcessFailed as `wait_for_output` does."""
        end = time.monotonic() + timeout
        while True:
            try:
                socket.create_connection((host, port), timeout=1).close()
            except OSError as error:
                with self._news:
                    # A port cannot be waited for; the end of the program can, so wait for that.
                    if self._silent or self._news.wait_for(lambda: self._silent, 0.02):
                        raise self._failure(f"ended before it listened on port {port}") from error
                if time.monotonic() > end:
                    raise self._failure(f"does not listen on port {port} after {timeout:g} s") from error
            else:
                return

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, once it has ended by itself."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self._failure(f"still runs after {timeout:g} s") from error
        self.stop()
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the program alone, not to its children."""
        self.popen.send_signal(number)

    def stop(self, timeout: float = 5.0) -> None:
        """SIGTERM, then after `timeout` seconds SIGKILL, to it and to its children. Idempotent."""
        if self.running:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout)
        self._signal_group(signal.SIGKILL)
        self.popen.wait()
        self._reader.join()
        if self.popen.stdout:
            self.popen.stdout.close()

    def kill(self) -> None:
        """SIGKILL at once, to it and to its children, as when a machine loses power."""
        self._signal_group(signal.SIGKILL)
        self.stop()

    def _signal_group(self, number: signal.Signals) -> None:
        # The group is gone when the last process of it has been waited for.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def _read(self) -> None:
        assert self.popen.stdout
        for line in self.popen.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._silent = True
            self._news.notify_all()

    def _failure(self, what: str) -> ProcessFailed:
        return ProcessFailed(f"{self.name} {what}. Its output:\n{''.join(self._lines)}")
