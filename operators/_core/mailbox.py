"""Items that wait for one consumer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ("Mailbox",)

T = TypeVar("T")


class Mailbox(Generic[T]):
    """
    A queue with an end, for one consumer; to be used only in the event loop's thread.

    Attributes:
        is_closed: Whether no more items can be added.
        waiting: The waiting items, read-only; testing its truth is cheaper than the mailbox's.

    >>> async def main():
    ...     box = Mailbox()
    ...     box.put(1)
    ...     box.end(ValueError("gone"))
    ...     print(await box.get())
    ...     await box.get()
    >>> asyncio.run(main())
    Traceback (most recent call last):
    ValueError: gone
    """

    def __init__(self) -> None:
        self.waiting: deque[T] = deque()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.is_closed = False

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self.waiting)

    def __iter__(self) -> Iterator[T]:
        """Iterate over the waiting items, without removing them."""
        return iter(self.waiting)

    @property
    def is_awaited(self) -> bool:
        """Whether the consumer is waiting."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def ended(self) -> bool:
        """Whether there are no items left and none to come, nor an error."""
        return self.is_closed and not self.waiting and self._error is None

    def put(self, item: T) -> None:
        """Add an item and wake the consumer; ignored after the end."""
        if not self.is_closed:
            self.waiting.append(item)
            self.wake()

    def end(self, error: BaseException | None = None) -> None:
        """End the queue, with *error* after the waiting items. Idempotent: the first end counts."""
        if not self.is_closed:
            self.is_closed = True
            self._error = error
            self.wake()

    def close(self) -> None:
        """End the queue and discard the waiting items."""
        self.is_closed = True
        self.waiting.clear()
        self._error = None
        self.wake()

    def wake(self) -> None:
        """Wake the consumer."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def changed(self) -> None:
        """Wait until :meth:`wake` is called: for an item, for the end, or from outside."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def get(self) -> T:
        """Wait for an item; raise what the queue ended with, once, then ``StopAsyncIteration``."""
        while not self.waiting:
            if self.is_closed:
                self.raise_end()
            await self.changed()
        return self.waiting.popleft()

    def take(self) -> T:
        """Return the first waiting item; there must be one."""
        return self.waiting.popleft()

    def raise_end(self) -> None:
        """Raise what the queue ended with."""
        error, self._error = self._error, None
        if error is None:
            raise StopAsyncIteration
        try:
            raise error
        finally:
            # The traceback refers to this frame: a reference back would be a cycle.
            del error
