"""A ``reactivex`` scheduler on the time of an event loop."""

from __future__ import annotations

import asyncio
from datetime import datetime

from reactivex.scheduler.eventloop import AsyncIOScheduler

from operators._core.loop_clock import loop_clock

__all__ = ("LoopScheduler",)


class LoopScheduler(AsyncIOScheduler):
    """
    A ``reactivex`` scheduler whose timers and whose ``now`` both follow the event loop.

    Under a ``VirtualTimeLoop``, time operators such as ``delay`` and ``time_interval`` then run in
    virtual time. With ``AsyncIOScheduler`` itself they can't on ``reactivex`` 5: its ``now`` is the
    wall clock there. Times are rounded to whole microseconds, which is what ``datetime`` holds.

    Args:
        loop: The loop; the running one when left out.

    Raises:
        RuntimeError: No loop is given and none is running.

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

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(loop or asyncio.get_running_loop())
        self._clock = loop_clock(self._loop)

    @property
    def now(self) -> datetime:
        """The loop's time as a ``datetime``; its zero is 1970."""
        return self.to_datetime(self._clock())
