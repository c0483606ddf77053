"""Pull a source ahead of a consumer that is away."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from operators._core.failures import drop_top_frame
from operators._core.fusion import FusedRun
from operators.merge_chunks import tokens_in

__all__ = ("Merge", "PullAhead")

Merge: TypeAlias = Callable[[Sequence[Any]], tuple[Any, int]]
"""Merges the first of what waits into one item; gives it, and how many it is made of."""


class PullAhead:
    """
    What waits for a consumer, and the task that pulls it while the consumer is away.

    The task lives no longer than it has something to do: from the second turn of the loop after
    the consumer left, until the consumer waits for it, or nothing more may wait, or the source is
    through. So a consumer that is back within a turn never meets it. A step of the source that the
    task has begun is awaited by whoever comes, never given up.

    Args:
        source: What to pull.
        max_chunks: How many items may wait.
        max_tokens: How many tokens may wait, give or take the last item; None for any number.
        overflow: Makes the exception with which the stream fails when nothing more may wait; None
            to stop pulling then.

    Attributes:
        source: What is left to pull; closed by :meth:`aclose` alone.
        is_away: The consumer has left, and is not back; to be cleared when it is.
        is_ahead: Something waits, or the task is at work, or the source is through: the consumer
            must not pull the source itself.
        is_through: The source has ended, and nothing is to come but what waits.
        most_waiting: The most items that have waited at once.
        times_full: How often nothing more could wait.
    """

    __slots__ = (
        "_bounds",
        "_error",
        "_has_just_left",
        "_is_pulling",
        "_is_watched",
        "_loop",
        "_overflow",
        "_task",
        "_tokens",
        "_waiter",
        "_waiting",
        "is_ahead",
        "is_away",
        "is_through",
        "most_waiting",
        "source",
        "times_full",
    )

    def __init__(
        self,
        source: FusedRun[Any],
        max_chunks: int,
        max_tokens: int | None,
        overflow: Callable[[str], Exception] | None,
    ) -> None:
        # In one context, whichever task pulls: what an engine sets there in one step it finds, and
        # may take back, in the next.
        self.source = source
        self._bounds = max_chunks, max_tokens
        self._overflow = overflow
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Any] = []
        self._tokens = 0
        self._error: BaseException | None = None
        self._is_watched = False
        self._has_just_left = False
        self._is_pulling = False
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.is_away = False
        self.is_ahead = False
        self.is_through = False
        self.most_waiting = 0
        self.times_full = 0

    def leave(self) -> None:
        """The consumer goes."""
        self.is_away = self._has_just_left = True
        if not self._is_watched:
            self._is_watched = True
            self._loop.call_soon(self._look)

    async def arrived(self) -> bool:
        """
        Wait for the step that is under way, unless something waits; False if nothing came of it.

        Raises:
            BaseException: What the source failed with, when nothing waits any more.
        """
        if self._is_pulling and not self._waiting:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._waiting:
            return True
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        self.is_ahead = self.is_through
        return False

    def take(self, merge: Merge) -> tuple[Any, int]:
        """Take the first item, merged with others; gives it, and how many it is made of."""
        waiting = self._waiting
        item, count = merge(waiting)
        if not 1 <= count <= len(waiting):
            raise ValueError(
                f"merge: expected to take from 1 to {len(waiting)} items, it took {count!r}"
            )
        self._tokens -= sum(map(tokens_in, waiting[:count]))
        del waiting[:count]
        if not waiting and not self._is_pulling and self._error is None:
            self.is_ahead = self.is_through
        return item, count

    @property
    def has_ended(self) -> bool:
        """Whether the item taken last was the last one."""
        return self.is_through and not self._waiting

    def _look(self) -> None:
        """See whether the consumer stays away: at most once in a turn."""
        self._is_watched = False
        if not self.is_away or self._is_over or not self._has_room():
            return
        if self._has_just_left:
            self._has_just_left = False
            self._is_watched = True
            self._loop.call_soon(self._look)
        elif self._task is None or self._task.done():
            task = self._task = self._loop.create_task(self._pull())
            _pulling.add(task)
            task.add_done_callback(_pulling.discard)

    async def _pull(self) -> None:
        try:
            while self.is_away and self._has_room():
                self._is_pulling = self.is_ahead = True
                self._put(await anext(self.source))
                if self.source.ended:
                    self.is_through = True
                    return
                if len(self._waiting) % _AT_A_TURN == 0:
                    # A source that never waits must not keep all others from their turn.
                    self._is_pulling = False
                    await asyncio.sleep(0)
            if self.is_away:
                self._be_full()
        except StopAsyncIteration:
            self.is_through = True
        except BaseException as error:
            drop_top_frame(error)
            self._error = error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._is_pulling = False
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def _put(self, item: Any) -> None:
        self._waiting.append(item)
        self._tokens += tokens_in(item)
        self.most_waiting = max(self.most_waiting, len(self._waiting))

    def _has_room(self) -> bool:
        max_chunks, max_tokens = self._bounds
        return len(self._waiting) < max_chunks and (max_tokens is None or self._tokens < max_tokens)

    def _be_full(self) -> None:
        self.times_full += 1
        if self._overflow is not None:
            max_chunks, max_tokens = self._bounds
            self._error = self._overflow(
                f"coalesce: the consumer is too slow: {len(self._waiting)} chunks with "
                f"{self._tokens} tokens wait for it, expected fewer than max_chunks={max_chunks} "
                f"and max_tokens={max_tokens}"
            )
            self.source.close()

    @property
    def _is_over(self) -> bool:
        return self.is_through or self._error is not None

    async def aclose(self) -> None:
        """Drop what waits, and the source; wait until all is released."""
        self.is_away = False
        self._waiting.clear()
        self.source.close()
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
        self._error = None
        await self.source.aclose()


# How many items are pulled in one turn of the loop.
_AT_A_TURN = 16

_pulling: set[asyncio.Task[None]] = set()
