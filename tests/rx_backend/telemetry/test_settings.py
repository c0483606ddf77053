"""What configure() and the commands' switch make of arguments and of the environment."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from typing import Any, Literal

import pytest
from opentelemetry import metrics, trace

from rx_backend.errors import InvalidArgument
from rx_backend.telemetry import configure, providers
from rx_backend.telemetry.settings import (
    batching,
    destination,
    exporter_names,
    hide_secrets,
    settings,
)
from rx_backend.telemetry.switch import OTLP_VARIABLE, OtlpSwitch
from tests.leaks import LeakWatch

HTTP, GRPC = "http/protobuf", "grpc"
ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
OF_TRACES = "OTEL_EXPORTER_OTLP_TRACES_"
URL = "http://127.0.0.1:4318"

Variables = dict[str, str]
Signal = Literal["traces", "metrics"]

EXPORTERS: list[tuple[Variables, dict[str, Any], Signal, tuple[str, ...] | str]] = [
    ({}, {}, "traces", ("otlp",)),
    ({"OTEL_TRACES_EXPORTER": "console, OTLP"}, {}, "traces", ("console", "otlp")),
    ({"OTEL_TRACES_EXPORTER": "none"}, {}, "traces", "OTEL_TRACES_EXPORTER"),
    ({"OTEL_TRACES_EXPORTER": "none"}, {"traces": True}, "traces", ("otlp",)),
    ({"OTEL_METRICS_EXPORTER": "prometheus"}, {}, "metrics", ("prometheus",)),
    ({}, {"prometheus_port": 0}, "metrics", ("prometheus",)),
    ({"OTEL_METRICS_EXPORTER": "none"}, {"prometheus_port": 0}, "metrics", ("prometheus",)),
    ({"OTEL_METRICS_EXPORTER": "otlp"}, {"prometheus_port": 0}, "metrics", ("otlp", "prometheus")),
    ({}, {"metrics": False}, "metrics", "OTEL_METRICS_EXPORTER"),
    # The switches that win over the code.
    ({"OTEL_SDK_DISABLED": "TRUE"}, {"traces": True}, "traces", "OTEL_SDK_DISABLED"),
    ({"OTEL_SDK_DISABLED": "1"}, {}, "traces", ("otlp",)),
    ({"OTEL_EXPORT_ENABLED": "1"}, {}, "traces", ("otlp",)),
    ({"OTEL_EXPORT_ENABLED": "0"}, {"traces": True}, "traces", "OTEL_EXPORT_ENABLED"),
    ({"OTEL_EXPORT_ENABLED": ""}, {}, "metrics", "OTEL_EXPORT_ENABLED"),
    ({"OTEL_EXPORT_ENABLED": "no"}, {"prometheus_port": 0}, "metrics", ("prometheus",)),
]

DESTINATIONS: list[tuple[Variables, dict[str, Any], Signal, tuple[str, str]]] = [
    ({}, {}, "metrics", (GRPC, "http://localhost:4317")),
    ({ENDPOINT: "http://c:4318"}, {}, "traces", (HTTP, "http://c:4318/v1/traces")),
    ({ENDPOINT: "c:4317"}, {}, "traces", (GRPC, "c:4317")),
    ({ENDPOINT: "http://c:4318/x/"}, {}, "metrics", (HTTP, "http://c:4318/x/v1/metrics")),
    ({PROTOCOL: HTTP}, {}, "traces", (HTTP, "http://localhost:4318/v1/traces")),
    ({OF_TRACES + "PROTOCOL": HTTP}, {}, "traces", (HTTP, "http://localhost:4318/v1/traces")),
    ({OF_TRACES + "PROTOCOL": HTTP}, {}, "metrics", (GRPC, "http://localhost:4317")),
    ({OF_TRACES + "ENDPOINT": "http://t:4318/as-is"}, {}, "traces", (HTTP, "http://t:4318/as-is")),
    (
        {OF_TRACES + "ENDPOINT": "http://t:4318", PROTOCOL: GRPC},
        {"endpoint": "http://argument:4318", "protocol": HTTP},
        "traces",
        (HTTP, "http://argument:4318/v1/traces"),
    ),
]

BAD: list[tuple[Variables, dict[str, Any], str]] = [
    ({"OTEL_TRACES_EXPORTER": "prometheus"}, {}, "OTEL_TRACES_EXPORTER: expected one of otlp, con"),
    ({"OTEL_METRICS_EXPORTER": "otpl"}, {}, "OTEL_METRICS_EXPORTER: expected one of"),
    ({PROTOCOL: "http/json"}, {}, f"{PROTOCOL}: expected one of grpc, http/protobuf, got"),
    ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "HTTP"}, {}, "_METRICS_PROTOCOL: expected one of"),
    ({ENDPOINT: "c:4318", PROTOCOL: HTTP}, {}, f"{ENDPOINT}: expected a URL"),
    ({"OTEL_TRACES_SAMPLER": "sometimes"}, {}, "OTEL_TRACES_SAMPLER: expected one of always_on"),
    ({"OTEL_TRACES_SAMPLER_ARG": "2"}, {}, "_ARG: expected a number from 0 to 1, got '2'"),
    ({"OTEL_TRACES_SAMPLE_RATIO": "half"}, {}, "OTEL_TRACES_SAMPLE_RATIO: expected a number"),
    ({"OTEL_EXPORT_ENABLED": "maybe"}, {}, "OTEL_EXPORT_ENABLED: expected true or false"),
    ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, {}, "_QUEUE_SIZE: expected a whole number from 1"),
    (
        {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9"},
        {},
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: expected at most 8, which is OTEL_BSP_MAX_QUEUE_SIZE",
    ),
    ({"OTEL_BSP_SCHEDULE_DELAY": "5s"}, {}, "OTEL_BSP_SCHEDULE_DELAY: expected a whole number"),
    ({"OTEL_METRIC_EXPORT_INTERVAL": "-1"}, {}, "_INTERVAL: expected a number from 1 to"),
    ({"OTEL_EXPORTER_OTLP_TIMEOUT": "nan"}, {}, "OTEL_EXPORTER_OTLP_TIMEOUT: expected a number"),
    ({"OTEL_EXPORTER_PROMETHEUS_PORT": "65536"}, {}, "a whole number from 0 to 65535, got"),
    ({"OTEL_BSP_MAX_QUEUE_SIZE": "1" + 23 * "0"}, {}, "OTEL_BSP_MAX_QUEUE_SIZE: expected a whole"),
    ({"OTEL_BSP_SCHEDULE_DELAY": 20 * "9"}, {}, "OTEL_BSP_SCHEDULE_DELAY: expected a whole number"),
    ({"OTEL_METRIC_EXPORT_INTERVAL": "1e300"}, {}, "_INTERVAL: expected a number from 1 to"),
    ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "abc"}, {}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: expected a"),
    (
        {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "-1"},
        {},
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: expected",
    ),
    ({"OTEL_METRICS_EXEMPLAR_FILTER": "foo"}, {}, "OTEL_METRICS_EXEMPLAR_FILTER: expected one of"),
    (
        {"OTEL_EXPORTER_PROMETHEUS_HOST": "h\u00e9..x"},
        {"prometheus_port": 0},
        "OTEL_EXPORTER_PROMETHEUS_HOST and _PORT: expected an address that is free, got h\u00e9..x:0",
    ),
    ({}, {"endpoint": "ftp://me:s3cr3t@h"}, "4317, got 'ftp://h'"),
    ({}, {"endpoint": "http://me:s3 cr3t@h"}, "4317, got 'http://h'"),
    ({ENDPOINT: "me:s3 cr3t@h:4317"}, {}, "4317, got 'h:4317'"),
    ({}, {"endpoint": "localhost:4317"}, "endpoint: expected a URL as http://127.0.0.1:4317"),
    ({}, {"endpoint": "http://h:port"}, "endpoint: expected a URL as http://127.0.0.1:4317"),
    ({}, {"protocol": "udp"}, "protocol: expected one of grpc, http/protobuf, got 'udp'"),
    ({}, {"prometheus_port": -1}, "prometheus_port: expected 0 to 65535, got -1"),
    ({}, {"prometheus_port": 1, "metrics": False}, "prometheus_port: expected none where metrics"),
]


@pytest.mark.parametrize(("environ", "arguments", "signal", "expected"), EXPORTERS)
def test_arguments_and_variables_name_the_exporters(
    environ: Variables, arguments: dict[str, Any], signal: Signal, expected: tuple[str, ...] | str
) -> None:
    """Arguments win over variables, but not over the two off switches."""
    names, off = exporter_names(settings(environ, **arguments), signal)
    assert (names or off) == expected


@pytest.mark.parametrize(("environ", "arguments", "signal", "expected"), DESTINATIONS)
def test_arguments_and_variables_name_the_destination(
    environ: Variables, arguments: dict[str, Any], signal: Signal, expected: tuple[str, str]
) -> None:
    """Arguments win over variables, a signal's own variable over the general one."""
    assert destination(settings(environ, **arguments), signal) == expected


@pytest.mark.parametrize(("size", "expected"), [(" ", (2048, 512)), ("100", (100, 100))])
def test_a_batch_fits_into_its_queue(size: str, expected: tuple[int, int]) -> None:
    """The SDK's defaults, unless the queue is smaller than its batch."""
    assert batching(settings({"OTEL_BSP_MAX_QUEUE_SIZE": size})) == expected


@pytest.mark.parametrize(("environ", "arguments", "message"), BAD)
def test_a_bad_value_is_named_and_nothing_is_installed(
    environ: Variables,
    arguments: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says which variable or argument, and what was expected."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    _refused(message, **arguments)


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", {}, "otlp"),
        ("opentelemetry.exporter.otlp.proto.http.metric_exporter", {"protocol": HTTP}, "otlp"),
        ("opentelemetry.exporter.prometheus", {"prometheus_port": 0}, "prometheus"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    module: str, arguments: dict[str, Any], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the command that installs the extra."""
    monkeypatch.setitem(sys.modules, module, None)
    _refused(f"pip install 'rx-backend[{extra}]'", **arguments)


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's port for Prometheus is an error at once."""
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = f"_HOST and _PORT: expected an address that is free, got 127.0.0.1:{port}"
        _refused(message, prometheus_port=port)


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint's user and password stay out of messages."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli")
    _refused("OTLP over grpc to http://127.0.0.1:4317: ", endpoint="http://me:s@127.0.0.1:4317")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h:4317/v1", "http://h:4317/v1"),
        ("http://me:s3cr3t@h:1/v1", "http://h:1/v1"),
        ("http://me:p@s3cr3t@h:1", "http://h:1"),
        ("http://me:p/s3cr3t@h", "http://h"),
        ("http://h/v1?key=s3cr3t", "http://h/v1"),
        ("http://h/v1?key=s3@cr3t", "http://***"),
        ("http://me:s3?cr3t@h", "http://***"),
        ("http://h/?to=http://s3cr3t", "http://h/"),
        ("exporting to me:s3cr3t@h:1.", "exporting to h:1."),
        ("with url: /v1?key=s3cr3t (Caused by", "with url: /v1 (Caused by"),
    ],
)
def test_users_passwords_and_queries_are_hidden(text: str, expected: str) -> None:
    """Wherever an address is quoted."""
    assert hide_secrets(text) == expected


def test_what_the_sdk_refuses_when_it_is_imported_is_named() -> None:
    """In a process that has not imported it yet."""
    program = "from rx_backend.telemetry import configure; configure()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"OTEL_SPAN_EVENT_COUNT_LIMIT": "many"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    message = "InvalidArgument: OTEL_SPAN_EVENT_COUNT_LIMIT: expected a whole number from 0 to"
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "part",
    [
        "_resource",
        "TracerProvider",
        "BatchSpanProcessor",
        "PeriodicExportingMetricReader",
        "MeterProvider",
    ],
)
def test_what_the_sdk_refuses_leaves_nothing_behind(
    part: str, monkeypatch: pytest.MonkeyPatch, leaks: LeakWatch
) -> None:
    """Its words are the error's; neither providers nor threads stay."""
    leaks.allow("Cannot call collect on a MetricReader")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("OTEL_SOMETHING must be smaller")

    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setattr(providers, part, refuse)
    before = {thread.name for thread in threading.enumerate()}
    _refused("OpenTelemetry's SDK: OTEL_SOMETHING must be smaller", prometheus_port=0)
    assert {thread.name for thread in threading.enumerate()} == before


def _refused(message: str, **arguments: Any) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        configure(**arguments)
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert "Proxy" in type(metrics.get_meter_provider()).__name__


@pytest.mark.parametrize(
    ("otlp", "environ", "is_on", "endpoint"),
    [
        (None, {}, False, None),
        ("true", {}, True, None),
        (URL, {OTLP_VARIABLE: "http://other:1"}, True, URL),
        ("false", {OTLP_VARIABLE: URL}, False, None),
        (None, {OTLP_VARIABLE: URL}, True, URL),
        (None, {OTLP_VARIABLE: "1"}, True, None),
        (None, {OTLP_VARIABLE: "off"}, False, None),
    ],
)
def test_the_flag_beats_the_variable(
    otlp: str | None, environ: Variables, is_on: bool, endpoint: str | None
) -> None:
    """Either may be a switch or a URL."""
    switch = OtlpSwitch(otlp, environ)
    assert (switch.is_on, switch.endpoint) == (is_on, endpoint)


@pytest.mark.parametrize(
    ("otlp", "environ", "exported"),
    [
        (None, {}, {}),
        (URL, {"OTEL_SDK_DISABLED": "true"}, {}),
        (URL, {"OTEL_TRACES_EXPORTER": "console"}, {}),
        ("true", {ENDPOINT: URL}, {"OTEL_EXPORT_ENABLED": "1", PROTOCOL: HTTP}),
        (
            URL,
            {ENDPOINT: "http://other:1", "OTEL_EXPORT_ENABLED": "true"},
            {ENDPOINT: URL, PROTOCOL: HTTP},
        ),
    ],
)
def test_the_runtime_exports_to_the_same_place(
    otlp: str | None, environ: Variables, exported: Variables
) -> None:
    """Its variables say so where telemetry is on; afterwards they are as before."""
    after = dict(environ)
    with OtlpSwitch(otlp, environ).exported_to_runtime_env(after):
        assert after == {**environ, **exported}
    assert after == environ


def test_a_flag_that_is_no_address_is_refused() -> None:
    """As an engine's name behind the flag is."""
    with pytest.raises(InvalidArgument, match="--otlp or RX_BACKEND_OTLP: expected a URL"):
        OtlpSwitch("m:E", {})
