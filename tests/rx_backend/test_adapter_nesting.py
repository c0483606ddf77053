"""Spans that an engine opens, wherever it may, and that they nest in the request's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Tracer

from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from tests.rx_backend._engines import ScriptedEngine, adapter_of, request, stop, token, virtual
from tests.spans import Spans


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


@pytest.mark.rows("P9", "P7", "S7")
@virtual
async def test_spans_around_yields_survive_a_drop() -> None:
    """A drop from another task closes the engine's spans without a word from OpenTelemetry."""
    spans = Spans()
    stream = await adapter_of(TracingEngine(spans.tracer), spans=spans).generate(request())
    await asyncio.create_task(stream.__anext__())
    await asyncio.create_task(stream.aclose())
    assert spans.open == ()
    assert spans.one("around-yields").parent == spans.one("engine.generate").context
    assert trace.get_current_span() is trace.INVALID_SPAN
