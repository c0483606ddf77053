"""Laws that hold for any list of operators, on any items, however the stream ends."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reactivex import operators as ops

from operators import fuse
from operators._core.stage import when
from operators.assembly import Callbacks, callbacks
from operators.authoring import (
    AnyOperator,
    Completed,
    Stage,
    complete_with,
    detach,
    emit,
    fail_after,
    operator,
)
from rx_backend.testing import run_virtual
from tests.operators._help import Engine, Seen, collect, fused, fused_waiting, pushed, synchronous

Ints = Stage[int, int]


@dataclass
class Ledger:
    """How often each stage was begun and has met its end."""

    begun: Counter[str] = field(default_factory=Counter[str])
    ended: Counter[str] = field(default_factory=Counter[str])

    def is_even(self) -> bool:
        return self.begun == self.ended


Body = Callable[[int], Ints]
Make = Callable[[Ledger, str], AnyOperator]


def kept(n: int) -> Ints:
    item = yield
    while True:
        item = yield item if item % n else emit()


def mapped(n: int) -> Ints:
    item = yield
    while True:
        item = yield item * 3 + n


def summed(n: int) -> Ints:
    item = yield
    while True:
        n += item
        item = yield n


def first(n: int) -> Ints:
    item = yield
    for _ in range(n - 1):
        item = yield item
    return item


def none_of(n: int) -> Ints:
    return n
    yield


def times(n: int) -> Ints:
    item = yield
    while True:
        item = yield emit(*[item] * (n % 3))


def fails_at(n: int) -> Ints:
    item = yield
    for _ in range(n):
        item = yield item
    raise ValueError(f"item {item}")


def fails_at_the_end(n: int) -> Ints:
    item = yield
    try:
        while True:
            item = yield item
    except Completed:
        raise ValueError(f"end {n}") from None


def aside_after(n: int) -> Ints:
    item = yield
    for _ in range(n):
        item = yield item
    yield detach(*[item] * (n % 3))


def gone_after(n: int) -> Ints:
    item = yield
    for _ in range(n):
        item = yield -item
    return detach(item, n)


def visited(n: int) -> Ints:
    item = yield when("item % n == 0", n=n)
    while True:
        item = yield item + 1


def visited_differently(n: int) -> Ints:
    while True:
        item = yield when("item > n", n=n)
        n += item
        yield when("item < n", item, -item, n=n)


def swallows(n: int) -> Ints:
    try:
        item = yield
        while True:
            item = yield item
    except ValueError:
        return n


def renames(n: int) -> Ints:
    try:
        item = yield
        while True:
            item = yield item
    except ValueError as error:
        raise LookupError(n) from error


def words_before_a_failure(n: int) -> Ints:
    try:
        item = yield
        while True:
            item = yield item
    except ValueError as error:
        return fail_after(error, *range(n % 3))


def last_words(n: int) -> Ints:
    try:
        item = yield
        while True:
            item = yield item
    except Completed:
        yield emit(*range(n % 3))


BODIES: Sequence[Body] = (
    kept,
    mapped,
    summed,
    first,
    none_of,
    times,
    fails_at,
    fails_at_the_end,
    aside_after,
    gone_after,
    visited,
    visited_differently,
    swallows,
    renames,
    last_words,
    words_before_a_failure,
)


def generator(body: Body, n: int) -> Make:
    """An operator whose body is a generator, kept account of."""

    def make(ledger: Ledger, name: str) -> AnyOperator:
        @operator
        def accounted() -> Ints:
            ledger.begun[name] += 1
            try:
                return (yield from body(n))
            finally:
                ledger.ended[name] += 1

        return accounted()

    return make


def functions(kind: str, n: int) -> Make:
    """An operator whose body is callbacks, kept account of."""

    def make(ledger: Ledger, name: str) -> AnyOperator:
        def end(_failure: Exception | None, _dropped: bool) -> None:
            ledger.ended[name] += 1

        @callbacks()
        def accounted() -> Callbacks[int, int]:
            ledger.begun[name] += 1
            if kind == "some":
                return Callbacks(lambda item: item + 7, only="item > n", names={"n": n}, on_end=end)
            if kind == "once":
                return Callbacks(lambda item: emit(item, n), only="item > 0", once=True, on_end=end)
            if kind == "last":
                return Callbacks(
                    lambda item: complete_with(item, n), only="item > n", names={"n": n}, on_end=end
                )
            if kind == "failing":
                return Callbacks(
                    lambda item: fail_after(LookupError(item), n),
                    only="item > n",
                    names={"n": n},
                    on_end=end,
                )
            return Callbacks(lambda item: item - n, on_error=lambda error: n, on_end=end)

        return accounted()

    return make


NUMBERS = st.integers(1, 5)
OURS = st.one_of(
    st.builds(generator, st.sampled_from(BODIES), NUMBERS),
    st.builds(functions, st.sampled_from(["some", "once", "last", "failing", "rescue"]), NUMBERS),
)
STOCK: st.SearchStrategy[AnyOperator] = st.sampled_from(
    [
        ops.map(lambda item: item + 1),
        ops.filter(lambda item: item % 2 == 0),
        ops.scan(lambda total, item: total + item),
        ops.take(3),
        ops.skip(1),
        ops.distinct_until_changed(),
        ops.default_if_empty(0),
        lambda source: source.pipe(ops.map(lambda item: item + 1), ops.skip(1)),
    ]
)
ITEMS = st.lists(st.integers(-3, 9), max_size=8)
ERRORS = st.sampled_from([None, ValueError("source"), LookupError("source")])


def made(makes: Sequence[Make]) -> tuple[list[AnyOperator], Ledger]:
    ledger = Ledger()
    return [make(ledger, f"{place}") for place, make in enumerate(makes)], ledger


@pytest.mark.rows("S1", "S2", "S6")
@settings(max_examples=200)
@given(
    makes=st.lists(OURS, max_size=6),
    items=ITEMS,
    error=ERRORS,
    ends=st.booleans(),
    take=st.none() | st.integers(1, 6),
)
def test_fused_is_what_a_pipe_gives(
    makes: list[Make], items: list[int], error: Exception | None, ends: bool, take: int | None
) -> None:
    """The same items in the same order, and the same end, whether pulled, pushed or synchronous."""
    piped = pushed(items, *made(makes)[0], error=error, ends=ends, take=take)
    for life in (fused, fused_waiting, synchronous):
        assert life(items, *made(makes)[0], error=error, ends=ends, take=take) == piped


@pytest.mark.rows("S7")
@settings(max_examples=200)
@given(
    makes=st.lists(OURS, max_size=6),
    items=ITEMS,
    error=ERRORS,
    ends=st.booleans(),
    take=st.none() | st.integers(0, 6),
    waits=st.booleans(),
)
def test_every_stage_meets_its_end_once(
    makes: list[Make],
    items: list[int],
    error: Exception | None,
    ends: bool,
    take: int | None,
    *,
    waits: bool,
) -> None:
    """Whatever ended the stream, each ``finally`` ran once, and the engine was closed once."""
    stages, ledger = made(makes)
    ended: list[str] = []

    async def run() -> tuple[Engine, Seen]:
        engine = Engine(items, error=error, ends=ends, every_s=1.0 if waits else None)
        stream = fuse(engine(), stages, on_end=lambda _dropped: ended.append("end"))
        if take == 0:
            stream.close()
        return engine, await collect(stream, take=take)

    engine, _ = run_virtual(run())
    assert ledger.begun == Counter(map(str, range(len(makes))))
    assert ledger.is_even()
    assert engine.closed == (1 if engine.pulls or engine.closed else 0)
    assert ended == ["end"]


@pytest.mark.rows("S7")
@settings(max_examples=200)
@given(makes=st.lists(OURS, max_size=6), items=ITEMS, error=ERRORS, take=st.none() | st.just(2))
def test_in_a_pipe_too_every_stage_meets_its_end_once(
    makes: list[Make], items: list[int], error: Exception | None, take: int | None
) -> None:
    """What was begun has ended, once; an operator whose source was never needed is not begun."""
    for life in (pushed, synchronous):
        stages, ledger = made(makes)
        life(items, *stages, error=error, take=take)
        assert ledger.is_even()
        assert set(ledger.begun.values()) <= {1}


@pytest.mark.rows("S1")
@settings(max_examples=200)
@given(
    makes=st.lists(OURS, max_size=4),
    places=st.lists(st.tuples(st.integers(0, 4), STOCK), max_size=3),
    items=ITEMS,
    error=ERRORS,
)
def test_stock_operators_fit_in_anywhere(
    makes: list[Make],
    places: list[tuple[int, AnyOperator]],
    items: list[int],
    error: Exception | None,
) -> None:
    """A list with operators of ``reactivex`` in it gives what it gives in a ``pipe``."""

    def mixed() -> list[AnyOperator]:
        stages = made(makes)[0]
        for place, stock in places:
            stages.insert(place, stock)
        return stages

    piped = pushed(items, *mixed(), error=error)
    for life in (fused, fused_waiting):
        assert life(items, *mixed(), error=error) == piped


@pytest.mark.rows("S4")
@settings(max_examples=200)
@given(makes=st.lists(OURS, max_size=5), items=ITEMS)
def test_the_source_is_never_pulled_ahead(makes: list[Make], items: list[int]) -> None:
    """When an item comes out, no more was pulled than a ``pipe`` needs to be given for it."""

    async def run() -> list[int]:
        engine = Engine(items)
        pulls: list[int] = []
        stream = fuse(engine(), made(makes)[0])
        with suppress(StopAsyncIteration, ValueError, LookupError):
            while True:
                await anext(stream)
                pulls.append(engine.pulls)
        return pulls

    needed: list[int] = []
    for count in range(len(items) + 1):
        given = pushed(items[:count], *made(makes)[0], ends=False)
        needed += [count] * (len(given.items) - len(needed))
    pulls = run_virtual(run())
    assert pulls[: len(needed)] == needed
