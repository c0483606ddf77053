"""CPU of a chunk and reader, from the engine to the server; and the memory of answers that are kept."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from time import process_time
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Message

from benchmarks.web_server import BY_HAND, FORMATS, us_to_write
from operators import SharedStream
from rx_backend import (
    EngineAdapter,
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.resumable import ResumableStreams
from rx_backend.web import respond

__all__ = ("SteppedEngine", "cpu_of_sharing", "memory_of_keeping")

REQUEST = PreprocessedRequest(token_ids=[1])
SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "GET",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "headers": [],
}


class SteppedEngine(LLMEngine):
    """Yields a token for each step, at the same time in all answers, as an engine that batches."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._steps = 0
        self._step: asyncio.Future[None] | None = None

    def step(self) -> None:
        """Have all answers yield their next token."""
        self._steps += 1
        step, self._step = self._step, None
        if step is not None:
            step.set_result(None)

    async def start(self, worker_id: int) -> EngineConfig:
        """Return the config."""
        return EngineConfig(model="stepped")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Yield tokens whose text is their number, then the terminal."""
        for number in range(self._tokens):
            if number >= self._steps:
                if self._step is None:
                    self._step = asyncio.get_running_loop().create_future()
                await self._step
            yield LLMEngineOutput([number], text=f" {number}")
        yield LLMEngineOutput.length()


class Sink:
    """What a server is to its application; counts the events that are sent, and drops them."""

    def __init__(self) -> None:
        self.events = 0

    async def send(self, message: Message) -> None:
        """Count the events."""
        if message["type"] == "http.response.body" and message["body"]:
            self.events += 1

    async def receive(self) -> Message:
        """Wait for a client to leave, which none does."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError


Serve = Callable[[SteppedEngine, Sink, int], Awaitable[list[Awaitable[Any]]]]
"""Opens an answer with so many readers; returns what serves each of them."""


def ways_to_serve(format: str) -> dict[str, Serve]:
    """Return the ways that are compared."""
    by_hand, ours = BY_HAND[format], FORMATS[format]

    async def bare(engine: SteppedEngine, sink: Sink, readers: int) -> list[Awaitable[Any]]:
        async def events() -> AsyncGenerator[bytes]:
            position = 0
            async for chunk in engine.generate(REQUEST, RequestContext()):
                if chunk.finish_reason is None:
                    position += 1
                    yield by_hand(position, chunk)

        responses = [StreamingResponse(events()) for _ in range(readers)]
        return [response(SCOPE, sink.receive, sink.send) for response in responses]

    async def count(items: AsyncIterator[Any], sink: Sink) -> None:
        async for _ in items:
            sink.events += 1

    async def engine_alone(engine: SteppedEngine, sink: Sink, readers: int) -> list[Awaitable[Any]]:
        each = [engine.generate(REQUEST, RequestContext()) for _ in range(readers)]
        return [count(stream, sink) for stream in each]

    async def adapter(engine: SteppedEngine, sink: Sink, readers: int) -> list[Awaitable[Any]]:
        each = [await EngineAdapter(engine).generate(REQUEST) for _ in range(readers)]
        return [count(stream, sink) for stream in each]

    async def responses(engine: SteppedEngine, sink: Sink, readers: int) -> list[Awaitable[Any]]:
        each = [await EngineAdapter(engine).generate(REQUEST) for _ in range(readers)]
        return [respond(stream, ours)(SCOPE, sink.receive, sink.send) for stream in each]

    async def shared(engine: SteppedEngine, sink: Sink, readers: int) -> list[Awaitable[Any]]:
        stream = SharedStream(await EngineAdapter(engine).generate(REQUEST))
        return [count(stream.read(), sink) for _ in range(readers)]

    async def held(engine: SteppedEngine, sink: Sink, readers: int) -> list[Any]:
        streams = ResumableStreams(EngineAdapter(engine))
        first = await streams.start(REQUEST)
        return [first, *[await streams.resume(first.stream_id) for _ in range(readers - 1)]]

    async def resumable(engine: SteppedEngine, sink: Sink, readers: int) -> list[Awaitable[Any]]:
        return [count(reader, sink) for reader in await held(engine, sink, readers)]

    async def everything(engine: SteppedEngine, sink: Sink, readers: int) -> list[Awaitable[Any]]:
        each = await held(engine, sink, readers)
        return [respond(reader, ours)(SCOPE, sink.receive, sink.send) for reader in each]

    return {
        "engine alone": engine_alone,
        "bare StreamingResponse": bare,
        "adapter": adapter,
        "adapter, respond": responses,
        "SharedStream": shared,
        "ResumableStreams": resumable,
        "ResumableStreams, respond": everything,
    }


async def us_per_event(serve: Serve, answers: int, readers: int, steps: int) -> float:
    """Return the µs of CPU for an event of one reader."""
    engine, sink = SteppedEngine(steps), Sink()
    serving = [
        asyncio.ensure_future(each)
        for _ in range(answers)
        for each in await serve(engine, sink, readers)
    ]
    await asyncio.sleep(0.05)
    gc.collect()
    began = process_time()
    for step in range(steps):
        engine.step()
        while sink.events < (step + 1) * answers * readers:  # noqa: ASYNC110 - costs least
            await asyncio.sleep(0)
    elapsed = process_time() - began
    await asyncio.gather(*serving)
    return elapsed / (steps * answers * readers) * 1e6


def cpu_of_sharing(rounds: int) -> None:
    """Measure a chunk and reader, the engine included, up to what the server is given."""
    for name_of_format in FORMATS:
        writing = us_to_write(name_of_format)
        by_hand, by_format = writing["bare"], writing["shared"]
        for readers in (1, 3):
            ways = ways_to_serve(name_of_format)
            best = dict.fromkeys(ways, float("inf"))
            for _ in range(rounds):
                for name, serve in ways.items():
                    us = asyncio.run(us_per_event(serve, 60 // readers, readers, 50))
                    best[name] = min(best[name], us)
            print(f"\nA chunk and reader of {readers}, {name_of_format} (us; without the engine)")
            engine = best["engine alone"]
            for name, us in best.items():
                is_shared = name.startswith(("Shared", "Resumable"))
                rest = us - engine / (readers if is_shared else 1)
                print(f"  {name:<34}{us:>8.1f}{rest:>8.1f}")
            added = best["ResumableStreams, respond"] - best["bare StreamingResponse"]
            print(f"  writing alone: by hand {by_hand:.1f}, by the format {by_format:.1f}")
            print(
                f"  added to the bare response, beyond writing: {added - by_format + by_hand:.1f}"
            )


def memory_of_keeping(rounds: int) -> None:
    """Measure the memory of answers that are kept, and of ones that come and go."""
    asyncio.run(_kept_answers())
    asyncio.run(_many_answers())


async def _answer(streams: ResumableStreams) -> None:
    async with await streams.start(REQUEST) as reader:
        async for _ in reader:
            pass


class _QuickEngine(SteppedEngine):
    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        for number in range(self._tokens):
            yield LLMEngineOutput([number], text=f" {number}")
        yield LLMEngineOutput.length()


async def _kept_answers() -> None:
    print("\nMemory of an answer that has ended and is kept (bytes; counted by held_bytes)")
    for tokens, count in ((0, 500), (200, 200), (2_000, 20)):
        async with ResumableStreams(EngineAdapter(_QuickEngine(tokens))) as streams:
            await _answer(streams)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(count):
                await _answer(streams)
            await asyncio.sleep(0)
            gc.collect()
            size = (tracemalloc.get_traced_memory()[0] - before) / count
            tracemalloc.stop()
            print(f"  {tokens:>6} tokens{size:>12,.0f}{streams.stats().held_bytes / count:>12,.0f}")


async def _many_answers() -> None:
    print("\nMemory after so many answers of 5 tokens, all forgotten (KB more than after 1,000)")
    async with ResumableStreams(EngineAdapter(_QuickEngine(5)), keep_s=0.0) as streams:
        tracemalloc.start()
        before = 0
        for thousand in range(1, 11):
            for _ in range(1_000):
                await _answer(streams)
            while len(streams):  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0)
            gc.collect()
            now = tracemalloc.get_traced_memory()[0]
            before = before or now
            if thousand in {2, 5, 10}:
                print(f"  {thousand * 1_000:>6}{(now - before) / 1e3:>10.1f}")
        tracemalloc.stop()
