"""
A worker in a process of its own, which says what is left of its requests.

Each line on stdin asks for a report, two lines of JSON: what became of the requests since the last
one, and the process's footprint. It is made once the worker is at rest. The end of stdin ends the
worker.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from importlib import import_module
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, cast

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.dynamo import ContextBridge, serving
from rx_backend.dynamo.served_stream import ServedStream
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import Disconnected
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.stream import ResponseStream

AT_REST_WITHIN_S = 20.0
LIBC = ctypes.CDLL(None)
KEPT = (ContextBridge, RequestContext, ResponseStream)


class SpanCounter(SpanProcessor):
    """Counts the spans that are open, and keeps none."""

    def __init__(self) -> None:
        self.open = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.open += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.open -= 1


class SoakEngine(LLMEngine):
    """
    Does what each request says, and notes whether it had heard of a stop by the end of its stream.

    Attributes:
        open: How many streams are under way.
        heard: For each stream by its request's id: whether its request was stopped or killed when
            the terminal was handed out, or when the stream was closed without one.
        closed: Ids of the requests whose stream was closed before its terminal.
        aborts: How often each request was aborted.
    """

    def __init__(self) -> None:
        self.open = 0
        self.heard: dict[str, bool] = {}
        self.closed: list[str] = []
        self.aborts: Counter[str] = Counter()

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="soak")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.open += 1
        at_terminal: bool | None = None
        asked = request.extra_args
        try:
            await asyncio.sleep(asked["set_up_s"])
            for number in range(asked["tokens"]):
                if context.is_stopped:
                    break
                yield LLMEngineOutput.token(number)
                await asyncio.sleep(asked["pause_s"])
            if asked["end"] == "hang":
                await context.stopped()
            while asked["end"] == "endless" and not context.is_stopped:
                await asyncio.sleep(0.005)
                yield LLMEngineOutput.token(0)
            at_terminal = context.is_stopped
            if at_terminal:
                yield LLMEngineOutput.cancelled()
            elif asked["end"] == "error":
                raise Disconnected("gone")
            elif asked["end"] == "bug":
                raise LookupError("gone")
            elif asked["end"] == "terminal":
                yield LLMEngineOutput.stop()
        finally:
            self.open -= 1
            if at_terminal is None:
                self.closed.append(context.id)
            self.heard[context.id] = context.is_stopped if at_terminal is None else at_terminal

    async def abort(self, context: RequestContext) -> None:
        self.aborts[context.id] += 1
        await asyncio.sleep(0.001)


class Reporter:
    """Says what the worker holds."""

    def __init__(
        self, engine: SoakEngine, spans: SpanCounter, tasks: set[asyncio.Task[Any]]
    ) -> None:
        self._engine = engine
        self._spans = spans
        self._tasks = tasks

    def is_at_rest(self) -> bool:
        return not (self._engine.open or self._spans.open or self._left_tasks() or left_objects())

    async def report(self) -> str:
        """Wait until nothing is under way, but not forever, and say what is left then."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + AT_REST_WITHIN_S
        # Nothing here calls the runtime: what it lets go of is freed without that.
        while not self.is_at_rest() and loop.time() < ends:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        # The memory is that of a worker which has told all and forgotten it.
        told = self._tell()
        return f"{told}\n{json.dumps(footprint())}"

    def _tell(self) -> str:
        engine = self._engine
        found = {
            "left": {
                "tasks": list(map(repr, self._left_tasks())),
                "spans": self._spans.open,
                "streams": engine.open,
                "objects": left_objects(),
            },
            "seen": list(engine.heard),
            "heard": sorted(name for name, heard in engine.heard.items() if heard),
            "closed": list(engine.closed),
            "aborts": sorted(engine.aborts.elements()),
        }
        for ledger in (engine.heard, engine.closed, engine.aborts):
            ledger.clear()
        return json.dumps(found)

    def _left_tasks(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - self._tasks


def left_objects() -> dict[str, int]:
    """Count what belongs to requests, by its class."""
    return Counter(
        type(cast("object", each)).__name__
        for each in gc.get_objects()
        if isinstance(each, KEPT) or is_open_generator(each) or is_open_stream(each)
    )


def is_open_stream(each: object) -> bool:
    # One that is over is an empty shell, which the runtime frees in its next call.
    return isinstance(each, ServedStream) and not each.is_over


def is_open_generator(each: object) -> bool:
    # The one of the loop's, which closes its streams, is no request's.
    return (
        isinstance(each, AsyncGeneratorType)
        and cast("Any", each).ag_frame is not None
        and cast("Any", each).__name__ != "_until_shutdown"
    )


def footprint() -> dict[str, int]:
    """Count the objects that the collector tracks, all small ones, and the process's bytes."""
    # It loses sight of tuples of plain values, one level of nesting at a time.
    for _ in range(4):
        gc.collect()
    LIBC.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "python_objects": len(gc.get_objects()),
        "python_blocks": sys.getallocatedblocks(),
        "process_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
    }


async def serve() -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    engine, spans = SoakEngine(), SpanCounter()
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(spans)
    adapter = EngineAdapter(engine, tracer=provider.get_tracer("soak"))
    runtime = import_module("dynamo.runtime").DistributedRuntime(loop, "file", "tcp")
    endpoint = runtime.endpoint("rx.backend.generate")
    served = asyncio.ensure_future(endpoint.serve_endpoint(serving(adapter)))
    reporter = Reporter(engine, spans, asyncio.all_tasks())
    while await asked.readline():
        sys.stdout.write(await reporter.report() + "\n")
        sys.stdout.flush()
    runtime.shutdown()
    await served


if __name__ == "__main__":
    logging.getLogger("rx_backend").setLevel(logging.ERROR)
    # What a request holds is freed when it ends, without the collector.
    gc.collect()
    gc.disable()
    asyncio.run(serve())
