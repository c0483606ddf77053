"""Any ``aioreactive`` operators as a segment of a pulled pipeline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from operators._core.aio_inbox import TURNS, AioInbox, SubscribesAsync
from operators._core.aio_operator import (
    AioOperator,
    answers_within_asend,
    async_observable,
    is_aio_operator,
)
from operators._core.foreign import ForeignSegment
from operators._core.own_copy import own_copy
from operators._core.tasks import weak_callback

if TYPE_CHECKING:
    from aioreactive import AsyncDisposable, AsyncObserver

__all__ = ("AioOperator", "AioSegment", "is_aio_operator")


class AioSegment(ForeignSegment[AioInbox]):
    """
    Adjacent ``aioreactive`` operators, subscribed to at the first pull.

    They receive an item through their ``asend``, which is awaited. Operators that don't emit within
    it pass items to tasks of their own, so a task pulls for them: once for each pull of the
    consumer, and again if an item has produced nothing for some iterations of the loop. Their
    ``asend`` to us returns while at most one item waits; further items wait in their mailboxes.
    """

    _answers_at_once = staticmethod(answers_within_asend)

    def _observable(self) -> SubscribesAsync[Any]:
        # The library's tasks keep references to these.
        subscribed, unsubscribed = (
            weak_callback(self._subscribed),
            weak_callback(self._unsubscribed),
        )

        async def unsubscribe() -> None:
            unsubscribed()

        async def subscribe(observer: AsyncObserver[Any]) -> AsyncDisposable:
            from aioreactive import AsyncDisposable  # noqa: PLC0415 - who has operators has it

            subscribed(observer)
            return AsyncDisposable.create(unsubscribe)

        return async_observable(subscribe)

    def _receive(self, observable: SubscribesAsync[Any]) -> None:
        # Most operators don't unsubscribe from their source at the end.
        self._inbox = AioInbox(observable, lead=-1, on_end=weak_callback(self._unsubscribed))

    async def _feed(self, item: Any) -> None:
        if self._observer is not None:
            try:
                await self._observer.asend(own_copy(item))
            except Exception as error:
                # The library's own sources also pass an operator's exception on as a failure.
                ending = self._source_ended(error)
                if ending is not None:
                    await ending
        if self._pump is None or self.source.ended:
            # The end follows with the last item.
            return
        for _ in range(TURNS):
            if not self._inbox.is_awaited:
                return
            await asyncio.sleep(0)
        self._demand_more()

    async def _tell_end(self, observer: AsyncObserver[Any], failure: Exception | None) -> None:
        try:
            await (observer.aclose() if failure is None else observer.athrow(failure))
        except Exception as error:
            self._inbox.end(error)
