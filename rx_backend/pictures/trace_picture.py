"""A request's spans as a picture: their tree, and their events over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import StatusCode

from operators import TokenTimes
from operators import span_names as names
from operators.assembly import CHECKED, check_arguments
from rx_backend.pictures._checks import check_items
from rx_backend.pictures.row import Mark, Row
from rx_backend.pictures.row_layout import RowPicture

__all__ = ("TracePicture",)

_LONGEST_LABEL = 48


class TracePicture(RowPicture):
    """
    Spans as a tree and on a timeline, with their events, outcomes and links.

    Parents are above their children. The role is next to the name of a request's span, a cross is
    an error, a broken bar a drop, and a dashed arrow leads from a linked span to the span with the
    link. A link to a missing span is named. Times are milliseconds since the first span's start.

    The SDK timestamps spans with the time of day. In virtual time only a request's own events and
    its end use the loop's clock, so draw requests that ran in real time.

    Args:
        spans: Finished spans, in any order, of one or more traces, for example from an in-memory
            exporter.
        tokens: The arrival times of a request's tokens, by its span's id, shown as dots: a pipeline
            gets both from its scope, as ``scope.span.get_span_context().span_id`` and
            ``scope.times``.

    Raises:
        TypeError: An argument is invalid; the message names it.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from opentelemetry.trace import set_span_in_context
    >>> start_span = TracerProvider().get_tracer("example").start_span
    >>> request = start_span("http-request", start_time=0)
    >>> decode = start_span("engine.generate", set_span_in_context(request), start_time=10_000_000)
    >>> decode.set_attributes({"disagg_role": "decode", "finish_reason": "Stop"})
    >>> decode.add_event("first_token", timestamp=20_000_000)
    >>> decode.end(70_000_000)
    >>> request.end(75_000_000)
    >>> TracePicture([decode, request])
    http-request
        0 ms to 75 ms
      engine.generate decode
          10 ms to 70 ms
          20 ms first_token
          70 ms Stop (end)
    """

    def __init__(
        self,
        spans: Annotated[Iterable[ReadableSpan], CHECKED],
        tokens: Annotated[Mapping[int, TokenTimes], CHECKED] | None = None,
    ) -> None:
        check_arguments(TracePicture, spans, tokens)
        spans = tuple(spans)
        check_items("TracePicture: spans", spans, ReadableSpan)
        known = {_id(span): span for span in sorted(spans, key=_start)}
        began = min(map(_start, known.values()), default=0)
        below: dict[int | None, list[int]] = {}
        for number, span in known.items():
            parent = None if span.parent is None else span.parent.span_id
            below.setdefault(parent if parent in known else None, []).append(number)
        order = list(_walk(below))
        places = {number: place for place, (number, _, _) in enumerate(order)}
        self._lanes: list[Row] = []
        for place, (number, parent, depth) in enumerate(order):
            span = known[number]
            lane = _lane(str(place + 1), span, began, (tokens or {}).get(number))
            lane.depth, lane.parent = depth, None if parent is None else places[parent]
            for linked in (link.context.span_id for link in span.links):
                if linked in places:
                    lane.links.append(places[linked])
                else:
                    start = lane.marks[0].at
                    lane.marks.append(Mark(lane.name, start, f"links to {linked:016x}"))
            lane.marks.sort(key=lambda mark: mark.at)
            self._lanes.append(lane)

    def _rows(self) -> list[Row]:
        return self._lanes


def _walk(
    below: Mapping[int | None, list[int]], caller: int | None = None, depth: int = 0
) -> Iterator[tuple[int, int | None, int]]:
    """Yield each span with its parent and its depth, parents before children."""
    for number in below.get(caller, ()):
        yield number, caller, depth
        yield from _walk(below, number, depth + 1)


def _lane(place: str, span: ReadableSpan, began: int, times: TokenTimes | None) -> Row:
    attributes: Mapping[str, Any] = span.attributes or {}
    name = " ".join(filter(None, [span.name, attributes.get(names.DISAGG_ROLE)]))
    until = None if span.end_time is None else _ms(span.end_time, began)
    lane = Row(
        name, [Mark(name, _ms(_start(span), began), "", "span", until)], gid=f"{place} {name}"
    )
    if times is not None:
        tokens = map(times.epoch_ns_of, times.times)
        lane.marks += [Mark(name, _ms(ns, began)) for ns in tokens if ns is not None]
    lane.marks += [
        Mark(name, _ms(event.timestamp, began), _cut(_label(event))) for event in span.events
    ]
    reason = attributes.get(names.FINISH_REASON)
    if until is None:
        pass
    elif reason == names.DROPPED:
        lane.marks.append(Mark(name, until, reason, "drop"))
    elif span.status.status_code is StatusCode.ERROR:
        label = attributes.get(names.ERROR_TYPE) or span.status.description or "error"
        lane.marks.append(Mark(name, until, _cut(str(label)), "error"))
    elif reason is not None:
        lane.marks.append(Mark(name, until, _cut(str(reason)), "end"))
    return lane


def _label(event: Event) -> str:
    attributes: Mapping[str, Any] = event.attributes or {}
    if event.name == "exception":  # its text and its stack trace may contain a user's text
        return f"exception {attributes.get('exception.type', '')}"
    parts = [
        name if value is True else f"{name}={value}"
        for name, value in attributes.items()
        if value is not False
    ]
    return " ".join([event.name, *parts])


def _cut(label: str) -> str:
    line = " ".join(label.split())
    return line if len(line) <= _LONGEST_LABEL else line[: _LONGEST_LABEL - 1] + "…"


def _id(span: ReadableSpan) -> int:
    return span.get_span_context().span_id  # pyright: ignore[reportOptionalMemberAccess]


def _start(span: ReadableSpan) -> int:
    return span.start_time or 0


def _ms(epoch_ns: int, began: int) -> float:
    return round((epoch_ns - began) / 1e6, 3)
