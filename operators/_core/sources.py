"""Asynchronous iterators over observables of either library."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar, cast

from reactivex import Observable, abc
from reactivex import operators as ops

from operators._core.aio_inbox import AioInbox, SubscribesAsync
from operators._core.inbox import Inbox, RxInbox
from operators._core.own_copy import own_copy

__all__ = ("AsyncObservableSource", "ObservableSource", "source_of")

T = TypeVar("T")


def source_of(value: object) -> AsyncIterator[Any] | None:
    """Return the items of an observable of either library; None for anything else."""
    if isinstance(value, abc.ObservableBase):
        return ObservableSource(cast("Observable[Any]", value))
    if hasattr(value, "subscribe_async"):
        return AsyncObservableSource(cast("SubscribesAsync[Any]", value))
    return None


class _Source(AsyncIterator[T]):
    """
    The user's handle of a source.

    The subscription refers only to the inbox, so dropping the last reference to this is a drop.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def __anext__(self) -> T:
        return await self._inbox.pull()

    def open(self) -> None:
        """Subscribe now instead of at the first pull; items that arrive earlier wait."""
        self._inbox.open()

    def close(self) -> None:
        """Drop without waiting: dispose of the subscription, once. A pending pull ends."""
        self._inbox.close()

    async def aclose(self) -> None:
        """Drop, and wait until everything is released."""
        self._inbox.close()
        await self._inbox.released()

    def __del__(self) -> None:
        inbox: Inbox | None = getattr(self, "_inbox", None)
        if inbox is not None:
            inbox.abandon()


class ObservableSource(_Source[T], Generic[T]):
    """
    The items of a ``reactivex`` Observable, pulled.

    It is subscribed to at the first pull, with the running event loop for its timers. An Observable
    has no back-pressure: items pushed between two pulls are buffered here, without a limit. It may
    push from any thread; its items come out on the loop.

    Closing, cancelling the pulling task, and dropping the last reference are a drop, and dispose of
    the subscription. After the end or a failure there are no more items.

    Args:
        observable: The Observable.
        scheduler: For its timers; by default the event loop's.

    >>> import asyncio, reactivex
    >>> from operators.authoring import ObservableSource
    >>> async def main():
    ...     return [item async for item in ObservableSource(reactivex.of(1, 2, 3))]
    >>> asyncio.run(main())
    [1, 2, 3]
    """

    def __init__(
        self, observable: Observable[T], *, scheduler: abc.SchedulerBase | None = None
    ) -> None:
        # Waiting items are copies, made in the pushing thread (row E6).
        super().__init__(RxInbox(observable.pipe(ops.map(own_copy)), scheduler))


class AsyncObservableSource(_Source[T], Generic[T]):
    """
    The items of an ``aioreactive`` AsyncObservable, pulled.

    It is subscribed to at the first pull. It has back-pressure: like a ``yield``, its ``asend``
    returns when the item was consumed and the next one is requested. Operators of that library with
    a mailbox return from ``asend`` at once, and buffer there.

    Closing, cancelling the pulling task, and dropping the last reference are a drop: the
    subscription is disposed of, and the tasks that the library started for it are ended. After the
    end or a failure there are no more items.

    Args:
        observable: The AsyncObservable, or any object with its ``subscribe_async``.

    >>> import asyncio
    >>> from operators.authoring import AsyncObservableSource
    >>> class Countdown:
    ...     async def subscribe_async(self, send, throw, close):
    ...         for number in (3, 2, 1):
    ...             await send(number)
    ...         await close()
    ...         return self
    ...     async def dispose_async(self):
    ...         print("disposed")
    >>> async def main():
    ...     return [item async for item in AsyncObservableSource(Countdown())]
    >>> asyncio.run(main())
    disposed
    [3, 2, 1]
    """

    def __init__(self, observable: SubscribesAsync[T]) -> None:
        super().__init__(AioInbox(observable))
