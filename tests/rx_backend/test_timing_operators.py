"""Deadlines, enforced cancellation and heartbeats around the standard pipeline."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import pytest
import reactivex
from opentelemetry import trace
from opentelemetry.trace import SpanContext, StatusCode

from operators import (
    Drains,
    FirstTokenTimeout,
    IdleTimeout,
    Pipeline,
    abort_gate,
    deadlines,
    drain_until_first_token,
    enforce_cancellation,
    heartbeat,
)
from operators.authoring import AnyOperator
from rx_backend.context import RequestContext
from rx_backend.errors import ResponseTimeout
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import Annotated, LLMEngineOutput, to_builtins
from rx_backend.scope import RequestScope
from tests.rx_backend._engines import (
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

MODES = pytest.mark.parametrize("mode", ["agg", "prefill", "decode"])

HANDSHAKE = LLMEngineOutput(engine_data="handshake")
PING: Annotated[LLMEngineOutput] = Annotated(comment=["ping"])


def ahead(*operators: AnyOperator) -> Pipeline:
    """Return the standard pipeline with operators in front."""
    return standard_pipeline.insert_before("validate_chunks", *operators)


with_deadlines = deadlines(first_token_s=5, idle_s=3, total_s=60)
enforced = enforce_cancellation(3, LLMEngineOutput.cancelled)


def after(seconds: float, function: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(seconds, function)


# Deadlines.


@pytest.mark.rows("S6", "P4", "A2", "A3", "A5")
@pytest.mark.parametrize(("mode", "aborts"), [("agg", [5]), ("prefill", [5]), ("decode", [])])
@virtual
async def test_no_first_token(mode: str, aborts: list[float]) -> None:
    """An error item says which deadline; the engine is told to abort as after any stop."""
    spans = Spans()
    engine = ScriptedEngine(HANDSHAKE, 100, stop())
    adapter = adapter_of(engine, mode, spans, pipeline=ahead(with_deadlines))
    *before, item = await collect(await adapter.generate(request()))
    await asyncio.sleep(100)
    assert tokens_of(before) == [[]]
    assert item.comment == ["no first token within 5 s (first_token_s), tokens so far: 0"]
    assert isinstance(item.error, ResponseTimeout)
    assert isinstance(item.error.__cause__, FirstTokenTimeout)
    assert (engine.aborts, engine.closes, engine.closed) == (aborts, [5], 1)
    span = spans.one("engine.generate")
    assert status_of(span) == (StatusCode.ERROR, "Backend(ResponseTimeout)")
    assert rows_of(span) == ENTRY | {
        "disagg_role": mode,
        "error_kind": "Backend(ResponseTimeout)",
        "output_tokens": 0,
        "setup_ms": 0.0,
        "cancelled": True,
    }


@pytest.mark.rows("S6", "P4", "A2")
@MODES
@virtual
async def test_a_stall(mode: str) -> None:
    """After the first token every mode aborts once, also where a stop came before."""
    for stopped_s in (None, 2):
        spans = Spans()
        engine = ScriptedEngine(1, token(1), 1, token(2), 100, stop())
        adapter = adapter_of(engine, mode, spans, pipeline=ahead(with_deadlines))
        context = RequestContext()
        stream = await adapter.generate(request(), context)
        began = asyncio.get_running_loop().time()
        if stopped_s is not None:
            after(stopped_s, context.stop_generating)
        *before, item = await collect(stream)
        await asyncio.sleep(100)
        assert tokens_of(before) == [[1], [2]]
        assert isinstance(item.error, ResponseTimeout)
        assert isinstance(item.error.__cause__, IdleTimeout)
        assert engine.aborts == [began + (5 if stopped_s is None else stopped_s)]
        assert engine.closes == [began + 5]
        assert (spans.one().attributes or {})["output_tokens"] == 2


@pytest.mark.rows("A2", "S7")
@virtual
async def test_the_whole_is_over_while_the_client_is_stalled() -> None:
    """Abort and close come then; the client hears of it when it comes back."""
    engine = ScriptedEngine(token(1), token(2), stop())
    stream = await adapter_of(engine, pipeline=ahead(with_deadlines)).generate(request())
    await anext(stream)
    await asyncio.sleep(100)
    assert (engine.aborts, engine.closes) == ([60], [60])
    (item,) = await collect(stream)
    assert item.comment == ["not through within 60 s (total_s), tokens so far: 1"]


@pytest.mark.rows("A1", "E2")
@MODES
@virtual
async def test_an_engine_that_keeps_to_them(mode: str) -> None:
    """Nothing is seen of deadlines that don't pass, whatever form the chunks have."""
    engine = ScriptedEngine(4, {"token_ids": [1]}, 2, HANDSHAKE, 2, token(2), 2, stop())
    stream = await adapter_of(engine, mode, pipeline=ahead(with_deadlines)).generate(request())
    assert tokens_of(await collect(stream)) == [[1], [], [2], []]
    await asyncio.sleep(100)
    assert engine.aborts == []


@pytest.mark.rows("A4")
@virtual
async def test_a_deadline_may_leave_a_drain_behind() -> None:
    """Behind a drain, a decode engine goes on to its first token, and is aborted then."""
    spans = Spans()
    engine = ScriptedEngine(20, token(1), 100, stop())
    async with Drains() as drains:
        pipeline = standard_pipeline.insert_after(
            "deferred_abort", drain_until_first_token(drains=drains), with_deadlines
        )
        adapter = adapter_of(engine, "decode", spans, pipeline=pipeline)
        (item,) = await collect(await adapter.generate(request()))
        assert asyncio.get_running_loop().time() == 5
        assert isinstance(item.error, ResponseTimeout)
        assert status_of(spans.one())[1] == "Backend(ResponseTimeout)"
        await asyncio.sleep(100)
    assert engine.aborts == [20]
    assert engine.closed == 1


# Enforced cancellation.


@pytest.mark.rows("E4", "A2", "P3", "P6a", "S3")
@pytest.mark.parametrize("steps", [[100], [1, token(2)] * 50], ids=["silent", "deaf"])
@pytest.mark.parametrize(("signal", "cut"), [("stop_generating", 5), ("kill", 2)])
@MODES
@virtual
async def test_an_engine_that_ignores_a_stop(
    mode: str, signal: str, cut: float, steps: list[Step]
) -> None:
    """It is aborted at once, cut off after the grace, and the stream ends as one that was heard."""
    spans = Spans()
    engine = ScriptedEngine(token(1), *steps, stop())
    context = RequestContext()
    adapter = adapter_of(engine, mode, spans, pipeline=ahead(enforced))
    stream = await adapter.generate(request(), context)
    after(2, getattr(context, signal))
    items = await collect(stream)
    await asyncio.sleep(100)
    last = chunk_of(items[-1])
    assert (str(last.finish_reason), last.token_ids) == ("cancelled", [])
    assert (engine.aborts, engine.closes) == ([2], [cut])
    span = spans.one()
    assert status_of(span) == (StatusCode.UNSET, None)
    attributes = rows_of(span)
    assert (attributes["finish_reason"], attributes["cancelled"]) == ("Cancelled", True)
    assert attributes["output_tokens"] == sum(map(len, tokens_of(items)))


@pytest.mark.rows("A3", "S7")
@virtual
async def test_cut_off_while_the_client_is_stalled() -> None:
    """The engine is released in time; the client finds the terminal when it comes back."""
    engine = ScriptedEngine(token(1), 1, token(2), stop())
    context = RequestContext()
    stream = await adapter_of(engine, pipeline=ahead(enforced)).generate(request(), context)
    await anext(stream)
    context.stop_generating()
    await asyncio.sleep(100)
    assert (engine.aborts, engine.closes) == ([0], [3])
    (item,) = await collect(stream)
    assert str(chunk_of(item).finish_reason) == "cancelled"


@pytest.mark.rows("A4")
@virtual
async def test_decode_can_be_spared_until_its_first_token() -> None:
    """With a gate for the stop, the grace begins when the first token has come too."""

    def patient(scope: RequestScope) -> Pipeline:
        context = scope.context
        both = abort_gate(context.stopped(), context.first_token(), reactivex.never())
        return ahead(enforce_cancellation(3, LLMEngineOutput.cancelled, stop=both))

    engine = ScriptedEngine(HANDSHAKE, 20, token(1), 100, stop())
    context = RequestContext()
    adapter = adapter_of(engine, "decode", pipeline=patient)
    stream = await adapter.generate(request(), context)
    after(1, context.stop_generating)
    assert tokens_of(await collect(stream)) == [[], [1], []]
    assert (engine.aborts, engine.closes) == ([20], [23])


# Heartbeats.


@pytest.mark.rows("S1", "P6a", "P7", "P9")
@MODES
@virtual
async def test_heartbeats_between_items(mode: str) -> None:
    """They are comments to the client, and nothing to the engine, the span and the abort."""
    spans = Spans()
    seen: list[SpanContext | None] = []

    def look(_: RequestContext) -> None:
        seen.append(trace.get_current_span().get_span_context())

    engine = ScriptedEngine(look, 5, token(1), look, 5, token(2), 1, stop(), closing=[1, look])
    adapter = adapter_of(engine, mode, spans).with_operators(heartbeat(2, PING))
    items = await collect(await adapter.generate(request()))
    await asyncio.sleep(100)
    assert to_builtins(PING) == {"comment": ["ping"]}
    ours = ["ping" if item is PING else item.data and item.data.token_ids for item in items]
    assert ours == ["ping", "ping", [1], "ping", "ping", [2], []]
    span = spans.one()
    assert seen == [span.get_span_context()] * 3
    attributes = rows_of(span)
    assert (attributes["finish_reason"], attributes["output_tokens"]) == ("Stop", 2)
    assert attributes["avg_itl_ms"] == 5000.0
    assert engine.aborts == []


@pytest.mark.rows("A2", "S7", "P5")
@virtual
async def test_a_client_that_leaves_in_a_gap() -> None:
    """The engine's step is cancelled, and the request released as after any drop."""
    spans = Spans()
    engine = ScriptedEngine(token(1), 100, stop())
    adapter = adapter_of(engine, "agg", spans).with_operators(heartbeat(2, PING))
    async with await adapter.generate(request()) as stream:
        async for item in stream:
            if item is PING:
                break
    assert (engine.closes, engine.closed) == ([2], 1)
    assert (spans.one().attributes or {})["finish_reason"] == "Dropped"


@pytest.mark.rows("A2", "E4")
@virtual
async def test_all_three_together() -> None:
    """A stalled engine that ignores its stop, behind heartbeats: one error item at the end."""
    engine = ScriptedEngine(token(1), 100, stop())
    pipeline = ahead(enforced, deadlines(idle_s=10)).with_operators(heartbeat(4, PING))
    items = await collect(await adapter_of(engine, pipeline=pipeline).generate(request()))
    assert [item is PING for item in items] == [False, True, True, False]
    assert isinstance(items[-1].error, ResponseTimeout)
    assert (engine.aborts, engine.closes) == ([10], [10])


@pytest.mark.rows("P9")
@virtual
async def test_an_engine_that_sets_context_variables() -> None:
    """What it sets in one step it finds in the next, and can reset where its pull is cut off."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    marks: list[contextvars.Token[int]] = []
    found: list[int] = []

    def set_it(_: RequestContext) -> None:
        marks.append(variable.set(7))

    def reset_it(_: RequestContext) -> None:
        found.append(variable.get())
        variable.reset(marks.pop())

    for added in (with_deadlines, enforced, heartbeat(2, LLMEngineOutput())):
        engine = ScriptedEngine(set_it, token(1), 100, stop(), closing=[reset_it])
        adapter = adapter_of(engine, "agg", Spans(), pipeline=ahead(added))
        context = RequestContext()
        stream = await adapter.generate(request(), context)
        after(1, context.stop_generating)
        after(9, stream.close)
        await collect(stream)
        await asyncio.sleep(10)
        assert engine.closed == 1
    assert found == [7, 7, 7]
