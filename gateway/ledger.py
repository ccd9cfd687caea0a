"""The sessions of this node and their states, as the store has them.

Joins, renews the node's lease, takes over what others have left, and holds the only door to cleanup
hooks, `Ledger.claim`. Knows the store's contract and one callable that runs the hooks; nothing of clients
or connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Final

from .application import Refused
from .config import Settings
from .protocol.lifecycle import Action, Event, State, move
from .protocol.reasons import Reason
from .session_store import Claim, Phase, SessionStore, StoreError, StoreRefuses, StoreUnavailable
from .session_store import Session as Record

log = logging.getLogger("gateway")

Clean = Callable[[Claim], Awaitable[None]]
End = Callable[[Reason], None]

_BEAT: Final = 0.5  # s between looks at the store, at the most
_CLAIMS: Final = 256  # at the same time: stores write together what waits together
_FAREWELL: Final = 1.0  # s for the store to be told of a stop, and to let go
_ADOPTED: Final = 500  # orphans taken in one look at the most
_WORTH_IT: Final = 32  # places for orphans, to ask for them before it is time
_DATA: Final = 1_000_000  # characters of one session's data: all of it is looked at in each renewal
_TURN: Final = 0.002  # s of looking at data before others have a turn


class Health(Enum):
    """How the store is. Sessions live on in any case."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    REFUSING = "refusing"


def user_text(user: Any) -> str | None:
    """What `auth` returned, as text that is the same for the same user."""
    if user is None or isinstance(user, str):
        return user
    try:
        return json.dumps(user, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return str(user)
    except Exception:  # noqa: BLE001 - the application's own class: anything may come out of it
        return object.__repr__(user)


class Entry:
    """One session. Its owner tells what happens to it, and `end` is how the owner is told to end it."""

    __slots__ = (
        "id",
        "state",
        "user",
        "routes",
        "opened",
        "reason",
        "_ledger",
        "_end",
        "_asked",
        "_kept",
        "_recorded",
        "_data",
        "_saved",
        "_complained",
        "_silent_since",
        "_detected_after",
    )

    def __init__(self, ledger: Ledger, session_id: str, end: End) -> None:
        self.id = session_id
        self.state = State.NEW
        self.user: str | None = None
        self.routes: tuple[str, ...] = ()
        self.opened = 0.0
        self.reason: Reason | None = None
        self._ledger = ledger
        self._end = end
        self._asked = 0  # applications that have been asked and are not done with it
        self._kept = False  # one of them has accepted, or may have
        self._recorded = False
        self._data: dict[str, Any] | None = None
        self._saved = ""  # the data that the store has, as JSON
        self._complained = False
        self._silent_since: float | None = None
        self._detected_after: float | None = None

    # -- applications ------------------------------------------------------------------------------

    async def ask(self, route: str, user: Any = None) -> None:
        """An application is about to be asked: what is recorded says so before it is.

        `accepted` or `refused` must follow. Raises `application.Refused` (503) if that is not possible.
        """
        if self.state.is_over:
            raise Refused(503, "the session is over")
        self._asked += 1
        news = route not in self.routes
        if news:
            self.routes = (*self.routes, route)
        if user is not None:
            self.user = user_text(user)
        try:
            if self._move(Event.ASK) is Action.RECORD:
                self.opened = self._ledger.wall()
            if not self._recorded:  # by nobody, or by somebody who is at it: it is to have this route, too
                await self._ledger.record(self)
            elif news:
                await self._ledger.save([self])
        except BaseException:
            self.refused()
            raise

    def accepted(self) -> None:
        """It has said yes, or has been given up and may yet. `left` must follow."""
        self._kept = True
        self._ledger.visited = True

    def refused(self) -> None:
        """It has said no, or was not asked after all."""
        self.left()

    def left(self) -> None:
        """It is done with this session: its `close` has returned."""
        self._asked -= 1
        if self._asked:
            return
        if self.state is State.CLOSING:
            self._ledger.idle(self)
        elif not self._kept and self._move(Event.REFUSED) is Action.REMOVE:
            self.routes = ()
            self._ledger.remove(self)

    @property
    def is_busy(self) -> bool:
        """Whether an application is not done with it."""
        return self._asked > 0

    @property
    def is_kept(self) -> bool:
        """Whether there is anything to clean up after."""
        return self._kept

    # -- data --------------------------------------------------------------------------------------

    @property
    def data(self) -> dict[str, Any]:
        """What handlers keep with it: a JSON object."""
        if self._data is None:
            self._data = {}
            self._ledger.keeps_data(self)
        return self._data

    async def save(self) -> bool:
        """Record the data now. False: the store is down, and it will be recorded when it is back.

        Raises `TypeError` if it is not JSON.
        """
        self._text()
        return await self._ledger.save([self])

    async def saved(self) -> None:
        """Return when the data is recorded, or cannot be."""
        if self.changed():
            await self._ledger.save([self])

    def check_data(self) -> None:
        """Raise `TypeError` if the data is not JSON."""
        self._text()

    def _text(self) -> str:
        if not self._data:
            return ""
        try:
            text = json.dumps(self._data, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"handler.data is kept as JSON, and this is not: {error}") from error
        if len(text) > _DATA:
            raise TypeError(
                f"handler.data is kept up to {_DATA} characters of JSON, and this has {len(text)}"
            )
        return text

    def changed(self) -> bool:
        """Whether there is data that the store does not have. What is not JSON is told once."""
        if self._data is None:
            return False
        try:
            return self._text() != self._saved
        except (TypeError, RuntimeError) as error:  # a thread may be changing it just now
            if not self._complained and isinstance(error, TypeError):
                self._complained = True
                log.warning("the data of session %s is not saved: %s", self.id[:6] + "…", error)
            return False

    def record(self) -> Record:
        """What the store is to have. Data that is no JSON stays as it was saved last."""
        with contextlib.suppress(TypeError, RuntimeError):
            if self._data is not None:
                self._saved = self._text()
        ledger = self._ledger
        now = ledger.now()
        seen = now if self._silent_since is None else self._silent_since
        data = json.loads(self._saved) if self._saved else {}
        return Record(self.id, self.user, self.routes, data, self.opened, ledger.wall() - (now - seen))

    # -- connections, and the end --------------------------------------------------------------------

    def attach(self) -> None:
        """It has a connection."""
        self._silent_since = None
        self._move(Event.ATTACH)

    def detach(self, silence: float = 0.0) -> None:
        """It has none any more; nothing had been heard for `silence` seconds."""
        self._silent_since = self._ledger.now() - silence
        if self._move(Event.DETACH) is Action.SAVE:
            self._ledger.save_soon(self)

    def end(self, reason: Reason, silence: float = 0.0) -> None:
        """It is over. Only the first call counts."""
        if self.state.is_over:
            return
        if self._silent_since is None:
            self._silent_since = self._ledger.now() - silence
        self._detected_after = self._ledger.now() - self._silent_since
        self.reason = reason
        self._ledger.claim(self, reason)

    @property
    def detected_after(self) -> float | None:
        """Seconds from the last sign of life to the end."""
        return self._detected_after

    def tell(self, reason: Reason) -> None:
        """Have the owner end it."""
        self._end(reason)

    def _move(self, happened: Event) -> Action:
        return self._ledger.move(self, happened)

    # What only the ledger sets.

    @property
    def is_recorded(self) -> bool:
        """Whether the store has it."""
        return self._recorded

    @is_recorded.setter
    def is_recorded(self, recorded: bool) -> None:
        self._recorded = recorded

    def adopt(self, record: Record) -> None:
        """It was recorded by another process, and is ours now."""
        self.state = State.DETACHED
        self.user, self.routes, self.opened = record.user, record.routes, record.opened
        self._recorded = self._kept = True
        if record.data:
            self.data.update(record.data)
            self._saved = self._text()


class Ledger:
    """`clean` runs the hooks of a claim and records what came of it; `capacity` is how many more it wants.
    `has_hooks` says whether there are any for a session that has used these routes.

    `new_node` makes a name that no process ever had. `now` gives monotonic seconds, `wall` those since the
    epoch, for people. Call `start`, then `beat` at least every half second: `run` does that.
    """

    def __init__(
        self,
        store: SessionStore,
        settings: Settings,
        *,
        clean: Clean,
        new_node: Callable[[], str],
        has_hooks: Callable[[Sequence[str]], bool] = lambda _: True,
        capacity: Callable[[], int] = lambda: _ADOPTED,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.now = now
        self.wall = wall
        self.node = ""
        self.health = Health.OK
        self.counts: Counter[State] = Counter()
        self.entries: dict[str, Entry] = {}
        self.visited = False  # somebody has been here
        self.on_empty: Callable[[], None] | None = None  # see `Settings.exit_when_empty`
        self.on_join: Callable[[str], None] | None = None  # told the name of the node
        self._lease = settings.timeouts.lease
        self._patience = settings.timeouts.handler * 2  # s for the applications of a session that is over
        self._exit_when_empty = settings.exit_when_empty
        self._clean = clean
        self._has_hooks = has_hooks
        self._capacity = capacity
        self._new_node = new_node
        self._born = ""  # see `SessionStore.born`
        self._before: set[str] = set()  # names that we had before the store was emptied
        self._looking = asyncio.Lock()  # whether it was
        self._renewed = self.now()
        self._orphans_from = self._renewed  # not before: other nodes are to be heard first
        self._empty_since: float | None = None
        self._with_data: dict[Entry, None] = {}
        self._to_save: dict[Entry, None] = {}
        self._ended: deque[Entry] = deque()  # to be claimed
        self._waiting: dict[Entry, tuple[Claim, float]] = {}  # claimed; applications are at work
        self._claims: deque[tuple[Entry | None, Claim]] = deque()  # to be cleaned up
        self._unrecorded: dict[Entry, None] = {}  # nobody waits for their end
        self._missed: dict[Entry, None] = {}  # changed while the store was down
        self._unremoved: dict[Entry, None] = {}  # likewise, refused
        self._doubtful: set[str] = set()  # perhaps resumed, with an answer that got lost
        self._unfinished: list[tuple[Entry | None, Claim]] = []  # likewise
        self._void: list[tuple[Entry | None, Claim]] = []  # claimed, before the store was emptied
        self._orphans = 0  # taken, and there are more
        self._more = False  # orphans, perhaps, than there was room for
        self._claiming = 0
        self._cleaning = 0
        self._cleaners = settings.limits.hooks * 4
        self._busy: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    # -- the node ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store and join. Raises `StoreError`."""
        await self.store.open()
        await self._join()

    def run(self) -> None:
        """Keep the lease from now on, until `stop`."""
        self._runner = asyncio.get_running_loop().create_task(self._beat_on())

    async def stop(self) -> None:
        """Leave: what has not been finished is anyone's at once. The store is closed."""
        self._capacity = _no_room
        tasks = [*self._busy, *filter(None, [self._runner])]
        self._runner = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        until = asyncio.get_running_loop().time() + _FAREWELL
        try:
            async with asyncio.timeout_at(until):
                await self.store.leave(self.node)
        except (StoreError, TimeoutError) as error:
            why = str(error) or "it does not answer"
            log.warning("the session store was not told of the stop; the lease will run out. %s", why)
        with contextlib.suppress(TimeoutError):  # whatever it has not done yet, nobody waits for
            async with asyncio.timeout_at(until):
                await self.store.close()

    async def _join(self) -> None:
        node = self._new_node()
        await self.store.join(node, self._lease)
        self._born = await self.store.born()
        self.node, self._renewed = node, self.now()
        if self.on_join is not None:
            self.on_join(node)

    async def _beat_on(self) -> None:
        pause = min(_BEAT, self._lease / 3)
        while True:
            await asyncio.sleep(pause)
            try:
                await self.beat()
            except Exception:  # the lease has to be kept, whatever is wrong
                log.exception("the look at the session store failed")

    async def beat(self) -> None:
        """Renew the lease if it is time, and see what there is to do."""
        self._give_up_waiting()
        try:
            if self.health is not Health.OK or self.now() - self._renewed >= self._lease / 3:
                await self._renew()
            for session_id in await self.store.asked_to_close(self.node):
                entry = self.entries.get(session_id)
                if entry is not None:
                    entry.tell(Reason.SERVER_CLOSE)
            await self._record_late()
            await self._adopt_orphans()
            await self._look_if_empty()
        except StoreError as error:
            self._trouble(error)

    async def _renew(self) -> None:
        began = self.now()
        if self.health is not Health.OK or began - self._renewed >= self._lease:
            # Whatever kept us from renewing may have kept others: they live, and have a lease to say so.
            self._orphans_from = began + self._lease
        node = self.node
        if not await self.store.renew(node, self._lease):
            if not await self._emptied(node):
                await self._lost()
            return
        self._renewed = began
        await self._save_changed()
        await self._heal()

    async def _lost(self) -> None:
        """We were not heard of for so long that others have taken our sessions."""
        await self._join()  # before the clients are told: they come back at once
        log.error(
            "this node was not heard of for more than %g s and another one has taken its sessions: "
            "their clients are sent away",
            self._lease,
        )
        self._waiting.clear()
        self._claims.clear()
        self._unfinished.clear()
        self._void.clear()
        self._doubtful.clear()
        for entry in list(self.entries.values()):
            if entry.is_recorded:
                self.move(entry, Event.LOST)
                entry.tell(Reason.NODE_LOST)
                self._forget(entry)
        await self._heal()

    async def _emptied(self, node: str) -> bool:
        """Whether the store was emptied since we had this name. If so, it knows our sessions again."""
        async with self._looking:
            if node == self.node and await self.store.born() != self._born:
                await self._begin_anew()
        return node in self._before

    async def _begin_anew(self) -> None:
        """Nobody can have taken our sessions: they go on, and are recorded once more."""
        before = self.node
        await self._join()
        self._before.add(before)
        log.warning(
            "the session store was emptied: recording %d session%s of this node again; "
            "what was only in the store is not cleaned up after",
            self.present,
            "s"[: self.present != 1],
        )
        self.health = Health.UNAVAILABLE  # until it is done
        for entry in self.entries.values():
            entry.is_recorded = False
        self._void += [(entry, claim) for entry, (claim, _) in self._waiting.items()]
        self._void += [*self._claims, *self._unfinished]
        self._waiting.clear()
        self._claims.clear()
        self._unfinished.clear()
        await self._make_up()
        self._pump()

    async def again(self, node: str, claim: Claim) -> Claim | None:
        """A claim that the store does not know. Made once more if it was emptied; None: it is void.

        `node` is the name under which it was made. Raises `StoreError`.
        """
        return await self._claim_again(claim) if await self._emptied(node) else None

    async def _claim_again(self, claim: Claim) -> Claim | None:
        await self.store.add(self.node, claim.session)
        made = await self.store.claim(self.node, claim.session, claim.reason, claim.detected_after)
        return made and replace(claim, fence=made.fence)

    async def _adopt_orphans(self) -> None:
        is_time = self.now() >= self._orphans_from
        room = min(self._capacity() - len(self._claims), _ADOPTED) if is_time else 0
        claims = await self.store.claim_orphans(self.node, room) if room > 0 else []
        self._more = len(claims) == room
        if not claims:
            self._count_orphans(0)
            return
        self._count_orphans(sum(claim.reason == Reason.NODE_LOST.name for claim in claims))
        self._empty_since = self.now()
        self.visited = True
        self._claims.extend((None, claim) for claim in claims)
        self._pump()

    def _count_orphans(self, lost: int) -> None:
        """Say when it begins, and when it was more than could be taken at once, how many there were."""
        if lost and not self._orphans:
            log.warning(
                "cleaning up after %d session%s of a lost node%s",
                lost,
                "s"[: lost > 1],
                ", and more" if self._more else "",
            )
        elif not self._more and self._orphans:
            log.info("cleaning up after %d sessions of a lost node in all", self._orphans + lost)
        self._orphans = self._orphans + lost if self._more else 0

    async def _adopt_more(self) -> None:
        try:
            await self._adopt_orphans()
        except StoreError as error:
            self._trouble(error)

    async def _look_if_empty(self) -> None:
        limit, since = self._exit_when_empty, self._empty_since
        if limit is None or since is None or self.present or self.now() - since < limit:
            return
        if self.is_cleaning or not self.visited:
            return
        if (await self.store.counts())[Phase.PARKED]:  # they may come back
            self._empty_since = self.now()
        elif self.on_empty is not None:
            log.info("stopping: nobody has been here for %g s (exit_when_empty)", limit)
            self._empty_since = None
            self.on_empty()

    # -- sessions ----------------------------------------------------------------------------------

    def begin(self, session_id: str, end: End) -> Entry:
        """A new session, which is recorded as soon as an application is asked."""
        entry = self.entries[session_id] = Entry(self, session_id, end)
        self.counts[entry.state] += 1
        return entry

    async def parked(self, session_id: str) -> bytes | None:
        """The state of a session that another process has parked. Changes nothing."""
        if not self.store.lasting or self.health is Health.UNAVAILABLE:
            return None
        try:
            return await self.store.parked(session_id)
        except StoreError as error:
            self._trouble(error)
            return None

    async def resume(self, session_id: str, end: End) -> Entry | None:
        """Take a parked session. None: it is too late, or somebody else has it."""
        try:
            record = await self.store.resume(self.node, session_id)
        except StoreError as error:
            if not isinstance(error, StoreRefuses):
                self._doubtful.add(session_id)
            self._trouble(error)
            return None
        if record is None or session_id in self.entries:
            return None
        return self._adopt(session_id, end, record)

    def _adopt(self, session_id: str, end: End, record: Record) -> Entry:
        entry = self.entries[session_id] = Entry(self, session_id, end)
        entry.adopt(record)
        self.counts[entry.state] += 1
        self._empty_since = None
        self.visited = True
        return entry

    async def park(self, parked: Sequence[tuple[Entry, float, bytes]]) -> bool:
        """Leave these for another process: `(entry, grace in s, state)` each. False: none of them is.

        Raises `ValueError` if the store is not lasting.
        """
        if self.health is Health.UNAVAILABLE:  # thousands of them have no time to find out
            return False
        try:
            async with asyncio.timeout(self._patience):  # there is an end of the drain
                await self._park(parked)
        except (StoreError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                error = StoreUnavailable("it does not answer in time")
            log.error("the sessions could not be kept for the next start: %s", error)
            self._trouble(error)
            return False
        for entry, _, _ in parked:
            self.move(entry, Event.PARK)
            self._forget(entry)
        return True

    async def _park(self, parked: Sequence[tuple[Entry, float, bytes]]) -> None:
        await self._emptied(self.node)  # which nobody may have noticed yet
        await self._record_all([entry for entry, _, _ in parked if not entry.is_recorded])
        await self.store.save(self.node, [entry.record() for entry, _, _ in parked])
        await self.store.park(self.node, [(entry.id, grace, state) for entry, grace, state in parked])

    @property
    def present(self) -> int:
        """How many sessions have somebody, or may have again."""
        return self.counts[State.OPEN] + self.counts[State.DETACHED]

    def claim(self, entry: Entry, reason: Reason) -> None:
        """The only door to the hooks of a session of this node. The first reason wins."""
        entry.reason = entry.reason or reason
        action = self.move(entry, Event.END)
        if action is Action.FORGET:
            self._forget(entry)
        elif action is Action.CLAIM and not entry.is_recorded and not self._has_hooks(entry.routes):
            self.move(entry, Event.CLEANED)
            self._forget(entry)
        elif action is Action.CLAIM:
            self._ended.append(entry)
            self._pump()

    def move(self, entry: Entry, happened: Event) -> Action:
        """Carry out the table's move."""
        before = entry.state
        action, entry.state = move(before, happened)
        if entry.state is not before:
            self.counts[before] -= 1
            self.counts[entry.state] += 1
            if before.is_present and not self.present:
                self._empty_since = self.now()
            elif entry.state.is_present:
                self._empty_since = None
        return action

    def hurry(self, patience: float) -> None:
        """The gateway stops: wait no longer than this, in s, for the applications of what is over, and
        leave orphans to others.
        """
        self._exit_when_empty = None
        self._patience = min(self._patience, patience)
        self._capacity = _no_room

    async def drained(self) -> None:
        """Return when every session that is over has been cleaned up after, or put off."""
        while self.is_cleaning:
            self._idle.clear()
            await self._idle.wait()

    @property
    def is_cleaning(self) -> bool:
        """Whether there is a session that is over, and not cleaned up after or put off."""
        held = self._waiting or self._claims or self._unfinished or self._void
        return bool(self._ended or held or self.running)

    @property
    def running(self) -> int:
        """How many ends are being worked on just now."""
        return self._claiming + self._cleaning

    def _forget(self, entry: Entry) -> None:
        if self.entries.get(entry.id) is entry:
            del self.entries[entry.id]
        self._with_data.pop(entry, None)
        self._to_save.pop(entry, None)
        self._missed.pop(entry, None)
        self._unrecorded.pop(entry, None)
        self.counts[State.CLOSED] = 0

    # -- what entries ask for ------------------------------------------------------------------------

    async def record(self, entry: Entry) -> None:
        """A session begins. Raises `Refused` if the store takes none, or this node is lost.

        Where no hook waits for its end the next beat is soon enough, and many are over by then.
        """
        if self.health is Health.UNAVAILABLE:
            self._missed[entry] = None  # `_heal` sees to it
            return
        if self.health is Health.OK and not self._has_hooks(entry.routes):
            self._unrecorded[entry] = None
            return
        node = self.node
        try:
            entry.is_recorded = await self.store.add(node, entry.record())
            if not entry.is_recorded:
                await self._emptied(node)
        except StoreRefuses as error:
            self._trouble(error)
            raise Refused(503, "new sessions cannot be recorded; try again later") from error
        except StoreError as error:
            self._trouble(error)
            return
        if not entry.is_recorded:
            self._renewed -= self._lease  # the next beat finds out
            raise Refused(503, "this node is not in charge any more; try again")

    async def _record_late(self) -> None:
        late, self._unrecorded = self._unrecorded, {}
        await self._record_all([entry for entry in late if entry.state.is_present and not entry.is_recorded])

    async def _record_all(self, entries: list[Entry]) -> None:
        """Record these, many at the same time: stores write together what waits together."""
        for start in range(0, len(entries), _CLAIMS):
            some = entries[start : start + _CLAIMS]
            added = await asyncio.gather(*(self.store.add(self.node, entry.record()) for entry in some))
            for entry, is_recorded in zip(some, added, strict=True):
                entry.is_recorded = is_recorded
                if entry.state in (State.NEW, State.CLOSED):  # meanwhile, and nobody knew of a record
                    self.remove(entry)

    async def save(self, entries: Iterable[Entry]) -> bool:
        """Record what has changed in these. False: not now, but when the store is back."""
        entries = [entry for entry in entries if entry.state.is_present]
        records = [entry.record() for entry in entries if entry.is_recorded]
        try:
            if self.health is not Health.UNAVAILABLE:
                await self.store.save(self.node, records)
                return True
        except StoreError as error:
            self._trouble(error)
        self._missed.update(dict.fromkeys(entries))
        return False

    def save_soon(self, entry: Entry) -> None:
        """Record its data if it has changed, with that of others."""
        if entry in self._with_data and entry.changed():
            self._to_save[entry] = None
            if len(self._to_save) == 1:
                self._spawn(self._save_together())

    def keeps_data(self, entry: Entry) -> None:
        """From now on it has to be looked at."""
        self._with_data[entry] = None

    def remove(self, entry: Entry) -> None:
        """Nobody has to clean up after it."""
        if entry.is_recorded:
            entry.is_recorded = False
            self._spawn(self._remove(entry))

    def idle(self, entry: Entry) -> None:
        """Its applications are done with it."""
        waiting = self._waiting.pop(entry, None)
        if waiting is not None:
            self._claims.append((entry, waiting[0]))
            self._pump()

    async def _save_together(self) -> None:
        entries, self._to_save = self._to_save, {}
        await self.save(entries)

    async def _remove(self, entry: Entry) -> None:
        if entry.state is not State.NEW and entry.state is not State.CLOSED:
            return  # another application was asked meanwhile
        try:
            await self.store.remove(self.node, entry.id)
        except StoreError as error:
            self._unremoved[entry] = None
            self._trouble(error)

    async def _save_changed(self) -> None:
        changed = []
        until = self.now() + _TURN
        for entry in list(self._with_data):
            if entry.changed():
                changed.append(entry)
            if self.now() >= until:
                await asyncio.sleep(0)
                until = self.now() + _TURN
        if changed:
            await self.save(changed)

    # -- the end of sessions -------------------------------------------------------------------------

    def _pump(self) -> None:
        """Claim and clean up, many at the same time, but not all."""
        while self._ended and self.health is Health.OK and self._claiming < _CLAIMS:
            self._claiming += 1
            self._spawn(self._claim_on(self._ended.popleft()))
        while self._claims and self._cleaning < self._cleaners:
            self._cleaning += 1
            self._spawn(self._clean_on(*self._claims.popleft()))

    async def _claim_on(self, entry: Entry) -> None:
        try:
            await self._claim_one(entry)
            while self._ended and self.health is Health.OK:
                await self._claim_one(self._ended.popleft())
        finally:
            self._claiming -= 1
            self._idle.set()

    async def _claim_one(self, entry: Entry) -> None:
        assert entry.reason is not None
        if not self._has_hooks(entry.routes):
            await self._drop(entry)
            return
        node = self.node
        try:
            if not entry.is_recorded:
                entry.is_recorded = await self.store.add(node, entry.record())
            claim = await self.store.claim(node, entry.record(), entry.reason.name, entry.detected_after)
            emptied = claim is None and await self._emptied(node)
        except StoreError as error:
            self._ended.appendleft(entry)
            self._trouble(error)
            return
        if emptied:
            self._ended.append(entry)
        else:
            self._claimed(entry, claim)

    def _claimed(self, entry: Entry | None, claim: Claim | None) -> None:
        if entry is not None and claim is None:
            self.move(entry, Event.LOST)
            self._forget(entry)
        elif entry is not None and claim is not None and entry.is_busy:
            self._waiting[entry] = (claim, self.now() + self._patience)
        elif claim is not None:
            self._claims.append((entry, claim))
            self._pump()

    async def _drop(self, entry: Entry) -> None:
        """It is over, and nobody cleans up after it."""
        try:
            await self.store.remove(self.node, entry.id)
        except StoreError as error:
            self._ended.appendleft(entry)
            self._trouble(error)
            return
        self.move(entry, Event.CLEANED)
        self._forget(entry)

    def _give_up_waiting(self) -> None:
        now = self.now()
        for entry in [entry for entry, (_, until) in self._waiting.items() if until <= now]:
            log.warning("cleaning up after session %s, whose handlers have not returned", entry.id[:6] + "…")
            entry.accepted()  # nobody knows: `open` may be at work yet
            self.idle(entry)

    async def _clean_on(self, entry: Entry | None, claim: Claim) -> None:
        try:
            await self._clean_one(entry, claim)
            while self._claims:
                await self._clean_one(*self._claims.popleft())
        finally:
            self._cleaning -= 1
            self._idle.set()
            if self._more and self._capacity() >= _WORTH_IT:
                self._more = False
                self._spawn(self._adopt_more())

    async def _clean_one(self, entry: Entry | None, claim: Claim) -> None:
        try:
            if entry is None:
                await self._clean(claim)
            elif entry.is_kept:
                await self._clean(replace(claim, session=entry.record()))  # with what `close` has changed
            else:
                await self.store.finish(self.node, claim)
        except StoreError as error:
            self._unfinished.append((entry, claim))
            self._trouble(error)
            return
        except Exception:  # hooks are other people's code
            log.exception("cleaning up after session %s failed", claim.session.id[:6] + "…")
        if entry is not None:
            self.move(entry, Event.CLEANED)
            self._forget(entry)

    # -- the store's health --------------------------------------------------------------------------

    def _trouble(self, error: StoreError) -> None:
        health = Health.REFUSING if isinstance(error, StoreRefuses) else Health.UNAVAILABLE
        if health is self.health:
            return
        self.health = health
        if health is Health.REFUSING:
            log.error("the session store takes no writes: new sessions are refused, others go on. %s", error)
        else:
            log.warning(
                "the session store cannot be reached: sessions go on, and cleanup waits until it is back. %s",
                error,
            )

    async def _heal(self) -> None:
        """The store has answered: make up for what has waited."""
        async with self._looking:
            if self.health is Health.OK:
                return
            count = await self._make_up()
        log.info(
            "the session store is back: %d new session%s recorded, %d to clean up after",
            count,
            "s"[: count != 1],
            len(self._ended),
        )
        self._pump()

    async def _make_up(self) -> int:
        """How many sessions were recorded. One at a time may do this."""
        recorded: set[Entry] = set()
        while some := self._missing(recorded):  # others may begin meanwhile
            recorded.update(some)
            await self._record_all(some)
        while self._void:
            void = self._void[:_CLAIMS]
            claims = await asyncio.gather(*(self._claim_again(claim) for _, claim in void))
            del self._void[: len(void)]
            for (entry, _), claim in zip(void, claims, strict=True):
                self._claimed(entry, claim)
        await self._end_doubtful()
        self.health = Health.OK
        missed, self._missed = self._missed, {}
        await self.save(missed)
        unremoved, self._unremoved = self._unremoved, {}
        for entry in unremoved:
            await self._remove(entry)
        unfinished, self._unfinished = self._unfinished, []
        self._claims.extend(unfinished)
        return len(recorded)

    def _missing(self, tried: set[Entry]) -> list[Entry]:
        entries = (entry for entry in self.entries.values() if entry.state.is_present)
        return [entry for entry in entries if not entry.is_recorded and entry not in tried]

    async def _end_doubtful(self) -> None:
        """What has become ours without our knowing has no client: it was told that the state is lost."""
        for session_id in list(self._doubtful):
            record = await self.store.resume(self.node, session_id)
            self._doubtful.discard(session_id)
            if record is not None and session_id not in self.entries:
                self._adopt(session_id, _nobody, record).end(Reason.SHUTDOWN)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)


def _no_room() -> int:
    return 0


def _nobody(reason: Reason) -> None:
    """Serves a session that has no client."""
