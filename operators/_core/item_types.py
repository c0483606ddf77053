"""How the types of items flow through operators, for type checkers only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, cast

from reactivex import Observable

from operators._core.operator import Operator

__all__ = ("SameTypeOperator", "Transform", "same_type")

A = TypeVar("A")
B = TypeVar("B")
P = ParamSpec("P")

Transform: TypeAlias = Callable[[Observable[A]], Observable[B]]
"""An operator, ours or of ``reactivex``, that turns items A into items B."""

if TYPE_CHECKING:

    class SameTypeOperator(Operator[Any, Any]):
        """An operator whose output type is its input type."""

        def __call__(self, source: Observable[A]) -> Observable[A]:
            """Apply the operator to an Observable, as in ``source.pipe(operator)``."""
            ...

else:
    SameTypeOperator = Operator


def same_type(make: Callable[P, Operator[Any, Any]]) -> Callable[P, SameTypeOperator]:
    """
    Declare that an operator's output type is its input type.

    It is for type checkers and has no effect at run time::

        @same_type
        @operator
        def at_most(count: int) -> Stage[Any, Any]: ...
    """
    return cast("Callable[P, SameTypeOperator]", make)
