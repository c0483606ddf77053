"""The observers of one request: its span, the metrics, the log."""

from __future__ import annotations

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from operators import AbortStep, BufferOverflow, DeadlineExpired, Outcome, TokenTimes
from operators import span_names as names
from rx_backend.context import RequestContext
from rx_backend.errors import BackendError, as_backend_error
from rx_backend.logger import describe, get_logger
from rx_backend.telemetry import request_span
from rx_backend.telemetry.request_log import RequestLog, request_ids
from rx_backend.telemetry.series import Series

__all__ = ("RequestObserver",)


class RequestObserver:
    """
    Passes what happens to one request to its span, to the metrics and to the log.

    Args:
        span: The request's span.
        context: Its context.
        times: When its tokens arrived.
        series: Counts all such requests; None without a meter provider.
        log: Logs the request.
        recording: Whether to write on the span (row P8).

    Attributes:
        counts: Whether :meth:`ended` uses how many tokens there were.
        awaits_first_token: Whether :meth:`first_token` does anything.
    """

    __slots__ = (
        "_context",
        "_log",
        "_recording",
        "_series",
        "_span",
        "awaits_first_token",
        "counts",
        "times",
    )

    def __init__(
        self,
        span: Span,
        context: RequestContext,
        times: TokenTimes,
        series: Series | None,
        log: RequestLog,
        *,
        recording: bool,
    ) -> None:
        self._span = span
        self._context = context
        self.times = times
        self._recording = recording
        self._log = log
        self._series = series
        self.counts = series is not None or log.has_all_ends
        self.awaits_first_token = log.has_first_token

    def is_stopped(self) -> bool:
        """Return whether the request was asked to stop."""
        return self._context.is_stopped

    def opened(self, input_tokens: int) -> None:
        """Take note of the start."""
        if self._series is not None:
            self._series.opened(input_tokens)
        self._log.opened()

    def first_token(self) -> None:
        """Take note of the first token."""
        if self.awaits_first_token:
            self._log.first_token(self.times)

    def abort_step(self, step: AbortStep) -> None:
        """Take note of what happened to the request's abort."""
        if self._recording:
            request_span.record_abort(self._span, self.times, step)
        if self._series is not None:
            self._series.abort_step(step)
        self._log.abort_step(step)

    def ended(self, outcome: Outcome) -> None:
        """Take note of the outcome; the pipeline's ``record_span`` writes it on the span."""
        if self._series is not None:
            self._series.ended(outcome, self._context)
        self._log.ended(outcome, self._context)

    def closed(self) -> None:
        """End everything, whatever the pipeline was, and a span that it left open."""
        if self._span.is_recording():
            self._span.end()
        if self._series is not None:
            self._series.closed(self._context)

    def attributes(self) -> dict[str, AttributeValue]:
        """Return attributes of the span besides those of its outcome."""
        queued_s = self._context.queued_s
        if queued_s is None:
            return {}
        return {names.QUEUE_MS: round(queued_s * 1000.0, 2), names.TIME_IN_QUEUE: queued_s}

    def operator_failed(self, name: str, error: Exception) -> None:
        """Log an operator that raised, once, with the place it was raised at (row O4)."""
        # These are meant: a refused chunk, a deadline that has passed.
        if not isinstance(error, BackendError | DeadlineExpired | BufferOverflow):
            ids = request_ids(self._context)
            _log.error("operator failed", **ids, operator=name, **describe(error))

    def failed_setup(self, error: BackendError) -> None:
        """Take note of a set-up that failed: there is no stream (row P4)."""
        request_span.record_failed_setup(self._span, error)
        if self._series is not None:
            self._series.failed_setup(error)
        self._log.failed_setup(error)
        self.closed()

    def dropped_setup(self) -> None:
        """Take note of a request that was ended during the set-up: there is no stream (row P5)."""
        if self._context.failure is not None:
            self.failed_setup(as_backend_error(self._context.failure))
            return
        request_span.record_dropped_setup(self._span)
        self.ended(Outcome(None, None, is_cancelled=True))
        self.closed()


_log = get_logger(__name__)
