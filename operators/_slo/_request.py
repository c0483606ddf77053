"""The targets of one request, and how it compares to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import sub
from typing import Any

from operators._slo._tally import Ended, Key, Outcome
from operators.token_times import TokenTimes, nearest_rank

__all__ = ("SloRequest",)

# Targets are met to the nanosecond: the fractions of a clock do not add up exactly.
_TOLERANCE_S = 1e-9


class SloRequest:
    """An open request; with *by_p99* the target *itl_ms* is for the 99th percentile."""

    __slots__ = ("_by_p99", "_itl_s", "_times", "_ttft_s", "key")

    def __init__(
        self,
        key: Key,
        times: TokenTimes,
        ttft_ms: float | None,
        itl_ms: float | None,
        by_p99: bool,
    ) -> None:
        self.key = key
        self._times = times
        self._ttft_s = _limit_s(ttft_ms)
        self._itl_s = _limit_s(itl_ms)
        self._by_p99 = by_p99

    def is_late(self) -> bool:
        """Return whether it misses a target even if its next token came now."""
        if self._first_s() > self._ttft_s:
            return True
        times = self._times.times
        if not times:
            return False
        waited_s = (self._times.clock() - times[0]) / (self._times.later_tokens + 1)
        return max(waited_s, self._mean_s()) > self._itl_s

    def ended(self, reason: Any, *, dropped: bool) -> Ended:
        """
        Return its outcome and its latencies, once its stream has ended.

        Args:
            reason: Its finish reason; None if it failed or was dropped.
            dropped: Whether, without a reason, it was dropped.
        """
        times, gaps_s = self._times, self._gaps_s()
        outcome: Outcome
        if getattr(reason, "is_error", False) or (reason is None and not dropped):
            outcome = "failed"
        elif reason is None or str(reason) == "cancelled":
            outcome = "slow" if self.is_late() else "cancelled"
        else:
            outcome = "good" if self._is_good(gaps_s) else "slow"
        ttft_s = self._first_s() if times.times else None
        return Ended(self.key, outcome, times.output_tokens, ttft_s, gaps_s)

    def _is_good(self, gaps_s: Sequence[float]) -> bool:
        if self._first_s() > self._ttft_s:
            return False
        if self._by_p99 and gaps_s:
            return nearest_rank(sorted(gaps_s), 0.99) <= self._itl_s
        return self._mean_s() <= self._itl_s

    def _first_s(self) -> float:
        """Return the time to the first token, or the wait for it so far."""
        times = self._times
        first = times.times[0] if times.times else times.clock()
        return first - times.started + (times.setup_ms or 0.0) / 1000.0

    def _mean_s(self) -> float:
        """Return the mean latency between tokens; 0 without one."""
        times = self._times.times
        later = self._times.later_tokens
        return (times[-1] - times[0]) / later if later else 0.0

    def _gaps_s(self) -> Sequence[float]:
        """Return the latency of each token but those of the first chunk."""
        times = self._times
        if times.sizes:
            return [gap_ms / 1000.0 for gap_ms in times.itl_per_token_ms()]
        return list(map(sub, times.times[1:], times.times))


def _limit_s(target_ms: float | None) -> float:
    return math.inf if target_ms is None else target_ms / 1000.0 + _TOLERANCE_S
