"""A span's ids in the form of log lines."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanContext

__all__ = ("add_trace_ids", "trace_ids")


def trace_ids(identity: SpanContext) -> dict[str, str]:
    """Return a span's ids, named as in OpenTelemetry's JSON logs; empty if there are none."""
    if not identity.is_valid:
        return {}
    return {
        "trace_id": f"{identity.trace_id:032x}",
        "span_id": f"{identity.span_id:016x}",
        "trace_flags": f"{identity.trace_flags:02x}",
    }


def add_trace_ids(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """
    Add the ids of the current span to an event; a structlog processor.

    Add it to your processors, before the renderer::

        structlog.configure(processors=[add_trace_ids, ..., structlog.processors.JSONRenderer()])

    Within an engine's ``generate`` the request's span is current (row P9), so an engine's log
    events have the same ``trace_id``, ``span_id`` and ``trace_flags`` as the library's own for that
    request. An event that has a ``trace_id`` keeps its ids; without a current span nothing is
    added.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from rx_backend.telemetry import add_trace_ids
    >>> with TracerProvider().get_tracer("example").start_as_current_span("work"):
    ...     event = add_trace_ids(None, "info", {"event": "in the engine"})
    >>> len(event["trace_id"]), len(event["span_id"]), len(event["trace_flags"])
    (32, 16, 2)
    """
    if "trace_id" not in event:
        event.update(trace_ids(trace.get_current_span().get_span_context()))
    return event
