"""The clock for times on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cache

__all__ = ("loop_clock",)


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
