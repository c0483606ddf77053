"""The bridge from the runtime's context of a request to ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from rx_backend.context import RequestContext
from rx_backend.errors import InvalidArgument

__all__ = ("BridgedContext", "ContextBridge", "RuntimeContext", "bridge_context")


_FIRST_NUDGE_S = 0.005
_LONGEST_NUDGE_S = 1.0


class _Metadata(Protocol):
    def items(self) -> Iterable[tuple[str, str]]: ...


class RuntimeContext(Protocol):
    """What a request's context in the runtime offers; ``dynamo.runtime.Context`` does."""

    def id(self) -> str:
        """Give the request's id."""
        ...

    @property
    def metadata(self) -> _Metadata:
        """What was sent along with the request; live, and may be written to."""
        ...

    def trace_headers(self) -> dict[str, str] | None:
        """Give W3C trace headers that name the runtime's own span; None where it has none."""
        ...

    def is_stopped(self) -> bool:
        """Tell whether the request was stopped or killed."""
        ...

    def is_killed(self) -> bool:
        """Tell whether the request was killed, as when its client is gone."""
        ...

    def async_killed_or_stopped(self) -> asyncio.Future[bool]:
        """Give a future that is done once the request is stopped or killed."""
        ...

    def stop_generating(self) -> None:
        """Stop the request, for the runtime and for its client."""
        ...

    def notify_first_token(self) -> None:
        """Tell the runtime that the first token exists."""
        ...


class BridgedContext(RequestContext):
    """
    The context of a request that came through the runtime.

    Attributes:
        runtime_context: The runtime's own, for what only it can do, such as spans of the runtime.
    """

    __slots__ = ("runtime_context",)

    runtime_context: RuntimeContext

    def __init__(self, runtime_context: RuntimeContext) -> None:
        headers = runtime_context.trace_headers() or {}
        super().__init__(
            runtime_context.id(),
            dict(runtime_context.metadata.items()),
            trace_headers={name.lower(): value for name, value in headers.items()},
        )
        self.runtime_context = runtime_context


class ContextBridge:
    """
    A request's context in the runtime, and the one that our side sees, kept in step.

    A stop or a kill by the runtime (a client that disconnects is a kill) becomes a level of ours.
    One future of the runtime waits for it; nothing polls. The runtime tells of the first signal
    only; a kill that follows a stop is found within a second, while the request lives.

    The first-token notice of a decode request goes back to the runtime. **A stop from our side does
    not**: the runtime throws away what a handler yields after it has stopped the request, so the
    engine's own ``cancelled`` terminal would be lost (row A6), and the client would be told that
    the stream broke off. Our stop reaches the engine, whose terminal then ends the request for all.

    Attributes:
        request_context: The context for our side.
    """

    __slots__ = ("_is_closed", "_loop", "_nudge", "_unlisten", "_waiter", "request_context")

    request_context: BridgedContext

    def __init__(self, context: RuntimeContext, *, decode: bool) -> None:
        ours = self.request_context = BridgedContext(context)
        self._unlisten: Callable[[], None] | None = None
        self._nudge: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        ours.bind(self._loop, decode=decode)
        if decode:
            self._unlisten = ours.first_token().listen(context.notify_first_token)
        self._waiter = context.async_killed_or_stopped()
        self._waiter.add_done_callback(self._hear)

    def refresh(self) -> None:
        """
        Take over now what the runtime has signalled, without waiting to be told.

        For the moment at which the runtime lets go of a stream: it may do so before its signal
        arrives, and a stream that is dropped makes no abort any more.
        """
        ours = self.request_context
        theirs = ours.runtime_context
        if theirs.is_killed():
            ours.kill()
        elif theirs.is_stopped():
            ours.stop_generating()

    def close(self) -> None:
        """End the waiting; harmless when called twice."""
        self._is_closed = True
        self._waiter.cancel()
        if self._nudge is not None:
            self._nudge.cancel()
        if self._unlisten is not None:
            self._unlisten()

    def end(self, close: Callable[[], object]) -> None:
        """
        Take over the last signal, call *close*, and end the waiting: all on the event loop.

        The runtime's threads may drop a handler's stream, and then this is called by one of them.
        """
        if _running_loop() is self._loop:
            self._end(close)
        else:
            # A loop that is closed has nothing left to release.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end, close)

    def _end(self, close: Callable[[], object]) -> None:
        self.refresh()
        try:
            close()
        finally:
            self.close()

    def _hear(self, waiter: asyncio.Future[bool]) -> None:
        # A signal that came in the turn of the close is told after it.
        if self._is_closed or waiter.cancelled():
            return
        # A runtime that goes down may fail the waiter; what it then says of the request counts.
        waiter.exception()
        self._let_go(_FIRST_NUDGE_S)

    def _let_go(self, after_s: float) -> None:
        """
        Call the runtime now and then, until the bridge is closed.

        What its threads let go of, such as the handler's stream after a signal, is freed only when
        the next call into the runtime comes by. On an idle worker that may be never.
        """
        self.refresh()
        # What that call freed may have been this bridge's own stream.
        if not self._is_closed:
            self._nudge = self._loop.call_later(
                after_s, self._let_go, min(after_s * 2.0, _LONGEST_NUDGE_S)
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def bridge_context(context: Any, *, decode: bool) -> ContextBridge:
    """
    Make our context of a request from the runtime's; to be called on the request's event loop.

    Args:
        context: The context that the runtime hands to a handler or to an engine.
        decode: Whether this worker decodes for a prefill peer, so that the first-token notice
            counts (row C4).

    Raises:
        InvalidArgument: *context* is none of the runtime's.
    """
    try:
        return ContextBridge(context, decode=decode)
    except (AttributeError, TypeError) as error:
        raise InvalidArgument(
            f"context: expected a context of the Dynamo runtime, got {type(context).__name__}"
        ) from error
