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
from typing import Annotated, Any, Literal, ParamSpec

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st

import operators as our
from operators import record_span
from operators.authoring import SCOPE, AtLeast, FusedRun, Operator, Seconds, Stage, operator
from rx_backend.testing import run_virtual
from tests.operators._help import Engine

Choice = Literal["first", "last", 3]
P = ParamSpec("P")


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
    "text": (lambda value: isinstance(value, str), "a string"),
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
        "a whole number, at least 1 or a string or None",
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
    st.text("a1\n é", max_size=3),
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
def test_values_are_checked_against_types_and_bounds(option: str, value: Any) -> None:
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
def test_arguments_must_fit_the_signature(make: Callable[[], object], message: str) -> None:
    """It is a TypeError of the call that makes the operator, and names the operator."""
    with pytest.raises(TypeError, match=message):
        make()


@operator
def many(first: int, *names: str, **limits: Annotated[int, AtLeast(1)] | None) -> Stage[Any, Any]:
    """Take any number of arguments."""
    yield first, names, limits


@operator
def handed_on(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Stage[Any, Any]:
    """Take the arguments of a function."""
    yield function(*args, **kwargs)


@pytest.mark.rows("O5")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: many(1, "a", 2), r"many: names\[1\]: expected a string, got 2"),
        (
            lambda: many(1, a=None, b=0),
            "many: b: expected a whole number, at least 1 or None, got 0",
        ),
        (lambda: many(1, names="a"), "many: names: expected a whole number, at least 1 or None"),
        (lambda: handed_on(1), "handed_on: function: expected a function, got 1"),
    ],
)
def test_each_variadic_argument_is_checked(make: Callable[[], object], message: str) -> None:
    """The error names its place, or its name; what hands on a function's arguments takes any."""
    with pytest.raises((TypeError, ValueError), match=message):
        make()
    assert repr(many(1, "a", "b", limit=2)) == "many(1, 'a', 'b', limit=2)"
    assert handed_on(print, 1, sep=b"").name == "handed_on"


@pytest.mark.rows("O5")
def test_a_default_is_never_rejected() -> None:
    """Also one that is not of the option's type, as that of a scope."""

    @operator
    def odd(whole: int = typing.cast("int", ...), scope: int = typing.cast("int", ...)) -> Any:
        yield whole

    assert odd().name == "odd"
    assert odd(...).name == "odd"
    with pytest.raises(TypeError, match="odd: whole: expected a whole number, got None"):
        odd(None)


@pytest.mark.rows("O5")
def test_a_type_that_is_unknown_at_run_time_is_not_checked() -> None:
    """An argument whose type exists for the type checker only keeps no other from being checked."""

    @operator
    def partly(known: int, unknown: Missing | None = None) -> Stage[Any, Any]:  # noqa: F821
        yield known

    assert partly(1, unknown="anything").name == "partly"
    with pytest.raises(TypeError, match="partly: known: expected a whole number, got 'one'"):
        partly("one")
    with pytest.raises(TypeError, match="record_span: reason_name: expected a function, got 7"):
        record_span(reason_name=7)


def test_any_callable_is_accepted_as_a_function() -> None:
    """An object that can be called is a function."""
    assert choosy(function=SimpleNamespace).name == "choosy"


def test_a_local_operator_is_garbage_collected() -> None:
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


async def waits(item: object) -> object:
    return item


NEVER = reactivex.never()
SOURCE = Engine()()
WINDOWS = our.SloWindows(clock=lambda: 0.0)
# What operators and the objects they are made with refuse, and what the error says.
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: our.coalesce(max_chunks=0), "max_chunks: expected a whole number, at least 1, got 0"),
    (lambda: our.coalesce(overflow="drop"), "overflow: expected 'wait' or 'fail', got 'drop'"),
    (lambda: our.coalesce(counts={}), "counts: expected CoalesceCounts"),
    (lambda: our.deadlines(idle_s=None), "expected first_token_s, idle_s or total_s"),
    (lambda: our.deadlines(first_token_s=0), "first_token_s: expected a number, more than 0 sec"),
    (lambda: our.deadlines(idle_s=0), "idle_s: expected a number, more than 0 seconds"),
    (lambda: our.deadlines(total_s=0), "total_s: expected a number, more than 0 seconds"),
    (lambda: our.detokenize("gpt2"), "tokenizer: expected a tokenizers.Tokenizer, got 'gpt2'"),
    (lambda: our.Drains(-1), "limit: expected a whole number, at least 0, got -1"),
    (lambda: our.Drains(timeout_s=math.nan), "timeout_s: expected a number, at least 0 sec"),
    (lambda: our.Drains(grace_s=-1), "grace_s: expected a number, at least 0 seconds, got -1"),
    (
        lambda: our.Drains(timeout_s="1"),
        "timeout_s: expected a number, at least 0 seconds, got '1'",
    ),
    (lambda: our.LoopScheduler("uvloop"), "loop: expected AbstractEventLoop or None, got 'uvloop'"),
    (
        lambda: our.drain_until_first_token(7, drains=our.Drains()),
        "abort: expected a function or None, got 7",
    ),
    (lambda: our.drain_until_first_token(print, drains=3), "drains: expected Drains, got 3"),
    (lambda: our.enforce_cancellation(-1, print, stop=NEVER, kill=NEVER), "grace_s: expected"),
    (lambda: our.enforce_cancellation(1, print, stop=5, kill=NEVER), "stop: expected"),
    (lambda: our.enforce_cancellation(1, print, stop=NEVER, kill=5), "kill: expected"),
    (lambda: our.enforce_cancellation(1, 5, stop=NEVER, kill=NEVER), "terminal: expected"),
    (lambda: our.heartbeat(0, "p"), "interval_s: expected a number, more than 0 seconds, got 0"),
    (lambda: our.limit_tokens(0), "limit: expected a whole number, at least 1 token or None"),
    (lambda: our.map_async(7), "function: expected a function, got 7"),
    (lambda: our.on_outcome("text"), "callback: expected a function, got 'text'"),
    (lambda: our.on_outcome(waits), "callback: expected a function that is not async"),
    (lambda: our.on_outcome(print, is_cancelled="text"), "is_cancelled: expected a function, got"),
    (lambda: our.share_replay(0), "buffer: expected a whole number, at least 1 or None, got 0"),
    (
        lambda: our.share_replay(max_ahead=-1),
        "max_ahead: expected a whole number, at least 0, got -1",
    ),
    (lambda: our.share_replay(linger_s=-0.1), "linger_s: expected a number, at least 0 seconds"),
    (lambda: our.share_replay(2, 3), "buffer: expected at least max_ahead=3, or None, got 2"),
    (lambda: our.SharedStream([1]), "source: expected an asynchronous iterator, got [1]"),
    (
        lambda: our.SharedStream(SOURCE, max_ahead=-1),
        "max_ahead: expected a whole number, at least 0",
    ),
    (lambda: our.SharedStream(SOURCE, linger_s=-1.0), "linger_s: expected a number, at least 0"),
    (
        lambda: our.SharedStream(SOURCE, on_abandoned=waits),
        "on_abandoned: expected a function that",
    ),
    (lambda: our.sliding_itl(count=None), "expected count or window_s, got neither"),
    (lambda: our.sliding_itl(count=0), "count: expected a whole number, at least 1 gap or None"),
    (lambda: our.sliding_itl(window_s=0.0), "window_s: expected a number, more than 0 seconds or"),
    (lambda: our.slo(None, None, windows=WINDOWS, key="m"), "expected ttft_ms or itl_ms, got ne"),
    (lambda: our.slo(0.0, 50, windows=WINDOWS, key="m"), "ttft_ms: expected a number, more than 0"),
    (lambda: our.slo(500, -1, windows=WINDOWS, key="m"), "itl_ms: expected a number, more than 0 "),
    (
        lambda: our.slo(500, 50, windows=WINDOWS, key="m", itl_statistic="max"),
        "itl_statistic: expected 'mean' or 'p99', got 'max'",
    ),
    (lambda: our.slo(500, 50, windows=WINDOWS, key=None), "key: expected a str or a tuple of str"),
    (lambda: our.slo(500, 50, windows=WINDOWS, key=()), "key: expected a str or a tuple of str"),
    (
        lambda: our.slo(500, 50, windows=WINDOWS, key=("m", 3)),
        "key: expected a str or a tuple of s",
    ),
    (lambda: our.slo(500, 50, windows=7, key="m"), "windows: expected SloWindows, got 7"),
    (lambda: our.SloWindows(window_s=0), "window_s: expected a number, more than 0 sec"),
    (lambda: our.SloWindows(window_s=math.inf), "window_s: expected a number, more than 0 "),
    (lambda: our.SloWindows(bucket_s=-1), "bucket_s: expected a number, more than 0 se"),
    (
        lambda: our.SloWindows(window_s=60, bucket_s=7),
        "bucket_s: expected a divisor of window_s (60 s), got 7 s",
    ),
    (
        lambda: our.SloWindows(window_s=5, bucket_s=60),
        "bucket_s: expected a divisor of window_s (5 s), got 60 s",
    ),
    (
        lambda: our.SloWindows(max_keys=0),
        "max_keys: expected a whole number, at least 1 key, got 0",
    ),
    (
        lambda: our.SloWindows(max_keys=1.5),
        "max_keys: expected a whole number, at least 1 key, got",
    ),
    (lambda: our.SloWindows(clock=7), "clock: expected a function, got 7"),
    (lambda: our.stop_on(2, min_tokens=-1), "min_tokens: expected a whole number, at least 0 tok"),
    (lambda: our.stop_on(2, answers=0), "answers: expected a whole number, at least 1 or None"),
    (lambda: our.stop_on("###"), "stop: expected token ids or sequences of them, got '###'"),
    (lambda: our.stop_on(["###"]), "stop: expected token ids or sequences of them, got '###'"),
    (lambda: our.stop_on(1.5), "stop: expected token ids or sequences of them, got 1.5"),
    (lambda: our.stop_on([[]]), "stop: expected sequences of at least one token, got an empty one"),
    (lambda: our.stop_on([-1]), "stop: expected token ids, got -1"),
    (lambda: our.stop_on([[1, 1 << 32]]), "stop: expected token ids, got 4294967296"),
    (lambda: our.stop_on([True]), "stop: expected token ids, got True"),
    (lambda: our.stop_on([[1, "2"]]), "stop: expected token ids, got '2'"),
    (lambda: our.stop_on_text(7), "stop: expected a string or list of strings, got 7"),
    (
        lambda: our.stop_on_text({"#": 1}),
        "stop: expected a string or list of strings, got {'#': 1}",
    ),
    (lambda: our.stop_on_text([7]), "stop: expected strings, got 7"),
    (lambda: our.stop_on_text(["#", ""]), "stop: expected non-empty strings, got ''"),
    (lambda: our.stop_on_text("#", min_tokens=-1), "min_tokens: expected a whole number, at least"),
    (lambda: our.stop_on_text("#", answers=0), "answers: expected a whole number, at least 1 or"),
    (lambda: our.tap(7), "observe: expected a function, got 7"),
    (lambda: our.tap(print, limit=0), "limit: expected a whole number, at least 1 item, got 0"),
    (lambda: our.tap_async(print, limit=0), "limit: expected a whole number, at least 1 item"),
    (lambda: our.tap_async(print, grace_s=-1), "grace_s: expected a number, at least 0 seconds"),
    (lambda: our.usage(-1, print), "prompt_tokens: expected a whole number, at least 0 tokens"),
    (lambda: our.usage(3, 5), "make: expected a function, got 5"),
    (lambda: our.usage(3, print, on_end=1), "on_end: expected a function or None, got 1"),
]


@pytest.mark.rows("O5")
@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_invalid_arguments_are_rejected(make: Callable[[], object], message: str) -> None:
    """When it is made: the error names operator and option, and what was expected."""
    with pytest.raises((TypeError, ValueError)) as refused:
        make()
    name = next(name for name in make.__code__.co_names if name in our.__all__)
    assert str(refused.value).startswith(f"{name}: {message}")


def test_windows_reject_keys_that_json_can_not_preserve() -> None:
    """A key that would not survive the way to another process."""
    with pytest.raises(
        TypeError, match=r"SloWindows\.failed: key: expected a str or a tuple of str"
    ):
        WINDOWS.failed(7)


@operator
def labelled(scope: str) -> Stage[Any, Any]:
    item = yield
    while True:
        item = yield f"{scope} {item}"


@operator
async def relabelled(source: FusedRun[Any], scope: str) -> AsyncGenerator[Any]:
    async for item in source:
        yield f"{scope} {item}"


@pytest.mark.parametrize("make", [labelled, relabelled])
def test_an_argument_named_scope_may_be_given_by_position(
    make: Callable[..., Operator[Any, Any]],
) -> None:
    async def source() -> AsyncGenerator[int]:
        yield 1

    async def items(one: Operator[Any, Any]) -> list[str]:
        return [item async for item in our.fuse(source(), [one], scope=object())]

    assert run_virtual(items(make("mine"))) == ["mine 1"]
    assert run_virtual(items(make(scope="mine"))) == ["mine 1"]


@operator
def scoped(scope: Any = SCOPE) -> Stage[Any, Any]:
    yield scope


@pytest.mark.rows("O5")
@pytest.mark.parametrize(
    "made",
    [
        scoped(),
        our.deferred_abort(),
        our.deferred_abort(print),
        our.enforce_cancellation(1, repr),
        our.record_span(),
    ],
    ids=lambda made: made.name,
)
async def test_an_operator_without_its_scope_says_so(made: Operator[Any, Any]) -> None:
    """Outside of a request's pipeline, when the stream starts."""
    with pytest.raises(TypeError, match=f"^{made.name}.* scope"):
        await anext(our.fuse(Engine()(), [made]))


def test_an_async_generator_without_a_source_is_rejected() -> None:
    async def alone() -> AsyncGenerator[int]:
        yield 1

    async def by_name(*, count: int = 1) -> AsyncGenerator[int]:
        yield count

    for function in (alone, by_name):
        with pytest.raises(TypeError, match="the source as its first argument"):
            operator(function)
