"""
An operator's body, and the results that it can yield or return.

A body is a generator or, inside this package, :class:`Hooks`. The rules for a generator are at
:func:`operators.authoring.operator`; an operator that uses timers or controls the pull is an
asynchronous generator.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

__all__ = (
    "Callbacks",
    "Completed",
    "Condition",
    "Hooks",
    "Stage",
    "StageResult",
    "Step",
    "Visit",
    "complete_with",
    "condition",
    "detach",
    "emit",
    "fail_after",
)

A = TypeVar("A")
B = TypeVar("B")

Step: TypeAlias = Callable[[Any], Any]


class Completed(BaseException):
    """
    Raised at an operator's ``yield`` when its source has completed.

    It is not an ``Exception``, so that ``except Exception`` in an operator catches only failures.

    Attributes:
        ended_by: The operator that ended the stream before its source did, if any.
    """

    def __init__(self, ended_by: str | None = None) -> None:
        super().__init__()
        self.ended_by = ended_by


class StageResult:
    """
    The result of :func:`emit`, :func:`detach`, :func:`fail_after` and the like.

    Yield or return it at once; don't keep it. In a signature it is a union with an operator's
    items: ``AsyncGenerator[Chunk | StageResult]``.
    """

    __slots__ = ("detaches", "ends", "error", "items")

    def __init__(
        self,
        items: tuple[Any, ...],
        *,
        detaches: bool = False,
        ends: bool = False,
        error: Exception | None = None,
    ) -> None:
        self.items = items
        self.detaches = detaches
        self.ends = ends
        self.error = error


class Condition:
    """
    Which items visit a stage: an expression over ``item`` and other names.

    Attributes:
        source: The expression.
        names: Its names other than ``item``; each stage has its own values for them.
        once: Whether only the first matching item visits the stage.
        holds: Returns whether an item visits, from the item and the names' values.
    """

    __slots__ = ("holds", "names", "once", "source")

    def __init__(self, source: str, names: tuple[str, ...], once: bool) -> None:
        self.source = source
        self.names = names
        self.once = once
        made: Any = eval(f"lambda {', '.join(('item', *names))}: ({source}\n)")  # noqa: S307 - the library's own text
        self.holds: Callable[..., bool] = made


@cache
def condition(source: str, names: tuple[str, ...] = (), once: bool = False) -> Condition:
    """Return a condition, cached so that stages share it."""
    return Condition(source, names, once)


Visit: TypeAlias = Condition | bool | None
"""
Which items visit a stage: those that match a condition, all of them (False if the stage always
returns one item, as a class does), or none.
"""


def emit(*items: Any) -> StageResult:
    """Yield this to hand out any number of items, in order: none, one or several."""
    return StageResult(items)


def detach(*items: Any) -> StageResult:
    """
    Yield this to hand out *items* and detach the operator.

    Later items bypass it at no cost; the end still arrives at this ``yield``.
    """
    return StageResult(items, detaches=True)


def complete_with(*items: Any) -> StageResult:
    """Return this to end the stream with *items*; a generator may simply ``return item``."""
    return StageResult(items, ends=True)


def fail_after(error: Exception, *items: Any) -> StageResult:
    """
    Return this to hand out *items*, and then fail the stream with *error*.

    For an operator that holds items back: they come out before the failure does.

    Raises:
        TypeError: *error* is not an ``Exception``.

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
    if not isinstance(error, Exception):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"fail_after: error: expected an Exception, got {error!r}")
    return StageResult(items, ends=True, error=error)


class Hooks(Generic[A, B]):
    """
    An operator's body that is not a generator: hooks that are called.

    A stateful body derives from this and overrides hooks with methods. They are described at
    `Callbacks`.

    Attributes:
        visit: Which items visit.
        values: The values of the names in a condition.
        handles_end: Whether a hook is called when the stream ends.
    """

    __slots__ = ()

    step: Step | None = None
    visit: Visit = None
    values: tuple[Any, ...] = ()
    handles_end: bool = False
    on_error: Callable[[Exception], Any] | None = None
    on_complete: Callable[[str | None], StageResult | None] | None = None
    on_end: Callable[[Exception | None, bool], None] | None = None
    on_interrupt: Callable[[bool], None] | None = None


class Callbacks(Hooks[A, B]):
    """
    An operator's body as functions, for one that few items need to visit.

    It costs a fraction of a generator to set up and to end, and nothing for an item that its
    condition excludes.

    Args:
        step: Called with a visiting item; returns the item to hand out, or a `StageResult`. None:
            no item visits.
        only: The condition under which an item visits, an expression over ``item`` and *names*;
            None for every item, and then *step* must return an item.
        once: Whether only the first item that matches *only* visits.
        names: Values of the names in *only*.
        on_error: Turns a failure of the source into the stream's last item, or a `StageResult`.
        on_complete: Called when the source has completed, with the operator that ended the stream
            early or None; may return a `StageResult` to end the stream with.
        on_end: Called once at the end, however the stream ends: with the failure or None, and
            whether it was dropped.
        on_interrupt: Called with True when the pull is being cancelled, and with False if that was
            not a drop after all: an engine may cancel itself, as ``asyncio.timeout`` does.
    """

    __slots__ = (
        "handles_end",
        "on_complete",
        "on_end",
        "on_error",
        "on_interrupt",
        "step",
        "values",
        "visit",
    )

    def __init__(
        self,
        step: Callable[[A], B | StageResult] | None = None,
        *,
        only: str | None = None,
        once: bool = False,
        names: Mapping[str, Any] | None = None,
        on_error: Callable[[Exception], B | StageResult] | None = None,
        on_complete: Callable[[str | None], StageResult | None] | None = None,
        on_end: Callable[[Exception | None, bool], None] | None = None,
        on_interrupt: Callable[[bool], None] | None = None,
    ) -> None:
        self.step = step
        self.on_error = on_error
        self.on_complete = on_complete
        self.on_end = on_end
        self.on_interrupt = on_interrupt
        if only is not None:
            self.visit = condition(only, tuple(names or ()), once)
        else:
            self.visit = None if step is None else not isinstance(step, type)
        self.values = tuple(names.values()) if names else ()
        self.handles_end = (on_end or on_complete or on_error) is not None


# Mypy assumes that this is true.
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
else:

    class Stage(Generator):
        """The type of an operator's generator: ``Stage[A, B]`` takes items A and hands out items B."""
