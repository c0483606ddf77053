"""What has come of an ``aioreactive`` observable, which waits until it was taken."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from operators._core.aio_subscription import AioSubscription, SubscribesAsync
from operators._core.inbox import Inbox
from operators._core.tasks import done, start_task

__all__ = ("AioInbox",)


class AioInbox(Inbox):
    """
    Of an ``aioreactive`` AsyncObservable, whose ``asend`` is held until there is need for more.

    Args:
        observable: The AsyncObservable.
        ahead: How many items may wait to be taken while ``asend`` returns at once. None for as a
            ``yield`` does: it returns when its item was taken and the next one is asked for.
        on_end: Called once when the stream has ended or was closed.
    """

    __slots__ = ("_asked", "_closing", "_held", "_lead", "_on_end", "_sent", "_sub", "_subscribing")

    def __init__(
        self,
        observable: SubscribesAsync[Any],
        *,
        ahead: int | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(observable)
        self._lead = 1 if ahead is None else -ahead
        self._on_end = on_end
        self._sub = AioSubscription(self.end)
        self._subscribing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._asked = self._sent = 0
        # Which pull each sender waits for, and the sender.
        self._held: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def pull(self) -> Any:
        """Return the next item, and let those senders go on that waited for that."""
        if not self.mailbox.is_awaited:
            self._asked += 1
            self._release_senders(self._asked)
        return await super().pull()

    async def opened(self) -> None:
        """Wait until it is subscribed to; for one that does not send meanwhile."""
        self.open()
        await done(self._subscribing)

    def end(self, error: BaseException | None) -> None:
        super().end(error)
        self._ended()

    def close(self) -> None:
        super().close()
        self._ended()

    async def released(self) -> None:
        await done(self._closing)

    def _ended(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    def _subscribe(self, observable: SubscribesAsync[Any], loop: asyncio.AbstractEventLoop) -> None:
        # In a task: it may send, and wait for its consumer, before it is through with subscribing.
        self._subscribing = start_task(self._begin(observable), loop)

    async def _begin(self, observable: SubscribesAsync[Any]) -> None:
        try:
            await self._sub.begin(observable, self._send, self._throw, self._complete)
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.end(error)

    async def _send(self, item: Any) -> None:
        if self.mailbox.is_closed:
            # A sender that does not stop must not hold up the loop.
            await asyncio.sleep(0)
            return
        self._sent += 1
        needed = self._sent + self._lead
        self.mailbox.put(item)
        if needed > self._asked:
            held = asyncio.get_running_loop().create_future()
            self._held.append((needed, held))
            await held

    async def _throw(self, error: Exception) -> None:
        self.end(error)

    async def _complete(self) -> None:
        self.end(None)

    def _release_senders(self, asked: int) -> None:
        while self._held and self._held[0][0] <= asked:
            _, held = self._held.popleft()
            if not held.done():
                held.set_result(None)

    def _dispose(self, loop: asyncio.AbstractEventLoop) -> None:
        self._closing = start_task(self._release(), loop)
        # Behind the first step of that: a sender that is cancelled does not go on once more.
        loop.call_soon(self._release_senders, self._sent + 1)

    async def _release(self) -> None:
        if self._subscribing is not None and not self._subscribing.done():
            self._subscribing.cancel()
            await done(self._subscribing)
        await self._sub.dispose()
