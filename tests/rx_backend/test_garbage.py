"""A request frees what it held by reference counts alone: the collector finds nothing."""

from __future__ import annotations

import asyncio
import gc
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from operators import coalesce, heartbeat, limit_tokens, map_async
from operators.authoring import AnyOperator
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.protocols import Annotated, LLMEngineOutput
from rx_backend.testing import run_virtual
from tests.engines import ScriptedEngine, Step, itself, request, stop, token

LISTS: dict[str, list[AnyOperator]] = {
    "standard": [],
    "limit_tokens": [limit_tokens(1)],
    "heartbeat": [heartbeat(0.005, Annotated[LLMEngineOutput](comment=["ping"]))],
    "coalesce": [coalesce(max_chunks=4)],
    "map_async": [map_async(itself)],
}
PULLED = {"heartbeat", "coalesce", "map_async"}


@pytest.mark.rows("S7", "P7")
@pytest.mark.parametrize("takes", [1, 9], ids=["dropped", "complete"])
@pytest.mark.parametrize("fails", [False, True], ids=["well", "failing"])
@pytest.mark.parametrize("name", LISTS)
def test_requests_leave_no_garbage(name: str, *, fails: bool, takes: int) -> None:
    """
    After ten requests, however they end, the collector finds no cycle.

    From Python 3.12 on, a failure's traceback keeps the frames that called the engine, with their
    local variables: where an operator pulls, the error item is one of them.
    """
    is_kept = fails and takes > 1 and name in PULLED and sys.version_info >= (3, 12)

    def fail(_: RequestContext) -> None:
        raise ValueError("broken")

    script: list[Step] = [token(1), 0.01, *([fail] if fails else []), token(2), stop()]

    async def main(adapter: EngineAdapter) -> int:
        async def ask() -> None:
            stream = await adapter.generate(request(), RequestContext("r"))
            for _ in range(takes):
                if await anext(stream, None) is None:
                    break
            await stream.aclose()

        for _ in range(3):
            await ask()
        await asyncio.sleep(1)
        gc.collect()
        for _ in range(10):
            await ask()
        await asyncio.sleep(1)
        return gc.collect()

    for meters in (None, MeterProvider([InMemoryMetricReader()])):
        tracer = TracerProvider().get_tracer("test")
        adapter = EngineAdapter(
            ScriptedEngine(*script), tracer=tracer, meter_provider=meters
        ).with_operators(*LISTS[name])
        gc.disable()
        try:
            assert run_virtual(main(adapter)) == 0 or is_kept
        finally:
            gc.enable()
