"""The table of moves, tried with every state and every input.

`LEGAL` says it again in the shortest words that I know, one line per state, so that a slip in the
table does not go unseen: `input action>state`; an input that a state does not list must raise.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.moves import MOVES, Action, IllegalMove, Input, State, move
from scripts import draw_moves

ALIVE = "MESSAGE DELIVER>. | PONG PONG>. | CLOSE CLOSE>CLOSING | END END>CLOSING"
UPGRADING = (
    "CANDIDATE REFUSE_CANDIDATE>. | CANDIDATE_OTHER DROP_CANDIDATE>POLLING | "
    "CANDIDATE_LOST DROP_CANDIDATE>POLLING"
)
LEGAL = {
    State.OPENING: "ACCEPT_POLLING START>POLLING | ACCEPT_WEBSOCKET START>WEBSOCKET | END END>CLOSING | "
    "CANDIDATE REFUSE_CANDIDATE>.",
    State.POLLING: f"{ALIVE} | CANDIDATE TAKE_CANDIDATE>PROBING",
    State.PROBING: f"{ALIVE} | {UPGRADING} | CANDIDATE_PROBE ANSWER_PROBE>PROBED | "
    "CANDIDATE_UPGRADE DROP_CANDIDATE>POLLING",
    State.PROBED: f"{ALIVE} | {UPGRADING} | CANDIDATE_PROBE DROP_CANDIDATE>POLLING | "
    "CANDIDATE_UPGRADE SWITCH>WEBSOCKET",
    State.WEBSOCKET: f"{ALIVE} | CANDIDATE REFUSE_CANDIDATE>.",
    State.CLOSING: "DRAINED FINISH>CLOSED | END FINISH>CLOSED | CANDIDATE REFUSE_CANDIDATE>. | "
    "CANDIDATE_UPGRADE SWITCH>.",
    State.CLOSED: "CANDIDATE REFUSE_CANDIDATE>.",
}


def expected() -> dict[tuple[State, Input], tuple[Action, State]]:
    table = {}
    for state, line in LEGAL.items():
        for entry in line.split(" | "):
            happened, _, outcome = entry.partition(" ")
            action, _, after = outcome.partition(">")
            table[state, Input[happened]] = (Action[action], state if after == "." else State[after])
        if state.is_over:
            for ignored in Input:
                table.setdefault((state, ignored), (Action.NOTHING, state))
    return table


PAIRS = [(state, happened) for state in State for happened in Input]


@pytest.mark.parametrize(("state", "happened"), PAIRS, ids=[f"{s.name}-{i.name}" for s, i in PAIRS])
def test_every_state_with_every_input(state, happened):
    outcome = expected().get((state, happened))
    if outcome is None:
        with pytest.raises(IllegalMove) as illegal:
            move(state, happened)
        assert happened.name in str(illegal.value)
        assert state.name in str(illegal.value)
        assert (illegal.value.state, illegal.value.happened) == (state, happened)
    else:
        assert move(state, happened) == outcome


def test_the_table_lists_nothing_else():
    assert expected() == MOVES


@pytest.mark.parametrize("drawing", draw_moves.DRAWINGS, ids=lambda drawing: drawing.page.name)
def test_the_documents_show_the_tables_as_they_are(drawing):
    page = drawing.page.read_text("utf-8")
    assert drawing.drawn(page) == page, "run python scripts/draw_moves.py"
    with pytest.raises(ValueError, match="marks"):
        drawing.drawn("a page without marks")


def test_over_means_closing_and_closed():
    assert [state for state in State if state.is_over] == [State.CLOSING, State.CLOSED]


@given(st.lists(st.sampled_from(Input)))
def test_over_is_for_ever_and_the_end_is_told_once(inputs):
    state, ends, was_over = State.OPENING, 0, False
    for happened in inputs:
        try:
            action, state = move(state, happened)
        except IllegalMove:
            action, state = move(state, Input.END)
        ends += action in (Action.END, Action.CLOSE)
        assert ends == state.is_over
        assert state.is_over or not was_over
        was_over = state.is_over


@given(st.lists(st.sampled_from([i for i in Input if i.name.startswith("CANDIDATE")])))
def test_no_upgrade_whatever_becomes_of_it_ends_a_connection(inputs):
    """From polling, candidates alone lead to polling or, after `2probe` and `5`, to the websocket."""
    state, said = State.POLLING, []
    for happened in inputs:
        before = state
        try:
            _, state = move(state, happened)
        except IllegalMove:
            assert before in (State.POLLING, State.WEBSOCKET), "a candidate's input came from a candidate"
            continue
        said.append(happened)
        assert not state.is_over
        if state is State.WEBSOCKET and before is not State.WEBSOCKET:
            assert said[-1] is Input.CANDIDATE_UPGRADE
            assert before is State.PROBED
