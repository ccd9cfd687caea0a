"""The table of a session's life, tried with every state and every event.

`LEGAL` says it again in the shortest words: `event action>state`; what a state does not list must raise.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.lifecycle import MOVES, Action, Event, IllegalMove, State, move

LOST = "LOST FORGET>CLOSED"
PRESENT = f"ASK NOTHING>. | REFUSED REMOVE>NEW | END CLAIM>CLOSING | PARK FORGET>CLOSED | {LOST}"
LEGAL = {
    State.NEW: f"ASK RECORD>OPEN | DETACH NOTHING>. | ATTACH NOTHING>. | END FORGET>CLOSED | {LOST}",
    State.OPEN: f"{PRESENT} | DETACH SAVE>DETACHED | ATTACH NOTHING>.",
    State.DETACHED: f"{PRESENT} | ATTACH NOTHING>OPEN | DETACH NOTHING>.",
    State.CLOSING: f"CLEANED FORGET>CLOSED | {LOST}",
    State.CLOSED: "",
}


def expected() -> dict[tuple[State, Event], tuple[Action, State]]:
    table = {}
    for state, line in LEGAL.items():
        for entry in filter(None, line.split(" | ")):
            happened, _, outcome = entry.partition(" ")
            action, _, after = outcome.partition(">")
            table[state, Event[happened]] = (Action[action], state if after == "." else State[after])
        if state.is_over:
            for ignored in Event:
                table.setdefault((state, ignored), (Action.NOTHING, state))
    return table


PAIRS = [(state, happened) for state in State for happened in Event]


@pytest.mark.parametrize(("state", "happened"), PAIRS, ids=[f"{s.name}-{e.name}" for s, e in PAIRS])
def test_every_state_with_every_event(state, happened):
    outcome = expected().get((state, happened))
    if outcome is None:
        with pytest.raises(IllegalMove, match=f"{happened.name} is not allowed in state {state.name}"):
            move(state, happened)
    else:
        assert move(state, happened) == outcome


def test_the_table_lists_nothing_else():
    assert expected() == MOVES


@given(st.lists(st.sampled_from(Event)))
def test_it_is_claimed_once_at_the_most_and_only_after_it_was_recorded(events):
    state, recorded, claims = State.NEW, False, 0
    for happened in events:
        try:
            action, state = move(state, happened)
        except IllegalMove:
            continue
        assert (action is Action.CLAIM) <= recorded
        recorded = (recorded or action is Action.RECORD) and action is not Action.REMOVE
        claims += action is Action.CLAIM
        assert claims <= 1
        assert state.is_present == (recorded and not state.is_over)
