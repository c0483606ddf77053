"""What a stream's operators may know about their request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue
from reactivex import Observable

if TYPE_CHECKING:
    from operators._abort_step import AbortStep
    from operators._chunk import Clock
    from operators._outcome import OutcomeTracker
    from operators.token_times import TokenTimes

__all__ = ("StreamScope",)


class StreamScope(Protocol):
    """
    The scope of a stream: the defaults of the library's operators.

    ``rx_backend.RequestScope`` is one.
    """

    @property
    def id(self) -> str:
        """The request's id, for logs."""
        ...

    @property
    def answers(self) -> int:
        """How many answers the request has."""
        ...

    @property
    def span(self) -> Span:
        """The request's span."""
        ...

    @property
    def clock(self) -> Clock:
        """Monotonic clock, in seconds."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that the request runs on."""
        ...

    @property
    def recording(self) -> bool:
        """Whether anything is measured for the span (row P8)."""
        ...

    @property
    def times(self) -> TokenTimes:
        """When the chunks with content arrived."""
        ...

    @property
    def outcome(self) -> OutcomeTracker:
        """Decides how the stream ended."""
        ...

    @property
    def stopped(self) -> Observable[bool]:
        """The stop signal, which replays."""
        ...

    @property
    def killed(self) -> Observable[bool]:
        """The kill signal, which replays."""
        ...

    @property
    def first_token(self) -> Observable[bool] | None:
        """Emits when the first token is known to exist; None if nothing waits for it (row A4)."""
        ...

    @property
    def is_prefill(self) -> bool:
        """Whether the request continues in another worker, as on a prefill worker."""
        ...

    @property
    def trace_link(self) -> object | None:
        """The worker's trace link, to stamp on chunks; None without one."""
        ...

    def span_attributes(self) -> Mapping[str, AttributeValue]:
        """Return span attributes of the request other than its outcome."""
        ...

    def stop(self) -> None:
        """Ask the engine to end the request."""
        ...

    def abort(self) -> None:
        """Start the engine's abort, and return at once."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> object:
        """Call *callback* in the event loop's next iteration."""
        ...

    def abort_step(self, step: AbortStep) -> None:
        """Record a step of the abort."""
        ...

    def operator_failed(self, name: str, error: Exception) -> None:
        """Record that an operator raised (row O4)."""
        ...
