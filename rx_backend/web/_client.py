"""The client of a response: its disconnection, and what is sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeAlias

from starlette.types import Message, Receive, Send

__all__ = ("ClientLeft", "Outlet", "until_client_leaves")

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

# Without a blank line after it: that would be an event without data to OpenAI's client once an
# event had an id. The next event starts on a new line.
_KEEP_ALIVE: Final = b": keep-alive\n"


class ClientLeft(Exception):
    """Sending failed, as the client has disconnected."""


async def until_client_leaves(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Outlet:
    """
    Sends one response: its headers, its events, and comments while there are no events.

    Args:
        send: The ASGI ``send`` of the connection.

    Attributes:
        has_begun: Whether the headers were sent.
        has_ended: Whether the last event was sent; later writes are dropped.

    Raises:
        ClientLeft: The client has disconnected; by any method that sends.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._sending_since: float | None = None
        self.has_begun = False
        self.has_ended = False

    async def begin(self, status: int, headers: RawHeaders) -> None:
        """Send the status and the headers."""
        self.has_begun = True
        await self._pass_on({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, events: bytes) -> None:
        """Send some events; wait while the client is slow."""
        async with self._lock:
            if not self.has_ended:
                await self._pass_on(
                    {"type": "http.response.body", "body": events, "more_body": True}
                )

    async def end(self, events: bytes = b"") -> None:
        """Send the last events and end the response, even during another send. Idempotent."""
        if not self.has_ended:
            self.has_ended = True
            await self._pass_on({"type": "http.response.body", "body": events, "more_body": False})

    def is_stuck(self, timeout_s: float | None) -> bool:
        """Return whether a send has been pending for *timeout_s*."""
        since = self._sending_since
        if since is None or timeout_s is None:
            return False
        return self._clock() - since >= timeout_s

    async def _pass_on(self, message: Message) -> None:
        self._sending_since = self._clock()
        try:
            await self._send(message)
        except OSError as error:
            raise ClientLeft(str(error)) from error
        self._sending_since = None
        self._sent_at = self._clock()

    @asynccontextmanager
    async def keep_alive(self, interval_s: float | None) -> AsyncGenerator[None]:
        """Send a comment after each *interval_s* without an event, while a block runs."""
        if interval_s is None:
            yield
            return
        task = asyncio.get_running_loop().create_task(self._send_comments(interval_s))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _send_comments(self, interval_s: float) -> None:
        # The next event fails too.
        with suppress(ClientLeft):
            while not self.has_ended:
                left = self._sent_at + interval_s - self._clock()
                if left > 0:
                    await asyncio.sleep(left)
                else:
                    await self.write(_KEEP_ALIVE)
