"""The engine on transformers: its options, its cache, and the end of its thread."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rx_backend import InvalidArgument, PreprocessedRequest, RequestContext
from rx_backend.engines.transformers import TransformersEngine
from rx_backend.engines.transformers.sampling import Sampling
from rx_backend.errors import Disconnected
from rx_backend.protocols import OutputOptions, SamplingOptions, StopConditions
from tests.engines import real_time
from tests.real.engines import ask, greedy, released, running, see
from tests.real.tiny_model import RealModel

pytestmark = pytest.mark.needs("transformers", "gguf")


def made(model: RealModel, **options: Any) -> TransformersEngine:
    return TransformersEngine(str(model.folder), **options)


def sampled(prompt: list[int], tokens: int, **options: Any) -> PreprocessedRequest:
    return PreprocessedRequest(
        token_ids=prompt,
        sampling_options=SamplingOptions(**options),
        stop_conditions=StopConditions(max_tokens=tokens),
    )


def with_generation_config(model: RealModel, folder: Path, **options: Any) -> str:
    """Copy a model, with other options of its own."""
    shutil.copytree(model.folder, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return str(folder)


@pytest.mark.rows("E1")
@real_time
async def test_start_returns_the_models_limits(tiny_model: RealModel) -> None:
    """The context is what fits into the cache, and into the model."""
    engine = made(tiny_model, kv_tokens=700, block_size=64, max_batch=3, max_batch_tokens=96)
    config = await engine.start(0)
    await engine.cleanup()
    assert (config.kv_cache_block_size, config.total_kv_blocks) == (64, 10)
    assert config.context_length == 640
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (3, 96)
    engine = made(tiny_model)
    assert (await engine.start(0)).context_length == tiny_model.context_length
    await engine.cleanup()


@real_time
async def test_a_cache_too_small_for_all_requests(tiny_model: RealModel) -> None:
    """Requests make room for each other; their tokens are the same, up to the last that fits."""
    prompts = tiny_model.prompts(8)
    engine = made(tiny_model, kv_tokens=64, block_size=16)
    async with running(engine):
        answers = await asyncio.gather(*(ask(engine, prompt, 52) for prompt in prompts))
        assert answers == [tiny_model.expected(prompt, 52) for prompt in prompts]
        await released(engine)


@real_time
async def test_greedy_and_sampled_side_by_side(tiny_model: RealModel) -> None:
    """Each request has options of its own; top-k 1, top-p 0 and temperature 0 are all greedy."""
    (prompt,) = tiny_model.prompts(1)
    expected = tiny_model.expected(prompt, 24)
    engine = made(tiny_model, seed=3)
    async with running(engine):
        seen = await asyncio.gather(
            see(engine, sampled(prompt, 24, temperature=0)),
            # Divided by so little the logits were infinite, which ended the batching thread.
            see(engine, sampled(prompt, 24, temperature=1e-40)),
            see(engine, sampled(prompt, 24, temperature=1.5, top_k=1)),
            see(engine, sampled(prompt, 24, temperature=1.5, top_p=0.0)),
            see(engine, sampled(prompt, 24, temperature=1.5)),
            see(engine, sampled(prompt, 24, temperature=1.5)),
        )
    *same, one, other = [answer.token_ids for answer in seen]
    assert same == [expected] * 4
    assert len({tuple(expected), tuple(one), tuple(other)}) == 3


@real_time
async def test_unset_options_are_those_of_the_model(tiny_model: RealModel, tmp_path: Path) -> None:
    """Greedy where it does not say otherwise; else as its generation config has it."""
    (prompt,) = tiny_model.prompts(1)
    expected = tiny_model.expected(prompt, 24)
    engine = made(tiny_model)
    async with running(engine):
        assert (await see(engine, sampled(prompt, 24))).token_ids == expected
    own = {"do_sample": True, "temperature": 1.5, "eos_token_id": [0, expected[4]]}
    path = with_generation_config(tiny_model, tmp_path / "own", **own)
    engine = TransformersEngine(path, seed=3)
    async with running(engine):
        assert (await see(engine, sampled(prompt, 24))).token_ids != expected[:24]
        ended = await see(engine, greedy(prompt, 24))
        assert (ended.token_ids, ended.reason) == (expected[:5], "stop")


def test_the_options_of_a_request(tiny_model: RealModel) -> None:
    """Over those of the model."""
    transformers: Any = import_module("transformers")
    own = transformers.GenerationConfig(do_sample=True, temperature=0.7, top_k=20, top_p=0.8)
    options = Sampling(own).options
    assert options(SamplingOptions()) == {"temperature": 0.7, "top_k": 20, "top_p": 0.8}
    assert options(SamplingOptions(temperature=1, top_k=5, top_p=1))["top_k"] == 5
    assert options(SamplingOptions(top_k=-1))["top_k"] > tiny_model.vocab_size
    assert options(SamplingOptions(top_k=0))["top_k"] > tiny_model.vocab_size
    assert options(SamplingOptions(temperature=0))["top_k"] == 1


@real_time
async def test_unsupported_options_are_rejected(tiny_model: RealModel) -> None:
    """By name, all of it."""
    (prompt,) = tiny_model.prompts(1)
    request = sampled(prompt, 4, seed=1, n=2, min_p=0.1)
    request.output_options = OutputOptions(logprobs=0)
    request.stop_conditions.min_tokens = 2
    engine = made(tiny_model)
    async with running(engine):
        with pytest.raises(InvalidArgument) as caught:
            await see(engine, request)
        named = ("seed", "options.n", "min_p", "logprobs", "min_tokens")
        assert all(name in str(caught.value) for name in named)
        assert await ask(engine, prompt, 4) == tiny_model.expected(prompt, 4)


@pytest.mark.rows("E1")
@real_time
async def test_a_model_path_must_be_a_folder(tiny_model: RealModel) -> None:
    """A folder that is not there, and a GGUF."""
    for path in (tiny_model.folder / "none", tiny_model.gguf):
        with pytest.raises(InvalidArgument, match=f"model_path: expected a folder .*{path}"):
            await TransformersEngine(str(path)).start(0)


@pytest.mark.rows("E4")
@real_time
async def test_a_request_that_is_stopped_before_its_first_pull(tiny_model: RealModel) -> None:
    """It ends at once, with the usage of nothing."""
    (prompt,) = tiny_model.prompts(1)
    engine = made(tiny_model)
    context = RequestContext()
    context.stop_generating()
    async with running(engine):
        (only,) = [chunk async for chunk in engine.generate(greedy(prompt, 4), context)]
        await released(engine)
    assert str(only.finish_reason) == "cancelled"


_FORGETFUL = """
import asyncio, sys
from rx_backend import PreprocessedRequest, RequestContext
from rx_backend.engines.transformers import TransformersEngine

async def main():
    engine = TransformersEngine(sys.argv[1])
    await engine.start(0)
    stream = engine.generate(PreprocessedRequest(token_ids=[5]), RequestContext())
    await anext(stream)
    print("serving")

asyncio.run(main())
"""


def test_a_program_that_forgets_cleanup_ends(tiny_model: RealModel) -> None:
    """While the batching thread works."""
    command = [sys.executable, "-c", _FORGETFUL, str(tiny_model.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "serving\n"), done.stderr


@pytest.mark.rows("E4")
@real_time
async def test_a_stop_in_mid_prefill_frees_the_blocks(tiny_model: RealModel) -> None:
    """Before the next step, and so does a dropped stream; nothing of them is kept."""
    (prompt,) = tiny_model.prompts(1, 2000)
    engine = made(tiny_model, max_batch_tokens=16, block_size=32)
    async with running(engine):
        manager = engine._manager
        scheduler, cache = manager.batch_processor.scheduler, manager.batch_processor.cache

        async def until(holds: Callable[[], object], within_s: float) -> None:
            async with asyncio.timeout(within_s):
                while not holds():  # noqa: ASYNC110
                    await asyncio.sleep(0)

        def tables() -> list[object]:
            return [table.block_table for table in cache.cache_allocators.values()]

        for drops in (False, True):
            context = RequestContext("long")
            reading = asyncio.create_task(see(engine, greedy(prompt, 4), context=context))
            await until(lambda: scheduler.active_requests, 10)
            assert all(tables())
            if drops:
                reading.cancel()
                await asyncio.wait({reading})
            else:
                context.stop_generating()
                assert (await reading).reason == "cancelled"
            await released(engine, within_s=1)
            await until(lambda: not any(tables()), 1)
        short = prompt[:8]
        for _ in range(20):
            await see(engine, greedy(short, None), drop_after=2)
        assert await ask(engine, short, 8) == tiny_model.expected(short, 8)
        assert manager.output_router.output_queue.qsize() <= 1


@pytest.mark.rows("E7")
@real_time
async def test_a_dead_batching_thread(tiny_model: RealModel) -> None:
    """It is reported; open and later requests fail with `Disconnected`."""
    prompts = tiny_model.prompts(2)
    engine = made(tiny_model)
    async with running(engine):
        losing = asyncio.create_task(engine.lost())
        reading = asyncio.create_task(see(engine, greedy(prompts[0], None)))
        assert await ask(engine, prompts[1], 4) == tiny_model.expected(prompts[1], 4)
        assert not losing.done()
        # A token that the model doesn't have, which the engine refuses, is the thread's end.
        engine._manager.add_request([tiny_model.vocab_size], "bad", max_new_tokens=1)
        with pytest.raises(Disconnected):
            await reading
        async with asyncio.timeout(5):
            assert "has died" in await losing
        with pytest.raises(Disconnected, match="has died"):
            await see(engine, greedy(prompts[1], 4))
        assert await engine.is_quiescent()
        await engine.drain()


@pytest.mark.rows("E7")
@real_time
async def test_a_request_that_comes_while_the_thread_dies(tiny_model: RealModel) -> None:
    """Nobody takes it any more; it fails with the others."""
    (prompt,) = tiny_model.prompts(1)
    engine = made(tiny_model)
    async with running(engine):
        manager = engine._manager
        manager.background_thread_status.record_fatal_error(RuntimeError("out of memory"))
        reading = asyncio.create_task(see(engine, greedy(prompt, 4)))
        await asyncio.sleep(0)
        await asyncio.to_thread(manager.stop, hard_stop=True)
        async with asyncio.timeout(5):
            with pytest.raises(Disconnected, match="out of memory"):
                await reading
