"""Stores and nodes that die, hang, fill up and come back: what is still cleaned up, and how often.

The nodes are real processes (`tests/support/store_worker.py`), and so is Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gateway.session_store import (
    Claim,
    Phase,
    Session,
    SessionStore,
    StoreRefuses,
    StoreUnavailable,
    StoreUnusable,
)
from gateway.stores import open_store
from gateway.stores.redis import RedisStore
from gateway.stores.sqlite import BUSY, VERSION, SqliteStore
from tests.support.parts import ROOT, missing, part
from tests.support.processes import Process, free_port
from tests.support.servers import Redis
from tests.support.stores import redis_client

SESSIONS = 2_000
PROCESSES = 8
LEASE = 15.0


@pytest.fixture
def server() -> Iterator[Redis]:
    """A Redis of this test's own."""
    running = Redis()
    yield running
    running.remove()


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that processes share."""
    if request.param == "redis":
        server: Redis = request.getfixturevalue("server")
        return server.url
    return f"sqlite:{tmp_path / 'sessions.sqlite3'}"


@asynccontextmanager
async def opened(store: SessionStore, node: str = "a") -> AsyncIterator[SessionStore]:
    await store.open()
    try:
        await store.join(node, LEASE)
        yield store
    finally:
        await store.close()


# -- many processes, one store -----------------------------------------------------------------------------


async def orphans(url: str) -> set[str]:
    """2,000 sessions of a node whose lease is over."""
    async with opened(open_store(url), "other") as store:
        await store.join("dead", 0.0)
        names = {f"s{number:04}" for number in range(SESSIONS)}
        assert all(await asyncio.gather(*(store.add("dead", Session(name)) for name in names)))
        await store.leave("other")
        return names


def clean_up(url: str, folder: Path, lease: float, deaths: list[tuple[str, int]]) -> dict[str, list[int]]:
    """Eight nodes at once, some of which die: which attempts there were at each session."""
    gate, effects = folder / "gate", folder / "effects"
    os.mkfifo(gate)
    opener = os.open(gate, os.O_RDWR)
    with ExitStack() as stack:
        stack.callback(os.close, opener)
        workers = []
        for number in range(PROCESSES):
            die = [str(word) for word in deaths[number]] if number < len(deaths) else []
            module = [sys.executable, "-m", "tests.support.store_worker"]
            command = [*module, url, f"n{number}", str(effects), str(gate), str(lease), *die]
            workers.append(stack.enter_context(Process(command, name=f"node {number}", cwd=ROOT)))
        for worker in workers:
            worker.wait_for_output("ready")
        os.write(opener, b"!" * PROCESSES)
        codes = [worker.wait(60) for worker in workers]
    assert codes == [-signal.SIGKILL] * len(deaths) + [0] * (PROCESSES - len(deaths))
    attempts = defaultdict(list)
    for line in effects.read_text().splitlines():
        name, attempt, fence = line.split()
        assert attempt == fence
        attempts[name].append(int(attempt))
    return attempts


async def test_each_of_2000_sessions_is_cleaned_up_once_by_8_processes(url: str, tmp_path: Path) -> None:
    names = await orphans(url)
    attempts = await asyncio.to_thread(clean_up, url, tmp_path, 60.0, [])
    assert attempts == {name: [1] for name in names}


async def test_none_is_missing_when_half_of_8_processes_are_killed(url: str, tmp_path: Path) -> None:
    """And what is done twice has the same key, and a higher attempt: it died between effect and record."""
    names = await orphans(url)
    deaths = [("claimed", 30), ("effect", 10), ("effect", 55), ("finished", 25)]
    attempts = await asyncio.to_thread(clean_up, url, tmp_path, 2.0, deaths)
    assert set(attempts) == names
    for name, found in attempts.items():
        assert found == sorted(set(found)), f"{name}: two effects with the same attempt, or in a wrong order"
    repeated = Counter(len(found) for found in attempts.values())
    assert 2 <= SESSIONS - repeated[1] <= 10, "two nodes died right after an effect"


# -- SQLite: locked, full, read-only, damaged --------------------------------------------------------------

_HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
database.execute("INSERT OR REPLACE INTO meta VALUES ('held', 1)")
print("held", flush=True)
sys.stdin = open(sys.argv[2])
sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[Path], Process]]:
    """`hold(path)` is a process that keeps the file locked until it is stopped."""
    with ExitStack() as stack:

        def start(path: Path) -> Process:
            os.mkfifo(tmp_path / "never")
            command = [sys.executable, "-c", _HOLD, str(path), str(tmp_path / "never")]
            process = stack.enter_context(Process(command, name="holder"))
            process.wait_for_output("held")
            return process

        yield start


class Pulse:
    """How long the event loop has been blocked at the most, in s."""

    async def __aenter__(self) -> Pulse:
        self.worst = 0.0
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _beat(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.worst = max(self.worst, time.monotonic() - before - 0.01)


async def test_a_locked_file_is_waited_for(tmp_path: Path, hold: Callable[[Path], Process]) -> None:
    path = tmp_path / "sessions.sqlite3"
    async with opened(SqliteStore(path)) as store, Pulse() as pulse:
        holder = await asyncio.to_thread(hold, path)
        calls = [asyncio.ensure_future(store.add("a", Session(f"s{number}"))) for number in range(100)]
        await asyncio.sleep(0)
        assert not any(call.done() for call in calls)
        await asyncio.to_thread(holder.stop)
        assert await asyncio.gather(*calls) == [True] * 100
    assert pulse.worst < 1


async def test_a_file_that_stays_locked_is_given_up_and_heals(
    tmp_path: Path, hold: Callable[[Path], Process]
) -> None:
    path = tmp_path / "sessions.sqlite3"
    async with opened(SqliteStore(path)) as store, Pulse() as pulse:
        holder = await asyncio.to_thread(hold, path)
        began = time.monotonic()
        calls = [asyncio.ensure_future(store.add("a", Session("s0")))]
        for number in range(1, 50):
            await asyncio.sleep(0.02)  # they come one after the other, and none waits longer than the first
            calls.append(asyncio.ensure_future(store.add("a", Session(f"s{number}"))))
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < BUSY + 2
        assert {type(error) for error in found} == {StoreUnavailable}
        assert "locked by another process" in str(found[0])
        await asyncio.to_thread(holder.stop)
        assert await store.add("a", Session("s0"))
        assert (await store.counts())[Phase.OPEN] == 1
    assert pulse.worst < 1


class Disk:
    """A folder whose disk can be full or read-only: a real one as root, else what comes close."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount = os.geteuid() == 0 and self._run("mount", "-t", "tmpfs", "-o", "size=2m", "disk", folder)
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def _run(self, *command: str | Path) -> bool:
        return subprocess.run(command, capture_output=True, check=False, timeout=10).returncode == 0

    def fill(self) -> None:
        """Leave no room."""
        if not self._mount:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, self._limits[1]))
            return
        with (self.folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)

    def make_room(self) -> None:
        """Undo `fill`."""
        if self._mount:
            (self.folder / "ballast").unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def end(self) -> None:
        """Undo everything."""
        if self._mount:
            assert self._run("umount", "--lazy", self.folder)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.end()


async def test_a_full_disk_refuses_and_heals(disk: Disk) -> None:
    async with opened(SqliteStore(disk.folder / "sessions.sqlite3")) as store:
        old = Session("old", data={"lamp": 1})
        assert await store.add("a", old)
        await asyncio.to_thread(disk.fill)
        calls = (store.add("a", Session(f"s{number}", data={"x": "x" * 10_000})) for number in range(500))
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in found} - {bool} == {StoreRefuses}
        assert f"cannot write {disk.folder}" in str(found[-1])
        assert "old" in {row.session.id for row in await store.rows()}
        await asyncio.to_thread(disk.make_room)
        assert await store.add("a", Session("new"))
        assert await store.claim("a", old, "CLIENT_CLOSE")


async def test_what_a_full_disk_still_takes_is_done_beside_what_it_does_not(tmp_path: Path) -> None:
    """Of calls that wait together, the one that fails takes no other with it."""
    path = tmp_path / "sessions.sqlite3"
    async with opened(SqliteStore(path)) as store:
        bad = store.add("a", Session("bad"))
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(
                "CREATE TRIGGER t BEFORE INSERT ON sessions WHEN NEW.id = 'bad' "
                "BEGIN SELECT raise(FAIL, 'no'); END"
            )
        good = (store.add("a", Session(f"s{number}")) for number in range(9))
        found = await asyncio.gather(*good, bad, return_exceptions=True)
        assert found[:9] == [True] * 9
        assert isinstance(found[9], StoreUnavailable)
        assert (await store.counts())[Phase.OPEN] == 9


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """`read_only(folder)` lets nobody write there; root neither."""
    with ExitStack() as stack:

        def seal(folder: Path) -> None:
            if os.geteuid() != 0:
                for path in (folder, *folder.iterdir()):
                    stack.callback(path.chmod, path.stat().st_mode)
                    path.chmod(0o500)
            elif subprocess.run(["mount", "--bind", folder, folder], check=False).returncode == 0:
                umount: list[str | Path] = ["umount", "--lazy", folder]
                stack.callback(lambda: subprocess.run(umount, check=True))
                subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
            else:
                missing("root may write everywhere, and this machine lets nobody mount")

        yield seal


async def test_a_read_only_file_is_refused(tmp_path: Path, read_only: Callable[[Path], None]) -> None:
    path = tmp_path / "ro" / "sessions.sqlite3"
    async with opened(SqliteStore(path)) as store:
        await store.add("a", Session("s"))
    read_only(path.parent)
    for one in (path, path.parent / "another.sqlite3", path.parent / "folder" / "another.sqlite3"):
        with pytest.raises(StoreRefuses, match="cannot write") as caught:
            await SqliteStore(one).open()
        assert str(one) in str(caught.value)


def _text(path: Path) -> None:
    path.write_text("dear diary " * 1000)


def _half(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")


def _foreign(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE recipes (name)")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_text, "is damaged, or is no SQLite database"),
        (_half, "is damaged"),
        (_newer, f"newer gateway .version {VERSION + 1}, this one knows {VERSION}."),
        (_foreign, "is the database of another program"),
        (_folder, "is no file"),
    ],
    ids=lambda part: getattr(part, "__name__", None),
)
async def test_a_file_that_is_no_store_says_what_to_do(tmp_path: Path, spoil, says: str) -> None:
    path = tmp_path / "sessions.sqlite3"
    async with opened(SqliteStore(path)) as store:
        await store.add("a", Session("s"))
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StoreUnusable, match=says) as caught:
        await SqliteStore(path).open()
    assert str(path) in str(caught.value)
    assert "give another --store" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == (path.read_bytes() if path.is_file() else b""), "it has been changed"


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite3"
    path.touch()
    async with opened(SqliteStore(path)) as store:
        assert await store.add("a", Session("s"))


async def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gateway" / "sessions.sqlite3"
    async with opened(SqliteStore(path)) as store:
        await store.add("a", Session("s"))
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
        assert len(list(path.parent.iterdir())) == 3


async def test_a_process_that_dies_leaves_what_it_was_told_is_recorded(tmp_path: Path) -> None:
    """Its files are copied as a crash would leave them."""
    path, crashed = tmp_path / "sessions.sqlite3", tmp_path / "crashed.sqlite3"
    async with opened(SqliteStore(path)) as store:
        await asyncio.gather(*(store.add("a", Session(f"s{number}")) for number in range(500)))
        for suffix in ("", "-wal"):
            await asyncio.to_thread(shutil.copy, f"{path}{suffix}", f"{crashed}{suffix}")
    async with opened(SqliteStore(crashed), "b") as store:
        assert (await store.counts())[Phase.OPEN] == 500


async def test_whatever_goes_wrong_is_told_to_those_who_wait(tmp_path: Path) -> None:
    """An error that nobody has thought of ends neither the thread nor the waiting."""
    broken = [True]

    def clock() -> float:
        if broken[0]:
            raise LookupError("no clock today")
        return 1.0

    store = SqliteStore(tmp_path / "sessions.sqlite3", clock=clock, boot="one")
    with pytest.raises(StoreUnavailable, match="no clock today"):
        await store.open()
    broken[0] = False
    async with opened(store):
        broken[0] = True
        with pytest.raises(StoreUnavailable, match="no clock today"):
            await store.add("a", Session("s"))
        broken[0] = False
        assert await store.add("a", Session("s"))


# -- SQLite: clocks ----------------------------------------------------------------------------------------


async def test_no_step_of_the_wall_clock_moves_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sessions.sqlite3"
    async with opened(SqliteStore(path)) as store, opened(SqliteStore(path), "b") as other:
        assert await store.add("a", Session("s"))
        await store.join("c", LEASE)
        assert await store.add("c", Session("t"))
        await store.park("c", [("t", 60.0, b"state")])
        real = time.time
        for step in (3600.0, -3600.0, 1e9):
            monkeypatch.setattr(time, "time", lambda step=step: real() + step)
            assert await other.claim_orphans("b", 10) == []
            assert await other.parked("t") == b"state"
            assert await store.renew("a", LEASE)


@pytest.mark.parametrize(("boot", "now"), [("two", 2_000.0), ("two", 3.0), ("", 3.0)])
async def test_after_a_restart_of_the_machine_all_leases_and_graces_are_over(
    tmp_path: Path, boot: str, now: float
) -> None:
    path = tmp_path / "sessions.sqlite3"
    first = "one" if boot else ""
    async with opened(SqliteStore(path, clock=lambda: 1_000.0, boot=first)) as store:
        for name in ("open", "parked", "closing"):
            await store.add("a", Session(name))
        await store.park("a", [("parked", 3600.0, b"state")])
        claim = await store.claim("a", Session("closing"), "CLIENT_CLOSE")
        assert claim
        await store.put_off("a", claim, 3600.0, (), "no")
    async with opened(SqliteStore(path, clock=lambda: now, boot=boot), "b") as store:
        assert await store.parked("parked") is None
        assert await store.renew("a", LEASE) is False
        found = {claim.session.id: claim.reason for claim in await store.claim_orphans("b", 10)}
        assert found == {"open": "NODE_LOST", "parked": "SHUTDOWN", "closing": "CLIENT_CLOSE"}


async def test_opening_it_again_in_the_same_run_of_the_machine_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite3"
    async with opened(SqliteStore(path, clock=lambda: 1_000.0, boot="one")) as store:
        await store.add("a", Session("s"))
    async with opened(SqliteStore(path, clock=lambda: 1_001.0, boot="one"), "b") as store:
        assert await store.claim_orphans("b", 10) == []
        assert await store.renew("a", LEASE)


# -- Redis: killed, hanging, emptied, full -------------------------------------------------------------------


async def test_redis_is_killed_and_comes_back_empty(server: Redis) -> None:
    async with opened(RedisStore(server.url)) as store:
        await store.add("a", Session("s"))
        await asyncio.to_thread(server.kill)
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="cannot use redis"):
                await store.renew("a", LEASE)
        assert time.monotonic() - began < 3
        again = await asyncio.to_thread(Redis, directory=server.directory)
        try:
            assert await store.renew("a", LEASE) is False
            await store.join("a2", LEASE)
            assert await store.add("a2", Session("t"))
            assert [row.session.id for row in await store.rows()] == ["t"]
        finally:
            await asyncio.to_thread(again.stop)


async def test_redis_hangs_and_what_was_given_up_is_not_done_later(server: Redis) -> None:
    async with opened(RedisStore(server.url)) as store, Pulse() as pulse:
        server.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        calls = [asyncio.ensure_future(store.add("a", Session(f"s{number}"))) for number in range(20)]
        await asyncio.sleep(0.5)
        calls += [asyncio.ensure_future(store.add("a", Session(f"t{number}"))) for number in range(20)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in found} == {StoreUnavailable}
        assert time.monotonic() - began < 3.5
        server.send_signal(signal.SIGCONT)
        assert await store.renew("a", LEASE)
        assert (await store.counts())[Phase.OPEN] == 0
    assert pulse.worst < 1


async def test_a_slow_redis_slows_nobody_else(server: Redis) -> None:
    async with opened(RedisStore(server.url)) as store, Pulse() as pulse:
        with redis_client(server) as client:
            client.client_pause(600)
            assert await store.add("a", Session("s"))
    assert pulse.worst < 0.5


async def test_an_emptied_redis_knows_nothing(server: Redis) -> None:
    async with opened(RedisStore(server.url)) as store:
        for name in ("s", "t", "u"):
            await store.add("a", Session(name))
        await store.park("a", [("t", 60.0, b"state")])
        claim = await store.claim("a", Session("u"), "CLIENT_CLOSE")
        assert claim
        with redis_client(server) as client:
            client.flushall()
        assert await store.parked("t") is None
        assert await store.resume("a", "t") is None
        assert await store.claim("a", Session("s"), "CLIENT_CLOSE") is None
        assert await store.finish("a", claim) is False
        assert await store.renew("a", LEASE) is False
        assert await store.claim_orphans("a", 10) == []
        assert not any((await store.counts()).values())
        await store.join("b", LEASE)
        assert await store.add("b", Session("s"))


async def test_a_script_that_redis_has_forgotten_is_sent_again(server: Redis) -> None:
    async with opened(RedisStore(server.url)) as store:
        with redis_client(server) as client:
            client.script_flush()
        added = await asyncio.gather(*(store.add("a", Session(f"s{number}")) for number in range(50)))
        assert added == [True] * 50
        assert [row.session.id for row in await store.rows()] == [f"s{number}" for number in range(50)]


async def test_records_that_redis_has_evicted_are_passed_over(server: Redis) -> None:
    async with opened(RedisStore(server.url)) as store:
        for name in ("s", "t", "u"):
            await store.add("a", Session(name))
        await store.leave("a")
        await store.join("b", LEASE)
        with redis_client(server) as client:
            client.delete("{gateway}:s:s", "{gateway}:s:t")
        assert [row.session.id for row in await store.rows()] == ["u"]
        assert [claim.session.id for claim in await store.claim_orphans("b", 10)] == ["u"]
        assert (await store.counts())[Phase.OPEN] == 0


async def test_a_full_redis_refuses_and_still_lets_go(server: Redis) -> None:
    async with opened(RedisStore(server.url)) as store:
        await store.add("a", Session("s"))
        claim = await store.claim("a", Session("s"), "CLIENT_CLOSE")
        assert claim
        with redis_client(server) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreRefuses, match="memory limit"):
                await store.add("a", Session("t"))
            assert await store.finish("a", claim)
            client.config_set("maxmemory", 0)
        assert await store.add("a", Session("t"))


async def test_a_replica_refuses(server: Redis) -> None:
    async with opened(RedisStore(server.url)) as store:
        with redis_client(server) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreRefuses, match="read-only replica"):
                await store.add("a", Session("t"))
            client.execute_command("REPLICAOF", "NO", "ONE")
        assert await store.add("a", Session("t"))


async def test_keys_of_a_newer_version_or_of_others_are_left_alone(server: Redis) -> None:
    with redis_client(server) as client:
        client.set("{gateway}:version", "2")
        client.hset("{theirs}:version", "a", "b")
    with pytest.raises(StoreUnusable, match=r"newer gateway \(version 2, this one knows 1\)"):
        await RedisStore(server.url).open()
    with pytest.raises(StoreUnusable, match="keys of another program"):
        await RedisStore(f"{server.url}?prefix=theirs").open()
    async with opened(RedisStore(f"{server.url}?prefix=ours")) as store:
        assert store.url == f"{server.url}?prefix=ours"


async def test_a_wrong_password_is_not_shown(server: Redis) -> None:
    with redis_client(server) as client:
        client.config_set("requirepass", "right")
        path = server.url.removeprefix("redis+unix://")
        for url in (f"unix://:hush@{path}", f"unix://mia:hush@{path}", server.url):
            with pytest.raises(StoreUnusable, match="refuses the user or the password") as caught:
                await RedisStore(url).open()
            assert "hush" not in str(caught.value)
        async with opened(RedisStore(f"unix://:right@{path}")) as store:
            assert "right" not in store.url


async def test_where_nobody_listens(tmp_path: Path) -> None:
    port = free_port()
    for url in (f"redis://:hush@127.0.0.1:{port}/3", f"unix://:hush@{tmp_path}/none.sock"):
        store = RedisStore(url)
        with pytest.raises(StoreUnavailable, match="cannot use") as caught:
            await store.open()
        assert "hush" not in str(caught.value)
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.counts()


async def test_redis_over_tcp_and_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = [part("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
    plain, secure = free_port(), free_port()
    options = ["--port", str(plain), "--tls-port", str(secure), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    server = await asyncio.to_thread(Redis, *options)
    try:
        async with opened(RedisStore(f"redis://127.0.0.1:{plain}/1")) as store:
            assert await store.add("a", Session("s"))
        trusted = RedisStore(f"rediss://localhost:{secure}/1?ca={certificate}")
        async with opened(trusted, "b") as store:
            assert [row.session.id for row in await store.rows()] == ["s"]
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            await RedisStore(f"rediss://localhost:{secure}/1").open()
    finally:
        await asyncio.to_thread(server.remove)


# -- Redis: answers that get lost --------------------------------------------------------------------------


@asynccontextmanager
async def deaf(server: Redis, folder: Path) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The URL of a way to the server that passes everything on but answers while the event is set.

    Instead of an answer the connection ends.
    """
    lose = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(server.socket)
        there = asyncio.create_task(pass_on(reader, forth))
        while data := await back.read(65536):
            if lose.is_set():
                break
            writer.write(data)
        there.cancel()
        writer.close()
        forth.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    path = server.directory / "deaf.sock"
    async with await asyncio.start_unix_server(serve, path):
        yield f"unix://{path}", lose


async def test_what_was_done_is_said_again_when_the_answer_got_lost(server: Redis, tmp_path: Path) -> None:
    async with deaf(server, tmp_path) as (url, lose), opened(RedisStore(url)) as store:
        async with opened(RedisStore(server.url), "dead") as other:
            for number in range(3):
                await other.add("dead", Session(f"orphan{number}"))
            await other.leave("dead")
        first = Session("s", data={"n": 1})
        await store.add("a", Session("parked"))
        await store.park("a", [("parked", 60.0, b"state")])
        lose.set()
        with pytest.raises(StoreUnavailable):
            await store.add("a", first)
        lose.clear()
        assert await store.add("a", first)
        lose.set()
        with pytest.raises(StoreUnavailable):
            await store.resume("a", "parked")
        lose.clear()
        assert await store.resume("a", "parked") == Session("parked")
        lose.set()
        with pytest.raises(StoreUnavailable):
            await store.claim_orphans("a", 2)
        lose.clear()
        assert [row.node for row in await store.rows()] == ["a", "a", "dead", "a", "a"], "it was done"
        again = await store.claim_orphans("a", 2)
        assert [(claim.session.id, claim.attempt) for claim in again] == [("orphan0", 1), ("orphan1", 1)]
        (rest,) = await store.claim_orphans("a", 2)
        assert rest.session.id == "orphan2"

        lose.set()
        with pytest.raises(StoreUnavailable):
            await store.claim("a", first, "PING_TIMEOUT", 2.5)
        lose.clear()
        claim = await store.claim("a", first, "PING_TIMEOUT", 2.5)
        assert claim == Claim(first, "PING_TIMEOUT", 1, 1, None, 2.5)
        assert await store.finish("a", claim)
