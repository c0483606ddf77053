"""What holds for every engine with a model, on a model whose answers are known."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rx_backend import InvalidArgument, LLMEngine, PreprocessedRequest, RequestContext
from rx_backend.errors import EngineShutdown
from rx_backend.testing import run_conformance
from tests.engines import real_time
from tests.real.engines import ENGINES, MakeEngine, ask, greedy, released, running, see
from tests.real.tiny_model import RealModel

pytestmark = pytest.mark.parametrize("make", ENGINES)

_HOW = st.sampled_from(["stop", "drop", "none"])


@pytest.mark.rows("E1", "E2", "E3", "E4", "E5", "E6")
def test_it_keeps_the_contract(make: MakeEngine, tiny_model: RealModel) -> None:
    """The conformance kit finds nothing."""
    report = run_conformance(lambda: make(tiny_model), virtual=False)
    assert report.ok, str(report)


@real_time
async def test_greedy_tokens_match_the_model(make: MakeEngine, tiny_model: RealModel) -> None:
    """One after the other, eight at once, and 64 at once in a batch of 8."""
    prompts = tiny_model.prompts(16) * 4
    many = [tiny_model.expected(prompt, 8) for prompt in prompts]
    some = [tiny_model.expected(prompt, 32) for prompt in prompts[:8]]
    async with running(make(tiny_model)) as engine:
        for prompt, answer in zip(prompts[:3], some, strict=False):
            assert await ask(engine, prompt, 32) == answer
        assert await asyncio.gather(*(ask(engine, prompt, 32) for prompt in prompts[:8])) == some
        assert await asyncio.gather(*(ask(engine, prompt, 8) for prompt in prompts)) == many
        await released(engine)


@real_time
async def test_a_long_prompt_is_read_whole(make: MakeEngine, tiny_model: RealModel) -> None:
    """In several steps, to the last token that fits."""
    (prompt,) = tiny_model.prompts(1, tiny_model.context_length - 4)
    async with running(make(tiny_model)) as engine:
        assert await ask(engine, prompt, 4) == tiny_model.expected(prompt, 4)
        seen = await see(engine, greedy(prompt, None))
        assert (seen.reason, len(seen.token_ids)) == ("length", 4)


@real_time
async def test_a_stop_token_ends_the_answer(make: MakeEngine, tiny_model: RealModel) -> None:
    """It is the last token; the model's own end is ignored on request, others are not."""
    (prompt,) = tiny_model.prompts(1)
    answer = tiny_model.expected(prompt, 16)
    end = answer[5]
    until = answer[: answer.index(end) + 1]
    async with running(make(tiny_model)) as engine:
        for stop in ({"stop_token_ids": [end]}, {"stop_token_ids_hidden": [end]}):
            seen = await see(engine, greedy(prompt, 16, **stop))
            assert (seen.token_ids, seen.reason) == (until, "stop")
            assert seen.counted == (len(prompt), len(until))
        for ignored, tokens in ((False, until), (True, answer)):
            request = greedy(prompt, 16, ignore_eos=ignored)
            request.eos_token_ids = [end]
            assert (await see(engine, request)).token_ids == tokens


@real_time
async def test_a_bad_prompt_fails_only_its_request(make: MakeEngine, tiny_model: RealModel) -> None:
    """Those beside it and after it don't notice."""
    prompts = tiny_model.prompts(4)
    bad = {
        "empty": [],
        "tokens": [5] * tiny_model.context_length,
        "ids must be": [5, tiny_model.vocab_size],
    }

    async def refused(engine: LLMEngine, told: str, prompt: list[int]) -> None:
        with pytest.raises(InvalidArgument, match=rf"token_ids.*{told}"):
            await see(engine, greedy(prompt, 4))

    async with running(make(tiny_model)) as engine:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(engine, prompt, 24)) for prompt in prompts]
            for told, prompt in bad.items():
                group.create_task(refused(engine, told, prompt))
        answers = [task.result() for task in asked]
        assert answers == [tiny_model.expected(prompt, 24) for prompt in prompts]
        assert await ask(engine, prompts[0], 24) == answers[0]
        await released(engine)


@pytest.mark.rows("E4")
@real_time
async def test_a_stopped_request_ends_with_its_usage(
    make: MakeEngine, tiny_model: RealModel
) -> None:
    """And what it held is free at once, beside others that go on."""
    prompts = tiny_model.prompts(3)
    expected = [tiny_model.expected(prompt, 24) for prompt in prompts]
    async with running(make(tiny_model)) as engine:
        async with asyncio.TaskGroup() as group:
            stopping = see(engine, greedy(prompts[0], None), stop_after=3)
            reading = group.create_task(stopping)
            asked = [group.create_task(ask(engine, prompt, 24)) for prompt in prompts[1:]]
        stopped = reading.result()
        assert stopped.reason == "cancelled"
        assert stopped.token_ids[:24] == expected[0][: len(stopped.token_ids)]
        assert stopped.counted == (len(prompts[0]), len(stopped.token_ids))
        assert [task.result() for task in asked] == expected[1:]
        await released(engine)


@pytest.mark.rows("E4")
@real_time
async def test_a_stop_in_mid_prefill(make: MakeEngine, tiny_model: RealModel) -> None:
    """A request that is stopped before its first token costs none."""
    (prompt,) = tiny_model.prompts(1, tiny_model.context_length - 100)
    (short,) = tiny_model.prompts(1)
    context = RequestContext("stopped")
    async with running(make(tiny_model)) as engine:
        reading = asyncio.create_task(see(engine, greedy(prompt, 50), context=context))
        beside = asyncio.create_task(ask(engine, short, 1))
        await asyncio.sleep(0)
        context.stop_generating()
        stopped = await reading
        assert await beside == tiny_model.expected(short, 1)
        assert (stopped.reason, stopped.counted) == ("cancelled", (len(prompt), 0))
        await released(engine)


@real_time
async def test_a_dropped_stream_frees_its_resources(
    make: MakeEngine, tiny_model: RealModel
) -> None:
    """Beside others, and 20 times as many as fit into a batch."""
    first, *prompts = tiny_model.prompts(3)
    expected = [tiny_model.expected(prompt, 24) for prompt in prompts]
    async with running(make(tiny_model)) as engine:
        for _ in range(20):
            await asyncio.gather(
                *(see(engine, greedy(first, None), drop_after=1) for _ in range(8))
            )
        async with asyncio.TaskGroup() as group:
            for count in (1, 5, 9):
                group.create_task(see(engine, greedy(first, None), drop_after=count))
            asked = [group.create_task(ask(engine, prompt, 24)) for prompt in prompts]
        assert [task.result() for task in asked] == expected
        await released(engine)


@settings(max_examples=5)
@given(
    ends=st.lists(st.tuples(_HOW, st.integers(0, 12)), min_size=4, max_size=12),
)
@real_time
async def test_stops_and_drops_do_not_affect_other_requests(
    make: MakeEngine, tiny_model: RealModel, ends: list[tuple[str, int]]
) -> None:
    """Stops and drops at any token leave the tokens of all requests as they are."""
    prompts = tiny_model.prompts(len(ends))

    async def run(engine: LLMEngine, prompt: list[int], how: str, after: int) -> None:
        stop_after, drop_after = (after if how == kind else None for kind in ("stop", "drop"))
        seen = await see(engine, greedy(prompt, 12), stop_after=stop_after, drop_after=drop_after)
        assert seen.token_ids == tiny_model.expected(prompt, 12)[: len(seen.token_ids)]
        if how == "none":
            assert (seen.reason, len(seen.token_ids)) == ("length", 12)

    async with running(make(tiny_model)) as engine:
        async with asyncio.TaskGroup() as group:
            for prompt, (how, after) in zip(prompts, ends, strict=True):
                group.create_task(run(engine, prompt, how, after))
        await released(engine)


@pytest.mark.rows("E5")
@real_time
async def test_cleanup_ends_open_streams_and_all_threads(
    make: MakeEngine, tiny_model: RealModel
) -> None:
    """Twice does no harm, nor before the start; and the engine starts again."""
    (prompt,) = tiny_model.prompts(1)
    engine = make(tiny_model)
    await engine.cleanup()
    before = threading.active_count()
    for _ in range(2):
        await engine.start(0)
        stream = asyncio.ensure_future(see(engine, greedy(prompt, None)))
        assert await ask(engine, prompt, 4) == tiny_model.expected(prompt, 4)
        await engine.cleanup()
        with pytest.raises(EngineShutdown):
            await stream
        with pytest.raises(EngineShutdown):
            await see(engine, greedy(prompt, 4))
        await engine.cleanup()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert threading.active_count() <= before


@pytest.mark.rows("E5")
@real_time
async def test_its_health_check_passes(make: MakeEngine, tiny_model: RealModel) -> None:
    """The payload is a request that it answers."""
    async with running(make(tiny_model)) as engine:
        payload = await engine.health_check_payload()
        assert payload is not None
        assert (await see(engine, PreprocessedRequest(**payload))).token_ids
