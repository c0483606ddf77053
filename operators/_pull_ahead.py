"""A source that is pulled ahead while its consumer is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

from operators._core.fusion import FusedRun
from operators._core.mailbox import Mailbox
from operators._core.pump import Pump
from operators._own_copy import own_copy
from operators._raw_chunk import tokens_in

__all__ = ("Merge", "PullAhead")

Merge: TypeAlias = Callable[[Iterable[Any]], tuple[list[Any], int]]
"""Merges the first of what waits; returns the merged items, and how many they are made of."""


class PullAhead:
    """
    What waits for a consumer, and what pulls it while the consumer is away.

    A consumer that is back within a turn of the loop pulls by itself. A step of the source that has
    begun meanwhile is awaited by the consumer, never given up.

    Args:
        source: What to pull.
        max_chunks: How many items may wait.
        max_tokens: How many tokens may wait, give or take the last item; None for any number.
        overflow: Makes the exception with which the stream fails when nothing more may wait; None
            to stop pulling then.

    Attributes:
        has_pulled: Whether the source was pulled while the consumer was away, and not all has been
            taken of what came; else the consumer pulls by itself.
        is_away: Whether the consumer has left and is not back; to be cleared when it is.
        most_waiting: The most items that have waited at once.
        times_full: How often nothing more could wait.
    """

    __slots__ = (
        "_has_just_left",
        "_inbox",
        "_is_watched",
        "_loop",
        "_max_chunks",
        "_max_tokens",
        "_overflow",
        "_pump",
        "_tokens",
        "has_pulled",
        "is_away",
        "most_waiting",
        "times_full",
    )

    def __init__(
        self,
        source: FusedRun[Any],
        max_chunks: int,
        max_tokens: int | None,
        overflow: Callable[[str], Exception] | None,
    ) -> None:
        self._max_chunks = max_chunks
        self._max_tokens = max_tokens
        self._overflow = overflow
        self._loop = asyncio.get_running_loop()
        self._inbox: Mailbox[Any] = Mailbox()
        self._pump = Pump(source, self._take, self._inbox.end, source.own_context)
        self._tokens = 0
        self._is_watched = False
        self._has_just_left = False
        self.has_pulled = False
        self.is_away = False
        self.most_waiting = 0
        self.times_full = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing waits and nothing is to come."""
        return self._inbox.ended

    def leave(self) -> None:
        """Begin to pull ahead, unless the consumer is back soon."""
        self.is_away = self._has_just_left = True
        if not self._is_watched and not self._inbox.is_closed:
            self._is_watched = True
            self._loop.call_soon(self._look)

    async def has_more(self) -> bool:
        """
        Wait for the pull that is under way, and return whether something waits.

        Raises:
            BaseException: What the source failed with, when nothing waits any more.
        """
        inbox = self._inbox
        while self._pump.busy and not inbox.waiting:
            await inbox.changed()
        if inbox.is_closed and not inbox.waiting and not inbox.ended:
            inbox.raise_end()
        has_more = bool(inbox.waiting)
        self.has_pulled = has_more or inbox.is_closed
        return has_more

    def take(self, merge: Merge) -> tuple[list[Any], int]:
        """Take the first item, merged with others; return that, and how many it is made of."""
        waiting = self._inbox
        items, count = merge(waiting)
        if not 1 <= count <= len(waiting):
            raise ValueError(
                f"merge: expected to take from 1 to {len(waiting)} items, it took {count!r}"
            )
        self._tokens -= sum(tokens_in(item) for item, _ in zip(waiting, range(count), strict=False))
        waiting.discard(count)
        return items, count

    def close(self) -> None:
        """Drop what waits, and the source, without waiting."""
        self.is_away = False
        self._inbox.close()
        self._pump.close()

    def _look(self) -> None:
        """Look whether the consumer stays away: at most once in a turn."""
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
        self.has_pulled = True
        if len(self._inbox) < self._max_chunks and (
            self._max_tokens is None or self._tokens < self._max_tokens
        ):
            self._pump.demand()
        else:
            self._be_full()

    def _take(self, item: Any) -> Awaitable[None] | None:
        # It stays here beyond its pull (row E6).
        item = own_copy(item)
        self._tokens += tokens_in(item)
        self._inbox.put(item)
        waiting = len(self._inbox)
        self.most_waiting = max(self.most_waiting, waiting)
        if self.is_away:
            self._pull()
        # A source that never waits must not keep all others from their turn.
        return None if waiting % _AT_A_TURN else asyncio.sleep(0)

    def _be_full(self) -> None:
        self.times_full += 1
        if self._overflow is not None:
            self._inbox.end(
                self._overflow(
                    f"coalesce: the consumer is too slow: {len(self._inbox)} chunks with "
                    f"{self._tokens} tokens wait for it, expected fewer than "
                    f"max_chunks={self._max_chunks} and max_tokens={self._max_tokens}"
                )
            )
            self._pump.close()


# How many items are pulled in one turn of the loop.
_AT_A_TURN = 16
