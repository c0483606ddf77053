"""Any ``aioreactive`` operator as a part of a pulled pipeline, and what it means for the pull."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable
from typing import Any

from operators._core.aio_operator import (
    AioOperator,
    answers_within_asend,
    applied_async,
    async_observable,
    is_aio_operator,
)
from operators._core.aio_subscription import AioSubscription, Disposes, Observes, SubscribesAsync
from operators._core.foreign import ForeignSegment
from operators._core.tasks import start_task

__all__ = ("AioOperator", "AioSegment", "is_aio_operator")


class AioSegment(ForeignSegment):
    """
    An ``aioreactive`` operator between two parts of a pulled pipeline.

    The operator is given an item by awaiting its ``asend``, so that the source is not pulled either
    while an asynchronous step is under way; and its own ``asend`` to us returns when no more than
    one item waits to be taken. What it holds back in tasks of its own waits there. A detached one is
    let work off each item before the next.

    The operator is subscribed to at the first pull. On every way out the subscription is disposed
    of, and the tasks that the library started for it are ended, also where it forgets them itself.

    Args:
        source: The part before this one.
        operator: The operator.
        where: Its place, for errors.
        context: The context that whoever pulls is in; the task pulls in it too.

    Raises:
        NotAnOperator: *operator* gives no AsyncObservable, or can't be applied at all.
    """

    __slots__ = (
        "_begun",
        "_closing",
        "_observer",
        "_result",
        "_room",
        "_subscribed",
        "_subscription",
    )

    def __init__(
        self,
        source: Any,
        operator: AioOperator,
        where: str,
        context: contextvars.Context | None = None,
    ) -> None:
        super().__init__(source, context, detached=not answers_within_asend(operator))
        self._result: SubscribesAsync[Any] | None = applied_async(
            operator, async_observable(self._subscribe_source), where
        )
        self._subscription = AioSubscription(self._loop, self._end)
        self._begun = False
        self._observer: Observes | None = None
        self._subscribed = asyncio.Event()
        self._room = asyncio.Event()
        self._closing: asyncio.Task[None] | bool = False

    def _more(self) -> Awaitable[None]:
        if self._detached:
            self._start_pump()
        elif not self._begun:
            return self._begin()
        elif self._observer is not None:
            return self._pull()
        return self._wait()

    def _taken(self, item: Any) -> Any:
        self._room.set()
        return item

    async def _begin(self) -> None:
        self._begun = True
        result, self._result = self._result, None
        if result is None:
            return
        try:
            await self._subscription.begin(result, self._take, self._fail, self._complete)
        except Exception as error:
            self._end(error)

    async def _pull_on_demand(self) -> None:
        await self._begin()
        await self._subscribed.wait()
        while True:
            await self._demand.wait()
            if self._observer is None:
                return
            await self._pull()
            if not self._out:
                await self._subscription.settle()

    async def _pull(self) -> None:
        try:
            item = await anext(self._source)
        except StopAsyncIteration:
            await self._tell_end()
        except Exception as error:
            await self._tell_failure(error)
        else:
            if self._observer is not None:
                try:
                    await self._subscription.run(self._observer.asend(item))
                except Exception as error:
                    # The library's own sources answer so to an operator that raises.
                    await self._tell_failure(error)
            if self._source.ended:
                await self._tell_end()

    async def _tell_end(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            try:
                await self._subscription.run(observer.aclose())
            except Exception as error:
                self._end(error)

    async def _tell_failure(self, error: Exception) -> None:
        observer, self._observer = self._observer, None
        self._source.close()
        if observer is None:
            self._end(error)
            return
        try:
            await self._subscription.run(observer.athrow(error))
        except Exception as failure:
            self._end(failure)

    # What the operator does.

    async def _subscribe_source(self, observer: Observes) -> Disposes:
        from aioreactive import AsyncDisposable  # noqa: PLC0415 - who has operators of it has it

        if self._subscribed.is_set():
            # The operator isn't told: one that tries again on an error would do so for ever.
            self._end(RuntimeError("a token stream can be subscribed to only once"))
            return AsyncDisposable.empty()
        self._observer = observer
        self._subscribed.set()
        return AsyncDisposable.create(self._unsubscribe_source)

    async def _unsubscribe_source(self) -> None:
        self._leave_source()

    def _leave_source(self) -> None:
        """The operator wants no more of its source."""
        self._observer = None
        # A pull that is under way unwinds by this; the task that waits in it ends with it.
        self._source.close()
        self._subscribed.set()
        self._demand.set()

    async def _take(self, item: Any) -> None:
        if self._done:
            # Who goes on all the same must not hold up the loop.
            await asyncio.sleep(0)
            return
        self._out.append(item)
        self._wake()
        while self._detached and len(self._out) > 1:
            self._room.clear()
            await self._room.wait()

    async def _fail(self, error: Exception) -> None:
        self._end(error)

    async def _complete(self) -> None:
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if not self._done:
            super()._end(error)
            # Most operators forget to.
            self._leave_source()

    # The ways out.

    def close(self) -> None:
        """Drop: the operator's subscription, its tasks, the source and its task. Idempotent."""
        if self._closing is not False:
            return
        self._closing = True
        self._done = True
        self._error = None
        self._result = None
        self._out.clear()
        if self._loop.is_closed():
            self._source.close()
            return
        self._room.set()
        self._wake()
        self._leave_source()
        if self._pump is not None:
            self._pump.cancel()
        task = start_task(self._release(), self._loop, None)
        if task is not None:
            self._closing = task
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    async def _release(self) -> None:
        await self._subscription.dispose()
        if self._pump is not None and not self._pump.done():
            await asyncio.wait([self._pump])

    async def aclose(self) -> None:
        """Drop, and wait until everything is released."""
        self.close()
        if isinstance(self._closing, asyncio.Task) and not self._closing.done():
            await asyncio.wait([self._closing])
        await self._source.aclose()


_closing: set[asyncio.Task[None]] = set()
