"""The items of a response stream have the type that its pipeline hands out."""

from __future__ import annotations

from typing import assert_type

from reactivex import Observable
from reactivex import operators as ops

from operators import (
    Pipeline,
    SharedStream,
    coalesce,
    heartbeat,
    limit_tokens,
    share_replay,
    tap,
)
from operators.authoring import Reader
from rx_backend import (
    Annotated,
    EngineAdapter,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    ResponseStream,
    standard_pipeline,
)
from rx_backend.scope import RequestScope
from tests.typing.writing import as_text, at_most, count_tokens, shout


async def of_the_standard_pipeline(engine: LLMEngine, request: PreprocessedRequest) -> None:
    """Without a word about types, they are annotated chunks."""
    adapter = EngineAdapter(engine)
    assert_type(adapter, EngineAdapter[Annotated[LLMEngineOutput]])
    stream = await adapter.generate(request)
    assert_type(stream, ResponseStream[Annotated[LLMEngineOutput]])
    async for item in stream:
        assert_type(item.data, LLMEngineOutput | None)
    async with stream as same:
        assert_type(same, ResponseStream[Annotated[LLMEngineOutput]])
    assert_type(await stream.peek_first(), ResponseStream[Annotated[LLMEngineOutput]])
    assert_type(stream.as_observable(), Observable[Annotated[LLMEngineOutput]])
    assert_type(await anext(stream), Annotated[LLMEngineOutput])
    assert_type(stream.pipe(as_text()), Observable[str])
    assert_type(stream.pipe(ops.take(1)), Observable[Annotated[LLMEngineOutput]])


def of_a_pipeline(engine: LLMEngine) -> None:
    """Take the type of an adapter from its pipeline, also where a function makes it."""
    assert_type(standard_pipeline, Pipeline[Annotated[LLMEngineOutput]])
    texts = standard_pipeline.with_operators(as_text())
    assert_type(texts, Pipeline[str])
    assert_type(EngineAdapter(engine, pipeline=texts), EngineAdapter[str])
    assert_type(EngineAdapter(engine, "decode", texts), EngineAdapter[str])

    def made(scope: RequestScope) -> Pipeline[Annotated[LLMEngineOutput]]:
        limit = scope.request.stop_conditions.max_tokens
        return standard_pipeline.insert_before("record_span", limit_tokens(limit))

    assert_type(EngineAdapter(engine, pipeline=made), EngineAdapter[Annotated[LLMEngineOutput]])


def with_operators(engine: LLMEngine) -> None:
    """One that changes the type changes the adapter's; others leave it."""
    adapter = EngineAdapter(engine)
    assert_type(adapter.with_operators(limit_tokens(3)), EngineAdapter[Annotated[LLMEngineOutput]])
    assert_type(
        adapter.with_operators(limit_tokens(3), coalesce(), count_tokens(print)),
        EngineAdapter[Annotated[LLMEngineOutput]],
    )
    assert_type(adapter.with_operators(at_most(2)), EngineAdapter[Annotated[LLMEngineOutput]])
    assert_type(adapter.with_operators(tap(print)), EngineAdapter[object])
    assert_type(adapter.with_operators(as_text()), EngineAdapter[str])
    assert_type(adapter.with_operators(as_text()).with_operators(shout()), EngineAdapter[str])
    assert_type(adapter.with_operators(ops.delay(0.1)), EngineAdapter[Annotated[LLMEngineOutput]])
    assert_type(
        adapter.with_operators(ops.buffer_with_count(3)),
        EngineAdapter[list[Annotated[LLMEngineOutput]]],
    )
    assert_type(adapter.with_operators(ops.map(is_error)), EngineAdapter[bool])
    assert_type(
        adapter.with_operators(heartbeat(15.0, Annotated(comment=["ping"]))),
        EngineAdapter[Annotated[LLMEngineOutput]],
    )


def is_error(item: Annotated[LLMEngineOutput]) -> bool:
    return item.is_error


async def shared(stream: ResponseStream[str], texts: Observable[str]) -> None:
    """A shared stream has the items of its source, whatever that is, and so have its readers."""
    assert_type(share_replay()(stream), SharedStream[str])
    assert_type(share_replay(16)(texts), SharedStream[str])
    assert_type(texts.pipe(share_replay()), SharedStream[str])
    assert_type(SharedStream(stream, linger_s=None), SharedStream[str])
    one = share_replay()(stream)
    assert_type(one.read(after=2), Reader[str])
    assert_type(await anext(one.read()), str)
    assert_type(one.pipe(ops.map(len)), Observable[int])
    async for text in one.read():
        assert_type(text, str)
