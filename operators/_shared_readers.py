"""The readers of a shared stream: the position of each, and which of them wait."""

from __future__ import annotations

import asyncio

__all__ = ("Cursor", "Readers")


class Cursor:
    """
    The position of one reader.

    Attributes:
        position: How many of the source's items it has received.
        takes: Whether it takes items; a mark, for a reader elsewhere, does not.
        is_open: False once it has left.
    """

    def __init__(self, position: int, *, takes: bool) -> None:
        self.position = position
        self.takes = takes
        self.is_open = True


class Readers:
    """
    The readers and marks of one shared stream; ``len`` is their number.

    Attributes:
        fastest: The position of the fastest one; if there is none, of the last one that left.
        waiting: The future of each reader that waits for an item.
    """

    def __init__(self) -> None:
        self._cursors: set[Cursor] = set()
        self.fastest = 0
        self.waiting: dict[Cursor, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._cursors)

    def add(self, position: int, *, takes: bool) -> Cursor:
        """Add a reader, or a mark."""
        cursor = Cursor(position, takes=takes)
        self.fastest = max(self.fastest, position) if self._cursors else position
        self._cursors.add(cursor)
        return cursor

    def remove(self, cursor: Cursor) -> None:
        """Remove a reader; if it waits, it is woken."""
        cursor.is_open = False
        self._cursors.discard(cursor)
        waiter = self.waiting.pop(cursor, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        # Usually all readers keep up, and the first one checked is at the fastest position.
        if not any(each.position == self.fastest for each in self._cursors):
            self.fastest = max((each.position for each in self._cursors), default=self.fastest)

    def wait(self, cursor: Cursor, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return a future that is done at :meth:`wake`, or when the reader is removed."""
        if cursor in self.waiting:
            raise RuntimeError("the reader is already being pulled by another task")
        waiter = self.waiting[cursor] = loop.create_future()
        return waiter

    def wake(self) -> None:
        """Wake all waiting readers."""
        waiting, self.waiting = self.waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_result(None)

    def has_mark_in_front(self) -> bool:
        """Return whether a mark is as far as the fastest reader; it then counts as waiting."""
        return any(each.position == self.fastest for each in self._cursors if not each.takes)
