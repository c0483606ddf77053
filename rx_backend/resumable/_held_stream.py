"""One held stream, from its first item until it is forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from operators import SharedStream
from operators.authoring import Reader
from rx_backend.errors import BackendError, Cancelled
from rx_backend.protocols import Annotated, LLMEngineOutput
from rx_backend.resumable._compact_log import CompactLog
from rx_backend.resumable._options import Options
from rx_backend.resumable._source import OpenedStream

if TYPE_CHECKING:
    from rx_backend.resumable._table import StreamTable

__all__ = ("HeldStream",)

Item = Annotated[LLMEngineOutput]

_SHORTEST_KEEP_S: Final = 1.0


class HeldStream:
    """
    An answer with its readers: it runs until it has ended, and is then kept for a while.

    Args:
        id: The stream's id.
        opened: The source's stream; released at the end.
        options: The limits.
        table: Notified of events.

    Attributes:
        context, owner, created: Those of *opened*.
        log: The held items.
        shared: The stream that readers read.
        cut_off: Why the answer was closed before its end, if it was.
    """

    def __init__(self, id: str, opened: OpenedStream, options: Options, table: StreamTable) -> None:
        self.id = id
        self.context = opened.context
        self.owner = opened.owner
        self.created = opened.created
        self.cut_off: BackendError | None = None
        self._options = options
        self._table = table
        # None once the answer has ended.
        self._opened: OpenedStream | None = opened
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.log = CompactLog(options.max_bytes, self._dropped)
        continues = options.when_abandoned == "continue" and opened.started_here
        self.shared: SharedStream[Item] = SharedStream(
            opened.items,
            log=self.log,
            max_ahead=options.max_ahead,
            linger_s=None if continues else options.linger_s,
            on_abandoned=self._left,
            on_end=self._ended,
        )
        opened.watch(self.shared)

    @property
    def waits_for(self) -> str | None:
        """The limit at which the engine waits for a reader, if it does."""
        log, options = self.log, self._options
        if log.head == log.delivered:
            return None
        if log.held_bytes >= options.max_bytes:
            return "max_bytes"
        return "max_ahead" if log.head - log.delivered >= options.max_ahead else None

    def stop(self) -> None:
        """Ask the engine to end the answer, if it has not ended."""
        if self._opened is not None:
            self._opened.stop()

    def shut_down(self) -> None:
        """Prepare to be closed because the process shuts down."""
        if self._opened is not None:
            self._opened.shut_down()

    async def aclose(self, error: BackendError) -> None:
        """Drop an answer that has not ended; its readers get *error* after the held items."""
        opened = self._opened
        if opened is not None and self.cut_off is None:
            self.cut_off = error
        await self.shared.aclose()
        if opened is not None:
            # A stream that was never pulled has not released itself.
            await opened.aclose()
        self._end()

    def forget(self) -> None:
        """Stop keeping an ended stream."""
        if self._timer is not None:
            self._timer.cancel()

    def count_lag(self) -> None:
        """Count a reader whose next item was dropped."""
        self._table.count_limit_hit("max_bytes", "reader_failed")

    async def read(self, after: int) -> Reader[Item]:
        """
        Return a reader of what comes after the first *after* items.

        If items up to there are known elsewhere, they are pulled first.

        Raises:
            PositionDropped, PositionUnknown: As ``SharedStream.read``.
        """
        opened, shared = self._opened, self.shared
        if after <= shared.head or opened is None:
            return shared.read(after)
        if opened.started_here and after > await opened.head():
            return shared.read(after)
        # With this reader, a stream elsewhere is not released in the meantime.
        async with shared.read(shared.head) as reader:
            known = await opened.head()
            while shared.head < after <= known and not shared.is_over:
                await anext(reader, None)
            return shared.read(after)

    async def _ended(self, failure: BaseException | None) -> None:
        opened = self._opened
        if failure is not None:
            # It is held until the answer is forgotten, and its frames would keep engine and request
            # alive.
            failure.__traceback__ = None
        self._end()
        if opened is not None:
            await opened.aclose()

    def _left(self) -> None:
        """Stop the engine, or release the stream, after ``linger_s`` without a reader here."""
        opened = self._opened
        if opened is None:
            return
        if not opened.started_here:
            self._table.release(self)
            return
        if self._options.when_abandoned == "continue":
            # It was taken over from another process.
            return
        self._table.count_limit_hit("linger_s", "stopped")
        self._timer = self._loop.call_later(self._options.stop_grace_s, self._cut)
        opened.stop()

    def _cut(self) -> None:
        """Close an answer that the engine has not ended after the stop."""
        self._table.count_limit_hit("stop_grace_s", "closed")
        grace_s = self._options.stop_grace_s
        error = Cancelled(
            f"stopped without a reader, but the engine did not end within {grace_s:g} s"
        )
        self._table.close_soon(self, error)

    def _end(self) -> None:
        """Record the end of the answer, and keep it for a while. Idempotent."""
        if self._opened is None:
            return
        self._opened = None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._options.keep_s, self._expire)
        self._table.ended(self)

    def _expire(self) -> None:
        """Forget the answer, or check again later if it is being read."""
        if self.shared.readers:
            again_s = max(self._options.keep_s, _SHORTEST_KEEP_S)
            self._timer = self._loop.call_later(again_s, self._expire)
        else:
            self._table.expired(self)

    def _dropped(self) -> None:
        self._table.count_limit_hit("max_bytes", "dropped")
