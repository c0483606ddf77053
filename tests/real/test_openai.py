"""OpenAIEngine on a real llama-server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator

import msgspec
import pytest
from aiohttp import ClientSession

from rx_backend import EngineAdapter
from rx_backend.engines.openai import OpenAIEngine
from rx_backend.engines.openai.tokenizer import TokenizerFile
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, StopConditions
from rx_backend.testing import run_conformance
from tests.engines import real_time
from tests.real.llama_server import SLOTS
from tests.real.openai_asking import greedy, ids_of, read, started
from tests.real.openai_servers import RealServer, llama_server
from tests.real.tiny_model import RealModel

pytestmark = pytest.mark.needs("xllamacpp", "transformers", "gguf")


@pytest.fixture(scope="module")
def server(tiny_model: RealModel) -> Generator[RealServer]:
    with llama_server(tiny_model) as running:
        yield running


async def busy(server: RealServer) -> int:
    """Return how many slots are at work."""
    async with ClientSession() as session, session.get(f"{server.url}/slots") as response:
        slots = msgspec.json.decode(await response.read())
    return sum(slot["is_processing"] for slot in slots)


@pytest.mark.rows("E1")
@real_time
async def test_start_detects_the_server(server: RealServer, tiny_model: RealModel) -> None:
    """The context is that of one slot."""
    engine = OpenAIEngine(server.url)
    config = await engine.start(0)
    await engine.cleanup()
    assert config.model.endswith("gguf")
    assert (config.context_length, config.max_num_seqs) == (tiny_model.context_length, SLOTS)


@pytest.mark.rows("E2", "E3")
def test_greedy_tokens_match_transformers(server: RealServer, tiny_model: RealModel) -> None:
    """
    Six at once: each id that the server sends is right, and the usage counts all.

    Random weights make bytes that are no text, of which it sends the last id only.
    """
    prompts = tiny_model.prompts(6)

    async def main() -> list[list[LLMEngineOutput]]:
        async with started(server) as engine:
            return await asyncio.gather(*(read(engine, greedy(each, 24)) for each in prompts))

    for prompt, chunks in zip(prompts, asyncio.run(main()), strict=True):
        ids, expected = ids_of(chunks), iter(tiny_model.expected(prompt, 24))
        assert len(ids) > 8
        assert all(each in expected for each in ids)
        assert str(chunks[-1].finish_reason) == "length"
        counts = chunks[-1].completion_usage
        assert counts is not None
        assert (counts.prompt_tokens, counts.completion_tokens) == (len(prompt), 24)


def test_log_probs(server: RealServer, tiny_model: RealModel) -> None:
    """The likeliest token is the one that was taken."""

    async def main() -> list[LLMEngineOutput]:
        async with started(server) as engine:
            return await read(engine, greedy(tiny_model.prompts(1)[0], 4, logprobs=2))

    chunks = [chunk for chunk in asyncio.run(main()) if chunk.token_ids]
    assert chunks
    for chunk in chunks:
        assert chunk.log_probs is not None
        assert chunk.top_logprobs is not None
        first, second = chunk.top_logprobs[0]
        assert [first.token_id] == chunk.token_ids
        assert first.logprob == chunk.log_probs[0] > second.logprob


@pytest.mark.rows("E4", "A2")
@real_time
async def test_a_stop_frees_the_slot(server: RealServer, tiny_model: RealModel) -> None:
    """Within a moment, long before the answer would have ended."""
    request = greedy(tiny_model.prompts(1)[0], 2_000)
    async with started(server) as engine:
        async with await EngineAdapter(engine).generate(request) as stream:
            await anext(stream)
            assert await busy(server) == 1
            stream.context.stop_generating()
            last = [item.data async for item in stream][-1]
        assert last is not None
        assert str(last.finish_reason) == "cancelled"
        assert last.completion_usage is not None
        assert last.completion_usage.completion_tokens > 0
        stopped = time.monotonic()
        while await busy(server):
            assert time.monotonic() - stopped < 2


@real_time
async def test_a_bad_prompt_fails_only_its_request(
    server: RealServer, tiny_model: RealModel
) -> None:
    """The others answer as if it had not been there."""
    good = greedy(tiny_model.prompts(1)[0], 8)
    bad = [[], [1] * tiny_model.context_length, [tiny_model.vocab_size]]
    async with started(server) as engine:
        asked = [good, *(greedy(each, 8) for each in bad), good]
        first, *refused, last = await asyncio.gather(
            *(read(engine, each) for each in asked), return_exceptions=True
        )
    assert [type(each) for each in refused] == [InvalidArgument] * 3
    assert isinstance(first, list)
    assert isinstance(last, list)
    assert ids_of(first) == ids_of(last)


def test_a_chat(server: RealServer) -> None:
    """Messages in ``extra_args`` go through the server's own chat template."""
    request = PreprocessedRequest(
        token_ids=[],
        extra_args={"messages": [{"role": "user", "content": "hello"}]},
        stop_conditions=StopConditions(max_tokens=4),
    )

    async def main() -> list[LLMEngineOutput]:
        async with started(server) as engine:
            return await read(engine, request)

    last = asyncio.run(main())[-1]
    assert last.completion_usage is not None
    assert last.completion_usage.prompt_tokens > len("hello")


@pytest.mark.needs("tokenizers")
def test_text_in_and_out(server: RealServer, tiny_model: RealModel) -> None:
    """As with a server of which nothing is known but OpenAI's API: the prompt is the same there."""
    tokenizer = TokenizerFile(tiny_model.folder)
    prompt = tokenizer.encode("the next word that the engine has")

    async def main() -> list[LLMEngineOutput]:
        async with started(server, server="ollama", tokenizer=tokenizer) as engine:
            request = PreprocessedRequest(
                token_ids=prompt, stop_conditions=StopConditions(max_tokens=8)
            )
            return await read(engine, request)

    chunks = asyncio.run(main())
    assert "".join(chunk.text or "" for chunk in chunks)
    assert ids_of(chunks)
    assert chunks[-1].completion_usage is not None
    assert chunks[-1].completion_usage.prompt_tokens == len(prompt)


@pytest.mark.rows("E7", "S6")
def test_a_server_that_dies(tiny_model: RealModel) -> None:
    """What is in flight fails as lost, and so does the engine after a while."""

    async def main(server: RealServer) -> None:
        async with started(server, lost_after_s=0.2) as engine:
            lost = asyncio.create_task(engine.lost())
            request = greedy(tiny_model.prompts(1)[0], 2_000)
            async with await EngineAdapter(engine).generate(request) as stream:
                await anext(stream)
                server.kill()
                errors = [item.error async for item in stream if item.error is not None]
            assert [type(each) for each in errors] == [Disconnected]
            assert server.url in await lost

    with llama_server(tiny_model) as mortal:
        asyncio.run(main(mortal))


@pytest.mark.rows("K1")
def test_conformance(server: RealServer) -> None:
    """Every rule of the engine contract, by the real clock."""
    report = run_conformance(lambda: OpenAIEngine(server.url), virtual=False)
    assert report.ok, str(report)
