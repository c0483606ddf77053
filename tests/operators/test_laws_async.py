"""Laws for lists that hold asynchronous operators too: they give what synchronous twins give."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import fuse, map_async
from operators.authoring import (
    AnyOperator,
    FusedRun,
    StageResult,
    complete_with,
    emit,
    fail_after,
    operator,
)
from rx_backend.testing import run_virtual
from tests.operators import test_laws as sync
from tests.operators._help import LONG_S, Engine, Seen, collect, fused, fused_waiting, pushed
from tests.operators.test_contract_async import pushed as pushed_on_the_loop
from tests.operators.test_laws import ERRORS, ITEMS, NUMBERS, OURS, STOCK, Ledger, Make

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


def awaited(kind: str, n: int, delay_s: float | None) -> Twins:
    """A step that gives one item, some or none, ends the stream or fails."""

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

    def synchronous(_ledger: Ledger, _name: str) -> AnyOperator:
        @operator
        def twin() -> sync.Ints:
            item = yield
            while True:
                given = answered(kind, n, item)
                if type(given) is StageResult and given.ends:
                    return given
                item = yield given

        return twin()

    return asynchronous, synchronous


Pulls = Callable[[FusedRun[int], int], AsyncGenerator[int | StageResult]]


async def kept(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    async for item in source:
        if item % n:
            yield item


async def summed(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    async for item in source:
        await asyncio.sleep(0)
        n += item
        yield n


async def first(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    number = 0
    async for item in source:
        number += 1
        if number == n:
            yield complete_with(item)
        else:
            yield item


async def times(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    async for item in source:
        yield emit(*[item] * (n % 3))


async def fails_at(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    number = 0
    async for item in source:
        if number == n:
            raise ValueError(f"item {item}")
        number += 1
        yield item


async def swallows(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    try:
        async for item in source:
            yield item
    except ValueError:
        await asyncio.sleep(0.5)
        yield n


async def renames(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    try:
        async for item in source:
            yield item
    except ValueError as error:
        raise LookupError(n) from error


async def words_before_a_failure(
    source: FusedRun[int], n: int
) -> AsyncGenerator[int | StageResult]:
    try:
        async for item in source:
            yield item
    except ValueError as error:
        yield fail_after(error, *range(n % 3))


async def last_words(source: FusedRun[int], n: int) -> AsyncGenerator[int | StageResult]:
    async for item in source:
        yield item
    for number in range(n % 3):
        yield number


PULLS: Sequence[tuple[Pulls, sync.Body]] = (
    (kept, sync.kept),
    (summed, sync.summed),
    (first, sync.first),
    (times, sync.times),
    (fails_at, sync.fails_at),
    (swallows, sync.swallows),
    (renames, sync.renames),
    (last_words, sync.last_words),
    (words_before_a_failure, sync.words_before_a_failure),
)


def pulling(twins: tuple[Pulls, sync.Body], n: int) -> Twins:
    """An operator whose body is an asynchronous generator."""
    pulls, body = twins

    def make(ledger: Ledger, name: str) -> AnyOperator:
        @operator
        async def accounted(source: FusedRun[int]) -> AsyncGenerator[int | StageResult]:
            ledger.begun[name] += 1
            given = pulls(source, n)
            try:
                async for item in given:
                    yield item
            finally:
                await given.aclose()
                ledger.ended[name] += 1

        return accounted()

    return make, sync.generator(body, n)


def synchronous(make: Make) -> Twins:
    return make, make


def stock(made: AnyOperator) -> Twins:
    return (lambda _ledger, _name: made), (lambda _ledger, _name: made)


ASYNCHRONOUS: st.SearchStrategy[Twins] = st.one_of(
    st.builds(
        awaited,
        st.sampled_from(["one", "some", "last", "fail", "failing"]),
        NUMBERS,
        st.sampled_from([None, 0.0, 0.3]),
    ),
    st.builds(pulling, st.sampled_from(PULLS), NUMBERS),
)
ANY = st.one_of(ASYNCHRONOUS, ASYNCHRONOUS, st.builds(synchronous, OURS), st.builds(stock, STOCK))
LISTS = st.lists(ANY, max_size=6)


def made(twins: Sequence[Twins], which: int, ledger: Ledger | None = None) -> list[AnyOperator]:
    ledger = ledger or Ledger()
    return [pair[which](ledger, f"{place}") for place, pair in enumerate(twins)]


@pytest.mark.rows("S1", "S2", "S6")
@settings(max_examples=250, deadline=None)
@given(twins=LISTS, items=ITEMS, error=ERRORS, take=st.none() | st.integers(1, 6))
def test_asynchronous_operators_give_what_their_twins_give(
    twins: list[Twins], items: list[int], error: Exception | None, take: int | None
) -> None:
    """The same items in the same order and the same end, pulled, and pushed on a loop."""
    expected = pushed(items, *made(twins, 1), error=error, take=take)
    for life in (fused, fused_waiting, pushed_on_the_loop):
        assert life(items, *made(twins, 0), error=error, take=take) == expected


@pytest.mark.rows("S7")
@settings(max_examples=250, deadline=None)
@given(
    twins=LISTS,
    items=ITEMS,
    error=ERRORS,
    at_s=st.none() | st.floats(0.0, 8.0),
    how=st.sampled_from(["cancel", "close", "lose"]),
)
def test_everything_is_released_whenever_the_stream_is_dropped(
    twins: list[Twins], items: list[int], error: Exception | None, at_s: float | None, how: str
) -> None:
    """At any moment: what was begun has ended, the engine is closed, the end was told, once."""
    ledger = Ledger()
    ended: list[str] = []

    async def run() -> Engine:
        engine = Engine(items, error=error, every_s=1.0, ends=at_s is None)
        owner = [
            fuse(engine(), made(twins, 0, ledger), on_end=lambda _dropped: ended.append("end"))
        ]
        consumer = asyncio.create_task(collect(owner[0]))
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
@settings(max_examples=100, deadline=None)
@given(twins=st.lists(ASYNCHRONOUS, max_size=4), items=ITEMS)
def test_the_engine_is_not_pulled_while_a_step_is_awaited(
    twins: list[Twins], items: list[int]
) -> None:
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
        given: Seen = pushed(items[:count], *made(twins, 1), ends=False)
        needed += [count] * (len(given.items) - len(needed))
    pulls = run_virtual(run())
    assert pulls[: len(needed)] == needed
