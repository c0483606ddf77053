"""The engine, and the ways to consume it that are compared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from benchmarks import handwritten, stock
from operators.authoring import Operator, Stage, operator
from rx_backend import (
    DisaggregationMode,
    EngineAdapter,
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    standard_pipeline,
)

__all__ = (
    "MODE",
    "REQUEST",
    "TRACER",
    "ScriptedEngine",
    "chunks_of",
    "nothing",
    "opened",
    "rivals",
)

MODE = DisaggregationMode.AGGREGATED
# Real SDK providers; no exporter, whose cost is nobody's here.
TRACER = TracerProvider().get_tracer("benchmarks")
METERS = MeterProvider([InMemoryMetricReader()])
METERS_ALONE = MeterProvider([InMemoryMetricReader()], exemplar_filter=AlwaysOffExemplarFilter())
REQUEST = PreprocessedRequest(model="scripted", token_ids=[1, 2, 3])

Open = Callable[[], Awaitable[AsyncIterator[Any]]]


class ScriptedEngine(LLMEngine):
    """An engine that yields one-token chunks without delay, then a terminal."""

    def __init__(self, chunks: int) -> None:
        self._chunks = [LLMEngineOutput(token_ids=[n]) for n in range(min(chunks, 100))]
        self._count = chunks

    async def start(self, worker_id: int) -> EngineConfig:
        """Return the config."""
        return EngineConfig(model="scripted")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        """Yield the script."""
        chunks = self._chunks
        for n in range(self._count - 1):
            yield chunks[n % 100]
        yield LLMEngineOutput.stop()


@operator
def nothing() -> Stage[Any, Any]:
    """Do nothing for a chunk: the cost of one more operator."""
    item = yield
    while True:
        item = yield item


def rivals(engine: LLMEngine) -> dict[str, Open]:
    """Return the ways to open a stream over *engine*."""
    adapter = EngineAdapter(engine, MODE, tracer=TRACER)
    metered = EngineAdapter(engine, MODE, tracer=TRACER, meter_provider=METERS)
    without_exemplars = EngineAdapter(engine, MODE, tracer=TRACER, meter_provider=METERS_ALONE)
    plain = EngineAdapter(engine, MODE, tracer=TRACER, record=False)
    off = EngineAdapter(engine, MODE)
    doing_nothing: Operator[Any, Any] = nothing()
    longer = EngineAdapter(
        engine, MODE, standard_pipeline.with_operators(doing_nothing), tracer=TRACER
    )

    async def bare() -> AsyncIterator[Any]:
        return aiter(engine.generate(REQUEST, RequestContext("bare")))  # type: ignore[arg-type]

    return {
        "bare engine loop": bare,
        "hand-written": lambda: handwritten.generate(
            engine, REQUEST, RequestContext("r"), MODE, TRACER
        ),
        "hand-written without row P9": lambda: handwritten.generate(
            engine, REQUEST, RequestContext("r"), MODE, TRACER, nest_spans=False
        ),
        "ours, standard pipeline": lambda: adapter.generate(REQUEST, RequestContext("r")),
        "ours, metrics too": lambda: metered.generate(REQUEST, RequestContext("r")),
        "ours, metrics without exemplars": lambda: without_exemplars.generate(
            REQUEST, RequestContext("r")
        ),
        "ours, all telemetry off": lambda: off.generate(REQUEST, RequestContext("r")),
        "ours, recording off": lambda: plain.generate(REQUEST, RequestContext("r")),
        "ours, one more operator": lambda: longer.generate(REQUEST, RequestContext("r")),
        "stock reactivex chain": _async(
            lambda: stock.generate(engine, REQUEST, RequestContext("r"), MODE, TRACER)
        ),
    }


def _async(make: Callable[[], AsyncIterator[Any]]) -> Open:
    async def opened() -> AsyncIterator[Any]:
        return make()

    return opened


async def chunks_of(open_: Open) -> int:
    """Consume one stream to its end."""
    count = 0
    async for _ in await open_():
        count += 1
    return count


async def opened(open_: Open, count: int, *, pulls: int = 2) -> list[AsyncIterator[Any]]:
    """Open *count* streams, and pull each *pulls* times, past its first token."""
    streams = [await open_() for _ in range(count)]
    for stream in streams:
        for _ in range(pulls):
            await anext(stream)
    return streams
