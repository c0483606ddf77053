"""Where the rows of a marble picture have their marbles, in inches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from rx_backend.pictures.canvas import EDGE, text_width
from rx_backend.pictures.marble_glyph import Glyph
from rx_backend.pictures.marble_rows import MarbleRow, marble_of
from rx_backend.pictures.palette import PALE, TINY_PT, Colors
from rx_backend.testing import MarbleEvent

__all__ = ("ARROW", "MarbleLayout", "Moment", "end_note")

ARROW = "  →  "
"""What stands between two operators in a title."""

_MARGIN = 0.22
_LEAST_FRAME, _USUAL_FRAME, _PAGE = 0.30, 0.46, 8.2
_TITLE = 5.0
"""A longer title is wrapped."""
_BETWEEN = 0.06


@dataclass(slots=True)
class Moment:
    """
    What happens in one row at one frame: items, one above the other, and then an end.

    Attributes:
        frame: The frame.
        items: The events of its items.
        glyphs: How the items are drawn.
        end: The event of its end.
    """

    frame: int
    items: list[MarbleEvent]
    glyphs: list[Glyph]
    end: MarbleEvent | None

    @property
    def width(self) -> float:
        """How wide its items are."""
        return max((glyph.width for glyph in self.glyphs), default=0.0)

    @property
    def end_offset(self) -> float:
        """How far right of its frame the end is drawn: behind the items."""
        if not self.glyphs:
            return 0.0
        return self.width / 2 + (0.18 if self.end and self.end.kind == "error" else 0.08)

    @property
    def right(self) -> float:
        """How far it reaches to the right of its frame."""
        return self.end_offset + 0.12 if self.end else self.width / 2


class MarbleLayout:
    """
    The places on the page: wide enough that no two items touch, and that the names fit.

    Attributes:
        rows: Each row with its moments.
        frames: How many frames are shown.
        frame: How wide one is.
        names: Where the names of the rows end.
        right: Where the rows end.
        titles: The title's lines.
    """

    def __init__(self, rows: Sequence[MarbleRow], title: str, values: Mapping[str, Any]) -> None:
        colors = Colors(PALE)

        def glyph(item: Any) -> Glyph:
            return Glyph(marble_of(item, values), colors)

        self.rows = [(row, _moments(row, glyph)) for row in rows]
        self.frames = 1 + max((event.frame for row in rows for event in row.events), default=1)
        widest = max((text_width(row.name) for row in rows), default=0.0)
        self.names = EDGE + max(widest, text_width("seconds", TINY_PT))
        self.frame = self._frame_width()
        parts = title.split(ARROW)
        wanted = max(min(_title_width(title), _TITLE), *map(_title_width, parts))
        self.frames = max(self.frames, math.ceil(wanted / self.frame))
        moments = [moment for _, moments in self.rows for moment in moments]
        reach = [moment.width / 2 - moment.frame * self.frame for moment in moments]
        self._margin = max([_MARGIN, *reach])
        ends = [self.x(moment.frame) + moment.right for moment in moments]
        self.right = max([self.x(self.frames) + 0.08, *ends])
        self.titles = _wrapped(parts, self.right - self.x(0))

    def x(self, frame: float) -> float:
        """Where a frame is."""
        return self.names + EDGE + self._margin + frame * self.frame

    def end(self, moment: Moment) -> float:
        """Where an end is drawn."""
        return self.x(moment.frame) + moment.end_offset

    @property
    def width(self) -> float:
        """The page's width, with what is noted behind the ends."""
        notes = [
            self.end(moment) + 0.16 + text_width(end_note(row, moment), TINY_PT)
            for row, moments in self.rows
            for moment in moments
            if end_note(row, moment)
        ]
        return max([self.right, *notes]) + EDGE

    def _frame_width(self) -> float:
        """As wide as the items need, and as fits on a page where that is enough."""
        needed = [_LEAST_FRAME, min(_USUAL_FRAME, _PAGE / self.frames)]
        for _, moments in self.rows:
            needed += [
                (one.right + other.width / 2 + _BETWEEN) / (other.frame - one.frame)
                for one, other in pairwise(moments)
            ]
        return max(needed)


def end_note(row: MarbleRow, moment: Moment) -> str:
    """What stands behind an end."""
    if moment.end is None or moment.end.kind == "completed":
        return ""
    if moment.end.kind == "error":
        return type(moment.end.value).__name__
    return "dropped" if row.kind == "result" else "closed"


def _moments(row: MarbleRow, glyph: Callable[[Any], Glyph]) -> list[Moment]:
    moments: list[Moment] = []
    for frame, grouped in groupby(row.events, lambda event: event.frame):
        events = list(grouped)
        items = [event for event in events if event.kind == "next"]
        end = next((event for event in events if event.kind != "next"), None)
        moments.append(Moment(frame, items, [glyph(event.value) for event in items], end))
    return moments


def _title_width(title: str) -> float:
    return text_width(title, code=True) + 2 * EDGE


def _wrapped(parts: list[str], width: float) -> list[str]:
    lines = parts[:1]
    for part in parts[1:]:
        longer = f"{lines[-1]}{ARROW}{part}"
        if _title_width(longer) <= width:
            lines[-1] = longer
        else:
            lines[-1] += ARROW.rstrip()
            lines.append(part)
    return lines
