"""Span, metrics and log of a request say the same, however it ends."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from structlog.testing import capture_logs

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import BackendError, Disconnected
from rx_backend.protocols import LLMEngineOutput
from rx_backend.telemetry import EXPORT_ENABLED
from rx_backend.telemetry.metrics import OTHER_MODELS
from tests.meters import Meters
from tests.otlp.receiver import Receiver
from tests.rx_backend._engines import (
    ScriptedEngine,
    Step,
    collect,
    request,
    run_virtual,
    stop,
    token,
    virtual,
)
from tests.rx_backend.telemetry._ends import ENDS, SETUPS, End, metered, read_all
from tests.spans import Spans

REQUESTS, ACTIVE = "rx_backend.requests", "rx_backend.requests.active"
HOW = ("rx_backend.finish_reason", "error.type")
LEVELS = {"request ended": "info", "request dropped": "info", "request failed": "warning"}


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what the environment says about recording."""
    monkeypatch.delenv(EXPORT_ENABLED, raising=False)


def same_end(
    meters: Meters, spans: Spans, events: list[Any], how: tuple[str, str | None, str, str]
) -> dict[str, Any]:
    """Check that one request is recorded once, and alike everywhere; its closing event."""
    reason, error_type, description, name = how
    assert meters.counts(REQUESTS, *HOW) == {(reason, error_type): 1}
    assert meters.counts(ACTIVE) == {}
    span = spans.one()
    attributes = span.attributes or {}
    assert (attributes.get("error.type"), span.status.description or "") == (
        error_type,
        description,
    )
    (event,) = [event for event in events if event["event"] in LEVELS]
    assert (event["event"], event["log_level"]) == (name, LEVELS[name])
    assert (event["finish_reason"], event.get("error_type")) == (reason, error_type)
    assert span.context is not None
    assert event["request_id"] == "r1"
    assert event["trace_id"] == trace.format_trace_id(span.context.trace_id)
    assert event["span_id"] == trace.format_span_id(span.context.span_id)
    assert (event["mode"], event["model"], event["input_tokens"]) == ("agg", "mock", 5)
    return event


@pytest.mark.rows("P3", "P4", "P5", "P6", "P7")
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@virtual
async def test_every_way_out_is_recorded_once(end: End) -> None:
    """With its tokens and its duration, and nothing is left active."""
    meters, spans = Meters(), Spans()
    with capture_logs() as events:
        adapter = metered(ScriptedEngine(*end.script), meters, spans)
        held = [await adapter.generate(request(prompt=5), RequestContext("r1"))]
        assert meters.counts(ACTIVE) == {(): 1}
        await end.leave(held.pop())
    event = same_end(meters, spans, events, end[2:])
    tokens = meters.counts("rx_backend.tokens", "gen_ai.token.type")
    assert tokens == {("input",): 5, ("output",): 1}
    kind = end.error_type
    assert meters.counts("gen_ai.server.request.duration", "error.type") == {(kind,): 1}
    first = meters.counts("gen_ai.server.time_to_first_token")
    assert first == ({(): 1} if kind is None else {})
    attributes = spans.one().attributes or {}
    for name in ("output_tokens", "ttft_ms", "setup_ms", "cancelled"):
        assert event[name] == attributes[name]


@pytest.mark.rows("P4", "P5")
@pytest.mark.parametrize(("setup", "how"), SETUPS.values(), ids=SETUPS)
@virtual
async def test_a_request_without_a_stream_is_recorded_once(
    setup: Step, how: tuple[str, str, str, str]
) -> None:
    """A set-up that fails, and a caller who leaves during it, after as long as they took."""
    meters, spans = Meters(), Spans()
    adapter = metered(ScriptedEngine(setup=[1, setup]), meters, spans)
    with capture_logs() as events, pytest.raises((BackendError, TimeoutError)):
        await asyncio.wait_for(adapter.generate(request(prompt=5), RequestContext("r1")), 5)
    event = same_end(meters, spans, events, how)
    assert event["duration_ms"] == (5000.0 if setup == 60 else 1000.0)


STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.sampled_from([token(1), LLMEngineOutput(), 1, 0.5]), max_size=4
)
ANY_END: st.SearchStrategy[list[Step]] = st.sampled_from(
    [[stop()], [LLMEngineOutput.error("e")], [Disconnected("gone")], [RuntimeError("e")], [], [60]]
)


@given(st.lists(st.tuples(STEPS, ANY_END, st.integers(0, 5)), max_size=6))
def test_metrics_agree_with_spans(requests: list[tuple[list[Step], list[Step], int]]) -> None:
    """Whatever happens to requests side by side, both say the same of how they ended."""
    meters, spans = Meters(), Spans()

    async def one(script: list[Step], end: list[Step], patience: int) -> None:
        stream = await metered(ScriptedEngine(*script, *end), meters, spans).generate(request())
        try:
            async with asyncio.timeout(patience):
                await collect(stream)
        except TimeoutError:
            pass
        finally:
            await stream.aclose()

    async def run() -> None:
        await asyncio.gather(*[one(*parts) for parts in requests])

    run_virtual(run())
    told = [(span.attributes or {}).get("error.type") for span in spans.finished]
    assert meters.counts(REQUESTS, "error.type") == {
        (kind,): told.count(kind) for kind in set(told)
    }
    tokens = sum((span.attributes or {})["output_tokens"] for span in spans.finished)  # type: ignore[misc]
    counted = meters.counts("rx_backend.tokens", "gen_ai.token.type").get(("output",), 0)
    assert counted == tokens
    assert meters.counts(ACTIVE) == {}


class Exported:
    """Adapters whose telemetry goes to the receiver."""

    def __init__(self, receiver: Receiver) -> None:
        self._tracers = TracerProvider(shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=receiver.grpc, insecure=True)
        self._tracers.add_span_processor(BatchSpanProcessor(exporter))
        points = OTLPMetricExporter(endpoint=receiver.grpc, insecure=True)
        reader = PeriodicExportingMetricReader(points, export_interval_millis=3_600_000)
        self._meters = MeterProvider([reader], shutdown_on_exit=False)

    async def serve(self, name: str, engine: ScriptedEngine, leave: Any = read_all) -> None:
        adapter = EngineAdapter(
            engine,
            tracer=self._tracers.get_tracer("rx_backend"),
            meter_provider=self._meters,
            clock=asyncio.get_running_loop().time,
        )
        with suppress(BackendError, TimeoutError):
            held = [await asyncio.wait_for(adapter.generate(replace(request(), model=name)), 5)]
            await leave(held.pop())

    def shutdown(self) -> None:
        self._tracers.shutdown()
        self._meters.shutdown()


@pytest.mark.rows("P3", "P4", "P5", "P6", "P7")
@pytest.mark.timeout(60)
def test_every_end_arrives(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """All side by side on one loop: the right status each, metrics that agree, no context left."""
    exported = Exported(receiver)
    before = otel_context.get_current()

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            for name, end in ENDS.items():
                tasks.create_task(exported.serve(name, ScriptedEngine(*end.script), end.leave))
            for name, (setup, _) in SETUPS.items():
                tasks.create_task(exported.serve(name, ScriptedEngine(setup=[setup])))
        assert trace.get_current_span() is trace.INVALID_SPAN

    with caplog.at_level(logging.DEBUG):
        run_virtual(run())
    assert otel_context.get_current() == before
    assert not [record for record in caplog.records if "detach" in record.getMessage()]
    exported.shutdown()
    hows = {name: end[2:5] for name, end in ENDS.items()}
    hows |= {name: how[:3] for name, (_, how) in SETUPS.items()}
    told = {
        span.attributes["gen_ai.request.model"]: (
            span.status,
            span.description,
            span.attributes.get("error.type"),
        )
        for span in receiver.spans
    }
    assert len(receiver.spans) == len(hows)
    assert told == {
        name: ("ERROR" if kind else "UNSET", description, kind)
        for name, (_, kind, description) in hows.items()
    }
    # A model that the engine refuses has no label of its own.
    hows[OTHER_MODELS] = hows.pop("setup-typed")
    assert {
        point.attributes["gen_ai.request.model"]: (
            point.attributes["rx_backend.finish_reason"],
            point.attributes.get("error.type"),
            point.value,
        )
        for point in receiver.points_of(REQUESTS)
    } == {name: (*how[:2], 1.0) for name, how in hows.items()}
    assert {point.value for point in receiver.points_of(ACTIVE)} == {0.0}
    durations = receiver.points_of("gen_ai.server.request.duration")
    assert {point.attributes["gen_ai.request.model"]: point.count for point in durations} == (
        dict.fromkeys(ENDS, 1)
    )


@pytest.mark.timeout(60)
def test_events_arrive_where_they_happened(receiver: Receiver) -> None:
    """The first token is an event of the span, timed within it."""
    exported = Exported(receiver)
    run_virtual(exported.serve("one", ScriptedEngine(2, token(1), 1, stop())))
    exported.shutdown()
    (span,) = receiver.spans
    (event,) = span.events
    assert event.name == "first_token"
    assert round((event.time_ns - span.start_ns) / 1e9) == 2
    assert round((span.end_ns - span.start_ns) / 1e9) == 3
