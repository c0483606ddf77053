"""A request frees what it held by reference counts alone: the collector finds nothing."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from operators import coalesce, heartbeat, limit_tokens, map_async
from operators.authoring import AnyOperator
from rx_backend import (
    Annotated,
    DisaggregationMode,
    EngineAdapter,
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.testing import run_virtual

REQUEST = PreprocessedRequest(model="m", token_ids=[1])

PING: Annotated[LLMEngineOutput] = Annotated(comment=["ping"])


class Engine(LLMEngine):
    """Gives three chunks, and fails where it is told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self._fails = fails

    async def start(self, worker_id: int) -> EngineConfig:
        """Give a name."""
        return EngineConfig(model="m")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        """Wait before the second chunk."""
        yield LLMEngineOutput.token(1)
        await asyncio.sleep(0.01)
        if self._fails:
            raise ValueError("broken")
        yield LLMEngineOutput.token(2)
        yield LLMEngineOutput.stop()


async def as_it_is(item: object) -> object:
    """Give the item back."""
    return item


LISTS: dict[str, list[AnyOperator]] = {
    "standard": [],
    "limit_tokens": [limit_tokens(1)],
    "heartbeat": [heartbeat(0.005, PING)],
    "coalesce": [coalesce(max_tokens=4)],
    "map_async": [map_async(as_it_is)],
}
PULLED = {"heartbeat", "coalesce", "map_async"}


@pytest.mark.rows("S7", "P7")
@pytest.mark.parametrize("metered", [False, True])
@pytest.mark.parametrize("takes", [1, 9], ids=["dropped", "complete"])
@pytest.mark.parametrize("fails", [False, True], ids=["well", "failing"])
@pytest.mark.parametrize("name", LISTS)
def test_requests_leave_no_garbage(name: str, *, fails: bool, takes: int, metered: bool) -> None:
    """
    After a hundred requests, however they end, the collector finds no cycle.

    From Python 3.12 on, a failure's traceback keeps the frames that called the engine, with their
    local variables: where an operator pulls, the error item is one of them.
    """
    is_kept = fails and takes > 1 and name in PULLED and sys.version_info >= (3, 12)
    meters = MeterProvider([InMemoryMetricReader()]) if metered else None
    adapter = EngineAdapter(
        Engine(fails=fails),
        DisaggregationMode.AGGREGATED,
        tracer=TracerProvider().get_tracer("test"),
        meter_provider=meters,
    ).with_operators(*LISTS[name])

    async def request() -> None:
        stream = await adapter.generate(REQUEST, RequestContext("r"))
        for _ in range(takes):
            if await anext(stream, None) is None:
                break
        await stream.aclose()

    async def main() -> int:
        for _ in range(3):
            await request()
        await asyncio.sleep(1)
        gc.collect()
        for _ in range(100):
            await request()
        await asyncio.sleep(1)
        return gc.collect()

    gc.disable()
    try:
        assert run_virtual(main()) == 0 or is_kept
    finally:
        gc.enable()
