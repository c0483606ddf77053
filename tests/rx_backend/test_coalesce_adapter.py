"""Coalescing in an adapter's pipeline: aborts, spans and ends with a consumer that lags."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from operators import Pipeline, coalesce
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import Disconnected
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from tests.rx_backend._engines import (
    DROPPED,
    Item,
    ScriptedEngine,
    Step,
    Stream,
    adapter_of,
    chunk_of,
    now,
    request,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans

EVERY_PLACE = pytest.mark.parametrize(
    "pipeline",
    [
        pytest.param(
            standard_pipeline.insert_after("record_span", coalesce()), id="last-of-chunks"
        ),
        pytest.param(standard_pipeline.with_operators(coalesce()), id="where-it-is-added"),
    ],
)


def tokens_each(interval_s: float, *token_ids: int) -> list[Step]:
    return [step for token_id in token_ids for step in (interval_s, token(token_id))]


async def slowly(stream: Stream, busy_s: float) -> list[Item]:
    items: list[Item] = []
    async for item in stream:
        items.append(item)
        await asyncio.sleep(busy_s)
    return items


@pytest.mark.rows("S1", "T3", "P3", "P7", "O2")
@EVERY_PLACE
@virtual
async def test_the_span_ends_when_the_terminal_is_handed_out(
    pipeline: Pipeline, spans: Spans
) -> None:
    """The engine is closed as soon as it is through; the span waits for what the client reads."""
    engine = ScriptedEngine(*tokens_each(0.01, *range(9)), stop())
    stream = await adapter_of(engine, "agg", spans, pipeline=pipeline).generate(request())
    first = chunk_of(await anext(stream))
    assert first.token_ids == [0]
    assert first.worker_trace_link is not None
    await asyncio.sleep(5.0)
    assert engine.closed == 1
    assert spans.named("engine.generate") == ()
    rest = await slowly(stream, 5.0)
    assert tokens_of(rest) == [list(range(1, 9)), []]
    assert chunk_of(rest[-1]).finish_reason == stop().finish_reason
    attributes = dict(spans.one("engine.generate").attributes or {})
    assert attributes["output_tokens"] == 9
    assert attributes["finish_reason"] == "Stop"


@pytest.mark.rows("F3")
@virtual
async def test_the_gaps_are_those_in_front_of_it(spans: Spans) -> None:
    """Among the items it leaves the gaps between tokens to the engine, however the client lags."""
    engine = ScriptedEngine(*tokens_each(0.01, *range(9)), stop())
    adapter = adapter_of(engine, "agg", spans).with_operators(coalesce())
    await slowly(await adapter.generate(request()), 5.0)
    assert (spans.one().attributes or {})["itl_max_ms"] == 10.0


@pytest.mark.rows("P5", "O2")
@EVERY_PLACE
@virtual
async def test_a_drop_behind_the_engine_s_end_is_still_one(
    pipeline: Pipeline, spans: Spans
) -> None:
    """A terminal that waits for the client was handed to nobody, so the request was dropped."""
    engine = ScriptedEngine(*tokens_each(0.01, *range(9)), stop())
    stream = await adapter_of(engine, "agg", spans, pipeline=pipeline).generate(request())
    await anext(stream)
    await asyncio.sleep(5.0)
    await stream.aclose()
    assert status_of(spans.one()) == DROPPED
    assert (spans.one().attributes or {})["output_tokens"] == 1


@pytest.mark.rows("P5", "S7")
@EVERY_PLACE
@pytest.mark.parametrize("pulls", [False, True])
@virtual
async def test_a_drop_before_it_is_one(pipeline: Pipeline, pulls: bool, spans: Spans) -> None:
    """Also in the middle of a step that was begun ahead: one span, and one clean-up of the engine."""
    engine = ScriptedEngine(*tokens_each(2.0, *range(9)), stop(), closing=[3.0])
    stream = await adapter_of(engine, "agg", spans, pipeline=pipeline).generate(request())
    await anext(stream)
    await asyncio.sleep(1.0)
    pulling = asyncio.create_task(anext(stream, None)) if pulls else None
    await asyncio.sleep(0.5)
    await stream.aclose()
    assert engine.closed == 1
    assert status_of(spans.one()) == DROPPED
    assert (spans.one().attributes or {})["output_tokens"] == 1
    if pulling is not None:
        assert await pulling is None


@pytest.mark.rows("S6", "P4")
@EVERY_PLACE
@virtual
async def test_an_error_comes_behind_every_token(pipeline: Pipeline, spans: Spans) -> None:
    """As one error item with its kind, also when it was found while the client was away."""
    engine = ScriptedEngine(*tokens_each(0.01, *range(9)), Disconnected("gone"))
    stream = await adapter_of(engine, "agg", spans, pipeline=pipeline).generate(request())
    *items, last = await slowly(stream, 5.0)
    assert tokens_of(items) == [[0], list(range(1, 9))]
    assert isinstance(last.error, Disconnected)
    assert (spans.one().attributes or {})["error_kind"] == "Backend(Disconnected)"


@pytest.mark.rows("A2", "A3", "A6", "S3")
@EVERY_PLACE
@virtual
async def test_a_stop_while_the_client_is_away(pipeline: Pipeline) -> None:
    """The engine is aborted at once, and once; its own terminal comes out behind what waits."""
    halt = asyncio.Event()
    engine = ScriptedEngine(
        *tokens_each(1.0, *range(4)),
        halt,
        LLMEngineOutput.cancelled(),
        abort=[lambda _: halt.set()],
    )
    context = RequestContext()
    stream = await adapter_of(engine, pipeline=pipeline).generate(request(), context)
    await anext(stream)
    asyncio.get_running_loop().call_later(9.5, context.stop_generating)
    await asyncio.sleep(60.0)
    assert engine.aborts == [10.5]
    context.kill()
    items = await slowly(stream, 1.0)
    assert tokens_of(items) == [[1, 2, 3], []]
    assert chunk_of(items[-1]).finish_reason == LLMEngineOutput.cancelled().finish_reason
    assert engine.aborts == [10.5]


@pytest.mark.rows("A4")
@EVERY_PLACE
@virtual
async def test_the_gate_opens_when_the_engine_gives_the_first_token(pipeline: Pipeline) -> None:
    """A deferred abort does not wait for a client that is busy with the handshake."""
    engine = ScriptedEngine(LLMEngineOutput(), 3.0, *tokens_each(1.0, 1, 2), 100.0, stop())
    context = RequestContext()
    adapter = adapter_of(engine, DisaggregationMode.DECODE, pipeline=pipeline)
    stream = await adapter.generate(request(), context)
    await anext(stream)
    context.stop_generating()
    await asyncio.sleep(50.0)
    assert engine.aborts == [4.0]
    assert chunk_of(await anext(stream)).token_ids == [1]
    assert chunk_of(await anext(stream)).token_ids == [2]
    await stream.aclose()
    assert now() == 50.0


@pytest.mark.rows("P9", "P7")
@EVERY_PLACE
@pytest.mark.parametrize("ends", [True, False])
@virtual
async def test_a_span_that_the_engine_keeps_across_its_yields(
    pipeline: Pipeline, ends: bool, spans: Spans
) -> None:
    """It stays current for the engine, whichever task pulls or closes it, and leaves nothing behind."""

    class Tracing(ScriptedEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            with spans.tracer.start_as_current_span("outer"):
                for number in range(6):
                    await asyncio.sleep(1.0)
                    with spans.tracer.start_as_current_span(f"step {number}"):
                        await asyncio.sleep(1.0)
                    yield token(number)
            yield stop()

    stream = await adapter_of(Tracing(), "agg", spans, pipeline=pipeline).generate(request())
    number = 0
    async for _ in stream:
        number += 1
        await asyncio.sleep(0.0 if number % 2 else 4.5)
        if number == 4 and not ends:
            break
    await stream.aclose()
    parents = {span.name: span.parent.span_id for span in spans.finished if span.parent}
    contexts = {span.name: span.get_span_context() for span in spans.finished}
    ids = {name: context.span_id for name, context in contexts.items() if context}
    assert parents.pop("outer") == ids["engine.generate"]
    assert set(parents.values()) == {ids["outer"]}
    assert not spans.open
