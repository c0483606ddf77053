"""The held items of a source, for readers that come later or lag."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from operators._core.own_copy import own_copy

__all__ = ("ItemLog", "PositionDropped", "PositionUnknown", "ReplayLog")

T = TypeVar("T")


class PositionDropped(LookupError):
    """
    A position is older than the items that a shared stream still holds.

    Attributes:
        position: The position.
        first: The oldest that can still be read from.
    """

    def __init__(self, position: int, first: int) -> None:
        super().__init__(f"position {position} was dropped: items are held from {first} on")
        self.position = position
        self.first = first


class PositionUnknown(LookupError):
    """
    A position is beyond the items that a shared stream has had.

    Attributes:
        position: The position.
        head: How many items there have been.
    """

    def __init__(self, position: int, head: int) -> None:
        super().__init__(f"position {position} is unknown: items so far: {head}")
        self.position = position
        self.head = head


class ReplayLog(Protocol[T]):
    """
    The items that a :class:`SharedStream` holds, in some form.

    A position is a number of items: position n is after the first n items of the source.

    Attributes:
        first: The oldest position that can still be read from.
        head: How many items there have been; the position after the last one.
    """

    first: int
    head: int

    def make_room(self, delivered: int) -> bool:
        """
        Return whether one more item may come; if not, the source waits for its readers.

        Called before the source is pulled, and each time that the fastest reader advances while the
        source waits. Items before *delivered* may be dropped here.

        Args:
            delivered: The position of the fastest reader; the head if a reader is waiting, or if
                the source is pulled without readers.
        """
        ...

    def append(self, item: T) -> None:
        """Hold one more item, as a copy: an engine may change *item* later (row E6)."""
        ...

    def read(self, position: int) -> tuple[T, int]:
        """
        Return an item from *position* on, and the position after it.

        It may be several items of the source, merged. The reader owns it and may change it: return
        a new object each time.

        Args:
            position: From *first* to *head* - 1.
        """
        ...


class ItemLog(Generic[T]):
    """
    The last items of a source, unmerged.

    Args:
        buffer: How many items are held; None for all of them.
    """

    def __init__(self, buffer: int | None = None) -> None:
        self._buffer = buffer
        # With a bound, the item of a position is at the position modulo the bound.
        self._items: list[T] = []
        self.first = 0
        self.head = 0

    def make_room(self, delivered: int) -> bool:
        """Return True: the oldest item is replaced."""
        return True

    def append(self, item: T) -> None:
        """Hold a copy of *item*, in place of the oldest one if the buffer is full."""
        item = own_copy(item)
        buffer = self._buffer
        if buffer is None or self.head < buffer:
            self._items.append(item)
        else:
            self._items[self.head % buffer] = item
            self.first += 1
        self.head += 1

    def read(self, position: int) -> tuple[T, int]:
        """Return a copy of the item after *position*."""
        place = position if self._buffer is None else position % self._buffer
        return own_copy(self._items[place]), position + 1
