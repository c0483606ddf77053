"""The figures of windows at one moment, by key: grouped, merged and sent to other processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Self

import msgspec

from operators._encodable import encodable
from operators._slo._tally import COUNTED, Key, LatencySketch, Tally

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
    The figures of the requests of one key.

    A request counts when it ends, in one of *good*, *slow*, *failed* and *cancelled*; its tokens
    and latencies count then too, whichever it is.

    Attributes:
        goodput: The share of good ones in all but the cancelled, from 0 to 1; None without one.
        open: Requests that have not ended.
        late: Open requests that have missed a target.
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


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of a snapshot; its sketches are ddsketch's own messages in base64."""

    window_s: Annotated[float, msgspec.Meta(gt=0)]
    covered_s: Annotated[float, msgspec.Meta(gt=0)]
    keys: list[tuple[Key, Tally]]


class SloSnapshot(Mapping[Key, SloFigures]):
    """
    The figures of windows at one moment: an immutable mapping from each key to its figures.

    ``SloWindows.snapshot`` makes one, and so does :meth:`from_json`. Rates are over *covered_s*.

    Attributes:
        window_s: The length of the windows, in seconds.
        covered_s: The part of it that has passed since the windows were made; at least a bucket.

    >>> from operators import SloWindows
    >>> windows = SloWindows(window_s=60, bucket_s=5, clock=lambda: 0.0)
    >>> windows.failed(("llama", "acme"))
    >>> snapshot = windows.snapshot()
    >>> SloSnapshot.from_json(snapshot.to_json()).merge(snapshot)["llama", "acme"].failed
    2
    >>> snapshot
    SloSnapshot(window_s=60.0, covered_s=5.0, {('llama', 'acme'): SloFigures(...)})
    """

    def __init__(
        self, window_s: float, covered_s: float, tallies: Iterable[tuple[Key, Tally]]
    ) -> None:
        self.window_s = window_s
        self.covered_s = covered_s
        self._tallies: defaultdict[Key, Tally] = defaultdict(Tally)
        for key, tally in tallies:
            self._tallies[key].merge(tally)

    def __repr__(self) -> str:
        return f"SloSnapshot(window_s={self.window_s}, covered_s={self.covered_s}, {dict(self)!r})"

    def __getitem__(self, key: Key) -> SloFigures:
        if key not in self._tallies:
            raise KeyError(key)
        return _figures(self._tallies[key], self.covered_s)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._tallies)

    def __len__(self) -> int:
        return len(self._tallies)

    @property
    def total(self) -> SloFigures:
        """The figures of all keys together."""
        together = Tally()
        for tally in self._tallies.values():
            together.merge(tally)
        return _figures(together, self.covered_s)

    def merge(self, *others: SloSnapshot) -> SloSnapshot:
        """
        Merge snapshots, such as those of several workers, as if one had served all requests.

        Raises:
            ValueError: The windows differ in length.
            TypeError: Something is no snapshot.
        """
        for other in others:
            if not isinstance(other, SloSnapshot):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"SloSnapshot.merge: others: expected snapshots, got {other!r}")
            if other.window_s != self.window_s:
                raise ValueError(
                    f"SloSnapshot.merge: window_s: expected {self.window_s}, got {other.window_s}"
                )
        snapshots = (self, *others)
        covered_s = max(snapshot.covered_s for snapshot in snapshots)
        entries = chain.from_iterable(snapshot._tallies.items() for snapshot in snapshots)
        return SloSnapshot(self.window_s, covered_s, entries)

    def to_json(self) -> bytes:
        """
        Return the snapshot as JSON, sketches included, for :meth:`from_json` elsewhere.

        Keys with text that UTF-8 can't express are repaired (U+FFFD), and merged where they are
        the same then.
        """
        repaired = ((_encodable(key), tally) for key, tally in self._tallies.items())
        entries = list(SloSnapshot(self.window_s, self.covered_s, repaired)._tallies.items())
        message = _Message(self.window_s, self.covered_s, entries)
        return msgspec.json.encode(message, enc_hook=LatencySketch.to_bytes)

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """
        Read what :meth:`to_json` returned.

        Raises:
            ValueError: *data* is something else; names the place.
            ImportError: The package ddsketch is missing; names the extra.
        """
        try:
            message = msgspec.json.decode(data, type=_Message, dec_hook=_sketch)
        except msgspec.MsgspecError as error:
            raise ValueError(f"SloSnapshot.from_json: {error}") from error
        return cls(message.window_s, message.covered_s, message.keys)


def _encodable(key: Key) -> Key:
    if isinstance(key, tuple):
        return tuple(map(encodable, key))
    return encodable(key)


def _sketch(_: type, data: Any) -> LatencySketch:
    return LatencySketch.from_bytes(msgspec.convert(data, bytes, strict=False))


def _figures(tally: Tally, covered_s: float) -> SloFigures:
    counts = tally.counts
    judged = counts["good"] + counts["slow"] + counts["failed"]
    requests = judged + counts["cancelled"]
    return SloFigures(
        requests=requests,
        goodput=counts["good"] / judged if judged else None,
        goodput_per_s=counts["good"] / covered_s,
        requests_per_s=requests / covered_s,
        tokens_per_s=counts["tokens"] / covered_s,
        ttft=_quantiles(tally.ttft),
        itl=_quantiles(tally.itl),
        **{name: counts[name] for name in COUNTED},
    )


def _quantiles(sketch: LatencySketch) -> LatencyQuantiles | None:
    if not sketch.count:
        return None
    p50_ms, p90_ms, p99_ms = map(sketch.quantile_ms, (0.50, 0.90, 0.99))
    return LatencyQuantiles(p50_ms, p90_ms, p99_ms, sketch.count)
