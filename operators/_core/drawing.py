"""A pipeline drawn as text: what is fused with what, and what leaves the consumer's pull."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from operators._core.aio_operator import answers_within_asend
from operators._core.assemble import AnyOperator, Boundary, check_operators
from operators._core.naming import name_of
from operators._core.operator import Operator
from operators._core.rx import answers_at_once

__all__ = ("drawn",)

_FUSED = "fused: one loop, run by the consumer's pull"
_FED = "fed in the consumer's pull"
_DETACHED = "detached: a task pulls for it"


def drawn(operators: Sequence[AnyOperator]) -> str:
    """Draw a list of operators, from the engine down to the consumer."""
    checked = check_operators(operators)
    width = max((len(name_of(operator)) for operator in checked), default=0) + 2
    lines = ["engine", "  |"]
    begin = 0
    for boundary in [*checked.boundaries, None]:
        ours = checked[begin : boundary.begin if boundary else len(checked)]
        if ours:
            lines += _group(_FUSED, ours, width)
        if boundary:
            begin = boundary.end
            theirs, title = checked[boundary.begin : begin], _title(boundary, checked)
            if len(theirs) == 1:
                lines += [f"  +-- {name_of(theirs[0]):{width + 2}}{title}", "  |"]
            else:
                lines += _group(title.replace("for it", "for them"), theirs, width)
    return "\n".join([*lines, "consumer"])


def _group(title: str, operators: Sequence[AnyOperator], width: int) -> list[str]:
    rows = [f"  |     {name_of(item):{width}}{_remark(item)}".rstrip() for item in operators]
    return [f"  +-- {title}", *rows, "  |"]


def _remark(operator: AnyOperator) -> str:
    return "awaited" if isinstance(operator, Operator) and operator.awaits else ""


def _title(boundary: Boundary, checked: Sequence[Any]) -> str:
    if boundary.kind == "pulling":
        return "pulls for itself"
    at_once: Callable[[Any], bool] = (
        answers_at_once if boundary.kind == "reactivex" else answers_within_asend
    )
    is_fed = all(map(at_once, checked[boundary.begin : boundary.end]))
    return f"{boundary.kind}, {_FED if is_fed else _DETACHED}"
