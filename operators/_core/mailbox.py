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
    A queue with an end, for one consumer; used in the event loop's thread only.

    Attributes:
        is_closed: Whether nothing is to come any more.
        waiting: The items that wait, to be read only: a truth test of it is cheaper than one of this.

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

    __slots__ = ("_error", "_waiter", "is_closed", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[T] = deque()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.is_closed = False

    def __len__(self) -> int:
        """Return how many items wait."""
        return len(self.waiting)

    def __iter__(self) -> Iterator[T]:
        """Iterate over what waits, which stays."""
        return iter(self.waiting)

    @property
    def is_awaited(self) -> bool:
        """Whether the consumer waits for something to come."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def ended(self) -> bool:
        """Whether nothing waits and nothing is to come, not even an error."""
        return self.is_closed and not self.waiting and self._error is None

    def put(self, item: T) -> None:
        """Add an item and wake the consumer; ignored after the end."""
        if not self.is_closed:
            self.waiting.append(item)
            self.wake()

    def end(self, error: BaseException | None = None) -> None:
        """End the queue, with *error* behind what waits. Idempotent: the first end counts."""
        if not self.is_closed:
            self.is_closed = True
            self._error = error
            self.wake()

    def close(self) -> None:
        """End the queue and forget what waits."""
        self.is_closed = True
        self.waiting.clear()
        self._error = None
        self.wake()

    def wake(self) -> None:
        """Let the consumer look again."""
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
        """Return the first item that waits; there must be one."""
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
