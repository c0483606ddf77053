"""What a stream's operators may ask for of the request that it belongs to."""

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
    The scope of a stream: what the library's operators use where no argument says otherwise.

    ``rx_backend.RequestScope`` is one.
    """

    @property
    def id(self) -> str:
        """Names the request in logs."""
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
        """When the chunks with content came."""
        ...

    @property
    def outcome(self) -> OutcomeTracker:
        """Decides how the stream ended."""
        ...

    @property
    def stopped(self) -> Observable[bool]:
        """The stop signal, a level that replays."""
        ...

    @property
    def killed(self) -> Observable[bool]:
        """The kill signal, a level that replays."""
        ...

    @property
    def first_token(self) -> Observable[bool] | None:
        """Emits when the first token is known to exist; None where nothing waits for it (row A4)."""
        ...

    @property
    def hands_off(self) -> bool:
        """Whether the request continues in another worker, as that of a prefill worker does."""
        ...

    @property
    def trace_link(self) -> object | None:
        """The worker's trace identity, to stamp on chunks; None without one."""
        ...

    def span_attributes(self) -> Mapping[str, AttributeValue]:
        """Return what the span says of the request besides how it ended."""
        ...

    def stop(self) -> None:
        """Ask the engine to end the request."""
        ...

    def abort(self) -> None:
        """Start the engine's abort, and return at once."""
        ...

    def end_of_turn(self, callback: Callable[[], None]) -> object:
        """Call *callback* at the end of the event loop's turn."""
        ...

    def abort_step(self, step: AbortStep) -> None:
        """Take note of what happened to the abort."""
        ...

    def operator_failed(self, name: str, error: Exception) -> None:
        """Take note of an operator that raised (row O4)."""
        ...
