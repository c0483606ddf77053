"""The SDK's exporters and readers, created from entry points by OpenTelemetry's variables."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any, Final

from opentelemetry.sdk.metrics.export import MetricReader

from rx_backend.addresses import cannot_listen, host_and_port, port_number
from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.quiet_exporter import QuietExporter, QuietSpanExporter
from rx_backend.telemetry.settings import (
    Signal,
    destination,
    exporter_names,
    hide_secrets,
    installed_exporters,
    set_variables,
)

__all__ = ("make_exporters",)

_SCRAPED: Final = "OTEL_EXPORTER_PROMETHEUS"


def make_exporters(signal: Signal, endpoint: str | None, undo: ExitStack) -> tuple[list[Any], str]:
    """
    Create the exporters of a signal that the environment names; *undo* shuts them down.

    Args:
        signal: The signal to export.
        endpoint: The OTLP endpoint; None for the environment's.
        undo: Shuts down what was created, if a later step fails.

    Returns:
        Quiet exporters, or for Prometheus the reader; and a text with their destination, or the
        reason why there are none.

    Raises:
        InvalidArgument: A name is unknown, a package is missing, an exporter can't be created, or a
            port can't be bound.
    """
    names, off = exporter_names(os.environ, signal)
    quieten = QuietSpanExporter if signal == "traces" else QuietExporter
    made: list[Any] = []
    places: list[str] = []
    for name in names:
        if name == "prometheus" and signal == "metrics":
            exporter, place = _prometheus(undo)
        elif name == "otlp":
            exporter, place = _otlp(signal, endpoint)
        else:
            exporter, place = _make(name, signal, name), name
        made.append(exporter if isinstance(exporter, MetricReader) else quieten(exporter))
        places.append(place)
        undo.callback(made[-1].shutdown)
    return made, ", ".join(places) or f"off by {off}"


def _otlp(signal: Signal, endpoint: str | None) -> tuple[Any, str]:
    protocol, address = destination(os.environ, signal, endpoint)
    place = f"OTLP over {protocol} to {hide_secrets(address)}"
    if protocol == "grpc":
        return _make("otlp_proto_grpc", signal, place, endpoint=address), place
    return _make("otlp_proto_http", signal, place, endpoint=address, session=_session()), place


def _prometheus(undo: ExitStack) -> tuple[Any, str]:
    """Serve metrics for Prometheus; return the reader. *undo* stops the server."""
    try:
        from opentelemetry.exporter.prometheus import (  # noqa: PLC0415 - an extra
            PrometheusMetricReader,
        )
        from prometheus_client import start_http_server  # noqa: PLC0415 - the same
    except ImportError as error:
        raise InvalidArgument(
            "OTEL_METRICS_EXPORTER: prometheus needs the package "
            "opentelemetry-exporter-prometheus: pip install 'rx-backend[prometheus]'"
        ) from error
    host = os.environ.get(f"{_SCRAPED}_HOST") or "localhost"
    port = port_number(f"{_SCRAPED}_PORT", os.environ.get(f"{_SCRAPED}_PORT") or "9464")
    try:
        server, thread = start_http_server(port, addr=host)
    except (OSError, UnicodeError) as error:
        setting = f"{_SCRAPED}_HOST and _PORT"
        raise InvalidArgument(cannot_listen(setting, host, port, error)) from error
    for end in (thread.join, server.server_close, server.shutdown):
        undo.callback(end)
    place = host_and_port(host, server.server_port)
    return PrometheusMetricReader(), f"Prometheus at http://{place}/metrics"


def _session() -> Any:
    """Return a session that does not read the body of a response, which could be endless."""
    try:
        import requests  # noqa: PLC0415 - an extra
    except ImportError:
        return None

    def discard(answer: requests.Response, **_: object) -> None:
        if answer.headers.get("Content-Length") == "0":
            # The connection can be reused.
            answer.raw.drain_conn()

    session = requests.Session()
    session.stream = True
    session.hooks["response"] = [discard]
    return session


def _make(name: str, signal: Signal, place: str, **options: Any) -> Any:
    """Create the exporter that a package has registered under *name*."""
    try:
        make = next(iter(installed_exporters(signal, name))).load()
    except (ImportError, StopIteration) as error:
        raise InvalidArgument(
            f"{place} needs the package opentelemetry-exporter-{name.replace('_', '-')}: "
            f"pip install 'rx-backend[{name.partition('_')[0]}]'"
        ) from error
    try:
        return make(**options)
    except Exception as error:
        raise InvalidArgument(f"{place}: {hide_secrets(str(error))}{set_variables()}") from error
