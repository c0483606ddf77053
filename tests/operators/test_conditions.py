"""Conditions of neighbouring stages: asked once, and answered as if each had been asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import reactivex
from hypothesis import example, given
from hypothesis import strategies as st
from reactivex import Observable

from operators import fuse
from operators.assembly import Callbacks
from operators.authoring import Operator, StageResult, emit, operator
from rx_backend.testing import run_virtual
from tests.operators._help import Engine, collect

TERMS = (
    "item.size != 1",
    "item.is_last",
    "not item.is_last",
    "len(item.name) > 1",
    "ask(item.size)",
    "(size := item.size) > 2",
)


@dataclass(frozen=True)
class Item:
    size: int
    is_last: bool
    name: str


@dataclass(frozen=True)
class Plan:
    """A stage: who visits it, and what it does to the item."""

    terms: tuple[str, ...]
    change: str = "keep"
    once: bool = False


@operator
def noting(plan: Plan, place: int, journal: list[str]) -> Callbacks[Item, Item]:
    """Note which items visit, and which are asked about by a function."""

    def step(item: Item) -> Item | StageResult:
        journal.append(f"{place} {item}")
        if plan.change == "turn":
            return replace(item, is_last=not item.is_last, size=item.size % 3 + 1)
        if plan.change == "lose":
            return emit()
        return emit(item, replace(item, size=1)) if plan.change == "double" else item

    def ask(size: int) -> bool:
        journal.append(f"{place} asks {size}")
        return size == 2

    return Callbacks(step, only=" or ".join(plan.terms), names={"ask": ask}, once=plan.once)


plans = st.lists(
    st.builds(
        Plan,
        st.lists(st.sampled_from(TERMS), min_size=1, max_size=4, unique=True).map(tuple),
        st.sampled_from(["keep", "turn", "lose", "double"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)
items = st.lists(
    st.builds(Item, st.integers(1, 3), st.booleans(), st.sampled_from(["a", "ab"])), max_size=6
)


@given(plans, items)
@example(
    [Plan(("item.size != 1",)), Plan(("item.is_last",), "turn"), Plan(("item.size != 1",))],
    [Item(1, True, "a"), Item(1, False, "a")],
)
def test_what_is_asked_once_is_answered_for_all(plan: list[Plan], given: list[Item]) -> None:
    """Any row of conditions: the same items visit, and come out, as where each stage is alone."""

    def stages(journal: list[str]) -> list[Operator[Item, Item]]:
        return [noting(one, place, journal) for place, one in enumerate(plan)]

    async def run() -> tuple[list[Item], list[str]]:
        journal: list[str] = []
        seen = await collect(fuse(Engine(given)(), stages(journal)))
        return seen.items, journal

    out: list[Item] = []
    alone: list[str] = []
    source: Observable[Item] = reactivex.from_iterable(given)
    reduce(Observable[Item].pipe, stages(alone), source).subscribe(out.append)
    assert run_virtual(run()) == (out, alone)
