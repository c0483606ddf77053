"""One request's log events, with its ids bound once."""

from __future__ import annotations

import logging
from typing import Any, Final

from opentelemetry.trace import Span

from operators import AbortStep, Outcome, TokenTimes
from operators import span_names as names
from operators.authoring import Clock
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import BackendError
from rx_backend.logger import Logger, describe, get_logger
from rx_backend.protocols import PreprocessedRequest
from rx_backend.telemetry.outcomes import error_type, finish_reason
from rx_backend.telemetry.request_span import should_record
from rx_backend.telemetry.trace_ids import trace_ids

__all__ = ("LOGGER", "RequestLog", "request_ids")

LOGGER: Final = "rx_backend.requests"
"""The name of the logger of requests."""

_LONGEST_ID: Final = 256


def request_ids(context: RequestContext) -> dict[str, str]:
    """
    Return the ids that identify a request in the log: the frontend's and the client's.

    The frontend's is the last part of the completion's id. The client's is the header
    ``x-request-id``, which the frontend also returns; the runtime passes it on if it passes on
    traces.
    """
    ids = {"request_id": context.id}
    clients = context.trace_headers.get("x-request-id")
    if clients:
        ids["x_request_id"] = clients[:_LONGEST_ID]
    return ids


class RequestLog:
    """
    Logs one request: at INFO its end and the events of its abort; at DEBUG more.

    The last event is ``request ended``, ``request dropped`` or, at WARNING, ``request failed``. A
    successful health probe is logged at DEBUG. No user's, model's or error's text and no token ids
    are logged, at any level.

    Args:
        span: The request's span.
        request: The request.
        context: Its context.
        mode: The worker's role.
        clock: Measures the duration, unless *record* or the span disables it (row P8).
        record: As for the adapter.

    Attributes:
        has_all_ends: Whether the end of a successful request is logged.
        has_first_token: Whether the first token is logged.
    """

    __slots__ = (
        "_bound",
        "_clock",
        "_context",
        "_input_tokens",
        "_mode",
        "_request",
        "_span",
        "_started",
        "has_all_ends",
        "has_first_token",
    )

    def __init__(
        self,
        span: Span,
        request: PreprocessedRequest,
        context: RequestContext,
        mode: DisaggregationMode,
        *,
        clock: Clock,
        record: bool | None = None,
    ) -> None:
        self._span = span
        self._request = request
        self._context = context
        # An engine may append to the prompt.
        self._input_tokens = len(request.token_ids)
        self._mode = mode
        self._bound: Logger | None = None
        self._clock: Clock | None = None
        # The usual level takes one check, an enabled level a second one.
        has_info = _stdlib_logger.isEnabledFor(logging.INFO)
        self.has_first_token = has_info and _stdlib_logger.isEnabledFor(logging.DEBUG)
        self.has_all_ends = self.has_first_token if request.is_probe else has_info
        if self.has_all_ends and should_record(span, record, metered=True):
            self._clock, self._started = clock, clock()

    @property
    def _logger(self) -> Logger:
        """A logger with the ids; bound at the first event, as most requests have at most one."""
        if self._bound is None:
            self._bound = _logger.bind(
                **request_ids(self._context),
                **trace_ids(self._span.get_span_context()),
                mode=self._mode.value,
                model=self._request.model,
                input_tokens=self._input_tokens,
            )
        return self._bound

    def opened(self) -> None:
        """Log the start."""
        if self.has_first_token:
            self._logger.debug("request started")

    def first_token(self, times: TokenTimes) -> None:
        """Log the first token, and its time if times are measured."""
        timed = _rounded(ttft_ms=(times.clock() - times.started) * 1000.0) if times.is_timed else {}
        self._logger.debug("first token", **timed)

    def abort_step(self, step: AbortStep) -> None:
        """Log what happened to the request's abort."""
        event, fields = _STEPS[step]
        self._logger.info(event, **fields)

    def ended(self, outcome: Outcome) -> None:
        """Log how the stream ended."""
        is_failure = outcome.is_error
        if not is_failure and not self.has_all_ends:
            return
        fields: dict[str, Any] = {names.FINISH_REASON: finish_reason(outcome)}
        kind = error_type(outcome)
        if kind is not None:
            fields["error_type"] = kind
        if outcome.error is not None:
            fields |= describe(outcome.error)
        fields[names.CANCELLED] = outcome.is_cancelled
        fields |= self._duration()
        queued_s = self._context.queued_s
        if queued_s is not None:
            fields |= _rounded(queue_ms=queued_s * 1000.0)
        if outcome.times is not None:
            tokens = outcome.output_tokens
            if tokens is not None:
                fields[names.OUTPUT_TOKENS] = tokens
            fields |= _figures(outcome.times)
        if is_failure:
            self._logger.warning("request failed", **fields)
        else:
            log = self._logger.debug if self._request.is_probe else self._logger.info
            log("request dropped" if outcome.is_dropped else "request ended", **fields)

    def failed_setup(self, error: BackendError) -> None:
        """Log a set-up that failed."""
        fields = {names.FINISH_REASON: names.SETUP_FAILED, "error_type": error.kind}
        self._logger.warning("request failed", **fields, **describe(error), **self._duration())

    def _duration(self) -> dict[str, float]:
        if self._clock is None:
            return {}
        return _rounded(duration_ms=(self._clock() - self._started) * 1000.0)


def _figures(times: TokenTimes) -> dict[str, float]:
    """Return the latencies, if they were measured."""
    figures = {names.SETUP_MS: times.setup_ms, names.TTFT_MS: times.ttft_ms}
    measured = {name: round(value, 2) for name, value in figures.items() if value is not None}
    itl = times.itl_figures()
    if itl is not None:
        measured |= {
            names.AVG_ITL_MS: itl.avg_ms,
            names.ITL_P50_MS: itl.p50_ms,
            names.ITL_P99_MS: itl.p99_ms,
            names.ITL_MAX_MS: itl.max_ms,
        }
    return measured


def _rounded(**figures: float) -> dict[str, float]:
    return {name: round(value, 2) for name, value in figures.items()}


_STEPS: Final[dict[AbortStep, tuple[str, dict[str, bool]]]] = {
    AbortStep.REQUESTED: ("abort requested", {}),
    AbortStep.CALLED_IMMEDIATELY: ("abort called", {"deferred": False}),
    AbortStep.CALLED_AFTER_DEFERRAL: ("abort called", {"deferred": True}),
    AbortStep.SUPPRESSED: ("abort suppressed", {}),
}
_logger = get_logger(LOGGER)
_stdlib_logger = logging.getLogger(LOGGER)
