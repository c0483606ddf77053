"""From a list of operators to one stream."""

from __future__ import annotations

import contextvars
import operator
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import reactivex
from reactivex import Observable

from operators._aio import AioOperator, AioSegment, is_aio_operator
from operators._foreign import RxOperator, RxSegment, applied
from operators._fusion import Enter, FusedRun, context_of
from operators._operator import NotAnOperator, Operator, PullingOperator
from operators._pulled import PulledSegment
from operators._release import Release, Segment

__all__ = ("AnyOperator", "check_operators", "fuse")

AnyOperator: TypeAlias = Operator[Any, Any] | RxOperator | AioOperator
"""What may stand in a pipeline's list."""

R = TypeVar("R", bound=FusedRun[Any])


def check_operators(operators: Iterable[object]) -> list[AnyOperator]:
    """
    Return *operators* as a list when they may all stand in a pipeline.

    Raises:
        NotAnOperator: Names the first that can't.
    """
    checked = list(operators)
    for place, item in enumerate(checked):
        _check(place, item)
    return cast("list[AnyOperator]", checked)


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
    try:
        operators = check_operators(operators)
        ours: list[Operator[Any, Any]] = []
        for place, item in enumerate(operators):
            if isinstance(item, Operator) and not isinstance(item, PullingOperator):
                ours.append(cast("Operator[Any, Any]", item))
            else:
                current = enter(_segment, current, ours, item, place, context_of(enter))
                ours = []
        return enter(partial(stream, current, ours, enter=enter, on_end=on_end))
    except BaseException:
        enter(Release(current, None))
        raise


def _segment(
    source: AsyncIterator[Any],
    ours: list[Operator[Any, Any]],
    item: AnyOperator,
    place: int,
    context: contextvars.Context | None,
) -> Segment:
    """A part that is not fused with what is before it, and the run before it."""
    before = FusedRun[Any](source, ours, context=context)
    if isinstance(item, PullingOperator):
        return PulledSegment(before, cast("PullingOperator[Any, Any]", item).generate)
    try:
        if is_aio_operator(item):
            return AioSegment(before, cast("AioOperator", item), f"pipeline[{place}]", context)
        return RxSegment(before, cast("RxOperator", item), f"pipeline[{place}]", context)
    except BaseException:
        before.close()
        raise


def _check(place: int, item: object) -> None:
    if not callable(item):
        raise NotAnOperator(
            f"pipeline[{place}] is no operator: expected one of ours, of reactivex or of aioreactive, "
            f"got {type(item).__name__} {item!r}"
        )
    if not isinstance(item, Operator) and not is_aio_operator(item):
        applied(cast("RxOperator", item), _NEVER, f"pipeline[{place}]")


_NEVER: Observable[Any] = reactivex.never()
