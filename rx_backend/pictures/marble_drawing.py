"""How rows of marbles are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rx_backend.pictures.canvas import EDGE, Canvas, require_matplotlib, text_width
from rx_backend.pictures.marble_layout import MarbleLayout, Moment, end_note
from rx_backend.pictures.marble_rows import MarbleRow
from rx_backend.pictures.palette import (
    BUSY,
    FAINT,
    FAULT,
    GUIDE,
    OPERATOR,
    QUIET,
    STRONG,
    TINY_PT,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ("draw_marbles",)

_ROW = 0.50
_ITEM = 0.41
_TITLE = 0.20
_BOX_EDGE, _BOX_MARGIN = 0.07, 0.08
_AXIS, _LEGEND = 0.30, 0.26
_TICKS = (1, 2, 5, 10, 20, 50, 100)


def draw_marbles(rows: Sequence[MarbleRow], title: str, values: Mapping[str, Any]) -> Figure:
    """Draw *rows* from the top down, and the operators called *title* above the first result."""
    require_matplotlib()
    return _Drawing(MarbleLayout(rows, title, values), rows).draw()


class _Drawing:
    def __init__(self, layout: MarbleLayout, rows: Sequence[MarbleRow]) -> None:
        self._layout = layout
        self._x = layout.x
        # Where everybody was at work all the time there is nothing to see in it.
        self._shows_work = any(row.busy and (row.kind == "result" or _rests(row)) for row in rows)
        has_box = bool(layout.titles[0]) and any(row.kind == "result" for row in rows)
        self._box = _TITLE * len(layout.titles) + 2 * _BOX_EDGE if has_box else 0.0
        self._bottom = EDGE + sum(_height(moments) for _, moments in layout.rows)
        self._bottom += self._box + 2 * _BOX_MARGIN if has_box else 0.0
        height = self._bottom + _AXIS + (_LEGEND if self._shows_work else 0.0)
        self._canvas = Canvas(layout.width, height)

    def draw(self) -> Figure:
        self._draw_axis()
        if self._shows_work:
            self._draw_legend()
        y, box = EDGE, self._box
        for row, moments in self._layout.rows:
            if box and row.kind == "result":
                self._draw_operators(y + _BOX_MARGIN)
                y += box + 2 * _BOX_MARGIN
                box = 0.0
            self._draw_row(row, moments, y + _height(moments) / 2)
            y += _height(moments)
        return self._canvas.figure

    def _draw_axis(self) -> None:
        canvas, layout, y = self._canvas, self._layout, self._bottom + 0.12
        step = next((tick for tick in _TICKS if tick * layout.frame >= 0.36), _TICKS[-1])
        for frame in range(layout.frames):
            x = self._x(frame)
            canvas.line((x, EDGE), (x, self._bottom), color=GUIDE, width=1.0, layer=0)
            if frame % step == 0:
                name = f"axis {frame}"
                canvas.text(x, y, str(frame), name=name, align="center", size=TINY_PT, color=FAINT)
        canvas.text(layout.names, y, "seconds", align="right", size=TINY_PT, color=FAINT)

    def _draw_legend(self) -> None:
        canvas, x, y = self._canvas, self._x(0), self._bottom + 0.37
        words = {"source": "the source is asked for an item", "result": "the consumer is busy"}
        for row, _ in self._layout.rows:
            if row.busy:
                text = words[row.kind]
                canvas.box(x, y - 0.06, 0.26, 0.12, fill=_busy_color(row), rounding=0.03)
                canvas.text(x + 0.33, y, text, size=TINY_PT, color=QUIET)
                x += 0.33 + text_width(text, TINY_PT) + 0.25

    def _draw_operators(self, top: float) -> None:
        canvas, left = self._canvas, self._x(0) - 0.12
        width = self._layout.right - left
        canvas.box(
            left, top, width, self._box, name="operators", fill=OPERATOR, edge=FAINT, rounding=0.06
        )
        for place, line in enumerate(self._layout.titles):
            y = top + _BOX_EDGE + _TITLE * (place + 0.5)
            canvas.text(left + width / 2, y, line, name=f"title {line}", align="center", code=True)

    def _draw_row(self, row: MarbleRow, moments: list[Moment], y: float) -> None:
        canvas, layout = self._canvas, self._layout
        canvas.text(layout.names, y, row.name, name=f"{row.name} name", align="right")
        start, last = (self._x(0), y), moments[-1] if moments else None
        if row.kind == "effect":
            canvas.line(start, (layout.right, y), color=FAINT, style="dotted")
        elif last is not None and last.end is not None:
            canvas.line(start, (layout.end(last), y), name=f"{row.name} line")
        else:
            canvas.line(start, (layout.right, y), name=f"{row.name} line")
            canvas.arrow_head(layout.right, y)
        if self._shows_work:
            for since, until in row.busy:
                left, right = self._x(since), min(self._x(until), layout.right)
                name = f"{row.name} {since:g}-{until:g} busy"
                canvas.box(
                    left, y - 0.11, right - left, 0.22, name=name, fill=_busy_color(row), layer=1
                )
        for moment in moments:
            self._draw_items(row, moment, y)
            self._draw_end(row, moment, y)

    def _draw_items(self, row: MarbleRow, moment: Moment, middle: float) -> None:
        x, y = self._x(moment.frame), middle - _ITEM * (len(moment.glyphs) - 1) / 2
        for glyph, event in zip(moment.glyphs, moment.items, strict=True):
            name = f"{row.name} {moment.frame}"
            if row.kind == "effect" and event.value is None:
                self._canvas.diamond(x, y, 0.12, name=f"{name} mark", fill=STRONG[3])
            else:
                glyph.draw(self._canvas, x, y, f"{name} {glyph.marble}")
            y += _ITEM

    def _draw_end(self, row: MarbleRow, moment: Moment, y: float) -> None:
        if moment.end is None:
            return
        canvas, x, name = self._canvas, self._layout.end(moment), f"{row.name} {moment.frame}"
        kind = moment.end.kind
        if kind == "error":
            canvas.cross(x, y, name=f"{name} error")
        elif kind == "drop":
            canvas.drop(x, y, name=f"{name} drop")
        else:
            canvas.end(x, y, name=f"{name} end")
        color = FAULT if kind == "error" else QUIET
        note = end_note(row, moment)
        canvas.text(x + 0.16, y, note, name=f"{name} note", size=TINY_PT, color=color)


def _height(moments: list[Moment]) -> float:
    most = max((len(moment.glyphs) for moment in moments), default=1)
    return _ROW + _ITEM * max(most - 1, 0)


def _busy_color(row: MarbleRow) -> str:
    return BUSY[row.kind == "result"]


def _rests(row: MarbleRow) -> bool:
    return any(one[1] < other[0] for one, other in pairwise(row.busy))
