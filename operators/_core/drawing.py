"""A pipeline drawn as text: what is fused, and what runs outside the consumer's pull."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from operators._core.aio import answers_within_asend
from operators._core.assemble import AnyOperator, Boundary, Plan
from operators._core.naming import name_of
from operators._core.rx import answers_at_once

__all__ = ("draw_plan",)

_FUSED = "fused: one loop, run by the consumer's pull"
_FED = "fed in the consumer's pull"
_DETACHED = "detached: a task pulls for it"


def draw_plan(plan: Plan) -> str:
    """Draw a plan, from the engine down to the consumer."""
    width = max((len(name_of(operator)) for operator in plan.operators), default=0) + 2
    lines = ["engine", "  |"]
    for ours, boundary in zip_longest(plan.runs, plan.boundaries):
        if ours:
            lines += _group(_FUSED, ours)
        if boundary is None:
            continue
        theirs, title = boundary.operators, _title(boundary)
        if len(theirs) == 1:
            lines += [f"  +-- {name_of(theirs[0]):{width + 2}}{title}", "  |"]
        else:
            lines += _group(title.replace("for it", "for them"), theirs)
    return "\n".join([*lines, "consumer"])


def _group(title: str, operators: Sequence[AnyOperator]) -> list[str]:
    rows = [f"  |     {name_of(operator)}" for operator in operators]
    return [f"  +-- {title}", *rows, "  |"]


def _title(boundary: Boundary) -> str:
    if boundary.kind == "pulling":
        return "async generator, pulls its source"
    at_once: Callable[[Any], bool] = (
        answers_at_once if boundary.kind == "reactivex" else answers_within_asend
    )
    is_fed = all(map(at_once, boundary.operators))
    return f"{boundary.kind}, {_FED if is_fed else _DETACHED}"
