"""One connection in virtual time: polling, the ladder to a websocket, every way to end.

`Client` plays the other side without HTTP. Its settings: ping 10 s + 5 s, hold 4 s, all other timeouts as
they come.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.config import Limits, Ping, Settings, Timeouts
from gateway.connection import Connection
from gateway.protocol.moves import State
from gateway.protocol.packets import PacketError, message
from gateway.protocol.reasons import Reason
from gateway.transports import MemoryTransport, Overlap, PollingTransport
from tests.support.clock import Recorder, VirtualLoop

SETTINGS = Settings(ping=Ping(10.0, 5.0))
SEPARATOR = "\x1e"


class Get:
    """A waiting GET. `packets` is what it was answered with, or None."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.packets: list[str] | None = None
        self.respond = self._respond  # a transport compares by identity

    def _respond(self, body: str) -> None:
        assert self.packets is None, "answered twice"
        self.packets = body.split(SEPARATOR)

    def abandon(self) -> None:
        """The client closes its end while it waits."""
        self._client.connection.poll_abandoned(self._client.polling, self.respond)

    def fail(self) -> None:
        """The answer could not be written."""
        self._client.polling.undelivered(self.respond)


class Client:
    """The other side of one connection."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.settings = settings
        self.loop = VirtualLoop()
        self.heard = Recorder()
        self.connection = Connection("sid", settings, self.loop)
        self.connection.listener = self.heard

    @property
    def state(self) -> State:
        return self.connection.state

    # Polling.

    def begin_polling(self) -> Client:
        self.opening = self.connection.start_polling().split(SEPARATOR)
        return self

    @property
    def polling(self) -> PollingTransport:
        transport = self.connection.transport
        assert isinstance(transport, PollingTransport)
        return transport

    def get(self) -> Get:
        get = Get(self)
        self.connection.poll(self.polling, get.respond)
        return get

    def post(self, *packets: str) -> None:
        polling = self.polling
        self.connection.begin_post(polling)
        try:
            polling.post(SEPARATOR.join(packets).encode())
        finally:
            polling.end_post()

    def send(self, *messages: str | bytes) -> None:
        for data in messages:
            self.connection.send(message(data))
        self.loop.turn()

    # Websocket.

    def begin_websocket(self) -> MemoryTransport:
        transport = MemoryTransport(self.connection)
        self.connection.start_websocket(transport)
        return transport

    def offer(self) -> MemoryTransport:
        candidate = MemoryTransport(self.connection)
        assert self.connection.offer(candidate)
        return candidate

    def upgrade(self) -> MemoryTransport:
        candidate = self.offer()
        candidate.feed("2probe")
        candidate.feed("5")
        candidate.sent.clear()
        return candidate


@pytest.fixture
def polling() -> Client:
    return Client().begin_polling()


@pytest.fixture
def new() -> Client:
    return Client()


# -- the beginning ---------------------------------------------------------------------------------


def test_polling_begins_with_the_open_packet(polling):
    assert json.loads(polling.opening[0][1:]) == {
        "sid": "sid",
        "upgrades": ["websocket"],
        "pingInterval": 10_000,
        "pingTimeout": 5_000,
        "maxPayload": 1_000_000,
    }
    assert polling.connection.transport_name == "polling"


def test_a_websocket_begins_with_the_open_packet_and_offers_no_upgrade(new):
    transport = new.begin_websocket()
    assert json.loads(str(transport.sent[0])[1:])["upgrades"] == []
    assert new.connection.transport_name == "websocket"


@pytest.mark.parametrize(
    "settings", [replace(SETTINGS, upgrades=False), replace(SETTINGS, transports=("polling",))]
)
def test_an_upgrade_that_is_switched_off_is_not_offered(settings):
    client = Client(settings).begin_polling()
    assert json.loads(client.opening[0][1:])["upgrades"] == []


def test_what_the_application_sends_while_it_opens_comes_with_the_open_packet(new):
    new.connection.send("4early")
    new.begin_polling()
    assert new.opening[1:] == ["4early"]


def test_the_same_over_a_websocket(new):
    new.connection.send("4early")
    new.connection.send(b"bytes")
    assert new.begin_websocket().sent[1:] == ["4early", b"bytes"]


def test_the_application_may_close_while_it_opens(new):
    new.connection.close(Reason.REFUSED)
    assert (new.state, new.heard.reason) == (State.CLOSED, Reason.REFUSED)
    assert new.loop.forgotten == [new.connection]


def test_a_websocket_that_opens_after_the_end_is_closed(new):
    new.connection.close(Reason.SHUTDOWN)
    transport = new.begin_websocket()
    assert transport.sent == []
    assert transport.closed_with is Reason.SHUTDOWN


def test_a_handshake_and_nothing_after_it(polling):
    polling.loop.advance(9.9)
    assert polling.heard.reason is None
    polling.loop.advance(0.1)
    assert polling.heard.reason is Reason.NEVER_OPENED


def test_any_second_request_is_enough(polling):
    polling.post("4a")
    polling.loop.advance(12)
    assert polling.heard.reason is None


# -- polling ---------------------------------------------------------------------------------------


def test_a_waiting_get_is_answered_with_all_of_one_turn(polling):
    get = polling.get()
    polling.send("a", "b", b"c")
    assert get.packets == ["4a", "4b", "bYw=="]


def test_what_is_sent_between_gets_waits_for_the_next(polling):
    polling.send("a")
    polling.send("b")
    assert polling.get().packets == ["4a", "4b"]


def test_a_post_is_heard_in_order(polling):
    polling.post("4a", "bYg==", "4", "4c")
    assert polling.heard.messages == ["a", b"b", "", "c"]


@pytest.mark.parametrize("bad", ["", "0", "2", "2probe", "5", "6", "7", "x", "b!"])
def test_a_bad_post_is_refused_as_a_whole_and_ends_the_connection(polling, bad):
    get = polling.get()
    with pytest.raises(PacketError):
        polling.post("4a", bad, "4b")
    assert polling.heard.messages == []
    assert polling.heard.reason is Reason.PARSE_ERROR
    assert get.packets == ["1"]
    assert polling.state is State.CLOSED


def test_the_application_may_close_in_the_middle_of_a_post(polling):
    hear = polling.heard.message

    def close_after_the_first(data):
        hear(data)
        polling.connection.close()

    polling.heard.message = close_after_the_first
    polling.post("4a", "4b", "4c")
    assert polling.heard.messages == ["a"]
    assert polling.heard.reason is Reason.SERVER_CLOSE


def test_a_get_is_held_for_four_seconds(polling):
    get = polling.get()
    polling.loop.advance(3.9)
    assert get.packets is None
    polling.loop.advance(0.1)
    assert get.packets == ["6"]


def test_the_hold_begins_anew_with_each_get(polling):
    polling.get()
    polling.loop.advance(3)
    polling.send("a")
    get = polling.get()
    polling.loop.advance(3.9)
    assert get.packets is None


def test_a_second_get_closes_the_connection(polling):
    first = polling.get()
    with pytest.raises(Overlap):
        polling.get()
    assert first.packets == ["1"]
    assert polling.heard.reason is Reason.TRANSPORT_ERROR
    assert polling.loop.forgotten == [polling.connection]


def test_a_second_post_closes_the_connection(polling):
    polling.connection.begin_post(polling.polling)
    with pytest.raises(Overlap):
        polling.connection.begin_post(polling.polling)
    assert polling.heard.reason is Reason.TRANSPORT_ERROR


def test_nothing_of_an_overlapped_post_is_heard(polling):
    transport = polling.polling
    polling.connection.begin_post(transport)
    with pytest.raises(Overlap):
        polling.connection.begin_post(transport)
    with pytest.raises(PacketError):
        transport.post(b"4a")
    assert polling.heard.messages == []


def test_a_get_that_leaves_loses_nothing(polling):
    polling.get().abandon()
    polling.send("a", "b")
    assert polling.get().packets == ["4a", "4b"]


def test_a_client_that_leaves_has_five_seconds_to_come_back(polling):
    get = polling.get()
    polling.loop.advance(1)
    get.abandon()
    polling.loop.advance(4.9)
    assert polling.heard.reason is None
    polling.loop.advance(0.1)
    assert polling.heard.reason is Reason.TRANSPORT_CLOSE


@pytest.mark.parametrize("come_back", ["get", "post", "offer"])
def test_any_request_is_a_come_back(polling, come_back):
    polling.get().abandon()
    if come_back == "post":
        polling.post("4a")
    else:
        getattr(polling, come_back)()
    polling.loop.advance(9)
    assert polling.heard.reason is None


def test_a_get_that_was_answered_cannot_be_abandoned(polling):
    get = polling.get()
    polling.send("a")
    get.abandon()
    polling.loop.advance(9)
    assert polling.heard.reason is None


def test_an_answer_that_could_not_be_written_comes_again_and_first(polling):
    get = polling.get()
    polling.send("a", b"b")
    polling.send("c")
    get.fail()
    assert polling.get().packets == ["4a", "bYg==", "4c"]


def test_an_answer_that_could_not_be_written_begins_the_grace(polling):
    get = polling.get()
    polling.send("a")
    get.fail()
    polling.loop.advance(4.9)
    assert polling.heard.reason is None
    polling.loop.advance(0.1)
    assert polling.heard.reason is Reason.TRANSPORT_CLOSE


def test_an_answer_counts_as_delivered_when_the_next_get_arrives(polling):
    first = polling.get()
    polling.send("a")
    second = polling.get()
    first.fail()
    polling.send("b")
    assert second.packets == ["4b"]


def test_a_noop_that_could_not_be_written_is_not_repeated(polling):
    get = polling.get()
    polling.loop.advance(4)
    get.fail()
    candidate = polling.upgrade()
    polling.send("a")
    assert candidate.sent == ["4a"]


def test_one_message_larger_than_the_bound_fits():
    client = Client(replace(SETTINGS, limits=Limits(outbound_bytes=10))).begin_polling()
    client.send("x" * 100)
    assert client.get().packets == ["4" + "x" * 100]


@pytest.mark.parametrize("end", ["read", "polite", "lost"])
def test_who_waits_for_the_queue_is_told_when_it_is_drained_or_the_end_has_come(end):
    client = Client(replace(SETTINGS, limits=Limits(outbound_messages=10))).begin_polling()
    client.send(*["x"] * 6)
    calls: list[str] = []
    client.connection.when_drained(lambda: calls.append("drained"))
    client.loop.turn()
    assert calls == []
    if end == "read":
        client.get()
    elif end == "polite":
        client.connection.close()
        client.loop.advance(10)
    else:
        client.connection.close(Reason.TRANSPORT_CLOSE)
    client.loop.turn()
    assert calls == ["drained"]
    client.connection.when_drained(lambda: calls.append("at once"))
    assert calls == ["drained", "at once"]


def test_returned_packets_count_against_the_bound():
    client = Client(replace(SETTINGS, limits=Limits(outbound_messages=3))).begin_polling()
    get = client.get()
    client.send("a", "b", "c")
    get.fail()
    client.send("d")
    assert client.heard.reason is Reason.SLOW_CONSUMER


@pytest.mark.parametrize("text", ["\x1e", "a\x1eb"])
def test_text_that_polling_cannot_carry_is_refused_to_the_sender(polling, text):
    with pytest.raises(ValueError, match=r"U\+001E"):
        polling.send(text)
    polling.send("after")
    assert polling.get().packets == ["4after"]


def test_bytes_and_websockets_carry_it(polling):
    polling.send(b"\x1e")
    assert polling.get().packets == ["bHg=="]
    candidate = polling.upgrade()
    polling.send("a\x1eb")
    assert candidate.sent == ["4a\x1eb"]


# -- the ladder ------------------------------------------------------------------------------------


def test_a_good_upgrade(polling):
    get = polling.get()
    candidate = polling.offer()
    assert polling.state is State.PROBING
    candidate.feed("2probe")
    assert (polling.state, candidate.sent) == (State.PROBED, ["3probe"])
    assert get.packets == ["6"], "the waiting GET is released, so that the client can go on"
    candidate.feed("5")
    assert polling.state is State.WEBSOCKET
    assert polling.connection.transport_name == "websocket"
    polling.send("a")
    candidate.feed("4b")
    assert (candidate.sent, polling.heard.messages) == (["3probe", "4a"], ["b"])


def test_polling_carries_messages_until_the_upgrade_is_done(polling):
    candidate = polling.offer()
    polling.send("a")
    candidate.feed("2probe")
    polling.post("4b")
    polling.send("c")
    get = polling.get()
    assert get.packets == ["4a", "4c"]
    polling.send("d")
    candidate.feed("5")
    assert candidate.sent == ["3probe", "4d"]
    assert polling.heard.messages == ["b"]


def test_a_get_that_waits_when_the_upgrade_is_done_is_released(polling):
    candidate = polling.offer()
    candidate.feed("2probe")
    get = polling.get()
    candidate.feed("5")
    assert get.packets == ["6"]


def test_a_get_of_a_probed_client_is_not_held(polling):
    polling.offer().feed("2probe")
    get = polling.get()
    polling.loop.advance(0.1)
    assert get.packets == ["6"]


FAILURES = {
    "B72-probe-twice": ["2probe", "2probe"],
    "B72-upgrade-without-probe": ["5"],
    "B72-message-before-upgrade": ["2probe", "4hello"],
    "message-first": ["4hello"],
    "binary-first": [b"hello"],
    "close": ["1"],
    "ping-without-probe": ["2"],
    "other-probe": ["2Probe"],
    "pong": ["2probe", "3"],
    "open": ["0{}"],
    "noop": ["2probe", "6"],
}


@pytest.mark.parametrize("frames", FAILURES.values(), ids=FAILURES)
def test_an_upgrade_that_goes_wrong_leaves_polling_as_it_was(polling, frames):
    candidate = polling.offer()
    for frame in frames:
        candidate.feed(frame)
    assert candidate.closed_with is Reason.PARSE_ERROR
    assert_polling_lives(polling)


@pytest.mark.parametrize("garbage", ["", "x", "7", "bAAA"])
@pytest.mark.parametrize("before", [[], ["2probe"]], ids=["probing", "probed"])
def test_garbage_on_a_candidate_leaves_polling_as_it_was(polling, before, garbage):
    candidate = polling.offer()
    for frame in [*before, garbage]:
        candidate.feed(frame)
    assert candidate.closed_with is not None
    assert_polling_lives(polling)


@pytest.mark.parametrize("before", [[], ["2probe"]], ids=["probing", "probed"])
def test_a_candidate_that_is_lost_leaves_polling_as_it_was(polling, before):
    candidate = polling.offer()
    for frame in before:
        candidate.feed(frame)
    candidate.cut()
    assert_polling_lives(polling)


@pytest.mark.parametrize("before", [[], ["2probe"]], ids=["probing", "probed"])
def test_a_candidate_that_stalls_is_given_up_after_ten_seconds(polling, before):
    candidate = polling.offer()
    for frame in before:
        candidate.feed(frame)
    polling.loop.advance(9.9)
    assert candidate.closed_with is None
    polling.loop.advance(0.1)
    assert candidate.closed_with is Reason.NEVER_OPENED
    polling.post("3")
    assert_polling_lives(polling)


def assert_polling_lives(client: Client) -> None:
    """Polling goes on, at its usual pace, and another upgrade succeeds."""
    assert client.state is State.POLLING
    if client.connection._queue:
        client.get()
    get = client.get()
    client.loop.advance(3.9)
    assert get.packets is None, "GETs are answered in a hot loop"
    client.send("still here")
    assert get.packets == ["4still here"]
    client.post("4me too")
    assert client.heard.messages == ["me too"]
    assert client.heard.reason is None
    client.upgrade()
    assert client.state is State.WEBSOCKET


def test_a_lost_candidate_does_not_speak_any_more(polling):
    candidate = polling.offer()
    candidate.feed("4hello")
    candidate.feed("2probe")
    candidate.feed("5")
    assert (polling.state, polling.heard.messages, candidate.sent) == (State.POLLING, [], [])


@pytest.mark.parametrize("state", [State.PROBING, State.PROBED, State.WEBSOCKET, State.CLOSED])
def test_b70_a_second_websocket_is_refused_and_the_first_lives(polling, state):
    first = polling.offer()
    if state is not State.PROBING:
        first.feed("2probe")
    if state in (State.WEBSOCKET, State.CLOSED):
        first.feed("5")
    if state is State.CLOSED:
        first.feed("1")
    second = MemoryTransport(polling.connection)
    assert not polling.connection.offer(second)
    second.feed("2probe")
    second.feed("4x")
    second.cut()
    assert polling.state is state
    assert (second.sent, polling.heard.messages) == ([], [])


def test_the_end_of_polling_takes_the_candidate_with_it(polling):
    candidate = polling.offer()
    polling.connection.close(Reason.SHUTDOWN)
    assert candidate.closed_with is Reason.SHUTDOWN


def test_a_close_between_probe_and_upgrade_is_heard_on_the_websocket(polling):
    candidate = polling.offer()
    candidate.feed("2probe")
    polling.send("last words")
    polling.connection.close(Reason.SERVER_CLOSE)
    assert candidate.closed_with is None
    candidate.feed("5")  # the client has put polling aside: it would not hear it anywhere else
    assert candidate.sent == ["3probe", "4last words", "1"]
    assert candidate.closed_with is Reason.SERVER_CLOSE
    assert polling.state is State.CLOSED
    assert polling.heard.reason is Reason.SERVER_CLOSE


def test_a_close_between_probe_and_upgrade_is_heard_on_polling(polling):
    candidate = polling.offer()
    candidate.feed("2probe")
    polling.send("last words")
    polling.connection.close(Reason.SERVER_CLOSE)
    assert polling.get().packets == ["4last words", "1"]
    assert candidate.closed_with is Reason.SERVER_CLOSE
    assert polling.state is State.CLOSED


def test_a_client_that_never_finishes_the_upgrade_does_not_hold_up_the_close(polling):
    candidate = polling.offer()
    candidate.feed("2probe")
    polling.connection.close(Reason.SERVER_CLOSE)
    polling.loop.advance(SETTINGS.timeouts.close)
    assert candidate.closed_with is Reason.SERVER_CLOSE
    assert polling.state is State.CLOSED


def test_a_post_that_was_under_way_when_the_upgrade_was_done_is_refused(polling):
    transport = polling.polling
    polling.connection.begin_post(transport)
    polling.upgrade()
    with pytest.raises(PacketError):
        transport.post(b"4late")
    assert polling.state is State.WEBSOCKET
    assert polling.heard.messages == []


def test_a_paused_connection_stays_paused_on_its_new_transport(polling):
    polling.connection.pause()
    candidate = polling.upgrade()
    assert candidate.paused
    polling.connection.resume()
    assert not candidate.paused


# -- the heartbeat ---------------------------------------------------------------------------------


def test_ping_goes_out_and_pong_keeps_alive(polling):
    candidate = polling.upgrade()
    for _ in range(5):
        polling.loop.advance(10)
        assert candidate.sent == ["2"]
        candidate.sent.clear()
        candidate.feed("3")
    assert polling.heard.reason is None


def test_a_ping_answers_the_waiting_get(polling):
    polling.post("4a")
    polling.loop.advance(7)
    polling.get()
    polling.loop.advance(2.9)
    polling.send("x")
    get = polling.get()
    polling.loop.advance(0.1)
    assert get.packets == ["2"]


@pytest.mark.parametrize("name", ["polling", "websocket"])
def test_silence_is_the_end_after_interval_and_timeout(polling, name):
    polling.post("4a")
    transport = polling.upgrade() if name == "websocket" else None
    polling.loop.advance(14.9)
    assert polling.heard.reason is None
    polling.loop.advance(0.1)
    assert polling.heard.reason is Reason.PING_TIMEOUT
    assert polling.loop.forgotten == [polling.connection]
    if transport is not None:
        assert transport.sent == ["2", "1"]


def test_messages_are_no_pong(polling):
    candidate = polling.upgrade()
    for _ in range(15):
        polling.loop.advance(1)
        candidate.feed("4busy")
    assert polling.heard.reason is Reason.PING_TIMEOUT
    assert len(polling.heard.messages) == 14


def test_b47_pongs_that_nobody_asked_for_change_nothing(polling):
    candidate = polling.upgrade()
    for _ in range(10_000):
        candidate.feed("3")
    polling.loop.advance(10)
    assert candidate.sent == ["2"]


def test_gets_do_not_replace_pongs(polling):
    for _ in range(10):
        polling.get()
        polling.loop.advance(4)
        if polling.heard.reason is not None:
            break
    assert polling.heard.reason is Reason.PING_TIMEOUT


def test_a_client_that_is_not_read_is_not_expired(polling):
    candidate = polling.upgrade()
    polling.loop.advance(11)
    polling.connection.pause()
    assert candidate.paused
    polling.loop.advance(3600)
    assert polling.heard.reason is None
    polling.connection.resume()
    assert not candidate.paused
    polling.loop.advance(4.9)
    candidate.feed("3")
    polling.loop.advance(9)
    assert polling.heard.reason is None


def test_after_a_pause_the_heartbeat_goes_on(polling):
    polling.upgrade()
    polling.connection.pause()
    polling.loop.advance(3600)
    polling.connection.resume()
    polling.loop.advance(5.1)
    assert polling.heard.reason is Reason.PING_TIMEOUT


def test_who_waits_for_the_end_of_a_pause_is_told_once(polling):
    calls = []
    polling.connection.pause()
    polling.connection.when_resumed(lambda: calls.append(1))
    polling.connection.resume()
    polling.connection.resume()
    assert calls == [1]


def test_after_a_stall_nobody_is_judged_before_a_second(polling):
    candidate = polling.upgrade()
    polling.loop.advance(10)
    polling.loop.stall(60)
    polling.loop.advance(0.9)
    assert polling.heard.reason is None
    candidate.feed("3")
    polling.loop.advance(9)
    assert polling.heard.reason is None


def test_after_a_stall_the_dead_are_still_noticed(polling):
    polling.upgrade()
    polling.loop.advance(10)
    polling.loop.stall(60)
    polling.loop.advance(1.1)
    assert polling.heard.reason is Reason.PING_TIMEOUT


@pytest.mark.parametrize("reason", [Reason.TRANSPORT_CLOSE, Reason.NEVER_OPENED])
def test_a_stall_spares_those_who_were_about_to_come_back(polling, reason):
    if reason is Reason.TRANSPORT_CLOSE:
        polling.get().abandon()
    polling.loop.stall(9.5)
    polling.loop.stall(60)
    polling.loop.advance(0.9)
    assert polling.heard.reason is None
    polling.loop.advance(0.2)
    assert polling.heard.reason is reason


# -- slow consumers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [Limits(outbound_messages=10), Limits(outbound_bytes=1000)], ids=["messages", "bytes"]
)
@pytest.mark.parametrize("name", ["polling", "websocket"])
def test_a_client_that_does_not_read_is_closed_when_its_buffer_is_full(name, limits):
    client = Client(replace(SETTINGS, limits=limits)).begin_polling()
    if name == "websocket":
        client.upgrade().block(client.loop.now())
    for _ in range(10):
        client.send("x" * 100)
    assert client.heard.reason is None
    client.send("x" * 100)
    assert client.heard.reason is Reason.SLOW_CONSUMER
    assert client.loop.forgotten == [client.connection]
    assert not client.connection._queue


def test_more_than_the_bound_in_one_turn_goes_out_when_a_get_waits():
    client = Client(replace(SETTINGS, limits=Limits(outbound_messages=10))).begin_polling()
    get = client.get()
    for n in range(15):
        client.connection.send(f"4{n}")
    client.loop.turn()
    assert get.packets == [f"4{n}" for n in range(10)]
    assert client.get().packets == [f"4{n}" for n in range(10, 15)]
    assert client.heard.reason is None


def test_a_write_that_is_stuck_for_ten_seconds_is_the_end(monkeypatch):
    client = Client(Settings(ping=Ping(60.0, 60.0)))
    transport = client.begin_websocket()
    write = transport.write

    def write_and_block(packets):
        write(packets)
        transport.block(client.loop.now())

    monkeypatch.setattr(transport, "write", write_and_block)
    client.loop.advance(1)
    client.send("big")
    client.loop.advance(9.9)
    assert client.heard.reason is None
    client.loop.advance(0.1)
    assert client.heard.reason is Reason.SLOW_CONSUMER
    assert transport.closed_with is not None


def test_a_peer_that_reads_again_gets_everything_in_order(new):
    transport = new.begin_websocket()
    transport.sent.clear()
    transport.block(new.loop.now())
    new.send("a", "b")
    new.send("c")
    assert transport.sent == []
    transport.unblock()
    assert transport.sent == ["4a", "4b", "4c"]
    new.send("d")
    assert transport.sent[-1] == "4d"


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["polling", "websocket"])
@pytest.mark.parametrize("reason", [Reason.SERVER_CLOSE, Reason.SHUTDOWN, Reason.REPLACED])
def test_what_was_sent_before_a_polite_end_still_goes_out(new, name, reason):
    if name == "polling":
        new.begin_polling()
        new.get()
        new.send("first")
        new.send("a", "b")
        new.connection.close(reason)
        assert new.heard.reason is reason
        assert new.state is State.CLOSING
        assert new.get().packets == ["4a", "4b", "1"]
    else:
        transport = new.begin_websocket()
        transport.sent.clear()
        transport.block(new.loop.now())
        new.send("a", "b")
        new.connection.close(reason)
        assert new.state is State.CLOSING
        transport.unblock()
        assert transport.sent == ["4a", "4b", "1"]
        assert transport.closed_with is reason
    assert new.state is State.CLOSED
    assert new.loop.forgotten == [new.connection]


def test_a_waiting_get_is_told_at_once(polling):
    get = polling.get()
    polling.connection.send("4a")
    polling.connection.close()
    assert get.packets == ["4a", "1"]
    polling.loop.turn()
    assert polling.state is State.CLOSED


def test_a_client_that_does_not_fetch_the_end_is_forgotten_after_ten_seconds(polling):
    polling.send("a")
    polling.connection.close()
    polling.loop.advance(9.9)
    assert polling.state is State.CLOSING
    polling.loop.advance(0.1)
    assert polling.loop.forgotten == [polling.connection]


def test_a_websocket_that_is_lost_while_it_closes_is_forgotten(new):
    transport = new.begin_websocket()
    transport.block(new.loop.now())
    new.send("a")
    new.connection.close()
    transport.cut()
    assert new.state is State.CLOSED
    assert new.loop.forgotten == [new.connection]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_closing_again_changes_nothing(polling, times):
    for _ in range(times):
        polling.connection.close()
    assert polling.heard.reason is Reason.SERVER_CLOSE
    assert polling.get().packets == ["1"]


def test_the_client_says_good_bye_over_polling(polling):
    get = polling.get()
    polling.post("4last", "1")
    assert polling.heard.messages == ["last"]
    assert polling.heard.reason is Reason.CLIENT_CLOSE
    assert get.packets == ["6"]


def test_the_client_says_good_bye_over_a_websocket(new):
    transport = new.begin_websocket()
    transport.feed("1")
    assert new.heard.reason is Reason.CLIENT_CLOSE
    assert transport.closed_with is Reason.CLIENT_CLOSE
    assert new.loop.forgotten == [new.connection]


@pytest.mark.parametrize("frame", ["0{}", "2", "2probe", "5", "6", "x", "", "7", "bAAA"])
def test_b68_what_a_client_must_not_send_over_a_websocket_is_the_end_at_once(new, frame):
    transport = new.begin_websocket()
    transport.feed(frame)
    assert new.heard.reason is Reason.PARSE_ERROR
    assert transport.closed_with is Reason.PARSE_ERROR
    assert new.state is State.CLOSED


def test_messages_after_the_end_are_ignored(new):
    transport = new.begin_websocket()
    new.connection.close()
    transport.feed("4late")
    transport.feed(b"late")
    transport.feed("garbage")
    assert new.heard.messages == []


def test_messages_behind_a_good_bye_are_ignored(polling):
    polling.post("4a", "1", "4late", "1")
    assert polling.heard.messages == ["a"]


def test_sending_after_the_end_is_a_no_op(polling):
    polling.connection.close()
    polling.get()
    polling.send("late", "with \x1e")
    assert not polling.connection._queue


def test_a_lost_websocket_is_the_end_and_drops_what_waits(new):
    transport = new.begin_websocket()
    transport.block(new.loop.now())
    new.send("a")
    transport.cut()
    assert new.heard.reason is Reason.TRANSPORT_CLOSE
    assert not new.connection._queue
    assert new.loop.forgotten == [new.connection]


def test_a_closed_connection_wants_nothing_more(polling):
    polling.get()
    polling.post("1")
    polling.loop.advance(10_000)
    assert polling.connection.deadline == float("inf")


# -- a stock client in bad weather -----------------------------------------------------------------


class Weather(RuleBasedStateMachine):
    """A stock Engine.IO client over polling, behind a network that loses requests and answers.

    The client closes when an answer is cut, as engine.io-client does; a proxy in between may repeat a GET
    that was never answered. Whatever happens: each side has a gap-free prefix of what the other sent,
    or the connection is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.client = Client(
            replace(SETTINGS, timeouts=Timeouts(poll_grace=1e6, connect=1e6), ping=Ping(1e6, 1e6))
        ).begin_polling()
        self.waiting: Get | None = None
        self.answered: Get | None = None
        self.sent: list[str] = []
        self.got: list[str] = []
        self.posted: list[str] = []
        self.gave_up = False

    @property
    def over(self) -> bool:
        return self.gave_up or self.client.heard.reason is not None

    def _look(self) -> None:
        if self.waiting is not None and self.waiting.packets is not None:
            self.answered, self.waiting = self.waiting, None

    @rule(count=st.integers(1, 3))
    def server_sends(self, count):
        for _ in range(count):
            text = str(len(self.sent))
            self.client.connection.send("4" + text)
            if not self.client.state.is_over:
                self.sent.append(text)

    @rule()
    def the_turn_ends(self):
        self.client.loop.turn()
        self._look()

    @precondition(lambda self: not self.over and self.waiting is None and self.answered is None)
    @rule()
    def client_polls(self):
        self.waiting = self.client.get()
        self._look()

    @precondition(lambda self: not self.over and self.answered is not None)
    @rule()
    def the_answer_arrives(self):
        assert self.answered is not None
        assert self.answered.packets is not None
        self.got += [packet[1:] for packet in self.answered.packets if packet[0] == "4"]
        self.answered = None

    @precondition(lambda self: not self.over and self.answered is not None)
    @rule()
    def the_answer_could_not_be_written(self):
        """Nobody has got it; the one who asked comes again."""
        assert self.answered is not None
        self.answered.fail()
        self.answered = None

    @precondition(lambda self: self.answered is not None)
    @rule()
    def the_answer_is_cut_behind_our_back(self):
        """We believe that it was written; the client knows better and closes."""
        self.answered = None
        self.gave_up = True

    @precondition(lambda self: not self.over and self.waiting is not None)
    @rule()
    def the_waiting_get_is_cut(self):
        assert self.waiting is not None
        self.waiting.abandon()
        self.waiting = None

    @precondition(lambda self: not self.over)
    @rule(count=st.integers(1, 3))
    def client_posts(self, count):
        texts = [str(len(self.posted) + n) for n in range(count)]
        self.client.post(*["4" + text for text in texts])
        self.posted += texts
        self._look()

    @precondition(lambda self: not self.over)
    @rule()
    def a_post_is_lost_on_its_way(self):
        """The client gets no answer, and closes."""
        self.posted.append(str(len(self.posted)))
        self.gave_up = True

    @precondition(lambda self: not self.over)
    @rule(seconds=st.sampled_from([0.05, 1.0, 5.0]))
    def time_passes(self, seconds):
        self.client.loop.advance(seconds)
        self._look()

    @rule()
    def server_closes(self):
        self.client.connection.close()
        self._look()

    @precondition(lambda self: not self.over)
    @rule(frames=st.lists(st.sampled_from(["2probe", "4x", "1", "x"]), max_size=3))
    def an_upgrade_fails(self, frames):
        candidate = MemoryTransport(self.client.connection)
        assert self.client.connection.offer(candidate)
        for frame in frames:
            candidate.feed(frame)
        if candidate.closed_with is None:
            candidate.cut()
        self._look()

    @invariant()
    def both_sides_have_a_gap_free_prefix(self):
        assert self.got == self.sent[: len(self.got)]
        assert self.client.heard.messages == self.posted[: len(self.client.heard.messages)]

    @invariant()
    def nothing_is_lost_while_it_lives(self):
        if self.over:
            return
        answer = self.answered.packets if self.answered is not None else None
        under_way = [packet[1:] for packet in answer or () if packet[0] == "4"]
        queued = [str(packet)[1:] for packet in self.client.connection._queue if str(packet)[0] == "4"]
        assert self.got + under_way + queued == self.sent
        assert self.client.heard.messages == self.posted


TestWeather = Weather.TestCase
TestWeather.settings = hypothesis_settings(deadline=None, max_examples=200, stateful_step_count=40)
