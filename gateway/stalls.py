"""Which function blocks the event loop? A thread that looks, while the loop cannot.

The loop calls `beat` several times a second; when it has not for a while, the thread notes where the
loop's thread stands. It knows nothing of connections.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

LATE = 0.25  # s: a tick this late is a stall (as measured: the living were expired after one)
_LOOK_EVERY = 0.1  # s

_OWN = str(Path(__file__).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


class StallWatch:
    """Start it on the loop's thread. `culprit` describes what was seen during the last stall."""

    def __init__(self) -> None:
        self._loop_thread = threading.get_ident()
        self._last_beat = time.monotonic()
        self._seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="gateway-stalls", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """The loop is alive."""
        self._last_beat = time.monotonic()

    def culprit(self) -> str:
        """What blocked, e.g. `on_message (chat.py:12)`; "" if nobody looked in time. Forgets it.

        What was seen most often: the last look may have been at what has piled up behind it.
        """
        seen, self._seen = self._seen, Counter()
        return seen.most_common(1)[0][0] if seen else ""

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(_LOOK_EVERY):
            if time.monotonic() - self._last_beat > 2 * LATE:
                frame = sys._current_frames().get(self._loop_thread)
                if frame is not None:
                    self._seen[describe(frame)] += 1


def describe(frame: FrameType) -> str:
    """Name the innermost function, and the application's function that led to it."""
    stack = []
    walk: FrameType | None = frame
    while walk is not None:
        stack.append(walk)
        walk = walk.f_back
    innermost = _name(stack[0])
    theirs = next((_name(one) for one in stack if _is_application(one)), innermost)
    return theirs if theirs == innermost else f"{theirs}, in {innermost}"


def _is_application(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return not file.startswith((_OWN, "<frozen", *_LIBRARIES)) and frame.f_code.co_name != "<module>"


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({Path(code.co_filename).name}:{frame.f_lineno})"
