"""The table of legal moves of a session, and nothing else: `(state, event) -> (action, next state)`.

A pair that is not listed is an error that names both. `docs/sessions.md` shows the diagram. Only CLOSING runs
cleanup hooks, and only a claim leads there. Knows neither stores nor clients.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Where a session stands. Exactly one at a time."""

    NEW = auto()  # no application has been asked yet: nothing is recorded, and nothing is to be cleaned up
    OPEN = auto()  # an application has been asked, and the client is connected
    DETACHED = auto()  # without a connection, inside its grace
    CLOSING = auto()  # over: claimed, its hooks run
    CLOSED = auto()  # over for this node

    @property
    def is_over(self) -> bool:
        """Whether nothing will bring it back, here."""
        return self is State.CLOSING or self is State.CLOSED

    @property
    def is_present(self) -> bool:
        """Whether there is somebody, or somebody may come back."""
        return self is State.OPEN or self is State.DETACHED


class Event(Enum):
    """What can happen to a session."""

    ASK = "ask"  # an application is about to be asked
    REFUSED = "refused"  # every application that was asked has refused
    DETACH = "detach"  # the connection is gone
    ATTACH = "attach"  # there is one again
    END = "end"  # left, timed out, closed, or the gateway stops
    CLEANED = "cleaned"  # the hooks have had their turn
    PARK = "park"  # the gateway stops, and another process may go on with it
    LOST = "lost"  # another node has taken it


class Action(Enum):
    """What the ledger does about it."""

    NOTHING = auto()
    RECORD = auto()
    SAVE = auto()
    REMOVE = auto()
    CLAIM = auto()
    FORGET = auto()


_MOVES: dict[tuple[State, Event], tuple[Action, State]] = {
    (State.NEW, Event.ASK): (Action.RECORD, State.OPEN),
    (State.NEW, Event.DETACH): (Action.NOTHING, State.NEW),
    (State.NEW, Event.ATTACH): (Action.NOTHING, State.NEW),
    (State.NEW, Event.END): (Action.FORGET, State.CLOSED),
    (State.OPEN, Event.DETACH): (Action.SAVE, State.DETACHED),
    (State.DETACHED, Event.ATTACH): (Action.NOTHING, State.OPEN),
    (State.CLOSING, Event.CLEANED): (Action.FORGET, State.CLOSED),
    # It was claimed before another node took it, or the claim was void: who holds it now cleans up.
    (State.CLOSING, Event.LOST): (Action.FORGET, State.CLOSED),
}
for _state in (State.OPEN, State.DETACHED):
    _MOVES[_state, Event.ASK] = (Action.NOTHING, _state)
    _MOVES[_state, Event.REFUSED] = (Action.REMOVE, State.NEW)
    _MOVES[_state, Event.END] = (Action.CLAIM, State.CLOSING)
    _MOVES[_state, Event.PARK] = (Action.FORGET, State.CLOSED)
# A client that moves from one connection to the next may have both for a moment, or a slow application.
_MOVES[State.OPEN, Event.ATTACH] = (Action.NOTHING, State.OPEN)
_MOVES[State.DETACHED, Event.DETACH] = (Action.NOTHING, State.DETACHED)
# Another node may take what is recorded, and a session of ours may not be recorded yet.
for _state in (State.NEW, State.OPEN, State.DETACHED):
    _MOVES[_state, Event.LOST] = (Action.FORGET, State.CLOSED)
# What is over stays over: the first reason wins, and what comes later was under way.
for _state in (State.CLOSING, State.CLOSED):
    for _event in Event:
        _MOVES.setdefault((_state, _event), (Action.NOTHING, _state))

MOVES = dict(_MOVES)


class IllegalMove(Exception):
    """What the table does not list: a mistake of the gateway itself."""

    def __init__(self, state: State, happened: Event) -> None:
        super().__init__(f"{happened.name} is not allowed in state {state.name}")


def move(state: State, happened: Event) -> tuple[Action, State]:
    """Look the pair up; `IllegalMove` if it is not listed."""
    try:
        return MOVES[state, happened]
    except KeyError:
        raise IllegalMove(state, happened) from None
