"""One stream, read by any number of readers, each at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import Disposable, SingleAssignmentDisposable

from operators._core.arguments import AtLeast, check_arguments
from operators._core.fusion import FusedRun
from operators._core.loop_scheduler import with_loop_timers
from operators._core.pushing import push_in_task
from operators._core.tasks import defer_to_loop, running_loop
from operators._reader import Reader, ReaderMark, check_position
from operators._replay_log import ItemLog, PositionDropped, PositionUnknown, ReplayLog
from operators._shared_readers import Cursor
from operators._shared_source import OnEnd, SharedSource

__all__ = ("SharedStream",)

T = TypeVar("T")


class SharedStream(Observable[T], Generic[T]):
    """
    One source, read by any number of readers, each at its own pace.

    One task pulls the source, at most *max_ahead* items ahead of the fastest reader. The items are
    held in *log*, so readers may come late, lag, and resume where they were. A position is the
    number of source items that a reader has received.

    Args:
        source: An asynchronous iterator, such as a ``rx_backend.ResponseStream``; the shared stream
            owns it.
        log: Holds the items; by default all of them.
        max_ahead: How many items the source may be ahead of the fastest reader. With 0 it is pulled
            only while a reader waits.
        linger_s: How many seconds after the last reader has left the stream counts as abandoned;
            None for never, which keeps pulling the source without readers.
        on_abandoned: Called when the stream is abandoned, after which the source is pulled to its
            end. By default the source is closed instead.
        on_end: Awaited with the failure or None when the source has ended, before readers see the
            end; not called when the stream is closed.

    Without references to it and to its readers, the stream is closed (row S7). It belongs to the
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
        max_ahead: Annotated[int, AtLeast(0)] = 0,
        linger_s: Annotated[float, AtLeast(0, "seconds")] | None = 0.0,
        on_abandoned: Callable[[], None] | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(source, "__anext__"):
            raise TypeError(
                f"SharedStream: source: expected an asynchronous iterator, got {source!r}"
            )
        check_arguments(
            SharedStream,
            source,
            max_ahead=max_ahead,
            linger_s=linger_s,
            on_abandoned=on_abandoned,
            on_end=on_end,
        )
        held: ReplayLog[T] = ItemLog() if log is None else log
        self._shared = SharedSource(
            source, held, max_ahead, linger_s, on_abandoned=on_abandoned, on_end=on_end
        )

    @property
    def first(self) -> int:
        """The oldest position that can still be read from."""
        return self._shared.log.first

    @property
    def head(self) -> int:
        """How many items the source has yielded."""
        return self._shared.log.head

    @property
    def is_over(self) -> bool:
        """Whether there are no more items: the source has ended or failed, or was closed."""
        return self._shared.is_over

    @property
    def readers(self) -> int:
        """How many readers and marks there are."""
        return len(self._shared.readers)

    @property
    def fastest(self) -> int:
        """The position of the fastest reader or mark, or of the last one that left."""
        return self._shared.readers.fastest

    def read(self, after: int = 0) -> Reader[T]:
        """
        Return a reader of what comes after the first *after* items.

        Raises:
            PositionDropped: These items are no longer held.
            PositionUnknown: The source has not yet had that many items.
            ValueError, TypeError: *after* is not a position.
            RuntimeError: The running event loop is not the first reader's, or none runs.
        """
        check_position("after", after)
        if after < self.first:
            raise PositionDropped(after, self.first)
        return Reader(self, self._shared, self._join(after, takes=True))

    def mark(self, after: int) -> ReaderMark:
        """
        Return a mark for a reader elsewhere, which has the first *after* items.

        It counts as a reader, but takes no items.

        Raises:
            PositionUnknown: The source has not yet had that many items.
            ValueError, TypeError: *after* is not a position.
            RuntimeError: The running event loop is not the first reader's, or none runs.
        """
        check_position("after", after)
        return ReaderMark(self, self._shared, self._join(after, takes=False))

    if not TYPE_CHECKING:
        # Type checkers see Observable's method, with all its overloads.
        def pipe(self, *operators: Callable[[Any], Any]) -> Any:
            """
            Apply ``reactivex`` operators.

            Timers run on the event loop unless an operator or the subscriber passes a scheduler
            (row O6).
            """
            shared = self._shared
            return with_loop_timers(super().pipe(*operators), lambda: shared.loop)

    def close(self) -> None:
        """
        Close the source without waiting: readers get what is held, then ``SourceClosed``.

        Raises:
            RuntimeError: The running event loop is not the first reader's, or none runs.
        """
        self._shared.open()
        self._shared.close()

    async def aclose(self) -> None:
        """
        Close the source as :meth:`close`, and wait until it is released.

        Raises:
            RuntimeError: The running event loop is not the first reader's.
        """
        self.close()
        await self._shared.wait_closed()

    def _join(self, after: int, *, takes: bool) -> Cursor:
        if after > self.head:
            raise PositionUnknown(after, self.head)
        return self._shared.join(after, takes=takes)

    def _subscribe_core(
        self, observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        running = running_loop()
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
        if shared is not None and shared.loop is not None and not shared.is_over:
            # The garbage collector may call this in any thread.
            defer_to_loop(shared.loop, shared.close)
