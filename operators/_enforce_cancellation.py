"""Cut off an engine that ignores a stop."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any, TypeAlias, TypeVar

import reactivex
from reactivex import Observable

from operators._answers import Answers, OpenAnswers, answers_of
from operators._core.arguments import CHECKED, AtLeast
from operators._core.fusion import FusedRun
from operators._core.operator import operator, same_type
from operators._core.own_copy import own_copy
from operators._core.scope import StreamScope
from operators._core.stage import StageResult, emit
from operators._lazy_timer import LazyTimer
from operators._raw_chunk import answer_in, is_terminal

__all__ = ("enforce_cancellation",)

A = TypeVar("A")

Signal: TypeAlias = Annotated[Observable[Any], CHECKED]


@same_type
@operator
async def enforce_cancellation(
    source: FusedRun[A],
    grace_s: Annotated[float, AtLeast(0, "seconds")],
    terminal: Callable[[], A],
    *,
    stop: Signal | None = None,
    kill: Signal | None = None,
    answers: Answers | None = None,
    scope: StreamScope | None = None,
) -> AsyncGenerator[A | StageResult]:
    """
    End a stream with our own terminal when its engine does not end it after a stop.

    An engine that has not ended *grace_s* after a stop (row E4) is closed, whether it is silent or
    keeps sending chunks, and whether the consumer pulls or not; then ``T`` is the last item, or the
    last one of each answer that is still open. Here the grace is 3 seconds, which are frames::

        source  -a-b---c---d-|
        stop    -----s
        result  -a-b---c(T|)

    The engine's own end counts if it comes in time; no timer is set before a stop. The grace period
    starts at the stop, or at the first pull if that is later. An item that becomes ready in the
    same loop iteration in which the grace period ends is still handed out. It belongs at the start
    of the standard pipeline, which aborts the engine at the stop itself::

        enforced = enforce_cancellation(5.0, LLMEngineOutput.cancelled)
        EngineAdapter(engine, pipeline=standard_pipeline.insert_before("validate_chunks", enforced))

    In decode mode an engine must not be cut off before its first token (row A4). There, start the
    grace period after both:
    ``stop=abort_gate(scope.stopped, scope.first_token, reactivex.never())``.

    Args:
        grace_s: How long the engine may continue after the stop, in seconds, at least 0.
        terminal: Makes the last item of an answer; from the second answer on it gets its ``index``.
        stop: Emits when the request is stopped. It must replay, because the operator subscribes at
            the first pull.
        kill: Emits when the engine is to be cut off at once.
        answers: How many answers the request has, at least 1; by default from the scope, else 1.
        scope: The scope of the stream; filled in by a pipeline. Its signals are the defaults.

    Raises:
        ValueError: *grace_s* or *answers* is out of range; when the operator is made.
        TypeError: *terminal*, *stop* or *kill* has the wrong type; when the operator is made.

    Phase: anywhere; first of the chunks, where it sees the engine's own end.
    Errors: source errors pass unchanged; those of an engine that is being cut off are dropped. What
        *terminal* raises fails the stream. The terminal waits for an engine that cleans up.
    On dispose: the timer is cancelled.

    >>> import asyncio
    >>> from operators import fuse
    >>> from rx_backend import LLMEngineOutput, RequestContext
    >>> from rx_backend.testing import run_virtual
    >>> async def deaf_engine():
    ...     while True:
    ...         yield LLMEngineOutput.token(7)
    ...         await asyncio.sleep(2)
    >>> async def main():
    ...     context = RequestContext()
    ...     context.stop_generating()
    ...     enforced = enforce_cancellation(
    ...         3.0, LLMEngineOutput.cancelled, stop=context.stopped()
    ...     )
    ...     async for chunk in fuse(deaf_engine(), [enforced]):
    ...         print(chunk.token_ids, chunk.finish_reason)
    >>> run_virtual(main())
    [7] None
    [7] None
    [] cancelled
    """
    stop, kill = _signals(stop, kill, scope)
    open_answers = OpenAnswers(answers_of(answers, scope))
    is_cut = False

    def cut() -> None:
        nonlocal is_cut
        # An engine that has ended by itself is only being released.
        if not open_answers.are_over and not source.ended:
            is_cut = True
            source.close()

    def cut_in(seconds: float) -> None:
        due = timer.clock() + seconds
        # A later signal does not extend an earlier deadline.
        if due < timer.due:
            timer.set(due)

    timer = LazyTimer(cut, source.own_context)
    signals = [stop.subscribe(lambda _: cut_in(grace_s)), kill.subscribe(lambda _: cut_in(0.0))]
    try:
        async for item in source:
            # If neither engine nor consumer ever waits, no timer fires.
            is_over = timer.due < math.inf and timer.due <= timer.clock()
            if is_terminal(item):
                open_answers.end(answer_in(item))
            yield item
            if is_over:
                cut()
        if is_cut:
            yield emit(*(_of_answer(terminal(), answer) for answer in open_answers.left))
    finally:
        timer.cancel()
        for signal in signals:
            signal.dispose()


def _of_answer(item: Any, answer: int) -> Any:
    """Set the index of a terminal's answer; the first answer's needs none."""
    if not answer:
        return item
    own = own_copy(item)
    getattr(own, "data", own).index = answer
    return own


def _signals(
    stop: Observable[Any] | None, kill: Observable[Any] | None, scope: StreamScope | None
) -> tuple[Observable[Any], Observable[Any]]:
    """Return the given signals, else those of the scope."""
    if scope is not None:
        stop, kill = stop or scope.stopped, kill or scope.killed
    if stop is None:
        raise TypeError("enforce_cancellation: stop: expected an Observable, or a scope")
    return stop, reactivex.never() if kill is None else kill
