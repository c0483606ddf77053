"""Inter-token latency: one record per request, and live sliding windows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from operators._chunk import IS_TERMINAL, Chunk, Clock, has_content
from operators._core.arguments import AtLeast, Seconds
from operators._core.operator import callbacks, same_type
from operators._core.stage import Hooks, Stage, Visit, condition, emit
from operators.token_times import LatencyFigures, TokenTimes, latency_figures

__all__ = ("TokenRecorder", "itl_window", "sliding_itl")

C = TypeVar("C", bound=Chunk)


@same_type
@callbacks(takes="chunks")
def itl_window(
    times: TokenTimes,
    on_end: Callable[[TokenTimes], None] | None = None,
) -> Hooks[Any, Any]:
    """
    Record when each chunk with content arrives; pass every chunk through unchanged (rows F1, F3,
    F5).

    Content means token ids or, from engines without ids, text or other parts. The finish reason and
    usage of each answer's terminal are recorded too. A chunk with content costs one clock read;
    figures are computed on demand. One frame is one second, ``h`` is a handshake::

        source  -h-a--b-c-|
        result  -h-a--b-c-|
        gaps    ------3000.0, 2000.0

    Args:
        times: The record, one per request; it may be read at any time.
        on_end: Called with the record when the stream ends, including drops.

    Phase: chunks; before operators that read *times*.
    Errors: source errors pass unchanged.
    On dispose: *on_end* is called with what was recorded so far.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> ticks = iter([0.0, 1.0, 1.02])
    >>> times = TokenTimes(clock=lambda: next(ticks))
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.token(8))
    >>> _ = chunks.pipe(itl_window(times)).subscribe()
    >>> times.ttft_ms, [round(gap) for gap in times.itl_ms()]
    (1000.0, [20])
    """
    return _Window(times, on_end)


class TokenRecorder(Hooks[C, C]):
    """
    The body that records when tokens arrive, or how many.

    Args:
        times: The record.
        timed: Whether to record times, which reads the clock.
        counted: Whether to count tokens if no times are recorded.
    """

    __slots__ = ("step", "values", "visit")

    def __init__(self, times: TokenTimes, *, timed: bool, counted: bool) -> None:
        times.is_counted = timed or counted
        if timed:
            clock = times.clock
            times.started = clock()
            times.is_timed = True
            self.step = times.record
            self.visit: Visit = _NOT_NOTED
            self.values: tuple[Any, ...] = (times.times.append, clock)
        elif counted:
            self.step, self.visit, self.values = times.count, _NOT_COUNTED, (times.count_one,)
        else:
            self.step, self.visit, self.values = times.record_terminal_only, _TERMINALS, ()


# The condition itself records or counts a chunk of one token; other chunks, and terminals, visit.
_NOT_NOTED = condition(
    f"len(item.token_ids) != 1 or note(clock()) or {IS_TERMINAL}", ("note", "clock")
)
_NOT_COUNTED = condition(f"len(item.token_ids) != 1 or count() or {IS_TERMINAL}", ("count",))
_TERMINALS = condition(IS_TERMINAL)


class _Window(TokenRecorder[C]):
    """Fills a record, and passes it to a function at the end."""

    __slots__ = ("_on_end", "_times")

    handles_end = True

    def __init__(self, times: TokenTimes, on_end: Callable[[TokenTimes], None] | None) -> None:
        super().__init__(times, timed=True, counted=True)
        self._times = times
        self._on_end = on_end

    def on_end(self, _failure: Exception | None, _dropped: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Pass on the record."""
        if self._on_end is not None:
            self._on_end(self._times)


def _check(*, count: int | None = None, window_s: float | None = None, **_: object) -> None:
    if count is None and window_s is None:
        raise ValueError("sliding_itl: expected count or window_s, got neither")


@callbacks(takes="chunks", check=_check)
def sliding_itl(
    *,
    count: Annotated[int, AtLeast(1, "gap")] | None = None,
    window_s: Seconds | None = None,
    clock: Clock = time.monotonic,
) -> Stage[Chunk, LatencyFigures]:
    """
    Turn chunks into live inter-token-latency figures over a sliding window (rows F3, F4).

    Emits a :class:`LatencyFigures` for each chunk with content except the first. One frame is one
    second, ``S`` are the figures of the last gaps::

        source  -a--b-c-|
        result  ----S-S-|

    Args:
        count: Size of the window in gaps.
        window_s: Size of the window in seconds: gaps that ended within it. With both, whichever
            limit is reached first removes a gap.
        clock: Monotonic clock, in seconds.

    Raises:
        ValueError: Neither size is given, or one is not positive; when the operator is made.

    Phase: chunks; last, because it turns them into figures.
    Errors: source errors pass unchanged.
    On dispose: nothing.

    >>> import reactivex
    >>> from rx_backend import LLMEngineOutput
    >>> ticks = iter([0.0, 0.01, 0.03])
    >>> window = sliding_itl(count=10, clock=lambda: next(ticks))
    >>> chunks = reactivex.of(*[LLMEngineOutput.token(n) for n in range(3)])
    >>> _ = chunks.pipe(window).subscribe(lambda figures: print(figures.count, figures.max_ms))
    1 10.0
    2 20.0
    """
    ends: deque[float] = deque(maxlen=count)
    gaps_ms: deque[float] = deque(maxlen=count)
    before: float | None = None
    chunk = yield
    while True:
        figures = None
        if has_content(chunk):
            now = clock()
            if before is not None:
                ends.append(now)
                gaps_ms.append((now - before) * 1000.0)
                while window_s is not None and ends[0] < now - window_s:
                    ends.popleft()
                    gaps_ms.popleft()
                figures = latency_figures(gaps_ms)
            before = now
        chunk = yield emit() if figures is None else figures
