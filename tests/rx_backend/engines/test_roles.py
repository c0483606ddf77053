"""What both engines have in common: tokens, roles, hand-offs, ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

import pytest
from msgspec.structs import replace

from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.engines import SampleEngine, SimulatedEngine
from rx_backend.errors import EngineShutdown, InvalidArgument
from rx_backend.protocols import SamplingOptions
from rx_backend.testing import run_virtual
from tests.engines import virtual
from tests.rx_backend.engines.driving import chunks_of, consume, open_stream, params_of, request
from tests.wire import decode_request, encode

Make = Callable[..., LLMEngine]


def kind_of(make: Make) -> str:
    return "sample" if make is SampleEngine else "simulated"


both = pytest.mark.parametrize("make", [SampleEngine, SimulatedEngine])


@both
@pytest.mark.rows("E3")
def test_several_answers_are_rejected_at_once(make: Make) -> None:
    """They make one, and the client must not wait for the others."""
    asked = replace(request(), sampling_options=SamplingOptions(n=2))
    with pytest.raises(InvalidArgument, match=r"sampling_options.n: expected 1, got 2"):
        open_stream(make(), asked)
    for n in (None, 0, 1):
        alone = replace(request(tokens=1), sampling_options=SamplingOptions(n=n))
        assert run_virtual(consume(make(), alone)).reason == "length"


@both
@pytest.mark.rows("E3")
def test_the_requested_tokens_come_and_the_last_is_the_terminal(make: Make) -> None:
    """
    A stream has exactly the tokens asked for, one a chunk; the last carries reason and usage.

    Token ids count up to the size of the vocabulary; a request may leave the number to the engine.
    """
    seen = run_virtual(consume(make(), request(prompt=4, tokens=5)))
    assert [chunk.token_ids for chunk in seen.chunks] == [[0], [1], [2], [3], [4]]
    assert [chunk.finish_reason is not None for chunk in seen.chunks] == [False] * 4 + [True]
    assert seen.reason == "length"
    assert seen.counted == (4, 5)
    few = make(vocab_size=3, default_max_tokens=7)
    assert run_virtual(consume(few, request(tokens=None))).token_ids == [0, 1, 2, 0, 1, 2, 0]


@both
@pytest.mark.rows("S5")
def test_zero_tokens_are_rejected_at_once(make: Make) -> None:
    """A request for no tokens fails in the set-up; the message names the field."""
    with pytest.raises(
        InvalidArgument, match=r"stop_conditions\.max_tokens: expected .*, 1 or more"
    ):
        make().generate(request(tokens=0), RequestContext())


@both
@virtual
async def test_prefill_then_decode_gives_the_tokens_of_an_aggregated_run(make: Make) -> None:
    """Prefill ends with one token and a hand-off; decode takes it, through JSON, and counts on."""
    (first,) = await chunks_of(make(mode="prefill"), request(prompt=4, tokens=5))
    assert first.finish_reason is not None
    assert first.completion_usage is not None
    assert first.completion_usage.completion_tokens == 1
    wire = encode(request(prompt=4, tokens=5, handoff=params_of(first)))
    split = await consume(make(mode="decode"), decode_request(wire))
    whole = await consume(make(), request(prompt=4, tokens=5))
    assert split.error is None
    assert split.token_ids == whole.token_ids
    assert first.token_ids == whole.token_ids[:1]
    assert split.counted == (4, 5)
    assert [seen.chunks[-1].disaggregated_params for seen in (split, whole)] == [None, None]


@both
@pytest.mark.parametrize(
    ("handoff", "complaint"),
    [
        (None, "prefill_result is missing"),
        ("text", "disaggregated_params must be an object"),
        ({"engine": "other", "prompt_tokens": 4}, r"disaggregated_params\.engine must be"),
        ({"prompt_tokens": 4}, r"disaggregated_params\.engine must be"),
        ({"engine": "same", "prompt_tokens": 3}, r"prompt_tokens is 3, .* 4 prompt tokens"),
        ({"engine": "same"}, r"prompt_tokens is None"),
    ],
)
def test_decode_rejects_a_foreign_prefill_result(
    make: Make, handoff: object, complaint: str
) -> None:
    """A hand-off that is missing or of another engine or prompt fails the set-up, by its name."""
    if isinstance(handoff, Mapping):
        given = cast("Mapping[str, object]", handoff)
        handoff = {**given, "engine": kind_of(make)} if given.get("engine") == "same" else given
    with pytest.raises(InvalidArgument, match=complaint):
        make(mode="decode").generate(request(prompt=4, handoff=handoff), RequestContext())


@both
@pytest.mark.rows("E4")
def test_stop_ends_with_cancelled_and_usage(make: Make) -> None:
    """A stopped stream ends with `cancelled`, which counts the tokens that were delivered."""
    seen = run_virtual(consume(make(), request(prompt=4, tokens=50), stop_after=3))
    assert seen.reason == "cancelled"
    assert seen.token_ids == [0, 1, 2]
    assert seen.counted == (4, 3)


@both
@pytest.mark.rows("A4", "E4")
@pytest.mark.parametrize(("mode", "tokens"), [("agg", []), ("decode", [0])])
@virtual
async def test_stop_before_the_first_token(make: Make, mode: str, tokens: list[int]) -> None:
    """
    The `cancelled` terminal is all.

    A decode engine stops after its first token, because of the transfer.
    """
    context = RequestContext()
    context.stop_generating()
    handoff = {"engine": kind_of(make), "prompt_tokens": 4}
    seen = await consume(make(mode=mode), request(handoff=handoff), context)
    assert (seen.token_ids, seen.reason, seen.counted) == (tokens, "cancelled", (4, len(tokens)))
    assert not tokens or seen.ttft_ms >= 10


@both
@pytest.mark.rows("E1", "E5")
@virtual
async def test_cleanup_twice_unstarted_and_restart(make: Make) -> None:
    """Cleanup is idempotent, safe before a start, and a start after it makes the engine usable."""
    engine = make(model="tiny")
    await engine.cleanup()
    await engine.cleanup()
    with pytest.raises(EngineShutdown):
        engine.generate(request(), RequestContext())
    assert (await engine.start(7)).model == "tiny"
    assert len(await chunks_of(engine, request(tokens=3))) == 3
    await engine.cleanup()


@both
@pytest.mark.rows("E3", "E5")
@virtual
async def test_cleanup_ends_open_streams_with_a_typed_error(make: Make) -> None:
    """A stream that is open when the engine is cleaned up, or never begun, ends with its error."""
    engine = make()
    late = open_stream(engine, request())
    reading = [asyncio.create_task(consume(engine, request(tokens=9))) for _ in range(2)]
    await asyncio.sleep(0.035)
    await engine.cleanup()
    for seen in await asyncio.gather(*reading):
        assert isinstance(seen.error, EngineShutdown)
        assert 0 < len(seen.chunks) < 9
    with pytest.raises(EngineShutdown):
        await anext(late)
    assert await engine.is_quiescent()


@both
@pytest.mark.rows("E5", "S7")
@virtual
async def test_drain_waits_for_streams_that_are_open(make: Make) -> None:
    """Closing one, or cancelling the task that reads it, gives its place back; others are read."""
    engine = make()
    await engine.drain()
    stream = open_stream(engine, request(tokens=99))
    await anext(stream)
    await stream.aclose()
    reading = asyncio.create_task(consume(engine, request(tokens=99)))
    await asyncio.sleep(0.05)
    reading.cancel()
    await asyncio.wait([reading])
    reads = [asyncio.create_task(consume(engine, request(tokens=number))) for number in (3, 5)]
    await asyncio.sleep(0.005)
    assert not await engine.is_quiescent()
    await engine.drain()
    assert await engine.is_quiescent()
    assert [len((await read).chunks) for read in reads] == [3, 5]


@both
@pytest.mark.rows("E5", "H1")
@virtual
async def test_health_check_payload_is_a_request_that_works(make: Make) -> None:
    """The payload is a valid request whose run ends well; decode mode can't have one."""
    engine = make()
    payload = await engine.health_check_payload()
    assert payload is not None
    (chunk,) = await chunks_of(engine, decode_request(encode(payload)))
    assert chunk.finish_reason is not None
    assert await make(mode="decode").health_check_payload() is None


@pytest.mark.parametrize(
    ("make", "parameter", "value", "complaint"),
    [
        (SampleEngine, "token_interval_ms", -1, "a number of ms, 0 or more, got -1"),
        (SampleEngine, "token_interval_ms", float("nan"), "a number of ms, 0 or more"),
        (SampleEngine, "token_interval_ms", "fast", "a number of ms, 0 or more, got 'fast'"),
        (SampleEngine, "default_max_tokens", 0, "a whole number of tokens, 1 or more, got 0"),
        (SampleEngine, "default_max_tokens", 1.5, "a whole number"),
        (SampleEngine, "default_max_tokens", True, "a whole number"),
        (SampleEngine, "vocab_size", 0, "a whole number, 1 or more, got 0"),
        (SampleEngine, "model", " ", "a non-blank string, got ' '"),
        (SampleEngine, "mode", "sideways", "one of agg, prefill, decode, got 'sideways'"),
        (SimulatedEngine, "max_batch", 0, "a whole number of requests, 1 or more, got 0"),
        (SimulatedEngine, "step_ms", -1, "a number of ms, 0 or more, got -1"),
        (SimulatedEngine, "step_ms_per_sequence", None, "a number of ms, 0 or more, got None"),
        (SimulatedEngine, "prefill_ms_per_token", float("inf"), "a number of ms, 0 or more"),
        (SimulatedEngine, "prefill_chunk_tokens", 0, "a whole number of tokens, 1 or more"),
        (SimulatedEngine, "kv_tokens", 0, "a whole number of tokens, 1 or more, got 0"),
        (SimulatedEngine, "error_rate", 1.5, "a number from 0 to 1, got 1.5"),
        (SimulatedEngine, "error_rate", "often", "a number from 0 to 1, got 'often'"),
        (SimulatedEngine, "model", "", "a non-blank string"),
        (SimulatedEngine, "mode", "sideways", "one of agg, prefill, decode"),
    ],
)
def test_parameters_are_checked(make: Make, parameter: str, value: object, complaint: str) -> None:
    """A value out of range is refused; the message names the parameter, its bound and its unit."""
    with pytest.raises(InvalidArgument, match=f"{parameter}: expected {complaint}"):
        make(**{parameter: value})
