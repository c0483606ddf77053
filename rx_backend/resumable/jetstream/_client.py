"""NATS's client, which can be ended in any state."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from weakref import WeakSet

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

__all__ = ("EndingClient",)


class EndingClient(Client):
    """
    A client that leaves no task behind.

    Where the connection is lost with something still to be sent, `close` raises, and leaves the tasks
    of subscriptions. So those are ended first, that for the answers to requests too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.subscriptions: WeakSet[Subscription] = WeakSet()

    async def subscribe(self, *args: Any, **further: Any) -> Subscription:
        """Subscribe as `Client.subscribe`, and note it."""
        subscription = await super().subscribe(*args, **further)  # pyright: ignore[reportUnknownMemberType]
        self.subscriptions.add(subscription)
        return subscription

    async def end(self) -> None:
        """Close the connection, whether it is there or not. Idempotent."""
        for subscription in list(self.subscriptions):
            with suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        with suppress(nats.errors.Error, OSError):
            await self.close()
