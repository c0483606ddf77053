"""What stands between the runtime and the engine: requests are counted, and refused at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Protocol

__all__ = ("RequestGate", "Stoppable")


class Stoppable(Protocol):
    """What the gate asks of the runtime's context of a request."""

    def stop_generating(self) -> None:
        """Ask for the request's end."""
        ...


class RequestGate:
    """
    Knows which requests are in flight, and lets no more in once it is closed.

    Args:
        refusal: Makes the error that a request gets when the gate is closed.
    """

    def __init__(self, refusal: Callable[[], Exception]) -> None:
        self._refusal = refusal
        self._live: dict[object, Stoppable] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def __len__(self) -> int:
        """Count the requests in flight."""
        return len(self._live)

    @contextmanager
    def admit(self, context: Stoppable) -> Generator[None]:
        """
        Count a request as in flight while the block runs.

        Raises:
            Exception: The refusal, when the gate is closed.
        """
        if self._closed:
            raise self._refusal()
        mark, loop = object(), asyncio.get_running_loop()
        self._live[mark] = context
        self._idle.clear()
        try:
            yield
        finally:
            del self._live[mark]
            # The runtime's threads may drop a stream, and an event is no matter for them. A loop
            # that is closed has nobody who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._settle)

    def close(self) -> None:
        """Refuse requests from now on; those in flight go on."""
        self._closed = True

    def stop_all(self) -> None:
        """Ask every request in flight to end."""
        for context in list(self._live.values()):
            context.stop_generating()

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def _settle(self) -> None:
        if not self._live:
            self._idle.set()
