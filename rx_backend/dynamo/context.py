"""The bridge between the runtime's context of a request and ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rx_backend.context import RequestContext
from rx_backend.errors import InvalidArgument

__all__ = ("BridgedContext", "ContextBridge")


_FIRST_LOOK_S = 0.005
_LONGEST_LOOK_S = 1.0


class BridgedContext(RequestContext):
    """
    The context of a request from the runtime.

    Attributes:
        runtime_context: The runtime's own ``dynamo.runtime.Context``, for example for its spans.
    """

    __slots__ = ("runtime_context",)

    runtime_context: Any

    def __init__(self, runtime_context: Any) -> None:
        headers: dict[str, str] = runtime_context.trace_headers() or {}
        super().__init__(
            runtime_context.id(),
            dict(runtime_context.metadata.items()),
            trace_headers={name.lower(): value for name, value in headers.items()},
        )
        self.runtime_context = runtime_context


class ContextBridge:
    """
    Keeps a request's context in the runtime and ours in step.

    A stop or a kill by the runtime (a disconnect is a kill) stops or kills our context. A future of
    the runtime waits for it, without polling. The runtime reports the first signal only, so after a
    stop the bridge polls for the kill until it is closed.

    The first-token notice of a decode request goes back to the runtime. **A stop from our side does
    not**: the runtime discards what a handler yields after a stop, so the engine's ``cancelled``
    terminal would be lost (row A6), and the client would see a truncated stream. Our stop reaches
    the engine, whose terminal then ends the request.

    Args:
        context: The runtime's context.
        decode: Whether this worker decodes for a prefill peer, which needs the first-token notice
            (row C4).
        on_kill: Called on the event loop once the runtime has killed the request, after our context
            was.

    Attributes:
        request_context: The context for our side.

    Raises:
        InvalidArgument: *context* is not a context of the runtime.
    """

    __slots__ = (
        "_is_closed",
        "_loop",
        "_next_look",
        "_on_kill",
        "_unlisten",
        "_waiter",
        "request_context",
    )

    request_context: BridgedContext

    def __init__(
        self, context: Any, *, decode: bool, on_kill: Callable[[], object] | None = None
    ) -> None:
        try:
            ours = self.request_context = BridgedContext(context)
        except (AttributeError, TypeError) as error:
            raise InvalidArgument(
                f"context: expected a context of the Dynamo runtime, got {type(context).__name__}"
            ) from error
        self._unlisten: Callable[[], None] | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._on_kill = on_kill
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        ours.bind(self._loop, decode=decode)
        if decode:
            self._unlisten = ours.first_token().listen(context.notify_first_token)
        self._waiter: asyncio.Future[bool] = context.async_killed_or_stopped()
        self._waiter.add_done_callback(self._on_signal)

    def refresh(self) -> None:
        """
        Apply a signal of the runtime now, without waiting for its future.

        Called when the runtime drops a stream: it may do so before its signal arrives, and a
        dropped stream no longer causes an abort.
        """
        ours = self.request_context
        theirs = ours.runtime_context
        if theirs.is_killed():
            ours.kill()
        elif theirs.is_stopped():
            ours.stop_generating()

    def close(self) -> None:
        """Stop waiting. Idempotent."""
        self._is_closed = True
        self._waiter.cancel()
        if self._next_look is not None:
            self._next_look.cancel()
        if self._unlisten is not None:
            self._unlisten()

    def _on_signal(self, waiter: asyncio.Future[bool]) -> None:
        # A signal in the same turn as the close is too late.
        if self._is_closed or waiter.cancelled():
            return
        # A runtime that shuts down may fail the future; the state of the context decides.
        waiter.exception()
        self._look(_FIRST_LOOK_S)

    def _look(self, next_s: float) -> None:
        """
        Apply a signal of the runtime; check again later unless it is a kill.

        Each check is a call into the runtime, which also frees what its threads have released, such
        as the handler's stream after a stop. On an idle worker there may be no other call.
        """
        self.refresh()
        # That call may have freed this bridge's own stream.
        if self._is_closed:
            return
        if not self.request_context.runtime_context.is_killed():
            self._next_look = self._loop.call_later(
                next_s, self._look, min(next_s * 2.0, _LONGEST_LOOK_S)
            )
        elif self._on_kill is not None:
            self._on_kill()
