"""The table of legal moves of an Engine.IO connection, and nothing else.

`(state, input) -> (action, next state)`. A pair that is not listed is an error that names both.
`docs/engineio.md` shows the diagram. A *candidate* is a websocket that wants to take over
from polling: it is probed (`2probe`, `3probe`), and takes over with `5`.
Source: Engine.IO protocol v4, "Upgrade"; the rules for failed upgrades are ours.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Where a connection stands. Exactly one at a time; there are no flags beside it."""

    OPENING = auto()  # the application is being asked
    POLLING = auto()
    PROBING = auto()  # polling, and a candidate that has not said `2probe` yet
    PROBED = auto()  # polling, and a candidate that was answered `3probe`
    WEBSOCKET = auto()
    CLOSING = auto()  # over for the application; what was sent before is still going out
    CLOSED = auto()

    @property
    def is_over(self) -> bool:
        """Whether the application has been, or is being, told that this connection ended."""
        return self is State.CLOSING or self is State.CLOSED


class Input(Enum):
    """What can happen. The first seven are packets of the transport in use."""

    OPEN = "0"
    CLOSE = "1"
    PING = "2"
    PONG = "3"
    MESSAGE = "4"
    UPGRADE = "5"
    NOOP = "6"
    ACCEPT_POLLING = "accept polling"
    ACCEPT_WEBSOCKET = "accept websocket"
    CANDIDATE = "candidate"
    CANDIDATE_PROBE = "candidate probe"
    CANDIDATE_UPGRADE = "candidate upgrade"
    CANDIDATE_OTHER = "candidate other"  # any other packet on the candidate
    CANDIDATE_LOST = "candidate lost"  # closed, reset, or silent for too long
    END = "end"  # lost, timed out, refused, or closed by the application
    DRAINED = "drained"


class Action(Enum):
    """What the connection does with it."""

    NOTHING = auto()
    START = auto()
    DELIVER = auto()
    PONG = auto()
    CLOSE = auto()
    TAKE_CANDIDATE = auto()
    ANSWER_PROBE = auto()
    SWITCH = auto()
    DROP_CANDIDATE = auto()
    REFUSE_CANDIDATE = auto()
    END = auto()
    FINISH = auto()


MOVES: dict[tuple[State, Input], tuple[Action, State]] = {
    (State.OPENING, Input.ACCEPT_POLLING): (Action.START, State.POLLING),
    (State.OPENING, Input.ACCEPT_WEBSOCKET): (Action.START, State.WEBSOCKET),
    (State.OPENING, Input.END): (Action.END, State.CLOSING),
    (State.POLLING, Input.CANDIDATE): (Action.TAKE_CANDIDATE, State.PROBING),
    (State.PROBING, Input.CANDIDATE_PROBE): (Action.ANSWER_PROBE, State.PROBED),
    (State.PROBED, Input.CANDIDATE_UPGRADE): (Action.SWITCH, State.WEBSOCKET),
    # An upgrade that goes wrong in any way leaves polling as it was.
    (State.PROBING, Input.CANDIDATE_UPGRADE): (Action.DROP_CANDIDATE, State.POLLING),
    (State.PROBED, Input.CANDIDATE_PROBE): (Action.DROP_CANDIDATE, State.POLLING),
    # A probed client may have put polling aside: it hears the last words where it has gone.
    (State.CLOSING, Input.CANDIDATE_UPGRADE): (Action.SWITCH, State.CLOSING),
    (State.CLOSING, Input.DRAINED): (Action.FINISH, State.CLOSED),
    (State.CLOSING, Input.END): (Action.FINISH, State.CLOSED),
}
for _state in (State.POLLING, State.PROBING, State.PROBED, State.WEBSOCKET):
    MOVES[_state, Input.MESSAGE] = (Action.DELIVER, _state)
    MOVES[_state, Input.PONG] = (Action.PONG, _state)
    MOVES[_state, Input.CLOSE] = (Action.CLOSE, State.CLOSING)
    MOVES[_state, Input.END] = (Action.END, State.CLOSING)
for _state in (State.PROBING, State.PROBED):
    MOVES[_state, Input.CANDIDATE_OTHER] = (Action.DROP_CANDIDATE, State.POLLING)
    MOVES[_state, Input.CANDIDATE_LOST] = (Action.DROP_CANDIDATE, State.POLLING)
for _state in (State.OPENING, State.PROBING, State.PROBED, State.WEBSOCKET):
    MOVES[_state, Input.CANDIDATE] = (Action.REFUSE_CANDIDATE, _state)
# What arrives after the end was under way when it came. It is nobody's fault.
for _state in (State.CLOSING, State.CLOSED):
    for _input in Input:
        MOVES.setdefault((_state, _input), (Action.NOTHING, _state))
    MOVES[_state, Input.CANDIDATE] = (Action.REFUSE_CANDIDATE, _state)


class IllegalMove(Exception):
    """The peer did what the table does not list."""

    def __init__(self, state: State, happened: Input) -> None:
        super().__init__(f"{happened.name} is not allowed in state {state.name}")
        self.state = state
        self.happened = happened


def move(state: State, happened: Input) -> tuple[Action, State]:
    """Look the pair up; `IllegalMove` if it is not listed."""
    try:
        return MOVES[state, happened]
    except KeyError:
        raise IllegalMove(state, happened) from None
