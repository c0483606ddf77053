"""A row of marks on a time axis: where they and their labels stand, and how they are drawn."""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from rx_backend.pictures import style
from rx_backend.pictures._matplotlib import Axes

__all__ = ("BOXES", "ENDS", "Lane", "Mark", "MarkKind", "Row", "item_width")

MarkKind: TypeAlias = Literal["event", "item", "box", "call", "end", "error", "drop", "span"]
"""A dot, a label in a round box or in one with corners, a diamond, a bar, a cross, a broken bar, or
a bar as long as it lasted."""

BOXES, ENDS = {"item", "box", "call"}, {"end", "error", "drop"}
"""Kinds that are stacked at the same time, and kinds that are drawn behind them."""
# In inches.
_HALF, _LABEL, _STACKED, _GAP, _BESIDE, _LONGEST = 0.17, 0.165, 0.34, 0.08, 0.03, 3.0
_MOST_IN_CIRCLE = 0.17
_MOST_LEVELS = 4


@dataclass(slots=True)
class Mark:
    """
    Something that happened.

    Attributes:
        lane: The row it is on.
        at: When: in ms on a timeline, in frames among marbles.
        label: What is written in it, if it is a box, else above it.
        kind: What it looks like.
        until: When a ``span`` ended; None while it lasts.
        group: The request it belongs to, where there are several.
        color: Its colour, unless it has that of its row.
        edge: The colour of a box's edge and text.
    """

    lane: str
    at: float
    label: str = ""
    kind: MarkKind = "event"
    until: float | None = None
    group: str = ""
    color: str = ""
    edge: str = style.INK


@dataclass(slots=True)
class Row:
    """
    A name, and a line with marks in the order of time; headings and titles are names alone.

    It hangs from the row at the place *parent*, *depth* rows deep, and links to those at *links*.
    Names of its artists begin with its *gid*.
    """

    name: str
    marks: list[Mark] = field(default_factory=list[Mark])
    kind: Literal["lane", "heading", "title"] = "lane"
    gid: str = ""
    color: str = style.INK
    depth: int = 0
    parent: int | None = None
    links: list[int] = field(default_factory=list[int])


def item_width(label: str) -> float:
    """Return the width of a box around *label*, in inches."""
    return max(0.27, style.text_width(label) + 0.13)


class Lane:
    """A row in the band of the page from *start* to *stop*, in inches from the band's left end."""

    def __init__(self, row: Row, start: float, stop: float, scale: float, length: float) -> None:
        self.row = row
        self._length = length
        first, end = (bisect_left(row.marks, at, key=attrgetter("at")) for at in (start, stop))
        here = [(mark, (mark.at - start) * scale) for mark in row.marks[first:end]]
        halves: dict[float, float] = {}
        self._stacks = Counter[float]()
        self._marks: list[tuple[Mark, float, int]] = []
        for mark, x in here:
            if mark.kind in BOXES:
                halves[x] = max(halves.get(x, 0.0), item_width(mark.label) / 2)
                self._marks.append((mark, x, self._stacks[x]))
                self._stacks[x] += 1
            elif mark.kind != "span":
                behind = halves[x] + 0.1 if mark.kind in ENDS and x in halves else 0.0
                self._marks.append((mark, x + behind, 0))
        self._bars = [
            (mark, max(0.0, (mark.at - start) * scale), min(length, (until - start) * scale))
            for mark in row.marks
            if mark.kind == "span" and mark.at < stop
            if (until := math.inf if mark.until is None else mark.until) >= start
        ]
        wanted = [_Label(x, mark) for mark, x, _ in self._marks if mark.kind not in BOXES]
        wanted += [_Label(left, mark) for mark, left, _ in self._bars if mark.at >= start]
        self._labels = _placed([label for label in wanted if label.text])
        more = sum(bool(label.text) for label in wanted) - len(self._labels)
        self.name = style.shorten(row.name, 2.4, style.TEXT_PT) + (
            f" (+{more} labels)" if more else ""
        )
        self._end = length
        if row.marks and row.marks[-1].kind in ENDS and row.marks[-1].at < stop:
            self._end = self._marks[-1][1] if here else -1.0
        self.left = min((x - half for x, half in halves.items()), default=0.0)
        reach = [x + half for x, half in halves.items()] + [label.right for label in self._labels]
        self.right = max(reach, default=0.0)
        self._base = _HALF + _STACKED * max(0, *(n - 1 for n in self._stacks.values()), 0) / 2
        levels = 1 + max((label.level for label in self._labels), default=-1)
        self.above = self._base + max(levels * _LABEL, 0.06)
        self.height = self.above + self._base
        if row.kind != "lane":
            room, wide = length - 0.2, style.text_width(row.name, style.TEXT_PT)
            share = 1.0 if wide <= room else 0.9 * room / wide
            columns = max(1, int(len(row.name) * share))
            self.name = "\n".join(textwrap.wrap(row.name, columns, break_on_hyphens=False))
            self.height = 0.3 + 0.18 * (1 + self.name.count("\n"))
            self.above = self.height / 2

    def draw(self, axes: Axes, y: float, ticks: Sequence[float]) -> None:
        """Draw its line at *y*, bars, marks and labels; *ticks* are marked on the line."""
        row = self.row
        if self._end >= 0:
            font = {"color": style.FAINT, "zorder": 1}
            xs = [x for x in ticks if x <= self._end]
            axes.vlines(xs, y - 0.06, y + 0.06, linewidth=0.8, **font)
            axes.plot([0, self._end], [y, y], linewidth=1.0, gid=f"{row.gid} line", **font)
        for mark, left, right in self._bars:
            color = mark.color or row.color
            font = {"color": style.paler(color), "edgecolor": color, "linewidth": 1.0, "zorder": 2}
            gid = f"{row.gid} {mark.at:g} span {mark.label}".rstrip()
            axes.barh(y, max(right - left, 0.03), 0.2, left, gid=gid, **font)
        for label in self._labels:
            bottom = y - self._base - _LABEL * label.level
            if label.level or self._base > _HALF:
                axes.plot([label.x] * 2, [y, bottom], color=style.FAINT, linewidth=0.8, zorder=1)
            font = {
                "color": style.FAULT if label.mark.kind == "error" else style.INK,
                "va": "center_baseline",
            }
            x, gid = label.x + _BESIDE, f"{row.gid} label {label.text}"
            axes.text(x, bottom - _LABEL / 2, label.text, gid=gid, **font)
        dots = [(mark, x) for mark, x, _ in self._marks if mark.kind == "event" and not mark.label]
        for color, same in groupby(sorted(dots, key=_color), _color):
            xs = [x for _, x in same]
            font = {"linestyle": "none", "gid": f"{row.gid} dots", "zorder": 5}
            axes.plot(xs, [y] * len(xs), **font, **_marker(Mark("", 0.0), color or row.color))
        for mark, x, place in self._marks:
            if mark.kind != "event" or mark.label:
                middle = y + _STACKED * (place - max(self._stacks[x] - 1, 0) / 2)
                self._draw_mark(axes, mark, x, middle)

    def _draw_mark(self, axes: Axes, mark: Mark, x: float, y: float) -> None:
        gid = f"{self.row.gid} {mark.at:g} {mark.kind} {mark.label}".rstrip()
        color = mark.color or self.row.color
        if mark.kind in {"item", "box"}:
            shape = "square,pad=0.45"
            if mark.kind == "item":
                is_short = style.text_width(mark.label) < _MOST_IN_CIRCLE
                shape = "circle,pad=0.45" if is_short else "round,pad=0.45,rounding_size=1"
            box = {"boxstyle": shape, "facecolor": color, "edgecolor": mark.edge}
            font = {"color": mark.edge, "ha": "center", "va": "center_baseline"}
            axes.text(x, y, mark.label or " ", bbox=box, gid=gid, zorder=5, **font)
        else:
            axes.plot([x], [y], gid=gid, zorder=5, **_marker(mark, color))


def _marker(mark: Mark, color: str) -> dict[str, Any]:
    from matplotlib.path import Path  # noqa: PLC0415  # an extra

    broken = Path([(0, -6), (0, -3), (0, -1.5), (0, 1.5), (0, 3), (0, 6)], [1, 2, 1, 2, 1, 2])
    markers = {
        "event": ("o", 8.0 if mark.label else 5.0, color, "white", 0.6),
        "call": ("D", 8.0, color, color, 1.0),
        "end": ("|", 21.0, style.INK, style.INK, 2.4),
        "drop": (broken, 21.0, style.INK, style.INK, 2.4),
        "error": ("x", 12.0, style.FAULT, style.FAULT, 2.6),
    }
    names = ("marker", "markersize", "color", "markeredgecolor", "markeredgewidth")
    return dict(zip(names, markers[mark.kind], strict=True))


def _color(dot: tuple[Mark, float]) -> str:
    return dot[0].color


class _Label:
    """The text above a mark, *level* labels above the lowest."""

    def __init__(self, x: float, mark: Mark) -> None:
        self.x = x
        self.mark = mark
        is_open = mark.kind == "span" and mark.until is None and mark.label
        self.text = style.shorten(f"{mark.label} …" if is_open else mark.label, _LONGEST)
        self.right = x + _BESIDE + style.text_width(self.text)
        self.rank = 0 if mark.kind == "error" else 1 if mark.kind in ENDS else 2
        self.level = 0


def _placed(wanted: Sequence[_Label]) -> list[_Label]:
    """Return the labels that have room, errors first and events last."""
    placed: list[_Label] = []
    for label in sorted(wanted, key=lambda label: (label.rank, label.x)):
        if _stagger([*placed, label]) <= _MOST_LEVELS:
            placed.append(label)
    _stagger(placed)
    return placed


def _stagger(labels: Iterable[_Label]) -> int:
    """
    Lift each label above those that begin below it; return how many levels there are.

    From right to left, so that the thin line from a mark up to its label crosses no other label.
    """
    placed: list[_Label] = []
    for label in sorted(labels, key=lambda label: label.x, reverse=True):
        covered = [other.level for other in placed if other.x < label.right + _GAP]
        label.level = 1 + max(covered, default=-1)
        placed.append(label)
    return 1 + max((label.level for label in placed), default=-1)
