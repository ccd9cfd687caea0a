"""Sessions of the real client, in Node, live through bad weather: all that was sent arrives, in order, once.

Short versions of what `make weather` does for minutes; docs/weather.md says what the boxes stand for.
"""

import pytest

from tests.network.boxes import (
    Drops,
    FailsOneInTen,
    FarAway,
    ForgetfulNat,
    Holds,
    IdleLimit,
    SmallBodies,
)
from tests.network.survival import Run, show, survive

TRANSPORTS = ["polling", "websocket"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_two_seconds_of_nothing_again_and_again_lose_nothing(transport):
    box = Drops(3.0, 2.0)
    result = await survive(Run("drops", (lambda: box,), transport=transport, sessions=10, seconds=8.5))
    assert result.whole, show(result)
    assert result.sent > 1000
    assert box.drops >= 2
    assert box.resets >= 20
    if transport == "websocket":
        assert result.on_websocket > 0.1


async def test_bytes_that_are_held_back_cost_no_connection():
    result = await survive(Run("holds", (lambda: Holds(1.0, 2.0),), sessions=10, seconds=3.5))
    assert result.whole, show(result)
    assert result.reconnects == 0


async def test_one_request_in_ten_and_one_answer_in_ten_are_lost_and_no_message():
    box = FailsOneInTen()
    result = await survive(Run("fails", (lambda: box,), sessions=20, seconds=3.0))
    assert result.whole, show(result)
    assert box.refused > 10
    assert box.lost > 10


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        pytest.param((SmallBodies,), 4_000_000, id="small_bodies"),
        pytest.param((FarAway,), 4_000_000, id="far_away", marks=pytest.mark.slow),
        pytest.param((lambda: FarAway(0.1), SmallBodies), 1_000_000, id="both"),
    ],
)
async def test_big_messages_each_way(boxes, size):
    more = {"bytes": size, "ways": ["text up", "bytes down"]}
    result = await survive(Run("big", boxes, "big", sessions=1, seconds=0.0, more=more))
    assert list(result.took) == more["ways"]
    assert all(ms is not None and ms < 10_000 for ms in result.took.values()), show(result)


# A word into a connection that is dead, and nobody has said so, is sent again after a while.
@pytest.mark.parametrize(
    ("make", "patience"),
    [
        pytest.param(IdleLimit, 1000, id="idle_limit"),
        pytest.param(ForgetfulNat, 10_000, id="forgetful_nat", marks=pytest.mark.slow),
    ],
)
async def test_an_idle_page_notices_nothing_and_is_answered(make, patience):
    result = await survive(Run("idle", (lambda: make(2.5),), "idle", sessions=3, seconds=6.0))
    assert result.whole, show(result)
    assert result.told("lost") == 0
    assert result.answered is not None
    assert result.answered < patience
    assert result.requests / 6.0 / 3 < 1.5


async def test_forty_changes_of_transport_at_a_thousand_messages_per_second():
    more = {"changes": 40, "rate": 1000}
    result = await survive(Run("changes", (), "changes", sessions=1, seconds=0.0, more=more))
    assert result.whole, show(result)
    assert result.changes == 40
    assert result.sent > 1000
