"""The figures of a replay: one row per request, and counts of latencies."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from operators.authoring import nearest_rank
from rx_backend.errors import BackendError

__all__ = ("LatencyCounts", "ReplayResult", "RequestFigures", "stop_reason", "token_gaps")

_TICKS_PER_MS = 100


class RequestFigures(Struct, frozen=True, kw_only=True, gc=False):
    """
    The figures of one request at its client. Times are the loop's: virtual in a virtual run.

    The TTFT counts from the arrival, with all queueing. The inter-token figures are those of row
    F4, in ms with two decimals; None without two chunks of tokens.
    """

    index: int
    """Position in the workload, from 0."""
    arrival_s: float
    """Arrival, in seconds since the replay began."""
    prompt_tokens: int
    requested_tokens: int
    """Tokens requested."""
    tokens: int
    """Tokens received."""
    outcome: str
    """Finish reason, such as `length` or `cancelled`; or `dropped`, `error` or `interrupted`."""
    error: str | None
    """The error's kind, such as `Disconnected`; `terminal` for an error terminal; else None."""
    ttft_ms: float | None
    """From arrival to the first token, in ms; None without one."""
    itl_p50_ms: float | None
    itl_p90_ms: float | None
    itl_p99_ms: float | None
    duration_ms: float
    """From arrival to the end, in ms."""

    @property
    def end_s(self) -> float:
        """When the request ended, in seconds since the replay began."""
        return self.arrival_s + self.duration_ms / 1000


class LatencyCounts:
    """
    Latencies counted in steps of 0.01 ms: exact to two decimals, in little memory.

    >>> counts = LatencyCounts()
    >>> counts.add([1000, 1000, 2500])
    >>> counts.quantile(0.5), counts.quantile(1.0)
    (10.0, 25.0)
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.total = 0

    def add(self, ticks: Sequence[int]) -> None:
        """Count latencies, each in hundredths of a ms."""
        self._counts.update(ticks)
        self.total += len(ticks)

    def quantile(self, q: float) -> float | None:
        """Return the nearest-rank quantile in ms (row F4), None without latencies."""
        above = int((self.total - 1) * q + 0.5)
        for ticks, count in sorted(self._counts.items()):
            above -= count
            if above < 0:
                return ticks / _TICKS_PER_MS
        return None

    def buckets(self) -> list[tuple[float, int]]:
        """Return each latency in ms with its count, in rising order."""
        return [(ticks / _TICKS_PER_MS, count) for ticks, count in sorted(self._counts.items())]


class ReplayResult:
    """
    The figures of a replay; filled while the replay runs.

    Attributes:
        title: What was replayed, on which engine.
        model: The name by which the engine serves its model; None before it has started.
        context_length: The engine's context in tokens; None if unknown.
        truncated: Requests that were truncated to the context.
        planned: Requests in the workload; None if unknown.
        requests: Figures of the requests that have ended, in the order of their ends.
        itl: Gaps between chunks with tokens, of all requests.
        tokens: Tokens received by the requests that have ended.
        tokens_by_s: Tokens received in each second since the replay began; a chunk with other
            content counts as one.
        running: Requests in flight.
        duration_s: Seconds from the first arrival to the last end so far.
        stopped_by: Why the replay ended early: ``interrupt``, or an error's message; None if it did
            not.
    """

    def __init__(self, planned: int | None = None) -> None:
        self.title = ""
        self.model: str | None = None
        self.context_length: int | None = None
        self.truncated = 0
        self.planned = planned
        self.requests: list[RequestFigures] = []
        self.itl = LatencyCounts()
        self.tokens = 0
        self.tokens_by_s: Counter[int] = Counter()
        self.running = 0
        self.duration_s = 0.0
        self.stopped_by: str | None = None


def stop_reason(error: BaseException) -> str:
    """Return the value of ``stopped_by`` for *error*."""
    if isinstance(error, Exception):
        return error.message if isinstance(error, BackendError) else type(error).__name__
    return "interrupt"


def token_gaps(times: array[float]) -> tuple[list[int], tuple[float | None, ...]]:
    """
    Return the gaps between the token times of a request.

    Args:
        times: Arrival of each chunk with tokens, in seconds.

    Returns:
        The gaps in hundredths of a ms, rising, and their p50, p90 and p99 in ms.
    """
    ticks = sorted([int((late - soon) * 1e5 + 0.5) for soon, late in pairwise(times)])
    if not ticks:
        return ticks, (None, None, None)
    return ticks, tuple(nearest_rank(ticks, q) / _TICKS_PER_MS for q in (0.5, 0.9, 0.99))
