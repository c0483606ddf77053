"""One stream, read by any number of readers, each at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import Disposable, SingleAssignmentDisposable

from operators._core.fusion import FusedRun
from operators._core.pushing import push_in_task
from operators._core.tasks import defer_to_loop
from operators._replay_log import ItemLog, ReplayLog
from operators._shared_source import Cursor, SharedSource

__all__ = ("PositionDropped", "PositionUnknown", "Reader", "ReaderMark", "SharedStream")

T = TypeVar("T")


class PositionDropped(LookupError):
    """
    A position is older than what a shared stream holds.

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
    A position is beyond what a shared stream has had.

    Attributes:
        position: The position.
        head: How many items came.
    """

    def __init__(self, position: int, head: int) -> None:
        super().__init__(f"position {position} is unknown: {head} items have come")
        self.position = position
        self.head = head


class SharedStream(Observable[T], Generic[T]):
    """
    One source, read by any number of readers, each at its own pace.

    One task pulls the source, while the fastest reader has read all but *ahead* of its items. What
    came is held in *log*, so readers may come late, lag, and come back to where they were. A
    position is how many items of the source a reader has.

    Args:
        source: An asynchronous iterator, such as a ``rx_backend.ResponseStream``; the shared stream
            owns it.
        log: What holds the items; all of them when left out.
        ahead: How many items the source may be ahead of the fastest reader. With 0 it is pulled only
            while a reader waits.
        linger_s: How many seconds after the last reader has left the stream is abandoned; None for
            never, and then the source is pulled on without readers.
        on_abandoned: Called when the stream is abandoned, and then the source is pulled to its end.
            When left out, the source is closed.

    A stream that lost all references, to it and to its readers, is closed (row S7). It lives on the
    event loop of its first reader.

    >>> from rx_backend.testing import run_virtual
    >>> async def engine():
    ...     for word in ("to", "be"):
    ...         yield word
    >>> async def main():
    ...     shared = SharedStream(engine())
    ...     async with shared.read() as first, shared.read() as second:
    ...         print(await anext(first), await anext(first), await anext(second))
    ...         async with shared.read(second.position) as back:
    ...             print([word async for word in back])
    >>> run_virtual(main())
    to be to
    ['be']
    """

    def __init__(
        self,
        source: AsyncIterator[T],
        *,
        log: ReplayLog[T] | None = None,
        ahead: int = 0,
        linger_s: float | None = 0.0,
        on_abandoned: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        held: ReplayLog[T] = ItemLog() if log is None else log
        self._shared = SharedSource(source, held, ahead, linger_s, on_abandoned)

    @property
    def first(self) -> int:
        """The oldest position that can still be read from."""
        return self._shared.log.first

    @property
    def head(self) -> int:
        """How many items the source has handed out."""
        return self._shared.log.head

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more: the source has ended or failed, or was closed."""
        return self._shared.is_over

    @property
    def readers(self) -> int:
        """How many readers and marks there are."""
        return self._shared.readers

    @property
    def fastest(self) -> int:
        """The position of the fastest reader or mark; of the last one that left when there is none."""
        return self._shared.fastest

    def read(self, after: int = 0) -> Reader[T]:
        """
        Return a reader of what comes after the first *after* items.

        Raises:
            PositionDropped: These items are not held any more.
            PositionUnknown: So many items have not come.
            RuntimeError: Another event loop runs than that of the first reader, or none.
        """
        if after < self.first:
            raise PositionDropped(after, self.first)
        return Reader(self, self._join(after, takes=True))

    def mark(self, after: int) -> ReaderMark:
        """
        Return a mark for a reader elsewhere, which has the first *after* items.

        It counts as a reader, and takes no items.

        Raises:
            PositionUnknown: So many items have not come.
            RuntimeError: Another event loop runs than that of the first reader, or none.
        """
        return ReaderMark(self, self._join(after, takes=False))

    def close(self) -> None:
        """Close the source without waiting: readers get what is held, then ``SourceClosed``."""
        self._shared.close()

    async def aclose(self) -> None:
        """Close the source as :meth:`close`, and wait until it is released."""
        if self._shared.loop is None:
            self._shared.open()
        self._shared.close()
        await self._shared.wait_closed()

    def _join(self, after: int, *, takes: bool) -> Cursor:
        if after > self.head:
            raise PositionUnknown(after, self.head)
        return self._shared.join(after, takes=takes)

    def _subscribe_core(
        self, observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        running = _running_loop()
        loop = self._shared.loop or running
        if loop is None:
            observer.on_error(
                RuntimeError("a shared stream needs a running event loop to be subscribed to")
            )
            return Disposable()
        if loop is running:
            return self._push_to(observer, loop)
        # Another thread.
        subscription = SingleAssignmentDisposable()

        def begin() -> None:
            if not subscription.is_disposed:
                subscription.disposable = self._push_to(observer, loop)

        defer_to_loop(loop, begin)
        return subscription

    def _push_to(
        self, observer: abc.ObserverBase[T], loop: asyncio.AbstractEventLoop
    ) -> abc.DisposableBase:
        run: FusedRun[T] = FusedRun(self.read(self.first), [], loop=loop)
        return push_in_task(run, observer, loop)

    def __del__(self) -> None:
        shared: SharedSource[Any] | None = getattr(self, "_shared", None)
        if shared is not None and shared.loop is not None:
            defer_to_loop(shared.loop, shared.close)


class _Place(Generic[T]):
    """What the user holds of one reader; losing it is leaving."""

    __slots__ = ("__weakref__", "_cursor", "_shared", "_stream")

    def __init__(self, stream: SharedStream[T], cursor: Cursor) -> None:
        # As long as there is a reader, the stream is not lost.
        self._stream = stream
        self._shared: SharedSource[T] = stream._shared  # pyright: ignore[reportPrivateUsage]
        self._cursor = cursor

    @property
    def position(self) -> int:
        """How many of the source's items it has."""
        return self._cursor.position

    def close(self) -> None:
        """Leave the shared stream, without waiting. Idempotent."""
        self._shared.leave(self._cursor)

    def __del__(self) -> None:
        cursor: Cursor | None = getattr(self, "_cursor", None)
        if cursor is not None and cursor.is_open and self._shared.loop is not None:
            # The collector may call this in any thread.
            defer_to_loop(self._shared.loop, partial(self._shared.leave, cursor))


class ReaderMark(_Place[Any]):
    """A reader of a :class:`SharedStream` that is elsewhere, and takes its items in another way."""

    __slots__ = ()

    def advance(self, position: int) -> None:
        """
        Note that the reader has the first *position* items.

        Raises:
            PositionUnknown: So many items have not come.
            ValueError: It had more of them before.
        """
        if position > self._shared.log.head:
            raise PositionUnknown(position, self._shared.log.head)
        if position < self.position:
            raise ValueError(
                f"position: expected at least {self.position}, as before, got {position}"
            )
        if self._cursor.is_open:
            self._shared.advance(self._cursor, position)


class Reader(_Place[T], AsyncIterator[T]):
    """
    One reader of a :class:`SharedStream`: an async iterator, and an async context manager.

    Leaving the ``async with``, closing it, cancelling the task that waits for its next item, and
    losing it all mean that it has left. ``position`` then says where another one can go on.
    """

    __slots__ = ()

    async def __anext__(self) -> T:
        """
        Return the next item, or several merged as one where the log does so.

        Raises:
            PositionDropped: The next item is not held any more.
            SourceClosed: The shared stream was closed before its source had ended.
        """
        cursor, shared = self._cursor, self._shared
        log = shared.log
        while cursor.is_open and cursor.position >= log.head and not shared.is_over:
            await shared.changed(cursor)
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
        """Leave; where that has closed the source, wait until it is released."""
        self.close()
        if self._shared.is_over:
            await self._shared.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
