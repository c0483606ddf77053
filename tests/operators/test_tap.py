"""Observers off the token path: they never disturb the stream, and what they miss is counted."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from operators import TapCounts, fuse, tap, tap_async
from tests.operators._help import LONG_S, Engine, Seen, collect, settle

WATCHED = Seen([0, 1, 2, 3], "completed")


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged, without the observer's name."""
    return [record.getMessage().partition("> ")[2] for record in caplog.records]


async def test_an_observer_sees_every_item_after_its_iteration() -> None:
    """In order, and not within the pull that brings the item."""
    seen: list[int] = []
    counts = TapCounts()
    stream = fuse(Engine(range(4))(), [tap(seen.append, counts=counts)])
    assert await anext(stream) == 0
    assert seen == []
    await asyncio.sleep(0)
    assert seen == [0]
    assert (await collect(stream)).items == [1, 2, 3]
    await asyncio.sleep(0)
    assert seen == [0, 1, 2, 3]
    assert counts == TapCounts(delivered=4)


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_observer_that_fails_is_counted_and_logged_once(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It gets the later items all the same, and the stream is as without it."""
    seen: list[int] = []

    def refuse(item: int) -> None:
        if item < 2:
            raise LookupError(item)
        seen.append(item)

    async def refuse_later(item: int) -> None:
        refuse(item)

    counts = TapCounts()
    watched = tap_async(refuse_later, counts=counts) if is_async else tap(refuse, counts=counts)
    assert await collect(fuse(Engine(range(4), every_s=1.0)(), [watched])) == WATCHED
    await settle()
    assert seen == [2, 3]
    assert counts == TapCounts(delivered=2, failed=2)
    assert len(caplog.records) == 1


async def test_a_cancellation_raised_by_the_observer_is_a_failure() -> None:
    """As the result of a cancelled future is: the observer gets the later items all the same."""
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    seen: list[int] = []

    def ask(item: int) -> None:
        if item == 0:
            cancelled.result()
        seen.append(item)

    counts = TapCounts()
    assert await collect(fuse(Engine(range(4))(), [tap(ask, counts=counts)])) == WATCHED
    await settle()
    assert seen == [1, 2, 3]
    assert counts == TapCounts(delivered=3, failed=1)


async def test_the_buffer_within_an_iteration_is_limited(caplog: pytest.LogCaptureFixture) -> None:
    """A source that never waits fills the buffer; the rest is missed, counted and logged."""
    seen: list[int] = []
    counts = TapCounts()
    stream = fuse(Engine(range(4))(), [tap(seen.append, limit=3, counts=counts)])
    assert await collect(stream) == WATCHED
    await asyncio.sleep(0)
    assert seen == [0, 1, 2]
    assert counts == TapCounts(delivered=3, missed=1)
    assert warned(caplog) == ["missed items of a stream: 1"]


async def test_a_slow_observer_does_not_slow_the_stream() -> None:
    """The stream runs at the engine's pace; the observer gets its items one after the other."""
    seen: list[tuple[float, int]] = []
    loop = asyncio.get_running_loop()

    async def slow(item: int) -> None:
        await asyncio.sleep(2.5)
        seen.append((loop.time(), item))

    stream = fuse(Engine(range(4), every_s=1.0)(), [tap_async(slow, grace_s=100.0)])
    assert await collect(stream) == WATCHED
    assert loop.time() == 4.0
    await asyncio.sleep(LONG_S)
    assert seen == [(3.5, 0), (6.0, 1), (8.5, 2), (11.0, 3)]


async def test_items_that_a_slow_observer_misses_are_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Items beyond the limit, and those that are left when its time is up; in one line a stream."""
    seen: list[int] = []

    async def slow(item: int) -> None:
        await asyncio.sleep(10.0)
        seen.append(item)

    counts = TapCounts()
    stream = fuse(
        Engine(range(6), every_s=1.0)(), [tap_async(slow, limit=2, grace_s=8.0, counts=counts)]
    )
    assert (await collect(stream)).items == [0, 1, 2, 3, 4, 5]
    await asyncio.sleep(LONG_S)
    assert seen == [0]
    assert counts == TapCounts(delivered=1, missed=5)
    assert warned(caplog) == ["missed items of a stream: 5"]


async def test_missed_items_are_logged_when_the_observer_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where it got all the rest in time; an observer that misses nothing is not logged."""

    async def slow(item: int) -> None:
        await asyncio.sleep(1.0)

    await collect(fuse(Engine(range(6))(), [tap_async(slow, limit=2)]))
    assert warned(caplog) == []
    await asyncio.sleep(LONG_S)
    assert warned(caplog) == ["missed items of a stream: 4"]
    await collect(fuse(Engine(range(6), every_s=5.0)(), [tap_async(slow, limit=2)]))
    await asyncio.sleep(LONG_S)
    assert len(warned(caplog)) == 1


@pytest.mark.rows("S7")
async def test_an_observer_that_hangs_is_cancelled_after_a_drop() -> None:
    """Nothing is left of it when its time is up."""
    cancelled: list[float] = []

    async def hang(item: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(asyncio.get_running_loop().time())
            raise

    engine = Engine(range(4))
    stream = fuse(engine(), [tap_async(hang, grace_s=3.0)])
    await anext(stream)
    await asyncio.sleep(1.0)
    await stream.aclose()
    assert engine.closed == 1
    await asyncio.sleep(LONG_S)
    assert cancelled == [4.0]


async def test_an_observer_that_swallows_its_cancellation_gets_no_more() -> None:
    """Its time is up all the same, and what is left is missed."""
    seen: list[int] = []

    async def stubborn(item: int) -> None:
        seen.append(item)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    counts = TapCounts()
    assert await collect(fuse(Engine(range(4))(), [tap_async(stubborn, counts=counts)])) == WATCHED
    await asyncio.sleep(LONG_S)
    assert seen == [0]
    assert counts == TapCounts(delivered=1, missed=3)


def test_items_pending_when_the_loop_ends_count_as_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the observer had not begun."""

    async def observe(item: int) -> None: ...

    async def leave_at_once() -> None:
        stream = fuse(Engine([0])(), [tap_async(observe, counts=counts)])
        await anext(stream)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    counts = TapCounts()
    asyncio.run(leave_at_once())
    assert counts == TapCounts(missed=1)
    assert warned(caplog) == ["missed items of a stream: 1"]
