"""The stream of one request."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

from reactivex import Observable, abc
from reactivex.disposable import Disposable

from operators import LoopScheduler, peek_first
from operators.assembly import StreamObserver, done, push_in_task, start_task, with_loop_timers
from operators.authoring import FusedRun, Operator, Transform
from rx_backend.errors import Unknown, as_backend_error
from rx_backend.scope import RequestScope

if TYPE_CHECKING:
    from aioreactive import AsyncDisposable, AsyncObservable, AsyncObserver

__all__ = ("ResponseStream",)

A = TypeVar("A")
B = TypeVar("B")
T_co = TypeVar("T_co", covariant=True)


class ResponseStream(FusedRun[T_co], Generic[T_co]):
    """
    One request's items: an async iterator, an async context manager, and an Observable.

    Pulling drives the engine; nothing is buffered (row S4). Closing the stream, cancelling the task
    that pulls it, leaving an ``async for`` early and dropping the last reference are all a drop,
    which releases everything that the request holds, once (row S7). A stream has one consumer at a
    time, on the event loop on which it was made.

    Attributes:
        context: The request's context, through which to stop or kill it.
    """

    __slots__ = ("_has_subscriber", "_is_disposed", "context")

    def __init__(
        self,
        source: AsyncIterator[Any],
        operators: Sequence[Operator[Any, Any]],
        *,
        scope: RequestScope,
        own_context: contextvars.Context | None = None,
        observer: StreamObserver | None = None,
    ) -> None:
        super().__init__(
            source,
            operators,
            own_context=own_context,
            scope=scope,
            observer=observer,
            loop=scope.loop,
        )
        self.context = scope.context
        self._has_subscriber = False
        self._is_disposed = False

    def __repr__(self) -> str:
        state = "dropped" if self.dropped else "ended" if self.has_ended else "open"
        return f"<ResponseStream of {self.context!r}, {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def peek_first(self) -> Self:
        """
        Pull up to the first token, so that a failure before it is raised here (rows S5, S6).

        Otherwise a request that fails early is a stream of one error item, too late for an error
        status. The stream is returned, and hands out everything from its beginning. A cancellation
        here is a drop. See :func:`operators.peek_first`::

            stream = await adapter.generate(request, context)
            await stream.peek_first()  # raises what `generate` would have raised

        Raises:
            BackendError: The error that came before any token or other terminal; ``Unknown`` for an
                ``error`` terminal. Everything is released.
        """
        try:
            return await peek_first(self, error=Unknown)
        except Exception as error:
            typed = as_backend_error(error)
            if typed is error:
                raise
            raise typed from error

    def subscribe(
        self,
        on_next: abc.ObserverBase[T_co] | abc.OnNext[T_co] | None = None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
        *,
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        """
        Push the items to an observer, as ``Observable.subscribe``, from a task that pulls the stream.

        Disposing of the result drops the stream.
        """
        timers = scheduler or LoopScheduler(self.event_loop)
        return self.as_observable().subscribe(on_next, on_error, on_completed, scheduler=timers)

    @overload
    def pipe(self, operator: Transform[T_co, B], /) -> Observable[B]: ...
    @overload
    def pipe(self, *operators: Transform[A, A]) -> Observable[T_co]: ...
    @overload
    def pipe(self, *operators: Callable[[Any], Any]) -> Any: ...
    def pipe(self, *operators: Callable[[Any], Any]) -> Any:
        """
        Apply ``reactivex`` operators, as in ``stream.as_observable().pipe(...)``.

        Timers run on the stream's event loop unless an operator or the subscriber passes a scheduler
        (row O6).
        """
        loop = self.event_loop
        return with_loop_timers(self.as_observable().pipe(*operators), lambda: loop)

    def as_observable(self) -> Observable[T_co]:
        """
        Return the stream as an Observable, for one subscription.

        Subscribing starts a task on the stream's event loop that pulls it and pushes to the
        observer; disposing, in any thread, drops the stream. A second subscription fails.
        """

        def subscribe(
            observer: abc.ObserverBase[T_co], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            if self._has_subscriber:
                observer.on_error(RuntimeError(_ONLY_ONCE))
                return Disposable()
            self._has_subscriber = True
            return push_in_task(self, observer, self.event_loop)

        return Observable(subscribe)

    def as_async_observable(self) -> AsyncObservable[T_co]:
        """
        Return the stream as an ``aioreactive`` AsyncObservable, for one subscription.

        Subscribing starts a task on the stream's event loop that pulls it, and awaits the
        observer's ``asend`` before it pulls again, which keeps back-pressure. Disposing drops the
        stream and waits until everything is released. A second subscription fails.

        Raises:
            ImportError: ``aioreactive`` is not installed.
        """
        from aioreactive import (  # noqa: PLC0415 - importing the library stays light
            AsyncAnonymousObservable,
            AsyncDisposable,
        )

        async def subscribe(observer: AsyncObserver[T_co]) -> AsyncDisposable:
            if self._has_subscriber:
                await observer.athrow(RuntimeError(_ONLY_ONCE))
                return AsyncDisposable.empty()
            self._has_subscriber = True
            task = start_task(self._send_to(observer), self.event_loop)

            async def dispose() -> None:
                self._is_disposed = True
                is_inside = asyncio.current_task() is task
                if not is_inside:
                    task.cancel()
                await self.aclose()
                if not is_inside:
                    await done(task)

            return AsyncDisposable.create(dispose)

        return AsyncAnonymousObservable(subscribe)

    async def _send_to(self, observer: AsyncObserver[T_co]) -> None:
        try:
            async for item in self:
                await observer.asend(item)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Otherwise the observer would wait forever.
            if not self._is_disposed:
                await observer.athrow(cast("Exception", error))
        else:
            if not self._is_disposed:
                await observer.aclose()
        finally:
            self.close()


_ONLY_ONCE = "a response stream can be subscribed to only once"
