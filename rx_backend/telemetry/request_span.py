"""One request's span: its parent, its links, and whether to record on it (P and T rows)."""

from __future__ import annotations

import contextvars
import os
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from operators import AbortStep, TokenTimes
from operators import span_names as names
from operators.span_events import add_event
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import BackendError
from rx_backend.protocols import PreprocessedRequest, TraceLink

__all__ = (
    "EXPORT_ENABLED",
    "OPERATION",
    "PROVIDER",
    "TRUE",
    "own_context",
    "record_abort",
    "record_dropped_setup",
    "record_failed_setup",
    "recording_switch",
    "should_record",
    "start_request_span",
    "worker_trace_link",
)

EXPORT_ENABLED: Final = "OTEL_EXPORT_ENABLED"
"""The variable that decides whether to measure requests (row P8)."""

TRUE: Final = frozenset({"1", "true", "on", "yes"})
"""The values that enable a variable, in any case."""

OPERATION: Final = "text_completion"
PROVIDER: Final = "rx_backend"

_EVENTS: Final = {
    AbortStep.REQUESTED: names.ABORT_REQUESTED,
    AbortStep.CALLED_IMMEDIATELY: names.ABORT_CALLED,
    AbortStep.CALLED_AFTER_DEFERRAL: names.ABORT_CALLED,
    AbortStep.SUPPRESSED: names.ABORT_SUPPRESSED,
}
_propagator = TraceContextTextMapPropagator()


def start_request_span(
    tracer: Tracer,
    request: PreprocessedRequest,
    context: RequestContext,
    mode: DisaggregationMode,
) -> Span:
    """
    Start ``engine.generate`` for one request, without making it current (rows P1, P2, P7, T1, T2).

    Its parent is the request's ``traceparent`` if there is one, else the caller's current span. If
    both are in the same trace, the caller's span is the parent, as the closer one.
    """
    parent = _parent(context)
    input_tokens = len(request.token_ids)
    attributes: dict[str, AttributeValue] = {
        names.MODEL: request.model,
        names.INPUT_TOKENS: input_tokens,
        names.DISAGG_ROLE: mode.value,
        names.OPERATION_NAME: OPERATION,
        names.PROVIDER_NAME: PROVIDER,
        names.REQUEST_MODEL: request.model,
        names.REQUEST_STREAM: True,
        names.USAGE_INPUT_TOKENS: input_tokens,
    }
    asked = {
        names.REQUEST_MAX_TOKENS: request.stop_conditions.max_tokens,
        names.REQUEST_TEMPERATURE: request.sampling_options.temperature,
        names.REQUEST_TOP_P: request.sampling_options.top_p,
    }
    attributes |= {name: value for name, value in asked.items() if value is not None}
    links: list[Link] = []
    migrated = request.migration_link
    if migrated is not None:
        attributes[names.MIGRATION_TRACE_ID] = migrated.trace_id
        attributes[names.MIGRATION_SPAN_ID] = migrated.span_id
        links = _links(migrated)
    is_remote = trace.get_current_span(parent).get_span_context().is_remote
    return tracer.start_span(
        names.SPAN_NAME,
        context=parent,
        kind=SpanKind.SERVER if is_remote else SpanKind.INTERNAL,
        attributes=attributes,
        links=links,
    )


def recording_switch() -> bool | None:
    """Return whether ``OTEL_EXPORT_ENABLED`` is true (row P8); None if it is not set."""
    switch = os.environ.get(EXPORT_ENABLED)
    return None if switch is None else switch.strip().lower() in TRUE


def should_record(span: Span, decided: bool | None, *, metered: bool = False) -> bool:
    """
    Return whether to measure and to write attributes (row P8).

    *decided*, or if that is None, whether the span is recording. Without tracing in this process, a
    *metered* request is measured, unless another process's sampler has dropped it.
    """
    if decided is not None:
        return decided
    if span.is_recording():
        return True
    identity = span.get_span_context()
    return metered and not (identity.is_valid and not identity.trace_flags.sampled)


def worker_trace_link(span: Span) -> TraceLink | None:
    """Return the span's ids for the next worker; None without valid ones (row T5)."""
    identity = span.get_span_context()
    if not identity.is_valid:
        return None
    return TraceLink(trace_id=f"{identity.trace_id:032x}", span_id=f"{identity.span_id:016x}")


def own_context(span: Span) -> contextvars.Context:
    """
    Return the context to run the engine in so that its spans nest under *span* (row P9).

    A copy of the caller's, in which *span* is current if it has valid ids; no other context is
    changed.
    """
    context = contextvars.copy_context()
    if span.get_span_context().is_valid:
        context.run(otel_context.attach, trace.set_span_in_context(span))
    return context


def record_abort(span: Span, times: TokenTimes, step: AbortStep) -> None:
    """Record what happened to a request's abort, as events of its span while it is open."""
    if not span.is_recording():
        return
    if step is AbortStep.REQUESTED:
        add_event(span, times, names.STOP)
    event = _EVENTS[step]
    attributes = None
    if event == names.ABORT_CALLED:
        attributes = {"deferred": step is AbortStep.CALLED_AFTER_DEFERRAL}
    add_event(span, times, event, attributes)


def record_failed_setup(span: Span, error: BackendError) -> None:
    """End the span of a request without a stream: its set-up failed (row P4)."""
    if not span.is_recording():
        return
    span.set_attributes({names.ERROR_KIND: names.SETUP_FAILED, names.ERROR_TYPE: error.kind})
    span.set_status(Status(StatusCode.ERROR, names.SETUP_FAILED))
    span.end()


def record_dropped_setup(span: Span) -> None:
    """End the span of a request whose caller disconnected during the engine's set-up (row P5)."""
    span.set_attributes(
        {names.CANCELLED: True, names.FINISH_REASON: names.DROPPED, names.ERROR_TYPE: names.DROPPED}
    )
    span.set_status(Status(StatusCode.ERROR, names.DROPPED_STATUS))
    span.end()


def _parent(context: RequestContext) -> Context:
    current = otel_context.get_current()
    headers = context.trace_headers
    if "traceparent" not in headers:
        return current
    remote = _propagator.extract(headers, context=Context())
    remote_identity = trace.get_current_span(remote).get_span_context()
    near = trace.get_current_span(current).get_span_context()
    if not remote_identity.is_valid or near.trace_id == remote_identity.trace_id:
        return current
    return _propagator.extract(headers, context=current)


def _links(link: TraceLink) -> list[Link]:
    trace_id, span_id = _number(link.trace_id, 32), _number(link.span_id, 16)
    if not trace_id or not span_id:
        return []
    flags = TraceFlags(TraceFlags.SAMPLED)
    return [Link(SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags))]


def _number(text: str, digits: int) -> int:
    """Return the number of a hex id; 0, which is not a valid id, for anything else."""
    if not 0 < len(text) <= digits or not _HEX.issuperset(text):
        return 0
    return int(text, 16)


_HEX = frozenset("0123456789abcdefABCDEF")
