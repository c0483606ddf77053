"""What each operator adds to a chunk of the standard pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import operators as our
from benchmarks.rivals import MODE, REQUEST, TRACER, Open, ScriptedEngine, nothing
from operators.authoring import AnyOperator, FusedRun, Stage, operator
from rx_backend import (
    EngineAdapter,
    LLMEngineOutput,
    RequestContext,
    protocols,
    standard_pipeline,
)
from rx_backend.scope import RequestScope

__all__ = ("adding",)

Make = Callable[[RequestScope], AnyOperator]


async def _itself(item: Any) -> Any:
    return item


async def _always(item: Any) -> bool:
    return True


@operator
def calling() -> Stage[Any, Any]:
    """Call a function for every chunk: a fused operator that does something."""
    item = yield
    while True:
        item = yield _same(item)


def _same(item: Any) -> Any:
    return item


@operator
async def handed_through(source: FusedRun[Any]) -> AsyncIterator[Any]:
    """Do nothing for a chunk, as an operator that pulls for itself."""
    async for item in source:
        yield item


_WINDOWS = our.SloWindows()
_DRAINS = our.Drains()

MAKES: dict[str, Make] = {
    "a generator that does nothing": lambda scope: nothing(),
    "a generator that calls a function": lambda scope: calling(),
    "map_async, not waiting": lambda scope: our.map_async(_itself),
    "filter_async, not waiting": lambda scope: our.filter_async(_always),
    "an async generator that does nothing": lambda scope: handed_through(),
    "limit_tokens": lambda scope: our.limit_tokens(1_000_000),
    "stop_on": lambda scope: our.stop_on([[1_000_000, 2]]),
    "usage": lambda scope: our.usage(3, protocols.usage),
    "tap": lambda scope: our.tap(_same, limit=10_000),
    "tap_async": lambda scope: our.tap_async(_itself, limit=10_000),
    "slo": lambda scope: our.slo(500, 50, windows=_WINDOWS, key="m", times=scope.times),
    "coalesce": lambda scope: our.coalesce(),
    "deadlines": lambda scope: our.deadlines(first_token_s=60, idle_s=10, total_s=600),
    "enforce_cancellation": lambda scope: our.enforce_cancellation(
        5.0, LLMEngineOutput.cancelled, stop=scope.context.stopped()
    ),
    "drain_until_first_token": lambda scope: our.drain_until_first_token(
        scope.context.stop_generating, drains=_DRAINS
    ),
    "heartbeat": lambda scope: our.heartbeat(15.0, None),
}


def adding(chunks: int) -> dict[str, Open]:
    """The standard pipeline over *chunks* chunks, alone and with each operator in it."""
    engine = ScriptedEngine(chunks)

    def opened(make: Make | None) -> Open:
        def pipeline(scope: RequestScope) -> list[AnyOperator]:
            standard = standard_pipeline
            return (
                standard if make is None else standard.insert_before("annotate_errors", make(scope))
            )

        adapter = EngineAdapter(engine, MODE, pipeline, tracer=TRACER)
        return lambda: adapter.generate(REQUEST, RequestContext("r"))

    return {
        "standard pipeline": opened(None),
        **{name: opened(make) for name, make in MAKES.items()},
    }
