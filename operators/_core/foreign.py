"""What the segments of other libraries' operators have in common."""

from __future__ import annotations

import asyncio
import contextvars
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable
from typing import Any

from operators._core.segment import Segment

__all__ = ("ForeignSegment",)


class ForeignSegment(Segment):
    """
    An operator of another library between two parts of a pulled pipeline.

    The source is pulled while the consumer waits and nothing has come out, and not otherwise
    (row S4). What the operator emits beyond what was asked for waits here, in order.

    An operator that answers at once is fed within the consumer's pull. Any other one is detached:
    one task per stream pulls the source on demand, so that the operator may emit from a timer or
    another stream at any moment, and wake the waiting consumer. Its timers run on the event loop,
    so they obey virtual time.

    Args:
        source: The part before this one.
        context: The context that whoever pulls is in; the task pulls in it too.
        detached: The operator may emit at any moment.
    """

    __slots__ = (
        "_context",
        "_demand",
        "_detached",
        "_done",
        "_error",
        "_loop",
        "_out",
        "_pump",
        "_source",
        "_waiter",
    )

    def __init__(self, source: Any, context: contextvars.Context | None, *, detached: bool) -> None:
        self._source = source
        self._context = context
        self._detached = detached
        self._loop = asyncio.get_running_loop()
        self._out: deque[Any] = deque()
        self._done = False
        self._error: BaseException | None = None
        self._demand = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended_by(self) -> str | None:
        return None

    def drop(self) -> None:
        self._source.drop()

    @property
    def ended(self) -> bool:
        return self._done and not self._out and self._error is None

    async def __anext__(self) -> Any:
        while not self._out:
            if self._done:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            await self._more()
        return self._taken(self._out.popleft())

    @abstractmethod
    def _more(self) -> Awaitable[None]:
        """Pull the source within the consumer's pull, or wait for what the operator emits."""
        ...

    @abstractmethod
    async def _pull_on_demand(self) -> None:
        """Pull the source whenever ``_demand`` is set, as the task of a detached operator."""
        ...

    def _taken(self, item: Any) -> Any:
        """The consumer takes an item."""
        return item

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        self._demand.set()
        try:
            await self._waiter
        finally:
            self._demand.clear()
            self._waiter = None

    def _start_pump(self) -> None:
        if self._pump is None:
            self._pump = self._loop.create_task(self._run_pump(), context=self._context)

    async def _run_pump(self) -> None:
        try:
            await self._pull_on_demand()
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # What the engine or an operator raised comes out of the consumer's pull.
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if not self._done:
            self._done = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._demand.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
