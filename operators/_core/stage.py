"""
What an operator's body is, and what it can say.

A body is a generator, :class:`Hooks`, or :class:`Awaited`; what a generator can say is told at
:func:`operators.operator`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from functools import cache
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

__all__ = (
    "AWAITED",
    "AWAITED_VERDICT",
    "AnyStage",
    "AsyncStep",
    "Awaited",
    "Completed",
    "Condition",
    "Emission",
    "Expression",
    "Hooks",
    "SetupFailed",
    "Stage",
    "Step",
    "apply",
    "bypass",
    "emit",
    "failing",
    "last",
    "visit_if",
)

A = TypeVar("A")
B = TypeVar("B")

Step: TypeAlias = Callable[[Any], Any]
AsyncStep: TypeAlias = Callable[[Any], Coroutine[Any, Any, Any]]


class Completed(BaseException):
    """
    Raised at an operator's ``yield`` when its source is through.

    No ``Exception``, so that ``except Exception`` in an operator means failures only.
    """


class SetupFailed(Exception):
    """What the stages before it see when a later stage's set-up raised."""


class Emission:
    """
    What :func:`emit`, :func:`bypass`, :func:`apply`, :func:`visit_if`, :func:`last` and
    :func:`failing` make.

    Yield or return it; don't keep it.
    """

    __slots__ = ("condition", "ends", "error", "items", "step", "steps_aside")

    def __init__(
        self,
        items: tuple[Any, ...],
        *,
        steps_aside: bool = False,
        step: Step | None = None,
        condition: Condition | None = None,
        ends: bool = False,
        error: Exception | None = None,
    ) -> None:
        self.items = items
        self.steps_aside = steps_aside
        self.step = step
        self.condition = condition
        self.ends = ends
        self.error = error


class Condition:
    """
    Which items visit a stage: an expression over ``item`` and some names of its own.

    Attributes:
        expression: The expression; conditions with the same one share it.
        values: The values of the names in it.
    """

    __slots__ = ("_holds", "expression", "values")

    def __init__(self, expression: Expression, values: tuple[Any, ...]) -> None:
        self.expression = expression
        self.values = values
        self._holds: Callable[[Any], bool] | None = None

    def holds(self, item: Any) -> bool:
        """Whether *item* visits the stage."""
        if self._holds is None:
            self._holds = self.expression.predicate(*self.values)
        return self._holds(item)


class Expression:
    """
    The text of a condition, and its form as a function.

    Attributes:
        source: The text.
        names: The names in it besides ``item``.
        once: Only the first item that it holds for visits the stage.
        predicate: Gives a function of ``item`` for the names' values.
    """

    __slots__ = ("names", "once", "predicate", "source")

    def __init__(self, source: str, names: tuple[str, ...], once: bool = False) -> None:
        self.source = source
        self.names = names
        self.once = once
        try:
            made: Any = eval(f"lambda {', '.join(names)}: lambda item: ({source}\n)")  # noqa: S307
        except SyntaxError as error:
            raise ValueError(
                f"condition: expected an expression over item, got {source!r}: {error.msg}"
            ) from error
        self.predicate: Callable[..., Callable[[Any], bool]] = made


_expression = cache(Expression)

AWAITED = Condition(Expression("True", ()), ())
"""The condition of an asynchronous step: every item visits it, and it is awaited."""

AWAITED_VERDICT = Condition(Expression("True", ()), ())
"""That of an asynchronous step which only says whether the item goes on."""


@cache
def _nameless(source: str, once: bool) -> Condition:
    """A condition on the item alone, which every stage that has it shares."""
    return Condition(_expression(source, (), once), ())


def _condition(source: str, names: Mapping[str, Any] | None, once: bool = False) -> Condition:
    if not names:
        return _nameless(source, once)
    return Condition(_expression(source, tuple(names), once), tuple(names.values()))


def emit(*items: Any) -> Emission:
    """Yield this to hand out any number of items, in order: none, one or several."""
    return Emission(items)


def bypass(*items: Any) -> Emission:
    """Yield this to hand out *items* and step aside; the end still arrives at this ``yield``."""
    return Emission(items, steps_aside=True)


def apply(function: Step, *items: Any) -> Emission:
    """Like :func:`bypass`, but later items go through *function*, which gives one item for one."""
    return Emission(items, steps_aside=True, step=function)


def visit_if(condition: str, *items: Any, **names: Any) -> Emission:
    """
    Yield this to hand out *items*, and to be visited only by items that *condition* holds for.

    Args:
        condition: A Python expression over ``item`` and *names*. It is evaluated once for each item,
            so it may also do what an ordinary item needs.
        items: What to hand out now.
        names: The values of other names in the expression.

    >>> import reactivex
    >>> from operators import operator
    >>> @operator
    ... def even_tenfold():
    ...     item = yield visit_if("item % 2 == 0")
    ...     while True:
    ...         item = yield item * 10
    >>> _ = reactivex.of(1, 2, 3).pipe(even_tenfold()).subscribe(print)
    1
    20
    3
    """
    return Emission(items, condition=_condition(condition, names))


def last(*items: Any) -> Emission:
    """Give this as a :class:`Hooks` step's result to end the stream with *items*."""
    return Emission(items, ends=True)


def failing(error: Exception, *items: Any) -> Emission:
    """
    Return this to hand out *items*, and fail the stream with *error* behind them.

    For an operator that holds items back: they come out before the failure goes on.

    >>> import reactivex
    >>> from operators import operator
    >>> @operator
    ... def batched():
    ...     batch = []
    ...     try:
    ...         while True:
    ...             batch.append((yield emit()))
    ...     except ValueError as error:
    ...         return failing(error, batch)
    >>> source = reactivex.concat(reactivex.of(1, 2), reactivex.throw(ValueError("gone")))
    >>> _ = source.pipe(batched()).subscribe(print, lambda error: print(repr(error)))
    [1, 2]
    ValueError('gone')
    """
    return Emission(items, ends=True, error=error)


class Hooks(Generic[A, B]):
    """
    An operator's body as functions, for one that few items need to visit.

    It costs a fraction of a generator to set up and to end, and nothing for an item that its
    condition keeps away. A function decorated with ``@operator`` may return one instead of being a
    generator.

    Args:
        step: What happens to an item that visits: gives the item to hand out, or an emission.
            None: no item visits.
        only: The condition under which an item visits, an expression over ``item`` and *names*;
            None for every item, and then *step* must give an item.
        once: Only the first item that *only* holds for visits.
        names: Values of the names in *only*.
        on_error: Turns a failure of the source into the stream's last item.
        on_end: Called once at the end, however it comes: with the failure or None, and whether
            the stream was dropped.
    """

    __slots__ = ("condition", "on_end", "on_error", "step")

    def __init__(
        self,
        step: Callable[[A], B | Emission] | None = None,
        *,
        only: str | None = None,
        once: bool = False,
        names: Mapping[str, Any] | None = None,
        on_error: Callable[[Exception], B] | None = None,
        on_end: Callable[[Exception | None, bool], None] | None = None,
    ) -> None:
        self.step: Step | None = step
        self.on_error = on_error
        self.on_end = on_end
        self.condition = None if only is None else _condition(only, names, once)


class Awaited(Generic[A, B]):
    """
    An operator's body as an asynchronous function, awaited for each item before the next is pulled.

    For a function decorated with ``@stateless``. It stays within the fused run: no task is made for
    it, and one that doesn't really wait costs little more than a call.

    Args:
        step: Gives the item to hand out, or ``emit(...)`` for none or several, or ``last(...)`` to
            end the stream. What it raises fails the stream; a drop cancels what it awaits.
        is_verdict: *step* only says whether the item goes on, as it is.

    Raises:
        TypeError: *step* can't be called.
    """

    __slots__ = ("condition", "direct", "step")

    def __init__(
        self, step: Callable[[A], Awaitable[B | Emission]], *, is_verdict: bool = False
    ) -> None:
        if not callable(step):
            raise TypeError(f"expected an async function of an item, got {step!r}")
        # What the loop awaits, and in which way; and the same as a step that gives an item.
        self.direct: AsyncStep = step if inspect.iscoroutinefunction(step) else _awaiting(step)
        self.condition = AWAITED_VERDICT if is_verdict else AWAITED
        self.step: AsyncStep = _keeping(self.direct) if is_verdict else self.direct


def _keeping(predicate: AsyncStep) -> AsyncStep:
    async def keep(item: Any) -> Any:
        return item if await predicate(item) else Emission(())

    return keep


def _awaiting(step: Callable[[Any], Awaitable[Any]]) -> AsyncStep:
    """A coroutine function from a function that gives any awaitable."""

    async def awaiting(item: Any) -> Any:
        return await step(item)

    return awaiting


if TYPE_CHECKING:
    from typing_extensions import TypeAliasType

    Stage = TypeAliasType(
        "Stage", Generator[B | Emission | None, A, B | Emission | None], type_params=(A, B)
    )
    """The type of an operator's generator from items A to items B."""
    AnyStage: TypeAlias = GeneratorType[Any, Any, Any] | Hooks[Any, Any] | None
    """What a chain holds for a stage; None for one that has met its end."""
else:
    Stage = Generator
    AnyStage = object
