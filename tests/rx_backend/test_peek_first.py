"""`ResponseStream.peek_first`: a failure before the first token reaches the caller."""

from __future__ import annotations

import asyncio

import pytest

from operators import Drains, Pipeline, drain_until_first_token
from operators.authoring import AnyOperator
from rx_backend.context import RequestContext
from rx_backend.errors import BackendError, Disconnected, InvalidArgument, Unknown
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import FinishReason, LLMEngineOutput
from tests.rx_backend._engines import (
    Item,
    ScriptedEngine,
    Step,
    adapter_of,
    collect,
    now,
    request,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans


def handshake() -> LLMEngineOutput:
    return LLMEngineOutput()


@pytest.mark.rows("S5", "S6", "P4", "P6")
@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        pytest.param(Disconnected("gone"), Disconnected, "gone", id="typed"),
        pytest.param(ValueError("too long"), InvalidArgument, "too long", id="untyped"),
        pytest.param({"token_ids": [-1]}, InvalidArgument, "token_ids", id="malformed"),
        pytest.param(LLMEngineOutput.error("boom"), Unknown, "boom", id="error-terminal"),
    ],
)
@pytest.mark.parametrize("before", [[], [handshake(), 1, handshake(), 1]])
@virtual
async def test_an_early_failure_is_raised_typed(
    failure: Step, kind: type[BackendError], message: str, before: list[Step]
) -> None:
    """Everything is released by then, and the span says what it would have said."""
    spans = Spans()
    engine = ScriptedEngine(*before, failure, closing=[2])
    stream = await adapter_of(engine, spans=spans).generate(request())
    with pytest.raises(kind, match=message):
        await stream.peek_first()
    assert (engine.closed, engine.aborts) == (1, [])
    assert status_of(spans.one())[0].name == "ERROR"
    assert await collect(stream) == []


@virtual
async def test_a_pipeline_that_annotates_nothing_fails_typed_too() -> None:
    """What the pull raises is typed as an item's error is, with the original as its cause."""
    engine = ScriptedEngine(handshake(), KeyError("slot"))
    stream = await adapter_of(engine, pipeline=Pipeline([])).generate(request())
    with pytest.raises(Unknown) as caught:
        await stream.peek_first()
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.rows("S1", "S4", "S7", "P3")
@virtual
async def test_a_stream_that_works_is_as_before() -> None:
    """It gives all items, pulls no further, and is the context manager that it was."""
    spans = Spans()
    engine = ScriptedEngine(1, handshake(), 1, token(1), 1, token(2), 1, stop())
    context = RequestContext()
    async with await adapter_of(engine, spans=spans).generate(request(), context) as stream:
        assert await stream.peek_first() is stream
        assert (now(), engine.pulls, stream.context) == (2, 2, context)
        assert tokens_of(await collect(stream)) == [[], [1], [2], []]
    attributes = spans.one().attributes or {}
    assert (attributes["ttft_ms"], attributes["finish_reason"]) == (2000.0, "Stop")


@pytest.mark.parametrize("peeks", [1, 2])
@virtual
async def test_it_can_be_subscribed_to_afterwards(peeks: int) -> None:
    """The observer gets all items; looking twice does no harm."""
    engine = ScriptedEngine(handshake(), token(1), token(2), stop())
    stream = await adapter_of(engine).generate(request())
    for _ in range(peeks):
        await stream.peek_first()
    items: list[Item] = []
    stream.subscribe(items.append)
    await asyncio.sleep(1)
    assert tokens_of(items) == [[], [1], [2], []]


@pytest.mark.rows("P6a")
@virtual
async def test_a_request_of_one_chunk_is_complete() -> None:
    """The terminal has come, so the caller who then walks away has not dropped it."""
    spans = Spans()
    engine = ScriptedEngine(LLMEngineOutput.length().with_tokens([1]))
    stream = await (await adapter_of(engine, spans=spans).generate(request())).peek_first()
    await stream.aclose()
    assert (spans.one().attributes or {})["finish_reason"] == "Length"
    assert await collect(stream) == []


@virtual
async def test_a_cancelled_request_is_no_failure() -> None:
    """Its terminal is handed out like any other."""
    context = RequestContext()
    context.stop_generating()
    stream = await adapter_of(ScriptedEngine(LLMEngineOutput.cancelled())).generate(
        request(), context
    )
    (item,) = await collect(await stream.peek_first())
    assert item.data is not None
    assert item.data.finish_reason is FinishReason.CANCELLED


@pytest.mark.rows("A4", "S7")
@virtual
async def test_to_give_up_while_peeking_drains() -> None:
    """A caller that waits no longer is a consumer that is gone before the first token."""
    async with Drains(grace_s=1) as drains:
        drain: AnyOperator = drain_until_first_token(drains=drains)
        pipeline = standard_pipeline.insert_after("deferred_abort", drain)
        engine = ScriptedEngine(handshake(), 5, token(1), 60)
        stream = await adapter_of(engine, "decode", pipeline=pipeline).generate(request())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.peek_first(), 1)
    assert (engine.aborts, engine.closes) == ([5], [6])
