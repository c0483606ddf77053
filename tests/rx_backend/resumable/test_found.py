"""Streams that were begun elsewhere: found by id, read to a position, left to others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from operators import PositionUnknown
from rx_backend import EngineShutdown, LLMEngineOutput, RequestContext, StreamIncomplete
from rx_backend.protocols import Annotated, PreprocessedRequest
from rx_backend.resumable import (
    OpenedStream,
    ResumableStreams,
    StreamNotFound,
    StreamSource,
    TooManyStreams,
    WhenAbandoned,
)
from tests.engines import virtual
from tests.meters import Meters
from tests.rx_backend.resumable.answers import REQUEST, Item, collect, leave_after, told, turns


class Elsewhere(OpenedStream):
    """A stream of another process, of which this one has a copy."""

    def __init__(self, source: Recorded, id: str, owner: str | None) -> None:
        super().__init__(
            source.items(), context=RequestContext(id), owner=owner, created=7.0, started_here=False
        )
        self._source = source
        source.opened += 1
        self._is_closed = False

    async def head(self) -> int:
        await asyncio.sleep(self._source.head_s)
        return len(self._source.answer)

    def stop(self) -> None:
        self._source.stops += 1

    async def aclose(self) -> None:
        await super().aclose()
        await asyncio.sleep(self._source.close_s)
        if not self._is_closed:
            self._is_closed = True
            self._source.opened -= 1


class Recorded:
    """A source with one answer, that of the stream ``known`` of ``ann``."""

    def __init__(
        self, count: int, *, has_ended: bool, head_s: float = 0, close_s: float = 0
    ) -> None:
        self.answer = [Annotated(LLMEngineOutput([n])) for n in range(count)]
        self.has_ended = has_ended
        self.head_s, self.close_s = head_s, close_s
        self.opened = self.stops = self.finds = 0

    async def start(
        self, id: str, request: PreprocessedRequest, context: RequestContext, owner: str | None
    ) -> OpenedStream:
        return Elsewhere(self, id, owner)

    async def find(self, id: str) -> OpenedStream | None:
        self.finds += 1
        await asyncio.sleep(1)
        return Elsewhere(self, id, "ann") if id == "known" else None

    async def items(self) -> AsyncIterator[Item]:
        for item in self.answer:
            await asyncio.sleep(0.01)
            yield item
        if not self.has_ended:
            await asyncio.sleep(1_000)
        yield Annotated(LLMEngineOutput.stop())


def test_a_source_needs_two_methods() -> None:
    """Whatever has them is one."""
    assert isinstance(Recorded(0, has_ended=True), StreamSource)


@pytest.mark.parametrize("max_ahead", [0, 256])
@virtual
async def test_a_found_stream_is_read_from_any_position(max_ahead: int) -> None:
    """What came before is pulled first; later readers find it here."""
    source = Recorded(50, has_ended=True)
    async with ResumableStreams(source, max_ahead=max_ahead) as streams:
        for position in (0, 20, 49, 50, 3):
            async with await streams.resume("known", position, owner="ann") as reader:
                *items, last = await collect(reader)
            assert told(items) == list(range(position, 50))
            assert last.data == LLMEngineOutput.stop()
            assert (last.id, reader.created) == ("known:51", 7.0)
        assert (source.finds, source.opened) == (1, 0)


@pytest.mark.parametrize("when_abandoned", ["stop", "continue"])
@pytest.mark.parametrize("linger_s", [0, 5])
@virtual
async def test_a_found_stream_without_readers_is_released(
    linger_s: float, when_abandoned: WhenAbandoned
) -> None:
    """
    Without readers here it is released, not stopped, and found again when one comes.

    So it is when all is closed.
    """
    source, meters = Recorded(50, has_ended=False), Meters()
    async with ResumableStreams(
        source, linger_s=linger_s, when_abandoned=when_abandoned, meter_provider=meters.provider
    ) as streams:
        async with await streams.resume("known", 30, owner="ann") as reader:
            assert told(await collect(reader, 1))[0] == 30
            assert source.opened == 1
        await asyncio.sleep(6)
        assert (len(streams), source.opened, source.stops) == (0, 0, 0)
        reader = await streams.resume("known", 40, owner="ann")
        assert told(await collect(reader, 1))[0] == 40
        await reader.aclose()
        await asyncio.sleep(100)
        reader = await streams.resume("known", 45, owner="ann")
    assert (source.finds, source.opened, source.stops) == (3, 0, 0)
    # Nothing was kept for want of time, and then forgotten.
    assert meters.points("rx_backend.resumable.limit_hits") == []


@virtual
async def test_a_stream_that_is_being_released_is_found_again() -> None:
    """However long its release takes, a client that comes meanwhile gets the rest."""
    source = Recorded(50, has_ended=False, close_s=5)
    async with ResumableStreams(source, linger_s=0) as streams:
        await leave_after(await streams.resume("known", 30, owner="ann"), 1)
        await turns()
        async with await streams.resume("known", 40, owner="ann") as reader:
            assert told(await collect(reader, 1))[0] == 40
            assert source.opened == 2
            await asyncio.sleep(10)
            assert (len(streams), source.opened) == (1, 1)


@virtual
async def test_a_stream_is_not_left_while_a_position_is_looked_up() -> None:
    """The time without readers is over before the source knows how far the answer is."""
    source = Recorded(50, has_ended=False, head_s=3)
    async with ResumableStreams(source, max_ahead=0, linger_s=2) as streams:
        await leave_after(await streams.resume("known", owner="ann"), 1)
        await asyncio.sleep(1)
        async with await streams.resume("known", 50, owner="ann") as reader:
            assert (reader.position, source.finds) == (50, 1)


@pytest.mark.rows("S9")
@virtual
async def test_items_that_their_source_closes_are_no_whole_answer() -> None:
    """Their reader gets an error item, and then the end."""
    opened: list[OpenedStream] = []

    class Closing(Recorded):
        async def find(self, id: str) -> OpenedStream | None:
            opened.append(Elsewhere(self, id, "ann"))
            return opened[-1]

    async with ResumableStreams(Closing(2, has_ended=False)) as streams:
        reader = await streams.resume("known", owner="ann")
        reading = asyncio.create_task(collect(reader))
        await asyncio.sleep(1)
        await opened[0].items.aclose()
        *items, last = await reading
    assert told(items) == [0, 1]
    assert isinstance(last.error, StreamIncomplete)


@virtual
async def test_what_can_not_be_read_is_released() -> None:
    """A position of the future, somebody else's stream, a stream for which there is no room."""
    source = Recorded(5, has_ended=False)
    async with ResumableStreams(source, max_streams=1) as streams:
        with pytest.raises(PositionUnknown):
            await streams.resume("known", 6, owner="ann")
        assert (len(streams), source.opened) == (1, 1)
        await asyncio.sleep(31)
        assert (len(streams), source.opened) == (0, 0)
        with pytest.raises(StreamNotFound):
            await streams.resume("known", owner="eve")
        with pytest.raises(StreamNotFound):
            await streams.resume("unknown", owner="ann")
        assert (len(streams), source.opened) == (0, 0)
        reader = await streams.start(REQUEST)
        with pytest.raises(TooManyStreams):
            await streams.resume("known", owner="ann")
        assert (len(streams), source.opened) == (1, 1)
        await reader.aclose()


@virtual
async def test_concurrent_lookups_of_one_stream_share_it() -> None:
    """It is held once, and what was found twice is closed once."""
    source = Recorded(20, has_ended=True)
    async with ResumableStreams(source) as streams:
        readers = await asyncio.gather(
            streams.resume("known", 4, owner="ann"),
            streams.resume("known", 9, owner="ann"),
            streams.resume("known", owner="ann"),
        )
        assert (source.finds, source.opened, len(streams)) == (3, 1, 1)
        for reader, first in zip(readers, (4, 9, 0), strict=True):
            assert told(await leave_after(reader, 100)) == list(range(first, 20))
        assert source.opened == 0


@virtual
async def test_a_cancelled_lookup_leaks_nothing() -> None:
    """Cancelled in the search, and while the items before its position are pulled."""
    source = Recorded(50, has_ended=False)
    async with ResumableStreams(source, linger_s=0) as streams:
        for seconds in (0.5, 1.2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await streams.resume("known", 50, owner="ann")
            await turns()
            assert (len(streams), source.opened) == (0, 0)


@virtual
async def test_a_stream_elsewhere_is_stopped_there() -> None:
    """By its owner, without being held here."""
    source = Recorded(5, has_ended=False)
    async with ResumableStreams(source) as streams:
        with pytest.raises(StreamNotFound):
            await streams.stop("known", owner="eve")
        with pytest.raises(StreamNotFound):
            await streams.stop("unknown", owner="ann")
        assert source.stops == 0
        await streams.stop("known", owner="ann")
        assert (source.stops, source.opened, len(streams)) == (1, 0, 0)


@virtual
async def test_a_stream_that_is_to_be_stopped_while_all_is_closed() -> None:
    """Is stopped where it runs before the close has ended."""
    source = Recorded(3, has_ended=False)
    streams = ResumableStreams(source)
    stopping = asyncio.create_task(streams.stop("known", owner="ann"))
    await turns()
    await streams.aclose()
    assert (source.stops, source.opened) == (1, 0)
    await stopping


@virtual
async def test_a_lookup_during_close() -> None:
    """Is waited for, and not held."""
    source = Recorded(3, has_ended=True)
    streams = ResumableStreams(source)
    looking = asyncio.create_task(streams.resume("known", owner="ann"))
    await turns()
    await streams.aclose()
    assert (source.finds, source.opened) == (1, 0)
    assert asyncio.get_running_loop().time() == 1.0
    with pytest.raises(EngineShutdown):
        await looking
