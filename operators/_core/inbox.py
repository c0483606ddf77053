"""What has come of an observable and waits to be pulled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from reactivex import Observable, abc

from operators._core.aio_subscription import AioSubscription, SubscribesAsync
from operators._core.loop_scheduler import LoopScheduler
from operators._core.tasks import start_task

__all__ = ("AioInbox", "Inbox", "RxInbox")


class Inbox:
    """
    What has come of a subscription, and who waits for more.

    Args:
        observable: What to subscribe to, at the first pull.
    """

    __slots__ = ("_closed", "_done", "_error", "_loop", "_observable", "_out", "_waiter")

    def __init__(self, observable: Any) -> None:
        self._observable = observable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._out: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._done = False
        self._error: BaseException | None = None
        self._closed = False

    @abstractmethod
    def _begin(self, observable: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Subscribe."""
        ...

    @abstractmethod
    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to dispose of the subscription; called once."""
        ...

    async def released(self) -> None:
        """Wait until the subscription is disposed of."""

    def open(self) -> None:
        """Subscribe, if that was not done yet."""
        if self._loop is None and not self._done:
            self._loop = asyncio.get_running_loop()
            observable, self._observable = self._observable, None
            self._begin(observable, self._loop)

    async def pull(self) -> Any:
        """Give the next item; ends as an asynchronous iterator does."""
        if self._waiter is not None:
            raise RuntimeError("the source is already being pulled by another task")
        self.open()
        while not self._out:
            if self._done:
                error, self._error = self._error, None
                self.close()
                await self.released()
                if error is not None:
                    try:
                        raise error
                    finally:
                        del error
                raise StopAsyncIteration
            await self._wait()
        return self._out.popleft()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except BaseException:
            # As in a generator: who is cancelled while it waits for an item is through.
            self.close()
            raise
        finally:
            self._waiter = None

    def _put(self, item: Any) -> None:
        self._out.append(item)
        self._wake()

    def _end(self, error: BaseException | None) -> None:
        if not self._done:
            self._done = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Give up the subscription without waiting, and forget what has come. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._done = True
        self._error = None
        self._observable = None
        self._out.clear()
        if self._loop is not None and not self._loop.is_closed():
            self._give_up(self._loop)
            self._wake()

    def abandon(self) -> None:
        """Nobody holds the source any more; this may be any thread."""
        loop = self._loop
        if self._closed or loop is None or loop.is_closed():
            return
        try:
            is_here = asyncio.get_running_loop() is loop
        except RuntimeError:
            is_here = not loop.is_running()
        if is_here:
            self.close()
        else:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.close)


class RxInbox(Inbox):
    """Of a ``reactivex`` Observable, which may push from any thread."""

    __slots__ = ("_scheduler", "_subscription", "_thread")

    def __init__(self, observable: Observable[Any], scheduler: abc.SchedulerBase | None) -> None:
        super().__init__(observable)
        self._scheduler = scheduler
        self._subscription: abc.DisposableBase | None = None
        self._thread = 0

    def _begin(self, observable: Observable[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._thread = threading.get_ident()
        try:
            self._subscription = observable.subscribe(
                self._on_next,
                self._on_error,
                self._on_completed,
                scheduler=self._scheduler or LoopScheduler(loop),
            )
        except Exception as error:
            self._end(error)

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._subscription is not None:
            self._subscription.dispose()

    def _on_next(self, item: Any) -> None:
        self._here(self._take, item)

    def _on_error(self, error: Exception) -> None:
        self._here(self._end, error)

    def _on_completed(self) -> None:
        self._here(self._end, None)

    def _take(self, item: Any) -> None:
        if not self._done:
            self._put(item)

    def _here(self, function: Callable[[Any], None], argument: Any) -> None:
        """Call on the loop's thread, or not at all when the loop is no more."""
        if threading.get_ident() == self._thread:
            function(argument)
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, argument)


class AioInbox(Inbox):
    """Of an ``aioreactive`` AsyncObservable, which waits until an item was taken."""

    __slots__ = ("_closing", "_held", "_subscribing", "_subscription")

    def __init__(self, observable: SubscribesAsync[Any]) -> None:
        super().__init__(observable)
        self._subscription: AioSubscription | None = None
        self._subscribing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        # Who waits in `asend`: first the one whose item was handed out, then in order of `_out`.
        self._held: deque[asyncio.Future[None]] = deque()

    async def pull(self) -> Any:
        """Give the next item, and let the observable go on behind the one before."""
        if self._held:
            self._let_go()
        return await super().pull()

    def _begin(self, observable: SubscribesAsync[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._subscription = AioSubscription(loop, self._end)
        # It may send and wait for us before it is through with subscribing.
        subscribing = self._subscribe(observable, self._subscription)
        self._subscribing = start_task(subscribing, loop, None)

    async def _subscribe(
        self, observable: SubscribesAsync[Any], subscription: AioSubscription
    ) -> None:
        try:
            await subscription.begin(observable, self._send, self._throw, self._complete)
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._end(error)

    async def _send(self, item: Any) -> None:
        if self._done:
            # Who goes on all the same must not hold up the loop.
            await asyncio.sleep(0)
            return
        held = asyncio.get_running_loop().create_future()
        self._held.append(held)
        self._put(item)
        await held

    async def _throw(self, error: Exception) -> None:
        self._end(error)

    async def _complete(self) -> None:
        self._end(None)

    def _let_go(self) -> None:
        held = self._held.popleft()
        if not held.done():
            held.set_result(None)

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._held:
            self._let_go()
        if self._subscribing is not None:
            # A task that is cancelled before its first step would not run at all.
            loop.call_soon(self._subscribing.cancel)
        self._closing = start_task(self._release(), loop, None)
        if self._closing is not None:
            _closing.add(self._closing)
            self._closing.add_done_callback(_closing.discard)

    async def _release(self) -> None:
        if self._subscription is not None:
            await self._subscription.dispose()
        if self._subscribing is not None and not self._subscribing.done():
            await asyncio.wait([self._subscribing])

    async def released(self) -> None:
        """Wait until the subscription is disposed of, and its tasks have ended."""
        if self._closing is not None and not self._closing.done():
            await asyncio.wait([self._closing])


_closing: set[asyncio.Task[None]] = set()
