"""`operators.Pipeline`: two phases, what each refuses, edited by name, printed and drawn."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reactivex import Observable
from reactivex import operators as ops

from operators import (
    NoSuchOperator,
    NotAnOperator,
    Pipeline,
    annotate_errors,
    map_async,
    tap,
    trace_link,
    until_terminal,
)
from operators.assembly import name_of
from operators.authoring import AnyOperator, FusedRun, Operator, Stage, operator
from rx_backend import Annotated, LLMEngineOutput
from tests.operators._help import fused, later, same
from tests.operators.test_contract import ALL


@operator
async def patient(source: FusedRun[Any]) -> AsyncIterator[Any]:
    async for item in source:
        yield item


@operator(takes="chunks")
def on_chunks() -> Stage[Any, Any]:
    item = yield
    while True:
        item = yield item


@operator(takes="items")
def on_items() -> Stage[Any, Any]:
    item = yield
    while True:
        item = yield item


def mine(source: Observable[Any]) -> Observable[Any]:
    return source


ANNOTATE: Operator[Any, Any] = annotate_errors(Annotated, Annotated.from_error)
FLAT = Pipeline([until_terminal(), same(), ops.take(3), trace_link(None)])
TWO = Pipeline([until_terminal(), same()], [tap(print), ops.take(3)], annotate=ANNOTATE)


class TestEdits:
    """A pipeline that is changed by name."""

    @pytest.mark.parametrize(
        ("after", "chunks", "items"),
        [
            (FLAT.insert_before("same", patient(), mine), "until_terminal patient mine same", ""),
            (FLAT.insert_after("take", patient()), "until_terminal same take patient", ""),
            (FLAT.insert_after("trace_link", mine), "until_terminal same take trace_link mine", ""),
            (FLAT.insert_before("until_terminal", mine), "mine until_terminal same take", ""),
            (FLAT.replace("take", ops.skip(1), patient()), "until_terminal same skip patient", ""),
            (FLAT.without("until_terminal"), "same take trace_link", ""),
            (FLAT.without(FLAT.chunks[2]), "until_terminal same trace_link", ""),
            (TWO.insert_before("same", patient()), "until_terminal patient same", "tap take"),
            (TWO.insert_after("tap", mine), "until_terminal same", "tap mine take"),
            (TWO.insert_before("tap", mine), "until_terminal same", "mine tap take"),
            (TWO.insert_before("annotate_errors", mine), "until_terminal same mine", "tap take"),
            (TWO.insert_after("annotate_errors", mine), "until_terminal same", "mine tap take"),
            (
                TWO.replace(TWO.items[1], patient(), same()),
                "until_terminal same",
                "tap patient same",
            ),
            (TWO.without("tap"), "until_terminal same", "take"),
        ],
    )
    def test_operators_are_edited_by_name(self, after: Pipeline, chunks: str, items: str) -> None:
        """What changes it returns a new one; the rest keeps its order and its phase."""
        expected = chunks.split()
        assert [*map(name_of, after.chunks)][: len(expected)] == expected
        assert [*map(name_of, after.items)] == items.split()
        assert FLAT.names == ["until_terminal", "same", "take", "trace_link"]
        assert TWO.names == ["until_terminal", "same", "annotate_errors", "tap", "take"]
        assert after.annotate is (ANNOTATE if items else None)

    def test_an_unknown_name_is_rejected(self) -> None:
        """The message shows the name and what there is."""
        with pytest.raises(NoSuchOperator, match=r"no operator 'tkae' in \['until_terminal', 'sam"):
            FLAT.without("tkae")

    @pytest.mark.parametrize("phase", ["chunks", "items"])
    def test_an_ambiguous_name_is_rejected(self, phase: str) -> None:
        """The operator itself says which one is meant, in whichever phase the two are."""
        more = ops.take(5)
        twice = Pipeline(
            [*TWO.chunks, more] if phase == "chunks" else TWO.chunks,
            [*TWO.items, more] if phase == "items" else TWO.items,
            annotate=ANNOTATE,
        )
        with pytest.raises(NoSuchOperator, match=r"2 operators 'take' .*pass the operator itself"):
            twice.without("take")
        assert twice.without(more).operators == TWO.operators

    def test_annotate_can_not_be_removed(self) -> None:
        """It can't be taken out or replaced; the error says what to do."""
        for others in ([], [same()]):
            with pytest.raises(NoSuchOperator, match=r"is between the phases.*annotate="):
                TWO.replace("annotate_errors", *others)

    @pytest.mark.parametrize(
        "change",
        [
            lambda: TWO.insert_after("same", on_items()),
            lambda: TWO.insert_before("annotate_errors", on_items()),
            lambda: TWO.replace("until_terminal", on_items()),
        ],
    )
    @pytest.mark.rows("O1")
    def test_an_edit_is_validated(self, change: Callable[[], Pipeline]) -> None:
        """What works in the other phase only is refused, by name and place."""
        with pytest.raises(NotAnOperator, match=r"chunks\[\d\]: on_items takes annotated items"):
            change()
        with pytest.raises(NotAnOperator, match=r"items\[1\]: until_terminal takes an engine's ch"):
            TWO.insert_after("tap", until_terminal())

    @pytest.mark.rows("O1")
    def test_an_unknown_phase_is_rejected(self) -> None:
        """A word that is none of the three would put the operator anywhere."""
        wrong: Any = "chunk"

        def on_nothing() -> Stage[Any, Any]:
            while True:
                yield

        with pytest.raises(ValueError, match=r"operator: takes: expected one of .*'chunk'"):
            operator(takes=wrong)(on_nothing)


ANY: st.SearchStrategy[tuple[str, AnyOperator]] = st.sampled_from(
    [
        ("chunks", on_chunks()),
        ("chunks", until_terminal()),
        ("items", on_items()),
        ("anything", same()),
        ("anything", patient()),
        ("anything", ops.take(3)),
        ("anything", mine),
    ]
)


@pytest.mark.rows("O1")
@given(chunks=st.lists(ANY, max_size=5), items=st.lists(ANY, max_size=5))
def test_an_operator_in_the_wrong_phase_is_rejected(
    chunks: list[tuple[str, AnyOperator]], items: list[tuple[str, AnyOperator]]
) -> None:
    """The first one is named with its place; any other pipeline is made as it was written."""
    wrong = [
        f"{phase}[{place}]: {name_of(each)} takes {words}: move it to {other}"
        for phase, row, other, words in (
            ("chunks", chunks, "items", "annotated items"),
            ("items", items, "chunks", "an engine's chunks"),
        )
        for place, (takes, each) in enumerate(row)
        if takes == other
    ]
    lists = [each for _, each in chunks], [each for _, each in items]
    if wrong:
        with pytest.raises(NotAnOperator) as refused:
            Pipeline(*lists, annotate=ANNOTATE)
        assert str(refused.value) == wrong[0]
        return
    made = Pipeline(*lists, annotate=ANNOTATE)
    assert ([*made.chunks], [*made.items]) == lists
    assert made.operators == (*lists[0], ANNOTATE, *lists[1])


@pytest.mark.rows("O1")
@given(added=st.lists(ANY, max_size=5))
def test_with_operators_puts_each_into_its_phase(added: list[tuple[str, AnyOperator]]) -> None:
    """One that takes chunks goes after those, any other one to the end, in the order given."""
    made = TWO.with_operators(*(each for _, each in added))
    assert made.chunks == (*TWO.chunks, *(each for takes, each in added if takes == "chunks"))
    assert made.items == (*TWO.items, *(each for takes, each in added if takes != "chunks"))
    assert made.annotate is ANNOTATE
    fits = [each for takes, each in added if takes != "items"]
    assert FLAT.with_operators(*fits).chunks == (*FLAT.chunks, *fits)
    if len(fits) < len(added):
        with pytest.raises(NotAnOperator, match=r"chunks\[\d\]: on_items takes annotated items"):
            FLAT.with_operators(*(each for _, each in added))


@pytest.mark.rows("O1")
@pytest.mark.parametrize("wrong", [7, None, "map", [same()], print], ids=repr)
def test_a_non_operator_is_rejected(wrong: Any) -> None:
    """In every place, when the pipeline is made; the error says where it is."""
    for place, make in {
        "chunks[1]": lambda: Pipeline([same(), wrong]),
        "items[0]": lambda: Pipeline([], [wrong], annotate=ANNOTATE),
        "annotate[0]": lambda: Pipeline([], annotate=wrong),
        "chunks[4]": lambda: FLAT.with_operators(wrong),
        "items[2]": lambda: TWO.with_operators(wrong),
    }.items():
        if place == "annotate[0]" and wrong is None:
            continue
        with pytest.raises(NotAnOperator) as refused:
            make()
        assert str(refused.value).startswith(f"{place} is not an operator: ")


@pytest.mark.rows("O1")
def test_item_operators_need_annotate() -> None:
    """Without ``annotate`` there are no items to work on."""
    with pytest.raises(NotAnOperator, match=r"items: expected none without annotate.* got tap"):
        Pipeline([until_terminal()], [tap(print)])
    with pytest.raises(NotAnOperator, match=r"annotate\[0\]: on_items takes annotated items"):
        Pipeline([], annotate=on_items())


# The others are made here for other items than those, or turn them into another thing.
ANYWHERE = sorted(set(ALL) - {"annotate_errors", "on_outcome", "sliding_itl", "validate_chunks"})


@pytest.mark.rows("O1")
@pytest.mark.parametrize("name", ANYWHERE)
def test_every_operator_works_where_it_is_put(name: str) -> None:
    """One that reads an engine's chunks says so, or it would fail at the first annotated item."""
    chunks = [LLMEngineOutput(), LLMEngineOutput.token(1), LLMEngineOutput.stop()]
    made = Pipeline([], annotate=ANNOTATE).with_operators(ALL[name]())
    seen = fused(chunks, *made.operators)
    assert seen.end == "completed"
    assert all(item.error is None for item in seen.items)


class TestShown:
    """A pipeline printed, and drawn."""

    def test_its_repr_shows_every_operator(self) -> None:
        """Ours with their arguments, others by name; the phases apart."""
        shown = Pipeline([trace_link(None, on_terminal=True), ops.debounce(0.5), mine])
        assert repr(shown) == (
            "Pipeline(chunks=[trace_link(None, on_terminal=True), debounce, mine])"
        )
        named = Pipeline([map_async(later), map_async(function=later), tap(print)])
        assert repr(named) == (
            "Pipeline(chunks=[map_async(later), map_async(function=later), tap(print)])"
        )
        assert repr(TWO.without("tap")) == (
            "Pipeline(chunks=[until_terminal(), same()], items=[take])"
        )

    def test_the_drawing_shows_fused_and_detached_operators(self) -> None:
        """What is fused with what, what pulls its source, what is detached; neighbours stay so."""
        pipeline = Pipeline(
            [until_terminal(), map_async(later), same(), ops.take(3), ops.skip(1)],
            [same(), ops.debounce(1), patient()],
            annotate=ANNOTATE,
        )
        assert pipeline.draw().splitlines() == [
            "engine",
            "  |",
            "  +-- fused: one loop, run by the consumer's pull",
            "  |     until_terminal",
            "  |",
            "  +-- map_async          async generator, pulls its source",
            "  |",
            "  +-- fused: one loop, run by the consumer's pull",
            "  |     same",
            "  |",
            "  +-- reactivex, fed in the consumer's pull",
            "  |     take",
            "  |     skip",
            "  |",
            "  +-- fused: one loop, run by the consumer's pull",
            "  |     annotate_errors",
            "  |     same",
            "  |",
            "  +-- debounce           reactivex, detached: a task pulls for it",
            "  |",
            "  +-- patient            async generator, pulls its source",
            "  |",
            "consumer",
        ]
        assert Pipeline([]).draw() == "engine\n  |\nconsumer"


@pytest.mark.rows("S7")
def test_a_pipeline_is_an_immutable_value() -> None:
    """It takes any iterables once, and serves any number of streams, one after another or at once."""
    pipeline = Pipeline(
        (each for each in [same(), ops.take(2)]), iter([tap(print)]), annotate=same()
    )
    assert pipeline.names == ["same", "take", "same", "tap"]
    quiet = pipeline.without("tap")
    for _ in range(2):
        assert fused([1, 2, 3], *quiet.operators).items == [1, 2]
