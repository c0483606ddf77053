"""A source that several readers share: its task, its log, and when it is abandoned."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from operators._core.failures import as_failure, redacted_exc_info
from operators._core.fusion import FusedRun
from operators._core.loop_streams import streams_of
from operators._core.pump import Pump
from operators._core.sources import ObservableSource
from operators._replay_log import ReplayLog

__all__ = ("Cursor", "SharedSource", "SourceClosed")

T = TypeVar("T")

# How many items are pulled in one turn of the loop.
_AT_A_TURN = 16


class SourceClosed(RuntimeError):
    """A shared stream was closed before its source had ended; what it held has been read."""


class Cursor:
    """
    Where one reader is.

    Attributes:
        position: How many of the source's items it has.
        takes: Whether it takes items; a mark is for a reader elsewhere, which waits unseen.
        is_open: Whether it has not left.
    """

    __slots__ = ("is_open", "position", "takes")

    def __init__(self, position: int, *, takes: bool) -> None:
        self.position = position
        self.takes = takes
        self.is_open = True


class SharedSource(Generic[T]):
    """
    What the readers of a :class:`SharedStream` have in common.

    It pulls the source in one task, no further than the readers permit, and refers to none of their
    handles, so that a lost one is noticed.

    Attributes:
        log: What is held of the items.
        loop: The event loop; None up to the first reader.
        is_over: Nothing comes any more: the source has ended or failed, or was closed.
        fastest: The position of the fastest reader; of the last one that left when there is none.
    """

    __slots__ = (
        "__weakref__",
        "_ahead",
        "_cursors",
        "_failure",
        "_is_abandoned",
        "_linger",
        "_linger_s",
        "_on_abandoned",
        "_pump",
        "_source",
        "_traceback",
        "_waiting",
        "fastest",
        "is_over",
        "log",
        "loop",
    )

    def __init__(
        self,
        source: AsyncIterator[T],
        log: ReplayLog[T],
        ahead: int,
        linger_s: float | None,
        on_abandoned: Callable[[], None] | None,
    ) -> None:
        self._source = source
        self.log = log
        self._ahead = ahead
        self._linger_s = linger_s
        self._on_abandoned = on_abandoned
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_over = False
        self._pump: Pump[T] | None = None
        self._cursors: set[Cursor] = set()
        self._waiting: dict[Cursor, asyncio.Future[None]] = {}
        self.fastest = 0
        self._is_abandoned = False
        self._linger: asyncio.TimerHandle | None = None
        self._failure: BaseException | None = None
        self._traceback: TracebackType | None = None

    @property
    def readers(self) -> int:
        """How many readers and marks there are."""
        return len(self._cursors)

    def open(self) -> None:
        """
        Bind it to the running event loop.

        Raises:
            RuntimeError: No event loop runs, or it is another one than before.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("a shared stream can be read on an event loop only") from None
        if self.loop is None:
            source = self._source
            if isinstance(source, FusedRun) and source.event_loop is not loop:
                raise RuntimeError("the source of a shared stream lives on another event loop")
            # The task of the pump runs in this context, so that the run need not enter it.
            run: FusedRun[T] = FusedRun(
                source, [], own_context=contextvars.copy_context(), enters=False, loop=loop
            )
            streams_of(loop).add(run)
            self._pump = Pump(run, self._take, self._end)
            self.loop = loop
            if isinstance(source, ObservableSource):
                # One that pushes by itself does so from the first reader on.
                source.open()
        elif self.loop is not loop:
            raise RuntimeError(
                "a shared stream can be read on the event loop of its first reader only"
            )

    def join(self, position: int, *, takes: bool) -> Cursor:
        """Add a reader, and call off that the stream is abandoned."""
        self.open()
        cursor = Cursor(position, takes=takes)
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self.fastest = max(self.fastest, position) if self._cursors else position
        self._cursors.add(cursor)
        self._demand()
        return cursor

    def leave(self, cursor: Cursor) -> None:
        """Take a reader away; the last one leaves the stream abandoned. Idempotent."""
        if not cursor.is_open:
            return
        cursor.is_open = False
        self._cursors.discard(cursor)
        waiter = self._waiting.pop(cursor, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._cursors:
            # Those that keep up are all at one position: then the first that is looked at says so.
            if not any(each.position == self.fastest for each in self._cursors):
                self.fastest = max(each.position for each in self._cursors)
        elif not self.is_over:
            self._left_alone()

    def advance(self, cursor: Cursor, position: int) -> None:
        """Note that a reader has the items up to *position*."""
        cursor.position = position
        if position > self.fastest:
            self.fastest = position
            if self._ahead or not cursor.takes:
                self._demand()

    def changed(self, cursor: Cursor) -> asyncio.Future[None]:
        """Return what waits for an item, for the end, or until the reader has left."""
        if cursor in self._waiting:
            raise RuntimeError("the reader is already being pulled by another task")
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        waiter = self._waiting[cursor] = loop.create_future()
        self._demand()
        return waiter

    def raise_end(self) -> None:
        """Raise what the source ended with."""
        if self._failure is None:
            raise StopAsyncIteration
        raise self._failure.with_traceback(self._traceback)

    def close(self) -> None:
        """Drop the source without waiting; :meth:`wait_closed` waits. Idempotent; not unopened."""
        pump = cast("Pump[T]", self._pump)
        if not self.is_over:
            if pump.source.has_ended and not pump.source.dropped:
                # It cleans up, and its end comes then.
                return
            self._is_over_by(SourceClosed("the shared stream was closed before its source ended"))
        pump.close()

    async def wait_closed(self) -> None:
        """Wait until the source is released."""
        if self._pump is not None:
            await self._pump.wait_closed()

    def _wants_more(self) -> bool:
        log = self.log
        if self._waiting or self._is_abandoned or (not self._cursors and self._linger_s is None):
            return log.make_room(log.head)
        ahead = log.head - self.fastest
        # A mark that has everything counts as a reader that waits.
        is_wanted = ahead < self._ahead or (
            ahead == 0
            and any(each.position == self.fastest for each in self._cursors if not each.takes)
        )
        return is_wanted and log.make_room(self.fastest)

    def _demand(self) -> None:
        pump = self._pump
        if pump is not None and not pump.busy and self._wants_more():
            pump.demand()

    def _take(self, item: T) -> Awaitable[None] | None:
        self.log.append(item)
        self._wake()
        if not self._wants_more():
            return None
        cast("Pump[T]", self._pump).demand()
        # A source that never waits must not keep all others from their turn.
        return None if self.log.head % _AT_A_TURN else asyncio.sleep(0)

    def _end(self, failure: BaseException | None) -> None:
        source = self._source
        if failure is not None:
            failure = as_failure(failure, "the source")
        elif isinstance(source, FusedRun) and source.dropped:
            failure = SourceClosed("the source of a shared stream was closed")
        self._is_over_by(failure)

    def _is_over_by(self, failure: BaseException | None) -> None:
        self.is_over = True
        self._failure = failure
        self._traceback = None if failure is None else failure.__traceback__
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._on_abandoned = None
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_result(None)

    def _left_alone(self) -> None:
        """Begin to linger: no reader is left."""
        if self._is_abandoned:
            return
        if self._linger_s is None:
            self._demand()
        elif self._linger_s == 0.0:
            self._abandon()
        else:
            pump, loop = cast("Pump[Any]", self._pump), cast("Any", self.loop)
            self._linger = loop.call_later(
                self._linger_s, self._abandon, context=pump.source.own_context
            )

    def _abandon(self) -> None:
        self._linger = None
        if cast("Pump[T]", self._pump).source.has_ended:
            return
        callback, self._on_abandoned = self._on_abandoned, None
        if callback is None:
            self.close()
            return
        self._is_abandoned = True
        try:
            callback()
        except Exception as error:
            _log.error(
                "the callback for an abandoned stream failed", exc_info=redacted_exc_info(error)
            )
            self.close()
        else:
            self._demand()


_log = logging.getLogger(__name__)
