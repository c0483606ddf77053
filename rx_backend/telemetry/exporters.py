"""The SDK's exporters, by their entry points, and an endpoint for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import entry_points
from typing import Any, TypeVar

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry.quiet_exporter import QuietExporter
from rx_backend.telemetry.settings import Signal, destination, exporter_names, hide_secrets

__all__ = ("make_exporters", "serve_prometheus")

_Quiet = TypeVar("_Quiet", bound=QuietExporter)


def make_exporters(
    variables: Mapping[str, str],
    signal: Signal,
    others: str,
    quieten: Callable[[Any], _Quiet],
    undo: ExitStack,
) -> tuple[list[_Quiet], str]:
    """
    Make what exports a signal by itself, unless there is a provider of *others*; *undo* ends it.

    Each of the SDK's exporters is handed to *quieten*.

    Returns:
        The exporters, and where they export to, or why there are none; of Prometheus just the word.

    Raises:
        InvalidArgument: A package is missing, or an exporter can't be made.
    """
    names, off = exporter_names(variables, signal)
    if not names:
        return [], f"off by {off}"
    if others:
        return [], f"left to {others}, which was there"
    made: list[_Quiet] = []
    words: list[str] = []
    for name in names:
        words.append(name)
        if name == "prometheus":
            continue
        entry_point, options = name, dict[str, Any]()
        if name == "otlp":
            protocol, endpoint = destination(variables, signal)
            words[-1] = f"OTLP over {protocol} to {hide_secrets(endpoint)}"
            entry_point = f"otlp_proto_{protocol.partition('/')[0]}"
            options["endpoint"] = endpoint
            if protocol != "grpc":
                options["session"] = _session()
        exporter = quieten(_load(entry_point, signal, words[-1], options))
        undo.callback(exporter.shutdown)
        made.append(exporter)
    return made, ", ".join(words)


def _session() -> Any:
    """Return a session that does not read the body of an answer: it could be without end."""
    try:
        import requests  # noqa: PLC0415 - an extra
    except ImportError:
        return None

    def discard(answer: requests.Response, **_: object) -> None:
        if answer.headers.get("Content-Length") == "0":
            # The connection can be used again.
            answer.raw.drain_conn()
        answer.close()

    session = requests.Session()
    session.stream = True
    session.hooks["response"] = [discard]
    return session


def _load(name: str, signal: Signal, shown: str, options: Mapping[str, Any]) -> Any:
    """Make the exporter that a package has registered under *name*."""
    try:
        (entry_point,) = entry_points(group=f"opentelemetry_{signal}_exporter", name=name)
        make = entry_point.load()
    except (ImportError, ValueError) as error:
        raise InvalidArgument(
            f"{shown} needs the package opentelemetry-exporter-{name.replace('_', '-')}: "
            "pip install 'rx-backend[otlp]'"
        ) from error
    try:
        return make(**options)
    except Exception as error:
        raise InvalidArgument(f"{shown}: {hide_secrets(str(error))}") from error


def serve_prometheus(variables: Mapping[str, str], stack: ExitStack) -> tuple[Any, str]:
    """
    Serve metrics for Prometheus, from a registry of their own, until *stack* closes.

    Returns:
        The reader of the metrics, and the URL.

    Raises:
        InvalidArgument: The package is missing, or the address is taken.
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
    host = variables.get("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost")
    port = int(variables.get("OTEL_EXPORTER_PROMETHEUS_PORT", "9464"))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(
            "OTEL_EXPORTER_PROMETHEUS_HOST and _PORT: expected an address that is free, got "
            f"{host}:{port}: {getattr(error, 'strerror', error)}"
        ) from error
    for end in (thread.join, server.server_close, server.shutdown):
        stack.callback(end)
    shown = f"[{host}]" if ":" in host else host
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    return reader, f"http://{shown}:{server.server_port}/metrics"
