"""An operator that pulls its source, as a part of an assembled pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from operators._core.failures import none_handed_out
from operators._core.fusion import FusedRun
from operators._core.mailbox import Mailbox
from operators._core.segment import OperatorSegment, close_quietly, first_pull
from operators._core.stage import StageResult
from operators._core.tasks import done, start_release

__all__ = ("PulledSegment",)


class PulledSegment(OperatorSegment):
    """
    An async generator operator over the part before it.

    When the source has ended, the generator is resumed until it has ended too, or has yielded once
    more: so the last item is known to be the last when it is handed out (row P6a).
    """

    # Not a property, because it is read for every item.
    ended: bool = False

    def __init__(self, source: FusedRun[Any], generator: AsyncGenerator[Any], name: str) -> None:
        super().__init__(source, name)
        self._items: Mailbox[Any] = Mailbox()
        self._closing: asyncio.Task[None] | None = None
        self._has_begun = False
        self._generator = generator
        # A failure that the operator has yielded is not one that it raised.
        self._has_yielded_failure = False

    def raised_by(self, error: BaseException) -> str | None:
        return None if self._has_yielded_failure else super().raised_by(error)

    async def __anext__(self) -> Any:
        items = self._items
        while not items.is_closed and (
            not items.waiting or (len(items.waiting) == 1 and self.source.ended)
        ):
            try:
                item = await (anext(self._generator) if self._has_begun else self._begin())
            except StopAsyncIteration:
                self._end()
            except Exception as error:
                self._end(error)
            else:
                is_ordinary = item is not None and type(item) is not StageResult
                if is_ordinary and not self.source.has_ended and not items.is_closed:
                    # It can't be the last one, so it need not be held.
                    return item
                self._put(item)
        if not items.waiting:
            items.raise_end()
        item = items.take()
        self.ended = items.ended  # pyright: ignore[reportIncompatibleMethodOverride]
        return item

    def _begin(self) -> Any:
        """Pull the generator for the first time."""
        self._has_begun = True
        return first_pull(self._generator)

    def _put(self, item: Any) -> None:
        """Queue what the generator has yielded."""
        if type(item) is StageResult:
            for each in item.items:
                self._items.put(each)
            if item.ends:
                self._has_yielded_failure = item.error is not None
                self._end(item.error)
                self._release()
        elif item is None:
            self._end(none_handed_out())
            self._release()
        else:
            self._items.put(item)

    def _end(self, error: Exception | None = None) -> None:
        """End the queue after the waiting items."""
        self._items.end(error)
        self._drop_source()

    def drop(self) -> None:
        self._items.close()
        self._drop_source()

    def _drop_source(self) -> None:
        if not self.source.is_adopted:
            self.source.drop()

    def close(self) -> None:
        self.drop()
        self._release()

    def _release(self) -> None:
        """Close the generator, then its source, in a task; at once if possible."""
        close = getattr(self._generator, "close", None)
        if close is not None:
            close()
        if self._closing is None and not self.source.event_loop.is_closed():
            self._closing = start_release(
                self._close(), self.source.event_loop, self.source.own_context
            )

    async def _close(self) -> None:
        await close_quietly(self._generator, f"closing the operator {self.name} failed")
        if not self.source.is_adopted:
            await self.source.aclose()

    async def aclose(self) -> None:
        self.close()
        await done(self._closing)
