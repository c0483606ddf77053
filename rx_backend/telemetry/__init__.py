"""What people can look at: spans and metrics of requests, and switching their export on."""

from rx_backend.telemetry.logs import Logs, configure_logs
from rx_backend.telemetry.request_span import (
    EXPORT_ENABLED,
    own_context,
    record_dropped_setup,
    record_failed_setup,
    recording_switch,
    should_record,
    start_request_span,
    worker_trace_link,
)
from rx_backend.telemetry.setup import Telemetry, configure
from rx_backend.telemetry.trace_ids import add_trace_ids

__all__ = (
    "EXPORT_ENABLED",
    "Logs",
    "Telemetry",
    "add_trace_ids",
    "configure",
    "configure_logs",
    "own_context",
    "record_dropped_setup",
    "record_failed_setup",
    "recording_switch",
    "should_record",
    "start_request_span",
    "worker_trace_link",
)
