"""OpenAIEngine on a real vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest

from rx_backend import EngineAdapter
from rx_backend.engines.openai import OpenAIEngine
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import (
    GuidedDecodingOptions,
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
)
from rx_backend.testing import run_conformance
from tests.engines import real_time
from tests.real.openai_asking import greedy, ids_of, read, started
from tests.real.openai_servers import RealServer, vllm_server
from tests.real.tiny_model import RealModel

pytestmark = pytest.mark.needs("vllm", "transformers", "gguf")


@pytest.fixture(scope="module")
def server(tiny_model: RealModel) -> Generator[RealServer]:
    with vllm_server(tiny_model) as running:
        yield running


@pytest.mark.rows("E2", "E3")
def test_greedy_tokens_match_transformers(server: RealServer, tiny_model: RealModel) -> None:
    """Six at once, as ids alone, with their log probabilities."""
    prompts = tiny_model.prompts(6)

    async def main() -> list[list[LLMEngineOutput]]:
        async with started(server) as engine:
            asked = [greedy(each, 24, logprobs=2) for each in prompts]
            return await asyncio.gather(*(read(engine, each) for each in asked))

    for prompt, chunks in zip(prompts, asyncio.run(main()), strict=True):
        assert ids_of(chunks) == tiny_model.expected(prompt, 24)
        assert all(chunk.text is None for chunk in chunks)
        tops = [top for chunk in chunks for top in chunk.top_logprobs or []]
        assert [top[0].token_id for top in tops] == ids_of(chunks)
        assert str(chunks[-1].finish_reason) == "length"
        counts = chunks[-1].completion_usage
        assert counts is not None
        assert (counts.prompt_tokens, counts.completion_tokens) == (len(prompt), 24)


def test_all_options_are_taken(server: RealServer, tiny_model: RealModel) -> None:
    """VLLM refuses names that it does not know the values of; a choice is what comes out."""
    request = PreprocessedRequest(
        token_ids=tiny_model.prompts(1)[0],
        stop_conditions=StopConditions(max_tokens=9, min_tokens=1, stop=["zz"], stop_token_ids=[9]),
        sampling_options=SamplingOptions(
            n=2,
            temperature=0.5,
            top_p=0.9,
            top_k=20,
            min_p=0.01,
            seed=7,
            presence_penalty=0.1,
            frequency_penalty=0.1,
            repetition_penalty=1.1,
            guided_decoding=GuidedDecodingOptions(choice=["the token"]),
        ),
    )

    async def main() -> list[LLMEngineOutput]:
        async with started(server) as engine:
            return await read(engine, request)

    chunks = asyncio.run(main())
    tokens = [ids_of([chunk for chunk in chunks if chunk.index == index]) for index in (0, 1)]
    assert tokens[0] == tokens[1] != []


@pytest.mark.rows("E4", "A2")
@real_time
async def test_a_stop_ends_the_stream(server: RealServer, tiny_model: RealModel) -> None:
    """Long before its last token."""
    request = greedy(tiny_model.prompts(1)[0], 2_000)
    async with (
        started(server) as engine,
        await EngineAdapter(engine).generate(request) as stream,
    ):
        await anext(stream)
        stream.context.stop_generating()
        last = [item.data async for item in stream][-1]
    assert last is not None
    assert str(last.finish_reason) == "cancelled"


def test_a_bad_prompt_is_the_clients_fault(server: RealServer, tiny_model: RealModel) -> None:
    """VLLM's own message says what is wrong."""

    async def main() -> None:
        async with started(server) as engine:
            await read(engine, greedy([tiny_model.vocab_size], 4))

    with pytest.raises(InvalidArgument, match="out of vocabulary"):
        asyncio.run(main())


@pytest.mark.rows("K1")
def test_conformance(server: RealServer) -> None:
    """Every rule of the engine contract, by the real clock."""
    report = run_conformance(lambda: OpenAIEngine(server.url), virtual=False)
    assert report.ok, str(report)
