"""`gateway.yaml`: from YAML to settings and routes.

Whatever is wrong is one line that names file, line, key, and what to write. Decides which keys there
are; what their values mean is decided in `config.py`, `hooks.py`, `stores/` and `routes/`.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from .application import OVERFLOWS, Overflow
from .config import PROFILES, Limits, Listen, Ping, Settings, Timeouts, read_duration, read_listen, read_ping
from .hooks import CommandHook, FunctionHook, Hook, WebhookHook
from .protocol.forwarded import parse_networks
from .protocol.origins import OriginPolicy
from .routes.handlers import Function, Route
from .routes.table import PREFIX
from .stores import open_store

T = TypeVar("T")

_KEYS = (
    "listen",
    "ping",
    "static_prefix",
    "origins",
    "trusted_proxies",
    "limits",
    "timeouts",
    "store",
    "cleanup",
    "exit_when_empty",
    "routes",
    "url",
)
_FUNCTION_KEYS = ("cleanup", "routes", "url")
_NULL = "tag:yaml.org,2002:null"
_FUNCTIONS = ("open", "on_message", "on_close")
_ROUTE_KEYS = (*_FUNCTIONS, "origins", "auth", "cleanup", "overflow")
_HOOKS = ("function", "webhook", "command")
_WEBHOOK_KEYS = ("secret", "private", "headers")
_CALL = re.compile(r"(?P<name>[\w.:]+)\s*(?:\(\s*(?:handler\s*(?:,\s*(?:msg|message|closing)\s*)?)?\))?")
_PREFIX = re.compile(r"(?:https?://[^\s/\"'<>;]+)?(?:/[^\s\"'<>;]*)?")


class ConfigError(Exception):
    """The configuration cannot work. The text is one line, for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a configuration file says."""

    settings: Settings = field(default_factory=Settings)
    listen: Listen | None = None
    routes: tuple[Route, ...] = ()
    origins: tuple[str, ...] | None = None
    trusted_proxies: tuple[str, ...] = ()
    static_prefix: str = ""
    store: str | None = None
    cleanup: tuple[Hook, ...] = ()


def load(path: Path, *, functions: bool = True) -> Config:
    """Read a file and import what it names. Raises `ConfigError`.

    Without `functions` nothing is imported: routes and hooks are left out, for those who only look.

    The file's folder and the working directory are put on `sys.path`, and stay there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    for folder in (str(Path.cwd()), str(path.resolve().parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return read(text, str(path), functions=functions)


def read(text: str, name: str, *, functions: bool = True) -> Config:
    """Read the text of a file; `name` stands in messages. See `load`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(
            f"{name}:{line}: is not YAML: {_one_line(error.problem or error.context)}"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: is not YAML: {_one_line(error)}") from None
    if node is None or node.tag == _NULL:
        return Config()
    return _read_top(Entry(name, node, ""), functions)


# -- a node, with its place in the file --------------------------------------------------------------


class Entry:
    """One value of the file. Each method raises `ConfigError` if the value is something else."""

    __slots__ = ("_file", "_node", "key")

    def __init__(self, file: str, node: yaml.Node, key: str) -> None:
        self._file = file
        self._node = node
        self.key = key

    def fail(self, message: object) -> NoReturn:
        """Say what is wrong with it."""
        where = f"{self._file}:{self._node.start_mark.line + 1}"
        raise ConfigError(f"{where}: {self.key}: {message}" if self.key else f"{where}: {message}") from None

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self._node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self._node, yaml.SequenceNode)

    @property
    def is_bool(self) -> bool:
        """Whether it is `true`, `no`, and the like."""
        return bool(self._node.tag == "tag:yaml.org,2002:bool")

    @property
    def folder(self) -> Path:
        """Of the file, for paths in it."""
        return Path(self._file).absolute().parent

    def text(self) -> str:
        """A scalar, as it stands there: `10:30` is no number, and `on` is no boolean."""
        if not isinstance(self._node, yaml.ScalarNode):
            self.fail("is to be one value, not a list or a mapping")
        if self._node.tag == _NULL or not self._node.value.strip():
            self.fail("is empty; give a value or leave the key out")
        return str(self._node.value)

    def flag(self) -> bool:
        """`true` or `false`."""
        text = self.text()
        if not self.is_bool:
            self.fail(f"{text!r} is neither true nor false")
        return text.lower() in ("true", "yes", "on")

    def secret(self) -> str:
        """Text that may be kept elsewhere: `env:NAME` is a variable, `file:PATH` a file beside this one."""
        return self.read(lambda text: _secret(text, self.folder))

    def read(self, reader: Callable[[str], T]) -> T:
        """The text, read by a function that raises `ValueError`."""
        try:
            return reader(self.text())
        except ValueError as error:
            self.fail(error)

    def list(self) -> list[Entry]:
        """The entries of a list; a single value is a list of one."""
        if not isinstance(self._node, yaml.SequenceNode):
            return [self]
        return [
            Entry(self._file, node, f"{self.key}[{index}]") for index, node in enumerate(self._node.value)
        ]

    def items(self, known: Iterable[str] | None = None) -> dict[str, Entry]:
        """The entries of a mapping, none of them twice and none of them unknown."""
        if not isinstance(self._node, yaml.MappingNode):
            self.fail("is to be a mapping: `key: value` lines, indented")
        entries: dict[str, Entry] = {}
        for key, node in self._node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            entry = Entry(self._file, node, f"{self.key}.{name}" if self.key else name)
            here = Entry(self._file, key, entry.key)
            if not name:
                here.fail("a key is to be text")
            if name in entries:
                here.fail("is there twice")
            if known is not None and name not in known:
                here.fail(f"is not a key here; {_known(name, known)}")
            entries[name] = entry
        return entries


def _known(name: str, known: Iterable[str], all_of_them: str = "there are") -> str:
    close = get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"{all_of_them}: {', '.join(known) or 'none'}"


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


# -- what the keys mean ------------------------------------------------------------------------------


def _read_top(top: Entry, functions: bool) -> Config:
    keys = top.items(_KEYS)
    if not functions:
        keys = {name: entry for name, entry in keys.items() if name not in _FUNCTION_KEYS}
    settings = Settings(
        ping=_ping(keys["ping"]) if "ping" in keys else Ping(),
        limits=_table(keys.get("limits"), Limits, _whole),
        timeouts=_table(keys.get("timeouts"), Timeouts, read_duration),
        exit_when_empty=keys["exit_when_empty"].read(read_duration) if "exit_when_empty" in keys else None,
    )
    trusted = keys["trusted_proxies"].list() if "trusted_proxies" in keys else []
    return Config(
        settings=settings,
        listen=keys["listen"].read(read_listen) if "listen" in keys else None,
        routes=tuple(_routes(keys.get("routes"), keys.get("url"))),
        origins=_origins(keys["origins"]) if "origins" in keys else None,
        trusted_proxies=tuple(entry.read(_network) for entry in trusted),
        static_prefix=keys["static_prefix"].read(_static_prefix) if "static_prefix" in keys else "",
        store=_store(keys["store"]) if "store" in keys else None,
        cleanup=_hooks(keys["cleanup"]) if "cleanup" in keys else (),
    )


def _ping(entry: Entry) -> Ping:
    if not entry.is_mapping:
        return entry.read(read_ping)
    keys = entry.items(("interval", "timeout"))
    default = PROFILES["default"]
    return Ping(
        keys["interval"].read(read_duration) if "interval" in keys else default.interval,
        keys["timeout"].read(read_duration) if "timeout" in keys else default.timeout,
    )


def _table(entry: Entry | None, kind: type[T], reader: Callable[[str], Any]) -> T:
    if entry is None:
        return kind()
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: value.read(reader) for name, value in entry.items(names).items()})


def _whole(text: str) -> int:
    digits = text.replace("_", "")
    if not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(digits)


def _network(text: str) -> str:
    try:
        parse_networks([text])
    except ValueError:
        raise ValueError(f"{text!r} is no address: write 127.0.0.1 or 10.0.0.0/8") from None
    return text


def _static_prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise ValueError(f"{text!r} is no prefix: write https://static.example.com/gateway or /static")
    return text


def _origins(entry: Entry) -> tuple[str, ...]:
    origins = []
    for each in entry.list():
        text = each.text()
        try:
            OriginPolicy([text])
        except ValueError as error:
            each.fail(error)
        origins.append(text)
    return tuple(origins)


def _secret(text: str, folder: Path) -> str:
    kind, colon, name = text.partition(":")
    if not colon or kind not in ("env", "file"):
        return text
    if kind == "env":
        if not os.environ.get(name):
            raise ValueError(f"the environment has no {name}")
        return os.environ[name]
    path = folder / name
    try:
        found = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not found:
        raise ValueError(f"{path} is empty")
    return found


def _store(entry: Entry) -> str:
    """The URL; a relative path in it is one beside the file."""
    url = entry.secret()
    if url.startswith("sqlite:") and not url.startswith(("sqlite:/", "sqlite:~/")):
        url = f"sqlite://{entry.folder / url.removeprefix('sqlite:')}"
    try:
        open_store(url)
    except ValueError as error:
        entry.fail(error)
    return url


# -- cleanup hooks -----------------------------------------------------------------------------------


def _hooks(entry: Entry) -> tuple[Hook, ...]:
    return tuple(_hook(each) for each in entry.list())


def _hook(entry: Entry) -> Hook:
    """`module.function` alone, or a mapping with one of `function`, `webhook` and `command`."""
    if not entry.is_mapping:
        return _made(entry, FunctionHook, function=entry.read(_import))
    keys = entry.items((*_HOOKS, *_WEBHOOK_KEYS, "name", "limit", "attempts"))
    kinds = [name for name in _HOOKS if name in keys]
    if len(kinds) != 1:
        entry.fail("is to have one of function, webhook and command")
    (kind,) = kinds
    for name in _WEBHOOK_KEYS:
        if name in keys and kind != "webhook":
            keys[name].fail("is for webhooks")
    common = {
        "name": keys["name"].text() if "name" in keys else "",
        "limit": keys["limit"].read(read_duration) if "limit" in keys else None,
        "attempts": keys["attempts"].read(_whole) if "attempts" in keys else None,
    }
    value = keys[kind]
    if kind == "function":
        return _made(value, FunctionHook, function=value.read(_import), **common)
    if kind == "command":
        return _made(value, CommandHook, argv=_command(value), **common)
    headers = keys["headers"].items() if "headers" in keys else {}
    return _made(
        value,
        WebhookHook,
        url=value.secret(),
        secret=keys["secret"].secret() if "secret" in keys else None,
        private=keys["private"].flag() if "private" in keys else False,
        headers=tuple((name, header.secret()) for name, header in headers.items()),
        **common,
    )


def _made(entry: Entry, kind: Callable[..., Hook], **fields: Any) -> Hook:
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        entry.fail(error)


def _command(entry: Entry) -> tuple[str, ...]:
    """A list of words, or text that is cut into words as a shell does."""
    words = [each.text() for each in entry.list()] if entry.is_list else entry.read(shlex.split)
    if words and shutil.which(words[0]) is None:
        entry.fail(f"there is no program {words[0]}")
    return tuple(words)


# -- routes ------------------------------------------------------------------------------------------


def _routes(routes: Entry | None, url: Entry | None) -> Iterator[Route]:
    seen: set[str] = set()
    for entry, route in [*_own_routes(routes), *_gramex_routes(url)]:
        if route.pattern.text in seen:
            entry.fail(f"another route has the pattern {route.pattern.text}")
        if route.is_reserved:
            entry.fail(f"what is below {PREFIX} belongs to the gateway")
        seen.add(route.pattern.text)
        yield route


def _own_routes(entry: Entry | None) -> Iterator[tuple[Entry, Route]]:
    if entry is None:
        return
    if entry.is_list:
        for each in entry.list():
            keys = each.items(("pattern", *_ROUTE_KEYS))
            if "pattern" not in keys:
                each.fail("has no pattern")
            yield keys["pattern"], _route(each, keys["pattern"].text(), keys)
        return
    for pattern, each in entry.items().items():
        yield each, _route(each, pattern, each.items(_ROUTE_KEYS))


def _gramex_routes(entry: Entry | None) -> Iterator[tuple[Entry, Route]]:
    """Gramex's section: patterns are regular expressions for the whole path."""
    for each in entry.items().values() if entry is not None else ():
        keys = each.items(("pattern", "handler", "kwargs"))
        for name in ("pattern", "handler", "kwargs"):
            if name not in keys:
                each.fail(f"has no {name}")
        if keys["handler"].text() != "WebSocketHandler":
            keys["handler"].fail("only WebSocketHandler is served here")
        pattern = keys["pattern"].read(_expression)
        yield keys["pattern"], _route(keys["kwargs"], pattern, keys["kwargs"].items(_ROUTE_KEYS))


def _expression(text: str) -> re.Pattern[str]:
    if "$YAML" in text or "$$" in text:
        raise ValueError("variables are not replaced here; write the path as the browser asks for it")
    if not text.startswith(("/", "^/", "(/")):
        raise ValueError(f"{text!r} does not start with /")
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None


def _route(entry: Entry, pattern: str | re.Pattern[str], keys: dict[str, Entry]) -> Route:
    try:
        route = Route(pattern, origins=_origins(keys["origins"]) if "origins" in keys else None)
    except ValueError as error:
        entry.fail(error)
    for name in _FUNCTIONS:
        if name in keys:
            _set(keys[name], getattr(route, name))
    if "auth" in keys:
        _set(keys["auth"], route.authenticate)
    if "cleanup" in keys:
        route.hooks += _hooks(keys["cleanup"])
    if "overflow" in keys:
        route.overflow = keys["overflow"].read(_overflow)
    if not route.functions:
        entry.fail("serves nothing: give it on_message, open or on_close")
    return route


def _overflow(text: str) -> Overflow:
    for each in OVERFLOWS:
        if text == each:
            return each
    raise ValueError(f"{text!r} is none of {', '.join(OVERFLOWS)}")


def _set(entry: Entry, decorate: Callable[[Function], Function]) -> None:
    if entry.is_bool:
        entry.fail("name a function: auth: module.function, which gets the request and returns the user")
    if entry.is_mapping:
        keys = entry.items(("function",))
        if "function" not in keys:
            entry.fail("has no function")
        entry = keys["function"]
    found = entry.read(_import)
    try:
        decorate(found)
    except (TypeError, ValueError) as error:
        entry.fail(error)


# -- importing ---------------------------------------------------------------------------------------


def _import(text: str) -> Function:
    """The function of `module.function`; `ValueError` says why there is none."""
    call = _CALL.fullmatch(text.strip())
    name = call["name"].replace(":", ".") if call else ""
    module_name, dot, function = name.rpartition(".")
    if not dot or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{text!r} is no function: write module.function")
    module = _import_module(module_name)
    found = getattr(module, function, None)
    if found is None:
        has = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{module_name} has no function {function!r}; {_known(function, has, 'it has')}")
    return found  # type: ignore[no-any-return]


def _import_module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(missing + "."):
            raise ValueError(f"no module named {missing!r} beside the configuration, nor installed") from None
        raise ValueError(f"{name} needs the module {missing!r}, which is not installed") from None
    except SyntaxError as error:
        place = f"{Path(error.filename or name).name}:{error.lineno}"
        raise ValueError(f"{name} is not Python: {place}: {error.msg}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's module: anything may come of it
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        said = _one_line(traceback.format_exception_only(error)[-1])
        raise ValueError(f"importing {name} failed at {place}: {said}") from None
