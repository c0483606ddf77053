"""The clock that measures what happens on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cache

__all__ = ("loop_clock",)


def loop_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """
    Return the clock for times on *loop*, in seconds: its own where that is virtual.

    For a loop of asyncio's or uvloop's it is ``time.monotonic``, which both count by. uvloop's own
    ``time`` has whole milliseconds and stands still within a turn, and a call of it costs more.

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
