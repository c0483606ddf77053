"""A ``reactivex`` scheduler on the time of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, cast

from reactivex import Observable, abc
from reactivex.scheduler.eventloop import AsyncIOScheduler

from operators._core.arguments import CHECKED, check_arguments
from operators._core.loop_clock import loop_clock

__all__ = ("LoopScheduler", "with_loop_timers")


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
