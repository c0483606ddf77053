"""The names of operators, in drawings and for editing a pipeline."""

from __future__ import annotations

import inspect
from typing import Any

from operators._core.operator import Operator

__all__ = ("home_of", "name_of")

_LIBRARIES = frozenset({"aioreactive", "expression", "reactivex"})


def name_of(operator: object) -> str:
    """
    Return the name of an operator of any kind: that of the function that made it.

    A composition of several has the name of the function that composed them.

    >>> from reactivex import operators as ops
    >>> from operators import until_terminal
    >>> name_of(until_terminal()), name_of(ops.debounce(0.5))
    ('until_terminal', 'debounce')
    """
    if isinstance(operator, Operator):
        return operator.name
    function = _named(operator)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    outer, *inner = name.split(".<locals>.")
    if home_of(operator).partition(".")[0] in _LIBRARIES:
        # Their operators are closures in the function that a user calls.
        return outer.rpartition(".")[2].strip("_")
    return inner[-1] if inner else outer


def _named(operator: object) -> object:
    """Return the function with the most specific name, which may be a handler of a general one."""
    function = _made_by(operator)
    if inspect.isfunction(function) and home_of(operator) == "aioreactive.transform":
        nonlocals = inspect.getclosurevars(function).nonlocals
        handler = nonlocals.get("anext") or nonlocals.get("accumulator")
        if getattr(handler, "__module__", "").startswith("aioreactive."):
            return handler
    return function


def home_of(operator: object) -> str:
    """Return the name of the module in which an operator is defined."""
    return getattr(_made_by(operator), "__module__", "")


def _made_by(operator: object) -> Any:
    if getattr(operator, "__module__", "") != "reactivex.internal.curry":
        return operator
    # Newer releases wrap every operator in one decorator's closure.
    if not inspect.isfunction(operator):
        return operator
    return inspect.getclosurevars(operator).nonlocals.get("fun", operator)
