"""`rx_backend.resumable.jetstream._client`."""

from __future__ import annotations

import asyncio

from rx_backend.resumable.jetstream._client import EndingClient
from tests.engines import virtual


class Reconnecting(EndingClient):
    """Its close waits for what it has cancelled, as that of NATS's client does in this state."""

    @property
    def is_reconnecting(self) -> bool:
        return True

    async def close(self) -> None:
        """Wait for the end of the connection, as the task that reconnects does."""
        ended = asyncio.get_running_loop().create_future()
        ended.cancel()
        await ended


@virtual
async def test_closing_ends_only_the_reconnecting_client() -> None:
    """Who closes it was not cancelled, and continues."""
    await Reconnecting().end()
