"""A pipeline drawn as text: what is fused, and what runs outside the consumer's pull."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from operators._core.assemble import AnyOperator, Boundary, Plan
from operators._core.naming import name_of

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
    segment = boundary.segment
    if segment is None:
        return "async generator, pulls its source"
    is_fed = all(map(segment.answers_at_once, boundary.operators))
    return f"{segment.library}, {_FED if is_fed else _DETACHED}"
