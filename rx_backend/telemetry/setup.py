"""Enabling telemetry: ``configure()``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.settings import check_url

if TYPE_CHECKING:
    from rx_backend.telemetry.providers import Telemetry

__all__ = ("configure",)

_logger = logging.getLogger("rx_backend.telemetry")


def configure(*, service_name: str | None = None, endpoint: str | None = None) -> Telemetry:
    """
    Enable telemetry: install a tracer provider and a meter provider for the whole process.

    A provider that the application has set up is kept. The SDK reads everything else from
    OpenTelemetry's variables; see docs/observability.md. Of Dynamo's variables,
    ``OTEL_TRACES_SAMPLE_RATIO`` applies, and ``OTEL_EXPORT_ENABLED=false``, which disables
    everything except a Prometheus endpoint.

    Call it once, before or after creating adapters, but before the first request. A receiver that
    is down, slow or failing does not affect requests: a warning is logged once for spans and once
    for metrics.

    Args:
        service_name: The service's name, unless a variable sets it; ``rx-backend`` by default.
        endpoint: The OTLP endpoint, such as ``http://127.0.0.1:4317``; port 4318 means HTTP. By
            default the variables' endpoint, or port 4317 of localhost.

    Returns:
        What was installed. Its ``shutdown()`` exports what is pending, as does the process's exit.

    Raises:
        InvalidArgument: *endpoint* or a variable is invalid, a port is in use, or an exporter's
            package is missing. Nothing is installed then.

    >>> import os
    >>> os.environ["OTEL_TRACES_EXPORTER"] = os.environ["OTEL_METRICS_EXPORTER"] = "none"
    >>> with configure() as telemetry:
    ...     print(telemetry)
    traces: off by OTEL_TRACES_EXPORTER; metrics: off by OTEL_METRICS_EXPORTER
    >>> del os.environ["OTEL_TRACES_EXPORTER"], os.environ["OTEL_METRICS_EXPORTER"]
    """
    if endpoint is not None:
        check_url("endpoint", endpoint)
    try:
        # Imported here, for a fast start; the SDK reads some variables on import.
        from rx_backend.telemetry.providers import Telemetry  # noqa: PLC0415
    except ValueError as error:
        raise InvalidArgument(f"OpenTelemetry's SDK: {error}") from error
    telemetry = Telemetry(endpoint, service_name)
    _logger.debug("%s", telemetry)
    return telemetry
