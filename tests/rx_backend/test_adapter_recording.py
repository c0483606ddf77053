"""Whether a request is measured: asked for, switched by the environment, or left to the span."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracer, StatusCode, Tracer

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import Disconnected
from rx_backend.protocols import LLMEngineOutput
from rx_backend.telemetry import EXPORT_ENABLED
from tests.rx_backend._engines import (
    DROPPED,
    ENTRY,
    ScriptedEngine,
    Step,
    adapter_of,
    chunk_of,
    collect,
    request,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans, rows_of

MODES = list(DisaggregationMode)


@pytest.fixture(autouse=True)
def no_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the say of the environment that the tests run in away."""
    monkeypatch.delenv(EXPORT_ENABLED, raising=False)


def unreadable_clock() -> float:
    raise AssertionError("the clock was read")


@contextmanager
def switched(value: str) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EXPORT_ENABLED, value)
        yield


@pytest.mark.rows("P8", "P1", "P2")
@pytest.mark.reference("auto_span_fires_without_otlp_override")
@pytest.mark.parametrize("switch", ["argument", "environment"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (stop(), (StatusCode.UNSET, None)),
        (LLMEngineOutput.error("boom"), (StatusCode.ERROR, 'Error("boom")')),
        (Disconnected("gone"), (StatusCode.ERROR, "Backend(Disconnected)")),
        (0.5, (StatusCode.ERROR, "Backend(StreamIncomplete)")),
    ],
    ids=["terminal", "error-terminal", "error", "no-terminal"],
)
@virtual
async def test_without_recording_the_span_has_its_start_and_its_status(
    switch: str, mode: DisaggregationMode, end: Step, expected: tuple[StatusCode, str | None]
) -> None:
    """The span is made and ends, no clock is read, nothing is measured, the items are the same."""
    spans = Spans()
    engine = ScriptedEngine(token(1), 1, LLMEngineOutput(token_ids=[2, 3]), end)
    with switched("off" if switch == "environment" else "on"):
        adapter = EngineAdapter(
            engine,
            mode,
            tracer=spans.tracer,
            clock=unreadable_clock,
            record=False if switch == "argument" else None,
        )
        items = await collect(await adapter.generate(request()))
    assert tokens_of(items[:2]) == [[1], [2, 3]]
    assert rows_of(spans.one()) == {**ENTRY, "disagg_role": mode.value}
    assert status_of(spans.one()) == expected


@pytest.mark.rows("P8")
@pytest.mark.parametrize(
    "tracer",
    [
        pytest.param(NoOpTracer(), id="no-sdk"),
        pytest.param(
            TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("t"),
            id="unsampled",
        ),
    ],
)
@pytest.mark.parametrize("end", [stop(), Disconnected("gone"), 0.5], ids=str)
@virtual
async def test_a_span_that_nobody_records_costs_no_clock(tracer: Tracer, end: Step) -> None:
    """Without an SDK, or unsampled, nothing is measured and the items are the same."""
    engine = ScriptedEngine(token(1), token(2), end)
    adapter = EngineAdapter(engine, tracer=tracer, clock=unreadable_clock)
    items = await collect(await adapter.generate(request()))
    assert tokens_of(items[:2]) == [[1], [2]]


@pytest.mark.rows("P8")
@virtual
async def test_an_unsampled_parent_is_obeyed() -> None:
    """A request of a trace that its sender didn't sample is not measured, and keeps its trace."""
    trace_id = "1" * 32
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("parent-based")
    adapter = EngineAdapter(ScriptedEngine(token(1), stop()), tracer=tracer, clock=unreadable_clock)
    headers = {"traceparent": f"00-{trace_id}-{'2' * 16}-00"}
    first, _ = await collect(
        await adapter.generate(request(), RequestContext(trace_headers=headers))
    )
    link = chunk_of(first).worker_trace_link
    assert link is not None
    assert link.trace_id == trace_id


@pytest.mark.rows("P8")
@virtual
async def test_recording_can_be_asked_for() -> None:
    """An explicit choice and the switch make a span record, whatever the other says."""
    for record, switch in ((True, "off"), (None, "on")):
        spans = Spans()
        with switched(switch):
            adapter = adapter_of(ScriptedEngine(token(1), stop()), spans=spans, record=record)
            await collect(await adapter.generate(request()))
        assert "output_tokens" in (spans.one().attributes or {})


@pytest.mark.rows("P8", "P4", "P5")
@virtual
async def test_setups_without_recording_end_their_spans() -> None:
    """A set-up that fails, or is left, sets the status also where nothing is recorded."""
    spans = Spans()
    adapter = adapter_of(ScriptedEngine(setup=[1, Disconnected("gone")]), spans=spans, record=False)
    with pytest.raises(Disconnected):
        await adapter.generate(request())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(adapter.generate(request()), 0.5)
    assert [status_of(span) for span in spans.finished] == [
        (StatusCode.ERROR, "setup_failed"),
        DROPPED,
    ]
