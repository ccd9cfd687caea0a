"""Which URLs name which store, and where the store is of somebody who names none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import read_listen
from gateway.session_store import MemoryStore
from gateway.stores import default_path, open_store
from gateway.stores.redis import RedisStore
from gateway.stores.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/lib/x.sqlite3", "/var/lib/x.sqlite3"),
        ("sqlite://localhost/var/x", "/var/x"),
        ("sqlite:/var/x", "/var/x"),
        ("sqlite:///with space/ü.sqlite3", "/with space/ü.sqlite3"),
        ("sqlite:///with%20space", "/with space"),
        ("sqlite:///100%25", "/100%"),
    ],
)
def test_sqlite(url: str, path: str) -> None:
    store = open_store(url)
    assert isinstance(store, SqliteStore)
    assert store.path == Path(path)
    again = open_store(store.url)
    assert isinstance(again, SqliteStore)
    assert again.path == store.path


def test_a_relative_path_counts_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:state/x.sqlite3")
    assert isinstance(store, SqliteStore)
    assert store.path == tmp_path / "state" / "x.sqlite3"
    assert list(tmp_path.iterdir()) == [], "nothing is created before it is opened"


def test_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/mia")
    store = open_store("sqlite:~/lab/x.sqlite3")
    assert isinstance(store, SqliteStore)
    assert store.path == Path("/home/mia/lab/x.sqlite3")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("redis://mia:s3cret@db.example:7000/3", "redis://db.example:7000/3"),
        ("redis://:s3cret%40%2F@[::1]/1", "redis://[::1]:6379/1"),
        ("rediss://:s3cret@db.example", "rediss://db.example:6379/0"),
        ("redis://h?password=s3cret&username=mia&db=2", "redis://h:6379/2"),
        ("redis://h?prefix=lab", "redis://h:6379/0?prefix=lab"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+unix://:s3cret@/run/redis.sock?db=2&prefix=a b", "redis+unix:///run/redis.sock?db=2&prefix=a+b"),
        ("rediss://h?ca=/etc/ca.pem", "rediss://h:6379/0?ca=%2Fetc%2Fca.pem"),
    ],
)  # fmt: skip
def test_redis(url: str, shown: str) -> None:
    store = open_store(url)
    assert isinstance(store, RedisStore)
    assert store.url == shown
    assert open_store(shown).url == shown


def test_memory() -> None:
    store = open_store("memory:")
    assert isinstance(store, MemoryStore)
    assert (store.url, store.lasting) == ("memory:", False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "postgres://mia:s3cret@h/db",
        "s3cret",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/path",
        "sqlite:///x?mode=ro",
        "sqlite:///x\0y",
        "redis://",
        "redis://:s3cret@",
        "redis://:s3cret@h:port/0",
        "redis://mia:s3cret:x@h:y",
        "redis://:s3cret@h/zero",
        "redis://:s3cret@h?prefix=",
        "redis://:s3cret@h?prefix={x}",
        "redis://:s3cret@h?timeout=1",
        "redis://:s3cret@[::1",
        "unix://:s3cret@",
        "unix://run/redis.sock",
        "REDIS:/x",
    ],
)
def test_anything_else_is_refused_in_one_sentence_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"write (memory:|redis://|sqlite:///)") as caught:
        open_store(url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("listen", "name"),
    [
        ("127.0.0.1:8000", "127.0.0.1-8000.sqlite3"),
        (":80", "0.0.0.0-80.sqlite3"),
        ("[::1]:8000", "1-8000.sqlite3"),
        ("unix:/nowhere/gateway.sock", "nowhere-gateway.sock-1bc82678.sqlite3"),
    ],
)
def test_the_default_is_named_after_the_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listen: str, name: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path(read_listen(listen)) == tmp_path / "gateway" / name


def test_each_unix_socket_has_a_default_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        paths = ("x", "./x", f"{tmp_path}/{folder}/../{folder}/x", "x-y", "x/y", "ü", "ä")
        files += [default_path(read_listen(f"unix:{path}")) for path in paths]
    assert files[0] == files[1] == files[2], "the same socket"
    assert len(set(files)) == len(files) - 4


def test_the_default_is_in_the_users_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".local" / "state" / "gateway" / "127.0.0.1-8000.sqlite3"
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert default_path(read_listen("8000")) == expected
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_path(read_listen("8000")) == expected
