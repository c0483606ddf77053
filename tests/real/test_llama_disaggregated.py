"""Prefill and decode apart, on llama.cpp: the example's engines, over real TCP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import OpenAI

from examples.llama_disaggregated import DisaggregatedLlama
from rx_backend import CannotConnect, EngineAdapter, PreprocessedRequest
from rx_backend.protocols import LLMEngineOutput, PrefillResult, SamplingOptions
from rx_backend.worker.frontend import until_listed
from tests.engines import real_time
from tests.real.test_llama_cpp import answer_of, at_rest, request_for, running, tokens_of
from tests.real.tiny_model import RealModel
from tests.rx_backend.worker._processes import ROOT, START_S, frontend, serve

pytestmark = pytest.mark.needs("xllamacpp", "transformers", "gguf")

GATED = ("cancelled, 1 tokens", True, "yes")
UNGATED = ("cancelled, 0 tokens", False, "no")


@dataclass
class Pair:
    """A prefill and a decode engine, each behind an adapter of its mode."""

    prefill: DisaggregatedLlama
    decode: DisaggregatedLlama

    async def hand_over(self, request: PreprocessedRequest) -> PreprocessedRequest:
        """Ask the prefill engine; return the request for the decode engine."""
        adapter = EngineAdapter(self.prefill, mode="prefill")
        (chunk,) = await read(adapter, request)
        assert str(chunk.finish_reason) == "length"
        result = PrefillResult(disaggregated_params=chunk.disaggregated_params)
        return msgspec.structs.replace(request, prefill_result=result)

    async def answer(self, request: PreprocessedRequest) -> list[int]:
        """Ask one after the other, as the frontend does."""
        decode = EngineAdapter(self.decode, mode="decode")
        return tokens_of(await read(decode, await self.hand_over(request)))


async def read(adapter: EngineAdapter, request: PreprocessedRequest) -> Sequence[LLMEngineOutput]:
    """Return the chunks of an answer, or raise its error."""
    async with await adapter.generate(request) as stream:
        items = [item async for item in stream]
    for item in items:
        if item.error is not None:
            raise item.error
    return [item.data for item in items if item.data]


@asynccontextmanager
async def pair_of(model: RealModel, **options: Any) -> AsyncGenerator[Pair]:
    engines = [
        DisaggregatedLlama(model.gguf, mode=mode, **options) for mode in ("prefill", "decode")
    ]
    for engine in engines:
        await engine.start(0)
    try:
        yield Pair(*engines)
    finally:
        for engine in engines:
            await engine.cleanup()


@pytest.mark.rows("A4")
@real_time
async def test_the_answers_are_those_of_one_engine(tiny_model: RealModel) -> None:
    """Greedy and sampled, with short and long prompts, many at once; nothing stays behind."""
    prompts = [[7], *tiny_model.prompts(6, length=40), *tiny_model.prompts(2, length=700)]
    sampled = SamplingOptions(temperature=0.9, seed=5, repetition_penalty=1.2)
    requests = [
        request_for(prompt, 16, sampling_options=options)
        for prompt in prompts
        for options in (SamplingOptions(temperature=0), sampled)
    ]
    async with running(tiny_model) as engine:
        expected = await asyncio.gather(*(answer_of(engine, each) for each in requests))
    async with pair_of(tiny_model) as pair:
        assert await asyncio.gather(*(pair.answer(each) for each in requests)) == expected
        assert await pair.prefill.is_quiescent()
        for engine in (pair.prefill, pair.decode):
            await at_rest(engine)


@pytest.mark.rows("E5")
@real_time
async def test_a_prefill_engine_is_not_quiescent_while_a_cache_waits(
    tiny_model: RealModel,
) -> None:
    """It is again once the cache was fetched, which works once."""
    async with pair_of(tiny_model) as pair:
        decode = EngineAdapter(pair.decode, mode="decode")
        request = await pair.hand_over(request_for(tiny_model.prompts(1)[0]))
        assert not await pair.prefill.is_quiescent()
        await read(decode, request)
        assert await pair.prefill.is_quiescent()
        with pytest.raises(Exception, match="no cache"):
            await read(decode, request)
        lost = await pair.hand_over(request_for(tiny_model.prompts(1)[0]))
        await pair.prefill.cleanup()
        with pytest.raises(CannotConnect):
            await read(decode, lost)
        await at_rest(pair.decode)


@pytest.mark.rows("A4", "A5")
@pytest.mark.parametrize(("flags", "left"), [((), GATED), (("--no-gate",), UNGATED)])
def test_a_disconnect_in_mid_transfer_frees_the_cache(
    tiny_model: RealModel, flags: tuple[str, ...], left: tuple[str, bool, str]
) -> None:
    """With the gate nothing stays at the prefill engine; without it the cache does, forever."""
    done = subprocess.run(
        [sys.executable, "llama_leaving_client.py", str(tiny_model.gguf), *flags],
        cwd=ROOT / "examples",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line.partition(":")[2].strip() for line in done.stdout.splitlines()]
    assert (said[0], said[1] == "0 bytes", said[2]) == left, done.stderr
    assert not done.stderr


@pytest.mark.needs("dynamo", "openai")
def test_two_workers_behind_a_frontend(tiny_model: RealModel, tmp_path: Path) -> None:
    """The answer is that of one worker, and both workers end well."""
    answers: list[str | None] = []
    for modes in (("prefill", "decode"), ("agg",)):
        folder = tmp_path / modes[0]
        folder.mkdir()
        with serving(folder, modes, tiny_model) as client:
            done = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "the token of a stream"}],
                max_tokens=12,
                temperature=0,
            )
            answers.append(done.choices[0].message.content)
    assert answers[0]
    assert answers[0] == answers[1]


@contextmanager
def serving(folder: Path, modes: Sequence[str], model: RealModel) -> Generator[OpenAI]:
    """Run a worker of each mode and a frontend; give a client, and end the workers."""
    engine = "llama_disaggregated:DisaggregatedLlama"
    flags = ("--model-path", str(model.gguf), "--grace-s", "0", "--mode")
    with ExitStack() as stack:
        enter = stack.enter_context
        workers = [
            enter(serve(folder, engine, *flags, mode, cwd=ROOT / "examples", PYTHONPATH=str(ROOT)))
            for mode in modes
        ]
        front = enter(frontend(folder))
        for worker in workers:
            worker.line("serving", START_S)
        asyncio.run(until_listed("127.0.0.1", front.port, "tiny"))
        yield enter(front.client()).with_options(max_retries=9)
        for worker in workers:
            worker.signal()
            assert worker.ended() == 0
