"""Merge chunks while the consumer lags."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from operators._core.arguments import CHECKED, AtLeast
from operators._core.fusion import FusedRun
from operators._core.mailbox import Mailbox
from operators._core.operator import operator, same_type
from operators._core.own_copy import own_copy
from operators._core.pump import Pump
from operators._core.stage import emit
from operators._merge_chunks import merge_chunks
from operators._raw_chunk import has_content

__all__ = ("BufferOverflow", "CoalesceCounts", "coalesce")


class BufferOverflow(Exception):
    """A consumer was too slow for the buffer of its stream."""


@dataclass(slots=True)
class CoalesceCounts:
    """
    What :func:`coalesce` did; one instance may count any number of streams on one loop.

    Attributes:
        chunks_in: How many chunks of the source were handed out, alone or merged.
        chunks_out: How many chunks they were handed out as.
    """

    chunks_in: int = 0
    chunks_out: int = 0


@same_type
@operator
async def coalesce(
    source: FusedRun[Any],
    *,
    max_chunks: Annotated[int, AtLeast(1)] = 256,
    overflow: Literal["wait", "fail"] = "wait",
    counts: Annotated[CoalesceCounts, CHECKED] | None = None,
) -> AsyncGenerator[Any]:
    """
    Merge the chunks that accumulate while the consumer lags; a consumer that keeps up gets them
    unchanged.

    While the consumer is busy, the source is pulled ahead into a buffer. When the consumer returns
    it gets the buffered chunks as one, or as few as :func:`merge_chunks` can. Nothing is delayed,
    and the first token is never merged. Here the consumer is busy for five frames after each item,
    and ``M`` has the tokens of ``b`` and ``c``::

        source  -a-b-c-T|
        result  -a----M----(T|)

    When *max_chunks* chunks wait, the source is not pulled until the consumer has taken them: a
    slow client slows its own engine stream, and no token is lost. So row S4 holds for a consumer
    that keeps up; for one that lags the source may be that far ahead. Operators before this one may
    see the end while the consumer still reads, and then the request counts as completed (row P6a)::

        EngineAdapter(engine).with_operators(coalesce())

    The engine's steps run in one context, but either in the consumer's task or in one that runs
    while the consumer is busy. So an engine must not hold task-bound state, such as
    ``asyncio.timeout``, across its ``yield``.

    Args:
        max_chunks: How many chunks may wait, at least 1; 1 merges nothing.
        overflow: What happens when the buffer is full. ``wait``: the source is not pulled.
            ``fail``: the source is closed, and after the waiting chunks the stream fails with
            `BufferOverflow`.
        counts: Where to count the chunks.

    Raises:
        ValueError, TypeError: An argument is something else; when the operator is made.

    Phase: anywhere; after ``record_span``, so that earlier operators see chunks as they arrive.
    Errors: chunks pulled before an error come out first, then the error. After ``annotate_errors``,
        as at the end of a pipeline, a `BufferOverflow` is raised unchanged; before it, it becomes
        an error item (row O4).
    On dispose: waiting chunks are dropped, and the source is closed; a pull in progress ends in the
        task that began it.

    >>> import asyncio
    >>> from operators import fuse
    >>> from rx_backend import LLMEngineOutput
    >>> from rx_backend.testing import run_virtual
    >>> async def engine():
    ...     for token_id in range(7):
    ...         await asyncio.sleep(1.0)
    ...         yield LLMEngineOutput.token(token_id)
    >>> async def main():
    ...     async for chunk in fuse(engine(), [coalesce(max_chunks=3)]):
    ...         print(chunk.token_ids)
    ...         await asyncio.sleep(10.0)  # a slow client
    >>> run_virtual(main())
    [0]
    [1, 2, 3]
    [4, 5, 6]
    """
    counts = CoalesceCounts() if counts is None else counts
    ahead = _Ahead(source, max_chunks, fails=overflow == "fail")
    has_begun = False
    try:
        while True:
            try:
                if ahead.has_pulled:
                    items, taken = await ahead.take(alone=not has_begun)
                else:
                    # The consumer keeps up, and pulls by itself.
                    items, taken = [await anext(source)], 1
            except StopAsyncIteration:
                return
            has_begun = has_begun or any(map(has_content, items))
            counts.chunks_in += taken
            counts.chunks_out += len(items)
            ahead.leave()
            yield items[0] if taken == 1 else emit(*items)
            ahead.is_away = False
    finally:
        ahead.close()


class _Ahead:
    """
    The chunks that wait for a consumer, and the pump that pulls them while the consumer is busy.

    A consumer that returns within one loop iteration pulls by itself. A pull that has started
    meanwhile is awaited by the consumer, never abandoned.

    Attributes:
        is_away: Whether the consumer is busy with an item; to be cleared when it returns.
    """

    def __init__(self, source: FusedRun[Any], max_chunks: int, *, fails: bool) -> None:
        self._max_chunks = max_chunks
        self._fails = fails
        self._loop = source.event_loop
        self._inbox: Mailbox[Any] = Mailbox()
        self._pump = Pump(source, self._take, self._inbox.end)
        self._is_watched = False
        self._has_just_left = False
        self.is_away = False

    @property
    def has_pulled(self) -> bool:
        """Whether an item waits, a pull is in progress, or the source has ended."""
        return self._pump.busy or bool(self._inbox.waiting) or self._inbox.is_closed

    def leave(self) -> None:
        """Start to pull ahead, unless the consumer returns soon."""
        self.is_away = self._has_just_left = True
        if not self._is_watched and not self._inbox.is_closed:
            self._is_watched = True
            self._loop.call_soon(self._look)

    async def take(self, *, alone: bool) -> tuple[list[Any], int]:
        """
        Take the first item, merged with others unless *alone*; return how many were merged.

        Raises:
            BaseException: What the source ended with, when nothing waits any more.
        """
        inbox = self._inbox
        while self._pump.busy and not inbox.waiting:
            await inbox.changed()
        if not inbox.waiting:
            inbox.raise_end()
        items, count = merge_chunks(islice(inbox, 1) if alone else inbox)
        for _ in range(count):
            inbox.take()
        return items, count

    def close(self) -> None:
        """Drop what waits, and the source, without waiting."""
        self.is_away = False
        self._inbox.close()
        self._pump.close()

    def _look(self) -> None:
        """Check whether the consumer is still busy: at most once per loop iteration."""
        self._is_watched = False
        if not self.is_away or self._inbox.is_closed:
            return
        if self._has_just_left:
            self._has_just_left = False
            self._is_watched = True
            self._loop.call_soon(self._look)
        else:
            self._pull()

    def _pull(self) -> None:
        waiting = len(self._inbox)
        if waiting < self._max_chunks:
            self._pump.demand()
        elif self._fails:
            self._inbox.end(
                BufferOverflow(f"coalesce: the consumer is too slow: {waiting} chunks are waiting")
            )
            self._pump.close()

    def _take(self, item: Any) -> None:
        # It stays here beyond its pull (row E6).
        self._inbox.put(own_copy(item))
        if self.is_away:
            self._pull()
