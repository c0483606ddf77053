"""What became of some requests under one key: numbers and sketches, which add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, cast

from operators._slo._sketch import LatencySketch

__all__ = ("OTHER", "Ended", "Key", "Outcome", "Tally", "check_key")

Key: TypeAlias = str | tuple[str, ...]
"""What requests are told apart by: a name, or several such as model and tenant."""

Outcome: TypeAlias = Literal["good", "slow", "failed", "cancelled"]
"""What became of one request; ``slo`` tells what each means."""

OTHER: Final = "other"
"""The key of requests whose own key came when the windows already held as many as they may."""


class Ended(NamedTuple):
    """One request that has ended, its latencies in seconds; no *ttft_s*: it gave no token."""

    key: Key
    outcome: Outcome
    tokens: int = 0
    ttft_s: float | None = None
    itl_s: Sequence[float] = ()


@dataclass(slots=True, eq=False)
class Tally:
    """Counts and latencies of requests; the open ones that have missed a target are *late*."""

    good: int = 0
    slow: int = 0
    failed: int = 0
    cancelled: int = 0
    tokens: int = 0
    open: int = 0
    late: int = 0
    ttft: LatencySketch | None = None
    itl: LatencySketch | None = None

    def add(self, ended: Ended) -> None:
        """Count one request that has ended."""
        setattr(self, ended.outcome, getattr(self, ended.outcome) + 1)
        self.tokens += ended.tokens
        if ended.ttft_s is not None:
            if self.ttft is None:
                self.ttft = LatencySketch()
            self.ttft.add([ended.ttft_s])
        if ended.itl_s:
            if self.itl is None:
                self.itl = LatencySketch()
            self.itl.add(ended.itl_s)

    def copy(self) -> Tally:
        """Return the same counts and latencies, which don't change with these."""
        same = Tally()
        same.merge(self)
        return same

    def merge(self, other: Tally) -> None:
        """Add everything that *other* holds."""
        self.good += other.good
        self.slow += other.slow
        self.failed += other.failed
        self.cancelled += other.cancelled
        self.tokens += other.tokens
        self.open += other.open
        self.late += other.late
        self.ttft = _merged(self.ttft, other.ttft)
        self.itl = _merged(self.itl, other.itl)


def _merged(mine: LatencySketch | None, other: LatencySketch | None) -> LatencySketch | None:
    if other is None:
        return mine
    if mine is None:
        mine = LatencySketch()
    mine.merge(other)
    return mine


def check_key(name: str, key: object) -> Key:
    """Give *key*, or raise a ``TypeError`` that begins with *name*."""
    if isinstance(key, str):
        return key
    if isinstance(key, tuple):
        parts = cast("tuple[object, ...]", key)
        if parts and all(isinstance(part, str) for part in parts):
            return cast("tuple[str, ...]", parts)
    raise TypeError(f"{name}: expected a str or a tuple of str, got {key!r}")
