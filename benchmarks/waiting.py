"""The cost of a chunk that every stream has to wait for, as from an engine that batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from time import process_time

from benchmarks.measure import interleaved
from benchmarks.rivals import Open, ScriptedEngine, chunks_of, rivals
from rx_backend import LLMEngineOutput, PreprocessedRequest, RequestContext

__all__ = ("cpu_of_waiting",)

STEPS = 500
WAYS = ("bare engine loop", "hand-written", "ours, standard pipeline", "ours, all telemetry off")


class WaitingEngine(ScriptedEngine):
    """Has every answer wait for each chunk, and wakes all of them at once."""

    _step: asyncio.Future[None] | None = None

    def step(self) -> None:
        """Let all answers yield their next chunk."""
        step, self._step = self._step, None
        if step is not None:
            step.set_result(None)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        """Yield the script, a chunk for each step."""
        async for chunk in super().generate(request, context):
            if self._step is None:
                self._step = asyncio.get_running_loop().create_future()
            await self._step
            yield chunk


def cpu_of_waiting(rounds: int) -> None:
    """Measure what a chunk costs whose pull has to wait, in a task for each stream."""
    engine = WaitingEngine(STEPS)
    ways = {name: way for name, way in rivals(engine).items() if name in WAYS}
    for streams in (8, 64):
        jobs = {name: _reading(engine, way, streams) for name, way in ways.items()}
        best = interleaved(jobs, rounds=rounds, clock=process_time)
        bare = best["bare engine loop"]
        by_hand = best["hand-written"] - bare
        print(f"\nA chunk that {streams} streams wait for (ns; added to the engine; ratio of that)")
        for name, value in best.items():
            added = value - bare
            print(f"  {name:<34}{value:>10.0f}{added:>10.0f}{added / by_hand:>8.2f}")


def _reading(engine: WaitingEngine, open_: Open, streams: int) -> Callable[[], Awaitable[int]]:
    async def run() -> int:
        tasks = [asyncio.ensure_future(chunks_of(open_)) for _ in range(streams)]
        while not all(task.done() for task in tasks):
            # The streams that this wakes run before the next turn ends.
            engine.step()
            await asyncio.sleep(0)
        return streams * STEPS

    return run
