"""Switching telemetry on: ``configure()``."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rx_backend.telemetry.logs import LOG_VARIABLES, configure_logs
from rx_backend.telemetry.settings import settings

if TYPE_CHECKING:
    from rx_backend.telemetry.providers import Telemetry

__all__ = ("configure",)

_logger = logging.getLogger("rx_backend.telemetry")


def configure(
    *,
    service_name: str | None = None,
    endpoint: str | None = None,
    protocol: str | None = None,
    traces: bool | None = None,
    metrics: bool | None = None,
    logs: bool | None = None,
    prometheus_port: int | None = None,
) -> Telemetry:
    """
    Switch telemetry on: install a tracer provider and a meter provider for the whole process.

    A provider that the application has set up is left alone. The SDK reads what no argument sets
    from OpenTelemetry's variables, and from Dynamo's ``OTEL_TRACES_SAMPLE_RATIO``;
    see docs/observability.md. ``OTEL_SDK_DISABLED=true`` switches everything off whatever the
    arguments are, and Dynamo's ``OTEL_EXPORT_ENABLED=false`` all but the Prometheus endpoint.

    To be called once, before or after adapters are made, but before requests come. A receiver that
    is down, slow or failing costs requests nothing: a warning is logged once for spans and once for
    metrics.

    Args:
        service_name: The service's name, ``rx-backend`` by default.
        endpoint: Where OTLP goes, as ``http://127.0.0.1:4317``; by default port 4317 of localhost
            for gRPC and 4318 for HTTP.
        protocol: ``grpc`` or ``http/protobuf``; by default HTTP to an endpoint at port 4318,
            and gRPC else.
        traces: False for ``OTEL_TRACES_EXPORTER=none``, True to override that.
        metrics: The same for metrics.
        logs: Whether to write the library's log to stderr where nothing else takes it, see
            `configure_logs`; by default where ``DYN_LOG``, ``DYN_LOGGING_JSONL`` or
            ``DYN_LOGGING_CONSOLE_FORMAT`` is set.
        prometheus_port: Serve metrics for Prometheus at this port, 0 for any that is free; other
            exporters then are those that ``OTEL_METRICS_EXPORTER`` names.

    Returns:
        What was installed. Its ``shutdown()`` exports the rest; so does the process's exit.

    Raises:
        InvalidArgument: An argument or a variable does not fit, a port is taken, or the package for
            an exporter is missing. Nothing is installed then.

    >>> from rx_backend.telemetry import configure
    >>> with configure(traces=False, metrics=False) as telemetry:
    ...     print(telemetry)
    traces: off by OTEL_TRACES_EXPORTER; metrics: off by OTEL_METRICS_EXPORTER
    """
    variables = settings(
        os.environ,
        service_name=service_name,
        endpoint=endpoint,
        protocol=protocol,
        traces=traces,
        metrics=metrics,
        prometheus_port=prometheus_port,
    )
    # Not before the settings are checked: the SDK reads some as it is imported.
    from rx_backend.telemetry.providers import Telemetry  # noqa: PLC0415 - a light start

    if logs is None:
        logs = any(map(os.environ.get, LOG_VARIABLES))
    with ExitStack() as undo:
        writing = undo.enter_context(configure_logs()) if logs else None
        telemetry = Telemetry(variables, writing)
        undo.pop_all()
    _logger.debug("%s", telemetry)
    return telemetry
