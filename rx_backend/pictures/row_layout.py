"""Rows on a page: their names, the time axis, and what continues below."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import groupby

from rx_backend.pictures import style
from rx_backend.pictures._matplotlib import Axes, Figure
from rx_backend.pictures.picture import Picture
from rx_backend.pictures.row import Lane, Mark, Row

__all__ = ("WIDTH", "RowLayout", "RowPicture")

WIDTH = 7.8
"""How long rows are at most, in inches."""
_EDGE, _AXIS, _INDENT, _GUTTER, _MOST_GUTTERS = 0.14, 0.36, 0.2, 0.12, 6
_NOTHING = "no entries"


class RowLayout:
    """
    Where rows stand on the page, in inches.

    At most four labels stand above each other. A label without room is left out, an event's before
    an end's or an error's; its mark stays, and the row's name has the number of those left out.
    Rows longer than the page continue below, all of them together, like lines of music.

    Args:
        rows: The rows, from the top down.
        unit: The unit of their times.
        end: The last time.
        scale: The length of one unit of time; by default all of it fits on the page.
    """

    def __init__(
        self, rows: Sequence[Row], unit: str, end: float, scale: float | None = None
    ) -> None:
        self._unit, self._end, self._scale = unit, end, scale or WIDTH / end
        self._is_whole = scale is not None
        per_band = max(1, int(WIDTH / self._scale + 1e-6))
        self._starts = (
            [0.0] if scale is None or per_band >= end else [*range(0, math.ceil(end), per_band)]
        )
        self._per_band = end if len(self._starts) == 1 else per_band
        titles = [
            style.text_width(row.name, style.TEXT_PT) + 0.3 for row in rows if row.kind == "title"
        ]
        self._length = max(self._per_band * self._scale + 0.12, min(max(titles, default=0.0), 5.0))
        stops = [*self._starts[1:], math.inf]
        self._bands = [
            [Lane(row, start, stop, self._scale, self._length) for row in rows]
            for start, stop in zip(self._starts, stops, strict=True)
        ]
        self.bands = len(self._bands)
        lanes = [lane for band in self._bands for lane in band]
        names = max(
            [
                0.5,
                *(
                    _INDENT * lane.row.depth + style.text_width(lane.name, style.TEXT_PT)
                    for lane in lanes
                    if lane.row.kind == "lane"
                ),
            ]
        )
        gutters = min(sum(len(row.links) for row in rows), _MOST_GUTTERS)
        margin = max([0.2, *(0.08 - lane.left for lane in lanes)])
        # On a coarse screen each letter is rounded to whole pixels.
        self._left = _EDGE + 1.08 * names + _GUTTER * gutters + margin
        ticks = (tick for start in self._starts for tick in self._ticks(start).items())
        ends = (x + style.text_width(text) / 2 for x, text in ticks)
        self._right = max([self._length, *(lane.right for lane in lanes), *ends]) + _EDGE
        self.height = _EDGE + sum(lane.height for lane in lanes) + _AXIS * self.bands

    def draw(self, figure: Figure) -> None:
        """Draw the rows; *figure* gets the size that they need."""
        figure.set_size_inches(self._left + self._right, self.height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-self._left, self._right), ylim=(self.height, 0))
        axes.set_axis_off()
        y = _EDGE
        for start, band in zip(self._starts, self._bands, strict=True):
            ticks = self._ticks(start)
            middles: list[float] = []
            for lane in band:
                middles.append(y + lane.above)
                self._draw_name(axes, lane, middles)
                if lane.row.kind == "lane":
                    lane.draw(axes, middles[-1], list(ticks))
                y += lane.height
            self._draw_links(axes, [lane.row for lane in band], middles)
            y += _AXIS
            font = {"color": style.FAINT, "fontsize": style.SMALL_PT - 0.5, "va": "center_baseline"}
            axes.text(_EDGE - self._left, y - 0.24, self._unit, **font)
            for x, text in ticks.items():
                axes.text(x, y - 0.24, text, ha="center", gid=f"axis {text}", **font)

    def _ticks(self, start: float) -> dict[float, str]:
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  # an extra

        most = int(self._length / (style.text_width(f"{self._end:,.6g}") + 0.25))
        steps = MaxNLocator(max(1, min(most, 20)), steps=[1, 2, 5, 10], integer=self._is_whole)
        first, second, *_ = steps.tick_values(0.0, self._length / self._scale)
        stop = min(self._end, start + self._per_band)
        numbers = range(
            math.ceil(start / (second - first)), int(stop / (second - first) + 1e-6) + 1
        )
        times = [number * (second - first) for number in numbers]
        return {(time - start) * self._scale: f"{time:,.10g}" for time in times}

    def _draw_name(self, axes: Axes, lane: Lane, middles: Sequence[float]) -> None:
        row, y = lane.row, middles[-1]
        x = _EDGE - self._left + _INDENT * row.depth
        font = {
            "fontsize": style.TEXT_PT,
            "color": style.QUIET if row.kind == "heading" else style.INK,
        }
        if row.kind == "title":
            box = {
                "color": style.GROUND,
                "edgecolor": style.FAINT,
                "linewidth": 1.0,
                "gid": row.gid,
            }
            axes.barh(y, self._length + 0.1, lane.height - 0.14, -0.1, **box)
            middle = self._length / 2
            axes.text(
                middle, y, lane.name, ha="center", va="center", gid=f"{row.gid} title", **font
            )
        else:
            axes.text(x, y, lane.name, va="center_baseline", gid=f"{row.gid} name", **font)
        if row.parent is not None:
            xs, ys = (x - 0.13, x - 0.13, x - 0.03), (middles[row.parent] + 0.1, y, y)
            axes.plot(xs, ys, color=style.FAINT, linewidth=0.8)

    def _draw_links(self, axes: Axes, rows: Sequence[Row], middles: Sequence[float]) -> None:
        """Draw arrows between names and rows, from each linked row to the one that links."""
        links = [(row, to, number) for to, row in enumerate(rows) for number in row.links]
        for place, (row, to, number) in enumerate(links):
            x = -0.1 - _GUTTER * (place % _MOST_GUTTERS + 1)
            xs, ys = (-0.04, x, x, -0.1), (middles[number],) * 2 + (middles[to],) * 2
            gid = f"link {rows[number].gid} {row.gid}"
            axes.plot(xs, ys, color=style.INK, linewidth=1.2, linestyle="dashed", gid=gid)
            axes.plot([-0.07], [middles[to]], ">", color=style.INK, markersize=5.5)


class RowPicture(Picture):
    """A picture of rows with times in ms; rows of the same name have the same colour."""

    @abstractmethod
    def _rows(self) -> list[Row]:
        """Return the rows, from the top down."""

    def _draw(self, figure: Figure) -> None:
        rows = self._rows() or [Row(_NOTHING, kind="heading")]
        colors: dict[str, str] = {}
        for row in rows:
            if row.kind == "lane":
                row.color = colors.setdefault(
                    row.name, style.STRONG[len(colors) % len(style.STRONG)]
                )
        times = [
            mark.at if mark.until is None else mark.until for row in rows for mark in row.marks
        ]
        RowLayout(rows, "ms", max(1e-3, *times) if times else 1.0).draw(figure)

    def __repr__(self) -> str:
        rows = self._rows()
        lines: list[str] = []
        for row in rows:
            inside = "  " * (row.depth + 2)
            lines.append("  " * row.depth + row.name)
            lines += [f"{inside}links to {rows[number].name}" for number in row.links]
            for is_plain, grouped in groupby(row.marks, _is_plain):
                marks = list(grouped)
                if is_plain and len(marks) > 1:
                    said = f"{marks[0].at:.10g} ms to {marks[-1].at:.10g} ms x {len(marks)}"
                    lines.append(f"{inside}{said}")
                else:
                    lines += [f"{inside}{_said(mark)}" for mark in marks]
        return "\n".join(lines) or _NOTHING


def _is_plain(mark: Mark) -> bool:
    return mark.kind == "event" and not mark.label


def _said(mark: Mark) -> str:
    if mark.kind == "span":
        until = "open" if mark.until is None else f"to {mark.until:.10g} ms"
        return f"{mark.at:.10g} ms {until} {mark.label}".rstrip()
    kind = "" if mark.kind == "event" else f"({mark.kind})"
    return f"{mark.at:.10g} ms {mark.label} {kind}".replace("  ", " ").rstrip()
