"""Spans, metrics and logs of requests, and enabling their export."""

from typing import TYPE_CHECKING

from rx_backend.telemetry.logs import configure_logs
from rx_backend.telemetry.request_span import (
    EXPORT_ENABLED,
    own_context,
    record_failed_setup,
    recording_switch,
    should_record,
    start_request_span,
    worker_trace_link,
)
from rx_backend.telemetry.setup import configure
from rx_backend.telemetry.trace_ids import add_trace_ids

if TYPE_CHECKING:
    from rx_backend.telemetry.providers import Telemetry

__all__ = (
    "EXPORT_ENABLED",
    "Telemetry",
    "add_trace_ids",
    "configure",
    "configure_logs",
    "own_context",
    "record_failed_setup",
    "recording_switch",
    "should_record",
    "start_request_span",
    "worker_trace_link",
)


def __getattr__(name: str) -> object:
    """Import `Telemetry`, and with it the SDK, on first use."""
    if name != "Telemetry":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rx_backend.telemetry.providers import Telemetry  # noqa: PLC0415

    return Telemetry
