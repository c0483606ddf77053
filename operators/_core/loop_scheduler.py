"""The time of an event loop: its clock, and a ``reactivex`` scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Annotated, Any, cast

from reactivex import Observable, abc
from reactivex.scheduler.eventloop import AsyncIOScheduler

from operators._core.arguments import CHECKED, check_arguments

__all__ = ("LoopScheduler", "loop_clock", "with_loop_timers")


def loop_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """
    Return the clock for times on *loop*, in seconds: its own if that is virtual.

    For an asyncio or uvloop loop it is ``time.monotonic``, which both use. uvloop's own ``time``
    has whole milliseconds, does not advance within an iteration, and is slower to call.

    >>> loop = asyncio.new_event_loop()
    >>> loop_clock(loop) is time.monotonic
    True
    >>> loop.close()
    """
    return time.monotonic if _is_monotonic(type(loop)) else loop.time


@cache
def _is_monotonic(kind: type[asyncio.AbstractEventLoop]) -> bool:
    defining = next(base for base in kind.__mro__ if "time" in vars(base))
    return defining.__module__.partition(".")[0] in {"asyncio", "uvloop"}


class LoopScheduler(AsyncIOScheduler):
    """
    A ``reactivex`` scheduler whose timers and whose ``now`` both follow the event loop.

    Under a ``VirtualTimeLoop``, time operators such as ``delay`` and ``time_interval`` then run in
    virtual time. With ``AsyncIOScheduler`` itself they can't on ``reactivex`` 5: its ``now`` is the
    wall clock there. Times are rounded to whole microseconds, which is what ``datetime`` holds.

    Args:
        loop: The loop; by default the running one.

    Raises:
        RuntimeError: No loop is given and none is running.
        TypeError: *loop* is not an event loop.

    >>> import reactivex
    >>> from operators import LoopScheduler
    >>> from rx_backend.testing import run_virtual
    >>> async def main():
    ...     ticks = reactivex.interval(60.0, scheduler=LoopScheduler())
    ...     await ticks.pipe(reactivex.operators.take(3))
    ...     return asyncio.get_running_loop().time()
    >>> run_virtual(main())
    180.0
    """

    def __init__(self, loop: Annotated[asyncio.AbstractEventLoop, CHECKED] | None = None) -> None:
        check_arguments(LoopScheduler, loop)
        super().__init__(loop or asyncio.get_running_loop())
        self._clock = loop_clock(self._loop)

    @property
    def now(self) -> datetime:
        """The loop's time as a ``datetime``; its zero is 1970."""
        return self.to_datetime(self._clock())


def with_loop_timers(piped: object, loop: Callable[[], asyncio.AbstractEventLoop]) -> Any:
    """
    Return an Observable whose timers run on *loop*, unless its subscriber passes a scheduler.

    Anything else that a pipe returns, such as a connectable Observable, is returned unchanged.
    """
    if type(piped) is not Observable:
        return piped
    observable = cast("Observable[Any]", piped)

    def subscribe(
        observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        return observable.subscribe(observer, scheduler=scheduler or LoopScheduler(loop()))

    return Observable(subscribe)
