"""Any ``aioreactive`` operators as a part of a pulled pipeline, and what they mean for the pull."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Sequence
from typing import Any

from operators._core.aio_inbox import AioInbox
from operators._core.aio_operator import (
    AioOperator,
    answers_within_asend,
    applied_async,
    async_observable,
    is_aio_operator,
)
from operators._core.aio_subscription import TURNS, Disposes, Observes
from operators._core.failures import nothing_due
from operators._core.foreign import ForeignSegment, applied_all
from operators._core.pump import Pump
from operators._core.tasks import weakly

__all__ = ("AioOperator", "AioSegment", "is_aio_operator")


class AioSegment(ForeignSegment[Observes, AioInbox]):
    """
    Neighbouring ``aioreactive`` operators between two parts of a pulled pipeline.

    They are given an item by awaiting their ``asend``. Where all of them answer within it, that is
    done in the consumer's pull. Others hand items to tasks of their own, so a task pulls for them:
    once for each pull of the consumer, and again while nothing has come of an item for some turns
    of the loop. Their ``asend`` to us returns while no more than one item waits; what is in their
    mailboxes waits there.

    The operators are subscribed to at the first pull.

    Args:
        source: The part before this one.
        operators: The operators, in order.
        where: What the list is called, and the place of the first, for errors.
        context: The context that whoever pulls is in; the task pulls in it too.

    Raises:
        NotAnOperator: An operator gives no AsyncObservable, or can't be applied at all.
    """

    __slots__ = ()

    def __init__(
        self,
        source: Any,
        operators: Sequence[AioOperator],
        where: tuple[str, int] = ("pipeline", 0),
        context: contextvars.Context | None = None,
    ) -> None:
        super().__init__(source, operators)
        # The library's tasks refer to these, but keep no lost stream alive.
        subscribed, unsubscribed = weakly(self._subscribed), weakly(self._leave_source)

        async def unsubscribe() -> None:
            unsubscribed()

        async def subscribe(observer: Observes) -> Disposes:
            from aioreactive import AsyncDisposable  # noqa: PLC0415 - who has operators has it

            subscribed(observer)
            return AsyncDisposable.create(unsubscribe)

        observable = applied_all(applied_async, operators, async_observable(subscribe), where)
        if not all(map(answers_within_asend, operators)):
            self._pump = Pump(source, self._feed, self._source_ended, context)
        # Most operators forget to leave their source at the end.
        self._inbox = AioInbox(observable, ahead=1, on_end=unsubscribed)

    async def __anext__(self) -> Any:
        mailbox = self._inbox.mailbox
        if self._pump is not None:
            self._demand()
        else:
            await self._inbox.opened()
            while not len(mailbox) and not mailbox.is_closed and self._observer is not None:
                await self._pull()
        item = await self._inbox.pull()
        if item is None:
            raise nothing_due()
        return item

    async def _pull(self) -> None:
        try:
            item = await anext(self._source)
        except StopAsyncIteration:
            await self._tell_end(None)
        except Exception as error:
            await self._tell_end(error)
        else:
            await self._send(item)
            if self._source.ended:
                await self._tell_end(None)

    async def _send(self, item: Any) -> None:
        if self._observer is not None:
            try:
                await self._observer.asend(item)
            except Exception as error:
                # The library's own sources answer so to an operator that raises.
                await self._tell_end(error)

    async def _feed(self, item: Any) -> None:
        mailbox = self._inbox.mailbox
        await self._send(item)
        if self._source.ended:
            # The end travels with the last item.
            return
        for _ in range(TURNS):
            if not mailbox.is_awaited:
                return
            await asyncio.sleep(0)
        self._demand_more()

    def _source_ended(self, failure: BaseException | None) -> Awaitable[None] | None:
        if failure is None or isinstance(failure, Exception):
            return self._tell_end(failure)
        # Cancellation and the like are no signal that an operator may turn into items.
        self._inbox.end(failure)
        return None

    async def _tell_end(self, failure: Exception | None) -> None:
        observer, self._observer = self._observer, None
        if observer is None:
            return
        try:
            await (observer.aclose() if failure is None else observer.athrow(failure))
        except Exception as error:
            self._inbox.end(error)
