"""What windows show at one moment: figures for each key, to be grouped, merged and sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from operators._slo._json import decode, encode
from operators._slo._sketch import LatencySketch
from operators._slo._tally import OTHER, Key, Tally

__all__ = ("LatencyQuantiles", "SloFigures", "SloSnapshot")


@dataclass(frozen=True, slots=True)
class LatencyQuantiles:
    """Median, 90th and 99th percentile of *count* latencies, in ms, each to within 1 %."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    count: int


@dataclass(frozen=True, slots=True)
class SloFigures:
    """
    What became of the requests of one key.

    A request counts when it ends, in one of *good*, *slow*, *failed* and *cancelled*; its tokens
    and latencies count then too, whichever it is.

    Attributes:
        requests: How many ended.
        good: Served within every target.
        slow: Ended, or were cancelled, when a target was already missed.
        failed: Failed, or ended without a terminal.
        cancelled: Their clients left, or had them stopped, while no target was missed yet.
        tokens: What all of them gave.
        goodput: The good ones' part of all but the cancelled, from 0 to 1; None without one.
        goodput_per_s: Good requests per second.
        requests_per_s: Requests that ended per second.
        tokens_per_s: Tokens of requests that ended per second.
        open: Requests that have not ended.
        late: Those of the open ones that have missed a target by now.
        ttft: Times to the first token, set-up included where it was measured; None without one.
        itl: Latencies between tokens, one per token but those of the first chunk; None without one.
    """

    requests: int
    good: int
    slow: int
    failed: int
    cancelled: int
    tokens: int
    goodput: float | None
    goodput_per_s: float
    requests_per_s: float
    tokens_per_s: float
    open: int
    late: int
    ttft: LatencyQuantiles | None
    itl: LatencyQuantiles | None


class SloSnapshot(Mapping[Key, SloFigures]):
    """
    What windows showed at one moment: a mapping from each key to its figures.

    It does not change any more, and may be handed to another thread. Sketches are put together when
    a key's figures are asked for, so a snapshot that nobody reads costs little.

    ``SloWindows.snapshot`` makes one, and so does :meth:`from_json`.

    Attributes:
        window_s: The length of the windows.
        covered_s: Of that, the time that has passed since the windows were made; at least a bucket.
            Rates are over this time.

    >>> from operators import SloWindows
    >>> windows = SloWindows(window_s=60, bucket_s=5, clock=lambda: 0.0)
    >>> windows.failed(("llama", "acme"))
    >>> windows.failed(("llama", "zenith"))
    >>> snapshot = windows.snapshot()
    >>> snapshot["llama", "acme"].failed
    1
    >>> snapshot.grouped(lambda key: key[0])["llama"].failed
    2
    """

    def __init__(
        self, window_s: float, covered_s: float, tallies: Mapping[Key, Iterable[Tally]]
    ) -> None:
        self.window_s = window_s
        self.covered_s = covered_s
        self._tallies = {key: tuple(some) for key, some in tallies.items()}
        self._figures: dict[Key, SloFigures] = {}

    def __getitem__(self, key: Key) -> SloFigures:
        if key not in self._figures:
            self._figures[key] = _figures(_sum(self._tallies[key]), self.covered_s)
        return self._figures[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._tallies)

    def __len__(self) -> int:
        return len(self._tallies)

    def __repr__(self) -> str:
        return f"SloSnapshot(window_s={self.window_s}, covered_s={self.covered_s}, {list(self)})"

    @property
    def total(self) -> SloFigures:
        """The figures of all keys together."""
        together = _sum(tally for some in self._tallies.values() for tally in some)
        return _figures(together, self.covered_s)

    def grouped(self, by: Callable[[Key], Key]) -> SloSnapshot:
        """
        Return the same requests under fewer keys: from keys of model and tenant to the models alone.

        Args:
            by: From a key to the one that it is part of. It is not asked about ``"other"``, where
                keys beyond the limit were counted: that stays what it is.
        """
        groups: dict[Key, list[Tally]] = {}
        for key, some in self._tallies.items():
            groups.setdefault(key if key == OTHER else by(key), []).extend(some)
        return SloSnapshot(self.window_s, self.covered_s, groups)

    def merge(self, *others: SloSnapshot) -> SloSnapshot:
        """
        Merge this snapshot and others, such as those of several worker processes, in one.

        The result is what windows of all their requests would show.

        Raises:
            ValueError: The windows are not of one length.
        """
        groups = {key: list(some) for key, some in self._tallies.items()}
        covered_s = self.covered_s
        for other in others:
            if other.window_s != self.window_s:
                raise ValueError(
                    f"SloSnapshot.merge: window_s: expected {self.window_s}, got {other.window_s}"
                )
            covered_s = max(covered_s, other.covered_s)
            for key, some in other._tallies.items():
                groups.setdefault(key, []).extend(some)
        return SloSnapshot(self.window_s, covered_s, groups)

    def to_json(self) -> bytes:
        """Return the snapshot as JSON, sketches included, for :meth:`from_json` in another process."""
        tallies = {key: _sum(some) for key, some in self._tallies.items()}
        return encode(self.window_s, self.covered_s, tallies)

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """
        Make the snapshot again.

        Raises:
            ValueError: *data* is not what :meth:`to_json` gives; the message names the place.
            ImportError: The package ddsketch is missing; names the extra that brings it.
        """
        try:
            return cls(*decode(data))
        except ValueError as error:
            raise ValueError(f"SloSnapshot.from_json: {error}") from error

    def __reduce__(self) -> tuple[Callable[[bytes], SloSnapshot], tuple[bytes]]:
        return SloSnapshot.from_json, (self.to_json(),)


def _sum(tallies: Iterable[Tally]) -> Tally:
    together = Tally()
    for tally in tallies:
        together.merge(tally)
    return together


def _figures(tally: Tally, covered_s: float) -> SloFigures:
    judged = tally.good + tally.slow + tally.failed
    requests = judged + tally.cancelled
    return SloFigures(
        requests=requests,
        good=tally.good,
        slow=tally.slow,
        failed=tally.failed,
        cancelled=tally.cancelled,
        tokens=tally.tokens,
        goodput=tally.good / judged if judged else None,
        goodput_per_s=tally.good / covered_s,
        requests_per_s=requests / covered_s,
        tokens_per_s=tally.tokens / covered_s,
        open=tally.open,
        late=tally.late,
        ttft=_quantiles(tally.ttft),
        itl=_quantiles(tally.itl),
    )


def _quantiles(sketch: LatencySketch | None) -> LatencyQuantiles | None:
    if sketch is None:
        return None
    return LatencyQuantiles(
        sketch.quantile_ms(0.50), sketch.quantile_ms(0.90), sketch.quantile_ms(0.99), sketch.count
    )
