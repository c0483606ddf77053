"""What configure() makes of its arguments and of the environment."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest
from opentelemetry import metrics, trace

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry import configure
from rx_backend.telemetry.settings import Settings

HTTP, GRPC = "http/protobuf", "grpc"

ENVIRONMENTS: list[tuple[dict[str, str], dict[str, Any], str, Any]] = [
    ({}, {}, "traces.exporters", ("otlp",)),
    ({}, {}, "traces.protocol", GRPC),
    ({}, {}, "metrics.endpoint", "http://localhost:4317"),
    # Where OTLP goes.
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {}, "traces.protocol", HTTP),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4317"}, {}, "traces.endpoint", "c:4317"),
    (
        {"OTEL_EXPORTER_OTLP_PROTOCOL": HTTP},
        {},
        "traces.endpoint",
        "http://localhost:4318/v1/traces",
    ),
    ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": HTTP}, {}, "traces.protocol", HTTP),
    ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": HTTP}, {}, "metrics.protocol", GRPC),
    (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/x/"},
        {},
        "metrics.endpoint",
        "http://c:4318/x/v1/metrics",
    ),
    (
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:4318/as-is", "OTEL_SERVICE_NAME": "s"},
        {},
        "traces.endpoint",
        "http://t:4318/as-is",
    ),
    (
        {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:4318",
            "OTEL_EXPORTER_OTLP_PROTOCOL": GRPC,
        },
        {"endpoint": "http://argument:4318", "protocol": HTTP},
        "traces.endpoint",
        "http://argument:4318/v1/traces",
    ),
    # Which exporters.
    ({"OTEL_TRACES_EXPORTER": "console, otlp"}, {}, "traces.exporters", ("console", "otlp")),
    ({"OTEL_TRACES_EXPORTER": "none"}, {}, "traces.off", "off by OTEL_TRACES_EXPORTER"),
    ({"OTEL_TRACES_EXPORTER": "none"}, {"traces": True}, "traces.exporters", ("otlp",)),
    ({"OTEL_METRICS_EXPORTER": "prometheus"}, {}, "metrics.exporters", ("prometheus",)),
    ({}, {"prometheus_port": 0}, "metrics.exporters", ("prometheus",)),
    (
        {"OTEL_METRICS_EXPORTER": "otlp"},
        {"prometheus_port": 0},
        "metrics.exporters",
        ("otlp", "prometheus"),
    ),
    ({}, {"metrics": False}, "metrics.off", "off by metrics=False"),
    # The switches that win over the code.
    ({"OTEL_SDK_DISABLED": "TRUE"}, {"traces": True}, "traces.off", "off by OTEL_SDK_DISABLED"),
    ({"OTEL_SDK_DISABLED": "1"}, {}, "traces.off", ""),
    ({"OTEL_EXPORT_ENABLED": "1"}, {}, "traces.off", ""),
    ({"OTEL_EXPORT_ENABLED": "0"}, {"traces": True}, "traces.off", "off by OTEL_EXPORT_ENABLED"),
    ({"OTEL_EXPORT_ENABLED": "off"}, {}, "metrics.off", "off by OTEL_EXPORT_ENABLED"),
    ({"OTEL_EXPORT_ENABLED": "no"}, {"prometheus_port": 0}, "metrics.exporters", ("prometheus",)),
    # Numbers.
    ({"OTEL_TRACES_SAMPLE_RATIO": "0.25"}, {}, "sample_ratio", 0.25),
    (
        {"OTEL_TRACES_SAMPLE_RATIO": "0.25", "OTEL_TRACES_SAMPLER": "always_on"},
        {},
        "sample_ratio",
        None,
    ),
    ({"OTEL_BSP_MAX_QUEUE_SIZE": "100"}, {}, "batch_size", 100),
    ({"OTEL_BSP_MAX_QUEUE_SIZE": " "}, {}, "queue_size", 2048),
    ({"OTEL_EXPORTER_PROMETHEUS_PORT": "9000"}, {}, "prometheus_port", 9000),
    ({"OTEL_EXPORTER_PROMETHEUS_PORT": "9000"}, {"prometheus_port": 1}, "prometheus_port", 1),
]

BAD: list[tuple[dict[str, str], dict[str, Any], str]] = [
    ({"OTEL_TRACES_EXPORTER": "jaeger"}, {}, "OTEL_TRACES_EXPORTER: expected one of otlp, console"),
    ({"OTEL_TRACES_EXPORTER": "prometheus"}, {}, "OTEL_TRACES_EXPORTER: expected one of"),
    ({"OTEL_METRICS_EXPORTER": "otpl"}, {}, "OTEL_METRICS_EXPORTER: expected one of"),
    (
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {},
        "OTEL_EXPORTER_OTLP_PROTOCOL: expected one of",
    ),
    (
        {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "HTTP"},
        {},
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: expected one of grpc, http/protobuf, got 'HTTP'",
    ),
    (
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": HTTP},
        {},
        "OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL",
    ),
    ({"OTEL_TRACES_SAMPLER": "sometimes"}, {}, "OTEL_TRACES_SAMPLER: expected one of always_on"),
    (
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
        {},
        "OTEL_TRACES_SAMPLER_ARG: expected a number from 0 to 1, got '2'",
    ),
    ({"OTEL_TRACES_SAMPLE_RATIO": "half"}, {}, "OTEL_TRACES_SAMPLE_RATIO: expected a number"),
    ({"OTEL_EXPORT_ENABLED": "maybe"}, {}, "OTEL_EXPORT_ENABLED: expected true or false"),
    (
        {"OTEL_BSP_MAX_QUEUE_SIZE": "0"},
        {},
        "OTEL_BSP_MAX_QUEUE_SIZE: expected a whole number from 1",
    ),
    (
        {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9"},
        {},
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: expected a whole number from 1 to 8, got '9'",
    ),
    ({"OTEL_BSP_SCHEDULE_DELAY": "5s"}, {}, "OTEL_BSP_SCHEDULE_DELAY: expected a whole number"),
    (
        {"OTEL_METRIC_EXPORT_INTERVAL": "-1"},
        {},
        "OTEL_METRIC_EXPORT_INTERVAL: expected a number above",
    ),
    (
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"},
        {},
        "OTEL_EXPORTER_OTLP_TIMEOUT: expected a number above",
    ),
    (
        {"OTEL_EXPORTER_PROMETHEUS_PORT": "65536"},
        {},
        "OTEL_EXPORTER_PROMETHEUS_PORT: expected a whole",
    ),
    ({}, {"endpoint": "localhost:4317"}, "endpoint: expected a URL as http://127.0.0.1:4317"),
    ({}, {"endpoint": "http://h:port"}, "endpoint: expected a URL as http://127.0.0.1:4317"),
    ({}, {"protocol": "udp"}, "protocol: expected one of grpc, http/protobuf, got 'udp'"),
    ({}, {"prometheus_port": -1}, "prometheus_port: expected 0 to 65535, got -1"),
    ({}, {"prometheus_port": 1, "metrics": False}, "prometheus_port: expected none where metrics"),
]


@pytest.mark.parametrize(("environ", "arguments", "attribute", "expected"), ENVIRONMENTS)
def test_arguments_and_variables_decide(
    environ: dict[str, str], arguments: dict[str, Any], attribute: str, expected: object
) -> None:
    """Arguments win over variables, a signal's own variable over the general one."""
    found: Any = Settings.read(environ, **arguments)
    for name in attribute.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(("environ", "arguments", "message"), BAD)
def test_a_bad_value_is_named_and_nothing_is_installed(
    environ: dict[str, str],
    arguments: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says which variable or argument, and what was expected."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    _refused(message, **arguments)


@pytest.mark.parametrize(
    ("module", "arguments", "command"),
    [
        ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", {}, "rx-backend[otlp]"),
        (
            "opentelemetry.exporter.otlp.proto.http.metric_exporter",
            {"protocol": HTTP, "traces": False},
            "rx-backend[otlp]",
        ),
        ("opentelemetry.exporter.prometheus", {"prometheus_port": 0}, "rx-backend[prometheus]"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    module: str, arguments: dict[str, Any], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the command that installs the extra."""
    monkeypatch.setitem(__import__("sys").modules, module, None)
    _refused(f"pip install '{command}'", **arguments)


def test_a_port_that_is_taken_is_named() -> None:
    """Another's port for Prometheus is an error at once."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "127.0.0.1")
            _refused(
                f"OTEL_EXPORTER_PROMETHEUS_HOST and _PORT: 127.0.0.1:{port}", prometheus_port=port
            )


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint's user and password stay out of messages."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli")
    with pytest.raises(InvalidArgument) as raised:
        configure(endpoint="http://me:secret@127.0.0.1:4317")
    assert "127.0.0.1:4317" in raised.value.message
    assert "secret" not in raised.value.message


def _refused(message: str, **arguments: Any) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        configure(**arguments)
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert "Proxy" in type(metrics.get_meter_provider()).__name__
