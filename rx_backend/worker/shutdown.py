"""How a worker is asked to end, and how long each step of the end may take."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeVar

from rx_backend.context import LatchedSignal, RequestContext
from rx_backend.errors import InvalidArgument

__all__ = ("Shutdown", "ShutdownTimes", "signals_to", "wait_with_deadline")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownTimes:
    """
    How long each step of a graceful end may take, in seconds.

    Attributes:
        grace_s: Between leaving discovery and refusing requests: routers need a moment to notice.
        drain_s: For the requests in flight to end by themselves.
        unwind_s: For what is told to stop: requests left over then, and a forced ``cleanup``.
        settle_s: For ``is_quiescent`` in prefill mode, and for ``drain``; each has this long.
        poll_s: Between two questions of ``is_quiescent``.

    Raises:
        InvalidArgument: A time is negative or no number; the message names it.
    """

    grace_s: float = 5.0
    drain_s: float = 30.0
    unwind_s: float = 5.0
    settle_s: float = 30.0
    poll_s: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InvalidArgument(f"{field.name}: expected seconds from 0, got {value!r}")


class Shutdown:
    """
    The wish that a worker end: asked once gracefully, asked again by force.

    Safe to ask from any thread.

    >>> shutdown = Shutdown()
    >>> shutdown.request()
    >>> shutdown.asked.is_set, shutdown.forced.is_set
    (True, False)
    >>> shutdown.request()
    >>> shutdown.forced.is_set
    True
    """

    def __init__(self) -> None:
        # The same two levels as a request's: stop, and kill.
        self._levels = RequestContext("worker")
        self.asked: LatchedSignal = self._levels.stopped()
        self.forced: LatchedSignal = self._levels.killed()

    def request(self) -> None:
        """Ask for the end; a second time: at once."""
        if self.asked.is_set:
            self._levels.kill()
        else:
            self._levels.stop_generating()


@contextmanager
def signals_to(shutdown: Shutdown) -> Generator[None]:
    """
    Have SIGTERM and SIGINT ask for the end while the block runs; of a running loop's main thread.

    A third signal does what it does to any program: it ends the process.
    """
    loop = asyncio.get_running_loop()
    installed = {signal.SIGTERM, signal.SIGINT}

    def let_go() -> None:
        while installed:
            loop.remove_signal_handler(installed.pop())

    for number in sorted(installed):
        loop.add_signal_handler(number, shutdown.request)
    undo = shutdown.forced.listen(let_go)
    try:
        yield
    finally:
        undo()
        let_go()


async def wait_with_deadline(
    step: Awaitable[T], seconds: float | None, give_up: LatchedSignal
) -> T:
    """
    Wait for *step*, at most so many seconds, and no longer once *give_up* is set.

    The step runs in the caller's own task, so that what it opens may be closed by a later step.

    Raises:
        TimeoutError: The step was given up, and cancelled.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds) as limit:
        undo = give_up.listen(lambda: limit.reschedule(loop.time()))
        try:
            return await step
        finally:
            undo()
