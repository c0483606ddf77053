"""A pipeline's operators as a value: to print, to draw, and to change by name."""

from __future__ import annotations

from collections.abc import Iterable

from operators._core.assemble import AnyOperator
from operators._core.drawing import drawn
from operators._core.naming import name_of
from operators._core.operator import Operator

__all__ = ("NoSuchOperator", "OperatorList")


class NoSuchOperator(LookupError):
    """A list was to be changed at an operator that it doesn't hold, or holds more than once."""


class OperatorList(list[AnyOperator]):
    """
    The operators of a pipeline, in order; a list that can be changed by name, and drawn.

    Operators are immutable values: one may stand in many lists and serve many requests at once.
    What changes a list gives a new one.

    >>> from reactivex import operators as ops
    >>> from operators import annotate_errors, map_async, trace_link, until_terminal
    >>> standard = OperatorList([until_terminal(), trace_link(None)])
    >>> standard.insert_after("until_terminal", ops.take(100)).names
    ['until_terminal', 'take', 'trace_link']
    >>> standard.without("trace_link")
    OperatorList([until_terminal()])
    """

    __slots__ = ()

    @property
    def names(self) -> list[str]:
        """What the operators are called, in order: the names to use here."""
        return [name_of(operator) for operator in self]

    def insert_before(self, where: str | AnyOperator, *operators: AnyOperator) -> OperatorList:
        """
        A list with *operators* before the one at *where*.

        Args:
            where: A name, or the operator itself where a name stands for several.
            operators: What to insert.

        Raises:
            NoSuchOperator: *where* is not in the list, or is the name of several.
        """
        place = self._place(where)
        return OperatorList([*self[:place], *operators, *self[place:]])

    def insert_after(self, where: str | AnyOperator, *operators: AnyOperator) -> OperatorList:
        """A list with *operators* after the one at *where*; see :meth:`insert_before`."""
        place = self._place(where) + 1
        return OperatorList([*self[:place], *operators, *self[place:]])

    def replace(self, where: str | AnyOperator, *operators: AnyOperator) -> OperatorList:
        """A list with *operators* in the place of the one at *where*; see :meth:`insert_before`."""
        place = self._place(where)
        return OperatorList([*self[:place], *operators, *self[place + 1 :]])

    def without(self, where: str | AnyOperator) -> OperatorList:
        """A list without the operator at *where*; see :meth:`insert_before`."""
        return self.replace(where)

    def draw(self) -> str:
        """
        Draw what will happen: what is fused with what, and what leaves the consumer's pull.

        Raises:
            NotAnOperator: Something in the list is no operator.

        >>> from reactivex import operators as ops
        >>> from operators import map_async, until_terminal
        >>> async def moderate(chunk): return chunk
        >>> pipeline = OperatorList([until_terminal(), map_async(moderate), ops.debounce(0.1)])
        >>> print(pipeline.draw())
        engine
          |
          +-- fused: one loop, run by the consumer's pull
          |     until_terminal
          |     map_async       awaited
          |
          +-- debounce          reactivex, detached: a task pulls for it
          |
        consumer
        """
        return drawn(self)

    def __repr__(self) -> str:
        return f"OperatorList([{', '.join(map(_shown, self))}])"

    def __add__(self, others: Iterable[AnyOperator]) -> OperatorList:  # type: ignore[override]
        return OperatorList([*self, *others])

    def _place(self, where: str | AnyOperator) -> int:
        places = [
            place
            for place, operator in enumerate(self)
            if operator is where or (isinstance(where, str) and name_of(operator) == where)
        ]
        if len(places) == 1:
            return places[0]
        how_many = f"{len(places)} operators" if places else "no operator"
        hint = "; give the operator itself" if places else ""
        raise NoSuchOperator(f"{how_many} {where!r} in {self.names}{hint}")


def _shown(operator: AnyOperator) -> str:
    return f"{operator!r}" if isinstance(operator, Operator) else name_of(operator)
