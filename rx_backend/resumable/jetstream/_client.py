"""A NATS client that can be closed in any state."""

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
    A client that leaves no task running.

    If the connection is lost with data still to be sent, `close` raises, and leaves the tasks of
    subscriptions running. So those are ended first, including the one for replies. After a failed
    TLS handshake `close` would wait forever, so it gets a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self.subscriptions: WeakSet[Subscription] = WeakSet()

    async def subscribe(self, *args: Any, **further: Any) -> Subscription:
        """Subscribe like `Client.subscribe`, and record the subscription."""
        subscription = await super().subscribe(*args, **further)  # pyright: ignore[reportUnknownMemberType]
        self.subscriptions.add(subscription)
        return subscription

    async def end(self) -> None:
        """Close the connection, in any state. Idempotent."""
        for subscription in list(self.subscriptions):
            with suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        if not (self.is_connected or self.is_connecting or self.is_reconnecting):
            # It is closed, or has rejected its options before connecting.
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                # In a task of its own: while it reconnects, it waits for what it has cancelled.
                await asyncio.gather(self.close(), return_exceptions=True)
