"""Writing an answer: items of an engine are handed out once JetStream has them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from operators.assembly import done, start_task
from operators.authoring import FusedRun
from rx_backend.errors import InvalidArgument
from rx_backend.protocols import Annotated
from rx_backend.resumable.jetstream._answer_log import AnswerLog
from rx_backend.resumable.jetstream._entries import Item
from rx_backend.resumable.jetstream._errors import EntryTooLarge

__all__ = ("Producer",)


class Producer:
    """
    Items of one stream, handed out after being appended to the answer's log.

    A task pulls the stream while an item is wanted. While an entry's acknowledgement is pending, at
    most *batch_items* further items are pulled; they form the next entry.

    Args:
        log: The answer's log.
        stream: The stream; closed by :meth:`aclose`.
        prepare: Applied to each item.
        batch_items: The maximum number of items in an entry.
    """

    def __init__(
        self,
        log: AnswerLog,
        stream: FusedRun[Item],
        prepare: Callable[[Item], Item],
        batch_items: int,
    ) -> None:
        self._log = log
        self._stream = stream
        self._prepare = prepare
        self._batch_items = batch_items
        self._acknowledged: deque[Item] = deque()
        self._pulled: list[Item] = []
        self._is_exhausted = False
        self._is_over = False
        self._came = asyncio.Event()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def next(self) -> Item | None:
        """
        Return the next item; None at the end.

        Raises:
            Fenced: Another process writes the answer now.
            BackendError: JetStream rejects an entry.
        """
        if not self._acknowledged and not self._is_over:
            await self._append()
        return self._acknowledged.popleft() if self._acknowledged else None

    async def _append(self) -> None:
        """Append the pulled items, marked if they are the last."""
        if self._task is None:
            self._task = start_task(self._pull(), self._stream.event_loop)
        self._wanted.set()
        try:
            while not self._pulled and not self._is_exhausted:
                self._came.clear()
                await self._came.wait()
            await self._append_pulled()
        finally:
            self._wanted.clear()

    async def _append_pulled(self) -> None:
        batch, self._pulled = self._pulled, []
        is_end = self._is_exhausted
        while True:
            try:
                await self._log.append_items(batch, is_end=is_end)
            except (EntryTooLarge, InvalidArgument) as error:
                is_end = len(batch) == 1
                if is_end:
                    batch = [Annotated.from_error(error)]
                else:
                    half = len(batch) // 2
                    self._pulled[:0] = batch[half:]
                    batch = batch[:half]
            else:
                self._is_over = is_end
                self._acknowledged.extend(batch)
                return

    async def _pull(self) -> None:
        try:
            async for item in self._stream:
                self._pulled.append(self._prepare(item))
                self._came.set()
                if len(self._pulled) >= self._batch_items:
                    self._wanted.clear()
                await self._wanted.wait()
        except Exception as error:
            self._pulled.append(Annotated.from_error(error))
        self._is_exhausted = True
        self._came.set()

    async def aclose(self) -> None:
        """Close the stream and wait until it is released. Idempotent."""
        await self._stream.aclose()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await done(task)
