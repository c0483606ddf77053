"""How a tree of spans is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rx_backend.pictures.canvas import EDGE, require_matplotlib, text_width
from rx_backend.pictures.palette import FAINT, INK
from rx_backend.pictures.timeline_drawing import TimelineDrawing
from rx_backend.pictures.timeline_layout import TimelineLayout, TimelineRow
from rx_backend.pictures.trace_rows import TraceRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ("draw_trace",)

_INDENT: Final = 0.2
_BESIDE: Final = 0.13
_HALF_A_BAR: Final = 0.10


def draw_trace(rows: Sequence[TraceRow]) -> Figure:
    """Draw *rows*: names as a tree on the left, bars on the right, arrows for links."""
    require_matplotlib()
    return _TraceDrawing(rows).draw()


class _TraceDrawing(TimelineDrawing):
    def __init__(self, rows: Sequence[TraceRow]) -> None:
        self._rows = rows
        reach = [EDGE + _INDENT * row.depth + text_width(row.lane.name) for row in rows]
        layout = TimelineLayout([row.lane for row in rows], max(reach, default=EDGE))
        super().__init__(layout, has_groups=False)
        self._middles: list[float] = []

    def draw(self) -> Figure:
        figure = super().draw()
        for place, row in enumerate(self._rows):
            for link in row.links:
                self._draw_link(link, place)
        return figure

    def _draw_name(self, row: TimelineRow, name: str, y: float) -> None:
        here = self._rows[len(self._middles)]
        x = EDGE + _INDENT * here.depth
        if here.parent is not None:
            left, above = x - _BESIDE, self._middles[here.parent] + _HALF_A_BAR
            self._canvas.line((left, above), (left, y), color=FAINT, width=0.8, layer=1)
            self._canvas.line((left, y), (x - 0.03, y), color=FAINT, width=0.8, layer=1)
        self._canvas.text(x, y, row.lane.name, name=f"{name} name")
        self._middles.append(y)

    def _draw_link(self, linked: int, place: int) -> None:
        """Draw an arrow from the end of the linked span to the start of the one that links."""
        one, other = self._layout.rows[linked], self._layout.rows[place]
        start, tip = one.bars[0].right, other.bars[0].left
        from_y, to_y = self._middles[linked], self._middles[place]
        is_down = to_y > from_y
        to_y += -_HALF_A_BAR if is_down else _HALF_A_BAR
        name = f"link {one.lane.group} {other.lane.group}"
        if tip > start:
            self._canvas.line((start, from_y), (tip, from_y), color=INK, style="dashed", layer=4)
        self._canvas.line((tip, from_y), (tip, to_y), name=name, color=INK, style="dashed", layer=4)
        if is_down:
            self._canvas.arrow_head(tip, to_y, down=True, color=INK)
