"""A source that is pulled in a task of its own, on demand."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from operators._core.failures import drop_top_frame
from operators._core.tasks import current_task, done, start_task, weakly

if TYPE_CHECKING:
    from operators._core.fusion import FusedRun

__all__ = ("Pump",)

T = TypeVar("T")

# How many items are pulled in one turn of the loop.
_AT_A_TURN = 16


class Pump(Generic[T]):
    """
    Pull a source in a task of its own, once for each demand.

    All pulls run in that one task, so an engine may hold what belongs to a task across its `yield`.
    Between demands the task refers to the pump weakly: a stream that is lost takes its pump along.

    Args:
        source: What to pull, in its own context. The task closes it at the end.
        on_item: Called with each item, in the task. It may be a coroutine function; a demand
            that it makes is the next pull. A source that never waits has its turn of the loop end
            after 16 items.
        on_end: Called once with the failure, or with None at the end of the source; not after
            :meth:`close`. It may be a coroutine function, but for a failure that is no
            ``Exception``, such as the cancellation of the task.
        context: What the task runs in where the source enters its own context with each pull. For
            such a source the task is a consumer like any other: its cancellation is a drop.

    Attributes:
        busy: A pull was demanded and has not come to its item or its end.
        task: The task, once there was a demand.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_demand",
        "_is_closed",
        "_is_handling",
        "_leaves_source",
        "_on_end",
        "_on_item",
        "_pulled",
        "busy",
        "source",
        "task",
    )

    def __init__(
        self,
        source: FusedRun[T],
        on_item: Callable[[T], Awaitable[None] | None],
        on_end: Callable[[BaseException | None], Awaitable[None] | None],
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
        """Pull once more, unless a pull is under way or the source is at its end."""
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
            self.task.add_done_callback(weakly(self._task_done))
        else:
            self._wake()

    def stop(self) -> None:
        """End the task and leave the source open, for others to pull; not while a pull waits."""
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
        """Pull as demanded, in the task; return what to wait for next, or None at the end."""
        failure: Exception | None = None
        try:
            while self.busy and not self._is_closed:
                try:
                    item = await anext(self.source)
                except StopAsyncIteration:
                    break
                self.busy = False
                self._is_handling = True
                handled = self._on_item(item)
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

    def _report_end(self, failure: BaseException | None) -> Awaitable[None] | None:
        """Call *on_end*, unless that is done or the pump was closed."""
        self.busy = False
        if self._is_closed:
            return None
        self._is_closed = True
        on_end = self._on_end
        self._forget()
        return on_end(failure)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        """Tell the consumer also where the task was cancelled, by whomever."""
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is not None:
            self.source.close()
            self._report_end(failure)

    def _forget(self) -> None:
        """Forget whom to call: they refer to the pump, and a cycle would wait for the collector."""
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
