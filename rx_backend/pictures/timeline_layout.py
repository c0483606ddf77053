"""Where a timeline's lanes have their marks, bars and labels, in inches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rx_backend.pictures.canvas import EDGE, text_width
from rx_backend.pictures.palette import TINY_PT
from rx_backend.pictures.timeline_rows import Lane, TimelineSpan

__all__ = ("LABEL", "LABEL_PT", "Bar", "Label", "TimelineLayout", "TimelineRow")

LABEL_PT = 8.5
LABEL = 0.165
"""The height of a line of labels."""

_WIDTH = 7.2
_LINE, _TRACK = 0.34, 0.25
_GAP = 0.08
_LEAST_BAR, _LEAST_MS = 0.03, 1e-3


@dataclass(slots=True)
class Bar:
    """
    A span of a lane.

    Attributes:
        span: The span.
        left: Where it begins.
        right: Where it ends.
        track: How many bars lie between it and its lane's line, because they overlap.
        text: What is written in it.
    """

    span: TimelineSpan
    left: float
    right: float
    track: int
    text: str = ""


@dataclass(slots=True)
class Label:
    """
    A text above a lane.

    Attributes:
        x: Where it begins, close to what it tells of.
        text: The text.
        is_fault: Whether it tells of an error.
        level: How many labels lie between it and the lane.
    """

    x: float
    text: str
    is_fault: bool = False
    level: int = 0


class TimelineLayout:
    """
    The places on the page.

    Args:
        lanes: The lanes, from top to bottom.
        names: Where the names of the lanes end, where these are no plain column of text.

    Attributes:
        end_ms: The last time that is shown.
        names: Where the names of the lanes end.
        right: Where the lanes end.
        rows: The lanes.
        width: The page's width, with labels that reach beyond the lanes.
    """

    def __init__(self, lanes: Sequence[Lane], names: float | None = None) -> None:
        self.end_ms = max([_LEAST_MS, *_times(lanes)])
        if names is None:
            names = EDGE + max([text_width(lane.name) for lane in lanes] or [0.0])
        self.names = max(names, EDGE + text_width("ms", TINY_PT))
        self.right = self.x(self.end_ms) + 0.15
        self.rows = [TimelineRow(lane, self) for lane in lanes]
        labels = [label for row in self.rows for label in row.labels]
        reach = [label.x + text_width(label.text, LABEL_PT) for label in labels]
        self.width = max([self.right, *reach]) + EDGE

    def x(self, ms: float) -> float:
        """Where a time is."""
        return self.names + EDGE + 0.1 + _WIDTH * ms / self.end_ms


class TimelineRow:
    """
    One lane: its line, with marks and bars on it, labels above it, and overlapping bars below.

    Attributes:
        lane: What it shows.
        bars: Its spans.
        labels: The labels of its marks, and of bars that have no room for them.
    """

    def __init__(self, lane: Lane, layout: TimelineLayout) -> None:
        self.lane = lane
        self.bars = _bars(lane.spans, layout)
        self.labels = [
            Label(layout.x(mark.at_ms), mark.label, mark.kind == "error")
            for mark in lane.marks
            if mark.label
        ]
        marks = [layout.x(mark.at_ms) for mark in lane.marks]
        for bar in self.bars:
            text = bar.span.label if bar.span.until_ms is not None else f"{bar.span.label} …"
            reach = text_width(text, LABEL_PT) / 2 + _GAP
            middle = (bar.left + bar.right) / 2
            is_free = bar.track > 0 or all(abs(mark - middle) > reach for mark in marks)
            if is_free and 2 * reach <= bar.right - bar.left:
                bar.text = text
            elif text:
                self.labels.append(Label(bar.left, text))
        _stagger(self.labels)

    @property
    def above(self) -> float:
        """The room above the line."""
        levels = 1 + max((label.level for label in self.labels), default=-1)
        return _LINE / 2 + max(LABEL * levels, 0.06)

    @property
    def height(self) -> float:
        """The room that it takes."""
        return self.middle(max((bar.track for bar in self.bars), default=0)) + _LINE / 2

    def middle(self, track: int) -> float:
        """How far below its top the middle of a track is."""
        return self.above + _TRACK * track

    def label_top(self, label: Label) -> float:
        """How far above its line a label ends."""
        return _LINE / 2 + LABEL * (label.level + 1)


def _times(lanes: Sequence[Lane]) -> Iterator[float]:
    for lane in lanes:
        yield from (mark.at_ms for mark in lane.marks)
        for span in lane.spans:
            yield span.at_ms if span.until_ms is None else span.until_ms


def _bars(spans: Sequence[TimelineSpan], layout: TimelineLayout) -> list[Bar]:
    """Give each span the first track that is free; one that goes on takes the rest of the line."""
    bars: list[Bar] = []
    taken: list[float] = []
    for span in spans:
        left = layout.x(span.at_ms)
        right = layout.right if span.until_ms is None else layout.x(span.until_ms)
        right = max(right, left + _LEAST_BAR)
        free = [track for track, until in enumerate(taken) if until <= left]
        track = free[0] if free else len(taken)
        taken[track : track + 1] = [right]
        bars.append(Bar(span, left, right, track))
    return bars


def _stagger(labels: list[Label]) -> None:
    """
    Lift each label above those that begin below it.

    From right to left, so that the thin line from a mark up to its label crosses no other label.
    """
    labels.sort(key=lambda label: label.x)
    for place, label in reversed(list(enumerate(labels))):
        reach = label.x + text_width(label.text, LABEL_PT) + _GAP
        covered = [other.level for other in labels[place + 1 :] if other.x < reach]
        label.level = 1 + max(covered, default=-1)
