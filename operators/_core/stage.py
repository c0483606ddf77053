"""
What an operator's body is, and what it can say.

A body is a generator or, inside this package, :class:`Hooks`. What a generator can say is
described at :func:`operators.operator`; an operator about time or about the pull is an asynchronous
generator.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import cache
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

__all__ = (
    "AnyStage",
    "Callbacks",
    "Completed",
    "Condition",
    "Expression",
    "Hooks",
    "Stage",
    "StageResult",
    "Step",
    "complete_with",
    "condition_on_item",
    "detach",
    "emit",
    "fail_after",
    "when",
)

A = TypeVar("A")
B = TypeVar("B")

Step: TypeAlias = Callable[[Any], Any]


class Completed(BaseException):
    """
    Raised at an operator's ``yield`` when its source has completed.

    It is no ``Exception``, so that ``except Exception`` in an operator means failures only.

    Attributes:
        ended_by: The operator that ended the stream before its source did; None where none did.
    """

    def __init__(self, ended_by: str | None = None) -> None:
        super().__init__()
        self.ended_by = ended_by


class StageResult:
    """
    What :func:`emit`, :func:`detach`, :func:`fail_after` and the like return.

    Yield or return it at once; don't keep it. In a signature it stands beside an operator's items:
    ``AsyncGenerator[Chunk | StageResult]``.
    """

    __slots__ = ("condition", "detaches", "ends", "error", "items")

    def __init__(
        self,
        items: tuple[Any, ...],
        *,
        detaches: bool = False,
        condition: Condition | None = None,
        ends: bool = False,
        error: Exception | None = None,
    ) -> None:
        self.items = items
        self.detaches = detaches
        self.condition = condition
        self.ends = ends
        self.error = error


class Condition:
    """Which items visit a stage: an expression over ``item``, and the values of its other names."""

    __slots__ = ("_holds", "expression", "values")

    def __init__(self, expression: Expression, values: tuple[Any, ...]) -> None:
        self.expression = expression
        self.values = values
        self._holds: Callable[[Any], bool] | None = None

    def holds(self, item: Any) -> bool:
        """Return whether *item* visits the stage."""
        if self._holds is None:
            self._holds = self.expression.predicate(*self.values)
        return self._holds(item)


class Expression:
    """
    The text of a condition, and its form as a function.

    Attributes:
        names: The names in it besides ``item``.
        once: Whether only the first item that it holds for visits the stage.
        predicate: Returns a function of ``item`` for the names' values.
    """

    __slots__ = ("names", "once", "predicate", "source")

    def __init__(self, source: str, names: tuple[str, ...], once: bool = False) -> None:
        self.source = source
        self.names = names
        self.once = once
        made: Any = eval(f"lambda {', '.join(names)}: lambda item: ({source}\n)")  # noqa: S307 - the library's own text
        self.predicate: Callable[..., Callable[[Any], bool]] = made


_expression = cache(Expression)


@cache
def condition_on_item(source: str, once: bool = False) -> Condition:
    """Return a condition on the item alone, shared by every stage that has it."""
    return Condition(_expression(source, (), once), ())


def _condition(source: str, names: Mapping[str, Any] | None, once: bool = False) -> Condition:
    if not names:
        return condition_on_item(source, once)
    return Condition(_expression(source, tuple(names), once), tuple(names.values()))


def emit(*items: Any) -> StageResult:
    """Yield this to hand out any number of items, in order: none, one or several."""
    return StageResult(items)


def detach(*items: Any) -> StageResult:
    """
    Yield this to hand out *items* and leave the path of the items.

    Later items don't visit the operator, at no cost; the end still arrives at this ``yield``.
    """
    return StageResult(items, detaches=True)


def when(condition: str, *items: Any, **names: Any) -> StageResult:
    """
    Yield this to hand out *items*, and to be visited only by items that *condition* holds for.

    Args:
        condition: A Python expression over ``item`` and *names*. It is evaluated once for each item.
        items: What to hand out now.
        names: The values of other names in the expression.
    """
    return StageResult(items, condition=_condition(condition, names))


def complete_with(*items: Any) -> StageResult:
    """Return this to end the stream with *items*; a generator may simply ``return item``."""
    return StageResult(items, ends=True)


def fail_after(error: Exception, *items: Any) -> StageResult:
    """
    Return this to hand out *items*, and then fail the stream with *error*.

    For an operator that holds items back: they come out before the failure does.

    >>> import reactivex
    >>> from operators.authoring import operator
    >>> @operator
    ... def batched():
    ...     batch = []
    ...     try:
    ...         while True:
    ...             batch.append((yield emit()))
    ...     except ValueError as error:
    ...         return fail_after(error, batch)
    >>> source = reactivex.concat(reactivex.of(1, 2), reactivex.throw(ValueError("gone")))
    >>> _ = source.pipe(batched()).subscribe(print, lambda error: print(repr(error)))
    [1, 2]
    ValueError('gone')
    """
    return StageResult(items, ends=True, error=error)


class Hooks(Generic[A, B]):
    """
    An operator's body that is no generator: what is called of it, and when.

    A body with state derives from this and overrides what it needs, by methods. The hooks are
    described at `Callbacks`.

    Attributes:
        condition: Which items visit; None for all.
        has_hooks: Whether there is anything to call but the step.
    """

    __slots__ = ()

    step: Step | None = None
    condition: Condition | None = None
    has_hooks: bool = True
    on_error: Callable[[Exception], Any] | None = None
    on_complete: Callable[[str | None], StageResult | None] | None = None
    on_end: Callable[[Exception | None, bool], None] | None = None
    on_interrupt: Callable[[bool], None] | None = None


class Callbacks(Hooks[A, B]):
    """
    An operator's body as functions, for one that few items need to visit.

    It costs a fraction of a generator to set up and to end, and nothing for an item that its
    condition keeps away.

    Args:
        step: Called with an item that visits; returns the item to hand out, or a `StageResult`.
            None: no item visits.
        only: The condition under which an item visits, an expression over ``item`` and *names*;
            None for every item, and then *step* must return an item.
        once: Whether only the first item that *only* holds for visits.
        names: Values of the names in *only*.
        on_error: Turns a failure of the source into the stream's last item.
        on_complete: Called when the source has completed, with the operator that ended the stream
            early or None; may return a `StageResult` to end the stream with.
        on_end: Called once at the end, however it comes: with the failure or None, and whether
            the stream was dropped.
        on_interrupt: Called with True when the pull is being cancelled, and with False where that
            was no drop after all: an engine may cancel itself, as ``asyncio.timeout`` does.
    """

    __slots__ = (
        "condition",
        "has_hooks",
        "on_complete",
        "on_end",
        "on_error",
        "on_interrupt",
        "step",
    )

    def __init__(
        self,
        step: Callable[[A], B | StageResult] | None = None,
        *,
        only: str | None = None,
        once: bool = False,
        names: Mapping[str, Any] | None = None,
        on_error: Callable[[Exception], B] | None = None,
        on_complete: Callable[[str | None], StageResult | None] | None = None,
        on_end: Callable[[Exception | None, bool], None] | None = None,
        on_interrupt: Callable[[bool], None] | None = None,
    ) -> None:
        self.step = step
        self.on_error = on_error
        self.on_complete = on_complete
        self.on_end = on_end
        self.on_interrupt = on_interrupt
        self.condition = None if only is None else _condition(only, names, once)
        self.has_hooks = (on_end or on_error or on_complete or on_interrupt) is not None


# Mypy takes this to be true.
MYPY = False

if TYPE_CHECKING:
    from typing_extensions import TypeAliasType

    if MYPY:
        # To mypy a `yield` without a value is an error, unless the type is Any.
        Stage: TypeAlias = Generator[Any, A, B | StageResult | None]
    else:
        Stage = TypeAliasType(  # pyright: ignore[reportRedeclaration]
            "Stage",
            Generator[B | StageResult | None, A, B | StageResult | None],
            type_params=(A, B),
        )
        """The type of an operator's generator from items A to items B."""
    AnyStage: TypeAlias = GeneratorType[Any, Any, Any] | Hooks[Any, Any] | None
    """What a chain holds for a stage; None for one that has ended."""
else:

    class Stage(Generator):
        """The type of an operator's generator: ``Stage[A, B]`` takes items A and hands out items B."""

    AnyStage = object
