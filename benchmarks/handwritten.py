"""
The rival: one async generator that implements every row of docs/behaviour.md in one body.

It is what an expert would write in an evening: a monitor task per request for the abort, the
engine's spans nested by attaching the request's span around each pull, and figures computed from
time stamps at the end.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from array import array
from collections.abc import AsyncIterator
from operator import sub
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode, Tracer

from rx_backend import (
    Annotated,
    DisaggregationMode,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.errors import InvalidArgument, as_backend_error
from rx_backend.protocols import convert_output
from rx_backend.telemetry import start_request_span, worker_trace_link

_log = logging.getLogger(__name__)


async def generate(
    engine: LLMEngine,
    request: PreprocessedRequest,
    context: RequestContext,
    mode: DisaggregationMode,
    tracer: Tracer,
    *,
    nest_spans: bool = True,
) -> AsyncIterator[Annotated[LLMEngineOutput]]:
    """
    Set up the engine and return its stream.

    *nest_spans* implements row P9; False omits it, which shows what that row costs here.
    """
    is_decode, is_prefill = mode.is_decode, mode.is_prefill
    if is_decode:
        context.bind(asyncio.get_running_loop(), decode=True)
    span = start_request_span(tracer, request, context, mode)
    recording = span.is_recording()
    in_span = trace.set_span_in_context(span)
    token = otel_context.attach(in_span)
    called = time.monotonic()
    try:
        chunks = aiter(engine.generate(request, context))  # type: ignore[arg-type]
    except Exception as error:
        span.set_attribute("error_kind", "setup_failed")
        span.set_status(Status(StatusCode.ERROR, "setup_failed"))
        span.end()
        raise as_backend_error(error) from error
    finally:
        otel_context.detach(token)
    return _stream(
        engine, chunks, context, span, in_span, is_decode, is_prefill, recording, called, nest_spans
    )


async def _monitor(engine: LLMEngine, context: RequestContext, first: asyncio.Event | None) -> None:
    await context.stopped()
    if first is not None:
        await first.wait()
    try:
        await engine.abort(context)
    except Exception:
        _log.exception("abort of %s failed", context.id)


async def _stream(
    engine: LLMEngine,
    chunks: AsyncIterator[Any],
    context: RequestContext,
    span: trace.Span,
    in_span: otel_context.Context,
    is_decode: bool,
    is_prefill: bool,
    recording: bool,
    called: float,
    nest_spans: bool,
) -> AsyncIterator[Annotated[LLMEngineOutput]]:
    clock = time.monotonic
    started = clock()
    first = asyncio.Event() if is_decode else None
    monitor = asyncio.create_task(_monitor(engine, context, first))
    link = worker_trace_link(span)
    times = array("d")
    note = times.append
    attach, detach = otel_context.attach, otel_context.detach
    pull = chunks.__anext__
    seen = completed = False
    output_tokens = 0

    def outcome() -> dict[str, Any]:
        found: dict[str, Any] = {"output_tokens": output_tokens, "cancelled": context.is_stopped}
        found["gen_ai.usage.output_tokens"] = output_tokens
        found["setup_ms"] = round((started - called) * 1000.0, 2)
        if times:
            found["ttft_ms"] = round((times[0] - started) * 1000.0, 2)
            found["gen_ai.response.time_to_first_chunk"] = times[0] - called
            since = time.time_ns() - int((clock() - times[0]) * 1e9)
            span.add_event("first_token", timestamp=since)
        gaps = sorted(map(sub, times[1:], times))
        if gaps:
            found["avg_itl_ms"] = round(sum(gaps) / len(gaps) * 1000.0, 2)
            found["itl_p50_ms"] = round(gaps[int((len(gaps) - 1) * 0.50 + 0.5)] * 1000.0, 2)
            found["itl_p99_ms"] = round(gaps[int((len(gaps) - 1) * 0.99 + 0.5)] * 1000.0, 2)
            found["itl_max_ms"] = round(gaps[-1] * 1000.0, 2)
        return found

    try:
        while True:
            try:
                if nest_spans:
                    token = attach(in_span)
                    try:
                        chunk = await pull()
                    finally:
                        detach(token)
                else:
                    chunk = await pull()
                if type(chunk) is not LLMEngineOutput:
                    chunk = convert_output(chunk)
                token_ids = chunk.token_ids
                for token_id in token_ids:
                    if type(token_id) is not int or not 0 <= token_id <= 0x3FFFFFFF:
                        raise InvalidArgument(f"token_ids: bad {token_id!r}")  # noqa: TRY301
            except StopAsyncIteration:
                break
            except Exception as error:
                typed = as_backend_error(error)
                if recording:
                    failed = {"error_kind": typed.span_kind, "error.type": typed.kind}
                    span.set_attributes({**outcome(), **failed})
                span.set_status(Status(StatusCode.ERROR, typed.span_kind))
                completed = True
                yield Annotated.from_error(typed)
                break
            if token_ids:
                if not seen:
                    seen = True
                    context.notify_first_token()
                    if first is not None:
                        first.set()
                    if link is not None:
                        chunk = copy.copy(chunk)
                        chunk.worker_trace_link = link
                if recording:
                    note(clock())
                    output_tokens += len(token_ids)
            reason = chunk.finish_reason
            if reason is not None:
                if is_prefill and chunk.worker_trace_link is None and link is not None:
                    chunk = copy.copy(chunk)
                    chunk.worker_trace_link = link
                if recording:
                    ended: dict[str, Any] = {"finish_reason": reason.span_value}
                    ended["gen_ai.response.finish_reasons"] = [reason.kind]
                    span.set_attributes({**outcome(), **ended})
                if reason.is_error:
                    span.set_status(Status(StatusCode.ERROR, reason.span_value))
                completed = True
                yield Annotated(chunk)
                break
            yield Annotated(chunk)
    finally:
        if not completed:
            if recording:
                found = outcome()
                found.update(cancelled=True, finish_reason="Dropped")
                span.set_attributes(found)
            span.set_status(Status(StatusCode.ERROR, "stream dropped before terminal"))
        monitor.cancel()
        span.end()
        aclose = getattr(chunks, "aclose", None)
        if aclose is not None:
            await aclose()
