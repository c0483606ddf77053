"""A source that several readers share: its task, its log, and when it is abandoned."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar, cast

from operators._core.failures import as_failure, redacted_exc_info
from operators._core.fusion import FusedRun
from operators._core.loop_streams import streams_of
from operators._core.pump import Pump
from operators._core.sources import ObservableSource
from operators._core.tasks import running_loop
from operators._replay_log import ReplayLog
from operators._shared_readers import Cursor, Readers

__all__ = ("OnEnd", "SharedSource", "SourceClosed")

T = TypeVar("T")

OnEnd: TypeAlias = Callable[[BaseException | None], Coroutine[Any, Any, None]]


class SourceClosed(RuntimeError):
    """A shared stream was closed before its source had ended; what it held has been read."""


class SharedSource(Generic[T]):
    """
    The state that the readers of a :class:`SharedStream` share.

    It pulls the source in one task, no further than the readers allow, and does not refer to their
    handles, so that a dropped handle can be collected.

    Attributes:
        log: The held items.
        loop: The event loop; None before the first reader.
        is_over: There are no more items: the source has ended or failed, or was closed.
        readers: The readers and marks.
    """

    def __init__(
        self,
        source: AsyncIterator[T],
        log: ReplayLog[T],
        max_ahead: int,
        linger_s: float | None,
        *,
        on_abandoned: Callable[[], None] | None,
        on_end: OnEnd | None,
    ) -> None:
        self._source: AsyncIterator[T] | None = source
        self.log = log
        self._max_ahead = max_ahead
        self._linger_s = linger_s
        self._on_abandoned = on_abandoned
        self._on_end = on_end
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_over = False
        self._context: contextvars.Context | None = None
        self._pump: Pump[T] | None = None
        self.readers = Readers()
        self._is_abandoned = False
        self._linger: asyncio.TimerHandle | None = None
        self._failure: BaseException | None = None
        self._traceback: TracebackType | None = None

    def open(self) -> None:
        """
        Bind the source to the running event loop.

        Raises:
            RuntimeError: No event loop is running, or it is not the first reader's.
        """
        loop = running_loop()
        if loop is None:
            raise RuntimeError("a shared stream can only be read on a running event loop")
        if self.loop is None:
            self._begin(cast("AsyncIterator[T]", self._source), loop)
        elif self.loop is not loop:
            raise RuntimeError(
                "a shared stream can only be read on the event loop of its first reader"
            )

    def _begin(self, source: AsyncIterator[T], loop: asyncio.AbstractEventLoop) -> None:
        context = self._context = contextvars.copy_context()
        if isinstance(source, FusedRun):
            if source.event_loop is not loop:
                raise RuntimeError("the source of a shared stream belongs to another event loop")
            self._pump = Pump(source, self._take, self._end, context)
        else:
            # The task of the pump runs in this context, so that the run need not enter it.
            run: FusedRun[T] = FusedRun(source, [], own_context=context, enters=False, loop=loop)
            streams_of(loop).add(run)
            self._pump = Pump(run, self._take, self._end)
        self.loop, self._source = loop, None
        if isinstance(source, ObservableSource):
            # A source that pushes starts with the first reader.
            source.open()

    def join(self, position: int, *, takes: bool) -> Cursor:
        """Add a reader, and cancel the pending abandonment."""
        self.open()
        if self._linger is not None:
            self._linger.cancel()
        cursor = self.readers.add(position, takes=takes)
        self._demand()
        return cursor

    def leave(self, cursor: Cursor) -> None:
        """Remove a reader; without any left, the stream is soon abandoned. Idempotent."""
        if not cursor.is_open:
            return
        self.readers.remove(cursor)
        if not self.readers and not self.is_over:
            self._start_linger()

    def advance(self, cursor: Cursor, position: int) -> None:
        """Record that a reader has the items up to *position*."""
        cursor.position = position
        if position > self.readers.fastest:
            self.readers.fastest = position
            self._demand()

    def changed(self, cursor: Cursor) -> asyncio.Future[None]:
        """Return a future that is done at the next item, at the end, or when the reader has left."""
        waiter = self.readers.wait(cursor, cast("asyncio.AbstractEventLoop", self.loop))
        self._demand()
        return waiter

    def raise_end(self) -> None:
        """Raise what the source ended with."""
        if self._failure is None:
            raise StopAsyncIteration
        raise self._failure.with_traceback(self._traceback)

    def close(self) -> None:
        """Drop the source, if opened, without waiting; :meth:`wait_closed` waits. Idempotent."""
        pump = self._pump
        if pump is None or (pump.source.has_ended and not pump.source.dropped):
            # It cleans up, and its end comes then.
            return
        if not self.is_over:
            self._finish(SourceClosed("the shared stream was closed before its source ended"))
        pump.close()

    async def wait_closed(self) -> None:
        """Wait until the source is released."""
        if self._pump is not None:
            await self._pump.wait_closed()

    def _wants_more(self) -> bool:
        log, readers = self.log, self.readers
        if readers.waiting or self._is_abandoned or (self._linger_s is None and not readers):
            return log.make_room(log.head)
        ahead = log.head - readers.fastest
        is_wanted = ahead < self._max_ahead or (ahead == 0 and readers.has_mark_in_front())
        return is_wanted and log.make_room(readers.fastest)

    def _demand(self) -> None:
        pump = self._pump
        if pump is not None and not pump.busy and self._wants_more():
            pump.demand()

    def _take(self, item: T) -> None:
        self.log.append(item)
        self.readers.wake()
        self._demand()

    async def _end(self, failure: BaseException | None) -> None:
        source = cast("Pump[T]", self._pump).source
        if failure is not None:
            failure = as_failure(failure, "the source")
        elif source.dropped:
            failure = SourceClosed("the source of a shared stream was closed")
        try:
            if self._on_end is not None:
                await self._on_end(failure)
        except Exception as error:
            _log_failed("the end of a shared stream", error)
        finally:
            self._finish(failure)
        await source.aclose()
        # An ended source may still refer to its request.
        self._pump = None

    def _finish(self, failure: BaseException | None) -> None:
        self.is_over = True
        self._failure = failure
        self._traceback = None if failure is None else failure.__traceback__
        if self._linger is not None:
            self._linger.cancel()
        self._on_abandoned = self._on_end = None
        self.readers.wake()

    def _start_linger(self) -> None:
        """Close the source after the linger time, unless a reader comes."""
        if self._is_abandoned:
            return
        if self._linger_s is None:
            self._demand()
        elif self._linger_s == 0.0:
            self._abandon()
        else:
            loop = cast("asyncio.AbstractEventLoop", self.loop)
            self._linger = loop.call_later(self._linger_s, self._abandon, context=self._context)

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
            _log_failed("an abandoned stream", error)
            self.close()
        else:
            self._demand()


def _log_failed(what: str, error: Exception) -> None:
    _log.error("the callback for %s failed", what, exc_info=redacted_exc_info(error))


_log = logging.getLogger(__name__)
