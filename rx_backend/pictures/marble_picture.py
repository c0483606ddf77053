"""Rows of marbles, drawn on one time axis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Annotated, Any

from operators.assembly import CHECKED, check_arguments
from rx_backend.pictures import style
from rx_backend.pictures._checks import check_items
from rx_backend.pictures._matplotlib import Figure
from rx_backend.pictures.marble_item import MarbleRow, marble_of, rows_as_text
from rx_backend.pictures.picture import Picture
from rx_backend.pictures.row import BOXES, ENDS, Mark, Row, item_width
from rx_backend.pictures.row_layout import WIDTH, RowLayout
from rx_backend.testing import MarbleEvent

__all__ = ("MarblePicture",)

_FRAME, _DOT_FRAME, _TALLEST = 0.46, 0.078, 36.0
"""The minimum length of a frame, also with dots, and the maximum height of a picture, in inches."""
_MOST_STACKED, _LONGEST = 5, 14


class MarblePicture(Picture):
    """
    Operators' input and output on one time axis; created by ``MarbleRun``.

    Circles are items with their letters, token ids or texts; texts with the same beginning have the
    same colour, and corners mark an envelope or a bare terminal. A bar is the end, a cross an
    error, a broken bar a drop, and a diamond a call without an item.

    A run wider than a page continues below, like a line of music. If that would be taller than 36
    inches, items are dots. If there are more than five items at one time, the first four are drawn,
    with the number of the others.

    Args:
        rows: The rows, from the top down; the operators are drawn above the first ``result``.
        title: The label of the operators.
        values: The items that letters stand for.

    Raises:
        TypeError: An argument is invalid; the message names it.

    >>> from rx_backend.testing import MarbleEvent
    >>> MarblePicture([MarbleRow("tokens", "source", (MarbleEvent(1, "next", "a"),))])
    tokens  -a
    """

    def __init__(
        self,
        rows: Annotated[Iterable[MarbleRow], CHECKED],
        *,
        title: str = "",
        values: Annotated[Mapping[str, Any], CHECKED] | None = None,
    ) -> None:
        check_arguments(MarblePicture, rows, title=title, values=values)
        self.rows = tuple(rows)
        check_items("MarblePicture: rows", self.rows, MarbleRow)
        self.title = title
        self._values = dict(values or {})

    def _draw(self, figure: Figure) -> None:
        frames = 1 + max((event.frame for row in self.rows for event in row.events), default=1)
        rows = self._lanes()
        scale = max([min(_FRAME, WIDTH / frames), *(_needed(row.marks) for row in rows)])
        layout = RowLayout(rows, "seconds", frames, scale)
        if layout.height > _TALLEST:
            bands = max(1, int(_TALLEST / layout.height * layout.bands))
            scale = min(_DOT_FRAME, WIDTH / -(-frames // bands))
            layout = RowLayout(self._lanes(dots=True), "seconds", frames, scale)
        layout.draw(figure)

    def _lanes(self, *, dots: bool = False) -> list[Row]:
        """Return the rows with their marks, and the operators above the first result."""
        colors: dict[str, str] = {}
        rows = [
            Row(row.name, list(self._marks(row, colors, dots)), gid=row.name) for row in self.rows
        ]
        first = next((n for n, row in enumerate(self.rows) if row.kind == "result"), None)
        if self.title and first is not None:
            rows.insert(first, Row(self.title, kind="title", gid="operators"))
        return rows

    def _marks(self, row: MarbleRow, colors: dict[str, str], dots: bool) -> Iterator[Mark]:
        for frame, grouped in groupby(row.events, lambda event: event.frame):
            events = list(grouped)
            items = [
                self._item(row, event, colors, dots) for event in events if event.kind == "next"
            ]
            if len(items) > _MOST_STACKED:
                rest = Mark(
                    row.name, frame, f"+{len(items) - _MOST_STACKED + 1}", "item", color="white"
                )
                items[_MOST_STACKED - 1 :] = [rest]
            yield from items
            for event in events:
                if event.kind == "error":
                    yield Mark(row.name, frame, type(event.value).__name__, "error")
                elif event.kind == "drop":
                    yield Mark(
                        row.name, frame, "dropped" if row.kind == "result" else "closed", "drop"
                    )
                elif event.kind == "completed":
                    yield Mark(row.name, frame, "", "end")

    def _item(self, row: MarbleRow, event: MarbleEvent, colors: dict[str, str], dots: bool) -> Mark:
        if row.kind == "effect" and event.value is None:
            return Mark(row.name, event.frame, "", "call", color=style.STRONG[3])
        marble = marble_of(event.value, self._values)
        content, ending = marble.content, marble.ending
        color = "white"
        if content:
            first = content.casefold().split(" ")[0]
            color = colors.setdefault(first, style.PALE[len(colors) % len(style.PALE)])
        if dots:
            return Mark(row.name, event.frame, color=color)
        if len(content) > _LONGEST:
            content = f"{content[: _LONGEST - 1].rstrip()}…"
        kind = "box" if marble.is_wrapped or (ending and not content) else "item"
        color, edge = (style.BLUSH, style.FAULT) if marble.is_fault else (color, style.INK)
        label = f"{content} {style.shorten(ending, 1.6)}".strip()
        return Mark(row.name, event.frame, label, kind, color=color, edge=edge)

    def __repr__(self) -> str:
        return rows_as_text(self.rows, self._values)


def _needed(marks: Sequence[Mark]) -> float:
    """Return the length of a frame at which no two items touch."""
    halves: dict[float, float] = {}
    for mark in marks:
        half = item_width(mark.label) / 2 if mark.kind in BOXES else 0.08
        halves[mark.at] = max(half, halves.get(mark.at, 0.0)) + (mark.kind in ENDS) * 0.1
    return max(((halves[a] + halves[b] + 0.06) / (b - a) for a, b in pairwise(halves)), default=0.0)
