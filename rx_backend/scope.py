"""One request: what operators know about it, and its reporting to span, metrics and log."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue
from reactivex import Observable

from operators import AbortStep, BufferOverflow, DeadlineExpired, Outcome, TokenTimes
from operators import span_names as names
from operators.assembly import OutcomeTracker
from operators.authoring import Clock
from operators.span_events import add_event
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import LLMEngine, start_abort
from rx_backend.errors import BackendError, as_backend_error
from rx_backend.logger import describe, get_logger
from rx_backend.protocols import PreprocessedRequest, TraceLink
from rx_backend.telemetry import request_span
from rx_backend.telemetry.request_log import RequestLog, request_ids
from rx_backend.telemetry.series import Series

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
        own_context: The context variables that its engine and its operators run in.
        outcome: Decides how its stream ended, and notifies its subscribers.
    """

    request: PreprocessedRequest
    context: RequestContext
    mode: DisaggregationMode
    span: Span
    loop: asyncio.AbstractEventLoop
    recording: bool
    times: TokenTimes
    own_context: contextvars.Context
    _engine: LLMEngine
    _series: Series | None
    _log: RequestLog
    outcome: OutcomeTracker = field(init=False)
    _has_pending_abort: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.outcome = OutcomeTracker(self.times)

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
        """The worker's trace link; None without a valid one (row T5)."""
        return request_span.worker_trace_link(self.span)

    @property
    def is_prefill(self) -> bool:
        """Whether the request continues in another worker (row T4)."""
        return self.mode.is_prefill

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are counted although nothing is measured."""
        return self._series is not None or self._log.has_all_ends

    @property
    def awaits_first_token(self) -> bool:
        """Whether the first token is logged."""
        return self._log.has_first_token

    def span_attributes(self) -> Mapping[str, AttributeValue]:
        """Return the span's attributes of the request, except those of its outcome."""
        queued_s = self.context.queued_s
        if queued_s is None:
            return {}
        return {names.QUEUE_MS: round(queued_s * 1000.0, 2), names.TIME_IN_QUEUE: queued_s}

    def stop(self) -> None:
        """Stop the request gracefully."""
        self.context.stop_generating()

    def abort(self) -> None:
        """Start ``engine.abort`` for this request, and return at once."""
        start_abort(self._engine, self.context, self.own_context)

    def call_soon(self, callback: Callable[[], None]) -> object:
        """Call *callback* in the event loop's next iteration."""
        return self.loop.call_soon(callback)

    def abort_step(self, step: AbortStep) -> None:
        """Record what happened to the abort."""
        self._has_pending_abort = step is AbortStep.REQUESTED
        if self.recording:
            request_span.record_abort(self.span, self.times, step)
        if self._series is not None:
            self._series.abort_step(step)
        self._log.abort_step(step)

    def record_first_token(self) -> None:
        """Record the first token, and release a deferred abort."""
        self.context.notify_first_token()
        if self.awaits_first_token:
            self._log.first_token(self.times)

    def operator_failed(self, name: str, error: Exception) -> None:
        """Log an operator that raised, once, with the place it was raised at (row O4)."""
        # These are intentional: a rejected chunk, an expired deadline.
        if not isinstance(error, BackendError | DeadlineExpired | BufferOverflow):
            ids = request_ids(self.context)
            _logger.error("operator failed", **ids, operator=name, **describe(error))

    def add_event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Add an event to the span, at the current time of the request's clock."""
        add_event(self.span, self.times, name, attributes)

    def mark_undelivered(self, items: Sequence[Any]) -> None:
        """Withdraw items that a drop kept from the consumer."""
        self.outcome.mark_undelivered(items)

    def end(self, dropped: bool) -> None:
        """Decide the outcome when the stream is over, and report it."""
        if dropped and self._has_pending_abort and self.loop.is_running():
            # Whether the abort is made is known at the end of the iteration (row A5).
            self.loop.call_soon(self._end, dropped)
        else:
            self._end(dropped)

    def _end(self, dropped: bool) -> None:
        context = self.context
        outcome = self.outcome.end(
            dropped=dropped, is_cancelled=context.is_stopped, dropped_for=context.failure
        )
        self._report(outcome)

    def opened(self) -> None:
        """Count and log the start."""
        if self._series is not None:
            self._series.opened(len(self.request.token_ids))
        self._log.opened()

    def failed_setup(self, error: BackendError) -> None:
        """End a request whose set-up failed: there is no stream (row P4)."""
        request_span.record_failed_setup(self.span, error)
        if self._series is not None:
            self._series.failed_setup(error)
        self._log.failed_setup(error)
        self._close()

    def dropped_setup(self) -> None:
        """End a request that was dropped during the set-up: there is no stream (row P5)."""
        if self.context.failure is not None:
            self.failed_setup(as_backend_error(self.context.failure))
            return
        request_span.record_dropped_setup(self.span)
        self._report(Outcome(None, None, is_cancelled=True))

    def _report(self, outcome: Outcome) -> None:
        """Count and log the outcome; the pipeline's ``record_span`` writes it on the span."""
        if self._series is not None:
            self._series.ended(outcome, self.context)
        self._log.ended(outcome)
        self._close()

    def _close(self) -> None:
        """End the span, if the pipeline left it open, and the request's count."""
        if self.span.is_recording():
            self.span.end()
        if self._series is not None:
            self._series.closed(self.context)


_logger = get_logger(__name__)
