"""`rx_backend.recording.ReplayEngine`: what was recorded comes again, when it came."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from rx_backend.context import RequestContext
from rx_backend.engines import SimulatedEngine
from rx_backend.errors import KINDS, EngineShutdown, InvalidArgument, StreamIncomplete, Unknown
from rx_backend.protocols import (
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    StopConditions,
    usage,
)
from rx_backend.recording import (
    Ending,
    Recording,
    ReplayEngine,
    TimedChunk,
    read_recordings,
    record,
)
from rx_backend.testing import run_conformance, run_virtual
from tests.rx_backend._engines import adapter_of, collect, virtual
from tests.rx_backend.engines.driving import Seen, consume, open_stream, request
from tests.rx_backend.recording._help import GOLDEN, recorded, token

CANCELLED = FinishReason.CANCELLED


def played(engine: ReplayEngine, **options: Any) -> Seen:
    return run_virtual(consume(engine, request(), **options))


def test_times_are_those_that_were_recorded() -> None:
    """In virtual time exactly, whatever their sum; the end comes when it came."""
    times_ms = [0.0, 0.1, 0.3, 33.333, 1e6 + 0.007]
    seen = played(ReplayEngine(recorded(*times_ms)))
    assert seen.times_ms == [time_ms / 1000 * 1000 for time_ms in times_ms]
    assert seen.token_ids == [1, 2, 3, 4, 5]
    assert seen.reason == "stop"


@pytest.mark.parametrize(
    ("speed", "times_ms"), [(2, [5.0, 15.0]), (0.5, [20.0, 60.0]), (math.inf, [0.0, 0.0])]
)
def test_speed_divides_the_times(speed: float, times_ms: list[float]) -> None:
    """Faster, slower, or without waiting."""
    seen = played(ReplayEngine(recorded(10.0, 30.0), speed))
    assert seen.times_ms == times_ms


@virtual
async def test_a_late_consumer_makes_nothing_later() -> None:
    """Times count from the start: what is overdue comes at once, the rest when it is due."""
    loop = asyncio.get_running_loop()
    stream = open_stream(ReplayEngine(recorded(10.0, 20.0, 30.0, 40.0)), request())
    await asyncio.sleep(0.025)
    times_ms = [loop.time() * 1000 async for _ in stream]
    assert times_ms == pytest.approx([25.0, 25.0, 30.0, 40.0])


@virtual
async def test_no_waiting_gives_way_to_others() -> None:
    """Without waiting, a stop from another task is still seen."""
    context = RequestContext()
    engine = ReplayEngine(recorded(*range(1, 1001)), math.inf)
    asyncio.get_running_loop().call_soon(context.stop_generating)
    seen = await consume(engine, request(), context)
    assert seen.reason == "cancelled"
    assert len(seen.chunks) < 5


@pytest.mark.rows("S6")
@pytest.mark.parametrize("kind", [*KINDS, "Newer"])
def test_an_error_is_raised_as_its_type(kind: str) -> None:
    """At its time, with its message; of a kind that is not known, as ``Unknown``."""
    engine = ReplayEngine(recorded(5.0, end=Ending(8.0, "error", kind, "boom")))

    async def play() -> tuple[Seen, float]:
        return await consume(engine, request()), asyncio.get_running_loop().time()

    seen, at_s = run_virtual(play())
    assert type(seen.error) is KINDS.get(kind, Unknown)
    assert isinstance(seen.error, Unknown) or str(seen.error) == f"Backend{kind}: boom"
    assert (seen.token_ids, at_s) == ([1], pytest.approx(0.008))


def test_a_drop_becomes_a_cancelled_terminal() -> None:
    """When the recorded consumer left, with the usage so far."""
    seen = played(ReplayEngine(recorded(5.0, 6.0, end=Ending(9.0, "dropped"))))
    assert seen.times_ms == pytest.approx([5.0, 6.0, 9.0])
    assert (seen.reason, seen.counted) == ("cancelled", (4, 2))


def test_a_recording_cut_short_is_incomplete(tmp_path: Path) -> None:
    """What there is comes; then the typed error for a stream that broke off."""
    (tmp_path / "cut.jsonl").write_bytes(GOLDEN.read_bytes()[:300])
    seen = played(ReplayEngine(tmp_path / "cut.jsonl"))
    assert seen.token_ids == [7]
    assert type(seen.error) is StreamIncomplete
    assert "after 2 chunks" in str(seen.error)


def test_an_end_without_a_terminal_is_kept() -> None:
    """An engine that just ended just ends again, and an early terminal is not followed by another."""
    seen = played(ReplayEngine(recorded(5.0, end=Ending(9.0, "completed"))))
    assert (seen.token_ids, seen.reason, seen.error) == ([1], None, None)


@pytest.mark.rows("E4")
@pytest.mark.parametrize("stop_ms", [0.0, 7.0, 15.0])
@virtual
async def test_a_stop_ends_at_once(stop_ms: float) -> None:
    """Before the first chunk or in a gap: a cancelled terminal in the same instant."""
    loop, context = asyncio.get_running_loop(), RequestContext()
    loop.call_at(stop_ms / 1000, context.stop_generating)
    end = Ending(20.0, "error", "Unknown", "never seen")
    seen = await consume(ReplayEngine(recorded(10.0, 10_000.0, end=end)), request(), context)
    made = int(stop_ms > 10)
    assert seen.last == LLMEngineOutput.cancelled().with_usage(usage(4, made))
    assert seen.times_ms[-1] == pytest.approx(stop_ms)


@virtual
async def test_after_a_terminal_a_stop_changes_nothing() -> None:
    """The stream ends without another terminal."""
    context = RequestContext()
    late = recorded(5.0)
    late.end = Ending(50.0, "completed")
    seen = await consume(ReplayEngine(late), request(), context, stop_after=1)
    assert seen.reason == "stop"
    assert len(seen.chunks) == 1


@virtual
async def test_recordings_are_chosen_by_id_or_in_turn() -> None:
    """The one of the request's own id; else the next, over and over."""

    def one(number: int, request_id: str | None) -> Recording:
        end = Ending(0.0, "completed")
        chunks = [TimedChunk(0.0, LLMEngineOutput.stop().with_tokens([number]))]
        return Recording(request_id=request_id, chunks=chunks, end=end)

    engine = ReplayEngine([one(0, None), one(1, "a"), one(2, "b"), one(3, "b")])

    async def ask(*request_ids: str) -> list[int]:
        contexts = [RequestContext(request_id) for request_id in request_ids]
        return [(await consume(engine, request(), context)).token_ids[0] for context in contexts]

    assert await ask("b", "b", "b", "a", "a") == [2, 3, 2, 1, 1]
    assert await ask("x", "y", "a", "z", "b", "x", "x") == [0, 1, 1, 2, 3, 3, 0]


@virtual
async def test_each_stream_has_chunks_of_its_own() -> None:
    """Changing what came changes nothing for others."""
    last = LLMEngineOutput.stop().with_usage(usage(1, 1))
    last.engine_data = {"a": [1]}
    recording = recorded(1.0, end=Ending(2.0, "completed"))
    recording.chunks.append(TimedChunk(2.0, last))
    engine = ReplayEngine(recording)
    for _ in range(2):
        first, second = (await consume(engine, request())).chunks
        assert first == token(1)
        assert second == last
        assert second.engine_data == {"a": [1]}
        first.token_ids.append(7)
        second.engine_data["a"].append(7)


@pytest.mark.rows("E5")
@virtual
async def test_cleanup_ends_what_is_left() -> None:
    """Open streams fail at their next chunk, new ones at once; a start begins anew."""
    engine = ReplayEngine(recorded(10.0, 20.0))
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
async def test_leaving_a_stream_leaves_nothing() -> None:
    """A stream closed in a gap holds no timer and no listener."""
    context = RequestContext()
    stream = open_stream(ReplayEngine(recorded(10.0, 1e9)), request(), context)
    await anext(stream)
    pull = asyncio.create_task(cast("AsyncGenerator[Any]", stream).asend(None))
    await asyncio.sleep(0.001)
    pull.cancel()
    await asyncio.wait([pull])
    await stream.aclose()
    context.stop_generating()
    assert asyncio.get_running_loop().time() < 1


def test_the_model_is_the_recorded_one() -> None:
    """Or the one that is given."""
    recording = recorded(1.0, model="llama")
    for engine, model in (
        (ReplayEngine([recorded(1.0), recording]), "llama"),
        (ReplayEngine(recorded(1.0)), "replay"),
        (ReplayEngine(recording, model="mine"), "mine"),
    ):
        assert run_virtual(engine.start(0)).model == model


@pytest.mark.parametrize(
    ("recordings", "options", "message"),
    [
        ([], {}, "recordings: expected at least one"),
        (recorded(1.0), {"speed": 0}, "speed must be a number > 0, got 0"),
        (recorded(1.0), {"speed": math.nan}, "speed must be"),
        (recorded(1.0), {"model": ""}, "model must be"),
    ],
)
def test_bad_options_are_named(
    recordings: Iterable[Recording], options: dict[str, Any], message: str
) -> None:
    """When the engine is made."""
    with pytest.raises(InvalidArgument, match=message):
        ReplayEngine(recordings, **options)


@pytest.mark.rows("E1", "E2", "E3", "E4", "E5")
@pytest.mark.parametrize("speed", [1.0, 7.5, math.inf])
def test_it_keeps_to_the_contract(tmp_path: Path, speed: float) -> None:
    """A stream of a sound engine, recorded and replayed, passes the conformance kit."""
    asked = PreprocessedRequest(token_ids=[1, 2], stop_conditions=StopConditions(max_tokens=20))

    async def make() -> None:
        engine = SimulatedEngine()
        adapter = adapter_of(engine).with_operators(record(tmp_path))
        await collect(await adapter.generate(asked))
        await engine.cleanup()

    run_virtual(make())
    (recording,) = read_recordings(tmp_path)
    assert len(recording.chunks) == 20
    for played in (recording, recorded(0.0)):
        run_conformance(functools.partial(ReplayEngine, played, speed)).raise_if_failed()
