"""The span of a request: what is on it, how long it lasts, who sees it; and links between workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from operators import Pipeline
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import Disconnected
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, TraceLink, to_builtins
from rx_backend.scope import RequestScope
from rx_backend.telemetry import EXPORT_ENABLED
from tests.engines import (
    DROPPED,
    ENTRY,
    ScriptedEngine,
    Step,
    adapter_of,
    chunk_of,
    collect,
    now,
    request,
    serve,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans, rows_of

MODES = list(DisaggregationMode)
EVERY_MODE = pytest.mark.parametrize("mode", MODES)


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


@pytest.mark.rows("P1", "P2", "P7")
@pytest.mark.reference("auto_span_records_initial_attrs")
@EVERY_MODE
@virtual
async def test_a_request_has_one_span_from_its_start(mode: DisaggregationMode) -> None:
    """Before anything was pulled it is open, with model, prompt tokens and role; each has its own."""
    spans = Spans()
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), mode, spans)
    streams = [await adapter.generate(request(5)) for _ in range(3)]
    (span, *_) = spans.open
    assert span.name == "engine.generate"
    assert rows_of(span) == {"model": "mock", "input_tokens": 5, "disagg_role": mode.value}
    for _ in range(3):
        for stream in streams:
            await anext(stream)
    assert len({span.context.trace_id for span in spans.finished if span.context}) == 3
    assert all(span.parent is None for span in spans.finished)


TTFT = {"setup_ms": 0.0, "ttft_ms": 0.0}


def gaps(average: float, median: float, high: float, highest: float) -> dict[str, float]:
    names = ("avg_itl_ms", "itl_p50_ms", "itl_p99_ms", "itl_max_ms")
    return dict(zip(names, (average, median, high, highest), strict=True))


@pytest.mark.rows("P3", "F1", "F2", "F3", "F4", "P6")
@pytest.mark.reference("auto_span_records_terminal_attrs_on_clean_stream")
@pytest.mark.parametrize(
    ("setup", "script", "figures"),
    [
        pytest.param(
            [2],
            [
                *(0.5, LLMEngineOutput(engine_data="handshake")),
                *(0.25, token(11)),
                *(0.1, LLMEngineOutput()),
                *(0.1, LLMEngineOutput(token_ids=[22, 23])),
                *(0.3, stop().with_tokens([33])),
            ],
            {"setup_ms": 2000.0, "ttft_ms": 750.0, "output_tokens": 4, **gaps(250, 300, 300, 300)},
            id="handshakes and chunks",
        ),
        pytest.param(
            [],
            [token(0), *(s for ms in (40, 10, 50, 20, 30) for s in (ms / 1000, token(1))), stop()],
            {**TTFT, "output_tokens": 6, **gaps(30, 30, 50, 50)},
            id="nearest rank",
        ),
        pytest.param([], [stop()], {"setup_ms": 0.0, "output_tokens": 0}, id="no token"),
        pytest.param([], [token(1), stop()], {**TTFT, "output_tokens": 1}, id="one token"),
        pytest.param(
            [], [stop().with_tokens([1, 2])], {**TTFT, "output_tokens": 2}, id="one chunk"
        ),
    ],
)
@virtual
async def test_a_clean_stream_records_its_figures(
    setup: list[Step], script: list[Step], figures: dict[str, Any]
) -> None:
    """Every attribute of a stream that ends by its terminal, numbers as numbers; without gaps none."""
    served = await serve(ScriptedEngine(*script, setup=setup))
    ending = {"finish_reason": "Stop", "cancelled": False}
    assert served.row == pytest.approx({**ENTRY, **figures, **ending})
    assert type(served.row["output_tokens"]) is int
    assert all(type(served.row[name]) is float for name in served.row if name.endswith("_ms"))
    assert served.status == (StatusCode.UNSET, None)


@pytest.mark.rows("F2", "F5")
@virtual
async def test_the_first_token_is_timed_from_the_end_of_the_setup() -> None:
    """The consumer's delay counts for the stream; the scope has the gaps per chunk and per token."""
    scopes: list[RequestScope] = []

    def watched(scope: RequestScope) -> Pipeline:
        scopes.append(scope)
        return standard_pipeline

    spans = Spans()
    engine = ScriptedEngine(
        *(0.5, token(1), 0.03, LLMEngineOutput(token_ids=[2, 3, 4]), stop()), setup=[3]
    )
    stream = await adapter_of(engine, spans=spans, pipeline=watched).generate(request())
    await asyncio.sleep(2)
    await collect(stream)
    row = rows_of(spans.one())
    assert (row["setup_ms"], row["ttft_ms"]) == (3000.0, 2500.0)
    assert scopes[0].times.itl_ms() == pytest.approx([30.0])
    assert scopes[0].times.itl_per_token_ms() == pytest.approx([10.0] * 3)


@pytest.mark.rows("P3", "P4", "S9")
@pytest.mark.reference("auto_span_marks_cancelled_when_stream_stopped")
@EVERY_MODE
@virtual
async def test_cancelled_says_whether_a_stop_was_signalled(mode: DisaggregationMode) -> None:
    """A stop before the end is recorded, whatever the end is; one after it is not; figures stay."""
    ends: list[Step] = [LLMEngineOutput.cancelled(), stop(), Disconnected("gone"), 0.0]
    for end, (stop_at, expected) in product(ends, ((1.1, True), (3, False))):
        engine = ScriptedEngine(1, token(1), 0.2, token(2), end)
        served = await serve(engine, mode, signals=[(stop_at, "stop_generating")])
        assert served.row["cancelled"] is expected
        figures = {"ttft_ms": 1000.0, "output_tokens": 2, **gaps(200, 200, 200, 200)}
        assert served.row | figures == pytest.approx(served.row)


@pytest.mark.rows("P5", "P7")
@pytest.mark.reference("stream_drop_records_cancellation_on_span")
@EVERY_MODE
@virtual
async def test_a_drop_is_recorded_with_what_was_counted(mode: DisaggregationMode) -> None:
    """A consumer that leaves in mid-stream leaves a span that says so, its figures kept."""
    spans = Spans()
    engine = ScriptedEngine(1, token(1), 0.2, token(2), 60, token(3))
    stream = await adapter_of(engine, mode, spans).generate(request())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(collect(stream), 5)
    ending = {"finish_reason": "Dropped", "cancelled": True, "output_tokens": 2}
    expected = {**ENTRY, "disagg_role": mode.value, **ending, **gaps(200, 200, 200, 200)}
    assert rows_of(spans.one()) == pytest.approx(expected | {"setup_ms": 0.0, "ttft_ms": 1000.0})
    assert status_of(spans.one()) == DROPPED
    assert seconds(spans.one()) == (0, 5)


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
async def test_the_callers_current_span_is_unchanged(has_caller: bool) -> None:
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


# Spans of the engine.


class TracingEngine(ScriptedEngine):
    """Opens spans wherever an engine might."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Any:
        self._tracer.start_span("call").end()
        return self._answer()

    async def abort(self, context: RequestContext) -> None:
        with self._tracer.start_as_current_span("abort"):
            await asyncio.sleep(1)

    async def _answer(self) -> AsyncGenerator[LLMEngineOutput]:
        with self._tracer.start_as_current_span("setup"):
            await asyncio.sleep(1)
            self._tracer.start_span("setup-step").end()
        return self._chunks()

    async def _chunks(self) -> AsyncGenerator[LLMEngineOutput]:
        try:
            self._tracer.start_span("first-pull").end()
            await asyncio.sleep(1)
            self._tracer.start_span("after-wait").end()
            with self._tracer.start_as_current_span("around-yields"):
                yield token(1)
                self._tracer.start_span("between-yields").end()
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._beside())
                yield token(2)
            self._tracer.start_span("after-yields").end()
            yield stop()
        finally:
            self._tracer.start_span("closing").end()

    async def _beside(self) -> None:
        await asyncio.sleep(1)
        self._tracer.start_span("task").end()


@pytest.mark.rows("P9", "P7")
@pytest.mark.parametrize("mode", list(DisaggregationMode))
@virtual
async def test_spans_of_the_engine_nest_in_the_requests(mode: DisaggregationMode) -> None:
    """In set-up, pulls of different tasks, tasks of the engine, abort and closing, all nest."""
    spans, context = Spans(), RequestContext()
    engine = TracingEngine(spans.tracer)

    async def pull(name: str) -> None:
        with spans.tracer.start_as_current_span(name) as own:
            await anext(stream)
            assert trace.get_current_span() is own

    with spans.tracer.start_as_current_span("caller"):
        stream = await adapter_of(engine, mode, spans).generate(request(), context)
        await asyncio.create_task(pull("task-1"))
        context.stop_generating()
        await asyncio.create_task(pull("task-2"))
        await pull("task-3")
    await asyncio.sleep(5)
    names = {span.context.span_id: span.name for span in spans.finished if span.context}
    parents = {span.name: span.parent and names[span.parent.span_id] for span in spans.finished}
    assert parents.pop("abort") in {"engine.generate", "around-yields"}
    assert parents == {
        "caller": None,
        "engine.generate": "caller",
        "task-1": "caller",
        "task-2": "caller",
        "task-3": "caller",
        "call": "engine.generate",
        "setup": "engine.generate",
        "setup-step": "setup",
        "first-pull": "engine.generate",
        "after-wait": "engine.generate",
        "around-yields": "engine.generate",
        "between-yields": "around-yields",
        "task": "around-yields",
        "after-yields": "engine.generate",
        "closing": "engine.generate",
    }
    assert all(span.kind is SpanKind.INTERNAL for span in spans.finished)


# Whether a request is measured: asked for, switched by the environment, or left to the span.


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
    failed = (StatusCode.ERROR, "setup_failed")
    assert [status_of(span) for span in spans.finished] == [failed, DROPPED]


# Trace identity between workers: what a request brings, and what its chunks take along.

THEIRS = TraceLink(trace_id="a" * 32, span_id="b" * 16)


def linked(chunk: LLMEngineOutput) -> LLMEngineOutput:
    """Return the chunk with a link that the engine set itself."""
    chunk.worker_trace_link = THEIRS
    return chunk


def identity_of(span: ReadableSpan) -> TraceLink:
    assert span.context is not None
    return TraceLink(
        trace_id=trace.format_trace_id(span.context.trace_id),
        span_id=trace.format_span_id(span.context.span_id),
    )


@pytest.mark.rows("T1", "T2")
@pytest.mark.reference(
    "auto_span_records_migration_link",
    "auto_span_handles_malformed_hex_gracefully",
    "auto_span_no_link_when_migration_link_missing",
)
@pytest.mark.parametrize(
    ("link", "linked_to"),
    [(THEIRS, ["a" * 32]), (TraceLink("not-valid-hex", "ALSO-INVALID"), []), (None, [])],
    ids=["link", "malformed", "none"],
)
@EVERY_MODE
@virtual
async def test_a_migrated_request_links_to_its_previous_worker(
    mode: DisaggregationMode, link: TraceLink | None, linked_to: list[str]
) -> None:
    """Its span names the earlier worker's span as it came, and links to it where that can be."""
    served = await serve(ScriptedEngine(stop()), mode, asked=request(migrated_from=link))
    expected: dict[str, str] = {}
    if link is not None:
        expected = {"migration_trace_id": link.trace_id, "migration_span_id": link.span_id}
    found = {name: row for name, row in served.row.items() if name.startswith("migration")}
    assert found == expected
    links = served.spans.one().links
    assert [trace.format_trace_id(each.context.trace_id) for each in links] == linked_to


# Chunks as letters: t has a token, T is a terminal with one, h and E have none; upper case is a
# terminal, and ' is a link of the engine's own. What each carries: o ours, ' theirs, - none.
LETTERS: dict[str, Callable[[], LLMEngineOutput]] = {
    "h": LLMEngineOutput,
    "t": lambda: token(1),
    "E": stop,
    "T": lambda: LLMEngineOutput.length().with_tokens([3]),
    "#": lambda: LLMEngineOutput.error("boom"),
}


@pytest.mark.rows("T3", "T4", "TY-link")
@pytest.mark.reference(
    "adapter_stamps_worker_trace_link_on_first_non_empty_chunk",
    "prefill_mode_stamps_worker_trace_link_on_terminal_when_no_token_chunks",
)
@pytest.mark.parametrize(
    ("chunks", "stamped", "in_prefill"),
    [
        ("h t t t E", "- o - - -", "- o - - o"),
        ("h' t' t' T'", "' o ' '", "' o ' '"),
        ("E", "-", "o"),
        ("t E", "o -", "o o"),
        ("t t T", "o - -", "o - o"),
        ("T", "o", "o"),
        ("E'", "'", "'"),
        ("t E'", "o '", "o '"),
        ("T'", "o", "o"),
        ("#", "-", "o"),
    ],
)
@pytest.mark.parametrize("form", [replace, to_builtins], ids=["chunk", "mapping"])
@virtual
async def test_the_trace_link_is_stamped(
    chunks: str, stamped: str, in_prefill: str, form: Callable[[LLMEngineOutput], Any]
) -> None:
    """The first chunk with tokens, over the engine's link; on a prefill worker the terminal too."""
    for mode in MODES:
        letters = chunks.split()
        script = [
            linked(LETTERS[letter[0]]()) if "'" in letter else LETTERS[letter[0]]()
            for letter in letters
        ]
        served = await serve(ScriptedEngine(*map(form, script)), mode)
        names = {None: "-", THEIRS: "'", identity_of(served.spans.one()): "o"}
        links = [names[chunk_of(item).worker_trace_link] for item in served.items]
        assert links == (in_prefill if mode.is_prefill else stamped).split(), mode


@pytest.mark.rows("T5")
@pytest.mark.reference("adapter_does_not_stamp_worker_trace_link_without_trace_context")
@pytest.mark.parametrize("mode", MODES)
@virtual
async def test_without_an_identity_nothing_is_stamped(mode: DisaggregationMode) -> None:
    """Where spans are not real the engine's chunks pass untouched, its own links included."""
    chunks = [token(11), linked(token(22)), LLMEngineOutput.length().with_tokens([33])]
    items = await collect(await adapter_of(ScriptedEngine(*chunks), mode).generate(request()))
    assert all(item.data is chunk for item, chunk in zip(items, chunks, strict=True))
