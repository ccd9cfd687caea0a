"""`python -m gateway`: flags in, exit code out.

0: it was told to stop. 2: it could not start, and one line on standard error says why.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn, TypeVar

from gateway import __version__
from gateway.app import Gateway, run_app
from gateway.config import PROFILES, Listen, read_duration, read_listen, read_ping
from gateway.configfile import Config, ConfigError, load
from gateway.session_store import (
    MemoryStore,
    SessionStore,
    StoreError,
    StoreRefuses,
    StoreUnavailable,
)
from gateway.stores import default_path, open_store
from gateway.stores.sqlite import SqliteStore

from .banner import banner, good_bye
from .sessions import sessions

T = TypeVar("T")

log = logging.getLogger("gateway")

_COMMANDS = ("serve", "sessions")
_LEVELS = ("debug", "info", "warning", "error")

_EXAMPLES = """
examples:
  python -m gateway                               the demo page at http://127.0.0.1:8000/
  python -m gateway --port 0                      the same at a free port, which is printed
  python -m gateway --config gateway.yaml         your handlers; see docs/handlers.md
  python -m gateway --host 0.0.0.0 --ping fast    for the whole network; who vanishes is missed in 6 s
  python -m gateway sessions --failed             whose cleanup has failed; see docs/cleanup.md

Ctrl+C stops it: browsers are told to come back, and every on_close runs. Once more stops it at once.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until it is told to stop. The exit code."""
    flags = _flags(arguments)
    _log_to_stderr(flags.log_level)
    try:
        only_looks = flags.command == "sessions"
        found = load(flags.config, functions=not only_looks) if flags.config else Config()
        config = _with_flags(found, flags)
        if only_looks:
            return sessions(flags, config)
        store = _store(config)
        gateway = Gateway(
            config.routes,
            settings=config.settings,
            origins=config.origins,
            trusted_proxies=config.trusted_proxies,
            static_prefix=config.static_prefix,
            store=store,
            cleanup=config.cleanup,
        )
    except (ConfigError, ValueError, StoreError) as error:
        return _cannot_start(error)
    return _run(gateway, config)


def _store(config: Config) -> SessionStore:
    """What was asked for; otherwise a file of this address, or memory where there is none. Raises
    `StoreUnusable` for a file that needs a person.
    """
    listen = config.listen or Listen()
    if config.store is not None:
        return open_store(config.store)
    if not listen.path and listen.port == 0:
        return MemoryStore()
    try:
        store = SqliteStore(default_path(listen))
        asyncio.run(_try(store))
    except (ValueError, StoreRefuses, StoreUnavailable) as error:
        log.warning("sessions are recorded in memory only, and forgotten when this process ends: %s", error)
        return MemoryStore()
    return store


async def _try(store: SessionStore) -> None:
    await store.open()
    await store.close()


def _run(gateway: Gateway, config: Config) -> int:
    wanted = config.listen or Listen()

    def ready(listen: Listen) -> None:
        print(banner(__version__, listen, config, gateway.store, sys.stdout), flush=True)

    try:
        run_app(
            gateway.application(),
            host=wanted.host,
            port=wanted.port,
            path=wanted.path,
            settings=config.settings,
            ready=ready,
        )
    except StoreError as error:
        return _cannot_start(error)
    except OSError as error:
        return _cannot_start(_cannot_listen(wanted, error))
    print(good_bye(sys.stdout), flush=True)
    return 0


class _Parser(argparse.ArgumentParser):
    """One line for what is wrong; the usage is what `--help` is for."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for. An unknown flag is named before what it would make of its value."""
    parser = _parser()
    known = [flag for action in parser._actions for flag in action.option_strings]
    flags, unknown = parser.parse_known_args(_with_ids(arguments, known))
    if unknown:
        near = get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.error(f"{unknown[0]} is not known{hint}")
    if flags.command not in _COMMANDS:
        parser.error(f"{flags.command!r} is no command: there are serve, which may be left out, and sessions")
    used = [f"--{name}" for name in ("failed", "retry", "close", "json") if getattr(flags, name)]
    if used and flags.command != "sessions":
        parser.error(f"{used[0]} goes with sessions: python -m gateway sessions {used[0]}")
    if flags.retry is not None and flags.close is not None:
        parser.error("--retry and --close: give one or the other")
    return flags


def _with_ids(arguments: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The arguments; an id may begin with a hyphen, and would be taken for a flag."""
    joined: list[str] = []
    for word in sys.argv[1:] if arguments is None else arguments:
        if joined and joined[-1] in ("--retry", "--close") and word not in known:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parser() -> _Parser:
    parser = _Parser(
        prog="gateway",
        description="Keeps browsers connected where WebSockets are blocked, and says once when one is gone.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "command",
        nargs="?",
        metavar="serve|sessions",
        default="serve",
        help="serve is the default; sessions lists who is there and whose cleanup has failed",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="a gateway.yaml; flags win over it")
    parser.add_argument("--host", help="the address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=_value(_port), help="the port, or 0 for a free one (default: 8000)")
    parser.add_argument(
        "--listen",
        type=_value(read_listen),
        metavar="WHERE",
        help="host:port, :port for every address, or unix:/path; in place of --host and --port",
    )
    parser.add_argument(
        "--ping",
        type=_value(read_ping),
        metavar="PING",
        help=f"heartbeat: {', '.join(PROFILES)}, or interval+timeout as in 10s+5s (default: 10s+10s)",
    )
    parser.add_argument(
        "--store",
        type=_value(_store_url),
        metavar="URL",
        help="where sessions are recorded: memory:, sqlite:///path or redis://host:6379/0 "
        "(default: a file of this address in ~/.local/state/gateway/; in memory with --port 0)",
    )
    parser.add_argument(
        "--exit-when-empty",
        type=_value(read_duration),
        metavar="TIME",
        help="stop when the last browser has been gone that long, as in 30s",
    )
    parser.add_argument(
        "--log-level", choices=_LEVELS, default="info", help="how much to log (default: info)"
    )
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    group = parser.add_argument_group(
        "with sessions", "The store is that of a gateway with the same --listen, --config or --store."
    )
    group.add_argument("--failed", action="store_true", help="only those whose cleanup has failed for good")
    group.add_argument("--retry", metavar="ID", help="try the cleanup again: an id, its beginning, or all")
    group.add_argument("--close", metavar="ID", help="end a session")
    group.add_argument("--json", action="store_true", help="everything, for programs")
    return parser


def _value(reader: Callable[[str], T]) -> Callable[[str], T]:
    """For argparse, which shows the text of its own error only."""

    def read(text: str) -> T:
        try:
            return reader(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _store_url(text: str) -> str:
    open_store(text)
    return text


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"{text!r} is no port: 0 to 65535")
    return int(text)


def _with_flags(config: Config, flags: argparse.Namespace) -> Config:
    listen = config.listen or Listen()
    if flags.listen is not None:
        if flags.host is not None or flags.port is not None:
            raise ConfigError("--listen stands in place of --host and --port: give one or the other")
        listen = flags.listen
    elif flags.host is not None or flags.port is not None:
        listen = Listen(
            host=listen.host if flags.host is None else flags.host,
            port=listen.port if flags.port is None else flags.port,
        )
    settings = config.settings
    settings = replace(
        settings,
        ping=settings.ping if flags.ping is None else flags.ping,
        exit_when_empty=flags.exit_when_empty or settings.exit_when_empty,
    )
    return replace(config, listen=listen, settings=settings, store=flags.store or config.store)


def _cannot_listen(listen: Listen, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"{listen.host} is no address of this machine: {error.strerror}"
    if error.errno == errno.EADDRINUSE and listen.path:
        return f"{listen.path} is in use: stop what listens there, or choose another path"
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {listen.port} on {listen.host} is in use: stop what listens there, or try "
            f"--port {listen.port % 65535 + 1}, or --port 0 for a free one"
        )
    if error.errno == errno.EACCES:
        return f"{listen}: not permitted; ports below 1024 are for root: try --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{listen.host} is no address of this machine: try --host 127.0.0.1"
    return f"cannot listen on {listen}: {error.strerror or error}"


def _cannot_start(why: object) -> int:
    print(f"gateway: {why}", file=sys.stderr)
    return 2


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)-7s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
