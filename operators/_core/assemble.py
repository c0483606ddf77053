"""From a list of operators to one stream."""

from __future__ import annotations

import contextvars
import operator
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import reactivex
from reactivex import Observable

from operators._core.aio import AioOperator, AioSegment, is_aio_operator
from operators._core.fusion import Enter, FusedRun, context_of
from operators._core.operator import NotAnOperator, Operator, PullingOperator
from operators._core.pulled import PulledSegment
from operators._core.release import Release, Segment
from operators._core.rx import RxOperator, RxSegment, applied

__all__ = ("AnyOperator", "check_operators", "fuse")

AnyOperator: TypeAlias = Operator[Any, Any] | RxOperator | AioOperator
"""What may stand in a pipeline's list."""

R = TypeVar("R", bound=FusedRun[Any])


class CheckedOperators(tuple["AnyOperator", ...]):  # noqa: SLOT001 - a tuple can't have any
    """
    Operators that were checked once, so that nobody has to check them again.

    Attributes:
        apart: The places of those that stand between runs: not ours, or pulling for themselves.
    """

    apart: list[int]


def check_operators(operators: Iterable[object]) -> CheckedOperators:
    """
    Return *operators* as a tuple when they may all stand in a pipeline.

    Raises:
        NotAnOperator: Names the first that can't.
    """
    if type(operators) is CheckedOperators:
        return operators
    checked: CheckedOperators = CheckedOperators(cast("Iterable[AnyOperator]", operators))
    checked.apart = []
    for place, item in enumerate(checked):
        if type(item) is not Operator and _stands_apart(place, item):
            checked.apart.append(place)
    return checked


def fuse(
    source: AsyncIterator[Any],
    operators: Iterable[AnyOperator],
    *,
    enter: Enter = operator.call,
    on_end: Callable[[], None] | None = None,
    stream: Callable[..., R] = FusedRun[Any],
) -> R:
    """
    Make one pulled stream of a source and a list of operators.

    Neighbouring operators of ours become one loop, asynchronous steps included; one that pulls for
    itself, and one of ``reactivex`` or ``aioreactive``, stands between loops; what the latter mean
    for the pull is told in ``docs/architecture.md``, and shown by :meth:`OperatorList.draw`.

    Args:
        source: An asynchronous iterator; the stream owns it, also when this function raises.
        operators: Operators in order, ours, ``reactivex`` and ``aioreactive`` ones mixed freely.
        enter: Runs source and operators in a context, as ``contextvars.Context.run`` does.
        on_end: Called once when the stream made here is released, whichever way it ends.
        stream: The class to make.

    Raises:
        NotAnOperator: An entry of the list is no operator.
        Exception: What an operator's set-up raised.

    >>> import asyncio
    >>> from operators import fuse, until_terminal
    >>> from rx_backend import LLMEngineOutput
    >>> async def engine():
    ...     yield LLMEngineOutput(token_ids=[7])
    ...     yield LLMEngineOutput.stop()
    ...     yield LLMEngineOutput(token_ids=[8])
    >>> async def main():
    ...     return [chunk.token_ids async for chunk in fuse(engine(), [until_terminal()])]
    >>> asyncio.run(main())
    [[7], []]
    """
    current = source
    runs: list[FusedRun[Any]] = []
    try:
        checked = check_operators(operators)
        begin = 0
        if checked.apart and on_end is not None:
            on_end = _Last(on_end, 1 + len(checked.apart))
        for place in checked.apart:
            ours = cast("Sequence[Operator[Any, Any]]", checked[begin:place])
            before = enter(
                partial(FusedRun[Any], context=context_of(enter), on_end=on_end), current, ours
            )
            current = before
            runs.append(before)
            current = enter(_segment, before, checked[place], place, context_of(enter))
            begin = place + 1
        return enter(partial(stream, current, checked[begin:], enter=enter, on_end=on_end))
    except BaseException as error:
        for run in runs:
            enter(run.abandon, error)
        enter(Release(current, None))
        raise


class _Last:
    """Calls a function when it was called for every part: one may outlive those behind it."""

    __slots__ = ("_function", "_left")

    def __init__(self, function: Callable[[], None], parts: int) -> None:
        self._function = function
        self._left = parts

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self._function()


def _segment(
    before: FusedRun[Any], item: AnyOperator, place: int, context: contextvars.Context | None
) -> Segment:
    """A part that is not fused with the run before it."""
    if isinstance(item, PullingOperator):
        return PulledSegment(before, cast("PullingOperator[Any, Any]", item).generate)
    if is_aio_operator(item):
        return AioSegment(before, cast("AioOperator", item), f"pipeline[{place}]", context)
    return RxSegment(before, cast("RxOperator", item), f"pipeline[{place}]", context)


def _stands_apart(place: int, item: object) -> bool:
    """Check one that is no plain operator of ours; gives whether it stands between runs."""
    if isinstance(item, Operator):
        return isinstance(item, PullingOperator)
    if not callable(item):
        raise NotAnOperator(
            f"pipeline[{place}] is no operator: expected one of ours, of reactivex or of aioreactive, "
            f"got {type(item).__name__} {item!r}"
        )
    if not is_aio_operator(item):
        applied(cast("RxOperator", item), _NEVER, f"pipeline[{place}]")
    return True


_NEVER: Observable[Any] = reactivex.never()
