"""The engine contract: what an engine must offer, and the shapes that its answer may have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine, check_config, open_chunks
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from tests.rx_backend._engines import (
    ScriptedEngine,
    adapter_of,
    chunk_of,
    collect,
    request,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans


class Minimal(LLMEngine):
    """An engine that has only what it must have."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="minimal")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        for token_id in request.token_ids:
            await asyncio.sleep(1)
            yield token(token_id)
        yield stop()


def three_chunks() -> list[LLMEngineOutput]:
    return [token(1), token(2), stop()]


@dataclass
class ByHand:
    """A chunk stream written as a class; it has no ``aclose``, and can't be hashed."""

    left: list[LLMEngineOutput] = field(default_factory=three_chunks)

    def __aiter__(self) -> AsyncIterator[LLMEngineOutput]:
        return self

    async def __anext__(self) -> LLMEngineOutput:
        await asyncio.sleep(0)
        return self.left.pop(0)


class OnlyIterable:
    """Something that can be iterated, and is no iterator itself."""

    def __aiter__(self) -> AsyncIterator[LLMEngineOutput]:
        return ByHand()


async def generator() -> AsyncGenerator[object]:
    yield token(1)
    await asyncio.sleep(0)
    yield token(2)
    yield stop()


async def dicts() -> AsyncGenerator[dict[str, Any]]:
    yield {"token_ids": [1]}
    yield {"token_ids": [2], "unheard_of": None}
    yield {"token_ids": [], "finish_reason": "stop"}


async def coroutine() -> AsyncIterator[object]:
    await asyncio.sleep(0)
    return generator()


class Answering:
    """An engine, by its methods alone, that answers with what a function gives."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self._answer = answer

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> object:
        return self._answer()


@pytest.mark.rows("E1")
@virtual
async def test_one_engine_serves_many_streams_at_a_time() -> None:
    """A hundred requests to one started engine run beside each other, each with its own tokens."""
    engine = Minimal()
    assert check_config(await engine.start(0)).model == "minimal"
    adapter = adapter_of(engine)
    streams = [await adapter.generate(request(prompt)) for prompt in range(100)]
    answers = await asyncio.gather(*map(collect, streams))
    assert [len(items) for items in answers] == [prompt + 1 for prompt in range(100)]
    assert asyncio.get_running_loop().time() == 99
    await engine.cleanup()


@pytest.mark.rows("E1")
@pytest.mark.parametrize(
    "config",
    [EngineConfig(model=""), EngineConfig(model=" "), None, {"model": "m"}, "m"],
    ids=["empty", "blank", "none", "mapping", "text"],
)
def test_a_config_must_name_its_model(config: object) -> None:
    """A config without a model name is refused, with what was found instead."""
    with pytest.raises(InvalidArgument, match="non-empty model name, got model=") as raised:
        check_config(cast("EngineConfig", config))
    assert type(config).__name__ in raised.value.message


@pytest.mark.rows("E2", "S1")
@pytest.mark.parametrize("answer", [generator, coroutine, ByHand, OnlyIterable, dicts])
@virtual
async def test_all_shapes_of_an_answer_behave_alike(answer: Callable[[], object]) -> None:
    """Generator, coroutine, iterator, iterable and plain dicts give the same items and span."""
    spans = Spans()
    items = await collect(await adapter_of(Answering(answer), spans=spans).generate(request()))
    assert tokens_of(items) == [[1], [2], []]
    assert str(chunk_of(items[-1]).finish_reason) == "stop"
    attributes = spans.one().attributes
    assert attributes is not None
    assert (attributes["output_tokens"], attributes["finish_reason"]) == (2, "Stop")


@pytest.mark.rows("E2", "TY-output")
@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("stop", "stop", None),
        ("length", "length", None),
        ("abort", "cancelled", None),
        ("error: boom", "error", "boom"),
        ({"error": "boom"}, "error", "boom"),
    ],
)
@virtual
async def test_dicts_are_read_like_the_wire(text: object, kind: str, message: str | None) -> None:
    """A dict's finish reason may be in any of the forms that engines write; unknown keys stay."""
    engine = ScriptedEngine({"token_ids": [7, 8], "finish_reason": text, "later_version": 1})
    (item,) = await collect(await adapter_of(engine).generate(request()))
    chunk = chunk_of(item)
    assert chunk.token_ids == [7, 8]
    assert chunk.finish_reason is not None
    assert (chunk.finish_reason.kind, chunk.finish_reason.message) == (kind, message)
    assert chunk.unknown == {"later_version": 1}


@pytest.mark.rows("E2")
@pytest.mark.parametrize("answer", [None, 5, [token(1)], iter([token(1)]), "text"])
@pytest.mark.parametrize("is_awaited", [False, True], ids=["plain", "awaited"])
@virtual
async def test_an_answer_that_is_no_stream_is_refused(answer: object, is_awaited: bool) -> None:
    """Anything else is refused; the message names the engine and what it gave."""

    async def later() -> object:
        return answer

    engine = cast("LLMEngine", Answering(later if is_awaited else lambda: answer))
    expected = (
        f"Answering.generate must return an async iterator of chunks, got {type(answer).__name__}"
    )
    with pytest.raises(InvalidArgument, match=expected):
        await open_chunks(engine, request(), RequestContext())


@pytest.mark.rows("E4", "S3")
@virtual
async def test_an_engine_can_wait_for_the_stop() -> None:
    """An engine that watches its context ends with a `cancelled` terminal when the stop comes."""
    context = RequestContext()
    engine = ScriptedEngine(token(1), lambda seen: seen.stopped(), LLMEngineOutput.cancelled())
    reading = asyncio.create_task(collect(await adapter_of(engine).generate(request(), context)))
    await asyncio.sleep(3)
    assert not reading.done()
    context.stop_generating()
    items = await reading
    assert str(chunk_of(items[-1]).finish_reason) == "cancelled"


@pytest.mark.rows("E5")
@virtual
async def test_what_is_optional_has_safe_defaults() -> None:
    """An engine of two methods can be aborted, drained, asked, and cleaned up twice or unstarted."""
    engine = Minimal()
    await engine.abort(RequestContext())
    await engine.drain()
    assert await engine.is_quiescent() is True
    assert await engine.health_check_payload() is None
    await engine.cleanup()
    await engine.cleanup()


@pytest.mark.rows("E5", "A7")
@virtual
async def test_an_engine_may_do_without_abort() -> None:
    """An object that only has ``generate`` is served, and stopping its requests is no complaint."""
    context = RequestContext()
    with capture_logs() as logs:
        stream = await adapter_of(Answering(generator)).generate(request(), context)
        context.stop_generating()
        assert tokens_of(await collect(stream)) == [[1], [2], []]
        await asyncio.sleep(1)
    assert [log for log in logs if log["log_level"] == "warning"] == []
