"""Report how a stream ended, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from operators._chunk import IS_TERMINAL, Chunk
from operators._core.failures import redacted_exc_info
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Callbacks
from operators._outcome import Outcome, OutcomeTracker
from operators.token_times import TokenTimes

__all__ = ("never", "on_outcome", "watching")

C = TypeVar("C", bound=Chunk)


def never() -> bool:
    """Return False."""
    return False


@same_type
@callbacks()
def on_outcome(
    callback: Callable[[Outcome], object],
    *,
    times: TokenTimes | None = None,
    is_cancelled: Callable[[], bool] = never,
    scope: StreamScope | None = None,
) -> Callbacks[Any, Any] | None:
    """
    Call *callback* once with how the stream ended: by a terminal, an error, or a drop.

    Chunks pass through unchanged. In a pipeline the outcome is that of what the consumer received
    (row O2), wherever the operator is. ``T`` is a terminal::

        source  ---a-b-T|
        result  ---a-b-T|
        called  --------o

    Args:
        callback: Called when the stream has ended, however it ended.
        times: The record of an earlier ``itl_window``, for a stream outside a pipeline.
        is_cancelled: Returns whether the request was asked to stop, for a stream outside a
            pipeline.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        TypeError: An argument has the wrong type; when the operator is made.

    Phase: anywhere; last outside a pipeline.
    Errors: source errors pass unchanged, after *callback*. An exception of *callback* is logged.
    On dispose: *callback* is called; unless the terminal has already passed, the outcome is a drop.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop())
    >>> _ = chunks.pipe(on_outcome(lambda outcome: print(outcome.finish_reason))).subscribe()
    stop
    """
    if scope is not None:
        scope.outcome.subscribe(callback)
        return None
    return watching(callback, times, is_cancelled)


def watching(
    callback: Callable[[Outcome], object],
    times: TokenTimes | None,
    is_cancelled: Callable[[], bool],
) -> Callbacks[Any, Any]:
    """Return the body that decides an outcome without a scope."""
    record = TokenTimes() if times is None else times
    tracker = OutcomeTracker(record)
    if times is None:
        # Nothing was recorded on it.
        tracker.subscribe(lambda outcome: callback(outcome._replace(times=None)))
    else:
        tracker.subscribe(callback)

    def look(terminal: C) -> C:
        record.record_terminal(terminal)
        return terminal

    def end(failure: Exception | None, _dropped: bool) -> None:
        tracker.failure = failure
        was_stopped = False
        try:
            was_stopped = is_cancelled()
        except Exception as error:
            # Notify the observer regardless: a span ends exactly once (row P7).
            _log.error("is_cancelled failed", exc_info=redacted_exc_info(error))
        tracker.end(dropped=not tracker.has_ended(), is_cancelled=was_stopped)

    if times is not None:
        return Callbacks(on_end=end)
    return Callbacks(look, only=IS_TERMINAL, on_end=end)


_log = logging.getLogger(__name__)
