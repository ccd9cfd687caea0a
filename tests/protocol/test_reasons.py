"""The table of reasons: what every row must obey."""

import logging

import pytest

from gateway.protocol.reasons import Closing, Reason

# What python-engineio's disconnect handlers have always been given.
TEXTS = {
    Reason.CLIENT_CLOSE: "client disconnect",
    Reason.SERVER_CLOSE: "server disconnect",
    Reason.PING_TIMEOUT: "ping timeout",
    Reason.TRANSPORT_CLOSE: "transport close",
    Reason.TRANSPORT_ERROR: "transport error",
}


@pytest.mark.parametrize(("reason", "text"), TEXTS.items(), ids=[reason.name for reason in TEXTS])
def test_texts_of_python_engineio(reason, text):
    assert reason.text == text


def test_no_two_reasons_read_the_same():
    assert len({reason.text for reason in Reason}) == len(Reason)


@pytest.mark.parametrize("reason", Reason, ids=[reason.name for reason in Reason])
def test_rows_are_sound(reason):
    row = reason.value
    assert row.code in (1000, 1002, 1006, 1012) or 4000 <= row.code < 5000
    assert len(row.text.encode()) <= 123
    assert row.level in (logging.DEBUG, logging.INFO, logging.WARNING)
    assert Closing.by(reason) == Closing(reason, row.code, row.text)


def test_only_a_close_without_a_code_is_1005():
    assert Closing(Reason.CLIENT_CLOSE).code == 1005
