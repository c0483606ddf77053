"""The items of an ``aioreactive`` observable, which waits until each is consumed."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from operators._core.failures import redacted_exc_info
from operators._core.inbox import Inbox
from operators._core.tasks import done, start_release, start_task

__all__ = ("TURNS", "AioInbox", "SubscribesAsync")

T_co = TypeVar("T_co", covariant=True)

TURNS = 16
"""How many loop iterations the library's tasks need to pass on a message: two per mailbox."""


class _Disposes(Protocol):
    def dispose_async(self) -> Awaitable[None]: ...


class SubscribesAsync(Protocol[T_co]):
    """The shape of an ``aioreactive`` ``AsyncObservable``, without importing it."""

    def subscribe_async(
        self,
        send: Callable[[T_co], Awaitable[None]] | None = None,
        throw: Callable[[Exception], Awaitable[None]] | None = None,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> Awaitable[_Disposes]:
        """Subscribe three async functions: for items, for a failure, for the end."""
        ...


class AioInbox(Inbox):
    """
    The inbox of an ``aioreactive`` AsyncObservable, whose ``asend`` blocks until more is needed.

    Most operators of that library pass items to tasks that wait for messages, and that disposing
    does not end. Library tasks started in the first step of subscribing are recorded and ended with
    the subscription. Tasks of the user's own functions are not touched.

    Args:
        observable: The AsyncObservable.
        lead: How far the pulls must be ahead of the sent items for ``asend`` to return. 1 is like a
            ``yield``: the item was consumed and the next one is requested.
        on_end: Called when the stream has ended.
    """

    def __init__(
        self,
        observable: SubscribesAsync[Any],
        *,
        lead: int = 1,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(observable)
        self._lead = lead
        self._on_end = on_end
        self._subscribing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._disposable: _Disposes | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asked = self._sent = 0
        # The pull that each sender waits for, and the sender's future.
        self._held: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def pull(self) -> Any:
        """Return the next item, and resume the senders that waited for that."""
        if not self.is_awaited:
            self._asked += 1
            self._release_senders(self._asked)
        return await super().pull()

    async def opened(self) -> None:
        self.open()
        await done(self._subscribing)

    def end(self, error: BaseException | None = None) -> None:
        super().end(error)
        if self._on_end is not None:
            self._on_end()

    async def released(self) -> None:
        await done(self._closing)

    def _subscribe(self, observable: SubscribesAsync[Any], loop: asyncio.AbstractEventLoop) -> None:
        before: set[asyncio.Task[Any]] = set()
        # In a task: it may send, and wait for its consumer, before subscribing is complete. Nothing
        # else runs between its first step and the two calls around it.
        loop.call_soon(lambda: before.update(asyncio.all_tasks()))
        self._subscribing = start_task(self._begin(observable), loop)
        loop.call_soon(lambda: self._note(asyncio.all_tasks() - before))

    async def _begin(self, observable: SubscribesAsync[Any]) -> None:
        try:
            self._disposable = await observable.subscribe_async(
                self._send, self._throw, self._complete
            )
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.end(error)

    async def _send(self, item: Any) -> None:
        if self.is_closed:
            # A sender that does not stop must not block the loop.
            await asyncio.sleep(0)
            return
        self._sent += 1
        needed = self._sent + self._lead
        self.put(item)
        if needed > self._asked:
            held = asyncio.get_running_loop().create_future()
            self._held.append((needed, held))
            await held

    async def _throw(self, error: Exception) -> None:
        self.end(error)

    async def _complete(self) -> None:
        self.end()

    def _release_senders(self, asked: int) -> None:
        while self._held and self._held[0][0] <= asked:
            _, held = self._held.popleft()
            if not held.done():
                held.set_result(None)

    def _note(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in filter(_is_of_the_library, tasks):
            self._tasks.add(task)
            task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error: BaseException | None = None
        try:
            # The library keeps its cancelled tasks: retrieving the exception frees its traceback.
            error = task.exception()
        except asyncio.CancelledError:
            if not task.cancelling():
                error = asyncio.CancelledError()
        if error is not None:
            # The library would only log it, and the stream would wait forever.
            self.end(error)

    def _dispose(self, loop: asyncio.AbstractEventLoop) -> None:
        self._closing = start_release(self._release(), loop)
        # After the first step of the release, so that a cancelled sender is not resumed as well.
        loop.call_soon(self._release_senders, self._sent + 1)

    async def _release(self) -> None:
        """Dispose of the subscription, and wait until all its tasks are done."""
        if self._subscribing is not None and not self._subscribing.done():
            self._subscribing.cancel()
            await done(self._subscribing)
        if self._disposable is not None:
            try:
                await self._disposable.dispose_async()
            except Exception as error:
                _log.error(
                    "disposing of an AsyncObservable subscription failed",
                    exc_info=redacted_exc_info(error),
                )
        # A task may have more to dispose of, such as the inner streams of a flat_map.
        for _ in range(TURNS):
            if self._tasks:
                await asyncio.sleep(0)
        while any(map(_is_disposing, self._tasks)):
            await asyncio.wait(set(self._tasks), timeout=0.02)
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))


def _is_of_the_library(task: asyncio.Task[Any]) -> bool:
    frame = getattr(task.get_coro(), "cr_frame", None)
    module: str = "" if frame is None else frame.f_globals.get("__name__", "")
    return module.partition(".")[0] in {"aioreactive", "expression"}


def _is_disposing(task: asyncio.Task[Any]) -> bool:
    """Return whether a task waits inside a ``dispose_async``, which must not be cancelled."""
    inner: Any = task.get_coro()
    while inner is not None:
        code = getattr(inner, "cr_code", None)
        if code is not None and code.co_name == "dispose_async":
            return True
        inner = getattr(inner, "cr_await", None)
    return False


_log = logging.getLogger(__name__)
