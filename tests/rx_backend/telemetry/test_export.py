"""Telemetry that arrives at a real receiver, and what happens when there is none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.otlp.receiver import Link, Receiver
from tests.rx_backend.telemetry._receivers import failing, refusing, run_child, silent
from tests.rx_backend.telemetry.exporting_child import (
    LINKED_SPAN_ID,
    LINKED_TRACE_ID,
    PARENT_ID,
    REQUESTS,
    TOKENS,
    TRACE_ID,
)

pytestmark = pytest.mark.timeout(60)

ANSWER = [[*range(TOKENS)]] * REQUESTS

# An hour: where it decided when the process ends, the test would not end.
PATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "3600", "OTEL_METRIC_EXPORT_INTERVAL": "3600000"}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_requests_telemetry_arrives(receiver: Receiver, protocol: str) -> None:
    """Its span has parent, link, kind, status and attributes; its metrics have exact buckets."""
    told = run_child(
        "served",
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc if protocol == "grpc" else receiver.http,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_SERVICE_NAME="worker-7",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    )
    assert told["tokens"] == ANSWER
    assert told["lost"] == {"traces": 0, "metrics": 0}
    assert told["warnings"] == []
    assert told["threads"] == ["MainThread"]
    spans = receiver.spans
    assert [span.name for span in spans] == ["engine.generate"] * REQUESTS
    for span in spans:
        assert (span.trace_id, span.parent_id) == (TRACE_ID, PARENT_ID)
        assert span.links == (Link(LINKED_TRACE_ID, LINKED_SPAN_ID),)
        assert (span.kind, span.status, span.scope) == ("SERVER", "UNSET", "rx_backend")
        assert span.start_ns < span.end_ns
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
    assert {point.value for point in receiver.points_of("rx_backend.telemetry.lost")} == {0.0}


def test_the_end_of_the_process_exports_the_rest(receiver: Receiver) -> None:
    """What waits when nobody shuts telemetry down arrives all the same."""
    told = run_child("at_exit", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc)
    assert told["tokens"] == ANSWER[:1]
    assert [span.resource["service.name"] for span in receiver.spans] == ["rx-backend"]
    assert receiver.points_of("gen_ai.server.time_to_first_token")


def test_providers_of_the_application_are_left_alone(receiver: Receiver) -> None:
    """They get the spans and metrics, also after the shutdown, and nothing is sent elsewhere."""
    told = run_child("beside_others", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc)
    assert told["same"]
    assert told["spans"] == ["engine.generate"] * REQUESTS
    assert "gen_ai.server.request.duration" in told["metrics"]
    assert told["told"].count("left to opentelemetry.sdk.") == 2
    assert told["warnings"] == []
    assert receiver.spans == []
    assert receiver.points == []


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize(("place", "says"), [(refusing, "refused"), (silent, "deadline")])
def test_a_receiver_that_is_down_or_slow_costs_a_stream_nothing(
    place: Callable[[], AbstractContextManager[str]], says: str, protocol: str
) -> None:
    """Requests are answered, the shutdown gives up by itself, and each loss is told once."""
    with place() as address:
        told = run_child(
            "served",
            OTEL_EXPORTER_OTLP_ENDPOINT=address,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            DEADLINE_S="1",
            **PATIENT,
        )
    assert told["tokens"] == ANSWER
    _lost_all(told, says)


def test_a_receiver_that_fails_costs_a_stream_nothing() -> None:
    """Every batch that is refused is counted; the reason is told once, with the first."""
    with failing() as address:
        told = run_child(
            "served",
            OTEL_EXPORTER_OTLP_ENDPOINT=address,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1",
            OTEL_METRIC_EXPORT_INTERVAL="10",
        )
    assert told["tokens"] == ANSWER
    _lost_all(told, "Internal Server Error")
    assert told["threads"] == ["MainThread"]


def _lost_all(told: dict[str, Any], says: str) -> None:
    lost, warnings = told["lost"], told["warnings"]
    assert lost["traces"] == REQUESTS
    assert lost["metrics"] > 0
    assert len(warnings) == 2, warnings
    for warning, what in zip(sorted(warnings), ("metric points", "spans"), strict=True):
        assert warning.startswith(f"rx_backend.telemetry: {what} are being lost")
        assert says in warning


def test_prometheus_scrapes_the_metrics(receiver: Receiver) -> None:
    """The endpoint shows them with their buckets until the shutdown, and nothing is pushed."""
    told = run_child("scraped", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc)
    lines = told["text"].splitlines()
    assert "# TYPE gen_ai_server_request_duration_seconds histogram" in lines
    buckets = [
        line for line in lines if line.startswith("gen_ai_server_request_duration_seconds_b")
    ]
    assert 'le="0.01"' in buckets[0]
    assert buckets[-1].endswith(f" {REQUESTS}.0")
    assert any(line.startswith("rx_backend_requests_total{") for line in lines)
    assert told["after"] == "ConnectionRefusedError"
    assert f"Prometheus at {told['url']}" in told["told"]
    assert receiver.points == []
