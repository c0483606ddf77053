"""OpenAIEngine on a real llama-server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession

from rx_backend import EngineAdapter, RequestContext
from rx_backend.engines.openai import OpenAIEngine
from rx_backend.errors import BackendError, Disconnected, InvalidArgument
from rx_backend.protocols import (
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
)
from rx_backend.testing import run_conformance
from tests.real.llama_server import SLOTS, LlamaServer, llama_server
from tests.real.tiny_model import RealModel

pytestmark = pytest.mark.needs("xllamacpp", "transformers", "gguf")


@pytest.fixture(scope="module")
def server(tiny_model: RealModel) -> Generator[LlamaServer]:
    with llama_server(tiny_model.gguf) as running:
        yield running


def greedy(prompt: list[int], tokens: int, **output: Any) -> PreprocessedRequest:
    return PreprocessedRequest(
        token_ids=prompt,
        stop_conditions=StopConditions(max_tokens=tokens, ignore_eos=True),
        sampling_options=SamplingOptions(temperature=0),
        output_options=OutputOptions(**output),
    )


async def read(
    engine: OpenAIEngine, request: PreprocessedRequest, context: RequestContext | None = None
) -> list[LLMEngineOutput]:
    """Return the chunks behind the adapter; raise what an error item has."""
    chunks: list[LLMEngineOutput] = []
    async with await EngineAdapter(engine).generate(request, context) as stream:
        async for item in stream:
            if isinstance(item.error, BackendError):
                raise item.error
            assert item.data is not None
            chunks.append(item.data)
    return chunks


async def started(server: LlamaServer, **options: Any) -> OpenAIEngine:
    engine = OpenAIEngine(server.url, **options)
    await engine.start(0)
    return engine


def ids_of(chunks: list[LLMEngineOutput]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


async def busy(server: LlamaServer) -> int:
    """Return how many slots are at work."""
    async with ClientSession() as session, session.get(f"{server.url}/slots") as response:
        slots = msgspec.json.decode(await response.read())
    return sum(slot["is_processing"] for slot in slots)


@pytest.mark.rows("E1")
def test_start_tells_what_the_server_is(server: LlamaServer, tiny_model: RealModel) -> None:
    """The context is that of one slot."""

    async def main() -> None:
        engine = OpenAIEngine(server.url)
        config = await engine.start(0)
        await engine.cleanup()
        assert config.model.endswith("gguf")
        assert (config.context_length, config.max_num_seqs) == (tiny_model.context_length, SLOTS)

    asyncio.run(main())


@pytest.mark.rows("E2", "E3")
def test_greedy_tokens_are_those_of_transformers(
    server: LlamaServer, tiny_model: RealModel
) -> None:
    """Six at once: all ids that the server sends are right, and the usage counts all."""
    prompts = tiny_model.prompts(6)

    async def main() -> list[list[LLMEngineOutput]]:
        engine = await started(server, tokenizer=tiny_model.folder)
        try:
            return await asyncio.gather(*(read(engine, greedy(each, 24)) for each in prompts))
        finally:
            await engine.cleanup()

    for prompt, chunks in zip(prompts, asyncio.run(main()), strict=True):
        expected = tiny_model.expected(prompt, 24)
        counts = chunks[-1].completion_usage
        assert str(chunks[-1].finish_reason) == "length"
        assert counts is not None
        assert (counts.prompt_tokens, counts.completion_tokens) == (len(prompt), 24)
        assert _is_subsequence(
            [chunk.token_ids[-1] for chunk in chunks if chunk.token_ids], expected
        )


def _is_subsequence(part: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(each in rest for each in part)


def test_log_probs(server: LlamaServer, tiny_model: RealModel) -> None:
    """The likeliest token is the one that was taken."""

    async def main() -> list[LLMEngineOutput]:
        engine = await started(server)
        try:
            return await read(engine, greedy(tiny_model.prompts(1)[0], 4, logprobs=2))
        finally:
            await engine.cleanup()

    chunks = [chunk for chunk in asyncio.run(main()) if chunk.token_ids]
    assert chunks
    for chunk in chunks:
        assert chunk.log_probs is not None
        assert chunk.top_logprobs is not None
        first, second = chunk.top_logprobs[0]
        assert [first.token_id] == chunk.token_ids
        assert first.logprob == chunk.log_probs[0] > second.logprob


@pytest.mark.rows("E4", "A2")
def test_a_stop_frees_the_slot(server: LlamaServer, tiny_model: RealModel) -> None:
    """Within a moment, long before the answer would have ended."""

    async def main() -> None:
        engine = await started(server)
        context = RequestContext()
        request = greedy(tiny_model.prompts(1)[0], 2_000)
        async with await EngineAdapter(engine).generate(request, context) as stream:
            await anext(stream)
            assert await busy(server) == 1
            context.stop_generating()
            last = [item async for item in stream][-1]
        assert last.data is not None
        assert str(last.data.finish_reason) == "cancelled"
        assert last.data.completion_usage is not None
        assert last.data.completion_usage.completion_tokens > 0
        stopped = time.monotonic()
        while await busy(server):
            assert time.monotonic() - stopped < 2
        await engine.cleanup()

    asyncio.run(main())


def test_a_bad_prompt_ends_that_request_alone(server: LlamaServer, tiny_model: RealModel) -> None:
    """The others answer as if it had not been there."""
    good = greedy(tiny_model.prompts(1)[0], 8)
    bad = [[], [1] * tiny_model.context_length, [tiny_model.vocab_size]]

    async def main() -> None:
        engine = await started(server)
        asked = [good, *(greedy(each, 8) for each in bad), good]
        first, *refused, last = await asyncio.gather(
            *(read(engine, each) for each in asked), return_exceptions=True
        )
        await engine.cleanup()
        assert [type(each) for each in refused] == [InvalidArgument] * 3
        assert isinstance(first, list)
        assert isinstance(last, list)
        assert ids_of(first) == ids_of(last)

    asyncio.run(main())


def test_a_chat(server: LlamaServer) -> None:
    """Messages in ``extra_args`` go through the server's own chat template."""
    request = PreprocessedRequest(
        token_ids=[],
        extra_args={"messages": [{"role": "user", "content": "hello"}]},
        stop_conditions=StopConditions(max_tokens=4),
    )

    async def main() -> list[LLMEngineOutput]:
        engine = await started(server)
        try:
            return await read(engine, request)
        finally:
            await engine.cleanup()

    last = asyncio.run(main())[-1]
    assert last.completion_usage is not None
    assert last.completion_usage.prompt_tokens > len("hello")


@pytest.mark.rows("E7", "S6")
def test_a_server_that_dies(tiny_model: RealModel) -> None:
    """What is in flight fails as lost, and so does the engine after a while."""

    async def main(server: LlamaServer) -> None:
        engine = await started(server, lost_after_s=0.2)
        lost = asyncio.create_task(engine.lost())
        stream = await EngineAdapter(engine).generate(greedy(tiny_model.prompts(1)[0], 2_000))
        async with stream:
            await anext(stream)
            server.process.kill()
            errors = [item.error async for item in stream if item.error is not None]
        assert [type(each) for each in errors] == [Disconnected]
        assert server.url in await lost
        await engine.cleanup()

    with llama_server(tiny_model.gguf) as mortal:
        asyncio.run(main(mortal))


@pytest.mark.rows("K1")
def test_conformance(server: LlamaServer) -> None:
    """Every rule of the engine contract, by the real clock."""
    report = run_conformance(lambda: OpenAIEngine(server.url), virtual=False)
    assert report.ok, str(report)
