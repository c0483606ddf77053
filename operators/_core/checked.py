"""Operators that look at their arguments when they are made, not when a stream starts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ("checked",)

P = ParamSpec("P")
R = TypeVar("R")


def checked(check: Callable[..., object]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Stand above ``@operator`` to have *check* called with the arguments when the operator is made.

    An operator's body runs for each stream. What is wrong with its arguments is said earlier: where
    the operator was written.

    Args:
        check: Takes the operator's arguments, and raises when they are wrong.

    >>> from operators.assembly import Callbacks
    >>> from operators.authoring import operator
    >>> def _check(step):
    ...     if step < 1:
    ...         raise ValueError(f"every: step: expected at least 1, got {step}")
    >>> @checked(_check)
    ... @operator
    ... def every(step):
    ...     return Hooks(only=f"item % {step} == 0")
    >>> every(0)
    Traceback (most recent call last):
    ValueError: every: step: expected at least 1, got 0
    """

    def decorate(make: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(make)
        def checking(*args: P.args, **kwargs: P.kwargs) -> R:
            check(*args, **kwargs)
            return make(*args, **kwargs)

        return checking

    return decorate
