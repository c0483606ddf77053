"""What is counted and measured of all requests, as OpenTelemetry metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from operators import (
    AbortStep,
    CoalesceCounts,
    DeadlineExpired,
    FirstTokenTimeout,
    IdleTimeout,
    Outcome,
    TokenTimes,
    TotalTimeout,
)
from operators import span_names as names
from rx_backend.context import WastedTokens
from rx_backend.disagg import DisaggregationMode
from rx_backend.telemetry.outcomes import error_type, finish_reason
from rx_backend.telemetry.request_span import OPERATION, PROVIDER

__all__ = ("COALESCED", "EVERY_NTH_GAP", "OTHER_MODELS", "ServerMetrics")

Labels: TypeAlias = tuple[tuple[str, str], ...]

EVERY_NTH_GAP: Final = 256
"""
One gap between tokens in so many is recorded, whichever request it falls in.

The SDK takes as long for one as ten tokens take through the pipeline.
"""

COALESCED: Final = CoalesceCounts()
"""What workers of this process have merged at the boundary to the runtime."""

OTHER_MODELS: Final = "_OTHER"
"""What requests for further models are counted under, once there have been many."""

_MOST_MODELS: Final = 32

MODE: Final = "rx_backend.mode"
FINISH_REASON: Final = "rx_backend.finish_reason"
ABORT: Final = "rx_backend.abort"
DEADLINE: Final = "rx_backend.deadline"
SIDE: Final = "rx_backend.side"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105  # no password

# OpenTelemetry's buckets for each, in s.
_REQUEST_S = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
)
_FIRST_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08),
    *(0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# Tokens may come faster than OpenTelemetry's lowest bucket can tell.
_GAP_S = (0.0005, 0.001, 0.0025, 0.005, *_TOKEN_S)


class ServerMetrics:
    """
    The instruments of one meter provider, which all adapters share.

    Counters are kept here, and looked at when metrics are collected; only latencies are handed over
    as they come. Labels have few values: no request id, no text of a user's, and no more than so
    many models. Safe to use from several threads.

    Args:
        meter: Makes the instruments.
    """

    def __init__(self, meter: Meter) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, int]] = {}
        self._models: dict[str, str] = {}
        self._gaps_seen = 0

        def histogram(name: str, bounds: tuple[float, ...], what: str) -> Histogram:
            return meter.create_histogram(
                name, "s", what, explicit_bucket_boundaries_advisory=bounds
            )

        self._duration = histogram(
            "gen_ai.server.request.duration", _REQUEST_S, "From the request to its stream's end"
        )
        self._first = histogram(
            "gen_ai.server.time_to_first_token", _FIRST_S, "From the request to its first token"
        )
        self._per_token = histogram(
            "gen_ai.server.time_per_output_token",
            _TOKEN_S,
            "Time per token after the first, one figure for each request",
        )
        self._gap = histogram(
            "rx_backend.inter_token_latency",
            _GAP_S,
            f"Gap before a chunk with tokens; one gap in {EVERY_NTH_GAP}",
        )
        self._queued = histogram(
            "rx_backend.queue_time",
            _FIRST_S,
            "How long requests waited for their turn at the engine",
        )
        for name, unit, what in (
            ("rx_backend.requests", "{request}", "Requests that are over, by how they ended"),
            ("rx_backend.tokens", "{token}", "Tokens that engines read, and tokens handed out"),
            (
                "rx_backend.tokens.wasted",
                "{token}",
                "Tokens that a further engine read or made, and that no answer needed",
            ),
            ("rx_backend.aborts", "{abort}", "What became of aborts"),
            ("rx_backend.deadlines", "{deadline}", "Deadlines that passed"),
        ):
            self._counts[name] = {}
            meter.create_observable_counter(name, [self._observer(name)], unit, what)
        self._counts[_ACTIVE] = {}
        meter.create_observable_up_down_counter(
            _ACTIVE, [self._observer(_ACTIVE)], "{request}", "Requests whose stream is open"
        )
        meter.create_observable_counter(
            "rx_backend.coalesce.chunks",
            [_observe_coalesced],
            "{chunk}",
            "Chunks that went into coalescing, and those that came out",
        )

    @classmethod
    def of(cls, provider: MeterProvider | None) -> ServerMetrics | None:
        """
        The one for *provider*; for the global provider when left out.

        None as long as nobody has set a global provider up.
        """
        if provider is None:
            provider = metrics.get_meter_provider()
            # What the API has by itself records nothing.
            if type(provider).__module__.startswith("opentelemetry.metrics"):
                return None
        with _shared_lock:
            shared = _shared.get(provider)
            if shared is None:
                shared = _shared[provider] = cls(provider.get_meter("rx_backend"))
        return shared

    def labels(self, model: str, mode: DisaggregationMode) -> Labels:
        """The labels that all figures of a request have."""
        known = self._models.get(model)
        if known is None:
            with self._lock:
                if len(self._models) < _MOST_MODELS:
                    self._models[model] = model
                known = self._models.get(model, OTHER_MODELS)
        return (
            (names.OPERATION_NAME, OPERATION),
            (names.PROVIDER_NAME, PROVIDER),
            (names.REQUEST_MODEL, known),
            (MODE, mode.value),
        )

    def opened(self, labels: Labels, input_tokens: int) -> None:
        """A request came in."""
        with self._lock:
            self._add(_ACTIVE, labels, 1)
            self._add("rx_backend.tokens", (*labels, _INPUT), input_tokens)

    def closed(self, labels: Labels) -> None:
        """A request's stream is at its end, or was never made."""
        with self._lock:
            self._add(_ACTIVE, labels, -1)

    def wasted(self, labels: Labels, tokens: WastedTokens) -> None:
        """Count what a request's further engines cost."""
        with self._lock:
            self._add("rx_backend.tokens", (*labels, _INPUT), tokens.input)
            self._add("rx_backend.tokens.wasted", (*labels, _INPUT), tokens.input)
            self._add("rx_backend.tokens.wasted", (*labels, _OUTPUT), tokens.output)

    def ended(self, labels: Labels, outcome: Outcome, queued_s: float | None = None) -> None:
        """Count how a request ended, and its tokens; measure it where its times are known."""
        kind, times = error_type(outcome), outcome.times
        deadline = deadline_of(outcome.error)
        ending = (*labels, (FINISH_REASON, finish_reason(outcome)), *_error(kind))
        with self._lock:
            self._add("rx_backend.requests", ending, 1)
            if outcome.output_tokens is not None:
                self._add("rx_backend.tokens", (*labels, _OUTPUT), outcome.output_tokens)
            if deadline is not None:
                self._add("rx_backend.deadlines", (*labels, (DEADLINE, deadline)), 1)
        if queued_s is not None:
            self._queued.record(queued_s, dict(labels))
        if times is not None and times.is_timed:
            self._measure(dict(labels), kind, times)

    def failed_setup(self, labels: Labels, kind: str) -> None:
        """Count a request that never had a stream."""
        with self._lock:
            ending = (*labels, (FINISH_REASON, names.SETUP_FAILED), *_error(kind))
            self._add("rx_backend.requests", ending, 1)

    def abort(self, labels: Labels, step: AbortStep) -> None:
        """Count what became of an abort."""
        if step is not AbortStep.REQUESTED:
            with self._lock:
                self._add("rx_backend.aborts", (*labels, (ABORT, step.value)), 1)

    def _measure(self, labels: dict[str, str], kind: str | None, times: TokenTimes) -> None:
        """Hand the latencies over; those of tokens for requests that went well."""
        setup_s = (times.setup_ms or 0.0) / 1000.0
        duration = times.clock() - times.started + setup_s
        self._duration.record(duration, labels | dict(_error(kind)))
        arrivals = times.times
        if arrivals and kind is None:
            self._first.record(arrivals[0] - times.started + setup_s, labels)
            later = times.later_tokens
            if later > 0:
                self._per_token.record((arrivals[-1] - arrivals[0]) / later, labels)
        for place in self._gaps_to_record(len(arrivals) - 1):
            self._gap.record(arrivals[place + 1] - arrivals[place], labels)

    def _gaps_to_record(self, gaps: int) -> Iterable[int]:
        """Which of the next so many gaps to record: every 256th of all."""
        if gaps <= 0:
            return ()
        with self._lock:
            seen, self._gaps_seen = self._gaps_seen, self._gaps_seen + gaps
        return range(-seen % EVERY_NTH_GAP, gaps, EVERY_NTH_GAP)

    def _add(self, name: str, labels: Labels, by: int) -> None:
        counts = self._counts[name]
        counts[labels] = counts.get(labels, 0) + by

    def _observer(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            with self._lock:
                counts = list(self._counts[name].items())
            for labels, count in counts:
                yield Observation(count, dict(labels))

        return observe


def deadline_of(error: Exception | None) -> str | None:
    """The deadline that an error says has passed, by its option's name; None for any other error."""
    while error is not None:
        if isinstance(error, DeadlineExpired):
            return _DEADLINES.get(type(error), type(error).__name__)
        cause = error.__cause__
        error = cause if isinstance(cause, Exception) else None
    return None


def _observe_coalesced(_: CallbackOptions) -> Iterator[Observation]:
    yield Observation(COALESCED.chunks_in, {SIDE: "in"})
    yield Observation(COALESCED.chunks_out, {SIDE: "out"})


def _error(kind: str | None) -> Labels:
    return () if kind is None else ((names.ERROR_TYPE, kind),)


_ACTIVE: Final = "rx_backend.requests.active"
_INPUT: Final = (TOKEN_TYPE, "input")
_OUTPUT: Final = (TOKEN_TYPE, "output")
_DEADLINES: Final[dict[type[DeadlineExpired], str]] = {
    FirstTokenTimeout: "first_token_s",
    IdleTimeout: "idle_s",
    TotalTimeout: "total_s",
}

_shared: WeakKeyDictionary[MeterProvider, ServerMetrics] = WeakKeyDictionary()
_shared_lock = threading.Lock()
