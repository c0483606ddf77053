"""Write what became of a stream on its span, and end the span."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from operators import span_names as names
from operators._chunk import IS_TERMINAL, Chunk
from operators._core.operator import operator
from operators._core.stage import Hooks
from operators.token_times import TokenTimes

__all__ = ("record_span",)

C = TypeVar("C", bound=Chunk)


def _never() -> bool:
    return False


def _type_name(error: Exception) -> str:
    return type(error).__name__


@operator
def record_span(
    span: Span,
    times: TokenTimes | None = None,
    *,
    attributes: bool = True,
    is_cancelled: Callable[[], bool] = _never,
    reason_name: Callable[[Any], str] = str,
    error_kind: Callable[[Exception], str] = _type_name,
) -> Hooks[Any, Any]:
    """
    Write a stream's outcome on *span* when it ends, and end the span (rows P3 to P7).

    Chunks pass through unchanged; nothing is written while tokens flow. ``T`` is a terminal::

        source  ---a-b-T|
        result  ---a-b-T|
        span    -------(finish_reason, figures, end)

    Args:
        span: The request's span. A span that isn't recording costs nothing per chunk.
        times: The record that an ``itl_window`` ahead of this operator fills; its figures are
            written too, and chunks need not visit this operator. Without it, tokens and latency
            are not recorded.
        attributes: False: write no attributes (row P8); a failure still sets the span's status.
        is_cancelled: Whether the request was asked to stop, asked at the end.
        reason_name: A finish reason's text on the span.
        error_kind: A failure's kind on the span, and its status description.

    Errors: source errors pass unchanged, after status ERROR and ``error_kind`` (row P4). A
        terminal whose ``finish_reason`` says ``is_error`` sets status ERROR too (row P6).
    On dispose: unless the terminal has passed already, ``finish_reason`` is ``Dropped`` and the
        status ERROR; an end without a terminal counts as that too (rows P5, P6a).

    >>> import reactivex
    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from rx_backend import LLMEngineOutput
    >>> span = TracerProvider().get_tracer("example").start_span("engine.generate")
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop())
    >>> _ = chunks.pipe(record_span(span)).subscribe()
    >>> dict(span.attributes)
    {'cancelled': False, 'finish_reason': 'stop'}
    """
    if not span.is_recording():
        return Hooks(on_end=lambda _failure, _dropped: span.end())
    outcome = _Outcome(
        span,
        times,
        attributes=attributes,
        is_cancelled=is_cancelled,
        reason_name=reason_name,
        error_kind=error_kind,
    )
    if times is not None:
        return Hooks(on_end=outcome.write)
    return Hooks(outcome.look, only=IS_TERMINAL, on_end=outcome.write)


class _Outcome:
    """What is known of one stream; with thousands open, an object is half the size of closures."""

    __slots__ = (
        "_attributes",
        "_error_kind",
        "_is_cancelled",
        "_reason",
        "_reason_name",
        "_span",
        "_times",
    )

    def __init__(
        self,
        span: Span,
        times: TokenTimes | None,
        *,
        attributes: bool,
        is_cancelled: Callable[[], bool],
        reason_name: Callable[[Any], str],
        error_kind: Callable[[Exception], str],
    ) -> None:
        self._span = span
        self._times = times
        self._attributes = attributes
        self._is_cancelled = is_cancelled
        self._reason_name = reason_name
        self._error_kind = error_kind
        self._reason: Any = None

    def look(self, terminal: C) -> C:
        """The terminal comes by, and there is no record to read its reason from."""
        self._reason = terminal.finish_reason
        return terminal

    def write(self, failure: Exception | None, _dropped: bool) -> None:
        """The stream is at its end."""
        span, reason = self._span, self._reason
        try:
            outcome: dict[str, AttributeValue] = {names.CANCELLED: self._is_cancelled()}
            if self._times is not None:
                reason = self._times.finish_reason
                outcome |= _figures(self._times)
            if failure is not None:
                kind = self._error_kind(failure)
                outcome[names.ERROR_KIND] = kind
                span.set_status(Status(StatusCode.ERROR, kind))
            elif reason is not None:
                outcome[names.FINISH_REASON] = self._reason_name(reason)
                if getattr(reason, "is_error", False):
                    span.set_status(Status(StatusCode.ERROR, self._reason_name(reason)))
            else:
                outcome[names.CANCELLED] = True
                outcome[names.FINISH_REASON] = names.DROPPED
                span.set_status(Status(StatusCode.ERROR, names.DROPPED_STATUS))
            if self._attributes:
                span.set_attributes(outcome)
        finally:
            span.end()


def _figures(times: TokenTimes) -> dict[str, AttributeValue]:
    figures: dict[str, AttributeValue] = {names.OUTPUT_TOKENS: times.output_tokens}
    ttft_ms = times.ttft_ms
    if times.setup_ms is not None:
        figures[names.SETUP_MS] = round(times.setup_ms, 2)
    if ttft_ms is not None:
        figures[names.TTFT_MS] = round(ttft_ms, 2)
    itl = times.itl_figures()
    if itl is not None:
        figures[names.AVG_ITL_MS] = itl.avg_ms
        figures[names.ITL_P50_MS] = itl.p50_ms
        figures[names.ITL_P99_MS] = itl.p99_ms
        figures[names.ITL_MAX_MS] = itl.max_ms
    return figures
