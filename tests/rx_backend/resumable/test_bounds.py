"""What bounds a resumable stream: time without readers, time after the end, items, bytes, streams."""

from __future__ import annotations

import asyncio

import pytest

from operators import PositionDropped
from rx_backend import Cancelled, EngineAdapter, LLMEngineOutput, Unknown
from rx_backend.resumable import ResumableStreams, StreamNotFound, TooManyStreams
from tests.engines import virtual
from tests.engines.scripted import ScriptedEngine, now, stop
from tests.rx_backend.resumable.answers import (
    REQUEST,
    adapter_of,
    collect,
    leave_after,
    text_of,
    told,
    turns,
    until_stopped,
    words,
)
from tests.spans import Spans

OBEYS = (*words(2, 1.0), until_stopped, LLMEngineOutput.cancelled())


# ------------------------------------------------------------------ linger_s


@pytest.mark.rows("A2", "A3")
@virtual
async def test_an_answer_without_readers_is_stopped_after_a_while(spans: Spans) -> None:
    """
    One abort, at the moment the option says.

    The engine's terminal is kept for clients that come back.
    """
    adapter, engine = adapter_of(*OBEYS, tracer=spans.tracer)
    async with ResumableStreams(adapter, linger_s=5) as streams:
        reader = await streams.start(REQUEST)
        await leave_after(reader, 1)
        assert now() == 1.0
        await asyncio.sleep(4.5)
        assert engine.aborts == []
        await asyncio.sleep(1)
        assert engine.aborts == [6.0]
        assert not reader.context.is_killed
        attributes = spans.one().attributes or {}
        assert (attributes["finish_reason"], attributes["cancelled"]) == ("Cancelled", True)
        async with await streams.resume(reader.stream_id, 1) as back:
            *items, last = await collect(back)
        assert told(items) == [1]
        assert last.data == LLMEngineOutput.cancelled()
        assert engine.aborts == [6.0]


@virtual
async def test_the_engine_runs_while_nobody_reads() -> None:
    """Up to its bound, so that the rest is there when the client comes back."""
    adapter, engine = adapter_of(*words(100, 1.0), stop())
    async with ResumableStreams(adapter, max_ahead=10) as streams:
        reader = await streams.start(REQUEST)
        await leave_after(reader, 3)
        await asyncio.sleep(29)
        # Three were read, ten are held ahead.
        assert engine.pulls == 13
        async with await streams.resume(reader.stream_id, 3) as back:
            assert told([await anext(back)]) == list(range(3, 13))


@virtual
async def test_an_engine_that_ignores_the_stop_is_closed(spans: Spans) -> None:
    """After the grace, as a drop; clients that come back get what there was, and a typed error."""
    adapter, engine = adapter_of(*words(3, 1.0), 1000.0, stop(), tracer=spans.tracer)
    async with ResumableStreams(adapter, linger_s=5, stop_grace_s=7) as streams:
        reader = await streams.start(REQUEST)
        await leave_after(reader, 1)
        await asyncio.sleep(11.5)
        assert (engine.aborts, engine.closes) == ([6.0], [])
        await asyncio.sleep(1)
        assert (engine.aborts, engine.closes) == ([6.0], [13.0])
        assert (spans.one().attributes or {})["finish_reason"] == "Dropped"
        for position in (0, 3):
            async with await streams.resume(reader.stream_id, position) as back:
                *items, last = await collect(back)
            assert told(items) == list(range(position, 3))
            assert isinstance(last.error, Cancelled)
            assert "did not end within 7 s" in last.error.message


@virtual
async def test_a_continuing_engine_stays_within_max_bytes() -> None:
    """
    Past the bound on how far ahead it may be.

    A client that comes back too late gets an error and no gap.
    """
    adapter, engine = adapter_of(*words(300), stop())
    async with ResumableStreams(
        adapter, when_abandoned="continue", max_ahead=2, max_bytes=2_000
    ) as streams:
        reader = await streams.start(REQUEST)
        await leave_after(reader, 1)
        await asyncio.sleep(1)
        assert (engine.aborts, engine.closed) == ([], 1)
        with pytest.raises(PositionDropped) as error:
            await streams.resume(reader.stream_id, 1)
        first = error.value.first
        assert 200 < first < 300
        async with await streams.resume(reader.stream_id, first) as back:
            *items, last = await collect(back)
        assert told(items) == list(range(first, 300))
        assert last.data == stop()


# ------------------------------------------------------------------ max_ahead, max_bytes


@virtual
async def test_the_engine_waits_when_unread_items_fill_max_bytes() -> None:
    """What the fastest reader has not read is never dropped for it."""
    adapter, engine = adapter_of(*words(300), stop())
    async with ResumableStreams(adapter, max_bytes=1_000) as streams:
        reader = await streams.start(REQUEST)
        await turns(100)
        assert 25 <= engine.pulls <= 35
        assert 1_000 <= streams.stats().held_bytes < 1_100
        assert streams.stats().waiting == {"max_bytes": 1}
        items = await collect(reader)
        assert told(items) == list(range(300))
        assert text_of(items) == "".join(f"{n} " for n in range(300))


@virtual
async def test_a_reader_that_falls_behind_fails() -> None:
    """It gets an error and no gap; the fast one is not held up."""
    adapter, _ = adapter_of(*words(300, 0.1), stop())
    async with ResumableStreams(adapter, max_bytes=1_000) as streams:
        fast = await streams.start(REQUEST)
        slow = await streams.resume(fast.stream_id)
        first = await anext(slow)
        assert told(await collect(fast)) == list(range(300))
        with pytest.raises(PositionDropped) as error:
            await anext(slow)
        assert error.value.position == 1
        assert told([first]) == [0]
        with pytest.raises(PositionDropped):
            await streams.resume(fast.stream_id, 1)
        assert streams.stats().held_bytes < 1_100


# ------------------------------------------------------------------ keep_s, max_streams


@virtual
async def test_a_first_reader_that_falls_behind_does_not_end_the_stream() -> None:
    """It gets the error when peeking too, and the others read on."""
    adapter, engine = adapter_of(*words(100, 1.0), stop())
    async with ResumableStreams(adapter, max_bytes=500) as streams:
        first = await streams.start(REQUEST)
        other = await streams.resume(first.stream_id)
        begun = await collect(other, 50)
        with pytest.raises(Unknown, match="position 0 was dropped"):
            await first.peek_first()
        assert told(begun + await collect(other)) == list(range(100))
        assert engine.aborts == []


@virtual
async def test_an_answer_that_has_ended_is_kept_for_a_while() -> None:
    """And not found after that."""
    adapter, _ = adapter_of(*words(3, 1.0), stop())
    async with ResumableStreams(adapter, keep_s=60) as streams:
        reader = await streams.start(REQUEST)
        await leave_after(reader, 100)
        await asyncio.sleep(59.5)
        async with await streams.resume(reader.stream_id) as back:
            assert told(await collect(back)) == [0, 1, 2]
        await asyncio.sleep(1)
        assert len(streams) == 0
        with pytest.raises(StreamNotFound):
            await streams.resume(reader.stream_id)


@pytest.mark.parametrize("keep_s", [0, 60])
@virtual
async def test_a_stream_with_readers_is_not_forgotten(keep_s: float) -> None:
    """A slow reader comes to the end, and may come back while it reads."""
    adapter, _ = adapter_of(*words(3), stop())
    async with ResumableStreams(adapter, keep_s=keep_s) as streams:
        reader = await streams.start(REQUEST)
        await asyncio.sleep(200.5)
        await (await streams.resume(reader.stream_id)).aclose()
        assert told(await collect(reader)) == [0, 1, 2]
        await reader.aclose()
        await asyncio.sleep(60)
        assert len(streams) == 0


@virtual
async def test_the_end_counts_without_a_pull() -> None:
    """A reader that takes the terminal and leaves has ended the answer (row P6a)."""
    adapter, engine = adapter_of(*words(1, 1.0), stop())
    async with ResumableStreams(adapter, max_ahead=0, keep_s=3, linger_s=2) as streams:
        reader = await streams.start(REQUEST)
        await leave_after(reader, 2)
        assert streams.stats()[:2] == (0, 1)
        await asyncio.sleep(4)
        assert (len(streams), engine.aborts) == (0, [])


@virtual
async def test_the_earliest_ended_stream_is_evicted() -> None:
    """One more stream takes the place of the one that ended first, unless it is being read."""
    adapter, _ = adapter_of(*words(1), stop())
    async with ResumableStreams(adapter, max_streams=3, max_ahead=0) as streams:
        readers = [await streams.start(REQUEST) for _ in range(3)]
        for reader in (readers[1], readers[0]):
            await leave_after(reader, 100)
            await asyncio.sleep(1)
        again = await streams.resume(readers[1].stream_id)
        await leave_after(await streams.start(REQUEST), 100)
        with pytest.raises(StreamNotFound):
            await streams.resume(readers[0].stream_id)
        assert told(await collect(again)) == [0]
        assert told(await collect(await streams.resume(readers[1].stream_id))) == [0]
        assert len(streams) == 3
        await again.aclose()
        await readers[2].aclose()


@virtual
async def test_there_are_never_more_streams_than_allowed() -> None:
    """When none has ended a request is refused before the engine is asked; set-ups count."""
    engine = ScriptedEngine(*words(1), 100.0, stop(), setup=[1.0])
    async with ResumableStreams(EngineAdapter(engine), max_streams=2) as streams:
        results = await asyncio.gather(
            *(streams.start(REQUEST) for _ in range(4)), return_exceptions=True
        )
        refused = [each for each in results if isinstance(each, TooManyStreams)]
        assert (len(refused), engine.calls, len(streams)) == (2, 2, 2)
        assert "all 2 streams are running or being read" in refused[0].message
        assert refused[0].kind == "CannotConnect"
