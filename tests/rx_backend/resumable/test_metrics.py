"""Every bound of resumable streams has a metric."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from operators import PositionDropped, PositionUnknown
from rx_backend import LLMEngineOutput
from rx_backend.resumable import ResumableStreams, StreamNotFound, TooManyStreams
from tests.engines import virtual
from tests.engines.scripted import stop
from tests.meters import Meters
from tests.rx_backend.resumable.answers import (
    REQUEST,
    adapter_of,
    collect,
    leave_after,
    turns,
    until_stopped,
    words,
)

PREFIX = "rx_backend.resumable"


def values(meters: Meters, name: str, *labels: str) -> dict[tuple[object, ...], int]:
    """Return a metric's values that are not 0, by labels."""
    return {
        tuple(point.attributes[label] for label in labels): point.value
        for point in meters.points(f"{PREFIX}.{name}")
        if point.value
    }


def bounds_of(meters: Meters) -> dict[tuple[object, ...], int]:
    return values(meters, "limit_hits", "rx_backend.limit", "rx_backend.effect")


@virtual
async def test_held_streams_and_bytes_are_measured() -> None:
    """Streams by state, readers, bytes; of all holders of one provider together."""
    meters = Meters()
    adapter, _ = adapter_of(*words(4), until_stopped, LLMEngineOutput.cancelled())
    ended, _ = adapter_of(*words(3), stop())
    async with (
        ResumableStreams(adapter, meter_provider=meters.provider) as running,
        ResumableStreams(ended, meter_provider=meters.provider) as kept,
    ):
        reader = await running.start(REQUEST)
        other = await running.resume(reader.stream_id)
        await leave_after(await kept.start(REQUEST), 9)
        await turns()
        states = values(meters, "streams", "rx_backend.state")
        assert states == {("running",): 1, ("kept",): 1}
        assert values(meters, "readers") == {(): 2}
        held = running.stats().held_bytes + kept.stats().held_bytes
        assert values(meters, "held") == {(): held}
        await reader.aclose()
        await other.aclose()
        assert values(meters, "readers") == {}
    assert values(meters, "streams", "rx_backend.state") == {}
    assert values(meters, "held") == {}
    # Where all went well no bound is counted.
    assert bounds_of(meters) == {}


@virtual
async def test_a_stream_whose_reader_waits_for_the_engine_does_not_wait() -> None:
    """Even if it may never be ahead of its reader."""
    meters = Meters()
    adapter, _ = adapter_of(*words(2, 10.0), stop())
    async with ResumableStreams(adapter, meter_provider=meters.provider, max_ahead=0) as streams:
        reader = await streams.start(REQUEST)
        reading = asyncio.create_task(collect(reader))
        await asyncio.sleep(15)
        assert values(meters, "waiting", "rx_backend.bound") == {}
        await reading


@pytest.mark.parametrize("option", ["max_ahead", "max_bytes"])
@virtual
async def test_streams_that_wait_for_readers_are_measured(option: str) -> None:
    """By the option that makes them wait, as long as they do."""
    meters = Meters()
    options = {"max_ahead": 5} if option == "max_ahead" else {"max_bytes": 200}
    adapter, _ = adapter_of(*words(100), stop())
    async with ResumableStreams(adapter, meter_provider=meters.provider, **options) as streams:  # type: ignore[arg-type]
        reader = await streams.start(REQUEST)
        await turns(50)
        assert values(meters, "waiting", "rx_backend.limit") == {(option,): 1}
        await collect(reader)
        assert values(meters, "waiting", "rx_backend.limit") == {}
        await reader.aclose()


@virtual
async def test_stops_are_counted() -> None:
    """Those without a reader, those that had to be closed; an answer that has ended is no stop."""
    meters = Meters()
    ignores, _ = adapter_of(*words(1, 1.0), 1000.0)
    obeys, _ = adapter_of(*words(1, 1.0), until_stopped, 1.0, stop())
    ended, _ = adapter_of(*words(1, 1.0), stop())
    options: dict[str, Any] = {"linger_s": 1, "stop_grace_s": 2, "keep_s": 5}
    options["meter_provider"] = meters.provider
    async with (
        ResumableStreams(ignores, **options) as streams,
        ResumableStreams(obeys, **options) as obeying,
        ResumableStreams(ended, max_ahead=0, **options) as others,
    ):
        await asyncio.gather(
            leave_after(await streams.start(REQUEST), 1),
            leave_after(await obeying.start(REQUEST), 1),
            leave_after(await others.start(REQUEST), 2),
        )
        await asyncio.sleep(0.5)
        assert bounds_of(meters) == {}
        await asyncio.sleep(4)
        assert bounds_of(meters) == {("linger_s", "stopped"): 2, ("stop_grace_s", "closed"): 1}
        await asyncio.sleep(10)
        assert bounds_of(meters)["keep_s", "forgotten"] == 3


@virtual
async def test_drops_and_refusals_are_counted() -> None:
    """Items and readers for want of bytes, streams for want of room."""
    meters = Meters()
    adapter, _ = adapter_of(*words(100), stop())
    async with ResumableStreams(
        adapter, meter_provider=meters.provider, max_bytes=500, max_streams=1
    ) as streams:
        reader = await streams.start(REQUEST)
        slow = await streams.resume(reader.stream_id)
        with pytest.raises(TooManyStreams):
            await streams.start(REQUEST)
        await collect(reader)
        with pytest.raises(PositionDropped):
            await collect(slow)
        found = bounds_of(meters)
        assert found.pop(("max_bytes", "dropped")) > 3
        assert found == {("max_bytes", "reader_failed"): 1, ("max_streams", "refused"): 1}
        await reader.aclose()
        await (await streams.start(REQUEST)).aclose()
        assert bounds_of(meters)["max_streams", "evicted"] == 1


@virtual
async def test_resumes_are_counted_by_outcome() -> None:
    """Also those that were refused; the one and the other kind of not found are the same."""
    meters = Meters()
    adapter, _ = adapter_of(*words(100), stop())
    async with ResumableStreams(adapter, meter_provider=meters.provider, max_bytes=500) as streams:
        reader = await streams.start(REQUEST, owner="ann")
        stream_id = reader.stream_id
        await leave_after(reader, 99)
        await (await streams.resume(stream_id, 100, owner="ann")).aclose()
        for wrong, error in (
            ({"id": stream_id, "after": 500, "owner": "ann"}, PositionUnknown),
            ({"id": stream_id, "after": 1, "owner": "ann"}, PositionDropped),
            ({"id": stream_id, "owner": "eve"}, StreamNotFound),
            ({"id": "none", "owner": "ann"}, StreamNotFound),
        ):
            with pytest.raises(error):
                await streams.resume(**wrong)  # type: ignore[arg-type]
    assert values(meters, "resumes", "rx_backend.outcome") == {
        ("resumed",): 1,
        ("position_unknown",): 1,
        ("position_dropped",): 1,
        ("not_found",): 2,
    }
