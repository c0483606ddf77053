"""Dropped streams that are being drained: their owner, and their limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Self

from operators._core.arguments import AtLeast, check_arguments

__all__ = ("Drains",)


class Drains:
    """
    Own the streams that ``drain_until_first_token`` drains after a drop, and limit them.

    Make one per process, and close it before the engine is cleaned up. It is also an asynchronous
    context manager.

    Args:
        limit: How many streams may be drained at once; further ones are closed at their drop, as
            without the operator. 0 for none.
        timeout_s: How long a drain may take to its first token, in seconds.
        grace_s: How long the engine may take to end after the abort, in seconds.

    Attributes:
        drained: How many reached their first token, or their end, in time.
        timed_out: How many didn't, including those that :meth:`aclose` cut off.
        refused: How many were closed at their drop because of the limit.

    Raises:
        TypeError, ValueError: An argument is not a number, or out of range; names it.

    >>> Drains(limit=-1)
    Traceback (most recent call last):
    ValueError: Drains: limit: expected a whole number, at least 0, got -1
    """

    def __init__(
        self,
        limit: Annotated[int, AtLeast(0)] = 256,
        *,
        timeout_s: Annotated[float, AtLeast(0, "seconds")] = 60.0,
        grace_s: Annotated[float, AtLeast(0, "seconds")] = 5.0,
    ) -> None:
        check_arguments(Drains, limit, timeout_s=timeout_s, grace_s=grace_s)
        self.limit = limit
        self.timeout_s = timeout_s
        self.grace_s = grace_s
        self.drained = 0
        self.timed_out = 0
        self.refused = 0
        self._is_closed = False
        # The drains, and the function that cuts each off.
        self._tasks: dict[asyncio.Task[None], Callable[[], None]] = {}
        self._pinned: set[object] = set()

    @property
    def running(self) -> int:
        """The number of streams that are being drained."""
        return len(self._tasks)

    def has_room(self, label: object) -> bool:
        """Return whether one more stream may be drained; if not, count and log that."""
        if not self._is_closed and self.running < self.limit:
            return True
        self.refused += 1
        why = "Drains is closed" if self._is_closed else f"the limit of {self.limit} is reached"
        _log.warning("the stream %s was dropped before its first token, and closed: %s", label, why)
        return False

    def pin(self, stream: object) -> None:
        """Keep a stream alive, so that the garbage collector does not close it."""
        self._pinned.add(stream)

    def unpin(self, stream: object) -> None:
        """Undo :meth:`pin`. Idempotent."""
        self._pinned.discard(stream)

    def track(self, task: asyncio.Task[None], cut_off: Callable[[], None]) -> None:
        """Hold *task*, which drains a stream, until it is done."""
        self._tasks[task] = cut_off
        task.add_done_callback(self._tasks.pop)

    async def wait(self) -> None:
        """Wait until no stream is being drained."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self, timeout_s: float | None = None) -> None:
        """
        Accept no more streams, and wait for those that are being drained.

        Args:
            timeout_s: Cut off the rest after this many seconds; by default their own limits apply.
        """
        self._is_closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for cut_off in list(self._tasks.values()):
            cut_off()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.grace_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


_log = logging.getLogger(__name__)
