"""The same chain from stock ``reactivex`` operators, through an asyncio queue."""

from __future__ import annotations

import asyncio
import copy
import time
from array import array
from collections.abc import AsyncIterator
from typing import Any

import reactivex
from opentelemetry.trace import Tracer
from reactivex import Observable
from reactivex import operators as ops
from reactivex.disposable import Disposable
from reactivex.subject import Subject

from operators.authoring import latency_figures
from rx_backend import (
    Annotated,
    DisaggregationMode,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.errors import InvalidArgument, as_backend_error
from rx_backend.telemetry import start_request_span, worker_trace_link


def _from_engine(chunks: AsyncIterator[LLMEngineOutput]) -> Observable[LLMEngineOutput]:
    def subscribe(observer: Any, scheduler: Any = None) -> Any:
        async def push() -> None:
            try:
                async for chunk in chunks:
                    observer.on_next(chunk)
                observer.on_completed()
            except Exception as error:
                observer.on_error(error)

        task = asyncio.ensure_future(push())
        return Disposable(lambda: stop(task))

    return Observable(subscribe)


def stop(task: asyncio.Task[None]) -> None:
    """Cancel a task."""
    task.cancel()


def _checked(chunk: LLMEngineOutput) -> LLMEngineOutput:
    for token_id in chunk.token_ids:
        if type(token_id) is not int or not 0 <= token_id <= 0x3FFFFFFF:
            raise InvalidArgument(f"token_ids: bad token id {token_id!r}")
    return chunk


async def generate(
    engine: LLMEngine,
    request: PreprocessedRequest,
    context: RequestContext,
    mode: DisaggregationMode,
    tracer: Tracer,
) -> AsyncIterator[Annotated[LLMEngineOutput]]:
    """Assemble the chain and yield its items."""
    span = start_request_span(tracer, request, context, mode)
    link = worker_trace_link(span)
    times = array("d")
    started = time.monotonic()
    first: Subject[Any] = Subject()
    ended: Subject[Any] = Subject()
    tokens = 0
    last: list[LLMEngineOutput] = []

    def on_first(chunk: LLMEngineOutput) -> None:
        context.notify_first_token()
        first.on_next(chunk)

    def stamp(chunk: LLMEngineOutput, index: int) -> LLMEngineOutput:
        if index == 0 and link is not None:
            chunk = copy.copy(chunk)
            chunk.worker_trace_link = link
        return chunk

    def measure(chunk: LLMEngineOutput) -> None:
        if chunk.token_ids:
            times.append(time.monotonic())

    def remember(chunk: LLMEngineOutput) -> None:
        nonlocal tokens
        tokens += len(chunk.token_ids)
        last[:] = [chunk]

    def record() -> None:
        figures = latency_figures(
            [(times[n] - times[n - 1]) * 1000.0 for n in range(1, len(times))]
        )
        if figures is not None:
            span.set_attributes({"avg_itl_ms": figures.avg_ms, "itl_p50_ms": figures.p50_ms})
            span.set_attributes({"itl_p99_ms": figures.p99_ms, "itl_max_ms": figures.max_ms})
        if times:
            span.set_attribute("ttft_ms", (times[0] - started) * 1000.0)
        span.set_attributes({"output_tokens": tokens, "cancelled": context.is_stopped})
        if last and last[0].finish_reason is not None:
            span.set_attribute("finish_reason", last[0].finish_reason.span_value)
        span.end()

    def start_abort() -> None:
        aborts.append(asyncio.ensure_future(engine.abort(context)))

    aborts: list[asyncio.Task[None]] = []
    chunks: AsyncIterator[LLMEngineOutput] = aiter(engine.generate(request, context))  # type: ignore[arg-type]
    shared = _from_engine(chunks).pipe(
        ops.map(_checked),
        ops.take_while(lambda chunk: chunk.finish_reason is None, inclusive=True),
        ops.publish(),
        ops.ref_count(),
    )
    seen = shared.pipe(ops.filter(lambda chunk: bool(chunk.token_ids)), ops.take(1))
    gate = reactivex.merge(
        context.stopped().pipe(ops.skip_until(first)), first.pipe(ops.skip_until(context.stopped()))
    ).pipe(ops.take(1), ops.take_until(ended))
    gating = gate.subscribe(lambda _: start_abort())
    noticing = seen.subscribe(on_first)
    items = shared.pipe(
        ops.map_indexed(stamp),
        ops.do_action(measure),
        ops.do_action(remember),
        ops.map(Annotated),
        ops.catch(lambda error, _: reactivex.of(Annotated.from_error(as_backend_error(error)))),
        ops.finally_action(record),
    )
    queue: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue()
    pushing = items.subscribe(
        lambda item: queue.put_nowait((True, item)),
        lambda error: queue.put_nowait((False, error)),
        lambda: queue.put_nowait((False, None)),
    )
    try:
        while True:
            is_item, item = await queue.get()
            if not is_item:
                break
            yield item
    finally:
        ended.on_next(True)
        gating.dispose()
        noticing.dispose()
        pushing.dispose()
        await chunks.aclose()  # type: ignore[attr-defined]
