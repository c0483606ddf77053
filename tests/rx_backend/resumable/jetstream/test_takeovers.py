"""What becomes of an answer whose process is not heard of any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from rx_backend import PreprocessedRequest, RequestContext
from rx_backend.errors import BackendError, Disconnected, EngineShutdown
from rx_backend.protocols import FinishReason, LLMEngineOutput, SamplingOptions
from rx_backend.protocols import GuidedDecodingOptions as Guided
from rx_backend.resumable import ResumableStreams
from tests.engines import real_time
from tests.proxy import proxy
from tests.rx_backend.resumable.jetstream._answers import (
    CountingEngine,
    expected,
    process,
    request,
    tokens,
    until,
)
from tests.rx_backend.resumable.jetstream._nats import NatsServer

pytestmark = pytest.mark.cluster


class Stuck(CountingEngine):
    """It makes five tokens, and then hangs."""

    def __init__(self, *token_ids: int) -> None:
        super().__init__()
        self.token_ids = token_ids or (3, 4, 5, 6, 7)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        for token in self.token_ids:
            yield LLMEngineOutput([token])
        await context.killed()


@asynccontextmanager
async def lost(
    nats: NatsServer, asked: PreprocessedRequest, engine: CountingEngine | None = None
) -> AsyncGenerator[str]:
    """Give the id of an answer of five tokens, whose process is cut off from NATS."""
    with proxy(nats.port, "nats") as between:
        async with process(between.url, engine or Stuck()) as streams:
            reader = await streams.start(asked)
            while reader.position < 5:
                await anext(reader)
            between.is_silent = True
            yield reader.stream_id
            between.cut()


@real_time
async def test_an_answer_that_can_not_be_resumed_fails(nats: NatsServer) -> None:
    """With the error of a lost worker and its reason, in every process, now and later."""
    taking = CountingEngine()
    guided = SamplingOptions(guided_decoding=Guided(regex="a*"))
    async with (
        lost(nats, request(9, sampling_options=guided)) as stream_id,
        process(nats.url, taking) as there,
        process(nats.url, taking) as third,
    ):
        for streams in (there, third):
            async with await streams.resume(stream_id) as reader:
                items = [item async for item in reader]
            assert tokens(items[:-1]) == expected(5)
            error = items[-1].error
            assert isinstance(error, Disconnected)
            assert "guided decoding" in error.message
        assert not taking.requests


@real_time
async def test_takeovers_of_an_answer_are_limited(nats: NatsServer) -> None:
    """One that kills its processes would kill all."""
    async with (
        lost(nats, request(9)) as stream_id,
        process(nats.url, CountingEngine(), max_takeovers=0) as there,
        await there.resume(stream_id) as reader,
    ):
        items = [item async for item in reader]
        assert tokens(items[:-1]) == expected(5)
        assert isinstance(items[-1].error, Disconnected)


@real_time
async def test_an_answer_that_lacks_only_its_terminal_gets_it(nats: NatsServer) -> None:
    """Its last token is an end token: no engine is asked."""
    taking = CountingEngine()
    async with (
        lost(nats, request(9, eos_token_ids=[2]), Stuck(3, 4, 5, 6, 2)) as stream_id,
        process(nats.url, taking) as there,
        await there.resume(stream_id) as reader,
    ):
        items = [item async for item in reader]
        assert tokens(items) == [3, 4, 5, 6, 2]
        last = items[-1].data
        assert last is not None
        assert last.finish_reason is FinishReason.EOS
        assert last.completion_usage is not None
        assert last.completion_usage.completion_tokens == 5
        assert not taking.requests


@pytest.mark.parametrize("is_read", [True, False])
@real_time
async def test_a_stop_that_can_not_reach_its_process_ends_the_answer(
    nats: NatsServer, is_read: bool
) -> None:
    """Readers, now or later, get what there is, and the end."""
    taking = CountingEngine()
    async with (
        lost(nats, request(9)) as stream_id,
        process(nats.url, taking) as there,
        process(nats.url, taking) as later,
    ):
        readers = [await there.resume(stream_id)] if is_read else []
        await there.stop(stream_id)
        if not is_read:
            readers = [await streams.resume(stream_id) for streams in (there, later)]
        for reader in readers:
            async with reader:
                items = [item async for item in reader]
            assert tokens(items) == expected(5)
            assert items[-1].data == LLMEngineOutput.cancelled()
        assert not taking.requests


@real_time
async def test_a_stop_of_an_answer_that_was_taken_over(nats: NatsServer) -> None:
    """It reaches an answer whose first process is gone, though that is the one that began it."""
    taking = CountingEngine(0.01)
    async with (
        lost(nats, request(100_000)) as stream_id,
        process(nats.url, taking) as there,
        process(nats.url, CountingEngine()) as third,
        await there.resume(stream_id) as reader,
    ):
        items = [await anext(reader)]
        while reader.position < 20:
            items.append(await anext(reader))
        await third.stop(stream_id)
        items += [item async for item in reader]
        assert tokens(items) == expected(100_000)[: len(tokens(items))]
        assert items[-1].data == LLMEngineOutput.cancelled()
        await until(lambda: not taking.live)


@real_time
async def test_an_engine_that_rejects_the_continuation_ends_the_answer(nats: NatsServer) -> None:
    """The engine's error is the answer's, for all who read it."""

    class Shut(CountingEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            raise EngineShutdown("shut")
            yield

    async def error_of(streams: ResumableStreams, stream_id: str) -> BackendError | None:
        async with await streams.resume(stream_id) as reader:
            return [item async for item in reader][-1].error

    async with (
        lost(nats, request(9)) as stream_id,
        process(nats.url, Shut()) as there,
        process(nats.url, CountingEngine()) as third,
    ):
        errors = [await error_of(streams, stream_id) for streams in (there, third)]
        assert [type(error) for error in errors] == [EngineShutdown] * 2


@real_time
async def test_concurrent_takeovers_continue_an_answer_once(nats: NatsServer) -> None:
    """One of them makes the rest, and the others hand out what it makes."""

    async def whole(engine: CountingEngine, stream_id: str) -> None:
        async with (
            process(nats.url, engine) as streams,
            await streams.resume(stream_id) as reader,
        ):
            assert tokens([item async for item in reader]) == expected(50)
            # Who makes it goes on to make it for the others.
            await until(lambda: not engine.live)

    engines = [CountingEngine(0.005) for _ in range(4)]
    async with lost(nats, request(50)) as stream_id:
        await asyncio.gather(*(whole(engine, stream_id) for engine in engines))
    assert sum(engine.made for engine in engines) == 45
    assert sum(len(engine.requests) for engine in engines) == 1
