"""The gate that every incoming request passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Protocol

__all__ = ("RequestGate", "Stoppable")


class Stoppable(Protocol):
    """The part of the runtime's request context that the gate uses."""

    def stop_generating(self) -> None:
        """Request the end of generation."""
        ...


class RequestGate:
    """
    Counts the requests in flight, and refuses new ones once it is closed.

    Args:
        refusal: Makes the error for a refused request.
    """

    def __init__(self, refusal: Callable[[], Exception]) -> None:
        self._refusal = refusal
        self._live: dict[object, tuple[Stoppable, Callable[[Exception], None] | None]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def __len__(self) -> int:
        """Return the number of requests in flight."""
        return len(self._live)

    @contextmanager
    def admit(
        self, context: Stoppable, fail: Callable[[Exception], None] | None = None
    ) -> Generator[None]:
        """
        Count a request as in flight while the block runs.

        Args:
            context: Stops the request.
            fail: Ends it with an error.

        Raises:
            Exception: The refusal, when the gate is closed.
        """
        if self._closed:
            raise self._refusal()
        mark, loop = object(), asyncio.get_running_loop()
        self._live[mark] = (context, fail)
        self._idle.clear()
        try:
            yield
        finally:
            del self._live[mark]
            if not self._live:
                # A thread of the runtime may drop a stream, and events are not thread-safe. A
                # closed loop has no waiters.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._settle)

    def close(self) -> None:
        """Refuse new requests; those in flight continue."""
        self._closed = True

    def stop_all(self) -> None:
        """Stop generation for every request in flight."""
        for context, _ in list(self._live.values()):
            context.stop_generating()

    def fail_all(self, error: Exception) -> None:
        """End every request in flight with *error*; stop those that can't be ended like that."""
        for context, fail in list(self._live.values()):
            if fail is None:
                context.stop_generating()
            else:
                fail(error)

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def _settle(self) -> None:
        if not self._live:
            self._idle.set()
