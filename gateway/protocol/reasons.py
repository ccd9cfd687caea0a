"""Why a connection or session ended: one row per reason.

A row says what the client is told, how loudly the end is logged, and whether trying again makes
sense. Application code, metrics, log lines and hooks all use these names.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Row:
    """`text` is python-engineio's wording where it has one; `code` a WebSocket close code."""

    text: str
    code: int
    retry: bool
    level: int


class Reason(Enum):
    """Every way to end. The member's name is used in hooks and metrics, `text` in Engine.IO's API."""

    CLIENT_CLOSE = Row("client disconnect", 1000, False, logging.DEBUG)
    TRANSPORT_CLOSE = Row("transport close", 1006, True, logging.DEBUG)
    TRANSPORT_ERROR = Row("transport error", 1002, True, logging.INFO)
    PING_TIMEOUT = Row("ping timeout", 4001, True, logging.INFO)
    SLOW_CONSUMER = Row("slow consumer", 4008, True, logging.WARNING)
    PARSE_ERROR = Row("parse error", 1002, False, logging.INFO)
    SERVER_CLOSE = Row("server disconnect", 1000, False, logging.DEBUG)
    SHUTDOWN = Row("server shutdown", 1012, True, logging.DEBUG)
    NEVER_OPENED = Row("connect timeout", 4007, True, logging.DEBUG)
    REFUSED = Row("refused", 4003, False, logging.INFO)
    REPLACED = Row("replaced", 4009, False, logging.DEBUG)
    NODE_LOST = Row("node lost", 4011, True, logging.WARNING)

    @property
    def text(self) -> str:
        """What Engine.IO's `disconnect` handlers are given."""
        return self.value.text

    @property
    def code(self) -> int:
        """The WebSocket close code that goes with it; 1006 means that none can be sent."""
        return self.value.code


@dataclass(frozen=True, slots=True)
class Closing:
    """How a channel ended. `code` and `text` are what the browser's `close` event would show."""

    reason: Reason
    code: int = 1005
    text: str = ""

    @classmethod
    def by(cls, reason: Reason) -> Closing:
        """The closing that a reason implies when nobody gave a code."""
        return cls(reason, reason.code, reason.text)
