"""The pipelines that show what each operator adds to a chunk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import operators as our
from benchmarks.rivals import MODE, REQUEST, TRACER, Open, ScriptedEngine, nothing
from operators import Pipeline
from operators.authoring import AnyOperator, FusedRun, Stage, operator
from rx_backend import (
    EngineAdapter,
    LLMEngineOutput,
    RequestContext,
    protocols,
    standard_pipeline,
)
from rx_backend.pipeline import PipelineSource

__all__ = ("adding",)


async def _itself(item: Any) -> Any:
    return item


@operator
def calling() -> Stage[Any, Any]:
    """Call a function for every chunk, as a fused operator."""
    item = yield
    while True:
        item = yield _same(item)


def _same(item: Any) -> Any:
    return item


@operator
async def handed_through(source: FusedRun[Any]) -> AsyncIterator[Any]:
    """Do nothing for a chunk, as an operator that pulls its source."""
    async for item in source:
        yield item


_WINDOWS = our.SloWindows()
_DRAINS = our.Drains()

OPERATORS: dict[str, AnyOperator] = {
    "a generator that does nothing": nothing(),
    "a generator that calls a function": calling(),
    "map_async, not waiting": our.map_async(_itself),
    "an async generator that does nothing": handed_through(),
    "limit_tokens": our.limit_tokens(1_000_000),
    "stop_on": our.stop_on([[1_000_000, 2]]),
    "usage": our.usage(3, protocols.usage),
    "tap": our.tap(_same, limit=10_000),
    "tap_async": our.tap_async(_itself, limit=10_000),
    "coalesce": our.coalesce(),
    "deadlines": our.deadlines(first_token_s=60, idle_s=10, total_s=600),
    "enforce_cancellation": our.enforce_cancellation(5.0, LLMEngineOutput.cancelled),
    "drain_until_first_token": our.drain_until_first_token(drains=_DRAINS),
    "heartbeat": our.heartbeat(15.0, None),
    "slo": our.slo(500, 50, windows=_WINDOWS, key="m"),
}


def adding(chunks: int) -> dict[str, Open]:
    """Return the standard pipeline over *chunks* chunks, alone and with each operator in it."""
    engine = ScriptedEngine(chunks)

    def opened(pipeline: PipelineSource) -> Open:
        adapter = EngineAdapter(engine, MODE, pipeline, tracer=TRACER)
        return lambda: adapter.generate(REQUEST, RequestContext("r"))

    return {
        "standard pipeline": opened(standard_pipeline),
        **{name: opened(_with(added)) for name, added in OPERATORS.items()},
    }


def _with(added: AnyOperator) -> Pipeline:
    return standard_pipeline.insert_before("annotate_errors", added)
