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
from rx_backend.telemetry import configure
from rx_backend.telemetry.settings import destination, exporter_names, hide_secrets
from rx_backend.telemetry.switch import OTLP_VARIABLE, OtlpSwitch
from tests.leaks import LeakWatch
from tests.rx_backend.worker._processes import free_port

HTTP, GRPC = "http/protobuf", "grpc"
ENDPOINT, PROTOCOL = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
OF_TRACES = "OTEL_EXPORTER_OTLP_TRACES_"
URL = "http://127.0.0.1:4318"

Variables = dict[str, str]
Signal = Literal["traces", "metrics"]

EXPORTERS: list[tuple[Variables, Signal, tuple[str, ...] | str]] = [
    ({}, "traces", ("otlp",)),
    ({"OTEL_TRACES_EXPORTER": " "}, "traces", ("otlp",)),
    ({"OTEL_TRACES_EXPORTER": "console, OTLP"}, "traces", ("console", "otlp")),
    ({"OTEL_TRACES_EXPORTER": "none"}, "traces", "OTEL_TRACES_EXPORTER"),
    ({"OTEL_METRICS_EXPORTER": "prometheus,otlp"}, "metrics", ("otlp", "prometheus")),
    ({"OTEL_SDK_DISABLED": "TRUE"}, "traces", "OTEL_SDK_DISABLED"),
    ({"OTEL_SDK_DISABLED": "1"}, "traces", ("otlp",)),
    ({"OTEL_EXPORT_ENABLED": "1"}, "traces", ("otlp",)),
    ({"OTEL_EXPORT_ENABLED": "0"}, "traces", "OTEL_EXPORT_ENABLED"),
    ({"OTEL_EXPORT_ENABLED": ""}, "metrics", "OTEL_EXPORT_ENABLED"),
    (
        {"OTEL_EXPORT_ENABLED": "no", "OTEL_METRICS_EXPORTER": "otlp,prometheus"},
        "metrics",
        ("prometheus",),
    ),
]

DESTINATIONS: list[tuple[Variables, str | None, Signal, tuple[str, str]]] = [
    ({}, None, "metrics", (GRPC, "http://localhost:4317")),
    ({ENDPOINT: "http://c:4318"}, None, "traces", (HTTP, "http://c:4318/v1/traces")),
    ({ENDPOINT: "c:4317"}, None, "traces", (GRPC, "c:4317")),
    ({ENDPOINT: "http://c:4318/x/"}, None, "metrics", (HTTP, "http://c:4318/x/v1/metrics")),
    ({PROTOCOL: HTTP}, None, "traces", (HTTP, "http://localhost:4318/v1/traces")),
    ({OF_TRACES + "PROTOCOL": HTTP}, None, "traces", (HTTP, "http://localhost:4318/v1/traces")),
    ({OF_TRACES + "PROTOCOL": HTTP}, None, "metrics", (GRPC, "http://localhost:4317")),
    ({OF_TRACES + "ENDPOINT": "http://t:4318/is"}, None, "traces", (HTTP, "http://t:4318/is")),
    (
        {OF_TRACES + "ENDPOINT": "http://t:4317", ENDPOINT: "http://c:1"},
        "http://argument:4318",
        "traces",
        (HTTP, "http://argument:4318/v1/traces"),
    ),
    ({PROTOCOL: GRPC}, URL, "traces", (GRPC, URL)),
]

BAD: list[tuple[Variables, str | None, str]] = [
    (
        {"OTEL_TRACES_EXPORTER": "prometheus"},
        None,
        "OTEL_TRACES_EXPORTER: expected console, none, ot",
    ),
    ({"OTEL_METRICS_EXPORTER": "otpl"}, None, "OTEL_METRICS_EXPORTER: expected console, none, o"),
    ({PROTOCOL: "http/json"}, None, f"{PROTOCOL}: expected one of grpc, http/protobuf, got"),
    ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "HTTP"}, None, "_METRICS_PROTOCOL: expected one of"),
    ({ENDPOINT: "c:4318", PROTOCOL: HTTP}, None, f"{ENDPOINT}: expected a URL"),
    ({ENDPOINT: "c:4318"}, None, f"{ENDPOINT}: expected a URL"),
    ({ENDPOINT: "me:s3 cr3t@h:4317"}, None, "4317, got 'h:4317'"),
    ({ENDPOINT: "http://", PROTOCOL: GRPC}, None, f"{ENDPOINT}: expected a URL"),
    ({"OTEL_EXPORT_ENABLED": "maybe"}, None, "OTEL_EXPORT_ENABLED: expected true or false"),
    ({"OTEL_TRACES_SAMPLE_RATIO": "half"}, None, "OTEL_TRACES_SAMPLE_RATIO: expected a number"),
    ({"OTEL_TRACES_SAMPLE_RATIO": "2"}, None, "OTEL_TRACES_SAMPLE_RATIO: expected a number"),
    ({}, "ftp://me:s3cr3t@h", "4317, got 'ftp://h'"),
    ({}, "http://me:s3 cr3t@h", "4317, got 'http://h'"),
    ({}, "localhost:4317", "endpoint: expected a URL such as http://127.0.0.1:4317"),
    ({}, "http://h:port", "endpoint: expected a URL such as http://127.0.0.1:4317"),
    # What the SDK refuses, in its own words; a password in an address is not among them.
    (
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "5s"},
        "http://me:s@127.0.0.1:4317",
        "grpc to http://127.0.0.1",
    ),
    ({"OTEL_BSP_MAX_QUEUE_SIZE": "8"}, None, "OpenTelemetry's SDK: max_export_batch_size must be"),
    ({"OTEL_BSP_MAX_QUEUE_SIZE": "8"}, None, "(set: OTEL_BSP_MAX_QUEUE_SIZE)"),
    ({"OTEL_EXPORTER_OTLP_TIMEOUT": "5s"}, None, "(set: OTEL_EXPORTER_OTLP_TIMEOUT)"),
    ({"OTEL_METRIC_EXPORT_INTERVAL": "-1"}, None, "OpenTelemetry's SDK: interval value -1.0"),
    ({"OTEL_METRICS_EXEMPLAR_FILTER": "foo"}, None, "OpenTelemetry's SDK: Unknown exemplar filter"),
]


@pytest.mark.parametrize(("environ", "signal", "expected"), EXPORTERS)
def test_variables_name_the_exporters(
    environ: Variables, signal: Signal, expected: tuple[str, ...] | str
) -> None:
    """Each signal has its own; the two off switches count more."""
    names, off = exporter_names(environ, signal)
    assert (names or off) == expected


@pytest.mark.parametrize(("environ", "endpoint", "signal", "expected"), DESTINATIONS)
def test_arguments_and_variables_name_the_destination(
    environ: Variables, endpoint: str | None, signal: Signal, expected: tuple[str, str]
) -> None:
    """An argument wins over variables, a signal's own variable over the general one."""
    assert destination(environ, signal, endpoint) == expected


@pytest.mark.parametrize(("environ", "endpoint", "message"), BAD)
def test_a_bad_value_is_named_and_nothing_is_installed(
    environ: Variables,
    endpoint: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    leaks: LeakWatch,
) -> None:
    """The error says which variable or argument; neither providers nor threads stay."""
    leaks.allow("Cannot call collect on a MetricReader")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    before = set(threading.enumerate())
    _refused(message, endpoint=endpoint)
    begun = set(threading.enumerate()) - before
    for thread in begun:
        # The SDK's detectors of resources may still be ending.
        thread.join(5)
    assert not any(thread.is_alive() for thread in begun)


@pytest.mark.parametrize(
    ("module", "environ", "extra"),
    [
        ("opentelemetry.exporter.otlp.proto.grpc.trace_exporter", {}, "otlp"),
        ("opentelemetry.exporter.otlp.proto.http.metric_exporter", {PROTOCOL: HTTP}, "otlp"),
        (
            "opentelemetry.exporter.prometheus",
            {"OTEL_METRICS_EXPORTER": "prometheus"},
            "prometheus",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    module: str, environ: Variables, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the command that installs the extra."""
    monkeypatch.setitem(sys.modules, module, None)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    _refused(f"pip install 'rx-backend[{extra}]'")


@pytest.fixture(name="scraped")
def _scraped(monkeypatch: pytest.MonkeyPatch) -> int:
    """Have Prometheus scrape a port that is free, and return it."""
    port = free_port()
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus,otlp")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "127.0.0.1")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(port))
    return port


def test_a_port_in_use_is_named(scraped: int) -> None:
    """Another's port for Prometheus, as that of a second worker, is an error at once."""
    with socket.create_server(("127.0.0.1", scraped)):
        _refused(
            "OTEL_EXPORTER_PROMETHEUS_HOST and _PORT: can't listen on "
            f"127.0.0.1:{scraped}: Address already in use"
        )


@pytest.mark.parametrize("port", ["many", "65536", "-1"])
def test_an_invalid_port_is_named(port: str, scraped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own error does not say which variable it is."""
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", port)
    _refused(f"OTEL_EXPORTER_PROMETHEUS_PORT: expected a port from 0 to 65535, got '{port}'")


def test_a_rejected_variable_leaves_no_endpoint(
    scraped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a second try, as in a notebook, finds the port free."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "0")
    _refused("OpenTelemetry's SDK: interval value 0.0")
    socket.create_server(("127.0.0.1", scraped)).close()


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


def test_a_variable_rejected_at_the_sdks_import_is_named() -> None:
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
    message = "InvalidArgument: OpenTelemetry's SDK: OTEL_SPAN_EVENT_COUNT_LIMIT must be a"
    assert message in done.stderr.splitlines()[-1]


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


@pytest.mark.parametrize("name", ["oltp", "otlp_proto_http", "prometheus"])
def test_the_runtime_gets_no_invalid_exporter(name: str) -> None:
    """A frontend, which has no provider of ours, refuses it too; none sends past ``--otlp``."""
    environ = {"OTEL_TRACES_EXPORTER": name}
    with (
        pytest.raises(InvalidArgument, match=f"OTEL_TRACES_EXPORTER: .*installed, got '{name}'"),
        OtlpSwitch(URL, environ).exported_to_runtime_env(environ),
    ):
        pass


def test_an_endpoint_must_be_text() -> None:
    """As one of another form is."""
    port: Any = 4317
    with pytest.raises(InvalidArgument, match=r"endpoint: expected a URL such as .*, got 4317"):
        configure(endpoint=port)


def test_an_invalid_otlp_url_is_rejected() -> None:
    """As an engine's name after the flag is."""
    with pytest.raises(InvalidArgument, match="--otlp or RX_BACKEND_OTLP: expected a URL"):
        OtlpSwitch("m:E", {})
