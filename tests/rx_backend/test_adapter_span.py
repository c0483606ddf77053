"""The span of a request: what is on it, how long it lasts, and who sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode, Tracer

from operators import Pipeline
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import (
    KINDS,
    BackendError,
    Disconnected,
    InvalidArgument,
    StreamIncomplete,
)
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import FinishReason, LLMEngineOutput
from rx_backend.scope import RequestScope
from rx_backend.telemetry import EXPORT_ENABLED
from tests.rx_backend._engines import (
    DROPPED,
    ENTRY,
    ScriptedEngine,
    Step,
    Stream,
    adapter_of,
    collect,
    now,
    request,
    status_of,
    stop,
    token,
    virtual,
)
from tests.spans import Spans, rows_of

MODES = list(DisaggregationMode)


@pytest.fixture(autouse=True)
def virtual_span_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let spans start and end in the loop's time, and take the environment's say away."""
    for module in ("opentelemetry.sdk.trace", "rx_backend.adapter"):
        monkeypatch.setattr(f"{module}.time_ns", lambda: round(now() * 1e9))
    monkeypatch.delenv(EXPORT_ENABLED, raising=False)


def seconds(span: ReadableSpan) -> tuple[float, float]:
    """Start and end of a span."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


def later_attributes(span: ReadableSpan) -> dict[str, Any]:
    """What was added after the span's start."""
    attributes = rows_of(span)
    assert {name: attributes.pop(name) for name in ENTRY} == ENTRY
    return attributes


async def take_all(stream: Stream) -> None:
    await collect(stream)


async def take_one_and_close(stream: Stream) -> None:
    await anext(stream)
    await stream.aclose()


async def take_one_and_forget(stream: Stream) -> None:
    await anext(stream)


@pytest.mark.rows("P1", "P2")
@pytest.mark.reference("auto_span_records_initial_attrs")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_request_has_one_span_from_its_start(mode: DisaggregationMode) -> None:
    """Before anything was pulled the span is open, with model, prompt tokens and role."""
    spans = Spans()
    stream = await adapter_of(ScriptedEngine(stop()), mode, spans).generate(request(5))
    (span,) = spans.open
    assert span.name == "engine.generate"
    assert rows_of(span) == {"model": "mock", "input_tokens": 5, "disagg_role": mode.value}
    await take_all(stream)
    assert spans.one().context == span.context


@pytest.mark.rows("P3", "F1", "F2", "F3", "F4", "P6")
@pytest.mark.reference("auto_span_records_terminal_attrs_on_clean_stream")
@virtual
async def test_a_clean_stream_records_its_figures() -> None:
    """Every attribute of a stream that ends by its terminal, numbers as numbers."""
    spans = Spans()
    engine = ScriptedEngine(
        *(0.5, LLMEngineOutput(engine_data="handshake")),
        *(0.25, token(11)),
        *(0.1, LLMEngineOutput()),
        *(0.1, LLMEngineOutput(token_ids=[22, 23])),
        *(0.3, LLMEngineOutput.length().with_tokens([33])),
        setup=[2],
    )
    await take_all(await adapter_of(engine, spans=spans).generate(request()))
    attributes = later_attributes(spans.one())
    assert attributes == pytest.approx(
        {
            "setup_ms": 2000.0,
            "ttft_ms": 750.0,
            "output_tokens": 4,
            "finish_reason": "Length",
            "cancelled": False,
            "avg_itl_ms": 250.0,
            "itl_p50_ms": 300.0,
            "itl_p99_ms": 300.0,
            "itl_max_ms": 300.0,
        }
    )
    assert isinstance(attributes["output_tokens"], int)
    assert all(isinstance(attributes[name], float) for name in attributes if name.endswith("_ms"))
    assert status_of(spans.one()) == (StatusCode.UNSET, None)


@pytest.mark.rows("F3", "F4")
@virtual
async def test_gaps_are_summed_up_by_nearest_rank() -> None:
    """Gaps of 10, 20, 30, 40 and 50 ms, in any order, give 30, 30, 50 and 50."""
    spans = Spans()
    script: list[Step] = [token(0)]
    for gap_ms in (40, 10, 50, 20, 30):
        script += [gap_ms / 1000, token(1)]
    engine = ScriptedEngine(*script, stop())
    await take_all(await adapter_of(engine, spans=spans).generate(request()))
    attributes = later_attributes(spans.one())
    names = ("avg_itl_ms", "itl_p50_ms", "itl_p99_ms", "itl_max_ms")
    assert [attributes[name] for name in names] == [30.0, 30.0, 50.0, 50.0]


@pytest.mark.rows("F1", "F4")
@pytest.mark.parametrize(
    ("script", "tokens", "has_first"),
    [([stop()], 0, False), ([token(1), stop()], 1, True), ([{"token_ids": [1, 2]}], 2, True)],
    ids=["no-token", "one-token", "one-chunk"],
)
@virtual
async def test_without_a_gap_there_are_no_figures_of_gaps(
    script: list[Step], tokens: int, has_first: bool
) -> None:
    """None of the four is written, and the time to a first token only where there was one."""
    spans = Spans()
    await take_all(await adapter_of(ScriptedEngine(*script), spans=spans).generate(request()))
    attributes = later_attributes(spans.one())
    assert not [name for name in attributes if "itl" in name]
    assert ("ttft_ms" in attributes) is has_first
    assert attributes["output_tokens"] == tokens


@pytest.mark.rows("F2")
@virtual
async def test_the_first_token_is_timed_from_the_end_of_the_setup() -> None:
    """The set-up has a figure of its own, and the consumer's delay counts for the stream."""
    spans = Spans()
    engine = ScriptedEngine(0.5, token(1), stop(), setup=[3])
    stream = await adapter_of(engine, spans=spans).generate(request())
    await asyncio.sleep(2)
    await take_all(stream)
    attributes = later_attributes(spans.one())
    assert (attributes["setup_ms"], attributes["ttft_ms"]) == (3000.0, 2500.0)


@pytest.mark.rows("F5")
@virtual
async def test_gaps_can_be_had_per_token() -> None:
    """A pipeline's own operators find the times in the scope, per chunk and per token."""
    scopes: list[RequestScope] = []

    def watched(scope: RequestScope) -> Pipeline:
        scopes.append(scope)
        return standard_pipeline

    engine = ScriptedEngine(token(1), 0.03, LLMEngineOutput(token_ids=[2, 3, 4]), stop())
    adapter = adapter_of(engine, spans=Spans(), pipeline=watched)
    await take_all(await adapter.generate(request()))
    times = scopes[0].times
    assert times.itl_ms() == pytest.approx([30.0])
    assert times.itl_per_token_ms() == pytest.approx([10.0] * 3)


@pytest.mark.rows("P3", "P6")
@pytest.mark.parametrize(
    ("reason", "text", "code"),
    [
        (FinishReason.STOP, "Stop", StatusCode.UNSET),
        (FinishReason.LENGTH, "Length", StatusCode.UNSET),
        (FinishReason.CANCELLED, "Cancelled", StatusCode.UNSET),
        (FinishReason.EOS, "EoS", StatusCode.UNSET),
        (FinishReason.CONTENT_FILTER, "ContentFilter", StatusCode.UNSET),
        (FinishReason.error("boom"), 'Error("boom")', StatusCode.ERROR),
    ],
    ids=str,
)
@virtual
async def test_the_finish_reason_is_recorded(
    reason: FinishReason, text: str, code: StatusCode
) -> None:
    """Each reason has its text; only an error makes the span one. Nothing says cancelled by itself."""
    spans = Spans()
    engine = ScriptedEngine(LLMEngineOutput(finish_reason=reason))
    await take_all(await adapter_of(engine, spans=spans).generate(request()))
    attributes = later_attributes(spans.one())
    assert (attributes["finish_reason"], attributes["cancelled"]) == (text, False)
    assert status_of(spans.one()) == (code, text if code is StatusCode.ERROR else None)


@pytest.mark.rows("P3")
@pytest.mark.reference("auto_span_marks_cancelled_when_stream_stopped")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", [LLMEngineOutput.cancelled(), stop(), Disconnected("gone")])
@virtual
async def test_cancelled_says_whether_a_stop_was_signalled(
    mode: DisaggregationMode, end: Step
) -> None:
    """A stop before the end is recorded, whatever the end says; one after it is not."""
    for stop_at, expected in ((1, True), (3, False)):
        spans, context = Spans(), RequestContext()
        engine = ScriptedEngine(token(1), 2, end)
        asyncio.get_running_loop().call_later(stop_at, context.stop_generating)
        await take_all(await adapter_of(engine, mode, spans).generate(request(), context))
        await asyncio.sleep(5)
        attributes = rows_of(spans.one())
        assert attributes is not None
        assert attributes["cancelled"] is expected


@pytest.mark.rows("P4")
@pytest.mark.reference("auto_span_records_error_kind_on_typed_error")
@pytest.mark.parametrize("error", KINDS.values())
@virtual
async def test_an_error_in_mid_stream_records_its_kind(error: type[BackendError]) -> None:
    """Kind, status and all that was counted, and no finish reason."""
    spans = Spans()
    engine = ScriptedEngine(1, token(1), 0.2, token(2), error("it broke"))
    await take_all(await adapter_of(engine, spans=spans).generate(request()))
    kind = f"Backend({error.kind})"
    attributes = later_attributes(spans.one())
    assert attributes.pop("setup_ms") == 0
    assert attributes == pytest.approx(
        {
            "error_kind": kind,
            "ttft_ms": 1000.0,
            "output_tokens": 2,
            "cancelled": False,
            "avg_itl_ms": 200.0,
            "itl_p50_ms": 200.0,
            "itl_p99_ms": 200.0,
            "itl_max_ms": 200.0,
        }
    )
    assert status_of(spans.one()) == (StatusCode.ERROR, kind)


@pytest.mark.rows("P4", "S6")
@pytest.mark.parametrize(
    ("raised", "kind"),
    [(ValueError("bad"), "Backend(InvalidArgument)"), (OSError("bad"), "Backend(Unknown)")],
)
@virtual
async def test_an_untyped_error_records_the_kind_it_becomes(raised: Exception, kind: str) -> None:
    """The span names the kind that the consumer sees."""
    spans = Spans()
    await take_all(await adapter_of(ScriptedEngine(raised), spans=spans).generate(request()))
    assert later_attributes(spans.one())["error_kind"] == kind


@pytest.mark.rows("P4", "S5")
@pytest.mark.parametrize("raised", [InvalidArgument("bad"), RuntimeError("bad")])
@virtual
async def test_a_failed_setup_is_told_apart(raised: Exception) -> None:
    """Whatever it raised, a set-up that failed has one kind and one status."""
    spans = Spans()
    with pytest.raises(BackendError):
        await adapter_of(ScriptedEngine(setup=[1, raised]), spans=spans).generate(request())
    assert later_attributes(spans.one()) == {"error_kind": "setup_failed"}
    assert status_of(spans.one()) == (StatusCode.ERROR, "setup_failed")
    assert seconds(spans.one()) == (0, 1)


@pytest.mark.rows("P5")
@pytest.mark.reference("stream_drop_records_cancellation_on_span")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_a_drop_is_recorded_with_what_was_counted(mode: DisaggregationMode) -> None:
    """A consumer that leaves in mid-stream leaves a span that says so, its figures kept."""
    spans = Spans()
    engine = ScriptedEngine(1, token(1), 0.2, token(2), 60, token(3))
    stream = await adapter_of(engine, mode, spans).generate(request())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(collect(stream), 5)
    attributes = rows_of(spans.one())
    assert attributes["cancelled"] is True
    assert attributes["finish_reason"] == "Dropped"
    assert (attributes["output_tokens"], attributes["ttft_ms"]) == (2, 1000.0)
    assert attributes["avg_itl_ms"] == attributes["itl_max_ms"] == 200.0
    assert "error_kind" not in attributes
    assert status_of(spans.one()) == DROPPED
    assert seconds(spans.one()) == (0, 5)


@pytest.mark.rows("S9", "E3")
@pytest.mark.parametrize("script", [[], [token(1)]], ids=["empty", "one-token"])
@pytest.mark.parametrize("stopped", [False, True])
@virtual
async def test_an_end_without_a_terminal_is_incomplete(script: list[Step], stopped: bool) -> None:
    """An engine that just returns has failed: one error item says so, and the span too."""
    spans, context = Spans(), RequestContext()
    adapter = adapter_of(ScriptedEngine(*script), spans=spans)
    stream = await adapter.generate(request(), context)
    if stopped:
        context.stop_generating()
    *items, last = await collect(stream)
    assert len(items) == len(script)
    assert isinstance(last.error, StreamIncomplete)
    attributes = later_attributes(spans.one())
    assert attributes["error_kind"] == "Backend(StreamIncomplete)"
    assert attributes["cancelled"] is stopped
    assert "finish_reason" not in attributes
    assert attributes["output_tokens"] == len(script)
    assert status_of(spans.one()) == (StatusCode.ERROR, "Backend(StreamIncomplete)")


@pytest.mark.rows("P6a", "P7")
@pytest.mark.parametrize(
    ("end", "name"),
    [(stop(), "finish_reason"), (Disconnected("gone"), "error_kind")],
    ids=["terminal", "error"],
)
@pytest.mark.parametrize("leave", [take_all, take_one_and_close, take_one_and_forget])
@virtual
async def test_taking_the_last_item_completes_the_request(
    end: Step, name: str, leave: Callable[[Stream], Awaitable[None]]
) -> None:
    """Whoever walks away with the terminal or the error item in hand is no drop."""
    spans = Spans()
    stream = await adapter_of(ScriptedEngine(2, end), spans=spans).generate(request())
    await leave(stream)
    del stream
    await asyncio.sleep(5)
    attributes = later_attributes(spans.one())
    assert attributes.pop(name) in {"Stop", "Backend(Disconnected)"}
    assert attributes["cancelled"] is False
    assert status_of(spans.one()) != DROPPED
    assert seconds(spans.one()) == (0, 2)


@pytest.mark.rows("P7")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("end", "ended"),
    [(stop(), 5), (Disconnected("gone"), 5), (0.5, 5.5), (60, 8)],
    ids=["terminal", "error", "no-terminal", "drop"],
)
@virtual
async def test_a_span_lasts_as_long_as_its_stream(
    mode: DisaggregationMode, end: Step, ended: float
) -> None:
    """It begins with the request, before the set-up, and ends with the last item or the drop."""
    spans = Spans()
    engine = ScriptedEngine(1, token(1), 2, end, setup=[1])
    await asyncio.sleep(1)
    stream = await adapter_of(engine, mode, spans).generate(request())
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(collect(stream))
        await asyncio.sleep(6)
        reading.cancel()
    await stream.aclose()
    assert seconds(spans.one()) == (1, ended)


@pytest.mark.rows("P7", "P1")
@pytest.mark.parametrize("has_caller", [True, False])
@virtual
async def test_the_callers_current_span_stays_as_it_is(has_caller: bool) -> None:
    """At no moment of a request is its span current for the caller or for another task."""
    spans = Spans()
    seen: list[object] = []

    def look() -> None:
        seen.append(trace.get_current_span())

    async def drive() -> None:
        look()
        stream = await adapter_of(
            ScriptedEngine(1, token(1), stop(), setup=[1]), spans=spans
        ).generate(request())
        look()
        async for _ in stream:
            look()
        look()
        await asyncio.create_task(asyncio.sleep(0))
        look()

    with current_span(spans.tracer if has_caller else None) as caller:
        await drive()
    assert len(seen) == 6
    assert all(span is caller for span in seen)
    assert trace.get_current_span() is trace.INVALID_SPAN
    expected = caller.get_span_context() if has_caller else None
    assert spans.one("engine.generate").parent == expected


@contextmanager
def current_span(tracer: Tracer | None) -> Generator[trace.Span]:
    if tracer is None:
        yield trace.INVALID_SPAN
        return
    with tracer.start_as_current_span("caller") as span:
        yield span


@pytest.mark.rows("P1", "P7")
@virtual
async def test_streams_beside_each_other_have_their_own_spans() -> None:
    """Requests that are pulled in turns by one task don't end up in each other's spans."""
    spans = Spans()
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), spans=spans)
    streams = [await adapter.generate(request()) for _ in range(3)]
    for _ in range(3):
        for stream in streams:
            await anext(stream)
    assert len(spans.finished) == 3
    assert len({span.context.trace_id for span in spans.finished if span.context}) == 3
    assert all(span.parent is None for span in spans.finished)
