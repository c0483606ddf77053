"""NATS's client, which can be ended in any state."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

__all__ = ("EndingClient",)

_CLOSE_S: Final = 1.0


class EndingClient(Client):
    """
    A client that leaves no task behind.

    Where the connection is lost with something still to be sent, `close` raises, and leaves the tasks
    of subscriptions. So those are ended first, that for the answers to requests too. After a TLS
    handshake that failed `close` would wait for ever, so it is given a second.
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
        if not (self.is_connected or self.is_connecting or self.is_reconnecting):
            # It is closed, or has refused its options before there was anything to close.
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                # In a task of its own: while it reconnects, it waits for what it has cancelled.
                await asyncio.gather(self.close(), return_exceptions=True)
