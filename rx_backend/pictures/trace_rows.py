"""Finished spans as the rows of a tree: who called whom, and what happened when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import StatusCode

from operators import TokenTimes
from operators import span_names as names
from rx_backend.pictures.timeline_rows import Lane, TimelineMark, TimelineSpan

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event, ReadableSpan

__all__ = ("TraceRow", "rows_as_text", "trace_rows")

# What OpenTelemetry notes of an exception has a stack trace, and more.
_EXCEPTION, _EXCEPTION_TYPE = "exception", "exception.type"
_LONGEST_LABEL: Final = 48
_DIGITS: Final = 3


@dataclass(slots=True)
class TraceRow:
    """
    One span.

    Attributes:
        lane: Its bar and what happened on it, with its place among the rows as the group.
        depth: How many spans it is in.
        links: The places of the rows that it links to.
        parent: The place of the row that it hangs from; None for the first of a tree.
    """

    lane: Lane
    depth: int
    links: list[int] = field(default_factory=list[int])
    parent: int | None = None

    @property
    def bar(self) -> TimelineSpan:
        """From when to when."""
        return self.lane.spans[0]


def trace_rows(
    spans: Iterable[ReadableSpan], tokens: Mapping[int, TokenTimes] | None = None
) -> list[TraceRow]:
    """Put spans in the order of a tree, callers above what they called, and that by time."""
    known = {_id(span): span for span in sorted(spans, key=_start)}
    if not known:
        return []
    began = min(map(_start, known.values()))
    below: dict[int | None, list[int]] = {}
    for number, span in known.items():
        parent = span.parent.span_id if span.parent is not None else None
        below.setdefault(parent if parent in known else None, []).append(number)
    order = list(_walk(below, None, 0))
    places = {number: place for place, (number, _, _) in enumerate(order)}
    rows: list[TraceRow] = []
    for place, (number, parent, depth) in enumerate(order):
        span = known[number]
        lane = _lane(str(place + 1), span, began, (tokens or {}).get(number))
        linked = [link.context.span_id for link in span.links]
        lane.marks += [
            TimelineMark(lane.name, _ms(_start(span), began), f"links to {elsewhere:016x}")
            for elsewhere in linked
            if elsewhere not in places
        ]
        lane.marks.sort(key=lambda mark: mark.at_ms)
        here = [places[other] for other in linked if other in places]
        rows.append(TraceRow(lane, depth, here, None if parent is None else places[parent]))
    return rows


def rows_as_text(rows: Sequence[TraceRow]) -> str:
    """Write the tree, and below each span what happened on it."""
    if not rows:
        return "no spans"
    names_ = ["  " * row.depth + row.lane.name for row in rows]
    width = max(map(len, names_))
    lines: list[str] = []
    for row, name in zip(rows, names_, strict=True):
        until = row.bar.until_ms
        end = "still going on" if until is None else f"to {until:g} ms"
        lines.append(f"{name:{width}}  {row.bar.at_ms:g} ms {end}")
        inside = "  " * (row.depth + 2)
        lines += [f"{inside}links to {rows[link].lane.name}" for link in row.links]
        dots = [mark for mark in row.lane.marks if not mark.label]
        lines += [
            f"{inside}{mark.at_ms:g} ms {mark.label}"
            + ("" if mark.kind == "event" else f" ({mark.kind})")
            for mark in row.lane.marks
            if mark.label
        ]
        if dots:
            first, last = dots[0].at_ms, dots[-1].at_ms
            lines.append(f"{inside}{first:g} ms tokens x {len(dots)}, until {last:g} ms")
    return "\n".join(lines)


def _walk(
    below: Mapping[int | None, list[int]], parent: int | None, depth: int
) -> Iterator[tuple[int, int | None, int]]:
    for number in below.get(parent, ()):
        yield number, parent, depth
        yield from _walk(below, number, depth + 1)


def _lane(place: str, span: ReadableSpan, began: int, times: TokenTimes | None) -> Lane:
    attributes: Mapping[str, Any] = span.attributes or {}
    name = " ".join(filter(None, [span.name, attributes.get(names.DISAGG_ROLE)]))
    until = None if span.end_time is None else _ms(span.end_time, began)
    lane = Lane(place, name, spans=[TimelineSpan(name, _ms(_start(span), began), until)])
    if times is not None and times.epoch_ns is not None:
        lane.marks += [TimelineMark(name, _ms(ns, began)) for ns in _epochs(times)]
    lane.marks += [
        TimelineMark(name, _ms(event.timestamp, began), _label(event)) for event in span.events
    ]
    if until is not None:
        lane.marks += _end(span, attributes, name, until)
    return lane


def _end(
    span: ReadableSpan, attributes: Mapping[str, Any], name: str, at_ms: float
) -> list[TimelineMark]:
    reason = attributes.get(names.FINISH_REASON)
    if reason == names.DROPPED:
        return [TimelineMark(name, at_ms, reason, "drop")]
    if span.status.status_code is StatusCode.ERROR:
        label = attributes.get(names.ERROR_TYPE) or span.status.description or "error"
        return [TimelineMark(name, at_ms, _cut(str(label)), "error")]
    return [] if reason is None else [TimelineMark(name, at_ms, _cut(str(reason)), "end")]


def _label(event: Event) -> str:
    attributes: Mapping[str, Any] = event.attributes or {}
    if event.name == _EXCEPTION:
        return _cut(f"{_EXCEPTION} {attributes.get(_EXCEPTION_TYPE, '')}".rstrip())
    parts = [
        name if value is True else f"{name}={value}"
        for name, value in attributes.items()
        if value is not False
    ]
    return _cut(" ".join([event.name, *parts]))


def _cut(label: str) -> str:
    line = " ".join(label.split())
    return line if len(line) <= _LONGEST_LABEL else line[: _LONGEST_LABEL - 1] + "…"


def _epochs(times: TokenTimes) -> Iterator[int]:
    for clock_s in times.times:
        epoch_ns = times.epoch_ns_of(clock_s)
        if epoch_ns is not None:
            yield epoch_ns


def _id(span: ReadableSpan) -> int:
    return span.get_span_context().span_id  # pyright: ignore[reportOptionalMemberAccess]


def _start(span: ReadableSpan) -> int:
    return span.start_time or 0


def _ms(epoch_ns: int, began: int) -> float:
    return round((epoch_ns - began) / 1e6, _DIGITS)
