"""What is pushed, to be pulled."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from reactivex import Observable, abc
from reactivex.disposable import SingleAssignmentDisposable

__all__ = ("Arrivals",)


class Arrivals(AsyncIterator[Any]):
    """
    One subscription to an Observable, as an asynchronous iterator.

    An Observable knows no back-pressure: what it pushes between pulls waits here, in order and
    without a bound. It may push on any thread.

    Args:
        source: The Observable; subscribed to at once.
        scheduler: Given to it.
    """

    __slots__ = ("_end", "_items", "_loop", "_subscription", "_thread", "_waiter")

    def __init__(self, source: Observable[Any], scheduler: abc.SchedulerBase | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._items: deque[Any] = deque()
        self._end: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._subscription = SingleAssignmentDisposable()
        self._subscription.disposable = source.subscribe(
            lambda item: self._here(self._arrive, item),
            lambda error: self._here(self._finish, error),
            lambda: self._here(self._finish, StopAsyncIteration()),
            scheduler=scheduler,
        )

    async def __anext__(self) -> Any:
        while not self._items:
            if self._end is not None:
                end, self._end = self._end, StopAsyncIteration()
                raise end
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._items.popleft()

    async def aclose(self) -> None:
        """Unsubscribe; what has not been pulled is forgotten."""
        self._items.clear()
        self._finish(StopAsyncIteration())
        self._subscription.dispose()

    def _here(self, function: Callable[[Any], None], argument: Any) -> None:
        """Call on the loop's thread."""
        if threading.get_ident() == self._thread:
            function(argument)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, argument)

    def _arrive(self, item: Any) -> None:
        if self._end is None:
            self._items.append(item)
            self._wake()

    def _finish(self, end: Exception) -> None:
        if self._end is None:
            self._end = end
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
