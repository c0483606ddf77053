"""Exporters as the settings name them; each is imported here, when it is asked for."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.settings import Settings, Signal, SignalSettings

__all__ = ("Prometheus", "exporters", "serve_prometheus", "without_password")


def exporters(signal: Signal, settings: SignalSettings, undo: ExitStack) -> list[Any]:
    """
    Make the exporters that send by themselves; *undo* ends them.

    Raises:
        InvalidArgument: A package is missing, or the exporter can't be made.
    """
    made: list[Any] = []
    for name in settings.exporters:
        if name == "prometheus":
            continue
        exporter = _console(signal) if name == "console" else _otlp(signal, settings)
        undo.callback(exporter.shutdown)
        made.append(exporter)
    return made


def _console(signal: Signal) -> Any:
    if signal == "traces":
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415 - a light start
            ConsoleSpanExporter,
        )

        return ConsoleSpanExporter(out=sys.stdout)
    from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415 - the same
        ConsoleMetricExporter,
    )

    return ConsoleMetricExporter(out=sys.stdout)


def _otlp(signal: Signal, settings: SignalSettings) -> Any:
    package = "grpc" if settings.protocol == "grpc" else "http"
    noun = "Span" if signal == "traces" else "Metric"
    module = f"opentelemetry.exporter.otlp.proto.{package}.{'trace' if noun == 'Span' else 'metric'}_exporter"
    try:
        make = getattr(import_module(module), f"OTLP{noun}Exporter")
    except ImportError as error:
        raise InvalidArgument(
            f"OTLP over {settings.protocol} needs the package "
            f"opentelemetry-exporter-otlp-proto-{package}: pip install 'rx-backend[otlp]'"
        ) from error
    try:
        return make(endpoint=settings.endpoint)
    except Exception as error:
        raise InvalidArgument(
            f"OTLP over {settings.protocol} to {without_password(settings.endpoint)}: {error}"
        ) from error


@dataclass(frozen=True, slots=True)
class Prometheus:
    """
    An endpoint that Prometheus scrapes.

    Attributes:
        reader: What collects the metrics.
        url: Where it is.
    """

    reader: Any
    url: str


def serve_prometheus(settings: Settings, stack: ExitStack) -> Prometheus:
    """
    Serve metrics for Prometheus, from a registry of their own, until *stack* closes.

    Raises:
        InvalidArgument: The package is missing, or the port can't be had.
    """
    try:
        from opentelemetry.exporter.prometheus import (  # noqa: PLC0415 - an extra
            PrometheusMetricReader,
        )
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 - same
    except ImportError as error:
        raise InvalidArgument(
            "a Prometheus endpoint needs the package opentelemetry-exporter-prometheus: "
            "pip install 'rx-backend[prometheus]'"
        ) from error
    registry = CollectorRegistry()
    host, port = settings.prometheus_host, settings.prometheus_port
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise InvalidArgument(
            f"OTEL_EXPORTER_PROMETHEUS_HOST and _PORT: {host}:{port} can't be had: {error.strerror}"
        ) from error
    stack.callback(thread.join)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    shown = f"[{host}]" if ":" in host else host
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    return Prometheus(reader, f"http://{shown}:{server.server_port}/metrics")


def without_password(endpoint: str) -> str:
    """Give *endpoint* as it may be shown."""
    return re.sub("//[^/@]*@", "//", endpoint)
