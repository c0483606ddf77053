"""Laws for operators of other libraries: a list of them gives what a plain ``pipe`` gives."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias, Unpack

import pytest
import reactivex
from hypothesis import example, given
from hypothesis import strategies as st
from reactivex import operators as stock_operators

from operators.authoring import AnyOperator
from rx_backend.testing import run_virtual
from tests.examples import examples
from tests.operators._help import How, pulled, pushed, same, twice
from tests.operators.test_laws import ERRORS, ITEMS, PULLS, Ledger, pulling

# Untyped: its operators without a source leave open what they work on.
rx: Any = import_module("aioreactive") if find_spec("aioreactive") else None
expression: Any = import_module("expression") if find_spec("expression") else None

# Untyped: operators without a source leave open what they work on.
ops: Any = stock_operators

Made: TypeAlias = Sequence[Any]

# From numbers to numbers: what gives something else is followed by a neighbour that takes it.
REACTIVEX: dict[str, Callable[[int], Made]] = {
    "all": lambda n: [ops.all(lambda item: item < n), ops.map(int)],
    "amb": lambda n: [ops.amb(reactivex.never())],
    "average": lambda n: [ops.average()],
    "buffer_with_count": lambda n: [ops.buffer_with_count(n), ops.map(sum)],
    "catch": lambda n: [ops.catch(reactivex.of(n, 8))],
    "combine_latest": lambda n: [ops.combine_latest(reactivex.of(n)), ops.starmap(max)],
    "concat": lambda n: [ops.concat(reactivex.of(n, 8))],
    "concat_map": lambda n: [
        ops.map(lambda item: reactivex.of(item, n)),
        ops.merge(max_concurrent=1),
    ],
    "contains": lambda n: [ops.contains(n), ops.map(int)],
    "count": lambda n: [ops.count()],
    "default_if_empty": lambda n: [ops.default_if_empty(n)],
    "distinct": lambda n: [ops.distinct(lambda item: item % n)],
    "distinct_until_changed": lambda n: [ops.distinct_until_changed(lambda item: item > n)],
    "do_action": lambda n: [ops.do_action(lambda item: None)],
    "element_at_or_default": lambda n: [ops.element_at_or_default(n, 9)],
    "expand": lambda n: [
        ops.expand(lambda item: reactivex.of(item - 1) if 0 < item <= n else reactivex.empty())
    ],
    "filter": lambda n: [ops.filter(lambda item: item > n)],
    "filter_indexed": lambda n: [ops.filter_indexed(lambda item, place: place % 2 == n % 2)],
    "finally_action": lambda n: [ops.finally_action(lambda: None)],
    "find_index": lambda n: [ops.find_index(lambda item, place, _: item > n)],
    "first": lambda n: [ops.first()],
    "first_or_default": lambda n: [ops.first_or_default(lambda item: item > n, 7)],
    "flat_map": lambda n: [ops.flat_map(lambda item: reactivex.of(item, -item))],
    "group_by": lambda n: [
        ops.group_by(lambda item: item % n),
        ops.flat_map(lambda group: group.pipe(ops.to_list())),
        ops.map(sum),
    ],
    "group_by, merge_all": lambda n: [ops.group_by(lambda item: item % n), ops.merge_all()],
    "ignore_elements": lambda n: [ops.ignore_elements()],
    "is_empty": lambda n: [ops.is_empty(), ops.map(int)],
    "last": lambda n: [ops.last()],
    "last_or_default": lambda n: [ops.last_or_default(n)],
    "map": lambda n: [ops.map(lambda item: item * n)],
    "map_indexed": lambda n: [ops.map_indexed(lambda item, place: item + place)],
    "materialize": lambda n: [ops.materialize(), ops.dematerialize()],
    "max": lambda n: [ops.max()],
    "max_by": lambda n: [ops.max_by(lambda item: item % n), ops.map(sum)],
    "merge": lambda n: [ops.merge(reactivex.of(n))],
    "min": lambda n: [ops.min()],
    "map, group_by, map, merge_all, filter": lambda n: [
        ops.map(lambda item: item + 1),
        ops.group_by(lambda item: item % n),
        ops.map(lambda group: group.pipe(ops.sum())),
        ops.merge_all(),
        ops.filter(lambda item: item >= 0),
    ],
    "on_error_resume_next": lambda n: [ops.on_error_resume_next(reactivex.of(n))],
    "pairwise": lambda n: [ops.pairwise(), ops.map(sum)],
    "publish": lambda n: [ops.publish(), ops.ref_count()],
    "reduce": lambda n: [ops.reduce(lambda total, item: total + item, n)],
    "repeat": lambda n: [ops.repeat(1)],
    "scan": lambda n: [ops.scan(lambda total, item: total + item, n)],
    "sequence_equal": lambda n: [ops.sequence_equal([n]), ops.map(int)],
    "share": lambda n: [ops.share()],
    "single_or_default": lambda n: [ops.single_or_default(lambda item: item == n, 7)],
    "skip": lambda n: [ops.skip(n)],
    "skip_last": lambda n: [ops.skip_last(n)],
    "skip_while": lambda n: [ops.skip_while(lambda item: item < n)],
    "some": lambda n: [ops.some(lambda item: item > n), ops.map(int)],
    "concat first": lambda n: [lambda source: reactivex.concat(reactivex.of(n, 8), source)],
    "of one's own": lambda n: [lambda source: source.pipe(ops.map(abs), ops.skip(1))],
    "start_with": lambda n: [ops.start_with(n, 8)],
    "sum": lambda n: [ops.sum()],
    "switch_latest": lambda n: [ops.map(reactivex.of), ops.switch_latest()],
    "take": lambda n: [ops.take(n)],
    "take none": lambda n: [ops.take(0)],
    "take_last": lambda n: [ops.take_last(n)],
    "take_last_buffer": lambda n: [ops.take_last_buffer(n), ops.map(sum)],
    "take_while": lambda n: [ops.take_while(lambda item: item != n, inclusive=True)],
    "to_dict": lambda n: [ops.to_dict(lambda item: item % n), ops.map(len)],
    "to_iterable": lambda n: [ops.to_iterable(), ops.map(lambda items: len(list(items)))],
    "to_list": lambda n: [ops.to_list(), ops.map(len)],
    "to_set": lambda n: [ops.to_set(), ops.map(len)],
    "window_with_count": lambda n: [
        ops.window_with_count(n),
        ops.flat_map(lambda window: window.pipe(ops.sum())),
    ],
    "with_latest_from": lambda n: [ops.with_latest_from(reactivex.of(n)), ops.starmap(min)],
    "zip": lambda n: [ops.zip(reactivex.of(n, 7, 8)), ops.starmap(max)],
    "zip_with_iterable": lambda n: [ops.zip_with_iterable([n, 7, 8]), ops.starmap(max)],
}

Twins: TypeAlias = tuple[Callable[[], Made], Callable[[], Made]]
"""What stands in a list, and what gives the same in a ``pipe``."""


def stock(name: str, n: int) -> Twins:
    return (lambda: REACTIVEX[name](n)), (lambda: REACTIVEX[name](n))


def generator(which: int, n: int) -> Twins:
    one, other = pulling(PULLS[which], n)
    return (lambda: [one(Ledger(), "")]), (lambda: [other(Ledger(), "")])


def stage(which: int, n: int) -> Twins:
    _, made = generator(which, n)
    return made, made


def ours(make: Callable[[], AnyOperator]) -> Twins:
    return (lambda: [make()]), (lambda: [make()])


NUMBERS = st.integers(1, 4)
STOCK = st.builds(stock, st.sampled_from(sorted(REACTIVEX)), NUMBERS)
OTHERS = st.one_of(
    st.builds(generator, st.integers(0, len(PULLS) - 1), NUMBERS),
    st.builds(stage, st.integers(0, len(PULLS) - 1), NUMBERS),
    st.builds(ours, st.sampled_from([same, twice])),
)


def listed(twins: Sequence[Twins], which: int) -> list[AnyOperator]:
    return [operator for pair in twins for operator in pair[which]()]


def check(twins: Sequence[Twins], items: Sequence[int], **how: Unpack[How]) -> None:
    """Pulled, from a source that waits and from one that doesn't, it is what a pipe gives."""
    expected = pushed(items, *listed(twins, 1), **how)

    async def run() -> None:
        for every_s in (None, 1.0):
            assert await pulled(items, *listed(twins, 0), every_s=every_s, **how) == expected

    run_virtual(run())


@pytest.mark.rows("O3", "S1", "S2", "S6")
@examples(300)
@given(
    twins=st.lists(st.one_of(STOCK, STOCK, OTHERS), max_size=6),
    items=ITEMS,
    error=ERRORS,
    take=st.none() | st.integers(1, 5),
)
@example(twins=[stock("take none", 1)], items=[1], error=None, take=None)
def test_reactivex_operators_give_the_same_as_a_pipe(
    twins: list[Twins], items: list[int], error: Exception | None, take: int | None
) -> None:
    """In any order, neighbours of each other, of ours and of async generators."""
    check(twins, items, error=error, take=take)


def chosen(n: int) -> Callable[[int], Any]:
    return lambda item: expression.Some(item + n) if item > n else expression.Nothing


async def added(item: int) -> int:
    return item + 1


# Operators of ``aioreactive``, and of ``reactivex`` what gives the same.
AIOREACTIVE: dict[str, tuple[Callable[[int], Made], Callable[[int], Made]]] = {
    "choose": (
        lambda n: [rx.choose(chosen(n))],
        lambda n: [ops.filter(lambda item: item > n), ops.map(lambda item: item + n)],
    ),
    "distinct_until_changed": (
        lambda n: [rx.distinct_until_changed],
        lambda n: [ops.distinct_until_changed()],
    ),
    "filter": (
        lambda n: [rx.filter(lambda item: item > n)],
        lambda n: [ops.filter(lambda item: item > n)],
    ),
    "filteri": (
        lambda n: [rx.filteri(lambda item, place: place % 2 == n % 2)],
        lambda n: [ops.filter_indexed(lambda item, place: place % 2 == n % 2)],
    ),
    "map": (
        lambda n: [rx.map(lambda item: item * n)],
        lambda n: [ops.map(lambda item: item * n)],
    ),
    "map_async": (lambda n: [rx.map_async(added)], lambda n: [ops.map(lambda item: item + 1)]),
    "mapi": (
        lambda n: [rx.mapi(lambda item, place: item + place)],
        lambda n: [ops.map_indexed(lambda item, place: item + place)],
    ),
    "scan": (
        lambda n: [rx.scan(lambda total, item: total + item, n)],
        lambda n: [ops.scan(lambda total, item: total + item, n)],
    ),
    "skip": (lambda n: [rx.skip(n)], lambda n: [ops.skip(n)]),
    "skip_last": (lambda n: [rx.skip_last(n)], lambda n: [ops.skip_last(n)]),
    "take": (lambda n: [rx.take(n)], lambda n: [ops.take(n)]),
    "take_last": (lambda n: [rx.take_last(n)], lambda n: [ops.take_last(n)]),
}


def asynchronous(name: str, n: int) -> Twins:
    one, other = AIOREACTIVE[name]
    return (lambda: one(n)), (lambda: other(n))


AIO = st.builds(asynchronous, st.sampled_from(sorted(AIOREACTIVE)), NUMBERS)


@pytest.mark.needs("aioreactive")
@pytest.mark.rows("S1", "S2", "S6")
@examples(250)
@given(
    twins=st.lists(st.one_of(AIO, AIO, STOCK, OTHERS), max_size=5),
    items=ITEMS,
    error=ERRORS,
    take=st.none() | st.integers(1, 5),
)
def test_aioreactive_operators_match_their_reactivex_twins(
    twins: list[Twins], items: list[int], error: Exception | None, take: int | None
) -> None:
    """Mixed with those of ``reactivex``, ours and async generators."""
    check(twins, items, error=error, take=take)
