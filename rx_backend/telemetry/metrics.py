"""The OpenTelemetry metrics of all requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from operators import CoalesceCounts
from operators import span_names as names
from operators.assembly import encodable
from rx_backend.disagg import DisaggregationMode
from rx_backend.telemetry.instruments import SharedInstruments
from rx_backend.telemetry.request_span import OPERATION, PROVIDER
from rx_backend.telemetry.series import (
    ABORTS,
    ACTIVE,
    DEADLINES,
    EVERY_NTH_GAP,
    REQUESTS,
    TOKENS,
    WASTED,
    Histograms,
    RequestSeries,
    Series,
    UnknownModelSeries,
)

__all__ = ("COALESCED", "OTHER_MODELS", "ServerMetrics")

COALESCED: Final = CoalesceCounts()
"""The chunks that this process's workers have merged before the runtime."""

OTHER_MODELS: Final = "_OTHER"
"""The label of models that are not served, and of all others once there are many."""

_MOST_MODELS: Final = 32

# OpenTelemetry's buckets for each, in s.
_REQUEST_S: Final = tuple(0.01 * 2**power for power in range(14))
_FIRST_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08),
    *(0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
# Tokens may be faster than OpenTelemetry's lowest bucket.
_GAP_S: Final = (0.0005, 0.001, 0.0025, 0.005, *_TOKEN_S)

# As in `Histograms`.
_HISTOGRAMS: Final = (
    (
        "gen_ai.server.request.duration",
        _REQUEST_S,
        "Time from the request to the end of its stream",
    ),
    ("gen_ai.server.time_to_first_token", _FIRST_S, "Time from the request to its first token"),
    ("gen_ai.server.time_per_output_token", _TOKEN_S, "Time per token after the first"),
    ("rx_backend.inter_token_latency", _GAP_S, f"Every {EVERY_NTH_GAP}th gap between chunks"),
    ("rx_backend.queue_time", _FIRST_S, "Time queued for the engine"),
)
_COUNTERS: Final = {
    REQUESTS: ("{request}", "Finished requests, by outcome"),
    TOKENS: ("{token}", "Prompt tokens read by engines, and generated tokens delivered"),
    WASTED: ("{token}", "Tokens of additional engines that no answer used"),
    ABORTS: ("{abort}", "Aborts, by outcome"),
    DEADLINES: ("{deadline}", "Deadlines that were exceeded"),
}


class ServerMetrics(SharedInstruments):
    """
    The instruments of one meter provider, shared by all adapters. Thread-safe.

    Labels have few values: no request id, no user's text, and at most 32 models. A model gets its
    own label once a request for it was not rejected with ``InvalidArgument``.

    Args:
        meter: Creates the instruments.
    """

    def __init__(self, meter: Meter) -> None:
        self._lock = threading.Lock()
        self._models: set[str] = set()
        self._series: dict[tuple[str, DisaggregationMode], RequestSeries] = {}

        self._histograms = Histograms(
            *(
                meter.create_histogram(name, "s", what, explicit_bucket_boundaries_advisory=bounds)
                for name, bounds, what in _HISTOGRAMS
            )
        )
        for name, (unit, what) in _COUNTERS.items():
            meter.create_observable_counter(name, [self._observer(name)], unit, what)
        meter.create_observable_up_down_counter(
            ACTIVE, [self._observer(ACTIVE)], "{request}", "Requests with an open stream"
        )
        meter.create_observable_counter(
            "rx_backend.coalesce.chunks",
            [_observe_coalesced],
            "{chunk}",
            "Chunks before and after coalescing",
        )

    def series(self, model: str, mode: DisaggregationMode) -> Series:
        """Return the series for a request for *model* in one role."""
        found = self._series.get((model, mode))
        return found or self._find(encodable(model), mode)

    def _find(self, model: str, mode: DisaggregationMode) -> Series:
        with self._lock:
            if model in self._models:
                return self._labelled(model, mode)
            others = self._labelled(OTHER_MODELS, mode)
            if len(self._models) >= _MOST_MODELS:
                return others
        return UnknownModelSeries(others, lambda: self._admit(model, mode))

    def _admit(self, model: str, mode: DisaggregationMode) -> RequestSeries:
        """Return the series of a served model, if there is room for its label."""
        with self._lock:
            if len(self._models) < _MOST_MODELS:
                self._models.add(model)
            return self._labelled(model if model in self._models else OTHER_MODELS, mode)

    def _labelled(self, model: str, mode: DisaggregationMode) -> RequestSeries:
        if (model, mode) not in self._series:
            labels = {
                names.OPERATION_NAME: OPERATION,
                names.PROVIDER_NAME: PROVIDER,
                names.REQUEST_MODEL: model,
                "rx_backend.mode": mode.value,
            }
            # The first request for each model is counted there while it runs.
            is_shared = model == OTHER_MODELS
            series = RequestSeries(labels, self._histograms, hides_zeros=is_shared)
            self._series[model, mode] = series
        return self._series[model, mode]

    def _observer(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: [
            observation
            for series in list(self._series.values())
            for observation in series.observe(name)
        ]


def _observe_coalesced(_: CallbackOptions) -> Iterator[Observation]:
    yield Observation(COALESCED.chunks_in, {"rx_backend.side": "in"})
    yield Observation(COALESCED.chunks_out, {"rx_backend.side": "out"})
