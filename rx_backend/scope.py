"""What an operator may ask about its request."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue
from reactivex import Observable

from operators import AbortStep, TokenTimes
from operators.assembly import OutcomeTracker
from operators.authoring import Clock
from operators.span_events import add_event
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import LLMEngine, start_abort
from rx_backend.protocols import PreprocessedRequest, TraceLink
from rx_backend.telemetry.report import RequestObserver
from rx_backend.telemetry.request_span import worker_trace_link

__all__ = ("RequestScope",)


@dataclass(slots=True, eq=False, repr=False)
class RequestScope:
    """
    One request, as its operators see it: the value of an operator's parameter ``scope``.

    Attributes:
        request: The request.
        context: Its context.
        mode: The worker's role.
        span: Its span ``engine.generate``.
        loop: The event loop that it runs on.
        recording: Whether anything is measured for its span (row P8).
        times: The times of its chunks with content, written after the last chunk operator.
        outcome: Decides how its stream ended, and notifies its subscribers.
    """

    request: PreprocessedRequest
    context: RequestContext
    mode: DisaggregationMode
    span: Span
    loop: asyncio.AbstractEventLoop
    recording: bool
    _observer: RequestObserver
    _engine: LLMEngine
    _own_context: contextvars.Context
    times: TokenTimes = field(init=False)
    outcome: OutcomeTracker = field(init=False)
    _has_pending_abort: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.times = self._observer.times
        self.outcome = OutcomeTracker(self.times, self._observer.is_stopped)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.context.id

    @property
    def clock(self) -> Clock:
        """Monotonic clock, in seconds."""
        return self.times.clock

    @property
    def answers(self) -> int:
        """The number of answers that the request asks for."""
        return self.times.answers

    @property
    def stopped(self) -> Observable[bool]:
        """The stop signal, which replays."""
        return self.context.stopped()

    @property
    def killed(self) -> Observable[bool]:
        """The kill signal, which replays."""
        return self.context.killed()

    @property
    def first_token(self) -> Observable[bool] | None:
        """The first-token notice of a decode request; None in other modes (row A4)."""
        return self.context.first_token() if self.mode.is_decode else None

    @property
    def trace_link(self) -> TraceLink | None:
        """The worker's trace identity; None without a valid one (row T5)."""
        return worker_trace_link(self.span)

    @property
    def hands_off(self) -> bool:
        """Whether the request continues in another worker (row T4)."""
        return self.mode.is_prefill

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are counted although nothing is measured."""
        return self._observer.counts

    @property
    def awaits_first_token(self) -> bool:
        """Whether the request's observer wants to know of the first token."""
        return self._observer.awaits_first_token

    def span_attributes(self) -> Mapping[str, AttributeValue]:
        """Return the span's attributes of the request, except those of its outcome."""
        return self._observer.attributes()

    def stop(self) -> None:
        """Stop the request gracefully."""
        self.context.stop_generating()

    def abort(self) -> None:
        """Start ``engine.abort`` for this request, and return at once."""
        start_abort(self._engine, self.context, self._own_context)

    def end_of_turn(self, callback: Callable[[], None]) -> object:
        """Call *callback* at the end of the event loop's turn."""
        return self.loop.call_soon(callback)

    def abort_step(self, step: AbortStep) -> None:
        """Record what happened to the abort."""
        self._has_pending_abort = step is AbortStep.REQUESTED
        self._observer.abort_step(step)

    def record_first_token(self) -> None:
        """Record the first token, and release a deferred abort."""
        self.context.notify_first_token()
        self._observer.first_token()

    def operator_failed(self, name: str, error: Exception) -> None:
        """Log an operator that raised (row O4)."""
        self._observer.operator_failed(name, error)

    def add_event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Add an event to the span, at the present time of the request's clock."""
        add_event(self.span, self.times, name, attributes)

    def take_back(self, items: Sequence[Any]) -> None:
        """Withdraw items that a drop kept from the consumer."""
        self.outcome.take_back(items)

    def end(self, dropped: bool) -> None:
        """Decide the outcome when the stream is over, and report it."""
        if dropped and self._has_pending_abort and self.loop.is_running():
            # Whether the abort is made is known at the end of the turn (row A5).
            self.loop.call_soon(self._end, dropped)
        else:
            self._end(dropped)

    def _end(self, dropped: bool) -> None:
        outcome = self.outcome.end(dropped=dropped, dropped_for=self.context.failure)
        self._observer.ended(outcome)
        self._observer.closed()
