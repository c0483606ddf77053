"""The items of an observable that wait to be pulled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final

from reactivex import Observable, abc

from operators._core.loop_scheduler import LoopScheduler
from operators._core.mailbox import Mailbox
from operators._core.tasks import defer_to_loop

__all__ = ("Inbox", "RxInbox")


_TOO_MANY: Final = (
    "{}: more than {} items wait for the consumer, and a reactivex operator that emits by itself "
    "has no back-pressure: have it emit fewer at once, or use an async generator operator"
)


class Inbox(Mailbox[Any]):
    """
    A mailbox that is filled by a subscription, made at the first pull.

    Attributes:
        is_ahead: Whether items may wait that were not requested.
    """

    def __init__(self, observable: Any) -> None:
        super().__init__()
        self._observable = observable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_disposed = False
        self.is_ahead = True

    @abstractmethod
    def _subscribe(self, observable: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Subscribe."""

    @abstractmethod
    def _dispose(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to dispose of the subscription; called once."""

    def open(self) -> None:
        """Subscribe, unless already done."""
        if self._loop is None and not self._is_disposed:
            self._loop = asyncio.get_running_loop()
            observable, self._observable = self._observable, None
            self._subscribe(observable, self._loop)

    async def opened(self) -> None:
        """Wait until the subscription is made; for sources that do not send during it."""
        self.open()

    async def pull(self) -> Any:
        """Return the next item; ends as an asynchronous iterator does."""
        if self.is_awaited:
            raise RuntimeError("the source is already being pulled by another task")
        self.open()
        try:
            return await self.get()
        except BaseException:
            # The end, a failure, or, as in a generator, the cancellation of the waiting task.
            self.close()
            await self.released()
            raise

    def close(self) -> None:
        """Dispose of the subscription without waiting, and discard the items. Idempotent."""
        if self._is_disposed:
            return
        self._is_disposed = True
        self._observable = None
        super().close()
        if self._loop is not None and not self._loop.is_closed():
            self._dispose(self._loop)

    async def released(self) -> None:
        """Wait until the subscription is disposed of, after :meth:`close`."""

    def abandon(self) -> None:
        """Close from a finalizer: in any thread, at any point."""
        if not self._is_disposed and self._loop is not None:
            defer_to_loop(self._loop, self.close)

    def call_on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call *function* in the loop's thread."""
        function(*arguments)


class RxInbox(Inbox):
    """
    The inbox of a ``reactivex`` Observable, which may push from any thread.

    Args:
        observable: The Observable.
        scheduler: For its timers; by default the event loop's.
        limit: How many items may wait before the stream fails; None for no limit. Items that arrive
            while *is_fed* don't count.
        name: The name of the operators, for that error.

    Attributes:
        is_fed: Whether items that arrive now were requested.
        is_remote: Whether an item was pushed from another thread.
    """

    def __init__(
        self,
        observable: Observable[Any],
        scheduler: abc.SchedulerBase | None,
        *,
        limit: int | None = None,
        name: str = "",
    ) -> None:
        super().__init__(observable)
        self._scheduler = scheduler
        self._limit = limit
        self._name = name
        self._subscription: abc.DisposableBase | None = None
        self._thread = threading.get_ident()
        self.is_fed = False
        self.is_ahead = False
        self.is_remote = False

    def _subscribe(self, observable: Observable[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._thread = threading.get_ident()
        try:
            self._subscription = observable.subscribe(
                lambda item: self.call_on_loop(self._take, item),
                lambda error: self.call_on_loop(self.end, error),
                lambda: self.call_on_loop(self.end, None),
                scheduler=self._scheduler or LoopScheduler(loop),
            )
        except Exception as error:
            self.end(error)

    def _dispose(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._subscription is not None:
            self._subscription.dispose()

    def _take(self, item: Any) -> None:
        if not self:
            self.is_ahead = False
        if not self.is_fed:
            if self._limit is not None and len(self) >= self._limit:
                self.end(RuntimeError(_TOO_MANY.format(self._name, self._limit)))
                if self._subscription is not None:
                    self._subscription.dispose()
                return
            self.is_ahead = True
        self.put(item)

    def call_on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call *function* in the loop's thread; not if the loop is closed."""
        if threading.get_ident() == self._thread:
            function(*arguments)
        elif self._loop is not None:
            self.is_remote = True
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(function, *arguments)
