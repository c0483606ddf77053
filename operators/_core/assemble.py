"""From a list of operators to one stream."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple, TypeAlias, cast, overload

import reactivex
from reactivex import Observable
from typing_extensions import TypeVar

from operators._core.aio import AioOperator, AioSegment, is_aio_operator
from operators._core.foreign import ForeignSegment, applied
from operators._core.fusion import FusedRun
from operators._core.loop_streams import streams_of
from operators._core.operator import (
    NotAnOperator,
    OnWholeStreams,
    Operator,
    PullingOperator,
    Transform,
)
from operators._core.release import StreamObserver
from operators._core.rx import RxOperator, RxSegment
from operators._core.segment import Segment, close_quietly
from operators._core.tasks import start_release

__all__ = ("AnyOperator", "Boundary", "Plan", "fuse", "make_stream", "plan_of")

AnyOperator: TypeAlias = Operator[Any, Any] | RxOperator | AioOperator
"""What a pipeline's list may contain."""

A = TypeVar("A")
B = TypeVar("B", default=Any)
R = TypeVar("R", bound=FusedRun[Any])


class Boundary(NamedTuple):
    """
    What is between two runs.

    Attributes:
        segment: The segment of the operators' library; None for an async generator operator.
        operators: One async generator operator, or adjacent ones of one library.
        where: The list's name, and the first operator's position.
    """

    segment: type[ForeignSegment[Any]] | None
    operators: tuple[Any, ...]
    where: tuple[str, int]


class Plan:
    """
    A list of operators, validated and divided into runs, once for all streams.

    Args:
        operators: Operators of any kind, in order.
        where: The list's name in error messages.

    Attributes:
        operators: The operators, in order.
        runs: The fused runs; one more than there are boundaries.
        boundaries: What is between the runs.

    Raises:
        NotAnOperator: An entry is not an operator, or *operators* is not a list; names it.
    """

    def __init__(self, operators: Iterable[object], where: str = "pipeline") -> None:
        if not isinstance(cast("object", operators), Iterable):
            raise NotAnOperator(f"{where}: expected a list of operators, got {operators!r}")
        self.operators: tuple[AnyOperator, ...] = tuple(cast("Iterable[AnyOperator]", operators))
        self.boundaries: list[Boundary] = []
        run: list[Operator[Any, Any]] = []
        runs = [run]
        for place, item in enumerate(self.operators):
            found = _boundary((where, place), item)
            if found is None:
                run.append(cast("Operator[Any, Any]", item))
                continue
            before = self.boundaries[-1] if self.boundaries and not run else None
            if before is not None and before.segment is found.segment is not None:
                # Adjacent ones stay together: live observables may pass between them (row O3).
                self.boundaries[-1] = before._replace(operators=(*before.operators, item))
                continue
            self.boundaries.append(found)
            run = []
            runs.append(run)
        self.runs = [tuple(run) for run in runs]


def plan_of(operators: Iterable[object] | Plan) -> Plan:
    """Return the plan of a list; a plan is returned unchanged."""
    return operators if isinstance(operators, Plan) else Plan(operators)


@overload
def fuse(
    source: AsyncIterator[A],
    operators: Iterable[Transform[A, B]],
    *,
    own_context: contextvars.Context | None = None,
    scope: object = None,
) -> FusedRun[B]: ...
@overload
def fuse(
    source: AsyncIterator[Any],
    operators: Iterable[AnyOperator] | Plan,
    *,
    own_context: contextvars.Context | None = None,
    scope: object = None,
) -> FusedRun[Any]: ...
def fuse(
    source: AsyncIterator[Any],
    operators: Iterable[AnyOperator] | Plan,
    *,
    own_context: contextvars.Context | None = None,
    scope: object = None,
) -> FusedRun[Any]:
    """
    Make one pulled stream of a source and a list of operators.

    Adjacent operators of this library become one loop; async generator operators, and those of
    ``reactivex`` or ``aioreactive``, are segments between loops. How the latter affect the pull is
    described in ``docs/architecture.md``, and shown by :meth:`Pipeline.draw`.

    Args:
        source: An asynchronous iterator; the stream owns it, even if this function raises.
        operators: Operators in order: ours, ``reactivex`` and ``aioreactive`` ones, freely mixed.
        own_context: The context to run source and operators in; by default a copy of the current
            one.
        scope: Passed to operators with a parameter ``scope``.

    Returns:
        The stream. Type checkers infer its items from a single operator, or if all operators keep
        the source's type.

    Raises:
        NotAnOperator: An entry of the list is not an operator.
        TypeError: The source is not an asynchronous iterator.
        Exception: Raised by an operator's set-up.

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
    if not hasattr(source, "__anext__"):
        raise TypeError(f"fuse: source: expected an asynchronous iterator, got {source!r}")
    return make_stream(source, operators, FusedRun[Any], own_context=own_context, scope=scope)


def make_stream(
    source: AsyncIterator[Any],
    operators: Iterable[AnyOperator] | Plan,
    stream: Callable[..., R],
    *,
    own_context: contextvars.Context | None = None,
    scope: object = None,
    observer: StreamObserver | None = None,
) -> R:
    """
    Do as :func:`fuse`, for a class derived from `FusedRun`.

    *observer* is notified of items that a drop kept from the consumer, and of the end.
    """
    current: Any = source
    try:
        plan = plan_of(operators)
        # An engine sees its context variables from its last step, whichever task pulls or closes
        # it.
        own_context = contextvars.copy_context() if own_context is None else own_context
        if plan.boundaries:
            enter: Any = own_context.run
            for group, boundary in zip(plan.runs, plan.boundaries, strict=False):
                current = enter(
                    FusedRun, current, group, own_context=own_context, enters=False, scope=scope
                )
                current = enter(_segment, current, boundary, scope)
        made = stream(
            current,
            plan.runs[-1],
            own_context=own_context,
            scope=scope,
            observer=observer,
        )
    except BaseException:
        _close(current, own_context)
        raise
    streams_of(made.event_loop).add(made)
    return made


def _close(source: AsyncIterator[Any], own_context: contextvars.Context | None) -> None:
    if isinstance(source, Segment):
        source.close()
    elif hasattr(source, "aclose"):
        closing = close_quietly(source, "closing the source of a stream failed")
        start_release(closing, asyncio.get_running_loop(), own_context)


def _segment(before: FusedRun[Any], boundary: Boundary, scope: object) -> Segment:
    """Make the segment of a boundary, for one stream."""
    if boundary.segment is None:
        return boundary.operators[0].segment(before, scope)
    return boundary.segment(before, boundary.operators, boundary.where)


def _boundary(where: tuple[str, int], item: object) -> Boundary | None:
    """Validate an entry of a list; return None if it is fused with its neighbours."""
    name, place = where
    if isinstance(item, PullingOperator):
        return Boundary(None, (item,), where)
    if isinstance(item, Operator):
        return None
    if isinstance(item, OnWholeStreams):
        raise NotAnOperator(f"{name}[{place}] can't be part of a pipeline: {item.instead}")
    if not callable(item):
        raise NotAnOperator(
            f"{name}[{place}] is not an operator: expected one of ours, of reactivex or of "
            f"aioreactive, got {type(item).__name__} {item!r}"
        )
    if is_aio_operator(item):
        return Boundary(AioSegment, (item,), where)
    applied(_NEVER, (item,), where)
    return Boundary(RxSegment, (item,), where)


_NEVER: Observable[Any] = reactivex.never()
