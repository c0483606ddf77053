"""A timer that can be moved with every chunk, at the cost of a few assignments."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable

from operators._core.loop_scheduler import loop_clock
from operators._core.tasks import weak_callback

__all__ = ("LazyTimer",)


class LazyTimer:
    """
    One timer for a moving time: moving it later costs nothing, moving it earlier a new timer.

    When the loop's timer fires and the time has moved on, it is set again; otherwise *call* is
    called at the end of the next loop iteration but one. By then anything that became ready in the
    same iteration as the timer, such as a chunk, has been processed and may have moved the time.

    Args:
        call: Called when the time is reached, at most once for each time that was set.
        context: The context to call in; by default a copy of the one in which the time was set.

    Attributes:
        clock: The clock for times on the loop, in seconds.
        due: The time, on that clock; infinite for never. Assign to it to move it later.
    """

    def __init__(
        self, call: Callable[[], None], context: contextvars.Context | None = None
    ) -> None:
        self._call = call
        self._context = context
        self._loop = asyncio.get_running_loop()
        self.clock = loop_clock(self._loop)
        self._handle: asyncio.Handle | None = None
        self._at = math.inf
        self.due = math.inf

    def set(self, due: float) -> None:
        """Move the time, in either direction."""
        self.due = due
        if due < self._at:
            if self._handle is not None:
                self._handle.cancel()
            self._at = due
            # A pending timer must not keep an abandoned stream alive.
            call = weak_callback(self._end_turn)
            self._handle = self._loop.call_at(due, call, context=self._context)

    def cancel(self) -> None:
        """Cancel for good: for the end of a stream."""
        self.due, self._at = math.inf, -math.inf
        # Its owner may also own this timer: keeping it would be a cycle.
        self._call = _nothing
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _end_turn(self) -> None:
        """Wait for everything that became ready in this iteration."""
        # A future completes in this iteration, and the step that awaits it resumes in the next.
        self._handle = self._loop.call_soon(self._wait_a_turn, context=self._context)

    def _wait_a_turn(self) -> None:
        self._handle = self._loop.call_soon(self._look, context=self._context)

    def _look(self) -> None:
        self._handle, self._at = None, math.inf
        due = self.due
        if due > self.clock():
            self.set(due)
        else:
            self.due = math.inf
            self._call()


def _nothing() -> None: ...
