"""What kept streams take is what is counted, and nothing of a request outlives its answer."""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import AsyncGenerator, Generator

import pytest

from operators.authoring import Stage, operator
from rx_backend import Disconnected, EngineAdapter, EngineConfig, LLMEngine, RequestContext
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.resumable import ResumableStreams
from tests.engines import virtual
from tests.rx_backend.resumable.answers import Item, collect

STREAMS = 20
TOKENS = 300
# Of one stream: its objects in this library, reactivex and asyncio, the spare room of its buffers, and
# the traceback of its failure.
OVERHEAD = 10_000


class Talker(LLMEngine):
    """Makes tokens of eight letters, and ends as it is told."""

    def __init__(self, end: str) -> None:
        self._end = end

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="talker")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        scratch = list(range(1000, 11_000))
        for n in range(TOKENS):
            yield LLMEngineOutput([n + 1_000_000], text="eight888")
        if self._end == "raises":
            raise Disconnected(f"gone with {len(scratch)}")
        yield LLMEngineOutput.stop()


@operator
def failing() -> Stage[Item, Item]:
    """Fail at the terminal."""
    item = yield
    while item.data is not None and item.data.finish_reason is None:
        item = yield item
    raise KeyError("mine")


async def begin(streams: ResumableStreams) -> None:
    # The prompt alone takes hundreds of kilobytes.
    prompt = list(range(100_000, 110_000))
    reader = await streams.start(PreprocessedRequest(token_ids=prompt))
    async with reader:
        await collect(reader, 1)


@pytest.fixture
def no_log() -> Generator[None]:
    """Keep pytest from holding log records, and with them the frames of failures."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_log")
@pytest.mark.parametrize("end", ["stops", "raises", "fails behind"])
@virtual
async def test_kept_streams_take_the_counted_memory(end: str) -> None:
    """However they ended: their items and a few kilobytes, and nothing of engine or request."""
    adapter = EngineAdapter(Talker(end))
    if end == "fails behind":
        adapter = adapter.with_operators(failing())
    async with ResumableStreams(adapter, max_ahead=1_000) as streams:
        await begin(streams)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(STREAMS):
            await begin(streams)
        await asyncio.sleep(5)
        gc.collect()
        taken = (tracemalloc.get_traced_memory()[0] - before) / STREAMS
        tracemalloc.stop()
        held = streams.stats()
        assert held[:2] == (0, STREAMS + 1)
        counted = held.held_bytes / (STREAMS + 1)
        assert counted < TOKENS * 40
        assert taken < counted * 1.15 + OVERHEAD
