"""Observers off the token path, which never disturb the stream."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

from operators._core.arguments import AtLeast
from operators._core.failures import redacted_exc_info
from operators._core.operator import callbacks
from operators._core.own_copy import own_copy
from operators._core.stage import Callbacks
from operators._core.tasks import running_loop, start_task

__all__ = ("TapCounts", "tap", "tap_async")

A = TypeVar("A")

Limit: TypeAlias = Annotated[int, AtLeast(1, "item")]


@dataclass(slots=True)
class TapCounts:
    """
    What observers received of their streams; one instance may count many streams.

    Attributes:
        delivered: Items that an observer processed.
        missed: Items that came while the buffer was full, or were left when the time ran out.
        failed: Items on which an observer raised.
    """

    delivered: int = 0
    missed: int = 0
    failed: int = 0


@callbacks()
def tap(
    observe: Callable[[A], object], *, limit: Limit = 1024, counts: TapCounts | None = None
) -> Callbacks[A, A]:
    """
    Show every item to *observe*, in order, after the event-loop iteration in which it came.

    Items pass through at once, whatever the observer does. It is called on the loop, so it must not
    block; use :func:`tap_async` for one that waits::

        source    -a-b-|
        result    -a-b-|
        observed  -a b

    Args:
        observe: Called with each item. Its exceptions are counted, and logged once per stream.
        limit: How many items may wait within one iteration, at least 1; the observer misses those
            beyond it, which is logged once per stream, at its end.
        counts: Where to count what was delivered, missed and failed.

    Raises:
        ValueError: *limit* is less than 1; when the operator is made.
        TypeError: *observe* is not callable; when the operator is made.

    Phase: anywhere.
    Errors: source errors pass unchanged; the observer still gets the waiting items.
    On dispose: the observer still gets the waiting items, at the end of the same iteration.

    Without a running event loop, in a plain pipe, the observer is called at once.

    >>> import reactivex
    >>> seen = []
    >>> _ = reactivex.of(1, 2).pipe(tap(seen.append)).subscribe()
    >>> seen
    [1, 2]
    """
    watch = _Tap(observe, limit, counts)
    return Callbacks(watch.take, on_end=watch.end)


@callbacks()
def tap_async(
    observe: Callable[[A], Awaitable[object]],
    *,
    limit: Limit = 1024,
    grace_s: Annotated[float, AtLeast(0, "seconds")] = 5.0,
    counts: TapCounts | None = None,
) -> Callbacks[A, A]:
    """
    Show every item to the asynchronous *observe*, in order, in one task per stream.

    Items pass through at once, however long the observer takes. Here it takes two frames per item::

        source    -abc--|
        result    -abc--|
        observed  -a b c

    Args:
        observe: Awaited with each item. Its exceptions are counted, and logged once per stream.
        limit: How many items may wait for the observer, at least 1; it misses those beyond it.
        grace_s: How long the observer may continue after the stream has ended, in seconds; then it
            is cancelled, and misses the rest. Missed items are logged once per stream, when the
            observer has ended.
        counts: Where to count what was delivered, missed and failed.

    Raises:
        ValueError: *limit* is less than 1, or *grace_s* negative; when the operator is made.
        TypeError: *observe* is not callable; when the operator is made.
        RuntimeError: No event loop is running; when the operator starts.

    Phase: anywhere.
    Errors: source errors pass unchanged.
    On dispose: the observer still gets the waiting items, for at most *grace_s*.

    >>> import asyncio
    >>> from operators import fuse
    >>> async def engine():
    ...     yield 1
    ...     yield 2
    >>> async def store(item):
    ...     await asyncio.sleep(0.001)
    ...     print("stored", item)
    >>> async def main():
    ...     async for item in fuse(engine(), [tap_async(store)]):
    ...         print("streamed", item)
    ...     await asyncio.sleep(0.1)
    >>> asyncio.run(main())
    streamed 1
    streamed 2
    stored 1
    stored 2
    """
    watch = _AsyncTap(observe, limit, counts, grace_s)
    return Callbacks(watch.take, on_end=watch.end)


class _Watch(ABC):
    """The items that wait for one stream's observer, and those that it missed."""

    def __init__(self, observe: Callable[[Any], Any], limit: int, counts: TapCounts | None) -> None:
        self._observe = observe
        self._limit = limit
        self._counts = TapCounts() if counts is None else counts
        self._waiting: deque[Any] = deque()
        self._missed = 0
        self._has_failed = False

    def take(self, item: A) -> A:
        if len(self._waiting) < self._limit:
            self._waiting.append(own_copy(item))
            self._observe_soon()
        else:
            self._miss(1)
        return item

    @abstractmethod
    def _observe_soon(self) -> None:
        """Schedule the observation of the waiting items."""

    def _miss(self, items: int) -> None:
        self._counts.missed += items
        self._missed += items

    def _fail(self, error: BaseException) -> None:
        self._counts.failed += 1
        if not self._has_failed:
            self._has_failed = True
            _log.warning(
                "observer %r failed; further failures are only counted",
                self._observe,
                exc_info=redacted_exc_info(error),
            )

    def _report_missed(self) -> None:
        if self._missed:
            _log.warning("observer %r missed items of a stream: %d", self._observe, self._missed)


class _Tap(_Watch):
    """An observer that is called on the loop, or at once if none runs."""

    def __init__(
        self, observe: Callable[[Any], object], limit: int, counts: TapCounts | None
    ) -> None:
        super().__init__(observe, limit, counts)
        self._loop = running_loop()

    def _observe_soon(self) -> None:
        if self._loop is None:
            self._deliver()
        elif len(self._waiting) == 1:
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        while self._waiting:
            item = self._waiting.popleft()
            try:
                self._observe(item)
            except (Exception, asyncio.CancelledError) as error:
                # A callback can't be cancelled: this comes from a cancelled future that the
                # observer asked.
                self._fail(error)
            else:
                self._counts.delivered += 1

    def end(self, _failure: Exception | None, _dropped: bool) -> None:
        self._report_missed()


class _AsyncTap(_Watch):
    """An observer that is awaited, in a task that runs while there are items."""

    def __init__(
        self,
        observe: Callable[[Any], Awaitable[object]],
        limit: int,
        counts: TapCounts | None,
        grace_s: float,
    ) -> None:
        super().__init__(observe, limit, counts)
        self._grace_s = grace_s
        self._task: asyncio.Task[None] | None = None
        loop = running_loop()
        if loop is None:
            raise RuntimeError("tap_async needs a running event loop")
        self._loop = loop

    def _observe_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = start_task(self._deliver(), self._loop)

    async def _deliver(self) -> None:
        while self._waiting:
            item = self._waiting.popleft()
            try:
                await self._observe(item)
            except asyncio.CancelledError:
                self._miss(1)
                self._miss_rest()
                raise
            except Exception as error:
                self._fail(error)
            else:
                self._counts.delivered += 1

    def _miss_rest(self) -> None:
        self._miss(len(self._waiting))
        self._waiting.clear()

    def end(self, _failure: Exception | None, _dropped: bool) -> None:
        task = self._task
        if task is None or task.done() or self._loop.is_closed():
            self._end_observing()
            return
        timer = self._loop.call_later(self._grace_s, self._give_up, task)
        task.add_done_callback(lambda _: timer.cancel())
        task.add_done_callback(lambda _: self._end_observing())

    def _give_up(self, task: asyncio.Task[None]) -> None:
        # An observer that swallows the cancellation must not get more either.
        self._miss_rest()
        task.cancel()

    def _end_observing(self) -> None:
        # Items are left if the task was cancelled before it started.
        self._miss_rest()
        self._report_missed()


_log = logging.getLogger(__name__)
