"""What an adapter measures by, on event loops of several kinds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from rx_backend.adapter import EngineAdapter
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.testing import VirtualTimeLoop
from tests.spans import Spans


class Busy(LLMEngine):
    """Waits before each token."""

    def __init__(self, wait: Callable[[], Awaitable[None]]) -> None:
        self.wait = wait

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="busy")

    async def generate(self, request: Any, context: Any) -> AsyncGenerator[LLMEngineOutput]:
        for token_id in range(21):
            await self.wait()
            yield LLMEngineOutput.token(token_id)
        yield LLMEngineOutput.stop()


async def spin() -> None:
    """Block the loop for 0.4 ms, as an engine's own step would."""
    until = time.perf_counter() + 0.0004
    while time.perf_counter() < until:
        pass


def median_gap_ms(make_loop: Callable[[], asyncio.AbstractEventLoop], engine: LLMEngine) -> float:
    spans = Spans()
    adapter = EngineAdapter(engine, tracer=spans.tracer)

    async def main() -> None:
        async for _ in await adapter.generate(PreprocessedRequest(token_ids=[1])):
            pass

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())
    gap = (spans.one().attributes or {})["itl_p50_ms"]
    assert isinstance(gap, float)
    return gap


@pytest.mark.rows("F3", "F4")
@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_gaps_below_a_millisecond_are_measured(name: str) -> None:
    """Also on uvloop, whose own clock counts whole milliseconds."""
    make_loop = pytest.importorskip(name).new_event_loop
    gap = median_gap_ms(make_loop, Busy(spin))
    assert 0.4 <= gap < 5  # a busy machine may be slower, but not in whole ms
    assert gap % 1


@pytest.mark.rows("F3", "F4")
def test_gaps_in_virtual_time_are_virtual() -> None:
    """The clock of a loop in virtual time counts, not the system's."""
    gap = median_gap_ms(VirtualTimeLoop, Busy(lambda: asyncio.sleep(60)))
    assert gap == 60_000
