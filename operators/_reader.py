"""The user's handle of a reader of a shared stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Generic, Self, TypeVar

from operators._core.tasks import defer_to_loop
from operators._replay_log import PositionDropped, PositionUnknown
from operators._shared_readers import Cursor
from operators._shared_source import SharedSource

__all__ = ("Reader", "ReaderMark", "check_position")

T = TypeVar("T")


class _Handle(Generic[T]):
    """The user's handle of one reader; dropping the last reference makes the reader leave."""

    def __init__(self, stream: object, shared: SharedSource[T], cursor: Cursor) -> None:
        # A reader keeps the stream alive.
        self._stream = stream
        self._shared = shared
        self._cursor = cursor

    @property
    def position(self) -> int:
        """How many of the source's items the reader has received."""
        return self._cursor.position

    def close(self) -> None:
        """Leave the shared stream, without waiting. Idempotent."""
        self._shared.leave(self._cursor)

    def __del__(self) -> None:
        if self._cursor.is_open and self._shared.loop is not None:
            # The garbage collector may call this in any thread.
            defer_to_loop(self._shared.loop, partial(self._shared.leave, self._cursor))


class ReaderMark(_Handle[Any]):
    """A reader of a :class:`SharedStream` elsewhere, which receives its items in another way."""

    def advance(self, position: int) -> None:
        """
        Record that the reader has the first *position* items.

        Raises:
            PositionUnknown: The source has not yet had that many items.
            ValueError, TypeError: *position* is invalid, or lower than before.
        """
        check_position("position", position)
        if position > self._shared.log.head:
            raise PositionUnknown(position, self._shared.log.head)
        if position < self.position:
            raise ValueError(
                f"position: expected at least {self.position}, as before, got {position}"
            )
        if self._cursor.is_open:
            self._shared.advance(self._cursor, position)


class Reader(_Handle[T], AsyncIterator[T]):
    """
    One reader of a :class:`SharedStream`: an async iterator, and an async context manager.

    It leaves at the end of the ``async with``, when closed, when the task that waits for its next
    item is cancelled, or when its last reference is dropped. Another reader can then continue from
    its ``position``.
    """

    async def __anext__(self) -> T:
        """
        Return the next item, or several merged into one if the log merges.

        Raises:
            PositionDropped: The next item is no longer held.
            SourceClosed: The shared stream was closed before its source had ended.
        """
        cursor, shared = self._cursor, self._shared
        log = shared.log
        while cursor.is_open and cursor.position >= log.head and not shared.is_over:
            changed = shared.changed(cursor)
            try:
                await changed
            except BaseException:
                # A cancellation makes the reader leave (row S7).
                shared.leave(cursor)
                raise
        if not cursor.is_open:
            raise StopAsyncIteration
        position = cursor.position
        if position >= log.head:
            shared.leave(cursor)
            shared.raise_end()
        if position < log.first:
            shared.leave(cursor)
            raise PositionDropped(position, log.first)
        item, position = log.read(position)
        shared.advance(cursor, position)
        return item

    async def aclose(self) -> None:
        """Leave; if that closes the source, wait until it is released."""
        self.close()
        if self._shared.is_over:
            await self._shared.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def check_position(name: str, position: object) -> None:
    """Raise an error that names the argument, unless *position* is valid."""
    if not isinstance(position, int) or isinstance(position, bool):
        raise TypeError(f"{name}: expected a whole number, got {position!r}")
    if position < 0:
        raise ValueError(f"{name}: expected at least 0, got {position!r}")
