"""Write a stream's outcome on its span, and end the span."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from operators import span_names as names
from operators._core.operator import callbacks, same_type
from operators._core.scope import StreamScope
from operators._core.stage import Callbacks
from operators._on_outcome import never, watching
from operators._outcome import Outcome, error_type_of
from operators.span_events import add_first_token
from operators.token_times import TokenTimes

__all__ = ("record_span",)


def _nothing_more() -> Mapping[str, AttributeValue]:
    return {}


def _type_name(error: Exception) -> str:
    return type(error).__name__


@same_type
@callbacks()
def record_span(
    span: Span | None = None,
    times: TokenTimes | None = None,
    *,
    attributes: bool = True,
    is_cancelled: Callable[[], bool] = never,
    reason_name: Callable[[Any], str] = str,
    error_kind: Callable[[Exception], str] = _type_name,
    error_type: Callable[[Outcome], str | None] = error_type_of,
    extra_attributes: Callable[[], Mapping[str, AttributeValue]] = _nothing_more,
    scope: StreamScope | None = None,
) -> Callbacks[Any, Any] | None:
    """
    Write a stream's outcome on *span* when it ends, and end the span (rows P3 to P7).

    Chunks pass through unchanged; nothing is written while tokens flow. Values that OpenTelemetry's
    GenAI conventions name are also written under those names, and the first token is an event.
    ``T`` is a terminal::

        source  ---a-b-T|
        result  ---a-b-T|
        span    -------(finish_reason, figures, end)

    Args:
        span: The request's span. A span that isn't recording costs nothing per chunk.
        times: The record that an earlier ``itl_window`` fills; its figures are written too, and
            chunks bypass this operator. Without it, tokens and latency are not recorded.
        attributes: Whether to write attributes (row P8); a failure always sets the span's status.
        is_cancelled: Returns whether the request was asked to stop; called at the end.
        reason_name: Returns a finish reason's text on the span.
        error_kind: Returns a failure's kind for the span, and for its status description.
        error_type: Returns ``error.type`` for an outcome other than success.
        extra_attributes: Returns further attributes; called at the end.
        scope: The scope of the stream; filled in by a pipeline. Then the scope's outcome is
            written: that of what the consumer received (row O2), wherever the operator is.

    Phase: anywhere; part of the standard pipeline, last of the chunks.
    Errors: source errors pass unchanged, after status ERROR and ``error_kind`` (row P4). A
        terminal whose ``finish_reason`` says ``is_error`` sets status ERROR too (row P6).
    On dispose: unless the terminal has already passed, ``finish_reason`` is ``Dropped`` and the
        status ERROR; so also at an end without a terminal (rows P5, P6a).

    >>> import reactivex
    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from rx_backend import LLMEngineOutput
    >>> span = TracerProvider().get_tracer("example").start_span("engine.generate")
    >>> chunks = reactivex.of(LLMEngineOutput.token(7), LLMEngineOutput.stop())
    >>> _ = chunks.pipe(record_span(span)).subscribe()
    >>> dict(span.attributes)
    {'cancelled': False, 'finish_reason': 'stop', 'gen_ai.response.finish_reasons': ('stop',)}
    """
    if scope is not None:
        own = scope if span is None else _Parts(span, scope.recording, scope.span_attributes)
        if own.span.is_recording():
            scope.outcome.subscribe(_SpanWriter(own, reason_name, error_kind, error_type))
        return None
    if span is None:
        raise TypeError("record_span: span: expected a span, or a scope")
    if not span.is_recording():
        return Callbacks(on_end=lambda _failure, _dropped: span.end())
    parts = _Parts(span, attributes, extra_attributes)
    return watching(_SpanWriter(parts, reason_name, error_kind, error_type), times, is_cancelled)


class _Parts(NamedTuple):
    """What writing a span needs of a scope, as separate values."""

    span: Span
    recording: bool
    span_attributes: Callable[[], Mapping[str, AttributeValue]]


class _SpanWriter:
    """Writes one request's outcome on its span."""

    __slots__ = ("_error_kind", "_error_type", "_parts", "_reason_name")

    def __init__(
        self,
        parts: StreamScope | _Parts,
        reason_name: Callable[[Any], str],
        error_kind: Callable[[Exception], str],
        error_type: Callable[[Outcome], str | None],
    ) -> None:
        self._parts = parts
        self._reason_name = reason_name
        self._error_kind = error_kind
        self._error_type = error_type

    def __call__(self, outcome: Outcome) -> None:
        span, times, is_written = self._parts.span, outcome.times, self._parts.recording
        ended = None
        try:
            written: dict[str, AttributeValue] = {names.CANCELLED: outcome.is_cancelled}
            if times is not None and times.is_timed and is_written:
                _add_figures(written, times, outcome)
                add_first_token(span, times)
                ended = None if times.epoch_ns is None else times.epoch_ns_of(times.clock())
            self._describe_end(outcome, written)
            if is_written:
                written |= self._parts.span_attributes()
                span.set_attributes(written)
            elif outcome.is_dropped:
                # A drop is recorded even where recording is off (rows P5, P8).
                span.set_attributes(written)
        finally:
            span.end(ended)

    def _describe_end(self, outcome: Outcome, written: dict[str, AttributeValue]) -> None:
        """Add how the stream ended: by its terminal, by an error, or by neither."""
        reason = outcome.finish_reason
        failed = None
        if outcome.error is not None:
            failed = written[names.ERROR_KIND] = self._error_kind(outcome.error)
        elif reason is not None:
            name = written[names.FINISH_REASON] = self._reason_name(reason)
            written[names.FINISH_REASONS] = [
                getattr(each, "kind", None) or self._reason_name(each)
                for each in outcome.finish_reasons
            ]
            failed = name if outcome.is_error else None
        else:
            written[names.FINISH_REASON] = names.DROPPED
            failed = names.DROPPED_STATUS
        if failed is not None:
            self._parts.span.set_status(Status(StatusCode.ERROR, failed))
            error_type = self._error_type(outcome)
            if error_type is not None:
                written[names.ERROR_TYPE] = error_type


def _add_figures(figures: dict[str, AttributeValue], times: TokenTimes, outcome: Outcome) -> None:
    tokens = outcome.output_tokens or 0
    figures[names.OUTPUT_TOKENS] = figures[names.USAGE_OUTPUT_TOKENS] = tokens
    ttft_ms = times.ttft_ms
    if times.setup_ms is not None:
        figures[names.SETUP_MS] = round(times.setup_ms, 2)
    if ttft_ms is not None:
        figures[names.TTFT_MS] = round(ttft_ms, 2)
        figures[names.TIME_TO_FIRST_CHUNK] = round(((times.setup_ms or 0.0) + ttft_ms) / 1000.0, 6)
    itl = times.itl_figures()
    if itl is not None:
        figures[names.AVG_ITL_MS] = itl.avg_ms
        figures[names.ITL_P50_MS] = itl.p50_ms
        figures[names.ITL_P99_MS] = itl.p99_ms
        figures[names.ITL_MAX_MS] = itl.max_ms
