"""The simulated engine: the timing model, slots, failures."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import Callable

import pytest

from rx_backend.context import RequestContext
from rx_backend.engines import SimulatedEngine
from rx_backend.errors import BackendError, InvalidArgument
from rx_backend.protocols import PreprocessedRequest
from rx_backend.testing import run_virtual
from tests.engines import real_time, virtual
from tests.rx_backend.engines.driving import Seen, chunks_of, consume, open_stream, request


def test_a_single_request_takes_the_modelled_time() -> None:
    """TTFT is a step with the prompt in it, each later gap a step with one sequence in it."""
    engine = SimulatedEngine(step_ms=10, step_ms_per_sequence=1, prefill_ms_per_token=0.5)
    seen = run_virtual(consume(engine, request(prompt=100, tokens=4)))
    assert seen.ttft_ms == pytest.approx(10 + 50)
    assert seen.gaps_ms == pytest.approx([11, 11, 11])


def test_ttft_grows_with_the_prompt() -> None:
    """A prompt twice as long adds its tokens' cost to the TTFT, and nothing to later gaps."""
    short, long = (
        run_virtual(consume(SimulatedEngine(prefill_ms_per_token=0.1), request(prompt, 3)))
        for prompt in (1000, 2000)
    )
    assert long.ttft_ms - short.ttft_ms == pytest.approx(100)
    assert long.gaps_ms == short.gaps_ms


def test_itl_grows_with_the_batch() -> None:
    """Every sequence that decodes beside a request adds to its gaps."""

    async def together(count: int) -> float:
        engine = SimulatedEngine(step_ms=10, step_ms_per_sequence=0.5)
        seen = await asyncio.gather(*(consume(engine, request(4, 20)) for _ in range(count)))
        return seen[0].gaps_ms[10]

    assert run_virtual(together(1)) == pytest.approx(10.5)
    assert run_virtual(together(8)) == pytest.approx(14)
    assert run_virtual(together(64)) == pytest.approx(42)


@virtual
async def test_ttft_grows_with_load_when_the_batch_is_full() -> None:
    """Requests beyond the batch queue, in the order of arrival, until slots are free."""
    engine = SimulatedEngine(max_batch=2, step_ms=10, step_ms_per_sequence=0)
    reading = [asyncio.create_task(consume(engine, request(0, 5))) for _ in range(6)]
    await asyncio.sleep(0.001)
    load = engine.load
    assert (load.waiting, load.prefilling, load.decoding) == (4, 0, 2)
    seen = await asyncio.gather(*reading)
    assert [round(one.ttft_ms) for one in seen] == [10, 10, 60, 60, 110, 110]


def test_smaller_prefill_chunks_disturb_decoding_less() -> None:
    """With a small chunk the running request's gaps stay short; the prompt waits longer instead."""

    async def worst_gap(chunk: int) -> tuple[float, float]:
        engine = SimulatedEngine(
            step_ms=10, step_ms_per_sequence=0, prefill_ms_per_token=0.1, prefill_chunk_tokens=chunk
        )
        running, long = await asyncio.gather(
            consume(engine, request(0, 60)), consume(engine, request(2000, 2), at_ms=100)
        )
        return max(running.gaps_ms), long.ttft_ms

    whole_gap, whole_ttft = run_virtual(worst_gap(4096))
    small_gap, small_ttft = run_virtual(worst_gap(250))
    assert whole_gap == pytest.approx(210)
    assert small_gap == pytest.approx(35)
    assert small_ttft > whole_ttft


@virtual
async def test_prompts_share_a_step_oldest_first() -> None:
    """Short prompts are worked through in the same step as far as the chunk goes."""
    engine = SimulatedEngine(
        step_ms=10, step_ms_per_sequence=0, prefill_ms_per_token=0.1, prefill_chunk_tokens=100
    )
    first, second, third = await asyncio.gather(
        *(consume(engine, request(prompt, 2)) for prompt in (60, 40, 50))
    )
    assert first.ttft_ms == second.ttft_ms == pytest.approx(20)
    assert third.ttft_ms == pytest.approx(20 + 15)


@virtual
async def test_a_decode_engine_prefills_nothing() -> None:
    """The first token takes one step, however long the prompt."""
    engine = SimulatedEngine(
        mode="decode", step_ms=10, step_ms_per_sequence=0, prefill_ms_per_token=1
    )
    handoff = {"engine": "simulated", "prompt_tokens": 500}
    seen = await consume(engine, request(500, 2, handoff=handoff))
    assert seen.times_ms == pytest.approx([10, 20])


@virtual
async def test_the_kv_cache_limits_concurrency() -> None:
    """A request waits until the cache has room for its prompt and output, and gives it back."""
    engine = SimulatedEngine(
        step_ms=10, step_ms_per_sequence=0, prefill_ms_per_token=0, kv_tokens=100
    )
    config = await engine.start(0)
    assert (config.kv_cache_block_size, config.total_kv_blocks) == (16, 6)
    config = await SimulatedEngine(max_batch=3, prefill_chunk_tokens=7).start(0)
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (3, 7)
    assert (config.kv_cache_block_size, config.total_kv_blocks) == (None, None)
    reading = [asyncio.create_task(consume(engine, request(45, 5))) for _ in range(3)]
    await asyncio.sleep(0.001)
    assert engine.load.kv_tokens == 100
    assert engine.load.waiting == 1
    seen = await asyncio.gather(*reading)
    assert [round(one.ttft_ms) for one in seen] == [10, 10, 60]
    assert engine.load.kv_tokens == 0
    with pytest.raises(InvalidArgument, match="98 prompt tokens and max_tokens 3 do not fit"):
        engine.generate(request(98, 3), RequestContext())


@pytest.mark.rows("E4", "E5")
@pytest.mark.parametrize("how", ["stop", "abort", "close", "cancel", "forget"])
@pytest.mark.parametrize("phase", ["waiting", "prefilling", "decoding"])
@virtual
async def test_a_disconnect_frees_the_slot_at_the_next_step(how: str, phase: str) -> None:
    """However a request ends early, and wherever it was, the next one has its slot a step later."""
    loop = asyncio.get_running_loop()
    engine = SimulatedEngine(
        max_batch=1, step_ms=10, prefill_ms_per_token=1, prefill_chunk_tokens=100
    )
    context = RequestContext("early")
    ahead = [consume(engine, request(0, 10))] if phase == "waiting" else []
    prompt = 100_000 if phase == "prefilling" else 0
    before = [asyncio.create_task(one) for one in ahead]
    early = asyncio.create_task(_hold(engine, request(prompt, 1000), context, how))
    await asyncio.sleep(0.055)
    after = asyncio.create_task(consume(engine, request(0, 2)))
    await asyncio.sleep(0)
    load = engine.load
    assert (load.waiting, load.prefilling, load.decoding) == {
        "waiting": (2, 0, 1),
        "prefilling": (1, 1, 0),
        "decoding": (1, 0, 1),
    }[phase]
    if how == "abort":
        await engine.abort(RequestContext("somebody else"))
        await engine.abort(context)
    elif how == "stop":
        context.stop_generating()
    else:
        early.cancel()
    left_ms = loop.time() * 1000
    await asyncio.wait([early])
    if how in {"stop", "abort"}:
        seen = early.result()
        assert seen.reason == "cancelled"
        assert seen.counted == (prompt, len(seen.token_ids))
    follower = await after
    assert len(follower.chunks) == 2
    step_ms = 120 if phase == "prefilling" else 11
    waited = 50 if phase == "waiting" else 0
    assert follower.times_ms[0] <= left_ms + waited + 2 * step_ms
    await asyncio.gather(*before)
    await engine.drain()
    assert engine.load.kv_tokens == 0


async def _hold(
    engine: SimulatedEngine, asked: PreprocessedRequest, context: RequestContext, how: str
) -> Seen:
    """Read on until told otherwise; close the stream, or forget it, where that is the way out."""
    if how in {"stop", "abort", "cancel"}:
        return await consume(engine, asked, context)
    stream = open_stream(engine, asked, context)
    try:
        async for _ in stream:
            pass
    except asyncio.CancelledError:
        if how == "close":
            await stream.aclose()
        else:
            del stream
            gc.collect()
        raise
    return Seen()


@virtual
async def test_a_lagging_consumer_gets_every_token_and_does_not_hold_up_the_batch() -> None:
    """Tokens wait for a consumer that is late; others keep their pace."""
    engine = SimulatedEngine(step_ms=10, step_ms_per_sequence=0, prefill_ms_per_token=0)
    stream = open_stream(engine, request(0, 6))
    first = await anext(stream)
    other = await consume(engine, request(0, 6))
    assert other.gaps_ms == pytest.approx([10] * 5)
    await asyncio.sleep(1)
    began = asyncio.get_running_loop().time()
    rest = [chunk async for chunk in stream]
    assert asyncio.get_running_loop().time() == began
    assert [chunk.token_ids[0] for chunk in [first, *rest]] == [0, 1, 2, 3, 4, 5]


@pytest.mark.rows("E4")
@virtual
async def test_tokens_generated_before_a_stop_precede_the_terminal() -> None:
    """A consumer that lags when its request is stopped gets what was made, then `cancelled`."""
    context = RequestContext()
    engine = SimulatedEngine(step_ms=10, step_ms_per_sequence=0, prefill_ms_per_token=0)
    stream = open_stream(engine, request(0, 50), context)
    await anext(stream)
    await asyncio.sleep(0.035)
    context.stop_generating()
    await engine.drain()
    rest = [chunk async for chunk in stream]
    assert [chunk.token_ids for chunk in rest] == [[1], [2], [3], []]
    assert rest[-1].completion_usage is not None
    assert rest[-1].completion_usage.completion_tokens == 4


@virtual
async def test_one_task_for_all_requests_and_none_when_idle() -> None:
    """The engine has a single task while there is work, outside of any request's context."""
    marker = contextvars.ContextVar("marker", default="engine")
    marker.set("request")
    engine = SimulatedEngine()
    streams = [open_stream(engine, request(1, 3)) for _ in range(50)]
    before = asyncio.all_tasks()
    pulls = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.sleep(0)
    (task,) = asyncio.all_tasks() - before - set(pulls)
    await asyncio.gather(*pulls)
    assert marker.get() == "request"
    context: Callable[[], contextvars.Context] | None = getattr(task, "get_context", None)
    if context is not None:  # asked of a task since Python 3.12
        assert marker not in context()
    for stream in streams:
        assert len([chunk async for chunk in stream]) == 2
    await engine.drain()
    assert asyncio.all_tasks() == before


@pytest.mark.rows("E3", "S6")
def test_error_rate_fails_that_part_of_the_requests_with_typed_errors() -> None:
    """About the given part fails, somewhere before its end, with errors of several kinds."""

    async def run(seed: int) -> list[tuple[int, str]]:
        engine = SimulatedEngine(error_rate=0.3, seed=seed, max_batch=300)
        seen = await asyncio.gather(*(consume(engine, request(1, 10)) for _ in range(300)))
        assert engine.load.decoding == 0
        failed = [one for one in seen if one.error is not None]
        assert all(len(one.chunks) == 10 for one in seen if one.error is None)
        assert all(len(one.chunks) < 10 for one in failed)
        assert all(isinstance(one.error, BackendError) for one in failed)
        return [(len(one.chunks), type(one.error).__name__) for one in failed]

    first = run_virtual(run(1))
    assert 60 < len(first) < 120
    assert len({kind for _, kind in first}) == 4
    assert {count for count, _ in first} == set(range(10))
    assert run_virtual(run(1)) == first
    assert run_virtual(run(2)) != first


def test_same_seed_same_times() -> None:
    """Two runs of the same requests give the same tokens at the same times."""

    async def run() -> list[list[float]]:
        engine = SimulatedEngine(max_batch=3, error_rate=0.2, seed=5)
        arrivals = [consume(engine, request(n * 7, 5 + n), at_ms=n * 9.0) for n in range(12)]
        return [seen.times_ms for seen in await asyncio.gather(*arrivals)]

    assert run_virtual(run()) == run_virtual(run())


@real_time
async def test_runs_on_the_real_clock() -> None:
    """The engine needs nothing of the virtual loop: on a plain loop it streams as well."""
    engine = SimulatedEngine(step_ms=0, step_ms_per_sequence=0, prefill_ms_per_token=0)
    seen = await asyncio.gather(*(chunks_of(engine, request(3, 5)) for _ in range(10)))
    assert [len(chunks) for chunks in seen] == [5] * 10
    await engine.cleanup()


def test_an_engine_serves_one_loop_after_another() -> None:
    """What a loop that has gone left behind does not disturb the next."""
    engine = SimulatedEngine()
    for _ in range(2):
        assert len(run_virtual(chunks_of(engine, request(3, 5)))) == 5
        run_virtual(engine.drain())


@pytest.mark.rows("E3")
@virtual
async def test_a_broken_context_fails_the_streams() -> None:
    """When the scheduler itself fails, every stream ends with a typed error."""

    class Broken(RequestContext):
        @property
        def is_stopped(self) -> bool:
            raise RuntimeError("no such signal")

    engine = SimulatedEngine()
    good, bad = await asyncio.gather(
        consume(engine, request()), consume(engine, request(), Broken())
    )
    assert isinstance(good.error, BackendError)
    assert isinstance(bad.error, BackendError)
    assert good.error is not bad.error
    assert len(await chunks_of(engine, request(tokens=3))) == 3
