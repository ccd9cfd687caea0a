"""The demo's room: who sees what, and that nothing in it grows without end."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.application import Channel, Refused, Request
from gateway.protocol.reasons import Closing, Reason
from gateway.routes.demo import (
    ANIMALS,
    BURST,
    KEPT_LINES,
    MAX_MESSAGE,
    MAX_PEOPLE,
    MAX_TEXT,
    RELOAD,
    Allowance,
    DemoApplication,
)

GONE = Closing.by(Reason.CLIENT_CLOSE)


class FakeChannel(Channel):
    """Keeps what it is sent. `transport` is what the test says."""

    transport = "polling"
    congested = False

    def __init__(self) -> None:
        self.id = "s"
        self.request = Request("/_gateway/demo")
        self.offered = ()
        self.protocol = ""
        self.user = None
        self.data = {}
        self.sent: list[dict[str, Any]] = []
        self.drains = 0

    def send(self, data: str | bytes) -> None:
        self.sent.append(json.loads(data))

    async def drain(self) -> None:
        self.drains += 1

    def close(self, code: int = 1000, reason: str = "") -> None:
        raise AssertionError("the demo closes nobody")

    def take(self) -> list[dict[str, Any]]:
        """What was sent since the last time."""
        sent, self.sent = self.sent, []
        return sent


class Clock:
    now = 0.0

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.now

    def later(self, delay: float, call: Callable[[], None]) -> None:
        assert delay == RELOAD
        self.calls.append(call)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def room(clock: Clock) -> DemoApplication:
    return DemoApplication(now=clock, wall=lambda: 1_700_000_000.5, later=clock.later)


def say(room: DemoApplication, channel: FakeChannel, **fields: object) -> list[dict[str, Any]]:
    """What the channel is sent for it."""
    channel.take()
    room.message(channel, json.dumps(fields))
    return channel.take()


Enter = Callable[..., FakeChannel]


@pytest.fixture
def enter(room: DemoApplication) -> Enter:
    """`enter("key")` is a channel that has said hello; its answer is still in `sent`."""

    def enter(tab: str, animal: str | None = None) -> FakeChannel:
        channel = FakeChannel()
        room.open(channel)
        room.message(channel, json.dumps({"type": "hello", "tab": tab, "animal": animal}))
        return channel

    return enter


def test_a_newcomer_learns_who_is_here_and_the_others_learn_of_it(enter: Enter) -> None:
    first = enter("a")
    [welcome] = first.take()
    assert welcome["type"] == "welcome"
    assert [person["id"] for person in welcome["people"]] == [welcome["you"]]

    second = enter("b")
    [welcome] = second.take()
    [join] = first.take()
    assert join == {"type": "join", "person": welcome["people"][1]}
    assert welcome["you"] == join["person"]["id"]
    assert {person["animal"] for person in welcome["people"]} <= set(ANIMALS)
    assert len({person["animal"] for person in welcome["people"]}) == 2


def test_nothing_is_sent_before_the_hello(room: DemoApplication) -> None:
    channel = FakeChannel()
    room.open(channel)
    assert channel.sent == []
    assert say(room, channel, type="chat", text="hi") == [{"type": "error", "text": "Say hello first."}]
    assert len(room) == 0


def test_whoever_goes_vanishes_for_the_others(room: DemoApplication, enter: Enter) -> None:
    first, second = enter("a"), enter("b")
    gone = second.take()[0]["you"]
    first.take()
    room.close(second, GONE)
    assert first.take() == [{"type": "leave", "id": gone}]
    assert second.take() == []
    assert len(room) == 1


def test_one_who_never_said_hello_leaves_unseen(room: DemoApplication, enter: Enter) -> None:
    first, stranger = enter("a"), FakeChannel()
    room.open(stranger)
    first.take()
    room.close(stranger, GONE)
    assert first.take() == []


def test_a_reload_takes_its_place_over_before_the_old_page_is_gone(
    room: DemoApplication, enter: Enter
) -> None:
    other, old = enter("other"), enter("tab")
    before = old.take()[0]
    other.take()
    new = enter("tab")
    after = new.take()[0]
    room.close(old, GONE)
    assert after["you"] == before["you"]
    assert after["people"] == before["people"]
    assert other.take() == []
    assert say(room, new, type="ping", n=1) == [{"type": "pong", "n": 1}]
    assert say(room, old, type="ping", n=1)[0]["type"] == "error"


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_place_is_kept_while_a_page_is_loaded_anew(
    room: DemoApplication, clock: Clock, enter: Enter, comes_back: bool
) -> None:
    other, old = enter("other"), enter("tab")
    before = old.take()[0]
    other.take()
    room.close(old, Closing(Reason.CLIENT_CLOSE, 1001))
    assert other.take() == []
    if comes_back:
        assert enter("tab").take()[0]["you"] == before["you"]
    (over,) = clock.calls
    over()
    assert other.take() == ([] if comes_back else [{"type": "leave", "id": before["you"]}])
    assert len(room) == 1 + comes_back


def test_an_animal_comes_back_as_what_it_was_unless_somebody_else_is(enter: Enter) -> None:
    def mine(channel: FakeChannel) -> str:
        [welcome] = channel.take()
        return next(each["animal"] for each in welcome["people"] if each["id"] == welcome["you"])

    assert mine(enter("a", "Walrus")) == "Walrus"
    assert mine(enter("b", "Walrus")) != "Walrus"
    assert mine(enter("c", "Unicorn")) in ANIMALS


def test_more_tabs_than_animals_are_twins(room: DemoApplication, enter: Enter) -> None:
    for number in range(len(ANIMALS) + 2):
        enter(f"tab {number}")
    assert len(room) == len(ANIMALS) + 2


def test_a_new_transport_is_told_with_the_next_message_and_once(room: DemoApplication, enter: Enter) -> None:
    first, second = enter("a"), enter("b")
    you = second.take()[0]["you"]
    first.take()
    second.transport = "websocket"
    change = {"type": "transport", "id": you, "transport": "websocket"}
    assert say(room, second, type="ping", n=7) == [change, {"type": "pong", "n": 7}]
    assert say(room, second, type="ping", n=8) == [{"type": "pong", "n": 8}]
    assert first.take() == [change]


def test_a_chat_line_reaches_everyone_and_an_echo_only_its_sender(
    room: DemoApplication, enter: Enter
) -> None:
    first, second = enter("a"), enter("b")
    you = first.take()[0]["you"]
    second.take()
    [told] = say(room, first, type="chat", text="<b>hi</b> \u2028")
    assert told["line"]["text"] == "<b>hi</b> \u2028"
    assert told["line"]["id"] == you
    assert told["line"]["at"] == 1_700_000_000_500
    assert second.take() == [told]
    assert say(room, first, type="echo", text="only me") == [{"type": "echo", "text": "only me"}]
    assert second.take() == []


def test_a_newcomer_reads_the_last_lines(room: DemoApplication, enter: Enter, clock: Clock) -> None:
    first = enter("a")
    for number in range(KEPT_LINES + 5):
        clock.now += 1
        say(room, first, type="chat", text=f"line {number}")
    lines = enter("b").take()[0]["lines"]
    assert [line["text"] for line in lines] == [f"line {number}" for number in range(5, KEPT_LINES + 5)]


def test_who_talks_too_fast_is_told_and_nobody_else_is(
    room: DemoApplication, enter: Enter, clock: Clock
) -> None:
    first, second = enter("a"), enter("b")
    for _ in range(BURST):
        assert say(room, first, type="chat", text="!")[0]["type"] == "chat"
    second.take()
    assert say(room, first, type="chat", text="!")[0]["type"] == "error"
    assert say(room, first, type="echo", text="!")[0]["type"] == "error"
    assert second.take() == []
    assert say(room, second, type="chat", text="I may")[0]["type"] == "chat"
    clock.now += 1
    assert say(room, first, type="chat", text="again")[0]["type"] == "chat"


def test_an_allowance_does_not_pile_up() -> None:
    allowance = Allowance(2, 1, now=0)
    assert [allowance.take(1000) for _ in range(3)] == [True, True, False]


def test_the_room_is_full_at_some_point_and_has_a_place_again(room: DemoApplication) -> None:
    channels = [FakeChannel() for _ in range(MAX_PEOPLE)]
    for channel in channels:
        room.open(channel)
    with pytest.raises(Refused) as refused:
        room.open(FakeChannel())
    assert refused.value.status == 503
    room.close(channels[0], GONE)
    room.open(FakeChannel())


WRONG = {
    "not JSON": "hello",
    "half a string": '{"type": "chat',
    "a list": "[]",
    "null": "null",
    "a deep nest": "[" * (MAX_MESSAGE - 1),
    "too large": json.dumps({"type": "ping", "n": 1, "x": "x" * MAX_MESSAGE}),
    "binary": b'{"type": "ping", "n": 1}',
    "no type": "{}",
    "an unknown type": '{"type": "admin"}',
    "a type that is a list": '{"type": []}',
    "a ping without a number": '{"type": "ping"}',
    "a ping with text": '{"type": "ping", "n": "1"}',
    "chat of nothing": '{"type": "chat", "text": "  "}',
    "chat of a number": '{"type": "chat", "text": 5}',
    "chat that is too long": json.dumps({"type": "chat", "text": "x" * (MAX_TEXT + 1)}),
    "a second hello": '{"type": "hello", "tab": "x"}',
}


@pytest.mark.parametrize("message", WRONG.values(), ids=WRONG)
def test_a_wrong_message_is_answered_and_harms_nobody(
    room: DemoApplication, enter: Enter, message: str | bytes
) -> None:
    first, second = enter("a"), enter("b")
    first.take()
    second.take()
    room.message(first, message)
    assert [each["type"] for each in first.take()] == ["error"]
    assert second.take() == []
    assert say(room, first, type="ping", n=1) == [{"type": "pong", "n": 1}]


@pytest.mark.parametrize("tab", [None, "", "x" * 65, 5])
def test_a_hello_needs_a_key_of_reasonable_length(room: DemoApplication, tab: object) -> None:
    channel = FakeChannel()
    room.open(channel)
    assert say(room, channel, type="hello", tab=tab)[0]["type"] == "error"
    assert len(room) == 0


@pytest.mark.parametrize("animal", [None, 5, [], {}])
def test_a_strange_wish_is_no_wish(enter: Enter, animal: Any) -> None:
    assert enter("a", animal).take()[0]["type"] == "welcome"


async def test_one_who_does_not_read_is_not_read(room: DemoApplication, enter: Enter) -> None:
    first = enter("a")
    assert room.message(first, '{"type": "ping", "n": 1}') is None
    first.congested = True
    waiting = room.message(first, '{"type": "ping", "n": 2}')
    assert waiting is not None
    await waiting
    assert first.drains == 1
