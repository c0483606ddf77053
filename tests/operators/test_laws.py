"""Laws that hold for any list of operators, on any items, however the stream ends."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reactivex import operators as ops

from operators import fuse, map_async
from operators.assembly import Callbacks, callbacks
from operators.authoring import (
    AnyOperator,
    Completed,
    FusedRun,
    Stage,
    StageResult,
    complete_with,
    detach,
    emit,
    fail_after,
    operator,
)
from rx_backend.testing import run_virtual
from tests.examples import examples
from tests.operators._help import (
    LONG_S,
    Engine,
    Seen,
    collect,
    observed,
    pulled,
    pushed,
    pushed_slowly,
    synchronous,
)

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
    swallows,
    renames,
    last_words,
    words_before_a_failure,
)


@operator
def accounted(body: Body, n: int, ledger: Ledger, name: str) -> Ints:
    """Run a generator, and keep account of it."""
    ledger.begun[name] += 1
    try:
        return (yield from body(n))
    finally:
        ledger.ended[name] += 1


def generator(body: Body, n: int) -> Make:
    """Return an operator whose body is a generator, kept account of."""
    return lambda ledger, name: accounted(body, n, ledger, name)


STEPS: dict[str, Callable[[int], Callable[[int], int | StageResult]]] = {
    "some": lambda _: lambda item: item + 7,
    "once": lambda n: lambda item: emit(item, n),
    "last": lambda n: lambda item: complete_with(item, n),
    "failing": lambda n: lambda item: fail_after(LookupError(item), n),
    "rescue": lambda n: lambda item: item - n,
    "held": lambda n: lambda item: item + n,
}


@callbacks()
def called(kind: str, n: int, ledger: Ledger, name: str) -> Callbacks[int, int]:
    """Call functions, and keep account of it."""
    ledger.begun[name] += 1

    def end(_failure: Exception | None, _dropped: bool) -> None:
        ledger.ended[name] += 1

    if kind == "rescue":
        return Callbacks(STEPS[kind](n), on_error=lambda _: n, on_end=end)
    if kind == "held":
        return Callbacks(
            STEPS[kind](n),
            on_error=lambda error: fail_after(error, *range(n % 3)),
            on_complete=lambda _: complete_with(*range(n % 3)),
            on_end=end,
        )
    return Callbacks(
        STEPS[kind](n), only="item > n", names={"n": n}, once=kind == "once", on_end=end
    )


def functions(kind: str, n: int) -> Make:
    """Return an operator whose body is callbacks, kept account of."""
    return lambda ledger, name: called(kind, n, ledger, name)


Twins = tuple[Make, Make]
"""An asynchronous operator, and a synchronous one that gives the same."""


def answered(kind: str, n: int, item: int) -> int | StageResult:
    if kind == "some":
        return emit(*[item] * (item % 3))
    if kind == "last" and item > n:
        return complete_with(item, n)
    if kind == "failing" and item > n:
        return fail_after(LookupError(item), item, n)
    if kind == "fail" and item > n:
        raise ValueError(item)
    return item + n


@operator
def answering(kind: str, n: int) -> Ints:
    """Answer each item without waiting."""
    item = yield
    while True:
        given = answered(kind, n, item)
        if type(given) is StageResult and given.ends:
            return given
        item = yield given


def awaited(kind: str, n: int, delay_s: float | None) -> Twins:
    """Return a step that gives one item, some or none, ends the stream or fails."""

    def asynchronous(ledger: Ledger, name: str) -> AnyOperator:
        async def step(item: int) -> int | StageResult:
            ledger.begun[name] += 1
            try:
                if delay_s is not None:
                    await asyncio.sleep(delay_s)
                return answered(kind, n, item)
            finally:
                ledger.ended[name] += 1

        return map_async(step)

    return asynchronous, lambda _ledger, _name: answering(kind, n)


Pulls = Callable[[FusedRun[int], int], AsyncGenerator[int | StageResult]]


async def kept_async(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    async for item in source:
        if item % n:
            yield item


async def summed_async(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    async for item in source:
        await asyncio.sleep(0)
        n += item
        yield n


async def first_async(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    number = 0
    async for item in source:
        number += 1
        if number == n:
            yield complete_with(item)
        else:
            yield item


async def times_async(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    async for item in source:
        yield emit(*[item] * (n % 3))


async def fails_at_async(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    number = 0
    async for item in source:
        if number == n:
            raise ValueError(f"item {item}")
        number += 1
        yield item


async def swallows_async(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    try:
        async for item in source:
            yield item
    except ValueError:
        await asyncio.sleep(0.5)
        yield n


async def renames_async(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    try:
        async for item in source:
            yield item
    except ValueError as error:
        raise LookupError(n) from error


async def words_before_a_failure_async(
    source: FusedRun[int], n: int
) -> AsyncGenerator[int | StageResult]:
    try:
        async for item in source:
            yield item
    except ValueError as error:
        yield fail_after(error, *range(n % 3))


async def last_words_async(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    async for item in source:
        yield item
    for number in range(n % 3):
        yield number


PULLS: Sequence[tuple[Pulls, Body]] = (
    (kept_async, kept),
    (summed_async, summed),
    (first_async, first),
    (times_async, times),
    (fails_at_async, fails_at),
    (swallows_async, swallows),
    (renames_async, renames),
    (last_words_async, last_words),
    (words_before_a_failure_async, words_before_a_failure),
)


@operator
async def accounted_async(
    source: FusedRun[int], pulls: Pulls, n: int, ledger: Ledger, name: str
) -> AsyncGenerator[int | StageResult]:
    """Run an asynchronous generator, and keep account of it."""
    ledger.begun[name] += 1
    given = pulls(source, n)
    try:
        async for item in given:
            yield item
    finally:
        await given.aclose()
        ledger.ended[name] += 1


def pulling(twins: tuple[Pulls, Body], n: int) -> Twins:
    """Return an operator whose body is an asynchronous generator."""
    pulls, body = twins
    return (lambda ledger, name: accounted_async(pulls, n, ledger, name)), generator(body, n)


def ours(make: Make) -> Twins:
    return make, make


def stock(made: AnyOperator) -> Twins:
    return (lambda _ledger, _name: made), (lambda _ledger, _name: made)


NUMBERS = st.integers(1, 5)
OURS: st.SearchStrategy[Twins] = st.one_of(
    st.builds(generator, st.sampled_from(BODIES), NUMBERS),
    st.builds(functions, st.sampled_from(sorted(STEPS)), NUMBERS),
).map(ours)
STOCK: st.SearchStrategy[Twins] = st.sampled_from(
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
).map(stock)
ASYNCHRONOUS: st.SearchStrategy[Twins] = st.one_of(
    st.builds(
        awaited,
        st.sampled_from(["one", "some", "last", "fail", "failing"]),
        NUMBERS,
        st.sampled_from([None, 0.0, 0.3]),
    ),
    st.builds(pulling, st.sampled_from(PULLS), NUMBERS),
)
SYNCHRONOUS_LISTS = st.lists(st.one_of(OURS, OURS, OURS, STOCK), max_size=6)
LISTS = st.lists(st.one_of(ASYNCHRONOUS, ASYNCHRONOUS, OURS, STOCK), max_size=6)
ITEMS = st.lists(st.integers(-3, 9), max_size=8)
ERRORS = st.sampled_from([None, ValueError("source"), LookupError("source")])
TAKE = st.none() | st.integers(1, 6)


def made(twins: Sequence[Twins], which: int, ledger: Ledger | None = None) -> list[AnyOperator]:
    ledger = ledger or Ledger()
    return [pair[which](ledger, f"{place}") for place, pair in enumerate(twins)]


pulled_slowly = partial(pulled, every_s=1.0)


def check_same(
    lives: Sequence[Callable[..., Seen | Coroutine[Any, Any, Seen]]],
    twins: Sequence[Twins],
    items: Sequence[int],
    **how: Any,
) -> None:
    """In every life: what a pipe of synchronous twins gives, and each stage meets its end once."""
    ledger = Ledger()
    expected = pushed(items, *made(twins, 1, ledger), **how)
    assert ledger.is_even()
    assert set(ledger.begun.values()) <= {1}

    async def run() -> None:
        for life in lives:
            ledger = Ledger()
            seen = life(items, *made(twins, 0, ledger), **how)
            assert (seen if isinstance(seen, Seen) else await seen) == expected
            assert ledger.is_even()

    run_virtual(run())


@pytest.mark.rows("S1", "S2", "S6", "S7")
@examples(250)
@given(twins=SYNCHRONOUS_LISTS, items=ITEMS, error=ERRORS, ends=st.booleans(), take=TAKE)
def test_fused_operators_give_the_same_as_a_pipe(
    twins: list[Twins], items: list[int], error: Exception | None, ends: bool, take: int | None
) -> None:
    """The same items in the same order, and the same end, whether pulled, pushed or synchronous."""
    lives = (pulled, pulled_slowly, synchronous)
    check_same(lives, twins, items, error=error, ends=ends, take=take)


@pytest.mark.rows("S1", "S2", "S6", "S7")
@examples(200)
@given(twins=LISTS, items=ITEMS, error=ERRORS, take=TAKE)
def test_asynchronous_operators_match_their_synchronous_twins(
    twins: list[Twins], items: list[int], error: Exception | None, take: int | None
) -> None:
    """The same items in the same order and the same end, pulled, and pushed on a loop."""
    check_same((pulled, pulled_slowly, pushed_slowly), twins, items, error=error, take=take)


@pytest.mark.rows("S7")
@examples(300)
@given(
    twins=st.one_of(SYNCHRONOUS_LISTS, LISTS),
    items=ITEMS,
    error=ERRORS,
    take=st.none() | st.integers(0, 6),
    at_s=st.none() | st.floats(0.0, 8.0),
    how=st.sampled_from(["cancel", "close", "lose"]),
)
def test_everything_is_released_whenever_the_stream_is_dropped(
    twins: list[Twins],
    items: list[int],
    error: Exception | None,
    *,
    take: int | None,
    at_s: float | None,
    how: str,
) -> None:
    """At any moment: what was begun has ended, the engine is closed, the end was reported, once."""
    ledger = Ledger()
    ended: list[str] = []

    async def run() -> Engine:
        engine = Engine(items, error=error, every_s=1.0, ends=at_s is None)
        owner = [
            observed(engine(), made(twins, 0, ledger), on_end=lambda _dropped: ended.append("end"))
        ]
        if take == 0:
            owner[0].close()
        consumer = asyncio.create_task(collect(owner[0], take=take))
        if at_s is not None:
            await asyncio.sleep(at_s)
            if how == "close":
                owner[0].close()
            elif not consumer.done():
                consumer.cancel()
        owner.clear()
        with suppress(asyncio.CancelledError):
            await consumer
        del consumer
        await asyncio.sleep(LONG_S)
        return engine

    engine = run_virtual(run())
    assert ledger.is_even()
    assert engine.closed == (1 if engine.pulls or engine.closed else 0)
    assert ended == ["end"]


@pytest.mark.rows("S4")
@examples(200)
@given(twins=st.lists(st.one_of(ASYNCHRONOUS, OURS), max_size=5), items=ITEMS)
def test_the_source_is_never_pulled_ahead(twins: list[Twins], items: list[int]) -> None:
    """When an item comes out, no more was pulled than a ``pipe`` needs to be given for it."""

    async def run() -> list[int]:
        engine = Engine(items)
        pulls: list[int] = []
        stream = fuse(engine(), made(twins, 0))
        with suppress(StopAsyncIteration, ValueError, LookupError):
            while True:
                await anext(stream)
                pulls.append(engine.pulls)
        return pulls

    needed: list[int] = []
    for count in range(len(items) + 1):
        given = pushed(items[:count], *made(twins, 1), ends=False)
        needed += [count] * (len(given.items) - len(needed))
    pulls = run_virtual(run())
    assert pulls[: len(needed)] == needed
