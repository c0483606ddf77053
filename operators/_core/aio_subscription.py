"""One subscription of an ``aioreactive`` observable, and what is left behind by the library."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, TypeVar

from operators._core.failures import redacted_exc_info

__all__ = ("TURNS", "AioSubscription", "Disposes", "Observes", "SubscribesAsync")

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

TURNS = 16
"""How many turns of the loop the library's tasks are given to pass a message on: two a mailbox."""


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

    Most operators of that library hand their items to tasks that wait for messages, and that
    disposing does not end. The tasks of the library that subscribing starts, in its first step, are
    noted and ended with the subscription. Tasks of a user's own functions are left alone.

    Args:
        on_failure: Called with what such a task raised. The library would only log it, and the
            stream would wait for ever.
    """

    __slots__ = ("_disposable", "_is_disposed", "_on_failure", "_tasks")

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()
        self._disposable: Disposes | None = None
        self._is_disposed = False

    async def begin(
        self,
        observable: SubscribesAsync[Any],
        send: Callable[[Any], Awaitable[None]],
        throw: Callable[[Exception], Awaitable[None]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """Subscribe."""
        subscribing = observable.subscribe_async(send, throw, close)
        self._disposable = await self._note_tasks(subscribing)

    async def dispose(self) -> None:
        """Dispose, and wait until nothing is left. To be called once, when subscribing is over."""
        self._is_disposed = True
        if self._disposable is not None:
            try:
                await self._disposable.dispose_async()
            except Exception as error:
                _log.error(
                    "disposing of an asynchronous subscription failed",
                    exc_info=redacted_exc_info(error),
                )
        # A task may have been told to dispose of more, such as the inner streams of a flat_map.
        for _ in range(TURNS):
            if self._tasks:
                await asyncio.sleep(0)
        while any(map(_is_disposing, self._tasks)):
            await asyncio.wait(set(self._tasks), timeout=0.02)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))

    @types.coroutine
    def _note_tasks(self, awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
        """Await, noting the tasks of the library that the first step starts."""
        steps = awaitable.__await__()
        failure: BaseException | None = None
        others: set[asyncio.Task[Any]] | None = asyncio.all_tasks()
        while True:
            try:
                signal = next(steps) if failure is None else _throw(steps, failure)
            except StopIteration as stop:
                return stop.value
            finally:
                failure = None
                if others is not None:
                    for task in filter(_is_of_the_library, asyncio.all_tasks() - others):
                        self._tasks.add(task)
                        task.add_done_callback(self._task_done)
                    others = None
            try:
                yield signal
            except BaseException as error:
                failure = error

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error: BaseException | None
        if task.cancelled():
            # The library keeps its cancelled tasks: taking the exception frees its traceback.
            with contextlib.suppress(asyncio.CancelledError):
                task.exception()
            error = None if task.cancelling() else asyncio.CancelledError()
        else:
            error = task.exception()
        if error is not None and not self._is_disposed:
            self._on_failure(error)


def _throw(steps: Any, failure: BaseException) -> Any:
    return steps.throw(failure)


def _is_of_the_library(task: asyncio.Task[Any]) -> bool:
    frame = getattr(task.get_coro(), "cr_frame", None)
    module: str = "" if frame is None else frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in {"aioreactive", "expression"}


def _is_disposing(task: asyncio.Task[Any]) -> bool:
    """Return whether a task waits inside a ``dispose_async``, which is not to be cut short."""
    inner: Any = task.get_coro()
    while inner is not None:
        code = getattr(inner, "cr_code", None)
        if code is not None and code.co_name == "dispose_async":
            return True
        inner = getattr(inner, "cr_await", None)
    return False


_log = logging.getLogger(__name__)
