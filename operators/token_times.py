"""When a request's tokens arrived: the source of the figures in spans, metrics and reports."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import sub
from typing import Any, TypeVar

from operators._chunk import Chunk, Clock, answer_of, has_content

__all__ = ("LatencyFigures", "TokenTimes", "latency_figures", "nearest_rank", "worst_reason")


C = TypeVar("C", bound=Chunk)


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """Average, median, 99th percentile and maximum of some latencies, in ms, to two decimals."""

    avg_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    count: int


def nearest_rank(ordered: Sequence[float], q: float) -> float:
    """
    Return the *q* quantile of values in ascending order by nearest rank (row F4).

    The index is ``(n - 1) * q`` rounded, halves up; no value is interpolated.

    >>> nearest_rank([10, 20, 30, 40], 0.5)
    30
    """
    return ordered[int((len(ordered) - 1) * q + 0.5)]


def latency_figures(samples_ms: Sequence[float]) -> LatencyFigures | None:
    """
    Sum up latencies given in ms (row F4); None without a sample.

    >>> latency_figures([10, 20, 30, 40, 50])
    LatencyFigures(avg_ms=30.0, p50_ms=30.0, p99_ms=50.0, max_ms=50.0, count=5)
    """
    return _figures(sorted(samples_ms), 1.0)


class TokenTimes:
    """
    When the chunks with content of one request arrived, at 8 bytes each, and how many tokens.

    ``itl_window`` fills it; create one per request. Figures can be read at any time.

    Args:
        clock: Monotonic clock, in seconds; read only by the code that fills the record.
        epoch_ns: The time of day at the clock's zero, in ns since 1970, for :meth:`epoch_ns_of`;
            None if no wall-clock times are needed.
        answers: How many answers the request has.

    Attributes:
        setup_ms: How long the engine's set-up took; None when not measured (row F2).
        started: The clock when the stream began: the engine's set-up had returned (row F2).
        is_timed: Whether times are recorded; False before the stream starts, and if tokens are only
            counted.
        is_counted: Whether tokens are counted, with their times or without.
        has_first_token_event: Whether the first token was written as an event of the span.
        answers: How many answers the request has.
        finish_reasons: Those of the terminals so far, by the index of their answer.
        times: The clock at each chunk that had content, in seconds.
        sizes: Tokens of the chunks that had more than one, by their index in ``times``.
        without_ids: The indexes in ``times`` of chunks whose content has no token ids.
        counted: Tokens of the chunks that were only counted.
        usage_tokens: The sum of the terminals' ``completion_tokens``; None if they have none.
    """

    __slots__ = (
        "_itl",
        "answers",
        "clock",
        "counted",
        "epoch_ns",
        "finish_reasons",
        "has_first_token_event",
        "is_counted",
        "is_timed",
        "setup_ms",
        "sizes",
        "started",
        "times",
        "usage_tokens",
        "without_ids",
    )

    def __init__(
        self, clock: Clock = time.monotonic, *, epoch_ns: int | None = None, answers: int = 1
    ) -> None:
        self.clock = clock
        self.epoch_ns = epoch_ns
        self.answers = answers
        self.counted = 0
        self.setup_ms: float | None = None
        self.started = 0.0
        self.is_timed = False
        self.is_counted = False
        self.has_first_token_event = False
        self.finish_reasons: dict[int, Any] = {}
        self.usage_tokens: int | None = None
        self.times = array("d")
        self.without_ids: array[int] | tuple[()] = ()
        self.sizes: dict[int, int] = {}
        self._itl: tuple[int, LatencyFigures | None] = (0, None)

    @property
    def output_tokens(self) -> int:
        """
        How many tokens there were, in all chunks (row F1).

        The number of token ids; if there were none, the number in the terminals' usage.
        """
        ids, sizes = len(self.times) - len(self.without_ids) + self.counted, self.sizes
        if sizes:
            ids += sum(sizes.values()) - len(sizes)
        return ids or self.usage_tokens or 0

    @property
    def finish_reason(self) -> Any:
        """
        Why the request ended: the worst of its answers' reasons (row P11).

        An error, else ``cancelled``, else that of the first answer; None until all have ended.
        """
        reasons = self.finish_reasons
        if len(reasons) < self.answers:
            return None
        return worst_reason([reasons[answer] for answer in sorted(reasons)])

    @property
    def later_tokens(self) -> int:
        """How many tokens followed the first chunk; without any token ids, how many chunks."""
        chunks, without_ids = len(self.times), self.without_ids
        if len(without_ids) == chunks:
            return max(chunks - 1, 0)
        is_first_without = bool(without_ids) and without_ids[0] == 0
        return self.output_tokens - (0 if is_first_without else self.sizes.get(0, 1))

    def record(self, chunk: C) -> C:
        """Record a chunk unless it has one token, which the condition has recorded; return it."""
        tokens = len(chunk.token_ids)
        if tokens != 1 and has_content(chunk):
            self.record_content(tokens)
        if chunk.finish_reason is not None:
            self.record_terminal(chunk)
        return chunk

    def count(self, chunk: C) -> C:
        """Count the tokens of a chunk unless the condition has counted its only one; return it."""
        tokens = len(chunk.token_ids)
        if tokens > 1:
            self.counted += tokens
        if chunk.finish_reason is not None:
            self.record_terminal(chunk)
        return chunk

    def record_terminal_only(self, chunk: C) -> C:
        """Record the end of an answer, and return its chunk."""
        self.record_terminal(chunk)
        return chunk

    def record_content(self, tokens: int) -> None:
        """Record that a chunk with content arrives now, with *tokens* token ids."""
        if not tokens:
            if not isinstance(self.without_ids, array):
                self.without_ids = array("L")
            self.without_ids.append(len(self.times))
        elif tokens > 1:
            self.sizes[len(self.times)] = tokens
        self.times.append(self.clock())

    def record_terminal(self, chunk: Chunk) -> None:
        """Record the end of an answer: its finish reason, and its usage if any."""
        self.finish_reasons.setdefault(answer_of(chunk), chunk.finish_reason)
        tokens = getattr(getattr(chunk, "completion_usage", None), "completion_tokens", None)
        if tokens is not None:
            self.usage_tokens = (self.usage_tokens or 0) + tokens

    def epoch_ns_of(self, clock_s: float) -> int | None:
        """Return a time of the clock as ns since 1970; None without *epoch_ns*."""
        return None if self.epoch_ns is None else self.epoch_ns + int(clock_s * 1e9)

    def count_one(self) -> None:
        """Count a token without reading the clock."""
        self.counted += 1

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token, in ms; None before it (row F2)."""
        return (self.times[0] - self.started) * 1000.0 if self.times else None

    def itl_ms(self) -> list[float]:
        """Return the gap before each chunk with content but the first, in ms (row F3)."""
        return [gap * 1000.0 for gap in self._gaps()]

    def itl_figures(self) -> LatencyFigures | None:
        """Return the figures of :meth:`itl_ms` (row F4), without making that list; None without a gap."""
        count = len(self.times)
        if count > 1 and count != self._itl[0]:
            # Several observers read them at a request's end, and sorting is expensive.
            self._itl = count, _figures(sorted(self._gaps()), 1000.0)
        return self._itl[1]

    def itl_per_token_ms(self) -> list[float]:
        """
        Divide each gap among the tokens of its chunk, one figure per token, in ms (row F5).

        A chunk of three tokens 30 ms after its predecessor yields 10, 10, 10; one without token ids
        yields nothing.
        """
        figures: list[float] = []
        without_ids = frozenset(self.without_ids)
        for place, gap in enumerate(self.itl_ms(), 1):
            if place in without_ids:
                continue
            size = self.sizes.get(place, 1)
            figures += [gap / size] * size
        return figures

    def _gaps(self) -> Iterable[float]:
        return map(sub, self.times[1:], self.times)


def worst_reason(reasons: Sequence[Any]) -> Any:
    """Return an error if there is one, else ``cancelled``, else the first (row P11); or None."""
    return reasons[0] if len(reasons) == 1 else max(reasons, key=_badness, default=None)


def _badness(reason: Any) -> int:
    if getattr(reason, "is_error", False):
        return 2
    return int(getattr(reason, "kind", reason) == "cancelled")


def _figures(ordered: Sequence[float], to_ms: float) -> LatencyFigures | None:
    if not ordered:
        return None
    return LatencyFigures(
        avg_ms=round(sum(ordered) / len(ordered) * to_ms, 2),
        p50_ms=round(nearest_rank(ordered, 0.50) * to_ms, 2),
        p99_ms=round(nearest_rank(ordered, 0.99) * to_ms, 2),
        max_ms=round(ordered[-1] * to_ms, 2),
        count=len(ordered),
    )
