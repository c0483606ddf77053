"""`operators._core.assemble`: what may stand in a list."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from reactivex import operators as ops

from operators import (
    NotAnOperator,
    Pipeline,
    coalesce,
    first_token,
    fuse,
    map_async,
    until_terminal,
)
from operators.assembly import plan_of
from operators.authoring import AnyOperator, Stage, operator
from tests.operators._help import Bare, Engine, Seen, collect, same, settle, spy


@pytest.mark.parametrize("wrong", [7, "map", None, [same()]], ids=repr)
async def test_an_operator_must_be_callable(wrong: Any) -> None:
    """The error names the place and the value; the source is closed."""
    message = (
        "pipeline[1] is not an operator: expected one of ours, of reactivex or of aioreactive, "
        f"got {type(wrong).__name__} {wrong!r}"
    )
    source = Bare()
    with pytest.raises(NotAnOperator) as refused:
        fuse(source, [same(), wrong])
    await settle()
    assert (str(refused.value), source.journal) == (message, ["closed"])
    with pytest.raises(NotAnOperator) as refused:
        plan_of([same(), wrong])
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("wrong", "gave"),
    [(print, "NoneType"), (lambda source: 7, "int"), (ops.map, "function")],
    ids=["none", "number", "uncalled"],
)
async def test_an_operator_must_return_an_observable(wrong: Any, gave: str) -> None:
    """The error names the place and what came of it."""
    source = Bare()
    with pytest.raises(NotAnOperator) as refused:
        fuse(source, [same(), wrong, same()])
    assert str(refused.value).startswith("pipeline[1] is not an operator: applied to an Observable")
    assert f"it returned {gave}, expected an Observable" in str(refused.value)
    await settle()
    assert source.journal == ["closed"]


@pytest.mark.parametrize(
    ("wrong", "is_ours"), [(first_token, True), (until_terminal, True), (int, False)]
)
async def test_an_operator_must_accept_a_source(wrong: Any, is_ours: bool) -> None:
    """The place is named; of an operator of ours the error guesses that its call was forgotten."""
    source = Bare()
    with pytest.raises(NotAnOperator) as refused:
        fuse(source, [wrong])
    assert str(refused.value).startswith("pipeline[0] is not an operator: ")
    assert str(refused.value).endswith("is a call's () missing?") is is_ours
    await settle()
    assert source.journal == ["closed"]


@pytest.mark.parametrize("wrong", [7, None, same(), Pipeline([same()]), ops.take(1)], ids=repr)
async def test_operators_must_be_iterable(wrong: Any) -> None:
    """By every function that takes one, by name; the source is closed."""
    source = Bare()
    for name, make in {
        "pipeline": lambda: fuse(source, wrong),
        "chunks": lambda: Pipeline(wrong),
        "items": lambda: Pipeline([], wrong),
    }.items():
        with pytest.raises(NotAnOperator) as refused:
            make()
        assert str(refused.value) == f"{name}: expected a list of operators, got {wrong!r}"
    await settle()
    assert source.journal == ["closed"]


@pytest.mark.parametrize("wrong", [7, None, [1], Engine, Engine([1])], ids=repr)
async def test_a_source_must_be_iterable_or_observable(wrong: Any) -> None:
    """Also what has still to be called for one."""
    with pytest.raises(TypeError, match="fuse: source: expected an asynchronous iterator, got"):
        fuse(wrong, [same()])


async def test_operators_may_be_any_iterable() -> None:
    """The list may be a tuple or a generator."""
    assert await collect(fuse(Engine([1])(), (same() for _ in range(3)))) == Seen([1], "completed")
    both = same(), ops.map(lambda item: item)
    plan = plan_of(iter(both))
    assert plan.operators == both
    assert plan_of(plan) is plan


@pytest.mark.rows("P4", "S5")
@pytest.mark.parametrize(
    "between",
    [
        pytest.param(same(), id="fused"),
        pytest.param(ops.map(lambda item: item), id="reactivex"),
        pytest.param(coalesce(), id="pulling"),
        pytest.param(map_async(partial(asyncio.sleep, 1.0)), id="map_async"),
    ],
)
async def test_a_failing_set_up_drops_the_stages_before_it(
    between: AnyOperator,
) -> None:
    """The earlier stages are closed, once, and the source too; the later ones never start."""

    @operator
    def broken() -> Stage[Any, Any]:
        raise LookupError
        yield

    journal: list[str] = []
    source = Bare()
    with pytest.raises(LookupError):
        fuse(source, [spy(journal, "a"), between, spy(journal, "b"), broken(), spy(journal, "c")])
    await settle()
    assert sorted(journal) == ["a!", "b!"]
    assert source.journal == ["closed"]
