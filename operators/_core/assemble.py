"""From a list of operators to one stream."""

from __future__ import annotations

import contextvars
import operator
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, cast

import reactivex
from reactivex import Observable

from operators._core.aio import AioOperator, AioSegment, is_aio_operator
from operators._core.fusion import Enter, FusedRun, context_of
from operators._core.operator import NotAnOperator, Operator, PullingOperator
from operators._core.pulled import PulledSegment
from operators._core.release import Release, Segment
from operators._core.rx import RxOperator, RxSegment, applied

__all__ = ("AnyOperator", "Boundary", "check_operators", "fuse")

AnyOperator: TypeAlias = Operator[Any, Any] | RxOperator | AioOperator
"""What may stand in a pipeline's list."""

R = TypeVar("R", bound=FusedRun[Any])


class Boundary(NamedTuple):
    """What stands between two runs: an operator that pulls for itself, or neighbours of one library."""

    begin: int
    end: int
    kind: Literal["pulling", "reactivex", "aioreactive"]


class CheckedOperators(tuple["AnyOperator", ...]):  # noqa: SLOT001 - a tuple can't have any
    """
    Operators that were checked once, and need no more checks.

    Attributes:
        boundaries: What stands between runs, in order.
    """

    boundaries: list[Boundary]


def check_operators(operators: Iterable[object]) -> CheckedOperators:
    """
    Return *operators* as a tuple when they may all stand in a pipeline.

    Raises:
        NotAnOperator: Names the first that can't.
    """
    if type(operators) is CheckedOperators:
        return operators
    checked: CheckedOperators = CheckedOperators(cast("Iterable[AnyOperator]", operators))
    boundaries = checked.boundaries = []
    for place, item in enumerate(checked):
        found = None if type(item) is Operator else _boundary(place, item)
        if found is None:
            continue
        before = boundaries[-1] if boundaries else found
        if found.kind != "pulling" and (before.kind, before.end) == (found.kind, place):
            boundaries[-1] = before._replace(end=found.end)
        else:
            boundaries.append(found)
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

    Neighbouring operators of ours become one loop, asynchronous steps included. One that pulls for
    itself stands between loops, and so do neighbours of ``reactivex`` or of ``aioreactive``, which
    are applied as in ``source.pipe(...)``; what these mean for the pull is told in
    ``docs/architecture.md``, and shown by :meth:`OperatorList.draw`.

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
        if checked.boundaries and on_end is not None:
            on_end = _Last(on_end, 1 + len(checked.boundaries))
        for boundary in checked.boundaries:
            ours = cast("Sequence[Operator[Any, Any]]", checked[begin : boundary.begin])
            before = enter(
                partial(FusedRun[Any], context=context_of(enter), on_end=on_end), current, ours
            )
            current = before
            runs.append(before)
            current = enter(_segment, before, checked, boundary, context_of(enter))
            begin = boundary.end
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
    before: FusedRun[Any],
    checked: CheckedOperators,
    boundary: Boundary,
    context: contextvars.Context | None,
) -> Segment:
    """Make the part between two runs."""
    begin, end, kind = boundary
    if kind == "pulling":
        return PulledSegment(before, cast("PullingOperator[Any, Any]", checked[begin]).generate)
    if kind == "aioreactive":
        operators = cast("Sequence[AioOperator]", checked[begin:end])
        return AioSegment(before, operators, begin, context)
    return RxSegment(before, cast("Sequence[RxOperator]", checked[begin:end]), begin, context)


def _boundary(place: int, item: object) -> Boundary | None:
    """Check one that is no plain operator of ours; return what stands between runs by it, if anything."""
    if isinstance(item, Operator):
        return Boundary(place, place + 1, "pulling") if isinstance(item, PullingOperator) else None
    if not callable(item):
        raise NotAnOperator(
            f"pipeline[{place}] is no operator: expected one of ours, of reactivex or of aioreactive, "
            f"got {type(item).__name__} {item!r}"
        )
    if is_aio_operator(item):
        return Boundary(place, place + 1, "aioreactive")
    applied(cast("RxOperator", item), _NEVER, f"pipeline[{place}]")
    return Boundary(place, place + 1, "reactivex")


_NEVER: Observable[Any] = reactivex.never()
