"""An engine for workers that need each other: it tells what it is given, and where it waits."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext

from rx_backend import (
    DisaggregationMode,
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.protocols import to_builtins
from rx_backend.worker.model_files import NUMBERS
from tests.rx_backend.worker.engines import say

MODEL = "peers"
FIRST = 500
WAIT_INSIDE, WAIT_BEFORE, BEAT_BEFORE, BOOTSTRAP = "i", "b", "h", "s"
MADE_BEFORE_THE_WAIT = 3


class PeerEngine(LLMEngine):
    """
    Counts from 500, or on from the number that ends its prompt.

    In decode mode the number comes from what the prefill worker has handed over. The first letter
    of the user's message picks what else happens, where the tokens are made:

    `i`: it waits after the third token, until there is a file of that letter in RELEASE.
    `b`: it waits so before the first token, and for no stop, as for a transfer under way.
    `h`: the same, with an empty chunk now and then.
    `s`: prefill gives a place to meet instead of a result.
    """

    def __init__(self, mode: str) -> None:
        self.mode = DisaggregationMode.parse(mode)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(_Tell()))
        trace.set_tracer_provider(provider)

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model=MODEL)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        span = trace.get_current_span().get_span_context()
        tell("request", **to_builtins(request), span=_identity(span))
        letter = chr(next(token for token in request.token_ids[len("user: ") :]) - NUMBERS)
        last = request.token_ids[-1]
        number = last + 1 if last < NUMBERS else FIRST
        if self.mode.is_prefill:
            yield _handed_over(number, letter)
            return
        if request.prefill_result is not None:
            number = request.prefill_result.disaggregated_params["next"]
        if letter in {WAIT_BEFORE, BEAT_BEFORE}:
            async for _ in _transfer(letter, context):
                if letter == BEAT_BEFORE:
                    yield LLMEngineOutput()
        wanted = request.stop_conditions.max_tokens or 8
        for made in range(wanted):
            if letter == WAIT_INSIDE and number == FIRST + MADE_BEFORE_THE_WAIT:
                say("waiting")
                await _released(letter)
            if made and context.is_stopped:
                yield LLMEngineOutput.cancelled()
                return
            if not made:
                say("first token")
            chunk = LLMEngineOutput.length() if made == wanted - 1 else LLMEngineOutput()
            yield chunk.with_tokens([number])
            number += 1

    async def abort(self, context: RequestContext) -> None:
        say("abort")


def tell(what: str, **fields: Any) -> None:
    say(f"{what} {json.dumps(fields)}")


def _handed_over(number: int, letter: str) -> LLMEngineOutput:
    chunk = LLMEngineOutput.length().with_tokens([number])
    place = {"bootstrap_host": "127.0.0.1", "bootstrap_port": 9, "bootstrap_room": 2**62}
    chunk.disaggregated_params = place if letter == BOOTSTRAP else {"next": number}
    tell("handed", **chunk.disaggregated_params)
    return chunk


async def _transfer(letter: str, context: RequestContext) -> AsyncIterator[None]:
    """Wait for the release, with a turn now and then; tell once when a stop was seen."""
    say("waiting")
    seen = False
    while not _release(letter).exists():
        # An abort that came with the stop has been told of before this.
        if context.is_stopped and not seen:
            await asyncio.sleep(0.05)
            seen = True
            say("stopped")
        await asyncio.sleep(0.01)
        yield


async def _released(letter: str) -> None:
    while not _release(letter).exists():  # noqa: ASYNC110 - a file
        await asyncio.sleep(0.01)


def _release(letter: str) -> Path:
    return Path(os.environ["RELEASE"]) / letter


def _identity(context: SpanContext) -> dict[str, str]:
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


class _Tell(SpanExporter):
    """Tells each span when it ends."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            tell(
                "span",
                **_identity(span.get_span_context() or trace.INVALID_SPAN_CONTEXT),
                attributes=dict(span.attributes or {}),
                links=[_identity(link.context) for link in span.links],
            )
        return SpanExportResult.SUCCESS
