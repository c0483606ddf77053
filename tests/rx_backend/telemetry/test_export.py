"""Telemetry that arrives at a real receiver, and what happens when there is none."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.forks import run
from tests.otlp.receiver import Link, Receiver
from tests.rx_backend.telemetry._receivers import misbehaving
from tests.rx_backend.telemetry.exporting_child import (
    LINKED_SPAN_ID,
    LINKED_TRACE_ID,
    PARENT_ID,
    REQUESTS,
    TOKENS,
    TRACE_ID,
)
from tests.rx_backend.worker._processes import free_port

pytestmark = pytest.mark.timeout(60)

GRPC, HTTP = "grpc", "http/protobuf"
ANSWER = [[*range(TOKENS)]] * REQUESTS
MANY_MB = 400

# An hour: where it decided when the process ends, the test would not end.
PATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "3600", "OTEL_METRIC_EXPORT_INTERVAL": "3600000"}


IMPORTED = (
    "rx_backend.cli",
    "rx_backend.replay.session",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.prometheus",
    "requests",
)


def run_process(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a module with these variables, and no others like them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return run(IMPORTED, arguments, env={**kept, **environ})


def run_child(action: str, **environ: str) -> dict[str, Any]:
    """Run an action of `exporting_child` to its end."""
    done = run_process("tests.rx_backend.telemetry.exporting_child", action, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_exports_share_a_connection(receiver: Receiver) -> None:
    """Each of the spans is an export of its own; over TLS each connection would be a handshake."""
    run_child(
        "served",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.http,
        OTEL_EXPORTER_OTLP_PROTOCOL=HTTP,
        OTEL_METRICS_EXPORTER="none",
    )
    assert len(receiver.spans) == REQUESTS
    assert receiver.connections == 1


@pytest.mark.rows("P10")
@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_requests_telemetry_arrives(receiver: Receiver, protocol: str) -> None:
    """Its span has an id of its own, whatever the engine seeds; its metrics have exact buckets."""
    told = run_child(
        "served",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc if protocol == GRPC else receiver.http,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_SERVICE_NAME="worker-7",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    )
    assert told["tokens"] == ANSWER
    assert told["lost"] == []
    assert told["warnings"] == []
    assert told["threads"] == ["MainThread"]
    spans = receiver.spans
    assert [span.name for span in spans] == ["engine.generate"] * REQUESTS
    assert len({span.span_id for span in spans}) == REQUESTS
    for span in spans:
        assert (span.trace_id, span.parent_id) == (TRACE_ID, PARENT_ID)
        assert span.links == (Link(LINKED_TRACE_ID, LINKED_SPAN_ID),)
        assert (span.kind, span.status, span.scope) == ("SERVER", "UNSET", "rx_backend")
        (first,) = span.events
        assert first.name == "first_token"
        assert span.start_ns <= first.time_ns <= span.end_ns
        assert span.attributes["output_tokens"] == TOKENS
        assert span.attributes["finish_reason"] == "Length"
        assert span.attributes["ttft_ms"] > 0.0
        assert span.resource["service.name"] == "worker-7"
        assert span.resource["deployment.environment.name"] == "test"
    (duration,) = receiver.points_of("gen_ai.server.request.duration")
    assert (duration.kind, duration.unit, duration.count) == ("histogram", "s", REQUESTS)
    assert duration.bounds[:3] == (0.01, 0.02, 0.04)
    assert len(duration.bounds) == 14
    assert sum(duration.counts) == REQUESTS
    assert duration.resource["service.name"] == "worker-7"


def test_the_sdk_counts_what_is_lost() -> None:
    """By its own metrics of itself, which a scrape shows while the receiver of spans is down."""
    with misbehaving("refuses") as address:
        told = run_child(
            "scraped",
            OTEL_EXPORTER_OTLP_ENDPOINT=address,
            OTEL_EXPORTER_OTLP_PROTOCOL=HTTP,
            OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED="true",
            OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
            **scraped_at(free_port()),
        )
    counted = [
        line for line in told["text"].splitlines() if "otel_sdk_exporter_span_exported" in line
    ]
    assert any("error_type=" in line and line.endswith(f" {REQUESTS}.0") for line in counted)


def test_the_end_of_the_process_exports_the_rest(receiver: Receiver) -> None:
    """What is pending when nothing shuts telemetry down arrives all the same."""
    told = run_child("at_exit", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc)
    assert told["tokens"] == ANSWER[:1]
    assert [span.resource["service.name"] for span in receiver.spans] == ["unless-named"]
    assert receiver.points_of("gen_ai.server.time_to_first_token")


def test_providers_of_the_application_are_kept(receiver: Receiver) -> None:
    """They get the spans and metrics, also after the shutdown, and nothing is sent elsewhere."""
    told = run_child("beside_others", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc)
    assert told["same"]
    assert told["spans"] == ["engine.generate"] * REQUESTS
    assert told["requests"] == REQUESTS
    assert told["told"].count("left to opentelemetry.sdk.") == 2
    assert told["warnings"] == []
    assert (receiver.spans, receiver.points) == ([], [])


@pytest.mark.parametrize(
    ("how", "protocol", "says"),
    [
        ("refuses", GRPC, "refused"),
        ("refuses", HTTP, "refused"),
        ("silent", GRPC, "deadline"),
        ("silent", HTTP, "deadline"),
        ("fails", HTTP, "Internal Server Error"),
        ("endless-headers", HTTP, "100 headers"),
        ("garbage", HTTP, "Bad"),
        ("garbage", GRPC, "UNAVAILABLE"),
        # The status is the answer: no body is read.
        ("endless-body", HTTP, None),
        ("slow-body", HTTP, None),
    ],
)
def test_a_misbehaving_receiver_does_not_affect_streams(
    how: str, protocol: str, says: str | None
) -> None:
    """
    Streams, shutdown and memory are unaffected.

    A loss is reported, and logged once, in a line.
    """
    with misbehaving(how) as address:
        told = run_child(
            "served",
            OTEL_EXPORTER_OTLP_ENDPOINT=address,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1",
            DEADLINE_S="1",
            **PATIENT,
        )
    assert told["tokens"] == ANSWER
    assert told["memory_mb"] < MANY_MB
    lost, warnings = told["lost"], told["warnings"]
    if says is None:
        assert (lost, warnings) == ([], [])
        return
    assert lost == ["metric points", "spans"]
    assert len(warnings) == 2, warnings
    assert says in "".join(warnings)
    for warning, what in zip(sorted(warnings), ("metric points", "spans"), strict=True):
        assert warning.startswith(f"rx_backend.telemetry: {what} are being lost")
        assert warning.isprintable()
        assert len(warning) < 500


def scraped_at(port: int) -> dict[str, str]:
    return {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}


def test_prometheus_scrapes_the_metrics(receiver: Receiver) -> None:
    """The endpoint shows them with their buckets, and nothing is pushed."""
    port = free_port()
    told = run_child("scraped", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc, **scraped_at(port))
    lines = told["text"].splitlines()
    assert "# TYPE gen_ai_server_request_duration_seconds histogram" in lines
    buckets = [
        line for line in lines if line.startswith("gen_ai_server_request_duration_seconds_b")
    ]
    assert 'le="0.01"' in buckets[0]
    assert buckets[-1].endswith(f" {REQUESTS}.0")
    assert any(line.startswith("rx_backend_requests_total{") for line in lines)
    assert f"Prometheus at http://localhost:{port}/metrics" in told["told"]
    assert receiver.points == []


def test_a_run_is_exported(receiver: Receiver, tmp_path: Path) -> None:
    """Each request is a span at the receiver and a line of the file; latencies are the replay's."""
    out = _run(tmp_path, "--otlp", receiver.grpc)
    assert f"telemetry: traces: OTLP over grpc to {receiver.grpc}" in out
    assert "were lost" not in out
    lines = (tmp_path / "spans.jsonl").read_text().splitlines()
    ids = {json.loads(line)["span_id"] for line in lines}
    assert len(ids) == 12
    assert {span.span_id for span in receiver.named("engine.generate")} == ids
    (first,) = receiver.points_of("gen_ai.server.time_to_first_token")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert first.count == summary["completed"]


def test_a_run_without_a_receiver_reports_the_loss(tmp_path: Path) -> None:
    """The replay is the same, and its files are there; no line is logged of requests that fail."""
    with misbehaving("refuses") as address:
        out = _run(
            tmp_path,
            *("--no-spans", "--otlp", address, "--error-rate", "1"),
            OTEL_EXPORTER_OTLP_PROTOCOL=HTTP,
            OTEL_METRICS_EXPORTER="none",
            OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
        )
    assert "telemetry: spans were lost" in out
    assert (tmp_path / "summary.json").exists()


def _run(folder: Path, *flags: str, **environ: str) -> str:
    arguments = ["run", "--synthetic", "--limit", "12", "--no-plot", "--out", str(folder)]
    done = run_process("rx_backend_cli", *arguments, *flags, **environ)
    assert done.returncode == 0, done.stderr
    assert "request failed" not in done.stderr
    return done.stdout
