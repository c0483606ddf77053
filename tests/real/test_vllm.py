"""The engine on vLLM: answers, options, and what is left when requests, or its core, are over."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Coroutine, Generator, Iterable, Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import pytest

from rx_backend import EngineAdapter, PreprocessedRequest, RequestContext
from rx_backend.engines.vllm import VllmEngine
from rx_backend.errors import Disconnected, EngineShutdown, InvalidArgument
from rx_backend.protocols import (
    LLMEngineOutput,
    OutputOptions,
    SamplingOptions,
    StopConditions,
    convert_request,
)
from tests.engines import real_time
from tests.leaks import LeakWatch
from tests.real.tiny_model import RealModel

pytestmark = [
    pytest.mark.needs("vllm", "transformers", "gguf"),
    pytest.mark.timeout(600),
    # vLLM's own, of the packages that it imports.
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Unclosed context"
    ),
]

T = TypeVar("T")
GREEDY = SamplingOptions(temperature=0)
LONGEST, STEP = 1024, 32
"""Prompt and answer together; prompt tokens that are read in a step."""


def make(model: RealModel, **engine_args: Any) -> VllmEngine:
    """Make an engine that starts fast; with 32 bits the greedy tokens are those of transformers."""
    return VllmEngine(
        str(model.folder),
        distributed_executor_backend="uni",
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=64 << 20,
        max_model_len=LONGEST,
        max_num_batched_tokens=STEP,
        max_num_seqs=16,
        **engine_args,
    )


def make_another(model: RealModel) -> VllmEngine:
    """Make one that leaves vLLM's metrics alone: the process has them once, for the last engine."""
    return make(model, disable_log_stats=True)


class Running:
    """An engine that was started once for all tests, and the event loop that it lives on."""

    def __init__(self, model: RealModel) -> None:
        self.model = model
        self._runner = asyncio.Runner()
        self.engine = make(model)
        self.config = self.run(self.engine.start(0))
        self.adapter = EngineAdapter(self.engine)

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(test)

    def close(self) -> None:
        self.run(self.engine.cleanup())
        self._runner.close()

    async def chunks(
        self, request: PreprocessedRequest, context: RequestContext | None = None
    ) -> list[LLMEngineOutput]:
        context = context or RequestContext()
        return [chunk async for chunk in self.engine.generate(request, context)]

    async def answer(self, request: PreprocessedRequest) -> list[int]:
        return tokens_of(await self.chunks(request))

    async def at_rest(self) -> None:
        """Ask for one more token: beside it vLLM has nothing in its batch, and all blocks free."""
        running = "vllm:num_requests_running"
        async with asyncio.timeout(20):
            while True:
                stream = self.engine.generate(request_for([5, 6], 20), RequestContext())
                await anext(stream)
                await anext(stream)
                found = gauge(running)
                await stream.aclose()
                if found == 1 and gauge("vllm:num_requests_waiting") == 0:
                    return


def gauge(name: str) -> float:
    """Read one of vLLM's own metrics."""
    found = [
        sample.value
        for metric in import_module("prometheus_client").REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name
    ]
    return sum(found)


@pytest.fixture(scope="module")
def vllm(tiny_model: RealModel) -> Generator[Running]:
    running = Running(tiny_model)
    yield running
    running.close()


def assert_ended(processes: Iterable[BaseProcess]) -> None:
    """Check that they end; one that vLLM has killed may take a moment."""
    for process in processes:
        process.join(10)
        assert not process.is_alive()


def request_for(prompt: Sequence[int], max_tokens: int = 12, **groups: Any) -> PreprocessedRequest:
    groups.setdefault("sampling_options", GREEDY)
    groups.setdefault("stop_conditions", StopConditions(max_tokens=max_tokens, ignore_eos=True))
    return PreprocessedRequest(token_ids=[*prompt], **groups)


def tokens_of(chunks: Sequence[LLMEngineOutput], index: int | None = None) -> list[int]:
    return [token for chunk in chunks if chunk.index == index for token in chunk.token_ids]


@pytest.mark.rows("E1")
def test_start_returns_the_engines_limits(vllm: Running) -> None:
    """In tokens and blocks, as vLLM has decided them."""
    config = vllm.config
    assert (config.context_length, config.max_num_seqs) == (LONGEST, 16)
    assert config.max_num_batched_tokens == STEP
    assert config.kv_cache_block_size
    assert config.total_kv_blocks


@pytest.mark.rows("E3")
def test_min_tokens_takes_precedence_over_a_stop_token(vllm: Running) -> None:
    """The answer is as long as it may be; usage counts."""
    prompt = vllm.model.prompts(1)[0]
    end = vllm.model.expected(prompt, 12)[5]
    minimum = StopConditions(max_tokens=12, stop_token_ids_hidden=[end], min_tokens=12)
    *_, last = chunks = vllm.run(vllm.chunks(request_for(prompt, stop_conditions=minimum)))
    assert end not in tokens_of(chunks)[:-1]
    assert str(last.finish_reason) == "length"
    assert last.completion_usage is not None
    counts = last.completion_usage
    assert (counts.prompt_tokens, counts.completion_tokens) == (len(prompt), 12)


def test_a_prompt_that_was_read_before_is_cached(vllm: Running) -> None:
    """The usage says how much of it."""
    prompt = vllm.model.prompts(1)[0]
    full = request_for((prompt * LONGEST)[: LONGEST - 9], 9)
    vllm.run(vllm.chunks(full))
    *_, last = vllm.run(vllm.chunks(full))
    assert last.completion_usage is not None
    assert last.completion_usage.prompt_tokens_details is not None
    assert (last.completion_usage.prompt_tokens_details.cached_tokens or 0) > LONGEST // 2


@pytest.mark.rows("E4")
@pytest.mark.parametrize("length", [5, 900], ids=["in the answer", "in the prompt"])
@pytest.mark.parametrize("end", ["stop", "drop", "early"])
def test_a_stop_or_a_drop_frees_the_requests_resources(
    vllm: Running, end: str, length: int
) -> None:
    """A stop ends it with its usage; others go on, and vLLM has nothing left of it."""
    short, prompt = vllm.model.prompts(1)[0], vllm.model.prompts(1, length=900)[0][:length]

    async def ask() -> None:
        other = asyncio.create_task(vllm.answer(request_for(short)))
        stream = await vllm.adapter.generate(request_for(prompt, LONGEST - length))
        pull = asyncio.ensure_future(anext(stream))
        if end == "early":
            stream.context.stop_generating()
        elif length == 5:
            await pull
            pull = asyncio.ensure_future(anext(stream))
        else:
            await other
            assert not pull.done()
        if end == "drop":
            pull.cancel()
            await asyncio.wait([pull])
            stream.close()
        else:
            stream.context.stop_generating()
            items = [await pull, *[item async for item in stream]]
            last = items[-1].data
            assert last is not None
            assert str(last.finish_reason) == "cancelled"
            assert last.completion_usage is not None
            assert last.completion_usage.prompt_tokens == length
        assert await other == vllm.model.expected(short, 12)
        await vllm.at_rest()

    vllm.run(ask())


@pytest.mark.rows("E4", "E5")
def test_requests_of_one_id_are_stopped_one_by_one(vllm: Running) -> None:
    """Clients choose ids, and two may choose the same."""
    prompt = vllm.model.prompts(1)[0]

    async def ask() -> None:
        contexts = [RequestContext("same"), RequestContext("same")]
        tasks = [
            asyncio.create_task(vllm.chunks(request_for(prompt, 60), each)) for each in contexts
        ]
        await asyncio.sleep(0)
        contexts[0].stop_generating()
        await vllm.engine.abort(contexts[0])
        ends = [str((await task)[-1].finish_reason) for task in tasks]
        assert ends == ["cancelled", "length"]

    vllm.run(ask())


@pytest.mark.rows("S6")
@pytest.mark.parametrize(
    ("wire", "words"),
    [
        ({"stop_conditions": {"max_tokens": 0}}, "max_tokens"),
        ({"stop_conditions": {"max_thinking_tokens": 4}}, "reasoning"),
        ({"sampling_options": {"top_p": 7.0}}, "top_p"),
        ({"sampling_options": {"best_of": 3, "use_beam_search": True}}, "best_of.*use_beam_search"),
        ({"sampling_options": {"mirostat": 2}}, "sampling_options.mirostat"),
        ({"sampling_options": {"guided_decoding": {"regex": "(("}}}, "regex"),
        ({"sampling_options": {"guided_decoding": {}}}, "structured outputs"),
        (
            {"sampling_options": {"guided_decoding": {"json": {}, "whitespace_pattern": " "}}},
            "whitespace_pattern",
        ),
        ({"output_options": {"logprobs": 500}}, "logprobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_bad_request_fails_only_itself(vllm: Running, wire: dict[str, Any], words: str) -> None:
    """What is wrong is named, and a request beside it is answered."""
    good = vllm.model.prompts(1)[0]

    async def ask() -> None:
        other = asyncio.create_task(vllm.answer(request_for(good)))
        with pytest.raises(InvalidArgument, match=words):
            await vllm.chunks(convert_request({"token_ids": good, **wire}))
        assert await other == vllm.model.expected(good, 12)

    vllm.run(ask())


@pytest.mark.rows("E2")
def test_options_take_effect(vllm: Running) -> None:
    """A seed gives an answer again; what narrows sampling down to one token is greedy."""
    prompt = vllm.model.prompts(1)[0]
    greedy = vllm.model.expected(prompt, 12)

    async def sample(**options: Any) -> list[int]:
        wire = {
            "token_ids": prompt,
            "sampling_options": {"temperature": 1.5, "seed": 7, **options},
            "stop_conditions": {"max_tokens": 12, "ignore_eos": True},
        }
        return await vllm.answer(convert_request(wire))

    async def ask() -> None:
        first = await sample()
        assert first == await sample()
        assert first not in (greedy, await sample(seed=8))
        for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 0.0}):
            assert await sample(**narrow) == greedy
        unlike = await sample(temperature=0.0, repetition_penalty=50.0)
        assert len({*unlike, *prompt}) == 12 + len({*prompt})
        assert set(await sample(allowed_token_ids=[40, 41])) <= {40, 41}
        assert set(await sample(logit_bias={"44": 100})) == {44}
        choice = request_for(
            prompt,
            sampling_options={"guided_decoding": {"choice": ["abc", "abd"]}},
            stop_conditions=StopConditions(max_tokens=12),
        )
        text = import_module("transformers").AutoTokenizer.from_pretrained(vllm.model.folder)
        assert text.decode(await vllm.answer(choice), skip_special_tokens=True) in {"abc", "abd"}

    vllm.run(ask())


@pytest.mark.rows("E3")
def test_several_answers_each_have_their_end(vllm: Running) -> None:
    """Their chunks have an index, each terminal counts its own tokens; a stop ends all of them."""
    prompt = vllm.model.prompts(1)[0]
    warm = SamplingOptions(n=2, temperature=1.5, seed=3)

    async def ask() -> None:
        chunks = await vllm.chunks(request_for(prompt, sampling_options=warm))
        assert [len(tokens_of(chunks, index)) for index in (0, 1)] == [12, 12]
        assert tokens_of(chunks, 0) != tokens_of(chunks, 1)
        ends = [chunk for chunk in chunks if chunk.finish_reason is not None]
        assert sorted(chunk.index or 0 for chunk in ends) == [0, 1]
        assert ends[-1] is chunks[-1]
        counts = [chunk.completion_usage for chunk in ends]
        assert [each.completion_tokens for each in counts if each] == [12, 12]
        stream = await vllm.adapter.generate(request_for(prompt, 900, sampling_options=warm))
        await anext(stream)
        stream.context.stop_generating()
        stopped = [item.data async for item in stream if item.data and item.data.finish_reason]
        assert {(each.index, str(each.finish_reason)) for each in stopped} == {
            (0, "cancelled"),
            (1, "cancelled"),
        }
        await vllm.at_rest()

    vllm.run(ask())


@pytest.mark.rows("E2")
def test_log_probs_match_the_logits(vllm: Running) -> None:
    """Of the answer and of the prompt, as transformers' logits have them, the likeliest first."""
    torch: Any = import_module("torch")
    prompt = vllm.model.prompts(1)[0]
    wanted = OutputOptions(logprobs=3, prompt_logprobs=0)
    warm = SamplingOptions(temperature=1.2, seed=3)
    chunks = vllm.run(
        vllm.chunks(request_for(prompt, 6, sampling_options=warm, output_options=wanted))
    )
    answer = tokens_of(chunks)
    model = import_module("transformers").AutoModelForCausalLM.from_pretrained(
        vllm.model.folder, dtype="float32"
    )
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0]
    values = torch.log_softmax(logits.double(), -1).tolist()
    found = [value for chunk in chunks for value in chunk.log_probs or ()]
    tops = [tops for chunk in chunks for tops in chunk.top_logprobs or ()]
    for place, token in enumerate(answer, len(prompt) - 1):
        best = sorted(range(len(values[place])), key=values[place].__getitem__)[:-4:-1]
        assert found.pop(0) == pytest.approx(values[place][token], abs=1e-3)
        top = tops.pop(0)
        assert [(each.rank, each.token_id) for each in top] == [*enumerate(best, 1)]
        assert [each.logprob for each in top] == pytest.approx(
            [values[place][token] for token in best], abs=1e-3
        )
    first, *rest = chunks[-1].engine_data["prompt_logprobs"]
    assert first is None
    for place, (token, each) in enumerate(zip(prompt[1:], rest, strict=True)):
        assert each[str(token)]["logprob"] == pytest.approx(values[place][token], abs=1e-3)


@pytest.mark.rows("E2")
def test_tenants_do_not_share_the_prefix_cache(vllm: Running) -> None:
    """Another salt, another cache: nobody learns from the time of an answer what others asked."""
    prompt = vllm.model.prompts(7, length=600)[6]

    async def cached(salt: str) -> int | None:
        *_, last = await vllm.chunks(request_for(prompt, 1, routing={"cache_salt": salt}))
        assert last.completion_usage is not None
        assert last.completion_usage.prompt_tokens_details is not None
        return last.completion_usage.prompt_tokens_details.cached_tokens

    async def ask() -> None:
        assert await cached("a") == 0
        assert await cached("b") == 0
        assert await cached("a") != 0

    vllm.run(ask())


@pytest.mark.rows("S6", "E7")
@real_time
async def test_a_dead_engine_core_fails_every_request(
    tiny_model: RealModel, leaks: LeakWatch
) -> None:
    """What is in flight and what comes later fail as one that another worker may continue."""
    # vLLM's own tasks, which it ends with their queues.
    leaks.allow("EngineCoreOutputQueueTask")
    others = {*multiprocessing.active_children()}
    running = make_another(tiny_model)
    await running.start(0)
    adapter = EngineAdapter(running)
    lost = asyncio.create_task(running.lost())
    try:
        streams = [await adapter.generate(request_for([5, 6, n], 900)) for n in range(4)]
        for stream in streams:
            await anext(stream)
        assert not lost.done()
        (core,) = {*multiprocessing.active_children()} - others
        assert core.pid is not None
        os.kill(core.pid, signal.SIGKILL)
        for stream in streams:
            items = [item async for item in stream]
            assert isinstance(items[-1].error, Disconnected)
        assert "vLLM" in await asyncio.wait_for(lost, 5)
        with pytest.raises(Disconnected):
            await anext(running.generate(request_for([5]), RequestContext()))
    finally:
        await running.cleanup()
    assert_ended({*multiprocessing.active_children()} - others)
    with pytest.raises(EngineShutdown):
        await anext(running.generate(request_for([5]), RequestContext()))


@pytest.mark.rows("E5")
@real_time
async def test_cleanup_ends_running_requests(tiny_model: RealModel) -> None:
    """Streams end with `EngineShutdown`, `lost` does not take it for a loss, no process is left."""
    others = {*multiprocessing.active_children()}
    engine = make_another(tiny_model)
    await engine.cleanup()
    await engine.start(0)
    lost = asyncio.create_task(engine.lost())
    stream = engine.generate(request_for([5, 6], 900), RequestContext())
    await anext(stream)
    await engine.cleanup()
    await engine.cleanup()
    with pytest.raises(EngineShutdown):
        async for _ in stream:
            pass
    assert not (await asyncio.wait({lost}, timeout=0.1))[0]
    lost.cancel()
    await asyncio.wait({lost})
    assert_ended({*multiprocessing.active_children()} - others)


def test_its_arguments_are_those_of_vllm(tiny_model: RealModel, capsys: Any) -> None:
    """`from_args` takes what `vllm serve` takes; what vLLM does not know is refused."""
    VllmEngine.from_args(["--model", str(tiny_model.folder), "--max-model-len", "512"])
    with pytest.raises(SystemExit):
        VllmEngine.from_args(["--max-modle-len", "512"])
    assert "--max-modle-len" in capsys.readouterr().err
    with pytest.raises(TypeError, match="max_modle_len"):
        VllmEngine(str(tiny_model.folder), max_modle_len=512)
