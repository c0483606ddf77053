"""Rx time operators on the virtual loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import reactivex
from reactivex import Observable, abc
from reactivex import operators as ops

from rx_backend.testing import LoopScheduler, run_virtual

Timed = Callable[[Observable[int], abc.SchedulerBase], Observable[Any]]


async def play(change: Timed) -> list[tuple[float, Any]]:
    loop = asyncio.get_running_loop()
    scheduler = LoopScheduler()
    seen: list[tuple[float, Any]] = []
    ended: asyncio.Future[None] = loop.create_future()
    ticks = reactivex.interval(1.0, scheduler=scheduler).pipe(ops.take(3))
    change(ticks, scheduler).subscribe(
        lambda item: seen.append((loop.time(), item)),
        ended.set_exception,
        lambda: ended.set_result(None),
        scheduler=scheduler,
    )
    await ended
    return seen


def plain(ticks: Observable[int], scheduler: abc.SchedulerBase) -> Observable[Any]:
    return ticks


def delay(ticks: Observable[int], scheduler: abc.SchedulerBase) -> Observable[Any]:
    return ticks.pipe(ops.delay(60.0))


def debounce(ticks: Observable[int], scheduler: abc.SchedulerBase) -> Observable[Any]:
    return ticks.pipe(ops.debounce(5.0))


def timeout(ticks: Observable[int], scheduler: abc.SchedulerBase) -> Observable[Any]:
    endless: Observable[Any] = reactivex.concat(ticks, reactivex.never())
    return endless.pipe(ops.timeout(2.0, reactivex.of("late"), scheduler))


def time_interval(ticks: Observable[int], scheduler: abc.SchedulerBase) -> Observable[Any]:
    def seconds(item: Any) -> float:
        return item.interval.total_seconds()

    return ticks.pipe(ops.time_interval(), ops.map(seconds))


def timestamp(ticks: Observable[int], scheduler: abc.SchedulerBase) -> Observable[Any]:
    def seconds(item: Any) -> float:
        return item.timestamp.timestamp()

    return ticks.pipe(ops.timestamp(), ops.map(seconds))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (plain, [(1.0, 0), (2.0, 1), (3.0, 2)]),
        (delay, [(61.0, 0), (62.0, 1), (63.0, 2)]),
        (debounce, [(3.0, 2)]),
        (timeout, [(1.0, 0), (2.0, 1), (3.0, 2), (5.0, "late")]),
        (time_interval, [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]),
        (timestamp, [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]),
    ],
)
def test_time_operators_follow_the_virtual_clock(
    change: Timed, expected: list[tuple[float, Any]]
) -> None:
    """Timers and time stamps of Rx operators are those of the loop."""
    assert run_virtual(play(change)) == expected


def test_a_disposed_timer_does_not_fire() -> None:
    """Disposing what was scheduled takes its timer back."""

    async def main() -> tuple[list[str], float]:
        loop = asyncio.get_running_loop()
        fired: list[str] = []

        def fire(scheduler: abc.SchedulerBase, state: object) -> None:
            fired.append("timer")

        timer = LoopScheduler(loop).schedule_relative(0.5, fire)
        timer.dispose()
        await asyncio.sleep(1.0)
        return fired, loop.time()

    assert run_virtual(main()) == ([], 1.0)


def test_without_a_loop_there_is_no_scheduler() -> None:
    """Outside a running loop the loop must be given."""
    with pytest.raises(RuntimeError):
        LoopScheduler()
