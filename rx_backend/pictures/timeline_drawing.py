"""How a timeline is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rx_backend.pictures.canvas import EDGE, Canvas, require_matplotlib, text_width
from rx_backend.pictures.palette import (
    FAINT,
    FAULT,
    GUIDE,
    INK,
    QUIET,
    STRONG,
    TINY_PT,
    Colors,
    paler,
)
from rx_backend.pictures.timeline_layout import (
    LABEL,
    LABEL_PT,
    Bar,
    Label,
    TimelineLayout,
    TimelineRow,
)
from rx_backend.pictures.timeline_rows import Entry, TimelineMark, lanes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ("TimelineDrawing", "draw_timeline")

_BAR = 0.20
_HEADING = 0.30
_AXIS = 0.30
_MOST_TICKS = 10


def draw_timeline(entries: Sequence[Entry], *, has_groups: bool) -> Figure:
    """Draw *entries* in lanes, with the groups' headings unless there are none to tell apart."""
    require_matplotlib()
    return TimelineDrawing(TimelineLayout(lanes_of(entries)), has_groups=has_groups).draw()


class TimelineDrawing:
    """
    One drawing of lanes.

    Args:
        layout: Where everything goes.
        has_groups: Whether groups have headings.
    """

    def __init__(self, layout: TimelineLayout, *, has_groups: bool) -> None:
        self._layout = layout
        self._colors = Colors(STRONG)
        self._groups = [
            (name if has_groups else "", list(rows))
            for name, rows in groupby(layout.rows, lambda row: row.lane.group)
        ]
        headings = sum(_HEADING for name, _ in self._groups if name)
        self._bottom = EDGE + sum(row.height for row in layout.rows) + headings
        self._canvas = Canvas(layout.width, self._bottom + _AXIS)

    def draw(self) -> Figure:
        """Draw it."""
        self._draw_axis()
        y = EDGE
        for name, rows in self._groups:
            if name:
                self._draw_heading(name, y + _HEADING / 2)
                y += _HEADING
            for row in rows:
                self._draw_row(row, y)
                y += row.height
        return self._canvas.figure

    def _draw_axis(self) -> None:
        canvas, layout, y = self._canvas, self._layout, self._bottom + 0.12
        step = _tick_step(layout.end_ms)
        for tick in range(int(layout.end_ms / step + 1e-9) + 1):
            x, text = layout.x(tick * step), f"{tick * step:g}"
            canvas.line((x, EDGE), (x, self._bottom), color=GUIDE, width=1.0, layer=0)
            canvas.text(x, y, text, name=f"axis {text}", align="center", size=TINY_PT, color=FAINT)
        canvas.text(layout.names, y, "ms", align="right", size=TINY_PT, color=FAINT)

    def _draw_heading(self, name: str, y: float) -> None:
        self._canvas.text(EDGE, y, name, name=f"{name} heading", color=QUIET)
        start = EDGE + text_width(name) + EDGE
        self._canvas.line((start, y), (self._layout.right, y), color=GUIDE, layer=1)

    def _draw_row(self, row: TimelineRow, top: float) -> None:
        canvas, layout, lane = self._canvas, self._layout, row.lane
        color = self._colors[lane.name]
        name = f"{lane.group} {lane.name}".strip()
        y = top + row.middle(0)
        self._draw_name(row, name, y)
        canvas.line((layout.x(0.0), y), (layout.right, y), color=FAINT, width=0.8, layer=1)
        for bar in row.bars:
            self._draw_bar(bar, name, top + row.middle(bar.track), color)
        for label in row.labels:
            self._draw_label(label, name, y, y - row.label_top(label))
        for mark in lane.marks:
            self._draw_mark(mark, name, y, color)

    def _draw_name(self, row: TimelineRow, name: str, y: float) -> None:
        text = row.lane.name
        self._canvas.text(self._layout.names, y, text, name=f"{name} name", align="right")

    def _draw_bar(self, bar: Bar, lane: str, y: float, color: str) -> None:
        self._canvas.box(
            bar.left,
            y - _BAR / 2,
            bar.right - bar.left,
            _BAR,
            name=f"{lane} {bar.span.at_ms:g} span {bar.span.label}".rstrip(),
            fill=paler(color),
            edge=color,
            rounding=min(0.04, (bar.right - bar.left) / 2),
            layer=3,
        )
        if bar.text:
            middle = (bar.left + bar.right) / 2
            name = f"{lane} label {bar.text}"
            self._canvas.text(middle, y, bar.text, name=name, align="center", size=LABEL_PT)

    def _draw_label(self, label: Label, lane: str, y: float, top: float) -> None:
        if label.level:
            self._canvas.line((label.x, y), (label.x, top), color=FAINT, width=0.8, layer=1)
        self._canvas.text(
            label.x + 0.03,
            top + LABEL / 2,
            label.text,
            name=f"{lane} label {label.text}",
            size=LABEL_PT,
            color=FAULT if label.is_fault else INK,
        )

    def _draw_mark(self, mark: TimelineMark, lane: str, y: float, color: str) -> None:
        canvas, x = self._canvas, self._layout.x(mark.at_ms)
        name = f"{lane} {mark.at_ms:g} {mark.kind} {mark.label}".rstrip()
        if mark.kind == "error":
            canvas.cross(x, y, name=name)
        elif mark.kind == "drop":
            canvas.drop(x, y, name=name, color=INK)
        elif mark.kind == "end":
            canvas.end(x, y, name=name)
        else:
            radius = 0.06 if mark.label else 0.04
            canvas.circle(x, y, radius, name=name, fill=color, edge="white", edge_width=0.6)


def _tick_step(end_ms: float) -> float:
    """The least of 1, 2, 5, 10, ... (or smaller ones) that makes no more ticks than fit."""
    step = 1e-3
    while True:
        for factor in (1, 2, 5):
            if end_ms / (step * factor) <= _MOST_TICKS:
                return step * factor
        step *= 10
