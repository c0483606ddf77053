"""One subscription of an ``aioreactive`` observable, with every task that is started for it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import types
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, Protocol, TypeVar

from operators._core.failures import redacted_exc_info

__all__ = ("AioSubscription", "Disposes", "Observes", "SubscribesAsync")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Disposes(Protocol):
    """What subscribing gives: ``aioreactive`` calls it ``AsyncDisposable``."""

    def dispose_async(self) -> Awaitable[None]:
        """Give up the subscription."""
        ...


class Observes(Protocol):
    """What is told of items, failure and end: ``aioreactive`` calls it ``AsyncObserver``."""

    def asend(self, value: Any) -> Awaitable[None]:
        """Take an item."""
        ...

    def athrow(self, error: Exception) -> Awaitable[None]:
        """Take the failure, the last signal."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Take the end, the last signal."""
        ...


class SubscribesAsync(Protocol[T_co]):
    """What an ``aioreactive`` ``AsyncObservable`` is, told without importing it."""

    def subscribe_async(
        self,
        send: Callable[[T_co], Awaitable[None]] | None = None,
        throw: Callable[[Exception], Awaitable[None]] | None = None,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> Awaitable[Disposes]:
        """Subscribe three asynchronous functions: for items, for a failure, for the end."""
        ...


class AioSubscription:
    """
    One subscription of an ``aioreactive`` observable.

    Many operators of that library hand their items to tasks that they start and never end: each
    leaves at least one behind, whether its stream ends or is dropped. So whatever runs code of the
    operator runs it by way of :meth:`run`: a task that the library starts there belongs to the
    subscription, is watched in turn, and is cancelled when the subscription is given up. A task
    that a user's own function starts is left alone.

    Args:
        loop: The running event loop.
        on_failure: Called with what such a task raised; the library itself would only log it, and
            the stream would wait for ever.
    """

    __slots__ = ("_disposable", "_is_over", "_loop", "_moved", "_on_failure", "_steps", "_tasks")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_failure: Callable[[BaseException], None]
    ) -> None:
        self._loop = loop
        self._on_failure = on_failure
        self._tasks: dict[asyncio.Task[Any], _Worker] = {}
        self._steps = 0
        self._moved: asyncio.Future[None] | None = None
        self._disposable: Disposes | None = None
        self._is_over = False

    async def begin(
        self,
        observable: SubscribesAsync[Any],
        send: Callable[[Any], Awaitable[None]],
        throw: Callable[[Exception], Awaitable[None]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """Subscribe. What is given up meanwhile is disposed of as soon as there is something."""
        disposable = await self.run(observable.subscribe_async(send, throw, close))
        if self._is_over:
            await self._dispose_of(disposable)
        else:
            self._disposable = disposable

    @types.coroutine
    def run(self, awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
        """Await something that runs code of the operator, noting the tasks that it starts."""
        return (yield from self._watched(awaitable, None))

    async def settle(self) -> None:
        """
        Wait until the library's tasks have worked off what they were given.

        They have when a turn of the loop has passed in which none had anything to do; what one
        tells another takes a turn to get there.
        """
        while True:
            before = self._steps
            await asyncio.sleep(0)
            if self._steps == before and not any(map(_Worker.is_woken, self._tasks.values())):
                return

    async def dispose(self) -> None:
        """Give up the subscription; waits until nothing of it is left. To be called once."""
        self._is_over = True
        disposable, self._disposable = self._disposable, None
        if disposable is not None:
            await self._dispose_of(disposable)
        # A task may have been told to dispose of more, such as the inner streams of a flat_map.
        await self.settle()
        while any(map(_Worker.is_disposing, self._tasks.values())):
            self._moved = self._loop.create_future()
            await self._moved
            await self.settle()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(list(self._tasks))

    async def _dispose_of(self, disposable: Disposes) -> None:
        try:
            await self.run(disposable.dispose_async())
        except Exception as error:
            _log.error(
                "disposing of an asynchronous subscription failed", exc_info=redacted_exc_info(error)
            )

    # Steps of the operator's code.

    def _watched(self, awaitable: Awaitable[T], worker: _Worker | None) -> Generator[Any, Any, T]:
        steps = awaitable.__await__()
        advance: Callable[..., Any] = steps.__next__
        failure: tuple[BaseException, ...] = ()
        try:
            while True:
                signal = self._step(advance, *failure)
                if worker is not None:
                    worker.waits_for = signal
                    self._stepped(signal)
                try:
                    yield signal
                except GeneratorExit:
                    close = getattr(steps, "close", None)
                    if close is not None:
                        self._step(close)
                    raise
                except BaseException as error:
                    advance, failure = steps.throw, (error,)
                else:
                    advance, failure = steps.__next__, ()
        except StopIteration as stop:
            return stop.value
        finally:
            # An exception that is kept would be a cycle with this frame.
            failure = ()

    def _step(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call with this subscription as the maker of tasks; nobody else runs meanwhile."""
        loop = self._loop
        before = loop.get_task_factory()
        loop.set_task_factory(partial(self._make_task, before))
        try:
            return function(*arguments)
        finally:
            loop.set_task_factory(before)

    def _make_task(
        self, others: Any, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Future[Any]:
        if not _is_of_the_library(coroutine):
            if others is not None:
                return others(loop, coroutine, **options)
            return asyncio.Task(coroutine, loop=loop, **options)
        # The library puts up with no other kind of task, such as one that starts at once.
        options.pop("eager_start", None)
        worker = _Worker(coroutine)
        task = asyncio.Task(self._work(worker), loop=loop, **options)
        self._tasks[task] = worker
        task.add_done_callback(self._worker_ended)
        return task

    async def _work(self, worker: _Worker) -> Any:
        return await self._work_on(worker)

    @types.coroutine
    def _work_on(self, worker: _Worker) -> Generator[Any, Any, Any]:
        return (yield from self._watched(worker.coroutine, worker))

    def _worker_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task).close()
        _forget(task)
        self._stepped(task)
        if task.cancelled():
            # By itself, that is: one that was asked to end has ended as it should.
            error = None if task.cancelling() else asyncio.CancelledError()
        else:
            error = task.exception()
        if error is not None and not self._is_over:
            self._on_failure(error)

    def _stepped(self, signal: object) -> None:
        # One that only gives way to others, again and again, does not hold up the stream.
        if signal is not None:
            self._steps += 1
        if self._moved is not None and not self._moved.done():
            self._moved.set_result(None)


_NOTHING_YET = object()


class _Worker:
    """A task of the library's: its coroutine, and what that waits for."""

    __slots__ = ("coroutine", "waits_for")

    def __init__(self, coroutine: types.CoroutineType[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.waits_for: Any = _NOTHING_YET

    def is_woken(self) -> bool:
        """Whether the loop is about to run it, for the first time or again."""
        is_done = getattr(self.waits_for, "done", None)
        return self.waits_for is _NOTHING_YET or (is_done is not None and is_done())

    def close(self) -> None:
        """Keep Python from complaining of what was cancelled before it began."""
        frame = self.coroutine.cr_frame
        if frame is not None and inspect.getcoroutinestate(self.coroutine) == inspect.CORO_CREATED:
            for value in frame.f_locals.values():
                if inspect.iscoroutine(value):
                    value.close()
        self.coroutine.close()

    def is_disposing(self) -> bool:
        """Whether it waits inside a ``dispose_async``."""
        inner: Any = self.coroutine
        while inner is not None:
            code = getattr(inner, "cr_code", None)
            if code is not None and code.co_name == "dispose_async":
                return True
            inner = getattr(inner, "cr_await", None)
        return False


_LIBRARY = frozenset(("aioreactive", "expression"))


def _is_of_the_library(coroutine: object) -> bool:
    frame = getattr(coroutine, "cr_frame", None)
    if frame is None:
        return False
    package: str = frame.f_globals.get("__name__", "")
    return package.partition(".")[0] in _LIBRARY


def _forget(task: asyncio.Task[Any]) -> None:
    """Have the library forget a task too: it remembers for ever those that were cancelled."""
    tools = sys.modules.get("expression.core.aiotools")
    running = getattr(tools, "__running_tasks", None)
    if isinstance(running, set):
        running.discard(task)


_log = logging.getLogger(__name__)
