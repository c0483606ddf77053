"""The stream that a request's caller holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import Disposable

from operators import FusedRun, Operator
from rx_backend.context import RequestContext

__all__ = ("ResponseStream",)

T_co = TypeVar("T_co", covariant=True)


class ResponseStream(FusedRun[T_co], Generic[T_co]):
    """
    One request's items: an async iterator, an async context manager, and an Observable.

    Pulling drives the engine; nothing is buffered (row S4). Closing the stream, cancelling the task
    that pulls it, leaving an ``async for`` early and losing the last reference are all a drop:
    everything that the request holds is released, once (row S7).

    The stream is for one consumer at a time; it lives on the event loop that made it.

    Attributes:
        context: The request's context, to stop or to kill it by.
    """

    __slots__ = ("_has_subscriber", "context")

    def __init__(
        self,
        source: AsyncIterator[Any],
        operators: Sequence[Operator[Any, Any]],
        *,
        context: RequestContext,
        enter: Callable[..., Any],
        on_end: Callable[[], None] | None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(source, operators, enter=enter, on_end=on_end, loop=loop)
        self.context = context
        self._has_subscriber = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def subscribe(
        self,
        on_next: abc.ObserverBase[T_co] | abc.OnNext[T_co] | None = None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
        *,
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        """
        Push the items to an observer, from a task that pulls the stream.

        Takes what ``Observable.subscribe`` takes. Disposing of the result drops the stream.
        """
        return self.as_observable().subscribe(on_next, on_error, on_completed, scheduler=scheduler)

    def pipe(self, *operators: Callable[[Any], Any]) -> Any:
        """Apply ``reactivex`` operators, as in ``stream.as_observable().pipe(...)``."""
        return self.as_observable().pipe(*operators)

    def as_observable(self) -> Observable[T_co]:
        """
        The stream as an Observable, for one subscription.

        Subscribing starts a task on the stream's event loop that pulls it and pushes to the
        observer; disposing drops the stream. A second subscription gets an error.
        """

        def subscribe(
            observer: abc.ObserverBase[T_co], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            if self._has_subscriber:
                observer.on_error(RuntimeError("a response stream can be subscribed to only once"))
                return Disposable()
            self._has_subscriber = True
            task = self._release.loop.create_task(self._push_to(observer))
            _pushing.add(task)
            task.add_done_callback(_pushing.discard)

            def dispose() -> None:
                task.cancel()
                self.close()

            return Disposable(dispose)

        return Observable(subscribe)

    async def _push_to(self, observer: abc.ObserverBase[T_co]) -> None:
        try:
            async for item in self:
                observer.on_next(item)
        except Exception as error:
            observer.on_error(error)
        else:
            observer.on_completed()
        finally:
            self.close()


_pushing: set[asyncio.Task[None]] = set()
