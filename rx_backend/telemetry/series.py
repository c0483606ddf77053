"""The metrics of all requests for one model in one role."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

from opentelemetry.metrics import Histogram, Observation

from operators import (
    AbortStep,
    DeadlineExpired,
    FirstTokenTimeout,
    IdleTimeout,
    Outcome,
    TokenTimes,
    TotalTimeout,
)
from operators import span_names as names
from rx_backend.context import RequestContext
from rx_backend.errors import BackendError, InvalidArgument
from rx_backend.telemetry.outcomes import error_type, finish_reason

__all__ = (
    "ABORTS",
    "ACTIVE",
    "DEADLINES",
    "EVERY_NTH_GAP",
    "REQUESTS",
    "TOKENS",
    "WASTED",
    "Histograms",
    "RequestSeries",
    "Series",
    "UnknownModelSeries",
)

EVERY_NTH_GAP: Final = 256
"""One in this many gaps between tokens is recorded: recording one costs as much as ten tokens."""

REQUESTS: Final = "rx_backend.requests"
TOKENS: Final = "rx_backend.tokens"
WASTED: Final = "rx_backend.tokens.wasted"
ABORTS: Final = "rx_backend.aborts"
DEADLINES: Final = "rx_backend.deadlines"
ACTIVE: Final = "rx_backend.requests.active"

_TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105  # no password

# Labels of each counter, in addition to those of the series.
_OWN_LABELS: Final[dict[str, tuple[str, ...]]] = {
    REQUESTS: ("rx_backend.finish_reason", names.ERROR_TYPE),
    TOKENS: (_TOKEN_TYPE,),
    WASTED: (_TOKEN_TYPE,),
    ABORTS: ("rx_backend.abort",),
    DEADLINES: ("rx_backend.deadline",),
    ACTIVE: (),
}


class Histograms(NamedTuple):
    """The instruments for latencies, all in seconds."""

    duration: Histogram
    first: Histogram
    per_token: Histogram
    gap: Histogram
    queued: Histogram


class RequestSeries:
    """
    Counts and measures the requests for one model in one role. Thread-safe.

    Counts are kept here and read when metrics are collected; only latencies are recorded at once.

    Args:
        labels: The labels of all metrics of these requests.
        histograms: The instruments for latencies.
        hides_zeros: Whether to hide counters that are zero.
    """

    __slots__ = ("_counts", "_gaps_seen", "_hides_zeros", "_histograms", "_labels", "_lock")

    def __init__(
        self, labels: dict[str, str], histograms: Histograms, *, hides_zeros: bool = False
    ) -> None:
        self._labels = labels
        self._hides_zeros = hides_zeros
        self._histograms = histograms
        self._lock = threading.Lock()
        self._counts = {name: Counter[tuple[str | None, ...]]() for name in _OWN_LABELS}
        self._gaps_seen = 0

    def opened(self, input_tokens: int) -> None:
        """Count a request that starts."""
        with self._lock:
            self._add(ACTIVE, 1)
            self._add(TOKENS, input_tokens, "input")

    def closed(self, context: RequestContext) -> None:
        """Count a finished request, and the cost of its additional engines."""
        wasted = context.wasted
        with self._lock:
            self._add(ACTIVE, -1)
            if wasted is not None:
                self._add(TOKENS, wasted.input, "input")
                self._add(WASTED, wasted.input, "input")
                self._add(WASTED, wasted.output, "output")

    def abort_step(self, step: AbortStep) -> None:
        """Count the outcome of an abort."""
        if step is not AbortStep.REQUESTED:
            with self._lock:
                self._add(ABORTS, 1, step.value)

    def failed_setup(self, error: BackendError) -> None:
        """Count a request that never had a stream."""
        with self._lock:
            self._add(REQUESTS, 1, names.SETUP_FAILED, error.kind)

    def ended(self, outcome: Outcome, context: RequestContext) -> None:
        """Count how a request ended, and its tokens; record its latencies if they are known."""
        kind, times, tokens = error_type(outcome), outcome.times, outcome.output_tokens
        deadline = _deadline_of(outcome.error)
        with self._lock:
            self._add(REQUESTS, 1, finish_reason(outcome), kind)
            if tokens is not None:
                self._add(TOKENS, tokens, "output")
            if deadline is not None:
                self._add(DEADLINES, 1, deadline)
        if context.queued_s is not None:
            self._histograms.queued.record(context.queued_s, self._labels)
        if times is not None and times.is_timed:
            self._measure(kind, times)

    def left(self) -> None:
        """Count a request as no longer active."""
        with self._lock:
            self._add(ACTIVE, -1)

    def observe(self, name: str) -> Iterator[Observation]:
        """Yield the values of one of the counters."""
        with self._lock:
            counts = list(self._counts[name].items())
        for values, count in counts:
            if not count and self._hides_zeros:
                continue
            own = zip(_OWN_LABELS[name], values, strict=True)
            yield Observation(
                count, {**self._labels, **{label: value for label, value in own if value}}
            )

    def _add(self, name: str, by: int, *values: str | None) -> None:
        self._counts[name][values] += by

    def _measure(self, kind: str | None, times: TokenTimes) -> None:
        """Record the latencies; those of tokens for successful requests only."""
        labels, to = self._labels, self._histograms
        setup_s = (times.setup_ms or 0.0) / 1000.0
        duration_s = times.clock() - times.started + setup_s
        to.duration.record(
            duration_s, labels if kind is None else {**labels, names.ERROR_TYPE: kind}
        )
        arrivals = times.times
        if arrivals and kind is None:
            to.first.record(arrivals[0] - times.started + setup_s, labels)
            later = times.later_tokens
            if later > 0:
                to.per_token.record((arrivals[-1] - arrivals[0]) / later, labels)
        for place in self._gaps_to_record(max(len(arrivals) - 1, 0)):
            to.gap.record(arrivals[place + 1] - arrivals[place], labels)

    def _gaps_to_record(self, gaps: int) -> Iterable[int]:
        """Return which of the next gaps to record: every 256th of all."""
        with self._lock:
            seen, self._gaps_seen = self._gaps_seen, self._gaps_seen + gaps
        return range(-seen % EVERY_NTH_GAP, gaps, EVERY_NTH_GAP)


class UnknownModelSeries:
    """
    Counts one request for a model that has no label yet.

    It is active among the others; the rest is counted at its end, which shows whether the model is
    served.

    Args:
        others: The series of all models without a label.
        admit: Returns the series of its model, once that is known to be served.
    """

    __slots__ = ("_admit", "_input_tokens", "_others", "_series")

    def __init__(self, others: RequestSeries, admit: Callable[[], RequestSeries]) -> None:
        self._others = self._series = others
        self._admit = admit
        self._input_tokens = 0

    def opened(self, input_tokens: int) -> None:
        """Count a request that starts."""
        self._input_tokens = input_tokens
        self._others.opened(0)

    def closed(self, context: RequestContext) -> None:
        """Count a request that is over."""
        self._series.closed(context)

    def abort_step(self, step: AbortStep) -> None:
        """Count the outcome of an abort."""
        self._series.abort_step(step)

    def failed_setup(self, error: BackendError) -> None:
        """Count a request that never had a stream."""
        self._decide(error.kind).failed_setup(error)

    def ended(self, outcome: Outcome, context: RequestContext) -> None:
        """Count how a request ended."""
        self._decide(error_type(outcome)).ended(outcome, context)

    def _decide(self, kind: str | None) -> RequestSeries:
        self._others.left()
        if kind != InvalidArgument.kind:
            self._series = self._admit()
        self._series.opened(self._input_tokens)
        return self._series


Series: TypeAlias = RequestSeries | UnknownModelSeries
"""Where a request's figures are recorded."""


def _deadline_of(error: Exception | None) -> str | None:
    """Return the option of the deadline that caused an error; None for other errors."""
    while error is not None:
        if isinstance(error, DeadlineExpired):
            return _DEADLINES.get(type(error), type(error).__name__)
        cause = error.__cause__
        error = cause if isinstance(cause, Exception) else None
    return None


_DEADLINES: Final[dict[type[DeadlineExpired], str]] = {
    FirstTokenTimeout: "first_token_s",
    IdleTimeout: "idle_s",
    TotalTimeout: "total_s",
}
