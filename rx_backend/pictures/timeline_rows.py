"""What a timeline holds: marks and spans, in lanes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, TypeAlias

__all__ = (
    "Entry",
    "Lane",
    "MarkKind",
    "TimelineMark",
    "TimelineSpan",
    "entries_as_text",
    "lanes_of",
)

MarkKind: TypeAlias = Literal["event", "end", "error", "drop"]
"""What a mark looks like: a dot, a bar, a cross, or a broken bar."""


@dataclass(frozen=True, slots=True)
class TimelineMark:
    """
    Something that happened.

    Attributes:
        lane: Where it is shown.
        at_ms: When, in ms since the timeline's beginning.
        label: What is written beside it.
        kind: What it looks like.
        group: The request that it belongs to, where there are several.
    """

    lane: str
    at_ms: float
    label: str = ""
    kind: MarkKind = "event"
    group: str = ""


@dataclass(slots=True)
class TimelineSpan:
    """
    Something that took its time.

    Attributes:
        lane: Where it is shown.
        at_ms: From when, in ms since the timeline's beginning.
        until_ms: Until when; None while it goes on.
        label: What is written in it.
        group: The request that it belongs to, where there are several.
    """

    lane: str
    at_ms: float
    until_ms: float | None = None
    label: str = ""
    group: str = ""


Entry: TypeAlias = TimelineMark | TimelineSpan


@dataclass(slots=True)
class Lane:
    """
    The entries of one lane of one group, in the order of time.

    Attributes:
        group: The group's name.
        name: The lane's name.
        marks: Its marks.
        spans: Its spans.
    """

    group: str
    name: str
    marks: list[TimelineMark] = field(default_factory=list[TimelineMark])
    spans: list[TimelineSpan] = field(default_factory=list[TimelineSpan])


def lanes_of(entries: Iterable[Entry]) -> list[Lane]:
    """Sort entries into lanes; groups and the lanes of each stand in the order of their first."""
    groups: dict[str, dict[str, Lane]] = {}
    for entry in sorted(entries, key=lambda entry: entry.at_ms):
        lanes = groups.setdefault(entry.group, {})
        lane = lanes.setdefault(entry.lane, Lane(entry.group, entry.lane))
        if isinstance(entry, TimelineMark):
            lane.marks.append(entry)
        else:
            lane.spans.append(entry)
    return [lane for lanes in groups.values() for lane in lanes.values()]


def entries_as_text(entries: Sequence[Entry], *, has_groups: bool) -> str:
    """Write entries below each other, in the order of time; marks without a label are counted."""
    if not entries:
        return "nothing happened"
    rows: list[tuple[str, ...]] = []
    in_order = sorted(entries, key=lambda entry: entry.at_ms)
    for key, same in groupby(in_order, _unlabelled):
        several = list(same)
        if key is None:
            rows += [(_ms(entry.at_ms), entry.group, entry.lane, _said(entry)) for entry in several]
        else:
            first, last = several[0].at_ms, several[-1].at_ms
            count = "" if len(several) == 1 else f"x {len(several)}, until {_ms(last)}"
            rows.append((_ms(first), *key, count))
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    if not has_groups and any(entry.group for entry in entries):
        del columns[1]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(
            f"{cell:{'>' if place == 0 else '<'}{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]
    return "\n".join(lines)


def _unlabelled(entry: Entry) -> tuple[str, str] | None:
    """Neighbours with the same key are told as one."""
    is_plain = isinstance(entry, TimelineMark) and entry.kind == "event" and not entry.label
    return (entry.group, entry.lane) if is_plain else None


def _said(entry: Entry) -> str:
    if isinstance(entry, TimelineMark):
        parts = [entry.label, "" if entry.kind == "event" else f"({entry.kind})"]
    else:
        until = "still going on" if entry.until_ms is None else f"until {_ms(entry.until_ms)}"
        parts = [entry.label, f"({until})"]
    return " ".join(filter(None, parts))


def _ms(value: float) -> str:
    return f"{value:g} ms"
