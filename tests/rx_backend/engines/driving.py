"""Short ways to make requests and to read an engine's streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.protocols import LLMEngineOutput, PrefillResult, PreprocessedRequest, StopConditions


def request(prompt: int = 4, tokens: int | None = 3, handoff: object = None) -> PreprocessedRequest:
    return PreprocessedRequest(
        token_ids=[1] * prompt,
        stop_conditions=StopConditions(max_tokens=tokens),
        prefill_result=None if handoff is None else PrefillResult(disaggregated_params=handoff),
    )


def open_stream(
    engine: LLMEngine, asked: PreprocessedRequest, context: RequestContext | None = None
) -> AsyncGenerator[LLMEngineOutput]:
    stream = engine.generate(asked, context or RequestContext("r"))
    return cast("AsyncGenerator[LLMEngineOutput]", stream)


async def chunks_of(
    engine: LLMEngine, asked: PreprocessedRequest, context: RequestContext | None = None
) -> list[LLMEngineOutput]:
    return [chunk async for chunk in open_stream(engine, asked, context)]


@dataclass
class Seen:
    """What a consumer saw: chunks, the loop's time in ms at each, and what was raised."""

    chunks: list[LLMEngineOutput] = field(default_factory=list[LLMEngineOutput])
    times_ms: list[float] = field(default_factory=list[float])
    error: Exception | None = None
    asked_ms: float = 0.0

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def ttft_ms(self) -> float:
        return self.times_ms[0] - self.asked_ms

    @property
    def gaps_ms(self) -> list[float]:
        pairs = zip(self.times_ms, self.times_ms[1:], strict=False)
        return [round(late - soon, 6) for soon, late in pairs]

    @property
    def last(self) -> LLMEngineOutput:
        return self.chunks[-1]

    @property
    def reason(self) -> str | None:
        reason = self.last.finish_reason
        return None if reason is None else reason.kind

    @property
    def counted(self) -> tuple[int, int]:
        usage = self.last.completion_usage
        assert usage is not None
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        return usage.prompt_tokens, usage.completion_tokens


async def consume(
    engine: LLMEngine,
    asked: PreprocessedRequest,
    context: RequestContext | None = None,
    *,
    at_ms: float = 0.0,
    stop_after: int | None = None,
) -> Seen:
    """Read a stream to its end, beginning at a time, with a stop after some chunks."""
    clock = asyncio.get_running_loop().time
    if at_ms:
        await asyncio.sleep(at_ms / 1000 - clock())
    context = context or RequestContext("r")
    seen = Seen(asked_ms=clock() * 1000)
    try:
        async for chunk in open_stream(engine, asked, context):
            seen.chunks.append(chunk)
            seen.times_ms.append(clock() * 1000)
            if len(seen.chunks) == stop_after:
                context.stop_generating()
    except Exception as error:
        seen.error = error
    return seen


def params_of(chunk: LLMEngineOutput) -> dict[str, Any]:
    params: object = chunk.disaggregated_params
    assert isinstance(params, dict)
    return cast("dict[str, Any]", params)
