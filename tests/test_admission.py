"""Who may come in. Time is a number."""

import pytest

from gateway.admission import Admission
from gateway.config import Limits
from gateway.protocol.handshake import Refused


def refused(call, *args) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*args)
    return caught.value


# -- how often -------------------------------------------------------------------------------------


def test_a_burst_and_then_so_many_per_second():
    admission = Admission(Limits(half_open=5, handshakes=2))
    for _ in range(5):
        admission.knock("a", 100.0)
    full = refused(admission.knock, "a", 100.0)
    assert (full.status, full.retry_after) == (429, 1)
    refused(admission.knock, "a", 100.49)
    admission.knock("a", 100.5)
    refused(admission.knock, "a", 100.99)
    admission.knock("b", 100.99)
    admission.knock("a", 101.0)


def test_one_that_is_refused_takes_nothing_and_is_told_when_to_come_back():
    admission = Admission(Limits(half_open=1, handshakes=1))
    admission.knock("a", 0.0)
    for n in range(100):
        assert refused(admission.knock, "a", n / 100).retry_after == 1
    admission.knock("a", 1.0)


def test_a_hundred_per_second_for_ever_at_the_defaults():
    admission = Admission(Limits())
    for n in range(20_000):
        admission.knock("a", n * 0.01)
    for _ in range(3_999):
        admission.knock("a", 199.99)
    refused(admission.knock, "a", 199.99)


def test_addresses_that_have_been_quiet_are_forgotten():
    admission = Admission(Limits())
    for n in range(1_000_000):
        admission.knock(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", n / 1_000)
    assert len(admission._quiet_at) <= 1_001


# -- how many --------------------------------------------------------------------------------------


def test_connections_of_one_address():
    admission = Admission(Limits(per_address=2))
    who = [admission.enter("a"), admission.enter("a")]
    full = refused(admission.enter, "a")
    assert full.status == 429
    assert full.retry_after
    admission.enter("b")
    admission.settle(who[0])
    admission.leave(who[0])
    admission.enter("a")


def test_connections_of_everybody():
    admission = Admission(Limits(connections=2))
    admission.enter("a")
    who = admission.enter("b")
    assert refused(admission.enter, "c").status == 503
    admission.settle(who)
    refused(admission.enter, "c")
    admission.leave(who)
    admission.enter("c")


def test_handshakes_that_lead_to_nothing():
    admission = Admission(Limits(half_open=2))
    who = admission.enter("a")
    admission.enter("a")
    assert refused(admission.enter, "a").status == 429
    admission.settle(who)
    admission.enter("a")


def test_sessions_of_one_user():
    admission = Admission(Limits(per_user=2))
    admission.sign_in("ann")
    admission.sign_in("ann")
    assert refused(admission.sign_in, "ann").status == 429
    admission.sign_in("bob")
    admission.sign_out("ann")
    admission.sign_in("ann")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "", True),
        ("no:address", "no:address", True),
    ],
)
def test_one_subscriber_of_ipv6_is_one_address(one, other, same):
    admission = Admission(Limits(per_address=1))
    admission.enter(one)
    if same:
        refused(admission.enter, other)
    else:
        admission.enter(other)


def test_counts_go_back_to_nothing():
    admission = Admission(Limits())
    everybody = [admission.enter(address) for address in "aabbc"]
    admission.sign_in("ann")
    for who in everybody:
        admission.settle(who)
        admission.leave(who)
    admission.sign_out("ann")
    assert admission.total == 0
    assert not [*admission._inside, *admission._half_open, *admission._users]
