"""Record, replay, record: the same recording."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.recording import Recording, ReplayEngine, read_recordings
from rx_backend.testing import run_virtual
from tests.rx_backend.recording._help import recording_stream, recordings


class Original(LLMEngine):
    """An engine that waits from chunk to chunk, as engines do."""

    def __init__(self, plan: Recording) -> None:
        self._plan = plan

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="original")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        plan, before_ms = self._plan, 0.0
        for timed in plan.chunks:
            if timed.time_ms > before_ms:
                await asyncio.sleep((timed.time_ms - before_ms) / 1000)
            before_ms = timed.time_ms
            yield timed.chunk
        assert plan.end is not None
        await asyncio.sleep((plan.end.time_ms - before_ms) / 1000 + (plan.end.how == "dropped"))
        if plan.end.error is not None:
            raise plan.end.error


async def take_all(engine: LLMEngine, plan: Recording, path: Path, *, in_front: bool) -> list[Any]:
    """Record a stream whose consumer leaves when the plan says so; give its items and their times."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    stream = await recording_stream(engine, path, plan.request_id or "r1", in_front=in_front)
    assert plan.end is not None
    leaves_at = began + plan.end.time_ms / 1000 if plan.end.how == "dropped" else None
    seen: list[Any] = []
    with suppress(TimeoutError):
        async with asyncio.timeout_at(leaves_at):
            async for item in stream:
                error = item.error and (item.error.kind, item.error.message)
                seen.append((round((loop.time() - began) * 1e6), item.data, error))
    return seen


@pytest.mark.rows("S1", "S6", "S7")
@given(plan=recordings(), in_front=st.booleans(), began_s=st.sampled_from([0.0, 12345.678901]))
def test_a_replayed_stream_records_the_same(
    plan: Recording, in_front: bool, began_s: float
) -> None:
    """The same chunks at the same times, and the same end: for the consumer, and in the file."""

    async def run(folder: str) -> None:
        first, second = Path(folder, "first"), Path(folder, "second")
        seen = await take_all(Original(plan), plan, first, in_front=in_front)
        await asyncio.sleep(began_s)
        replayed = ReplayEngine(first)
        assert await take_all(replayed, plan, second, in_front=in_front) == seen
        (recording,) = read_recordings(first)
        assert read_recordings(second) == [recording]
        assert (recording.chunks, recording.end) == (plan.chunks, plan.end)

    with tempfile.TemporaryDirectory() as folder:
        run_virtual(run(folder))
