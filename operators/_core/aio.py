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
from operators._core.naming import name_of
from operators._core.pump import Pump
from operators._core.segment import Segment
from operators._core.tasks import weakly

__all__ = ("AioOperator", "AioSegment", "is_aio_operator")


class AioSegment(Segment):
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

    __slots__ = (
        "__weakref__",
        "_inbox",
        "_is_subscribed",
        "_names",
        "_observer",
        "_pump",
        "_source",
    )

    def __init__(
        self,
        source: Any,
        operators: Sequence[AioOperator],
        where: tuple[str, int] = ("pipeline", 0),
        context: contextvars.Context | None = None,
    ) -> None:
        self._source = source
        self._names = ", ".join(map(name_of, operators))
        self._observer: Observes | None = None
        self._is_subscribed = False
        # The library's tasks refer to these, but keep no lost stream alive.
        subscribed, unsubscribed = weakly(self._subscribed), weakly(self._leave_source)

        async def unsubscribe() -> None:
            unsubscribed()

        async def subscribe(observer: Observes) -> Disposes:
            from aioreactive import AsyncDisposable  # noqa: PLC0415 - who has operators has it

            subscribed(observer)
            return AsyncDisposable.create(unsubscribe)

        observable = async_observable(subscribe)
        name, place = where
        for number, operator in enumerate(operators, place):
            observable = applied_async(operator, observable, f"{name}[{number}]")
        self._pump: Pump[Any] | None = None
        if not all(map(answers_within_asend, operators)):
            self._pump = Pump(source, self._feed, self._source_ended, context)
        # Most operators forget to leave their source at the end.
        self._inbox = AioInbox(observable, ahead=1, on_end=unsubscribed)

    @property
    def ended(self) -> bool:
        return self._inbox.mailbox.ended

    @property
    def ended_by(self) -> str | None:
        source = self._source
        has_completed = source.has_ended and not source.dropped
        return source.ended_by if has_completed else self._names

    def raised_by(self, error: BaseException) -> str | None:
        return None if id(error) == self._source.raised else self._names

    def drop(self) -> None:
        self._source.drop()

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

    def _demand(self) -> None:
        if self._pump is not None and self._observer is not None:
            self._pump.demand()

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
        if mailbox.is_awaited:
            self._demand()

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

    def _subscribed(self, observer: Observes) -> None:
        if self._is_subscribed:
            # The operator isn't told: one that tries again on an error would do so for ever.
            self._inbox.end(RuntimeError("a token stream can be subscribed to only once"))
            return
        self._is_subscribed = True
        self._observer = observer
        if self._inbox.mailbox.is_awaited:
            self._demand()

    def _leave_source(self) -> None:
        """Drop the source, of which the operator wants no more; a pull under way ends, and a step."""
        self._observer = None
        if self._pump is not None:
            self._pump.close()
        else:
            self._source.close()

    def close(self) -> None:
        """Drop: the operators' subscription, its tasks, the source and its task. Idempotent."""
        self._inbox.close()
        # Where the garbage collector found the stream, nothing refers weakly to it any more.
        self._leave_source()

    async def aclose(self) -> None:
        """Drop, and wait until everything is released."""
        self.close()
        await self._inbox.released()
        if self._pump is not None:
            await self._pump.wait_closed()
        await self._source.aclose()
