"""A source that is pulled in its own task, on demand."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from operators._core.failures import drop_top_frame
from operators._core.tasks import current_task, done, start_release, start_task, weak_callback

if TYPE_CHECKING:
    from operators._core.fusion import FusedRun

__all__ = ("Pump",)

T = TypeVar("T")

# How many items are pulled in one loop iteration.
_AT_A_TURN = 16


class Pump(Generic[T]):
    """
    Pull a source in its own task, once for each demand.

    All pulls run in that task, so an engine may hold task-bound state across its `yield`. Between
    demands the task refers to the pump only weakly, so an abandoned stream releases its pump.

    Args:
        source: The source, pulled in its own context. The task closes it at the end.
        on_item: Called with each item, in the task. It may be a coroutine function; a demand within
            it causes the next pull. After 16 items from a source that never waits, the task yields
            to the loop.
        on_end: Called once with the failure, or with None at the end of the source; not after
            :meth:`close`. It may be a coroutine function.
        context: The task's context, if the source enters its own context for each pull. For such a
            source the task is an ordinary consumer: its cancellation is a drop.

    Attributes:
        busy: Whether a demanded pull has not yet produced its item or the end.
        task: The task, from the first demand on.
    """

    def __init__(
        self,
        source: FusedRun[T],
        on_item: Callable[[T], Awaitable[None] | None],
        on_end: Callable[[BaseException | None], Coroutine[Any, Any, None] | None],
        context: contextvars.Context | None = None,
    ) -> None:
        self.source = source
        self._context = context
        self._on_item = on_item
        self._on_end = on_end
        self.task: asyncio.Task[None] | None = None
        self._demand: asyncio.Future[None] | None = None
        self._is_closed = False
        self._is_handling = False
        self._leaves_source = False
        self._pulled = 0
        self.busy = False

    def demand(self) -> None:
        """Pull once more, unless a pull is in progress or the source has ended."""
        if self._is_closed:
            return
        self.busy = True
        if self.task is None:
            pump: weakref.ref[Pump[T]] = weakref.ref(self)
            source, context = self.source, self._context
            self.task = start_task(
                _pull_on_demand(pump),
                source.event_loop,
                source.own_context if context is None else context,
            )
            if context is None:
                source.pulled_by(self.task)
            self.task.add_done_callback(weak_callback(self._task_done))
        else:
            self._wake()

    def stop(self) -> None:
        """End the task but keep the source open for others to pull; not during a pull."""
        self._is_closed = self._leaves_source = True
        self._forget()
        self._wake()

    def close(self) -> None:
        """Drop the source without waiting; :meth:`wait_closed` waits. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._forget()
        if self._is_handling and self.task is not None and self.task is not current_task():
            self.task.cancel()
        self._wake()
        self.source.close()

    async def wait_closed(self) -> None:
        """Wait until the source is released and the task has ended, after :meth:`close`."""
        if self.task is not current_task():
            await done(self.task)
        await self.source.aclose()

    async def pull(self) -> asyncio.Future[None] | None:
        """Pull as demanded, in the task; return the next demand's future, or None at the end."""
        failure: Exception | None = None
        try:
            while self.busy and not self._is_closed:
                try:
                    item = await anext(self.source)
                except StopAsyncIteration:
                    break
                handled = self._handle(item)
                if handled is not None:
                    await handled
                self._is_handling = False
                if self.source.ended:
                    break
                self._pulled += 1
                if self.busy and not self._pulled % _AT_A_TURN:
                    await asyncio.sleep(0)
            else:
                if not self._is_closed:
                    self._demand = self.source.event_loop.create_future()
                    return self._demand
        except Exception as error:
            drop_top_frame(error)
            failure = error
        try:
            handled = self._report_end(failure)
        finally:
            # This frame may be in its traceback: a reference from here would be a cycle.
            del failure
        if handled is not None:
            await handled
        if not self._leaves_source:
            await self.source.aclose()
        return None

    def _handle(self, item: T) -> Awaitable[None] | None:
        self.busy = False
        if self._is_closed:
            # In the step that made the item.
            self.source.mark_undelivered(item)
            return None
        self._is_handling = True
        return self._on_item(item)

    def _report_end(self, failure: BaseException | None) -> Coroutine[Any, Any, None] | None:
        """Call *on_end*, unless already called or the pump was closed."""
        self.busy = False
        if self._is_closed:
            return None
        self._is_closed = True
        on_end = self._on_end
        self._forget()
        return on_end(failure)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        """Report the end also if the task was cancelled, by anyone."""
        if self._is_closed:
            # What *on_end* has raised is logged by asyncio.
            return
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        self.source.close()
        ending = self._report_end(failure)
        if ending is not None:
            start_release(ending, self.source.event_loop)

    def _forget(self) -> None:
        """Drop the callbacks: they refer to the pump, which would be a reference cycle."""
        self._on_item = self._on_end = _ignore

    def _wake(self) -> None:
        if self._demand is not None and not self._demand.done():
            self._demand.set_result(None)


async def _pull_on_demand(pump_ref: weakref.ref[Pump[T]]) -> None:
    while True:
        pump = pump_ref()
        demand = None if pump is None else await pump.pull()
        del pump
        if demand is None:
            return
        await demand


def _ignore(_: object) -> None: ...
