"""Judge each request by its latency targets, and count it in sliding windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from operators._core.arguments import CHECKED, AtLeast
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Callbacks
from operators._outcome import Outcome
from operators._raw_chunk import has_content, tokens_in
from operators._slo._request import SloRequest
from operators._slo._tally import Key, check_key
from operators._slo._windows import SloWindows
from operators.token_times import TokenTimes

__all__ = ("slo",)

Target: TypeAlias = Annotated[float, AtLeast(0, "ms", above=True)]


def _check(ttft_ms: float | None, itl_ms: float | None, *, key: object, **_: object) -> None:
    if ttft_ms is None and itl_ms is None:
        raise ValueError("slo: expected ttft_ms or itl_ms, got neither")
    check_key("slo: key", key)


@same_type
@callbacks(check=_check)
def slo(
    ttft_ms: Target | None,
    itl_ms: Target | None,
    *,
    windows: Annotated[SloWindows, CHECKED],
    key: Key,
    itl_statistic: Literal["mean", "p99"] = "mean",
    scope: StreamScope | None = None,
) -> Callbacks[Any, Any] | None:
    """
    Judge a request by its latency targets when it ends, and count it in *windows* under *key*.

    Measures goodput: a request is good if it was served, with the first token within *ttft_ms* and
    at most *itl_ms* between tokens. In a pipeline it may be anywhere, and the outcome is that of
    what the consumer received (row O2); elsewhere it must come after every operator that can fail
    the stream. Items pass unchanged. One frame is one second, the targets are 3 s and 2 s, ``T`` is
    a terminal::

        source   ---a-b-T|
        result   ---a-b-T|
        counted  --------good

    Each request has one of four outcomes:

    - *good*: served within the targets. A single token has no latency between tokens; a request
      without tokens must end within *ttft_ms*.
    - *slow*: served, or cancelled, after a target was missed; the wait for the next token counts.
    - *failed*: the stream failed, its terminal says ``is_error``, or it ended without one.
    - *cancelled*: dropped, or finished as ``cancelled``, before a target was missed. Not counted in
      goodput.

    If the pipeline records times, they are used, and items bypass the operator. Otherwise times are
    measured here, from an item or its ``data``, at a call and a clock read per item.

    Args:
        ttft_ms: Target for the time to the first token, in ms; None for none. Includes the set-up
            in a pipeline that records times (row F2).
        itl_ms: Target for the latency between tokens, in ms; None for none.
        windows: The windows to count in.
        key: The key to count under: a model, or a tuple such as model and tenant.
        itl_statistic: The figure to compare with *itl_ms*: the mean over the request's tokens, or
            their 99th percentile (row F5). Requests that did not finish are judged by the mean.
        scope: The scope of the stream; filled in by a pipeline.

    Raises:
        ValueError: No target is given, one is out of range, or *itl_statistic* is invalid; when the
            operator is made.
        TypeError: *key* is neither a string nor a tuple of strings; when the operator is made.

    Phase: anywhere; outside a pipeline after every operator that can fail the stream.
    Errors: source errors pass unchanged, after the request was counted.
    On dispose: the request is counted.

    >>> import reactivex
    >>> from operators import SloWindows
    >>> from rx_backend import LLMEngineOutput
    >>> windows = SloWindows(window_s=60, bucket_s=5)
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop())
    >>> _ = chunks.pipe(slo(500, 50, windows=windows, key="llama")).subscribe()
    >>> figures = windows.snapshot()["llama"]
    >>> figures.good, figures.tokens, figures.goodput, figures.ttft.count
    (1, 1, 1.0, 1)
    """
    note = None
    if scope is not None and (scope.times.is_timed or scope.recording):
        times = scope.times
    else:
        times, note = _own_record(windows, scope)
    request = SloRequest(key, times, ttft_ms, itl_ms, itl_statistic == "p99")
    windows.opened(request)
    if scope is not None:

        def tell(outcome: Outcome) -> None:
            ended = request.ended(outcome.finish_reason, dropped=outcome.is_dropped)
            windows.closed(request, ended)

        scope.outcome.subscribe(tell)
        return None if note is None else Callbacks(note)

    def end(failure: Exception | None, dropped: bool) -> None:
        reason = None if failure is not None else times.finish_reason
        windows.closed(request, request.ended(reason, dropped=dropped))

    return Callbacks(note, on_end=end)


def _own_record(
    windows: SloWindows, scope: StreamScope | None
) -> tuple[TokenTimes, Callable[[Any], Any]]:
    """Return a record of the operator, and the function that fills it."""
    if scope is None:
        times = TokenTimes(windows.clock)
    else:
        times = TokenTimes(scope.clock, answers=scope.answers)
    times.started = times.clock()

    def note(item: Any) -> Any:
        chunk = getattr(item, "data", item)
        if has_content(chunk):
            times.record_content(tokens_in(chunk))
        if getattr(chunk, "finish_reason", None) is not None:
            times.record_terminal(chunk)
        return item

    return times, note
