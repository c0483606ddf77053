"""The sample engine: pace, and waking up at a stop."""

from __future__ import annotations

import asyncio

import pytest

from rx_backend.context import RequestContext
from rx_backend.engines import SampleEngine
from rx_backend.testing import run_virtual
from tests.engines import virtual
from tests.rx_backend.engines.driving import consume, request


def test_tokens_keep_the_pace() -> None:
    """There is one interval before each token, the first included."""
    seen = run_virtual(consume(SampleEngine(token_interval_ms=20), request(tokens=4)))
    assert [round(time, 6) for time in seen.times_ms] == [20, 40, 60, 80]


@virtual
async def test_a_slow_consumer_does_not_shift_the_pace() -> None:
    """Tokens are due at fixed times: after a pause they come at once until the pace is regained."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    engine = SampleEngine(token_interval_ms=10)
    async for _ in engine.generate(request(tokens=5), RequestContext()):
        times.append(round(loop.time() * 1000, 6))
        if len(times) == 1:
            await asyncio.sleep(0.025)
    assert times == [10, 35, 35, 40, 50]


@pytest.mark.parametrize("interval_ms", [0, 5])
@virtual
async def test_streams_run_beside_each_other(interval_ms: float) -> None:
    """A hundred streams take no longer than one."""
    engine = SampleEngine(token_interval_ms=interval_ms)
    seen = await asyncio.gather(*(consume(engine, request(tokens=4)) for _ in range(100)))
    assert all(len(one.chunks) == 4 for one in seen)
    assert asyncio.get_running_loop().time() * 1000 == pytest.approx(4 * interval_ms)


@pytest.mark.rows("E4")
@virtual
async def test_a_stop_wakes_the_stream_at_once() -> None:
    """The `cancelled` terminal comes when the stop does, not when the next token is due."""
    context = RequestContext()
    engine = SampleEngine(token_interval_ms=60_000)
    reading = asyncio.create_task(consume(engine, request(), context))
    await asyncio.sleep(1.5)
    context.stop_generating()
    seen = await reading
    assert seen.reason == "cancelled"
    assert seen.times_ms == [1500]
