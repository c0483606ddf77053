"""A pipeline as an immutable value: validated, edited by name, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias, cast, overload

from typing_extensions import TypeVar

from operators._core.assemble import AnyOperator, Plan
from operators._core.drawing import draw_plan
from operators._core.naming import name_of
from operators._core.operator import NotAnOperator, Operator, Transform

__all__ = ("NoSuchOperator", "Pipeline")

A = TypeVar("A")
B = TypeVar("B")
T_co = TypeVar("T_co", covariant=True, default=Any)

_Change: TypeAlias = Callable[[AnyOperator], Sequence[AnyOperator]]


class NoSuchOperator(LookupError):
    """An edit names an operator that the pipeline doesn't contain, or contains more than once."""


class Pipeline(Generic[T_co]):
    """
    The operators of a stream, in two phases, in order.

    Operators on the engine's chunks come first, then *annotate*, then operators on annotated items.
    A pipeline is immutable: edits return a new one. The same operators may be in many pipelines and
    serve many requests at once.

    ``Pipeline[T]`` hands out items of type ``T``. Type checkers infer it from *annotate*, and keep
    it for operators whose output type is their input type.

    Args:
        chunks: The operators on the engine's chunks.
        items: The operators on annotated items.
        annotate: Turns chunks into items, and a failure into the last one. Without it, chunks and
            failures come out unchanged, and there are no items.

    Raises:
        NotAnOperator: An entry is not an operator, or is in the wrong phase; names the operator and
            its position (row O1).

    >>> from reactivex import operators as ops
    >>> from operators import Pipeline, limit_tokens, trace_link, until_terminal
    >>> mine = Pipeline([until_terminal(), trace_link(None)])
    >>> mine.insert_after("until_terminal", limit_tokens(100)).names
    ['until_terminal', 'limit_tokens', 'trace_link']
    >>> mine.without("trace_link")
    Pipeline(chunks=[until_terminal()])
    """

    @overload
    def __init__(
        self,
        chunks: Iterable[AnyOperator],
        items: Iterable[Transform[A, A]] = (),
        *,
        annotate: Operator[Any, T_co],
    ) -> None: ...
    @overload
    def __init__(
        self: Pipeline[Any],
        chunks: Iterable[AnyOperator],
        items: Iterable[AnyOperator] = (),
        *,
        annotate: Operator[Any, Any] | None = None,
    ) -> None: ...
    def __init__(
        self,
        chunks: Iterable[AnyOperator],
        items: Iterable[AnyOperator] = (),
        *,
        annotate: Operator[Any, Any] | None = None,
    ) -> None:
        self.chunks: tuple[AnyOperator, ...] = _checked("chunks", chunks, misplaced="items")
        self.items: tuple[AnyOperator, ...] = _checked("items", items, misplaced="chunks")
        self.annotate = annotate
        if annotate is not None:
            _checked("annotate", (annotate,), misplaced="items")
        if self.items and annotate is None:
            raise NotAnOperator(
                "items: expected none without annotate, which turns chunks into items, got "
                f"{name_of(self.items[0])}"
            )

    @property
    def operators(self) -> tuple[AnyOperator, ...]:
        """All operators, in order."""
        between = () if self.annotate is None else (self.annotate,)
        return (*self.chunks, *between, *self.items)

    @property
    def names(self) -> list[str]:
        """The names of all operators, in order, for use in edits."""
        return [name_of(operator) for operator in self.operators]

    @overload
    def insert_before(
        self, where: str | AnyOperator, *operators: Transform[A, A]
    ) -> Pipeline[T_co]: ...
    @overload
    def insert_before(self, where: str | AnyOperator, *operators: AnyOperator) -> Pipeline: ...
    def insert_before(self, where: str | AnyOperator, *operators: AnyOperator) -> Pipeline:
        """
        Return a pipeline with *operators* before the one at *where*.

        Args:
            where: A name, or the operator itself if several have that name.
            operators: What to insert.

        Raises:
            NoSuchOperator: *where* is not in the pipeline, or is the name of several.
            NotAnOperator: As for the class.
        """
        return self._changed(where, lambda found: (*operators, found))

    @overload
    def insert_after(
        self, where: str | AnyOperator, *operators: Transform[A, A]
    ) -> Pipeline[T_co]: ...
    @overload
    def insert_after(self, where: str | AnyOperator, *operators: AnyOperator) -> Pipeline: ...
    def insert_after(self, where: str | AnyOperator, *operators: AnyOperator) -> Pipeline:
        """Return a pipeline with *operators* after the one at *where*; see :meth:`insert_before`."""
        return self._changed(where, lambda found: (found, *operators))

    @overload
    def replace(self, where: str | AnyOperator, *operators: Transform[A, A]) -> Pipeline[T_co]: ...
    @overload
    def replace(self, where: str | AnyOperator, *operators: AnyOperator) -> Pipeline: ...
    def replace(self, where: str | AnyOperator, *operators: AnyOperator) -> Pipeline:
        """Return a pipeline with *operators* in place of *where*; see :meth:`insert_before`."""
        return self._changed(where, lambda _: operators)

    def without(self, where: str | AnyOperator) -> Pipeline[T_co]:
        """Return a pipeline without the operator at *where*; see :meth:`insert_before`."""
        return self.replace(where)

    @overload
    def with_operators(self, operator: Transform[T_co, B], /) -> Pipeline[B]: ...
    @overload
    def with_operators(self, *operators: Transform[A, A]) -> Pipeline[T_co]: ...
    @overload
    def with_operators(self, *operators: AnyOperator) -> Pipeline: ...
    def with_operators(self, *operators: AnyOperator) -> Pipeline:
        """
        Return a pipeline with *operators* at its end, each in its phase.

        One that takes chunks is added to the chunk operators, any other to the item operators.
        """
        chunks = [each for each in operators if _takes(each) == "chunks"]
        items = [each for each in operators if _takes(each) != "chunks"]
        if self.annotate is None:
            return Pipeline([*self.chunks, *operators])
        return Pipeline([*self.chunks, *chunks], [*self.items, *items], annotate=self.annotate)

    def draw(self) -> str:
        """
        Draw how the pipeline runs: what is fused, and what runs outside the consumer's pull.

        >>> from reactivex import operators as ops
        >>> from operators import Pipeline, map_async, until_terminal
        >>> async def moderate(chunk): return chunk
        >>> print(Pipeline([until_terminal(), map_async(moderate), ops.debounce(0.1)]).draw())
        engine
          |
          +-- fused: one loop, run by the consumer's pull
          |     until_terminal
          |
          +-- map_async         async generator, pulls its source
          |
          +-- debounce          reactivex, detached: a task pulls for it
          |
        consumer
        """
        return draw_plan(Plan(self.operators))

    def __repr__(self) -> str:
        chunks = ", ".join(map(_shown, self.chunks))
        items = ", ".join(map(_shown, self.items))
        return f"Pipeline(chunks=[{chunks}]{f', items=[{items}]' if items else ''})"

    def _changed(self, where: str | AnyOperator, change: _Change) -> Pipeline:
        place = self._place(where)
        found = self.operators[place]
        changed = change(found)
        chunks, items = list(self.chunks), list(self.items)
        behind = place - len(chunks) - 1
        if behind >= 0:
            items[behind : behind + 1] = changed
        elif place < len(chunks):
            chunks[place : place + 1] = changed
        elif found in changed:
            at = changed.index(found)
            chunks += changed[:at]
            items[:0] = changed[at + 1 :]
        else:
            # The operator between the phases can't be replaced by several.
            raise NoSuchOperator(
                f"{where!r} is between the phases: make another Pipeline(annotate=...)"
            )
        return Pipeline(chunks, items, annotate=self.annotate)

    def _place(self, where: str | AnyOperator) -> int:
        """Return the index of an operator among all."""
        found = [place for place, each in enumerate(self.operators) if _is(each, where)]
        if len(found) == 1:
            return found[0]
        how_many = f"{len(found)} operators" if found else "no operator"
        hint = "; pass the operator itself" if found else ""
        raise NoSuchOperator(f"{how_many} {where!r} in {self.names}{hint}")


def _takes(operator: object) -> str:
    """Return what an operator takes; ``anything`` for those of other libraries."""
    return operator.takes if isinstance(operator, Operator) else "anything"


def _checked(
    phase: str, operators: Iterable[AnyOperator], *, misplaced: str
) -> tuple[AnyOperator, ...]:
    checked = Plan(operators, phase).operators
    for place, each in enumerate(checked):
        if _takes(each) == misplaced:
            what = "annotated items" if misplaced == "items" else "an engine's chunks"
            raise NotAnOperator(
                f"{phase}[{place}]: {name_of(each)} takes {what}: move it to {misplaced}"
            )
    return checked


def _is(operator: AnyOperator, where: str | AnyOperator) -> bool:
    return operator is where or (isinstance(where, str) and name_of(operator) == where)


def _shown(operator: AnyOperator) -> str:
    return repr(cast("object", operator)) if isinstance(operator, Operator) else name_of(operator)
