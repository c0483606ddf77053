"""Switching telemetry on: ``configure()``, and what it installed."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rx_backend.telemetry.installing import Installed, install
from rx_backend.telemetry.logs import LOG_VARIABLES, Logs, configure_logs
from rx_backend.telemetry.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ("Telemetry", "configure")

_logger = logging.getLogger("rx_backend.telemetry")

_DEADLINE_S: Final = 5.0


class Telemetry:
    """
    What `configure` installed; a context manager that shuts it down.

    Attributes:
        traces: What became of spans, in words: where they go, or why they don't.
        metrics: The same for metrics.
        logs: Where the log goes; None where that was left as it is.
        prometheus_url: Where metrics can be scraped; None without a Prometheus endpoint.
        tracer_provider: The tracer provider that was installed; None where none was.
        meter_provider: The meter provider that was installed; None where none was.
    """

    def __init__(self, installed: Installed, logs: Logs | None = None) -> None:
        self._installed = installed
        self._logs = logs
        self._is_shut_down = False
        self.traces = installed.traces
        self.metrics = installed.metrics
        self.logs = None if logs is None else str(logs)
        self.prometheus_url = installed.prometheus_url
        self.tracer_provider: TracerProvider | None = installed.tracer_provider
        self.meter_provider: MeterProvider | None = installed.meter_provider
        atexit.register(self.shutdown)

    @property
    def lost(self) -> Mapping[str, int]:
        """
        How many spans (``traces``) and metric points (``metrics``) did not reach their receiver.

        Points of a failed export are counted although a later export makes up for them.
        """
        return self._installed.losses.lost

    def shutdown(self, deadline_s: float = _DEADLINE_S) -> None:
        """
        Export what waits, and end what was installed; harmless when called twice.

        It is called at the exit of the process too. It blocks: call it after the event loop's end,
        or with `asyncio.to_thread`.

        Args:
            deadline_s: For all of it, in s. What an exporter could not export by then is lost and
                counted; its thread ends by itself.
        """
        if self._is_shut_down:
            return
        self._is_shut_down = True
        atexit.unregister(self.shutdown)
        self._installed.close(deadline_s)
        if self._logs is not None:
            self._logs.close()

    def __str__(self) -> str:
        logs = "" if self.logs is None else f"; logs: {self.logs}"
        return f"traces: {self.traces}; metrics: {self.metrics}{logs}"

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Shut down."""
        self.shutdown()


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

    A provider that the application has set up is left alone. What is not said here is read from
    OpenTelemetry's variables: ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``,
    ``OTEL_TRACES_EXPORTER`` (``otlp``, ``console``, ``none``), ``OTEL_METRICS_EXPORTER`` (also
    ``prometheus``), ``OTEL_EXPORTER_OTLP_*``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``,
    ``OTEL_METRIC_EXPORT_INTERVAL``, ``OTEL_EXPORTER_PROMETHEUS_HOST`` and ``_PORT``; and from
    Dynamo's ``OTEL_TRACES_SAMPLE_RATIO``. Arguments win over variables, but for two that switch
    off whatever the code says: ``OTEL_SDK_DISABLED=true``, and Dynamo's
    ``OTEL_EXPORT_ENABLED=false``, which leaves the Prometheus endpoint on.

    To be called once, before or after adapters are made, but before requests come. A receiver that
    is down, slow or failing costs requests nothing: what is lost is counted in
    ``rx_backend.telemetry.lost``, and a warning is logged once for spans and once for metrics.

    Args:
        service_name: The service's name; ``rx-backend`` where nothing else says it.
        endpoint: Where OTLP goes, as ``http://127.0.0.1:4317``; by default port 4317 of localhost
            for gRPC and 4318 for HTTP.
        protocol: ``grpc`` or ``http/protobuf``; by default HTTP to an endpoint at port 4318,
            and gRPC else.
        traces: False for no spans, True for spans although ``OTEL_TRACES_EXPORTER`` says ``none``.
        metrics: The same for metrics.
        logs: Whether to write the library's log to stderr where nobody else takes it, see
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
    traces: off by traces=False; metrics: off by metrics=False
    """
    settings = Settings.read(
        os.environ,
        service_name=service_name,
        endpoint=endpoint,
        protocol=protocol,
        traces=traces,
        metrics=metrics,
        prometheus_port=prometheus_port,
    )
    if logs is None:
        logs = any(map(os.environ.get, LOG_VARIABLES))
    with ExitStack() as undo:
        writing = undo.enter_context(configure_logs()) if logs else None
        telemetry = Telemetry(install(settings), writing)
        undo.pop_all()
    _logger.debug("%s", telemetry)
    return telemetry
