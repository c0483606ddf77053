"""One request's life as log events, with its ids bound once."""

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
from rx_backend.telemetry.listeners import lowest_level
from rx_backend.telemetry.outcomes import error_type, finish_reason
from rx_backend.telemetry.request_span import should_record
from rx_backend.telemetry.trace_ids import trace_ids

__all__ = ("LOGGER", "RequestLog")

LOGGER: Final = "rx_backend.requests"
"""The name of the logger that tells of requests."""


class RequestLog:
    """
    Tells of one request: at INFO one event at its end, and those of its abort; at DEBUG more.

    The last event is ``request ended``, ``request dropped`` or, at WARNING, ``request failed``. A
    health probe that goes well is told of at DEBUG. No text of a user's, of a model's or of an
    error, and no token ids, at any level.

    Made by `of`, and only where somebody listens.

    Args:
        level: The lowest level that somebody listens at.
        span: The request's span.
        request: The request.
        context: Its context.
        mode: The worker's role.
    """

    __slots__ = (
        "_bound",
        "_clock",
        "_context",
        "_input_tokens",
        "_is_told",
        "_level",
        "_mode",
        "_request",
        "_span",
        "_started",
    )

    def __init__(
        self,
        level: int,
        span: Span,
        request: PreprocessedRequest,
        context: RequestContext,
        mode: DisaggregationMode,
    ) -> None:
        self._level = level
        self._span = span
        self._request = request
        self._context = context
        # An engine may append to the prompt.
        self._input_tokens = len(request.token_ids)
        self._mode = mode
        self._clock: Clock | None = None
        self._started = 0.0
        self._is_told = False
        self._bound: Logger | None = None

    @classmethod
    def of(
        cls,
        span: Span,
        request: PreprocessedRequest,
        context: RequestContext,
        mode: DisaggregationMode,
        *,
        clock: Clock,
        record: bool | None = None,
    ) -> RequestLog | None:
        """
        Give the log of a request that begins; None where nobody listens, not even to warnings.

        It tells how long the request took, unless *record* and the span say that no clock is to be
        read for it (row P8).
        """
        level = lowest_level(_stdlib_logger)
        if level is None:
            return None
        log = cls(level, span, request, context, mode)
        if log.tells_all_ends and should_record(span, record, metered=True):
            log._clock, log._started = clock, clock()
        return log

    @property
    def _logger(self) -> Logger:
        """Has the ids; bound at the request's first event, as for most there is none or one."""
        if self._bound is None:
            self._bound = _logger.bind(
                request_id=self._context.id,
                **trace_ids(self._span.get_span_context()),
                mode=self._mode.value,
                model=self._request.model,
                input_tokens=self._input_tokens,
            )
        return self._bound

    @property
    def tells_all_ends(self) -> bool:
        """Whether the end of a request that goes well is listened to."""
        return self._level <= (logging.DEBUG if self._request.is_probe else logging.INFO)

    @property
    def tells_first_token(self) -> bool:
        """Whether the first token is listened to."""
        return self._level <= logging.DEBUG

    def started(self) -> None:
        """The request is there."""
        if self._level <= logging.DEBUG:
            self._logger.debug("request started")

    def first_token(self, times: TokenTimes) -> None:
        """Log that the first token is there, and when it came where times are measured."""
        told = _rounded(ttft_ms=(times.clock() - times.started) * 1000.0) if times.is_timed else {}
        self._logger.debug("first token", **told)

    def abort_step(self, step: AbortStep) -> None:
        """Something happened to the request's abort."""
        if self._level <= logging.INFO:
            event, more = _STEPS[step]
            self._logger.info(event, **more)

    def ended(self, outcome: Outcome) -> None:
        """The stream ended in a way that is known."""
        is_failure = outcome.is_error
        if not self._is_first() or not (is_failure or self.tells_all_ends):
            return
        told: dict[str, Any] = {names.FINISH_REASON: finish_reason(outcome)}
        kind = error_type(outcome)
        if kind is not None:
            told["error_type"] = kind
        if outcome.error is not None:
            told |= describe(outcome.error)
        told[names.CANCELLED] = outcome.is_cancelled
        told |= self._duration()
        queued_s = self._context.queued_s
        if queued_s is not None:
            told |= _rounded(queue_ms=queued_s * 1000.0)
        if outcome.times is not None:
            told |= {names.OUTPUT_TOKENS: outcome.output_tokens} | _figures(outcome.times)
        if is_failure:
            self._logger.warning("request failed", **told)
        else:
            self._tell("request dropped" if outcome.is_dropped else "request ended", told)

    def closed(self) -> None:
        """The stream is at its end; how it ended was told before, unless its pipeline is silent."""
        if self._is_first():
            self._tell("request ended", self._duration())

    def failed_setup(self, error: BackendError) -> None:
        """There is no stream: its set-up failed."""
        if self._is_first():
            told = {names.FINISH_REASON: names.SETUP_FAILED, "error_type": error.kind}
            self._logger.warning("request failed", **told, **describe(error), **self._duration())

    def dropped_setup(self) -> None:
        """There is no stream: the caller left during its set-up."""
        self.ended(Outcome(None, None, is_cancelled=True))

    def _is_first(self) -> bool:
        """Whether this is the end's first telling."""
        is_first, self._is_told = not self._is_told, True
        return is_first

    def _duration(self) -> dict[str, float]:
        if self._clock is None:
            return {}
        return _rounded(duration_ms=(self._clock() - self._started) * 1000.0)

    def _tell(self, event: str, told: dict[str, Any]) -> None:
        if self._request.is_probe:
            self._logger.debug(event, **told)
        else:
            self._logger.info(event, **told)


def _figures(times: TokenTimes) -> dict[str, float]:
    """Return the latencies, where they were measured."""
    told: dict[str, float] = {}
    for name, value_ms in ((names.SETUP_MS, times.setup_ms), (names.TTFT_MS, times.ttft_ms)):
        if value_ms is not None:
            told[name] = round(value_ms, 2)
    itl = times.itl_figures()
    if itl is not None:
        told |= {
            names.AVG_ITL_MS: itl.avg_ms,
            names.ITL_P50_MS: itl.p50_ms,
            names.ITL_P99_MS: itl.p99_ms,
            names.ITL_MAX_MS: itl.max_ms,
        }
    return told


def _rounded(**figures: float) -> dict[str, float]:
    return {name: round(value, 2) for name, value in figures.items()}


_STEPS: Final[dict[AbortStep, tuple[str, dict[str, bool]]]] = {
    AbortStep.REQUESTED: ("abort requested", {}),
    AbortStep.MADE: ("abort made", {"deferred": False}),
    AbortStep.MADE_DEFERRED: ("abort made", {"deferred": True}),
    AbortStep.SUPPRESSED: ("abort suppressed", {}),
}
_logger = get_logger(LOGGER)
_stdlib_logger = logging.getLogger(LOGGER)
