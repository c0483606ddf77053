"""The engines with a model, and short ways to ask them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from rx_backend import LLMEngine, PreprocessedRequest, RequestContext
from rx_backend.protocols import SamplingOptions, StopConditions
from tests.real.tiny_model import RealModel
from tests.rx_backend.engines.driving import Seen, open_stream

__all__ = (
    "ENGINES",
    "MakeEngine",
    "ask",
    "greedy",
    "released",
    "running",
    "see",
)

MakeEngine = Callable[[RealModel], LLMEngine]
"""Makes an engine with a batch of 8 that reads long prompts in several steps."""


def transformers_engine(model: RealModel) -> LLMEngine:
    from rx_backend.engines.transformers import TransformersEngine

    return TransformersEngine(str(model.folder), max_batch_tokens=64, block_size=32)


def llama_cpp_engine(model: RealModel) -> LLMEngine:
    from rx_backend.engines.llama_cpp import LlamaCppEngine

    return LlamaCppEngine(model.gguf, batch_tokens=64)


def vllm_engine(model: RealModel) -> LLMEngine:
    from rx_backend.engines.vllm import VllmEngine

    # With 32 bits the greedy tokens are those of transformers.
    return VllmEngine(
        str(model.folder),
        distributed_executor_backend="uni",
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=64 << 20,
        max_num_batched_tokens=64,
        max_num_seqs=8,
    )


ENGINES = [
    pytest.param(
        transformers_engine,
        id="transformers",
        marks=pytest.mark.needs("transformers", "gguf"),
    ),
    pytest.param(
        llama_cpp_engine,
        id="llama_cpp",
        marks=pytest.mark.needs("xllamacpp", "transformers", "gguf"),
    ),
    pytest.param(
        vllm_engine,
        id="vllm",
        marks=[
            pytest.mark.needs("vllm", "gguf"),
            # Its processes import PyTorch one after the other.
            pytest.mark.timeout(600),
            # Of packages that vLLM imports, and what it leaves to the garbage collector.
            pytest.mark.filterwarnings(
                "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Unclosed context"
            ),
        ],
    ),
]
"""Whoever adds an engine adds it here: `test_every_engine` asks all of them the same."""


@asynccontextmanager
async def running(engine: LLMEngine) -> AsyncGenerator[LLMEngine]:
    try:
        await engine.start(0)
        yield engine
    finally:
        await engine.cleanup()


def greedy(prompt: Sequence[int], max_tokens: int | None, **stop: Any) -> PreprocessedRequest:
    return PreprocessedRequest(
        token_ids=list(prompt),
        sampling_options=SamplingOptions(temperature=0),
        stop_conditions=StopConditions(max_tokens=max_tokens, **stop),
    )


async def see(
    engine: LLMEngine,
    request: PreprocessedRequest,
    *,
    stop_after: int | None = None,
    drop_after: int | None = None,
    context: RequestContext | None = None,
) -> Seen:
    """Read an answer; stop the request or drop its stream when there are that many tokens."""
    context = context or RequestContext("asked")
    seen = Seen()
    async with aclosing(open_stream(engine, request, context)) as stream:
        async for chunk in stream:
            seen.chunks.append(chunk)
            if drop_after is not None and len(seen.token_ids) >= drop_after:
                return seen
            if stop_after is not None and len(seen.token_ids) >= stop_after:
                context.stop_generating()
    return seen


async def ask(engine: LLMEngine, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Return the greedy answer, of which the length is the end."""
    seen = await see(engine, greedy(prompt, max_tokens))
    assert seen.reason == "length"
    assert seen.counted == (len(prompt), max_tokens)
    return seen.token_ids


async def released(engine: LLMEngine, within_s: float = 5) -> None:
    """Wait until nothing is queued or running in the engine."""
    async with asyncio.timeout(within_s):
        await engine.drain()
    assert await engine.is_quiescent()
