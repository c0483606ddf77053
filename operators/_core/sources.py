"""Asynchronous iterators made of observables: of ``reactivex`` ones and of asynchronous ones."""

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
    What the user holds of a source.

    The subscription knows the inbox alone, so that losing the last reference to this is a drop.
    """

    __slots__ = ("__weakref__", "_inbox")

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def __anext__(self) -> T:
        return await self._inbox.pull()

    def open(self) -> None:
        """Subscribe now, not at the first pull; what comes until then waits."""
        self._inbox.open()

    def close(self) -> None:
        """Drop without waiting: the subscription is given up, once. A pull under way ends."""
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
    knows no back-pressure: what it pushes between two pulls is buffered here, without a limit. It
    may push from any thread; its items come out on the loop.

    Closing, cancelling the task that pulls, and losing the last reference are a drop, and dispose
    of the subscription. After the end, and after a failure, there is nothing more.

    Args:
        observable: The Observable.
        scheduler: For its timers; those of the event loop when left out.

    >>> import asyncio, reactivex
    >>> from operators.authoring import ObservableSource
    >>> async def main():
    ...     return [item async for item in ObservableSource(reactivex.of(1, 2, 3))]
    >>> asyncio.run(main())
    [1, 2, 3]
    """

    __slots__ = ()

    def __init__(
        self, observable: Observable[T], *, scheduler: abc.SchedulerBase | None = None
    ) -> None:
        # What waits is a copy, made in the thread that pushes (row E6).
        super().__init__(RxInbox(observable.pipe(ops.map(own_copy)), scheduler))


class AsyncObservableSource(_Source[T], Generic[T]):
    """
    The items of an ``aioreactive`` AsyncObservable, pulled.

    It is subscribed to at the first pull. Back-pressure is kept: like a ``yield``, its ``asend``
    returns when the item was taken and the next one is asked for. Operators of that library that
    put items in a mailbox return from ``asend`` themselves, and buffer there.

    Closing, cancelling the task that pulls, and losing the last reference are a drop: the
    subscription is disposed of, and the tasks that the library started for it are ended. After the
    end, and after a failure, there is nothing more.

    Args:
        observable: The AsyncObservable, or what else has its ``subscribe_async``.

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

    __slots__ = ()

    def __init__(self, observable: SubscribesAsync[T]) -> None:
        super().__init__(AioInbox(observable))
