"""A snapshot's JSON, sketches included: one row for each key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from operators._slo._sketch import ACCURACY, LatencySketch
from operators._slo._tally import Key, Tally

__all__ = ("decode", "encode")

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]
# From less than a nanosecond to more than three years.
_Bin = Annotated[int, msgspec.Meta(ge=-1100, le=1100)]
_Bins = dict[_Bin, Annotated[int, msgspec.Meta(ge=1)]]


class _Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    key: str | Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    good: _Count
    slow: _Count
    failed: _Count
    cancelled: _Count
    tokens: _Count
    open: _Count
    late: _Count
    ttft: _Bins
    itl: _Bins


class _Wire(msgspec.Struct, forbid_unknown_fields=True):
    window_s: _Seconds
    covered_s: _Seconds
    accuracy: float
    keys: list[_Row]


_NUMBERS = ("good", "slow", "failed", "cancelled", "tokens", "open", "late")


def _row(key: Key, tally: Tally) -> _Row:
    return _Row(
        key=key,
        **{name: getattr(tally, name) for name in _NUMBERS},
        ttft=tally.ttft.bins() if tally.ttft else {},
        itl=tally.itl.bins() if tally.itl else {},
    )


def _tally(row: _Row) -> Tally:
    return Tally(
        **{name: getattr(row, name) for name in _NUMBERS},
        ttft=LatencySketch.of_bins(row.ttft) if row.ttft else None,
        itl=LatencySketch.of_bins(row.itl) if row.itl else None,
    )


def encode(window_s: float, covered_s: float, tallies: Mapping[Key, Tally]) -> bytes:
    """Write a snapshot."""
    rows = [_row(key, tally) for key, tally in sorted(tallies.items(), key=_by_text)]
    return msgspec.json.encode(_Wire(window_s, covered_s, ACCURACY, rows))


def decode(data: bytes | str) -> tuple[float, float, dict[Key, list[Tally]]]:
    """Read what :func:`encode` wrote; a ``ValueError`` names what is something else."""
    try:
        wire = msgspec.json.decode(data, type=_Wire)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    if wire.accuracy != ACCURACY:
        raise ValueError(f"accuracy: expected {ACCURACY}, got {wire.accuracy}")
    tallies: dict[Key, list[Tally]] = {}
    for row in wire.keys:
        tallies.setdefault(row.key, []).append(_tally(row))
    return wire.window_s, wire.covered_s, tallies


def _by_text(entry: tuple[Key, object]) -> tuple[str, ...]:
    key = entry[0]
    return (key,) if isinstance(key, str) else key
