"""The demo page's room: who is here, an echo, a chat, and answers to time round trips by.

Decides what the page may say and how often, and bounds all of it. Knows nothing of HTTP or of
transports, beyond the name of the one in use. The messages are JSON, one object each.

From the page:
- `{"type": "hello", "tab": key, "animal": name}`, first. `tab` is the tab's own secret: after a reload
  it takes its place over again. `animal` is what it was before, or null;
- `{"type": "ping", "n": number}`, answered by a pong with the same number;
- `{"type": "echo", "text": text}`, answered by an echo with the same text;
- `{"type": "chat", "text": text}`, told to everyone.

To the page:
- `{"type": "welcome", "you": id, "people": [person, …], "lines": [line, …]}`, the answer to hello;
- `{"type": "join", "person": person}` and `{"type": "leave", "id": id}`: somebody came, or went;
- `{"type": "transport", "id": id, "transport": name}`: somebody, perhaps you, is connected otherwise;
- `{"type": "pong", "n": number}`, `{"type": "echo", "text": text}`, `{"type": "chat", "line": line}`;
- `{"type": "error", "text": sentence}`: the last message was not accepted; for a person to read.

A person is `{id, animal, colour, transport}`, a line `{id, animal, colour, text, at}`: `colour` is 0
to 7, `at` in ms since 1970.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.application import Application, Channel, Refused
from gateway.protocol.reasons import Closing

MAX_PEOPLE: Final = 200  # a join is told to everyone: the cost grows with the square
MAX_MESSAGE: Final = 4_096  # characters
MAX_TEXT: Final = 500  # characters of a chat line or an echo
MAX_TAB: Final = 64  # characters of a tab's key
RELOAD: Final = 2.0  # s that a place is kept for the next page of its tab
KEPT_LINES: Final = 20
BURST: Final = 5  # chat lines and echoes at once, then
PER_SECOND: Final = 1.0
COLOURS: Final = 8

ANIMALS: Final = (
    "Otter", "Heron", "Lynx", "Badger", "Puffin", "Gecko", "Marten", "Falcon",
    "Beaver", "Ibex", "Plover", "Dolphin", "Hare", "Osprey", "Newt", "Walrus",
    "Magpie", "Tapir", "Seal", "Wren", "Bison", "Koala", "Toad", "Ferret",
)  # fmt: skip


_GOING_AWAY: Final = 1001  # RFC 6455 section 7.4.1: the page was loaded anew


class NotAccepted(Exception):
    """The page said something that it may not; the text is for the person in front of it."""


class Allowance:
    """So many things at once, then so many per second. `now` is in seconds, and never goes back."""

    def __init__(self, burst: float, per_second: float, now: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Whether there was one left."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(slots=True)
class Member:
    """A tab in the room."""

    id: int
    tab: str
    animal: str
    colour: int
    channel: Channel
    transport: str
    allowance: Allowance

    @property
    def face(self) -> dict[str, Any]:
        """What others see of it in the chat."""
        return {"id": self.id, "animal": self.animal, "colour": self.colour}

    @property
    def person(self) -> dict[str, Any]:
        """What others see of it in the list of who is here."""
        return {**self.face, "transport": self.transport}


def _later(delay: float, call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(delay, call)


class DemoApplication(Application):
    """`now` gives monotonic seconds, `wall` seconds since 1970; `later` calls something after so many s."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        later: Callable[[float, Callable[[], None]], None] = _later,
    ) -> None:
        self._now = now
        self._wall = wall
        self._later = later
        self._channels: set[Channel] = set()
        self._members: dict[Channel, Member] = {}
        self._lines: deque[dict[str, Any]] = deque(maxlen=KEPT_LINES)
        self._count = 0

    def __len__(self) -> int:
        return len(self._members)

    # What the channel calls (`Application`).

    def open(self, channel: Channel) -> None:
        """Everyone is welcome while there is room; who it is will be told by the hello."""
        if len(self._channels) >= MAX_PEOPLE:
            raise Refused(503, "the demo is full")
        self._channels.add(channel)

    def message(self, channel: Channel, data: str | bytes) -> Awaitable[None] | None:
        """One message of the page. A wrong one is answered, and harms nobody."""
        try:
            fields = _read(data)
            member = self._members.get(channel)
            if member is None:
                self._enter(channel, fields)
            else:
                self._note_transport(member)
                self._serve(member, fields)
        except NotAccepted as error:
            _send(channel, type="error", text=str(error))
        return channel.drain() if channel.congested else None

    def close(self, channel: Channel, closing: Closing) -> None:
        """The tab is gone, unless its next page has taken over already, or is about to."""
        self._channels.discard(channel)
        if closing.code == _GOING_AWAY and channel in self._members:
            self._later(RELOAD, lambda: self._leave(channel))
        else:
            self._leave(channel)

    # The room.

    def _leave(self, channel: Channel) -> None:
        member = self._members.pop(channel, None)
        if member is not None:
            self._tell(type="leave", id=member.id)

    def _enter(self, channel: Channel, fields: dict[str, Any]) -> None:
        if fields.get("type") != "hello":
            raise NotAccepted("Say hello first.")
        tab = _text(fields, "tab", MAX_TAB)
        member = self._take_over(tab, channel) or self._join(tab, channel, fields.get("animal"))
        people = [each.person for each in self._members.values()]
        _send(channel, type="welcome", you=member.id, people=people, lines=list(self._lines))

    def _take_over(self, tab: str, channel: Channel) -> Member | None:
        """The place of the same tab before it was loaded again, so that it never seems to leave."""
        member = next((each for each in self._members.values() if each.tab == tab), None)
        if member is not None:
            del self._members[member.channel]
            member.channel = channel
            self._members[channel] = member
            self._note_transport(member)
        return member

    def _join(self, tab: str, channel: Channel, wish: object) -> Member:
        self._count += 1
        animal = self._free_animal(wish)
        colour = ANIMALS.index(animal) % COLOURS
        allowance = Allowance(BURST, PER_SECOND, self._now())
        member = Member(self._count, tab, animal, colour, channel, channel.transport, allowance)
        self._tell(type="join", person=member.person)
        self._members[channel] = member
        return member

    def _free_animal(self, wish: object) -> str:
        """The one that is wished for, or the next that nobody has; twins if there are too many."""
        taken = {member.animal for member in self._members.values()}
        if isinstance(wish, str) and wish in ANIMALS and wish not in taken:
            return wish
        start = self._count % len(ANIMALS)
        in_turn = ANIMALS[start:] + ANIMALS[:start]
        return next((animal for animal in in_turn if animal not in taken), in_turn[0])

    def _note_transport(self, member: Member) -> None:
        """A channel does not say when its transport changes; the page's next message shows it."""
        transport = member.channel.transport
        if transport != member.transport:
            member.transport = transport
            self._tell(type="transport", id=member.id, transport=transport)

    def _serve(self, member: Member, fields: dict[str, Any]) -> None:
        match fields.get("type"):
            case "ping":
                _send(member.channel, type="pong", n=_number(fields, "n"))
            case "echo":
                text = self._spoken(member, fields)
                _send(member.channel, type="echo", text=text)
            case "chat":
                text = self._spoken(member, fields)
                line = {**member.face, "text": text, "at": round(self._wall() * 1000)}
                self._lines.append(line)
                self._tell(type="chat", line=line)
            case _:
                raise NotAccepted("The demo does not know this kind of message.")

    def _spoken(self, member: Member, fields: dict[str, Any]) -> str:
        text = _text(fields, "text", MAX_TEXT)
        if not member.allowance.take(self._now()):
            raise NotAccepted("That was fast. Wait a second, then send it again.")
        return text

    def _tell(self, **fields: object) -> None:
        data = json.dumps(fields)
        for channel in list(self._members):
            channel.send(data)


def _read(data: str | bytes) -> dict[str, Any]:
    if isinstance(data, bytes) or len(data) > MAX_MESSAGE:
        raise NotAccepted(f"The demo reads text of up to {MAX_MESSAGE:,} characters.")
    try:
        fields = json.loads(data)
    # A deep nest of brackets fits into a small message.
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise NotAccepted("The demo reads JSON objects.")
    return fields


def _text(fields: dict[str, Any], key: str, limit: int) -> str:
    text = fields.get(key)
    if not isinstance(text, str) or not text.strip():
        raise NotAccepted("There was nothing in it.")
    if len(text) > limit:
        raise NotAccepted(f"That is too long: up to {limit} characters are sent.")
    return text


def _number(fields: dict[str, Any], key: str) -> int:
    number = fields.get(key)
    if not isinstance(number, int):
        raise NotAccepted(f"{key} is a whole number.")
    return number


def _send(channel: Channel, **fields: object) -> None:
    channel.send(json.dumps(fields))
