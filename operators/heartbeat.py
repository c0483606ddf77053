"""Something to send while the engine is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, TypeVar, cast

from operators._core.failures import drop_top_frame
from operators._core.checked import checked
from operators._core.fusion import FusedRun
from operators._core.operator import operator
from operators._core.stage import last
from operators._lazy_timer import LazyTimer, check_seconds

__all__ = ("heartbeat",)

A = TypeVar("A")
B = TypeVar("B")


def _check(interval_s: float, item: object) -> None:
    check_seconds("heartbeat: interval_s", interval_s)


@checked(_check)
@operator
async def heartbeat(
    source: FusedRun[Any], interval_s: float, item: B | Callable[[], B]
) -> AsyncGenerator[Any]:
    """
    Hand out *item* whenever the consumer has waited for *interval_s* and nothing came.

    What the engine is doing is not disturbed by it: its step goes on, and what it gives comes out
    next, in order. Nothing comes in after the last item. With an interval of 2 seconds, which are
    frames::

        source  -a-----b-c-|
        result  -a-p-p-b-c-|

    The engine is pulled only when the consumer pulls, once for each of its items (row S4). While
    the consumer is away nothing piles up: it gets a heartbeat only for waiting itself.

    Put it at the end of the pipeline, where items are annotated. A comment alone becomes a keep-alive
    line, ``: ping``, of an event stream over HTTP::

        adapter.with_operators(heartbeat(15.0, Annotated(comment=["ping"])))

    The engine's steps run in one task of the stream's own, because a step that is under way can't
    change its task. So each chunk costs two switches of tasks: this operator is for streams that a
    client is connected to, not for those between workers.

    Args:
        interval_s: How long the consumer waits before each heartbeat, in seconds.
        item: What to hand out, or a function that makes it.

    Raises:
        ValueError: *interval_s* is no positive number; when the operator is made.

    Errors: source errors pass unchanged; what *item* raises fails the stream.
    On dispose: a step that is under way is cancelled, and the engine closed.

    >>> import asyncio
    >>> from operators import fuse
    >>> from rx_backend.testing import run_virtual
    >>> async def engine():
    ...     await asyncio.sleep(5)
    ...     yield "token"
    >>> async def main():
    ...     return [item async for item in fuse(engine(), [heartbeat(2.0, "ping")])]
    >>> run_virtual(main())
    ['ping', 'ping', 'token']
    """
    make = cast("Callable[[], B]", item if callable(item) else lambda: item)
    pump = _Pump(source)
    timer = LazyTimer(pump.wake)
    try:
        while True:
            pump.ask()
            if pump.is_pulling:
                timer.set(timer.clock() + interval_s)
                await pump.waiting()
            if pump.is_pulling:
                yield make()
            elif pump.has_item:
                given = pump.take()
                yield given
            else:
                pump.raise_failure()
                return
    finally:
        timer.cancel()
        await pump.aclose()


class _Pump(Generic[A]):
    """
    Pulls a source in a task of its own, once each time that it is asked to.

    Attributes:
        is_pulling: A pull is under way.
        has_item: An item is there that nobody has taken.
        is_through: No item comes but the one that may be there.
    """

    __slots__ = (
        "_failure",
        "_is_closing",
        "_item",
        "_loop",
        "_source",
        "_task",
        "_waiter",
        "_wanted",
        "has_item",
        "is_pulling",
        "is_through",
    )

    def __init__(self, source: FusedRun[A]) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        # What the consumer waits for; and what the task waits for, when it is not in the source.
        self._waiter: asyncio.Future[None] | None = None
        self._wanted: asyncio.Future[None] | None = None
        self._item: A | None = None
        self._failure: BaseException | None = None
        self._is_closing = False
        self.is_pulling = False
        self.has_item = False
        self.is_through = False

    def ask(self) -> None:
        """Begin a pull, unless one is under way or an item is there."""
        if self.is_pulling or self.has_item or self.is_through:
            return
        self.is_pulling = True
        if self._wanted is None:
            self._task = self._loop.create_task(self._run(), context=self._source.own_context)
        else:
            self._wanted.set_result(None)

    def waiting(self) -> asyncio.Future[None]:
        """What is done when there is an item or an end, or when somebody calls :meth:`wake`."""
        self._waiter = self._loop.create_future()
        return self._waiter

    def wake(self) -> None:
        """Let the consumer look."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take(self) -> A:
        """Give the item that is there."""
        item, self._item = self._item, None
        self.has_item = False
        return cast("A", item)

    def raise_failure(self) -> None:
        """Raise what the source failed with, if it did."""
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                # This frame is in its traceback: holding it here would be a cycle.
                del failure

    async def aclose(self) -> None:
        """End the task: it closes the source, where it has not ended already."""
        self._is_closing = True
        if self._task is None or self._task.done():
            return
        if self._wanted is None:
            self._source.close()
        elif not self._wanted.done():
            self._wanted.set_result(None)
        await asyncio.wait([self._task])
        self._failure = None

    async def _run(self) -> None:
        source = self._source
        try:
            async for item in source:
                self._item, self.has_item = item, True
                if source.ended:
                    break
                self.is_pulling = False
                self.wake()
                self._wanted = self._loop.create_future()
                await self._wanted
                self._wanted = None
                if self._is_closing:
                    break
        except GeneratorExit:
            raise
        except BaseException as error:
            drop_top_frame(error)
            self._failure = error
        try:
            await source.aclose()
        finally:
            self.is_pulling, self.is_through = False, True
            self.wake()
