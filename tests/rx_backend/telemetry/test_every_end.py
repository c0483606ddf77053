"""Every way in which a request can end, as a real receiver is told of it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest
from msgspec.structs import replace
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from rx_backend.adapter import EngineAdapter
from rx_backend.errors import BackendError, InvalidArgument
from tests.otlp.receiver import Receiver
from tests.rx_backend._engines import ScriptedEngine, Step, request, run_virtual, token
from tests.rx_backend.telemetry.test_metrics import ENDS, Leave, read_all

# Requests that never have a stream, and what is told of them.
SETUPS: dict[str, tuple[Step, tuple[str, str]]] = {
    "setup-typed": (InvalidArgument("too long"), ("setup_failed", "InvalidArgument")),
    "setup-untyped": (RuntimeError("too long"), ("setup_failed", "Unknown")),
    "setup-left": (60, ("dropped", "Dropped")),
}

# What the status says besides.
DESCRIPTIONS = {
    "error-terminal": 'Error("prompt text")',
    "typed-error": "Backend(Disconnected)",
    "any-error": "Backend(Unknown)",
    "no-terminal": "Backend(StreamIncomplete)",
    "closed": "stream dropped before terminal",
    "task-cancelled": "stream dropped before terminal",
    "forgotten": "stream dropped before terminal",
    "setup-typed": "setup_failed",
    "setup-untyped": "setup_failed",
    "setup-left": "stream dropped before terminal",
}


class Telemetry:
    """Providers that export to the receiver, and adapters that use them."""

    def __init__(self, receiver: Receiver) -> None:
        self._tracers = TracerProvider(shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=receiver.grpc, insecure=True)
        self._tracers.add_span_processor(BatchSpanProcessor(exporter))
        metrics = OTLPMetricExporter(endpoint=receiver.grpc, insecure=True)
        reader = PeriodicExportingMetricReader(metrics, export_interval_millis=3_600_000)
        self._meters = MeterProvider([reader], shutdown_on_exit=False)

    def adapter(self, engine: ScriptedEngine) -> EngineAdapter:
        return EngineAdapter(
            engine,
            tracer=self._tracers.get_tracer("rx_backend"),
            meter_provider=self._meters,
            clock=asyncio.get_running_loop().time,
        )

    def shutdown(self) -> None:
        self._tracers.shutdown()
        self._meters.shutdown()


async def with_stream(telemetry: Telemetry, name: str, script: list[Step], leave: Leave) -> None:
    adapter = telemetry.adapter(ScriptedEngine(*script))
    held = [await adapter.generate(replace(request(), model=name))]
    await leave(held.pop())


async def without_stream(telemetry: Telemetry, name: str, setup: Step) -> None:
    adapter = telemetry.adapter(ScriptedEngine(setup=[setup]))
    with suppress(BackendError, TimeoutError):
        await asyncio.wait_for(adapter.generate(replace(request(), model=name)), 5)


@pytest.mark.rows("P3", "P4", "P5", "P6", "P7")
@pytest.mark.timeout(60)
def test_every_end_is_one_span_and_one_count(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """All side by side on one loop: the right status each, metrics that agree, no context left."""
    telemetry = Telemetry(receiver)
    before = otel_context.get_current()

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            for name, (script, leave, _) in ENDS.items():
                tasks.create_task(with_stream(telemetry, name, script, leave))
            for name, (setup, _) in SETUPS.items():
                tasks.create_task(without_stream(telemetry, name, setup))
        assert trace.get_current_span() is trace.INVALID_SPAN

    with caplog.at_level(logging.DEBUG):
        run_virtual(run())
    assert otel_context.get_current() == before
    assert not [record for record in caplog.records if "detach" in record.getMessage()]
    telemetry.shutdown()

    hows = {name: how for name, (_, _, how) in ENDS.items()} | {
        name: how for name, (_, how) in SETUPS.items()
    }
    spans = {str(span.attributes["gen_ai.request.model"]): span for span in receiver.spans}
    assert len(receiver.spans) == len(spans) == len(hows)
    told = {
        name: (span.status, span.description, span.attributes.get("error.type"))
        for name, span in spans.items()
    }
    assert told == {
        name: ("ERROR" if kind else "UNSET", DESCRIPTIONS.get(name, ""), kind)
        for name, (_, kind) in hows.items()
    }
    assert {
        point.attributes["gen_ai.request.model"]: (
            point.attributes["rx_backend.finish_reason"],
            point.attributes.get("error.type"),
            point.value,
        )
        for point in receiver.points_of("rx_backend.requests")
    } == {name: (*how, 1.0) for name, how in hows.items()}
    assert {point.value for point in receiver.points_of("rx_backend.requests.active")} == {0.0}
    durations = receiver.points_of("gen_ai.server.request.duration")
    assert {point.attributes["gen_ai.request.model"]: point.count for point in durations} == (
        dict.fromkeys(ENDS, 1)
    )


@pytest.mark.timeout(60)
def test_events_arrive_where_they_happened(receiver: Receiver) -> None:
    """The first token is an event of the span, timed within it."""
    telemetry = Telemetry(receiver)
    run_virtual(with_stream(telemetry, "one", [2, token(1), 1, ENDS["stop"][0][-1]], read_all))
    telemetry.shutdown()
    (span,) = receiver.spans
    (event,) = span.events
    assert event.name == "first_token"
    assert round((event.time_ns - span.start_ns) / 1e9) == 2
    assert round((span.end_ns - span.start_ns) / 1e9) == 3
