"""What people can look at: spans and metrics of requests."""

from rx_backend.telemetry.request_span import (
    EXPORT_ENABLED,
    own_context,
    record_dropped_setup,
    record_failed_setup,
    should_record,
    start_request_span,
    worker_trace_link,
)

__all__ = (
    "EXPORT_ENABLED",
    "own_context",
    "record_dropped_setup",
    "record_failed_setup",
    "should_record",
    "start_request_span",
    "worker_trace_link",
)
