"""The engine on llama.cpp: answers, log-probabilities, and what is left when requests are over."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rx_backend import EngineAdapter, InvalidArgument, PreprocessedRequest, RequestContext
from rx_backend.engines.llama_cpp import LlamaCppEngine
from rx_backend.engines.llama_cpp.scheduler import Answer
from rx_backend.errors import EngineShutdown
from rx_backend.protocols import LLMEngineOutput, OutputOptions, SamplingOptions, StopConditions
from tests.engines import real_time
from tests.real.tiny_model import RealModel
from tests.spans import Spans

pytestmark = pytest.mark.needs("xllamacpp", "transformers", "gguf")

GREEDY = SamplingOptions(temperature=0)


@asynccontextmanager
async def running(model: RealModel, **options: Any) -> AsyncGenerator[LlamaCppEngine]:
    engine = LlamaCppEngine(model.gguf, **options)
    await engine.start(0)
    try:
        yield engine
    finally:
        await engine.cleanup()


def request_for(prompt: Sequence[int], max_tokens: int = 16, **groups: Any) -> PreprocessedRequest:
    groups.setdefault("sampling_options", GREEDY)
    groups.setdefault("stop_conditions", StopConditions(max_tokens=max_tokens))
    return PreprocessedRequest(token_ids=[*prompt], **groups)


async def chunks_of(engine: LlamaCppEngine, request: PreprocessedRequest) -> list[LLMEngineOutput]:
    return [chunk async for chunk in engine.generate(request, RequestContext())]


async def answer_of(engine: LlamaCppEngine, request: PreprocessedRequest) -> list[int]:
    return tokens_of(await chunks_of(engine, request))


def tokens_of(chunks: Sequence[LLMEngineOutput]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


def used_cells(engine: LlamaCppEngine) -> list[int]:
    """Return how many cells of llama.cpp's own cache each sequence has; for an idle engine."""
    assert engine._cache is not None
    return [engine._cache.used(number) for number in range(engine._max_batch)]


def answers(engine: LlamaCppEngine) -> list[Answer]:
    """Return what is in the batch."""
    assert engine._steps is not None
    return [sequence.state for sequence in list(engine._steps._active)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the step thread does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # nothing tells of a step without a chunk
            await asyncio.sleep(0.001)


async def at_rest(engine: LlamaCppEngine) -> None:
    """Wait until nothing runs; llama.cpp's own cache is empty then."""
    steps = engine._steps
    assert steps is not None
    await until(lambda: steps.active == steps.waiting == 0)
    assert not any(used_cells(engine))


@pytest.mark.rows("E3")
@real_time
async def test_prefill_is_chunked_beside_running_answers(tiny_model: RealModel) -> None:
    """Long prompts don't fit into a batch; their answers, and those that run meanwhile, are right."""
    short, *long = tiny_model.prompts(4, length=300)
    short = short[:5]
    async with running(tiny_model, max_batch=4, batch_tokens=37) as engine:
        answers = await asyncio.gather(
            *(answer_of(engine, request_for(prompt, 40)) for prompt in (short, *long))
        )
    assert answers == [tiny_model.expected(prompt, 40) for prompt in (short, *long)]


@pytest.mark.rows("E3")
@real_time
async def test_min_tokens_takes_precedence_over_a_stop_token(tiny_model: RealModel) -> None:
    """The answer is as long as it may be."""
    prompt = tiny_model.prompts(1)[0]
    end = tiny_model.expected(prompt, 12)[5]
    minimum = StopConditions(max_tokens=12, stop_token_ids_hidden=[end], min_tokens=12)
    async with running(tiny_model) as engine:
        answer = await answer_of(engine, request_for(prompt, stop_conditions=minimum))
    assert end not in answer[:-1]
    assert len(answer) == 12


@pytest.mark.rows("E4")
@real_time
async def test_a_stop_or_a_drop_frees_the_cache(tiny_model: RealModel) -> None:
    """In the middle of a prompt or of an answer: the rest continues, and nothing is left."""
    prompt = tiny_model.prompts(1, length=1500)[0]
    short = tiny_model.prompts(1)[0]
    async with running(tiny_model, max_batch=2, batch_tokens=8) as engine:
        for drop, length in ((True, 1500), (False, 1500), (True, 5), (False, 5)):
            other = asyncio.create_task(answer_of(engine, request_for(short, 12)))
            context = RequestContext()
            endless = StopConditions(ignore_eos=True)
            request = request_for(prompt[:length], stop_conditions=endless)
            stream = engine.generate(request, context)
            pull = asyncio.create_task(anext(stream))
            if length == 5:
                await pull
                pull = asyncio.create_task(anext(stream))
            else:
                # More than the short prompt and its answer.
                await until(lambda: sum(each.computed for each in answers(engine)) > 32)
                assert [each.is_reading for each in answers(engine)].count(True) == 1
            if drop:
                pull.cancel()
                await asyncio.wait([pull])
                await stream.aclose()
            else:
                context.stop_generating()
                rest = [await pull, *[chunk async for chunk in stream]]
                assert str(rest[-1].finish_reason) == "cancelled"
                assert rest[-1].completion_usage is not None
            assert await other == tiny_model.expected(short, 12)
            await at_rest(engine)


@pytest.mark.rows("E3")
@real_time
async def test_a_bad_request_fails_only_itself(tiny_model: RealModel) -> None:
    """Options that can't be honoured are named."""
    good = tiny_model.prompts(1)[0]
    bad = [
        (request_for(good, 0), "max_tokens"),
        (request_for(good, sampling_options=SamplingOptions(n=2)), "sampling_options.n"),
        (request_for(good, sampling_options=SamplingOptions(temperature=-1)), "temperature"),
        (
            request_for(good, sampling_options={"guided_decoding": {"regex": "a"}}),
            "guided_decoding",
        ),
        (request_for(good, output_options=OutputOptions(prompt_logprobs=1)), "prompt_logprobs"),
    ]
    async with running(tiny_model) as engine:
        other = asyncio.create_task(answer_of(engine, request_for(good)))
        for request, words in bad:
            with pytest.raises(InvalidArgument, match=words):
                await chunks_of(engine, request)
        assert await other == tiny_model.expected(good, 16)


@real_time
async def test_sampled_answers_follow_their_seed(tiny_model: RealModel) -> None:
    """The same seed gives the same answer, also beside others; every option has its effect."""
    prompt = tiny_model.prompts(1)[0]
    warm = {"temperature": 1.5, "seed": 7}

    async def sample(**options: Any) -> list[int]:
        return await answer_of(engine, request_for(prompt, 24, sampling_options=warm | options))

    greedy = tiny_model.expected(prompt, 24)
    async with running(tiny_model) as engine:
        first = await sample()
        assert [first] * 4 == list(await asyncio.gather(*(sample() for _ in range(4))))
        assert first not in (greedy, await sample(seed=8))
        assert (
            await sample(top_k=1) == await sample(top_p=1e-6) == await sample(min_p=1.0) == greedy
        )
        assert await sample(temperature=0) == await sample(temperature=1e-40) == greedy
        repeated = prompt[-1]
        seen = await sample(temperature=0, repetition_penalty=50.0)
        assert len(set(seen)) == len(seen)
        assert repeated not in seen
        unlike = await sample(temperature=0, frequency_penalty=100.0)
        assert len(set(unlike)) == len(unlike)
        assert await sample(temperature=0, presence_penalty=100.0) == unlike
        unset = request_for(prompt, 24, sampling_options=SamplingOptions(seed=7))
        assert await answer_of(engine, unset) == await sample(temperature=1.0)


@real_time
async def test_log_probs_match_the_logits(tiny_model: RealModel) -> None:
    """They agree with transformers' logits, before temperature, and the best come first."""
    torch: Any = import_module("torch")
    prompt = tiny_model.prompts(1)[0]
    options = {"temperature": 1.2, "seed": 3}
    request = request_for(
        prompt, 6, sampling_options=options, output_options=OutputOptions(logprobs=5)
    )
    async with running(tiny_model) as engine:
        chunks = await chunks_of(engine, request)
    answer = tokens_of(chunks)
    with torch.no_grad():
        logits = tiny_model._model(torch.tensor([[*prompt, *answer]])).logits[0]
    values = torch.log_softmax(logits.double(), -1)[len(prompt) - 1 :]
    reference = np.array(values.tolist())
    for place, chunk in enumerate(chunks):
        assert chunk.log_probs is not None
        assert chunk.top_logprobs is not None
        (value,), (best,) = chunk.log_probs, chunk.top_logprobs
        assert value == pytest.approx(reference[place][answer[place]], abs=0.02)
        assert [each.token_id for each in best] == list(np.argsort(-reference[place])[:5])
        assert [each.rank for each in best] == [1, 2, 3, 4, 5]
        assert sum(np.exp([each.logprob for each in best])) <= 1


@pytest.mark.rows("E1", "E5")
@real_time
async def test_the_life_of_an_engine(tiny_model: RealModel, tmp_path: Path) -> None:
    """It returns its limits; cleanup may come early, late and twice, and ends running requests."""
    fresh = LlamaCppEngine(tiny_model.gguf)
    await fresh.cleanup()
    with pytest.raises(EngineShutdown):
        await chunks_of(fresh, request_for([1]))
    no_model = tmp_path / "none.gguf"
    no_model.write_bytes(b"GGUF, or not")
    # The last has 2**32 tokens in all, which llama.cpp would take for none.
    for path, length, words in (
        (no_model, None, "GGUF"),
        (tmp_path, None, "a folder"),
        (tmp_path / "gone.gguf", None, "nothing there"),
        (tiny_model.gguf, 2**29, "context_length"),
    ):
        broken = LlamaCppEngine(path, context_length=length)
        with pytest.raises(InvalidArgument, match=words):
            await broken.start(0)
        await broken.cleanup()
    engine = LlamaCppEngine(tiny_model.gguf, served_model_name="tiny", context_length=512)
    starting = asyncio.create_task(engine.start(0))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    await engine.cleanup()
    config = await engine.start(0)
    assert (config.model, config.context_length, config.max_num_seqs) == ("tiny", 512, 8)
    endless = request_for([5, 6], stop_conditions=StopConditions(ignore_eos=True))
    stream = engine.generate(endless, RequestContext())
    await anext(stream)
    await engine.cleanup()
    with pytest.raises(EngineShutdown):
        tokens_of([chunk async for chunk in stream])
    await engine.cleanup()


@real_time
async def test_llama_cpp_logs_to_our_logger(
    tiny_model: RealModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its lines are at level DEBUG, and nothing is on stderr."""
    with caplog.at_level(logging.DEBUG, "rx_backend.engines.llama_cpp.library"):
        async with running(tiny_model):
            pass
    assert any("llama" in record.getMessage() for record in caplog.records)
    assert {record.levelno for record in caplog.records if "llama.cpp" in record.name} <= {10}
    assert capfd.readouterr().err == ""


@pytest.mark.rows("E4", "E5", "O1")
@real_time
async def test_a_thousand_requests_leak_nothing(tiny_model: RealModel, spans: Spans) -> None:
    """With stops and drops at random, at most 64 at once: the answers that stay are right."""
    draw = random.Random(11)
    prompts = tiny_model.prompts(16)
    expected = [tiny_model.expected(prompt, 12) for prompt in prompts]
    at_once = asyncio.Semaphore(64)
    completed = 0

    async def one(number: int, end: str, after: int) -> None:
        nonlocal completed
        which = number % len(prompts)
        async with at_once, await adapter.generate(request_for(prompts[which], 12)) as stream:
            tokens: list[int] = []
            async for item in stream:
                assert item.data is not None, item.error
                tokens += item.data.token_ids
                if len(tokens) == after and end == "drop":
                    return
                if len(tokens) == after and end == "stop":
                    stream.context.stop_generating()
            assert tokens == expected[which][: len(tokens)]
            if end == "stay":
                assert tokens == expected[which]
                completed += 1

    async with running(tiny_model, max_batch=8, batch_tokens=64) as engine:
        adapter = EngineAdapter(engine, tracer=spans.tracer)
        ends = [
            (draw.choice(["stay", "stay", "stop", "drop"]), draw.randrange(12)) for _ in range(1000)
        ]
        await asyncio.gather(*(one(n, end, after) for n, (end, after) in enumerate(ends)))
        await at_rest(engine)
        assert completed == sum(end == "stay" for end, _ in ends)
    assert len(spans.finished) == 1000
