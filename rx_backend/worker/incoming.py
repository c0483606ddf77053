"""What every incoming request passes before it reaches the adapter: the gate and two checks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias, cast

from rx_backend.errors import InvalidArgument, to_dynamo

__all__ = ("PROBE_KEY", "Handler", "RequestGate", "Stoppable", "with_checks")

Handler: TypeAlias = Callable[..., AsyncIterator[Any]]
"""Serves one request: takes it and the runtime's context, returns an iterator of items."""

PROBE_KEY = "_HEALTH_CHECK"
"""The key that marks a health check's request; see ``PreprocessedRequest.is_probe``."""


class Stoppable(Protocol):
    """The part of the runtime's request context that the gate uses."""

    def stop_generating(self) -> None:
        """Request the end of generation."""
        ...


class RequestGate:
    """
    Counts the requests in flight, and refuses new ones once it is closed.

    Args:
        refusal: Makes the error that a refused request is answered with.
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
            # A thread of the runtime may drop a stream, and events are not thread-safe. A closed
            # loop has no waiters.
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
        """End every request in flight with *error*; stop those that can't be ended so."""
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


def with_checks(handler: Handler, context_length: Callable[[], int | None]) -> Handler:
    """
    Return *handler* with health checks answered whole, and with prompts that don't fit refused.

    The runtime looks at the first item of a health check's answer only, and an engine that fails
    after its first token is not healthy: so the answer is collected, and an error comes first (row
    H2). A prompt of more than *context_length* tokens is an ``InvalidArgument``, which clients see
    as status 400: the frontend itself doesn't check.

    Args:
        handler: Serves the requests. Where it takes a ``response_sender``, so does the result.
        context_length: Returns the limit in tokens; None for no limit.
    """

    def handle(request: Any, context: Any, **sender: Any) -> AsyncIterator[Any]:
        if isinstance(request, dict):
            fields = cast("dict[str, Any]", request)
            if PROBE_KEY in fields:
                return _probe(handler, fields, context, **sender)
            prompt, limit = fields.get("token_ids") or (), context_length()
            if limit is not None and len(prompt) > limit:
                return _too_long(len(prompt), limit)
        return handler(request, context, **sender)

    # The runtime passes a sender to handlers whose signature has one.
    handle.__signature__ = inspect.signature(handler)
    return handle


async def _probe(
    handler: Handler, request: Any, context: Any, response_sender: Any = None
) -> AsyncGenerator[Any]:
    items = [item async for item in handler(request, context)]
    failed = [item for item in items if item.get("event") == "error"]
    for item in failed or items:
        if response_sender is None:
            yield item
        else:
            response_sender.send(item)
    if response_sender is not None:
        response_sender.close()


async def _too_long(tokens: int, limit: int) -> AsyncGenerator[Any]:
    raise to_dynamo(
        InvalidArgument(
            f"the prompt has {tokens} tokens, more than the worker's context length of {limit}"
        )
    )
    yield
