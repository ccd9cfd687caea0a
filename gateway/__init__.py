"""Keeps browsers connected where WebSockets are blocked, and says once when one is gone."""

from __future__ import annotations

__version__ = "0.1.0"

from .app import Gateway, run_app
from .application import Refused as Refuse
from .application import Request
from .engine import EngineServer
from .hooks import SessionEnd
from .routes.handlers import Handler, Route

__all__ = [
    "EngineServer",
    "Gateway",
    "Handler",
    "Refuse",
    "Request",
    "Route",
    "SessionEnd",
    "__version__",
    "run_app",
]
