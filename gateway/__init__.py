"""Keeps browsers connected where WebSockets are blocked, and says once when one is gone."""

from __future__ import annotations

from .engine import EngineServer

__all__ = ["EngineServer"]
