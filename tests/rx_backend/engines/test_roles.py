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
def test_several_answers_are_refused_at_once(make: Make) -> None:
    """They make one, and the client must not wait for the others."""
    asked = replace(request(), sampling_options=SamplingOptions(n=2))
    with pytest.raises(InvalidArgument, match=r"sampling_options.n: expected 1, got 2"):
        open_stream(make(), asked)
    for n in (None, 0, 1):
        alone = replace(request(tokens=1), sampling_options=SamplingOptions(n=n))
        assert run_virtual(consume(make(), alone)).reason == "length"


@both
@pytest.mark.rows("E1")
def test_start_announces_the_model(make: Make) -> None:
    """The config has the model name that the engine was made with."""
    config = run_virtual(make(model="tiny").start(7))
    assert config.model == "tiny"


@both
@pytest.mark.rows("E3")
def test_tokens_come_as_asked_and_the_last_is_the_terminal(make: Make) -> None:
    """A stream has exactly the tokens asked for, one a chunk; the last carries reason and usage."""
    seen = run_virtual(consume(make(), request(prompt=4, tokens=5)))
    assert [chunk.token_ids for chunk in seen.chunks] == [[0], [1], [2], [3], [4]]
    assert [chunk.finish_reason is not None for chunk in seen.chunks] == [False] * 4 + [True]
    assert seen.reason == "length"
    assert seen.counted == (4, 5)


@both
def test_token_ids_start_over(make: Make) -> None:
    """Token ids count up to the size of the vocabulary and start over."""
    seen = run_virtual(consume(make(vocab_size=3), request(tokens=7)))
    assert seen.token_ids == [0, 1, 2, 0, 1, 2, 0]


@both
def test_default_number_of_tokens(make: Make) -> None:
    """A request that does not say how many tokens it wants gets the engine's default."""
    seen = run_virtual(consume(make(default_max_tokens=6), request(tokens=None)))
    assert len(seen.token_ids) == 6


@both
@pytest.mark.rows("S5")
def test_zero_tokens_are_refused_at_once(make: Make) -> None:
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
def test_decode_refuses_what_no_prefill_made(make: Make, handoff: object, complaint: str) -> None:
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
@pytest.mark.rows("E4")
@virtual
async def test_stop_before_the_first_token(make: Make) -> None:
    """A request that was stopped before it began yields nothing but the `cancelled` terminal."""
    context = RequestContext()
    context.stop_generating()
    (chunk,) = await chunks_of(make(), request(), context)
    assert chunk.finish_reason is not None
    assert chunk.finish_reason.kind == "cancelled"
    assert chunk.token_ids == []


@both
@pytest.mark.rows("A4", "E4")
@virtual
async def test_decode_stops_only_after_the_first_token(make: Make) -> None:
    """In decode mode a stop waits for the first token, so that no KV transfer is orphaned."""
    context = RequestContext()
    context.stop_generating()
    handoff = {"engine": kind_of(make), "prompt_tokens": 4}
    seen = await consume(make(mode="decode"), request(handoff=handoff), context)
    assert seen.token_ids == [0]
    assert seen.reason == "cancelled"
    assert seen.counted == (4, 1)


@both
@pytest.mark.rows("E5")
@virtual
async def test_cleanup_twice_unstarted_and_restart(make: Make) -> None:
    """Cleanup is idempotent, safe before a start, and a start after it makes the engine usable."""
    engine = make()
    await engine.cleanup()
    await engine.cleanup()
    with pytest.raises(EngineShutdown):
        engine.generate(request(), RequestContext())
    await engine.start(0)
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
@pytest.mark.rows("E5")
@virtual
async def test_drain_waits_for_open_streams(make: Make) -> None:
    """Drain returns at once when nothing is open, else when the last stream has ended."""
    engine = make()
    await engine.drain()
    reading = asyncio.create_task(consume(engine, request(tokens=3)))
    await asyncio.sleep(0.005)
    assert not await engine.is_quiescent()
    await engine.drain()
    assert await engine.is_quiescent()
    assert len((await reading).chunks) == 3


@both
@pytest.mark.rows("S7")
@virtual
async def test_closed_and_cancelled_streams_leave_nothing(make: Make) -> None:
    """Closing a stream, or cancelling the task that reads it, gives its place back."""
    engine = make()
    stream = open_stream(engine, request(tokens=99))
    await anext(stream)
    await stream.aclose()
    reading = asyncio.create_task(consume(engine, request(tokens=99)))
    await asyncio.sleep(0.05)
    reading.cancel()
    await asyncio.wait([reading])
    await engine.drain()
    assert await engine.is_quiescent()
    assert len(await chunks_of(engine, request(tokens=3))) == 3


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


@both
def test_mode_must_be_known(make: Make) -> None:
    """An unknown role is refused with the valid ones."""
    with pytest.raises(InvalidArgument, match=r"mode.*agg.*prefill.*decode"):
        make(mode="sideways")
