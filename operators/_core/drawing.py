"""A pipeline drawn as text: what is fused with what, and what leaves the consumer's pull."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from operators._core.aio_operator import answers_within_asend, is_aio_operator
from operators._core.assemble import AnyOperator, plan_of
from operators._core.naming import name_of
from operators._core.operator import Operator, PullingOperator
from operators._core.rx import answers_at_once

__all__ = ("drawn",)

_FUSED = "fused: one loop, run by the consumer's pull"
_FED = "fed in the consumer's pull"
_DETACHED = "detached: a task pulls for it"


def drawn(operators: Sequence[AnyOperator]) -> str:
    """Draw a list of operators, from the engine down to the consumer."""
    plan_of(operators)
    width = max((len(name_of(operator)) for operator in operators), default=0) + 2
    lines = ["engine", "  |"]
    for is_fused, group in groupby(operators, _is_fused):
        rows = [(name_of(operator), _remark(operator)) for operator in group]
        if is_fused:
            lines.append(f"  +-- {_FUSED}")
            lines += [f"  |     {name:{width}}{remark}".rstrip() for name, remark in rows]
            lines.append("  |")
        else:
            for name, remark in rows:
                lines += [f"  +-- {name:{width + 2}}{remark}", "  |"]
    return "\n".join([*lines, "consumer"])


def _is_fused(operator: AnyOperator) -> bool:
    return isinstance(operator, Operator) and not isinstance(operator, PullingOperator)


def _remark(operator: Any) -> str:
    if isinstance(operator, PullingOperator):
        return "pulls for itself"
    if isinstance(operator, Operator):
        return ""
    if is_aio_operator(operator):
        return f"aioreactive, {_FED if answers_within_asend(operator) else _DETACHED}"
    return f"reactivex, {_FED if answers_at_once(operator) else _DETACHED}"
