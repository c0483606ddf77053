"""
Thousands of requests that end in every way there is, and nothing that is left of them.

``RX_BACKEND_SOAK=100000 python -m pytest tests/rx_backend/test_soak.py --log-cli-level=INFO`` runs
more of them; the figures are in the log.
"""

from __future__ import annotations

import _weakrefset
import asyncio
import gc
import logging
import os
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import BackendError, Disconnected
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.testing import run_virtual
from tests.engines import Stream, collect, stop, token

REQUESTS = int(os.environ.get("RX_BACKEND_SOAK", "2000"))
BATCH = 250
WARM_UP = 2 * BATCH

# What may be more at the end than after the warm-up, whatever the number of requests: sets that
# requests pass through keep the largest table that they ever had.
MORE_OBJECTS = 50
MORE_BYTES = 50_000

HOUR = 3600.0

ENDS = ["terminal", "terminal", "error", "bug", "no terminal", "hang", "setup error", "setup hang"]
CONSUMERS = ["read", "leave", "forget", "cancel", "time out", "stop", "kill and leave"]


class SpanCounter(SynchronousMultiSpanProcessor):
    """Counts spans, keeps none, and is not watched by the tests' ledger, which would."""

    def __init__(self) -> None:
        super().__init__()
        self.started = 0
        self.ended: Counter[str] = Counter()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.started += 1

    def on_end(self, span: ReadableSpan) -> None:
        attributes = span.attributes or {}
        outcome = attributes.get("finish_reason") or attributes.get("error_kind")
        self.ended[str(outcome)] += 1


@dataclass
class SoakEngine(LLMEngine):
    """Ends each stream as its request says, closes slowly at times, and counts."""

    opened: int = 0
    closed: int = 0
    aborts: Counter[str] = field(default_factory=Counter[str])

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="soak")

    async def abort(self, context: RequestContext) -> None:
        self.aborts[context.id] += 1
        await asyncio.sleep(len(context.id) % 2)
        raise Disconnected("abort fails, too")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        end: str = request.extra_args["end"]
        if end == "setup error":
            raise Disconnected("no set-up")
        await asyncio.sleep(HOUR if end == "setup hang" else 0)
        return self._stream(request.extra_args["tokens"], end, context)

    async def _stream(
        self, tokens: int, end: str, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.opened += 1
        try:
            for number in range(tokens):
                await asyncio.sleep(number % 3 / 10)
                yield token(number)
            if end == "error":
                raise Disconnected("gone")
            if end == "bug":
                raise LookupError
            if end == "hang":
                await context.stopped()
                yield LLMEngineOutput.cancelled()
            if end == "terminal":
                yield stop()
        finally:
            self.closed += 1
            await asyncio.sleep(tokens % 2 / 2)


async def consume(adapter: EngineAdapter, how: str, request: PreprocessedRequest) -> None:
    """One request in the hands of one consumer; no stream outlives it."""
    context = RequestContext()
    asked = asyncio.create_task(adapter.generate(request, context))
    if how == "cancel":
        asyncio.get_running_loop().call_later(0.3, asked.cancel)
    stream: Stream | None = None
    with suppress(BackendError, TimeoutError, asyncio.CancelledError):
        stream = await asyncio.wait_for(asked, 2)
    if stream is not None:
        await hold(stream, context, how)


async def hold(stream: Stream, context: RequestContext, how: str) -> None:
    later = asyncio.get_running_loop().call_later
    if how in {"leave", "forget", "kill and leave"}:
        with suppress(TimeoutError, StopAsyncIteration):
            async with asyncio.timeout(5):
                await anext(stream)
        if how == "kill and leave":
            context.kill()
        if how != "forget":
            await stream.aclose()
        return
    if how == "stop":
        later(0.2, context.stop_generating)
        later(0.3, context.notify_first_token)
    reading = asyncio.create_task(collect(stream))
    if how == "cancel":
        later(0.2, reading.cancel)
    with suppress(TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(reading, 0.4 if how == "time out" else 60)


def footprint() -> tuple[int, int]:
    """Objects that the collector tracks, and bytes beside asyncio's set of tasks."""
    gc.collect()
    objects = len(gc.get_objects())
    # How large a table a set has depends on its past.
    others = tracemalloc.Filter(False, _weakrefset.__file__)
    traces = tracemalloc.take_snapshot().filter_traces([others]).traces
    return objects, sum(trace.size for trace in traces)


@pytest.fixture
def traced() -> Generator[None]:
    """Trace allocations, and keep the log of so many failures out of the figures."""
    logger = logging.getLogger("rx_backend")
    before = logger.level
    logger.setLevel(logging.ERROR)
    tracemalloc.start(1)
    yield
    tracemalloc.stop()
    logger.setLevel(before)


@pytest.mark.rows("S7", "P7", "A2", "A7")
@pytest.mark.timeout(60 + REQUESTS // 50)
@pytest.mark.usefixtures("traced")
def test_nothing_is_left_of_many_requests() -> None:
    """No task, span, generator, object or byte stays, however requests and consumers end."""
    spans, engine = SpanCounter(), SoakEngine()
    provider = TracerProvider(
        sampler=ALWAYS_ON, active_span_processor=spans, shutdown_on_exit=False
    )
    chance = random.Random(7)
    footprints: list[tuple[int, int]] = []

    async def batch(adapters: list[EngineAdapter]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(BATCH):
                extra: dict[str, Any] = {"tokens": chance.randrange(6), "end": chance.choice(ENDS)}
                request = PreprocessedRequest(token_ids=[1], extra_args=extra)
                how = chance.choice(CONSUMERS)
                tasks.create_task(consume(chance.choice(adapters), how, request))
        await asyncio.sleep(HOUR)  # the loop lets go of cancelled timers when their time has come
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert max(engine.aborts.values(), default=0) <= 1
        engine.aborts.clear()

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        tracer = provider.get_tracer("soak")
        adapters = [
            EngineAdapter(engine, mode, tracer=tracer, clock=clock) for mode in DisaggregationMode
        ]
        for done in range(0, REQUESTS, BATCH):
            if done == WARM_UP:
                footprints.append(footprint())
            await batch(adapters)
        footprints.append(footprint())

    begun = time.perf_counter()
    run_virtual(main())
    (objects, allocated), (objects_later, allocated_later) = footprints
    requests = -(-REQUESTS // BATCH) * BATCH
    logging.getLogger(__name__).info(
        "%d requests in %.1f s: %+d objects, %+d bytes, %d streams, %s",
        requests,
        time.perf_counter() - begun,
        objects_later - objects,
        allocated_later - allocated,
        engine.opened,
        dict(spans.ended),
    )
    assert engine.opened == engine.closed
    assert spans.started == spans.ended.total() == requests
    assert objects_later - objects <= MORE_OBJECTS
    assert allocated_later - allocated <= MORE_BYTES
