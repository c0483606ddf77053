"""A pipeline's operators: changed by name, printed and drawn."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from reactivex import Observable
from reactivex import operators as ops

from operators import (
    NoSuchOperator,
    NotAnOperator,
    Pipeline,
    first_token,
    map_async,
    trace_link,
    until_terminal,
)
from operators.authoring import FusedRun, operator
from rx_backend import (
    DisaggregationMode,
    EngineAdapter,
    standard_pipeline,
)
from rx_backend.engines import SampleEngine
from rx_backend.scope import RequestScope
from rx_backend.protocols import decode_request
from tests.operators._help import same, virtual


async def itself(item: Any) -> Any:
    return item


@operator
async def patient(source: FusedRun[Any]) -> AsyncIterator[Any]:
    async for item in source:
        yield item


def mine(source: Observable[Any]) -> Observable[Any]:
    return source


BEFORE = Pipeline([until_terminal(), same(), ops.take(3), trace_link(None)])


@pytest.mark.parametrize(
    ("after", "names"),
    [
        (BEFORE.insert_before("same", patient(), mine), "until_terminal patient mine same take"),
        (BEFORE.insert_after("take", patient()), "until_terminal same take patient"),
        (BEFORE.insert_after("trace_link", mine), "until_terminal same take trace_link mine"),
        (BEFORE.insert_before("until_terminal", mine), "mine until_terminal same take"),
        (BEFORE.replace("take", ops.skip(1), ops.debounce(2)), "until_terminal same skip debounce"),
        (BEFORE.without("until_terminal"), "same take trace_link"),
        (BEFORE.without(BEFORE[2]), "until_terminal same trace_link"),
        (BEFORE + [mine], "until_terminal same take trace_link mine"),  # noqa: RUF005 - it stays a list to edit
    ],
)
def test_a_list_is_changed_by_name(after: OperatorList, names: str) -> None:
    """A changed list is a new one; the rest keeps its order."""
    expected = names.split()
    assert after.names[: len(expected)] == expected
    assert BEFORE.names == ["until_terminal", "same", "take", "trace_link"]


def test_a_name_that_is_not_there_is_refused() -> None:
    """The message shows the name and what there is."""
    with pytest.raises(NoSuchOperator, match=r"no operator 'tkae' in \['until_terminal', 'same'"):
        BEFORE.without("tkae")


def test_a_name_of_several_is_refused() -> None:
    """The operator itself says which one is meant."""
    twice = Pipeline([*BEFORE, ops.take(5)])
    with pytest.raises(NoSuchOperator, match=r"2 operators 'take' .*give the operator itself"):
        twice.without("take")
    assert twice.without(twice[-1]) == BEFORE


def test_its_repr_shows_every_operator() -> None:
    """Ours with their arguments, others by name."""
    shown = Pipeline([trace_link(None, on_terminal=True), ops.debounce(0.5), mine])
    assert repr(shown) == "Pipeline([trace_link(None, on_terminal=True), debounce, mine])"


def test_the_drawing_shows_what_will_happen() -> None:
    """What is fused with what, what is awaited, what pulls for itself, what is detached."""
    pipeline = Pipeline(
        [
            until_terminal(),
            map_async(itself),
            same(),
            ops.take(3),
            ops.debounce(1),
            patient(),
            ops.skip(1),
        ]
    )
    assert pipeline.draw().splitlines() == [
        "engine",
        "  |",
        "  +-- fused: one loop, run by the consumer's pull",
        "  |     until_terminal",
        "  |     map_async       awaited",
        "  |     same",
        "  |",
        "  +-- reactivex, detached: a task pulls for them",
        "  |     take",
        "  |     debounce",
        "  |",
        "  +-- patient           pulls for itself",
        "  |",
        "  +-- skip              reactivex, fed in the consumer's pull",
        "  |",
        "consumer",
    ]
    assert Pipeline().draw() == "engine\n  |\nconsumer"


def test_what_is_no_operator_is_not_drawn() -> None:
    """It is named with its place instead."""
    with pytest.raises(NotAnOperator, match=r"pipeline\[1\]"):
        Pipeline([until_terminal(), cast("Any", 7)]).draw()


@virtual
async def test_the_standard_pipeline_is_edited_in_one_line() -> None:
    """An operator of one's own goes where it belongs, and serves every request."""
    seen: list[list[int]] = []
    watching = first_token(lambda chunk: seen.append(chunk.token_ids))

    def pipeline(scope: RequestScope) -> OperatorList:
        return standard_pipeline.insert_after("until_terminal", watching)

    adapter = EngineAdapter(
        SampleEngine(token_interval_ms=5.0), DisaggregationMode.AGGREGATED, pipeline
    )
    for _ in range(2):
        request = decode_request(b'{"token_ids": [1], "stop_conditions": {"max_tokens": 3}}')
        async for _ in await adapter.generate(request):
            pass
    assert len(seen) == 2
