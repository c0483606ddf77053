"""Short ways to ask an `OpenAIEngine` on a real server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from rx_backend import EngineAdapter
from rx_backend.engines.openai import OpenAIEngine
from rx_backend.errors import BackendError
from rx_backend.protocols import (
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
)
from tests.real.openai_servers import RealServer

__all__ = ("greedy", "ids_of", "read", "started")


def greedy(prompt: list[int], tokens: int, logprobs: int | None = None) -> PreprocessedRequest:
    return PreprocessedRequest(
        token_ids=prompt,
        stop_conditions=StopConditions(max_tokens=tokens, ignore_eos=True),
        sampling_options=SamplingOptions(temperature=0),
        output_options=OutputOptions(logprobs=logprobs),
    )


@asynccontextmanager
async def started(at: RealServer, **options: Any) -> AsyncGenerator[OpenAIEngine]:
    engine = OpenAIEngine(at.url, **options)
    await engine.start(0)
    try:
        yield engine
    finally:
        await engine.cleanup()


async def read(engine: OpenAIEngine, request: PreprocessedRequest) -> list[LLMEngineOutput]:
    """Return the chunks behind the adapter; raise what an error item has."""
    chunks: list[LLMEngineOutput] = []
    async with await EngineAdapter(engine).generate(request) as stream:
        async for item in stream:
            if isinstance(item.error, BackendError):
                raise item.error
            assert item.data is not None
            chunks.append(item.data)
    return chunks


def ids_of(chunks: list[LLMEngineOutput]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.token_ids]
