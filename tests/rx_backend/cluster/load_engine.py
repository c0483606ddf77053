"""What the workers under load serve: an engine that counts, and a pipeline that records it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

from rx_backend import (
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    standard_pipeline,
)
from rx_backend.recording import record
from rx_backend.worker.model_files import NUMBERS
from tests.rx_backend.worker.engines import say

MODEL = "load"
FIRST = 500
STEP_S = 0.02


class LoadEngine(LLMEngine):
    """Counts from 500, or on from the number that ends its prompt, one token each 20 ms."""

    def __init__(self) -> None:
        self._open = 0
        self._last = time.monotonic()

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model=MODEL)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        last = request.token_ids[-1]
        number = last + 1 if last < NUMBERS else FIRST
        wanted = request.stop_conditions.max_tokens or 8
        self._open += 1
        self._last = time.monotonic()
        try:
            for token_id in range(number, number + wanted - 1):
                await asyncio.sleep(STEP_S)
                if context.is_stopped:
                    yield LLMEngineOutput.cancelled()
                    return
                yield LLMEngineOutput.token(token_id)
            yield LLMEngineOutput.length().with_tokens([number + wanted - 1])
        finally:
            self._open -= 1

    async def cleanup(self) -> None:
        """Say what is left of the requests, and since when there was no new one."""
        for _ in range(10):
            await asyncio.sleep(0)
        idle_s = time.monotonic() - self._last
        say(f"left streams={self._open} tasks={len(_streams())} idle_s={idle_s:.1f}")


def _streams() -> list[str]:
    """Name the tasks that a stream, or a request of the worker, runs in."""
    names = (repr(task.get_coro()) for task in asyncio.all_tasks())
    return [name for name in names if "generate" in name or "handle" in name or "Pump" in name]


recorded = standard_pipeline.with_operators(record(os.environ.get("LOAD_RECORDINGS", ".")))
