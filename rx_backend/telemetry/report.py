"""What is told of one request while it runs: to its span, to the metrics, to the log."""

from __future__ import annotations

from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from operators import AbortStep, BufferOverflow, DeadlineExpired, Outcome, TokenTimes
from operators import span_names as names
from rx_backend.context import RequestContext
from rx_backend.errors import BackendError
from rx_backend.logger import describe, get_logger
from rx_backend.telemetry import request_span
from rx_backend.telemetry.request_log import RequestLog
from rx_backend.telemetry.series import RequestSeries

__all__ = ("RequestObserver",)


class RequestObserver:
    """
    One request's, from its start to its end.

    Args:
        span: The request's span.
        context: Its context.
        times: When its tokens came.
        series: Counts all such requests; None when nobody collects metrics.
        log: Tells of the request; None when nobody listens.
        recording: Whether to write on the span (row P8).
    """

    __slots__ = ("_context", "_log", "_series", "_span", "_writes_events", "times")

    def __init__(
        self,
        span: Span,
        context: RequestContext,
        times: TokenTimes,
        series: RequestSeries | None = None,
        *,
        log: RequestLog | None = None,
        recording: bool = False,
    ) -> None:
        self._span = span
        self._context = context
        self.times = times
        self._writes_events = recording
        self._series = series
        self._log = log

    @property
    def counts(self) -> bool:
        """Whether :meth:`ended` has anybody to tell how many tokens there were."""
        return self._series is not None or (self._log is not None and self._log.tells_all_ends)

    @property
    def awaits_first_token(self) -> bool:
        """Whether :meth:`first_token` has anybody to tell."""
        return self._log is not None and self._log.tells_first_token

    def is_stopped(self) -> bool:
        """Return whether the request was asked to stop."""
        return self._context.is_stopped

    def opened(self, input_tokens: int) -> None:
        """Tell that the request is there."""
        if self._series is not None:
            self._series.opened(input_tokens)
        if self._log is not None:
            self._log.started()

    def first_token(self) -> None:
        """Tell that the first token is there."""
        if self._log is not None:
            self._log.first_token(self.times)

    def abort_step(self, step: AbortStep) -> None:
        """Tell what happened to the request's abort."""
        if self._writes_events:
            request_span.record_abort(self._span, self.times, step)
        if self._series is not None:
            self._series.abort(step)
        if self._log is not None:
            self._log.abort_step(step)

    def ended(self, outcome: Outcome) -> None:
        """Tell how the stream ended; the span is written by the pipeline's ``record_span``."""
        if self._series is not None:
            self._series.ended(outcome, self._context.queued_s)
        if self._log is not None:
            self._log.ended(outcome)

    def closed(self) -> None:
        """The stream is at its end, whatever its pipeline was; a span that was left open is ended."""
        if self._span.is_recording():
            self._span.end()
        if self._series is not None:
            if self._context.wasted is not None:
                self._series.wasted(self._context.wasted)
            self._series.closed()
        if self._log is not None:
            self._log.closed()

    def attributes(self) -> dict[str, AttributeValue]:
        """What the span says of the request besides how it ended."""
        queued_s = self._context.queued_s
        if queued_s is None:
            return {}
        return {names.QUEUE_MS: round(queued_s * 1000.0, 2), names.TIME_IN_QUEUE: queued_s}

    def operator_failed(self, name: str, error: Exception) -> None:
        """Log an operator that raised, once, with the place it was raised at (row O4)."""
        if isinstance(error, BackendError | DeadlineExpired | BufferOverflow):
            # These are meant: a refused chunk, a deadline that has passed.
            return
        _log.error(
            "operator failed",
            request_id=self._context.id,
            operator=name,
            **describe(error),
        )

    def failed_setup(self, error: BackendError) -> None:
        """There is no stream: the engine's set-up failed (row P4)."""
        request_span.record_failed_setup(self._span, error)
        if self._series is not None:
            self._series.failed_setup(error.kind)
            self._series.closed()
        if self._log is not None:
            self._log.failed_setup(error)

    def dropped_setup(self) -> None:
        """There is no stream: the caller left while the engine was setting up (row P5)."""
        request_span.record_dropped_setup(self._span)
        if self._series is not None:
            self._series.ended(Outcome(None, None, is_cancelled=True))
            self._series.closed()
        if self._log is not None:
            self._log.dropped_setup()


_log = get_logger(__name__)
