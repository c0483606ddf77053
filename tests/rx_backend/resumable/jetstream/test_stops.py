"""Stops of answers whose engine, or whose process, does not end them: each lacks its terminal only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from rx_backend import PreprocessedRequest, RequestContext
from rx_backend.protocols import FinishReason, LLMEngineOutput, SamplingOptions
from rx_backend.resumable import ResumableStreams
from tests.engines import real_time
from tests.proxy import Proxy
from tests.rx_backend.resumable.jetstream._answers import (
    CountingEngine,
    leaves_sockets,
    process,
    request,
    tokens,
    until,
)
from tests.rx_backend.resumable.jetstream._nats import NatsServer

pytestmark = pytest.mark.cluster

THREE = request(9, sampling_options=SamplingOptions(n=3))


class IgnoresStops(CountingEngine):
    """It begins three answers, ends the second one, and then hears no stop."""

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        for index in range(3):
            yield LLMEngineOutput([7], index=index)
        yield LLMEngineOutput(finish_reason=FinishReason.STOP, index=1)
        await asyncio.Event().wait()


async def ends(streams: ResumableStreams, stream_id: str) -> list[tuple[int, FinishReason]]:
    """Return the terminals that a client gets, by answer."""
    async with await streams.resume(stream_id) as reader:
        chunks = [item.data async for item in reader]
    found = [(chunk.index or 0, chunk.finish_reason) for chunk in chunks if chunk]
    return sorted(((index, reason) for index, reason in found if reason), key=lambda end: end[0])


EACH_ONCE = [(0, FinishReason.CANCELLED), (1, FinishReason.STOP), (2, FinishReason.CANCELLED)]


@pytest.mark.rows("E3")
@real_time
async def test_an_engine_that_ignores_a_stop_is_closed(nats: NatsServer) -> None:
    """When its stream is closed, the answers that are open get a terminal each."""
    async with (
        process(nats.url, IgnoresStops(), linger_s=0.0, stop_grace_s=0.1) as here,
        process(nats.url, CountingEngine()) as there,
    ):
        async with await here.start(THREE) as reader:
            while reader.position < 4:
                await anext(reader)
        await until(lambda: not here.stats().running)
        assert await ends(there, reader.stream_id) == EACH_ONCE


@pytest.mark.rows("E3")
@leaves_sockets
@real_time
async def test_a_stop_of_an_unresponsive_process(nats: NatsServer, between: Proxy) -> None:
    """The one that was asked to stop knows which answers have ended, though it has read nothing."""
    async with (
        process(between.url, IgnoresStops()) as here,
        process(nats.url, CountingEngine()) as there,
    ):
        reader = await here.start(THREE)
        while reader.position < 4:
            await anext(reader)
        between.is_silent = True
        await there.stop(reader.stream_id)
        assert await ends(there, reader.stream_id) == EACH_ONCE
        between.cut()


@leaves_sockets
@real_time
async def test_an_answer_given_up_after_a_lost_acknowledgement(
    nats: NatsServer, between: Proxy
) -> None:
    """What was stored without its process knowing counts: the end comes after it, not within it."""
    more = asyncio.Event()

    class Waiting(CountingEngine):
        async def generate(
            self, request: PreprocessedRequest, context: RequestContext
        ) -> AsyncGenerator[LLMEngineOutput]:
            yield LLMEngineOutput([3])
            await more.wait()
            yield LLMEngineOutput([4])
            await asyncio.Event().wait()

    async with (
        process(nats.url, CountingEngine(), lease_s=600.0) as there,
        process(between.url, Waiting(), lease_s=600.0, timeout_s=0.5) as here,
    ):
        reader = await here.start(request(9))
        other = await there.resume(reader.stream_id)
        await asyncio.gather(anext(reader), anext(other))
        between.drops_answers = True
        more.set()
        assert tokens([await anext(other)]) == [4]
        await here.stop(reader.stream_id)
        closing = asyncio.create_task(here.aclose())
        await asyncio.sleep(0.1)
        between.cut()
        await closing
        assert [item.data async for item in other] == [LLMEngineOutput.cancelled()]
