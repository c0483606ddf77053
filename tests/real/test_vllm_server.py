"""OpenAIEngine on vLLM's own server, which gives token ids."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Generator
from typing import Any

import pytest

from rx_backend.engines.openai import OpenAIEngine
from rx_backend.protocols import OutputOptions
from rx_backend.worker.frontend import until_listed
from tests.engines import real_time
from tests.real.engines import greedy, running, see
from tests.real.tiny_model import RealModel
from tests.rx_backend.worker._processes import free_port

pytestmark = [
    pytest.mark.needs("vllm", "aiohttp", "transformers", "gguf"),
    pytest.mark.timeout(600),
]

START_S = 500.0


@pytest.fixture(scope="module")
def url(tiny_model: RealModel) -> Generator[str]:
    """Run a server, and give its address."""
    port = free_port()
    command: list[Any] = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", tiny_model.folder, "--served-model-name", "tiny", "--port", port),
        *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", 8, "--host", "127.0.0.1"),
        *("--kv-cache-memory-bytes", 64 << 20, "--distributed-executor-backend", "uni"),
    ]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL) as server:
        try:
            waiting = until_listed("127.0.0.1", port, "tiny")
            asyncio.run(asyncio.wait_for(waiting, START_S))
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


@pytest.mark.rows("E1", "E2", "E3")
@real_time
async def test_token_ids_and_log_probs_come_from_the_server(
    url: str, tiny_model: RealModel
) -> None:
    """Eight answers at once are those of transformers, token by token."""
    prompts = tiny_model.prompts(8)
    engine = OpenAIEngine(url)
    async with running(engine):
        seen = await asyncio.gather(*(see(engine, greedy(prompt, 12)) for prompt in prompts))
        expected = [tiny_model.expected(prompt, 12) for prompt in prompts]
        assert [each.token_ids for each in seen] == expected
        assert {each.reason for each in seen} == {"length"}
        assert seen[0].counted == (len(prompts[0]), 12)
        request = greedy(prompts[0], 1)
        request.output_options = OutputOptions(logprobs=1)
        assert (await see(engine, request)).last.log_probs


@pytest.mark.rows("E4")
@real_time
async def test_a_stop_ends_the_request(url: str, tiny_model: RealModel) -> None:
    """With the usage so far, long before its last token."""
    engine = OpenAIEngine(url)
    async with running(engine):
        request = greedy(tiny_model.prompts(1)[0], 1500, ignore_eos=True)
        seen = await see(engine, request, stop_after=3)
        assert seen.reason == "cancelled"
        assert len(seen.token_ids) < 1500
