"""The context that engines of the Dynamo ecosystem expect."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping
from typing import Any, Self

from rx_backend.context import RequestContext
from rx_backend.dynamo.context import BridgedContext

__all__ = ("EngineContext",)


class EngineContext:
    """
    A request's context with the methods of ``dynamo.runtime.Context``.

    Its methods are those of Dynamo's: ``context.id()``, ``context.is_stopped()``. It reflects
    signals from our side and from the runtime. What only the runtime has, such as its spans, comes
    from the runtime for its requests, and does nothing for others.

    Args:
        context: Our context of the request.

    >>> ours = RequestContext("r1", {"user": "u"})
    >>> context = EngineContext(ours)
    >>> ours.stop_generating()
    >>> context.id(), context.metadata["user"], context.is_stopped(), context.is_killed()
    ('r1', 'u', True, False)
    """

    __slots__ = ("_metadata", "request_context")

    request_context: RequestContext

    def __init__(self, context: RequestContext) -> None:
        self.request_context = context
        self._metadata: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"EngineContext({self.request_context!r})"

    def id(self) -> str:
        """Return the request's id."""
        return self.request_context.id

    @property
    def metadata(self) -> MutableMapping[str, str]:
        """The engine's own copy of the request's metadata."""
        if self._metadata is None:
            self._metadata = dict(self.request_context.metadata)
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None:
        self._metadata = dict(metadata)

    def is_stopped(self) -> bool:
        """Return whether the request was stopped or killed."""
        return self.request_context.is_stopped

    def is_killed(self) -> bool:
        """Return whether the request was killed."""
        return self.request_context.is_killed

    def stop_generating(self) -> None:
        """Stop the request."""
        self.request_context.stop_generating()

    def async_killed_or_stopped(self) -> asyncio.Future[bool]:
        """
        Return a future that becomes True once the request is stopped or killed.

        Cancelling the future stops waiting. It can be wrapped in a task, as Dynamo's engines do.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        unlisten = self.request_context.stopped().listen(
            lambda: None if future.done() else future.set_result(True)
        )
        future.add_done_callback(lambda _future: unlisten())
        return future

    def notify_first_token(self) -> None:
        """Signal that the first token exists (row C4)."""
        self.request_context.notify_first_token()

    def detached(self, id: str) -> EngineContext:
        """Return a context with its own id and signals, and the same headers."""
        ours = self.request_context
        return EngineContext(RequestContext(id, self.metadata, trace_headers=ours.trace_headers))

    def trace_headers(self) -> dict[str, str] | None:
        """Return the W3C trace headers of the request; None if it has none."""
        return dict(self.request_context.trace_headers) or None

    @property
    def trace_id(self) -> str | None:
        """The id of the request's trace, 32 hex digits."""
        return self._traceparent(1)

    @property
    def span_id(self) -> str | None:
        """The id of the span in the trace headers, 16 hex digits."""
        return self._traceparent(2)

    @property
    def parent_span_id(self) -> str | None:
        """The id of that span's parent, if the runtime knows it."""
        runtime = self._runtime
        return None if runtime is None else runtime.parent_span_id

    def current_span(self) -> Any:
        """Return a handle on the runtime's span of the request; without one it does nothing."""
        runtime = self._runtime
        return _NoSpan() if runtime is None else runtime.current_span()

    def start_span(self, name: str, attrs: dict[str, Any] | None = None) -> Any:
        """Open a child span of the runtime's; without one it does nothing."""
        runtime = self._runtime
        return _NoSpan() if runtime is None else runtime.start_span(name, attrs)

    @property
    def _runtime(self) -> Any:
        ours = self.request_context
        return ours.runtime_context if isinstance(ours, BridgedContext) else None

    def _traceparent(self, part: int) -> str | None:
        parts = self.request_context.trace_headers.get("traceparent", "").split("-")
        return parts[part] if len(parts) == 4 else None


class _NoSpan:
    """A span that records nothing."""

    __slots__ = ()

    def set_attribute(self, key: str, value: Any) -> None: ...

    def add_event(self, name: str, attrs: dict[str, Any] | None = None) -> None: ...

    def set_status(self, status: str, description: str | None = None) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> bool:
        return False
