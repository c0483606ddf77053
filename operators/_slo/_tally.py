"""The outcomes of some requests under one key, which add up: counts, and sketches of latencies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import repeat
from operator import mul
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, cast

import msgspec

__all__ = (
    "ACCURACY",
    "COUNTED",
    "OTHER",
    "Ended",
    "Key",
    "LatencySketch",
    "Outcome",
    "Tally",
    "check_key",
    "load_library",
)

Key: TypeAlias = str | Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
"""What requests are grouped by: a name, or several such as model and tenant."""

OTHER: Final = "other"
"""The key of requests whose own key exceeded the limit of the windows."""

Outcome: TypeAlias = Literal["good", "slow", "failed", "cancelled"]
Counted: TypeAlias = Outcome | Literal["tokens", "open", "late"]
COUNTED: Final[tuple[Counted, ...]] = (
    "good", "slow", "failed", "cancelled", "tokens", "open", "late"
)  # fmt: skip

_MOST_COUNTED: Final = 2**53
"""What is read as a count is at most this: up to here each whole number is a float too."""


class Ended(NamedTuple):
    """A request that has ended, its latencies in seconds; *ttft_s* is None without a token."""

    key: Key
    outcome: Outcome
    tokens: int = 0
    ttft_s: float | None = None
    itl_s: Sequence[float] = ()


ACCURACY: Final = 0.01
"""The largest relative error of a quantile."""

# From the logarithm of a latency to its bin.
_SCALE: Final = 1.0 / math.log2((1.0 + ACCURACY) / (1.0 - ACCURACY))
_LEAST_S, _MOST_S = 1e-9, 1e8
# A store allocates as many bins at once.
_CHUNK: Final = 128
_LEAST_BIN, _MOST_BIN = (math.ceil(math.log2(s) * _SCALE) for s in (_LEAST_S, _MOST_S))


class LatencySketch:
    """
    The latencies of many tokens or requests in a few kilobytes, whatever their number.

    A DDSketch by its mapping, its store and its messages. Merged sketches equal one sketch of
    everything. Latencies are clamped to between 1 ns and three years, since a clock that is set
    back or stands still measures impossible ones.
    """

    __slots__ = ("_store",)

    def __init__(self) -> None:
        self._store: Any = load_library().DenseStore()

    @property
    def count(self) -> int:
        """The number of latencies."""
        return int(self._store.count)

    def add(self, latencies_s: Sequence[float]) -> None:
        """Add latencies, in seconds; bin by bin, for a quarter of what `DDSketch.add` costs."""
        if latencies_s:
            for key, count in _bins(latencies_s).items():
                self._store.add(key, count)

    def merge(self, other: LatencySketch) -> None:
        """Add everything that *other* holds."""
        self._store.merge(other._store)

    def quantile_ms(self, q: float) -> float:
        """Return the *q* quantile by the nearest rank (row F4), in ms, to within :data:`ACCURACY`."""
        rank = int((self._store.count - 1) * q + 0.5)
        return _mapping().value(self._store.key_at_rank(rank)) * 1000.0

    def to_bytes(self) -> bytes:
        """Return the sketch as DDSketch's protobuf message."""
        proto = load_library()
        sketch = proto.BaseDDSketch(_mapping(), self._store, proto.DenseStore(), zero_count=0.0)
        return proto.DDSketchProto.to_proto(sketch).SerializeToString()

    @classmethod
    def from_bytes(cls, data: bytes) -> LatencySketch:
        """Read what :meth:`to_bytes` returned; raise a ``ValueError`` for anything else."""
        proto = load_library()
        try:
            message = proto.pb.DDSketch.FromString(data)
        except proto.google.protobuf.message.DecodeError as error:
            raise ValueError("expected a DDSketch message") from error
        if message.mapping != proto.KeyMappingProto.to_proto(_mapping()):
            raise ValueError(f"expected a DDSketch with a relative accuracy of {ACCURACY}")
        bins = message.positiveValues
        first, counts = bins.contiguousBinIndexOffset, bins.contiguousBinCounts
        fits = _LEAST_BIN - _CHUNK <= first <= first + len(counts) <= _MOST_BIN + _CHUNK
        if not fits or not all(0 <= count <= _MOST_COUNTED for count in counts):
            raise ValueError("expected counts of latencies between 1 ns and three years")
        sketch = cls()
        sketch._store = proto.StoreProto.from_proto(bins)
        return sketch


def _bins(latencies_s: Sequence[float]) -> Counter[int]:
    """Return the number of latencies in each bin."""
    try:
        bins = Counter(map(math.ceil, map(mul, map(math.log2, latencies_s), repeat(_SCALE))))
        if min(bins) >= _LEAST_BIN and max(bins) <= _MOST_BIN:
            return bins
    except (OverflowError, ValueError):
        # A latency is infinite, not a number, or has no logarithm.
        pass
    return _bins([min(max(_LEAST_S, latency), _MOST_S) for latency in latencies_s])


@cache
def load_library() -> Any:
    """Return what ddsketch serializes with; raise an ``ImportError`` that names the extra without it."""
    try:
        from ddsketch.pb import proto  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ImportError(
            "SLO windows need the package ddsketch: pip install 'rx-backend[slo]'"
        ) from error
    return proto


@cache
def _mapping() -> Any:
    return load_library().LogarithmicMapping(ACCURACY)


class Tally(msgspec.Struct, eq=False, forbid_unknown_fields=True):
    """Counts and latencies of requests; *late* are those of *open* that have missed a target."""

    counts: dict[Counted, Annotated[int, msgspec.Meta(ge=0, le=_MOST_COUNTED)]] = msgspec.field(
        default_factory=Counter[Counted]
    )
    ttft: LatencySketch = msgspec.field(default_factory=LatencySketch)
    itl: LatencySketch = msgspec.field(default_factory=LatencySketch)

    def add(self, ended: Ended) -> None:
        """Count one request that has ended."""
        self.counts[ended.outcome] += 1
        self.counts["tokens"] += ended.tokens
        self.ttft.add([] if ended.ttft_s is None else [ended.ttft_s])
        self.itl.add(ended.itl_s)

    def merge(self, other: Tally) -> None:
        """Add everything that *other* holds."""
        for name, count in other.counts.items():
            self.counts[name] += count
        self.ttft.merge(other.ttft)
        self.itl.merge(other.itl)


def check_key(name: str, key: object) -> Key:
    """Return *key*, or raise a ``TypeError`` that begins with *name*."""
    parts = cast("tuple[object, ...]", key if isinstance(key, tuple) else (key,))
    if not parts or not all(isinstance(part, str) for part in parts):
        raise TypeError(f"{name}: expected a str or a tuple of str, got {key!r}")
    return cast("Key", key)
