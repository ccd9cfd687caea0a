"""What can be a route. What it does is in `integration/test_handlers.py`."""

import functools

import pytest

from gateway import Route


def one(handler): ...
def two(handler, message): ...
def three(handler, message, more): ...
def default(handler, message, more=None): ...
def several(*args): ...


class Callable:
    async def __call__(self, handler, message): ...


@pytest.mark.parametrize("function", [two, default, several, Callable(), functools.partial(three, 1), print])
def test_on_message_takes_handler_and_message(function):
    assert Route("/a", on_message=function).functions == {"on_message": function}


@pytest.mark.parametrize(
    ("name", "function"), [("on_message", one), ("on_message", three), ("open", two), ("on_close", three)]
)
def test_other_arguments_are_refused_at_once(name, function):
    with pytest.raises(ValueError, match=r"is called with \(handler"):
        Route("/a", **{name: function})


def test_on_close_may_ask_why():
    Route("/a", on_close=one)
    Route("/b", on_close=two)


def test_what_is_no_function_is_a_type_error():
    with pytest.raises(TypeError, match="on_message is not a function"):
        Route("/a", on_message="chat.on_message")  # type: ignore[arg-type]


def test_a_second_function_for_the_same_event_is_refused():
    route = Route("/a", open=one)
    with pytest.raises(ValueError, match="/a has two functions for open"):
        route.open(one)


def test_what_is_no_way_to_overflow_is_refused():
    with pytest.raises(ValueError, match="close, drop_oldest, latest, not 'newest'"):
        Route("/a", overflow="newest")  # type: ignore[arg-type]


def test_decorators_return_the_function():
    route = Route("/a")
    assert route.open(one) is one
    assert route.on_message(two) is two
    assert route.on_close(one) is one
    assert route.authenticate(one) is one


@pytest.mark.parametrize("origins", [["good.example", "https://x/path"], "a b"])
def test_what_is_no_origin_is_refused(origins):
    with pytest.raises(ValueError, match="is not an origin"):
        Route("/a", origins=origins)
