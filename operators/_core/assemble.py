"""From a list of operators to one stream."""

from __future__ import annotations

import asyncio
import contextvars
import operator
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import reactivex
from reactivex import Observable

from operators._core.aio import AioOperator, AioSegment, is_aio_operator
from operators._core.fusion import FusedRun
from operators._core.operator import NotAnOperator, Operator, PullingOperator
from operators._core.rx import RxOperator, RxSegment, applied
from operators._core.segment import Segment, close_quietly
from operators._core.tasks import start_task

__all__ = ("AnyOperator", "Plan", "fuse", "plan_of")

AnyOperator: TypeAlias = Operator[Any, Any] | RxOperator | AioOperator
"""What may stand in a pipeline's list."""

R = TypeVar("R", bound=FusedRun[Any])


class SegmentFactory(Protocol):
    """Makes the part behind a run, for one stream."""

    def __call__(
        self, before: FusedRun[Any], scope: Any, context: contextvars.Context | None, /
    ) -> Segment:
        """Make it."""
        ...


class Plan:
    """
    A list of operators, checked and cut into parts, once for all streams.

    Args:
        operators: Operators of any kind, in order.
        where: What the list is called, for errors.

    Attributes:
        operators: The same.
        runs: What is fused; one more than there are segments.
        segments: What stands between two runs.

    Raises:
        NotAnOperator: Names the first that is no operator.
    """

    __slots__ = ("operators", "runs", "segments")

    def __init__(self, operators: Iterable[object], where: str = "pipeline") -> None:
        self.operators: tuple[AnyOperator, ...] = tuple(cast("Iterable[AnyOperator]", operators))
        self.runs: list[tuple[Operator[Any, Any], ...]] = []
        self.segments: list[SegmentFactory] = []
        begin = 0
        for place, item in enumerate(self.operators):
            segment = _segment(f"{where}[{place}]", item)
            if segment is not None:
                self.runs.append(cast("tuple[Operator[Any, Any], ...]", self.operators[begin:place]))
                self.segments.append(segment)
                begin = place + 1
        self.runs.append(cast("tuple[Operator[Any, Any], ...]", self.operators[begin:]))


def plan_of(operators: Iterable[object], where: str = "pipeline") -> Plan:
    """Return the plan of a list; a plan comes back as it is."""
    return operators if isinstance(operators, Plan) else Plan(operators, where)


def fuse(
    source: AsyncIterator[Any],
    operators: Iterable[AnyOperator] | Plan,
    *,
    own_context: contextvars.Context | None = None,
    scope: object = None,
    on_end: Callable[[bool], None] | None = None,
    stream: Callable[..., R] = FusedRun[Any],
) -> R:
    """
    Make one pulled stream of a source and a list of operators.

    Neighbouring operators of ours become one loop; one that pulls for itself, and those of
    ``reactivex`` or ``aioreactive``, stand between loops. What the latter mean for the pull is told
    in ``docs/architecture.md``, and shown by :meth:`Pipeline.draw`.

    Args:
        source: An asynchronous iterator; the stream owns it, also when this function raises.
        operators: Operators in order, ours, ``reactivex`` and ``aioreactive`` ones mixed freely.
        own_context: The context to run source and operators in; the consumer's by default.
        scope: Handed to operators with a parameter ``scope``.
        on_end: Called once when the stream is over, with whether it was dropped.
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
        plan = plan_of(operators)
        if plan.segments:
            enter = operator.call if own_context is None else own_context.run
            for group, segment in zip(plan.runs, plan.segments, strict=False):
                before = enter(_inner_run, current, group, own_context, scope)
                current = before
                current = enter(segment, before, scope, own_context)
        return stream(
            current, plan.runs[-1], own_context=own_context, scope=scope, on_end=on_end
        )
    except BaseException:
        _close(current, own_context)
        raise


def _inner_run(
    source: AsyncIterator[Any],
    operators: Sequence[Operator[Any, Any]],
    own_context: contextvars.Context | None,
    scope: object,
) -> FusedRun[Any]:
    return FusedRun(source, operators, own_context=own_context, enters=False, scope=scope)


def _close(source: AsyncIterator[Any], own_context: contextvars.Context | None) -> None:
    if isinstance(source, Segment):
        source.close()
    elif hasattr(source, "aclose"):
        closing = close_quietly(source, "closing the source of a stream failed")
        start_task(closing, asyncio.get_running_loop(), own_context)


def _segment(where: str, item: object) -> SegmentFactory | None:
    """Check what stands at a place of a list; return its segment, None if it is fused."""
    if isinstance(item, PullingOperator):
        pulling = cast("PullingOperator[Any, Any]", item)
        return lambda before, scope, _context: pulling.segment(before, scope)
    if isinstance(item, Operator):
        return None
    if not callable(item):
        raise NotAnOperator(
            f"{where} is no operator: expected one of ours, of reactivex or of aioreactive, "
            f"got {type(item).__name__} {item!r}"
        )
    if is_aio_operator(item):
        aio = cast("AioOperator", item)
        return lambda before, _scope, context: AioSegment(before, aio, where, context)
    rx = cast("RxOperator", item)
    applied(rx, _NEVER, where)
    return lambda before, _scope, context: RxSegment(before, rx, where, context)


_NEVER: Observable[Any] = reactivex.never()
