"""`operators._core.arguments`: an operator's arguments, checked by its signature's types."""

# Arguments are wrong here on purpose.
# pyright: reportCallIssue=false, reportArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUndefinedVariable=false, reportUnknownParameterType=false

from __future__ import annotations

import gc
import math
import typing
import weakref
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import record_span
from operators.authoring import AtLeast, FusedRun, Seconds, Stage, operator

Choice = Literal["first", "last", 3]


@operator
def choosy(  # noqa: PLR0917 - one of every kind
    whole: int = 0,
    number: float = 0.0,
    text: str = "",
    flag: bool = False,
    choice: Choice = "first",
    function: Callable[..., object] = print,
    limit: Annotated[int, AtLeast(2, "tokens")] = 2,
    wait: Seconds = 1.0,
    maybe: Annotated[int, AtLeast(1)] | str | None = None,
    anything: list[int] | None = None,
) -> Stage[Any, Any]:
    """Has an option of every kind that is checked."""
    item = yield
    while True:
        item = yield item


@operator
async def later(source: FusedRun[Any], wait: Seconds, *, flag: bool = False) -> AsyncGenerator[Any]:
    """Is an asynchronous generator: its source is no argument."""
    async for item in source:
        yield item


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_at_least(bound: float, value: Any) -> bool:
    return is_number(value) and (isinstance(value, int) or math.isfinite(value)) and value >= bound


# For each option what it takes, as a function, and how the error names that.
OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "whole": (is_whole, "a whole number"),
    "number": (is_number, "a number"),
    "text": (lambda value: isinstance(value, str), "a text"),
    "flag": (lambda value: isinstance(value, bool), "True or False"),
    "choice": (lambda value: value in ("first", "last", 3), "'first' or 'last' or 3"),
    "function": (callable, "a function"),
    "limit": (
        lambda value: is_whole(value) and value >= 2,
        "a whole number, at least 2 tokens",
    ),
    "wait": (
        lambda value: is_at_least(0, value) and value > 0,
        "a number, more than 0 seconds",
    ),
    "maybe": (
        lambda value: value is None or isinstance(value, str) or (is_whole(value) and value >= 1),
        "a whole number, at least 1 or a text or None",
    ),
    "anything": (lambda _: True, ""),
}

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.just(10**400),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["first", "last"]),
    st.binary(max_size=2),
    st.lists(st.integers(), max_size=2),
    st.just(print),
    st.just(int),
    st.builds(object),
    st.just({}),
)


@pytest.mark.rows("O5")
@given(option=st.sampled_from(sorted(OPTIONS)), value=VALUES)
def test_a_value_of_any_kind(option: str, value: Any) -> None:
    """It is taken where its type and its bounds fit; else the error names operator and option."""
    fits, expected = OPTIONS[option]
    if fits(value):
        assert choosy(**{option: value}).name == "choosy"
        return
    with pytest.raises((TypeError, ValueError)) as refused:
        choosy(**{option: value})
    assert str(refused.value) == f"choosy: {option}: expected {expected}, got {value!r}"
    if not is_number(value) and option != "choice":
        assert type(refused.value) is TypeError
    elif option in {"limit", "wait", "choice"} and (is_whole(value) or option != "limit"):
        assert type(refused.value) is ValueError


@pytest.mark.rows("O5")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choosy(other=1), r"choosy: .*unexpected keyword argument 'other'"),
        (lambda: choosy(*range(11)), r"choosy: too many positional arguments"),
        (lambda: choosy(1, whole=2), r"choosy: multiple values for argument 'whole'"),
        (later, r"later: missing a required argument: 'wait'"),
        (lambda: later(1.0, True), r"later: too many positional arguments"),
        (lambda: later(source=1, wait=1.0), r"later: .*unexpected keyword argument 'source'"),
        (lambda: later("soon"), r"later: wait: expected a number, more than 0 seconds, got 'soon'"),
    ],
)
def test_what_does_not_fit_the_signature(make: Callable[[], object], message: str) -> None:
    """It is a TypeError of the call that makes the operator, and names the operator."""
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.rows("O5")
def test_the_default_is_always_good() -> None:
    """Also one that is not of the option's type, as that of a scope."""

    @operator
    def odd(whole: int = typing.cast("int", ...), scope: int = typing.cast("int", ...)) -> Any:
        yield whole

    assert odd().name == "odd"
    assert odd(...).name == "odd"
    with pytest.raises(TypeError, match="odd: whole: expected a whole number, got None"):
        odd(None)


@pytest.mark.rows("O5")
def test_a_type_that_is_unknown_at_run_time() -> None:
    """An argument whose type exists for the type checker only keeps no other from being checked."""

    @operator
    def partly(known: int, unknown: Missing | None = None) -> Stage[Any, Any]:  # noqa: F821
        yield known

    assert partly(1, unknown="anything").name == "partly"
    with pytest.raises(TypeError, match="partly: known: expected a whole number, got 'one'"):
        partly("one")
    with pytest.raises(TypeError, match="record_span: reason_name: expected a function, got 7"):
        record_span(reason_name=7)


def test_what_it_takes_may_look_like_anything() -> None:
    """An object that can be called is a function."""
    assert choosy(function=SimpleNamespace).name == "choosy"


def test_nothing_is_kept_of_an_operator() -> None:
    """One that is written in a function is forgotten with what it refers to."""

    class Held:
        pass

    def use() -> weakref.ref[Held]:
        held = Held()

        @operator
        def holding(whole: int) -> Stage[Any, Any]:
            yield held

        @operator
        async def holding_too(source: FusedRun[Any], whole: int) -> AsyncGenerator[Any]:
            yield held

        for _ in range(2):
            holding(1)
            holding_too(1)
        return weakref.ref(held)

    held = use()
    gc.collect()
    assert held() is None
