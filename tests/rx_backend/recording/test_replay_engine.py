"""`rx_backend.recording.ReplayEngine`: what was recorded comes again, when it came."""

from __future__ import annotations

import asyncio
import functools
import math
import tempfile
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.errors import EngineShutdown, InvalidArgument, StreamIncomplete, Unknown
from rx_backend.protocols import (
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    usage,
)
from rx_backend.recording import Ending, Recording, ReplayEngine, TimedChunk, read_recordings
from rx_backend.testing import run_conformance, run_virtual
from tests.engines import ScriptedEngine, virtual
from tests.rx_backend.engines.driving import Seen, consume, open_stream, request
from tests.rx_backend.recording._help import GOLDEN, recorded, recording_stream, recordings, token


def played(recording: Recording, speed: float = 1.0) -> Seen:
    return run_virtual(consume(ReplayEngine([recording], speed), request()))


@pytest.mark.parametrize("speed", [1, 2, 0.5, math.inf])
def test_speed_divides_the_times(speed: float) -> None:
    """Faster, slower, or without waiting; in virtual time exactly, whatever the sum of the gaps."""
    recorded_ms = [0.0, 0.1, 0.3, 33.333, 1e6 + 0.007]
    seen = played(recorded(*recorded_ms), speed)
    assert seen.times_ms == [time_ms / 1000 / speed * 1000 for time_ms in recorded_ms]
    assert (seen.token_ids, seen.reason) == ([1, 2, 3, 4, 5], "stop")


@virtual
async def test_a_late_consumer_does_not_shift_the_schedule() -> None:
    """Times count from the start: what is overdue comes at once, the rest when it is due."""
    loop = asyncio.get_running_loop()
    stream = open_stream(ReplayEngine([recorded(10.0, 20.0, 30.0, 40.0)]), request())
    await asyncio.sleep(0.025)
    times_ms = [loop.time() * 1000 async for _ in stream]
    assert times_ms == pytest.approx([25.0, 25.0, 30.0, 40.0])


@virtual
async def test_a_replay_without_waits_yields_to_other_tasks() -> None:
    """Without waiting, a stop from another task is still seen."""
    context = RequestContext()
    engine = ReplayEngine([recorded(*range(1, 1001))], math.inf)
    asyncio.get_running_loop().call_soon(context.stop_generating)
    seen = await consume(engine, request(), context)
    assert seen.reason == "cancelled"
    assert len(seen.chunks) < 5


# Ends.


def test_how_a_stream_ends(tmp_path: Path) -> None:
    """Dropped, cut short before or after the terminal, without one, and with an unknown error."""
    seen = played(recorded(5.0, 6.0, end=Ending(9.0, "dropped")))
    assert seen.times_ms == pytest.approx([5.0, 6.0, 9.0])
    assert (seen.reason, seen.counted) == ("cancelled", (4, 2))
    seen = played(replace(recorded(5.0, 6.0), end=None))
    assert (seen.token_ids, seen.reason, seen.error) == ([1, 2], "stop", None)
    (tmp_path / "cut.jsonl").write_bytes(GOLDEN.read_bytes()[:300])
    seen = run_virtual(consume(ReplayEngine(tmp_path / "cut.jsonl"), request()))
    assert (seen.token_ids, type(seen.error)) == ([7], StreamIncomplete)
    assert "after 2 chunks" in str(seen.error)
    seen = played(recorded(5.0, end=Ending(9.0, "completed")))
    assert (seen.token_ids, seen.reason, seen.error) == ([1], None, None)
    seen = played(recorded(5.0, end=Ending(8.0, "error", "Newer", "boom")))
    assert (seen.token_ids, type(seen.error)) == ([1], Unknown)


@pytest.mark.rows("E4")
@pytest.mark.parametrize("stop_ms", [0.0, 7.0, 15.0])
@virtual
async def test_a_stop_ends_at_once(stop_ms: float) -> None:
    """Before the first chunk or in a gap: a cancelled terminal in the same instant."""
    loop, context = asyncio.get_running_loop(), RequestContext()
    loop.call_at(stop_ms / 1000, context.stop_generating)
    end = Ending(20.0, "error", "Unknown", "never seen")
    seen = await consume(ReplayEngine([recorded(10.0, 10_000.0, end=end)]), request(), context)
    made = int(stop_ms > 10)
    assert seen.last == LLMEngineOutput.cancelled().with_usage(usage(4, made))
    assert seen.times_ms[-1] == pytest.approx(stop_ms)


def two_answers(*ends: int, end: Ending) -> Recording:
    """Return a recording whose answers 0 and 1 take turns; those in *ends* have their terminal."""
    chunks = [LLMEngineOutput([1], index=0), LLMEngineOutput([2], index=1)]
    chunks += [replace(LLMEngineOutput.stop(), index=answer) for answer in ends]
    return Recording(chunks=[TimedChunk(5.0, chunk) for chunk in chunks], end=end)


def asking_for_two() -> PreprocessedRequest:
    return replace(request(), sampling_options=SamplingOptions(n=2))


def terminals(seen: Seen) -> list[tuple[int | None, str]]:
    return [(chunk.index, chunk.finish_reason.kind) for chunk in seen.chunks if chunk.finish_reason]


@pytest.mark.rows("E3", "E4")
@pytest.mark.parametrize("ends", [(), (0,), (1,), (0, 1)])
@virtual
async def test_each_open_answer_is_cancelled(ends: tuple[int, ...]) -> None:
    """By a stop, and by a recorded drop, with its index and tokens; the others keep their terminals."""
    stops = [(answer, "stop") for answer in ends]
    cancelled = [(answer, "cancelled") for answer in (0, 1) if answer not in ends]
    dropped = ReplayEngine([two_answers(*ends, end=Ending(9.0, "dropped"))])
    seen = await consume(dropped, asking_for_two())
    assert terminals(seen) == [*stops, *cancelled]
    late = ReplayEngine([two_answers(*ends, end=Ending(1e6, "completed"))])
    seen = await consume(late, asking_for_two(), stop_after=2 + len(ends))
    assert terminals(seen) == [*stops, *cancelled]
    if cancelled:
        assert seen.last.completion_usage == usage(4, 1)


@pytest.mark.rows("E3", "E4")
@virtual
async def test_an_answer_that_has_not_started_is_cancelled_too() -> None:
    """A client that asked for two answers gets two terminals."""
    context = RequestContext()
    context.stop_generating()
    engine = ReplayEngine([two_answers(end=Ending(9.0, "completed"))])
    seen = await consume(engine, asking_for_two(), context)
    assert terminals(seen) == [(0, "cancelled"), (1, "cancelled")]


@virtual
async def test_after_a_terminal_a_stop_changes_nothing() -> None:
    """The stream ends without another terminal."""
    late = recorded(5.0)
    late.end = Ending(50.0, "completed")
    seen = await consume(ReplayEngine([late]), request(), RequestContext(), stop_after=1)
    assert [chunk.finish_reason for chunk in seen.chunks] == [FinishReason.STOP]


@pytest.mark.rows("E5")
@virtual
async def test_cleanup_ends_open_streams() -> None:
    """Open streams fail at their next chunk, new ones at once; a start begins anew."""
    engine = ReplayEngine([recorded(10.0, 20.0)])
    stream = open_stream(engine, request())
    await anext(stream)
    await engine.cleanup()
    with pytest.raises(EngineShutdown):
        await anext(stream)
    with pytest.raises(EngineShutdown):
        open_stream(engine, request())
    await engine.start(0)
    assert (await consume(engine, request())).reason == "stop"


@virtual
async def test_an_abandoned_stream_leaks_nothing() -> None:
    """A stream closed in a gap holds no timer and no listener."""
    context = RequestContext()
    stream = open_stream(ReplayEngine([recorded(10.0, 1e9)]), request(), context)
    await anext(stream)
    pull = asyncio.create_task(cast("AsyncGenerator[Any]", stream).asend(None))
    await asyncio.sleep(0.001)
    pull.cancel()
    await asyncio.wait([pull])
    await stream.aclose()
    context.stop_generating()
    assert asyncio.get_running_loop().time() < 1


# Which recording.


@virtual
async def test_recordings_are_chosen_by_id_or_in_turn() -> None:
    """Those of the request's own id in turn; else the next of all, over and over."""

    def one(number: int, request_id: str | None) -> Recording:
        chunks = [TimedChunk(0.0, LLMEngineOutput.stop().with_tokens([number]))]
        return Recording(request_id=request_id, chunks=chunks, end=Ending(0.0, "completed"))

    engine = ReplayEngine([one(0, None), one(1, "a"), one(2, "b"), one(3, "b")])
    for request_ids, expected in (("bbbaa", [2, 3, 2, 1, 1]), ("xyazbxx", [0, 1, 1, 2, 3, 3, 0])):
        seen = [await consume(engine, request(), RequestContext(name)) for name in request_ids]
        assert [one.token_ids[0] for one in seen] == expected


@virtual
async def test_each_stream_has_chunks_of_its_own() -> None:
    """Changing what came changes nothing for others."""
    last = LLMEngineOutput.stop().with_usage(usage(1, 1))
    last.engine_data = {"a": [1]}
    recording = recorded(1.0, end=Ending(2.0, "completed"))
    recording.chunks.append(TimedChunk(2.0, last))
    engine = ReplayEngine([recording])
    for _ in range(2):
        first, second = (await consume(engine, request())).chunks
        assert (first, second) == (token(1), last)
        assert second.engine_data == {"a": [1]}
        first.token_ids.append(7)
        second.engine_data["a"].append(7)


@pytest.mark.parametrize(
    ("models", "options", "announced"),
    [([None, "llama"], {}, "llama"), ([None], {}, "replay"), (["llama"], {"model": "a"}, "a")],
)
def test_the_model_is_the_recorded_one(
    models: list[str | None], options: dict[str, Any], announced: str
) -> None:
    """Or the one that is given."""
    engine = ReplayEngine([recorded(1.0, model=model) for model in models], **options)
    assert run_virtual(engine.start(0)).model == announced


@pytest.mark.parametrize(
    ("recordings", "options", "message"),
    [
        ([], {}, "recordings: expected at least one"),
        (recorded(1.0), {}, "recordings: expected a path, or a list of recordings: 'Re"),
        (["a.jsonl"], {}, "recordings: expected a path, or a list of recordings, got a str"),
        ([recorded(1.0)], {"speed": 0}, "speed: expected a number, more than 0, got 0"),
        ([recorded(1.0)], {"speed": math.nan}, "speed: expected"),
        ([recorded(1.0)], {"model": ""}, "model: expected"),
    ],
)
def test_bad_options_are_named(recordings: Any, options: dict[str, Any], message: str) -> None:
    """When the engine is made."""
    with pytest.raises(InvalidArgument, match=message):
        ReplayEngine(recordings, **options)


@pytest.mark.rows("E1", "E2", "E3", "E4", "E5")
@pytest.mark.parametrize("speed", [1.0, 7.5, math.inf])
def test_it_keeps_the_contract(speed: float) -> None:
    """A recorded stream that was sound passes the conformance kit."""
    for recording in (recorded(*range(15, 315, 15)), recorded(0.0)):
        run_conformance(functools.partial(ReplayEngine, [recording], speed)).raise_if_failed()


# Record, replay, record: the same recording.


def original(plan: Recording) -> LLMEngine:
    """Return an engine that waits from chunk to chunk, as engines do."""
    steps: list[Any] = []
    before_ms = 0.0
    for timed in plan.chunks:
        steps += [(timed.time_ms - before_ms) / 1000] * (timed.time_ms > before_ms) + [timed.chunk]
        before_ms = timed.time_ms
    assert plan.end is not None
    steps.append((plan.end.time_ms - before_ms) / 1000 + (plan.end.outcome == "dropped"))
    if plan.end.error is not None:
        steps.append(plan.end.error)
    return ScriptedEngine(*steps)


async def take_all(engine: LLMEngine, plan: Recording, path: Path, *, in_front: bool) -> list[Any]:
    """Record a stream whose consumer leaves as planned; return its items and their times."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    stream = await recording_stream(engine, path, plan.request_id or "r1", in_front=in_front)
    assert plan.end is not None
    leaves_at = began + plan.end.time_ms / 1000 if plan.end.outcome == "dropped" else None
    seen: list[Any] = []
    with suppress(TimeoutError):
        async with asyncio.timeout_at(leaves_at):
            async for item in stream:
                error = item.error and (item.error.kind, item.error.message)
                seen.append((round((loop.time() - began) * 1e6), item.data, error))
    return seen


@pytest.mark.rows("S1", "S6", "S7")
@given(plan=recordings(), in_front=st.booleans(), began_s=st.sampled_from([0.0, 12345.678901]))
def test_a_replayed_stream_records_the_same(
    plan: Recording, in_front: bool, began_s: float
) -> None:
    """The same chunks at the same times, and the same end: for the consumer, and in the file."""

    async def run(folder: str) -> None:
        first, second = Path(folder, "first"), Path(folder, "second")
        seen = await take_all(original(plan), plan, first, in_front=in_front)
        await asyncio.sleep(began_s)
        assert await take_all(ReplayEngine(first), plan, second, in_front=in_front) == seen
        (recording,) = read_recordings(first)
        assert read_recordings(second) == [recording]
        assert (recording.chunks, recording.end) == (plan.chunks, plan.end)

    with tempfile.TemporaryDirectory() as folder:
        run_virtual(run(folder))
