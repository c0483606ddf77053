"""Switching telemetry on: ``configure()``."""

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
    Switch telemetry on: install a tracer provider and a meter provider for the whole process.

    A provider that the application has set up is left alone. The SDK reads the rest from
    OpenTelemetry's variables, and checks them; see docs/observability.md. Of Dynamo's,
    ``OTEL_TRACES_SAMPLE_RATIO`` counts, and ``OTEL_EXPORT_ENABLED=false``, which switches off
    everything but a Prometheus endpoint.

    To be called once, before or after adapters are made, but before requests come. A receiver that
    is down, slow or failing costs requests nothing: a warning is logged once for spans and once for
    metrics.

    Args:
        service_name: The service's name, unless a variable has it; ``rx-backend`` by default.
        endpoint: Where OTLP goes, as ``http://127.0.0.1:4317``, over HTTP to port 4318; by default
            where the variables say, or port 4317 of localhost.

    Returns:
        What was installed. Its ``shutdown()`` exports the rest; so does the process's exit.

    Raises:
        InvalidArgument: *endpoint* or a variable does not fit, a port is taken, or the package for
            an exporter is missing. Nothing is installed then.

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
        # Here, for a light start; the SDK reads some variables as it is imported.
        from rx_backend.telemetry.providers import Telemetry  # noqa: PLC0415
    except ValueError as error:
        raise InvalidArgument(f"OpenTelemetry's SDK: {error}") from error
    telemetry = Telemetry(endpoint, service_name)
    _logger.debug("%s", telemetry)
    return telemetry
