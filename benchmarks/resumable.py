"""What it costs to hold a stream for readers that may come back, per chunk and reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

from benchmarks.rivals import MODE, REQUEST, TRACER
from rx_backend import EngineAdapter, EngineConfig, LLMEngine, LLMEngineOutput, RequestContext
from rx_backend.resumable import ResumableStreams

__all__ = ("READERS", "resuming")

READERS = (1, 2, 3)

# Turns of the event loop between two chunks: enough for every reader to take the one before.
_TURNS = 6


class Ticker:
    """Wakes all engines at once, again and again, as a step of a batch does."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def __await__(self) -> Generator[Any, None, None]:
        """Wait for the next tick, of which the first one that waits begins the count."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            loop.call_soon(self._count, _TURNS)
        return self._next.__await__()

    def _count(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._count, turns - 1)
        elif self._next is not None:
            self._next.set_result(None)
            self._next = None


class PacedEngine(LLMEngine):
    """An engine that yields a chunk of a token and its text every tick, then a terminal."""

    def __init__(self, chunks: int) -> None:
        self._count = chunks
        self._tick = Ticker()

    async def start(self, worker_id: int) -> EngineConfig:
        """Return the config."""
        return EngineConfig(model="paced")

    async def generate(
        self, request: object, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        """Yield the script."""
        for n in range(self._count - 1):
            yield LLMEngineOutput([n], text=" word")
            await self._tick
        yield LLMEngineOutput.stop()


def resuming(streams: int, chunks: int) -> dict[str, Callable[[], Awaitable[int]]]:
    """Return ways to read many streams at once: directly, and held for some readers each."""
    adapter = EngineAdapter(PacedEngine(chunks), MODE, tracer=TRACER)
    wanted = streams * chunks

    async def directly() -> int:
        opened = [await adapter.generate(REQUEST) for _ in range(streams)]
        return sum(await asyncio.gather(*map(_count, opened)))

    def held(readers: int) -> Callable[[], Awaitable[int]]:
        async def run() -> int:
            async with ResumableStreams(adapter) as held:
                every: list[AsyncIterator[Any]] = []
                for _ in range(streams):
                    first = await held.start(REQUEST)
                    every.append(first)
                    every += [await held.resume(first.stream_id) for _ in range(readers - 1)]
                items = sum(await asyncio.gather(*map(_count, every)))
                # Next to nothing came merged, or less would be measured than is claimed.
                if items < wanted * readers * 0.99:
                    raise RuntimeError(f"only {items} of {wanted * readers} items came alone")
            return wanted

        return run

    return {"read directly": directly} | {
        f"held, readers: {count}": held(count) for count in READERS
    }


async def _count(stream: AsyncIterator[Any]) -> int:
    count = 0
    async for _ in stream:
        count += 1
    return count
