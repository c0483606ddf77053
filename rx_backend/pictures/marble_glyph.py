"""One item of a marble picture: how wide it is, and how it is drawn."""

from __future__ import annotations

from rx_backend.pictures.canvas import Canvas, text_width
from rx_backend.pictures.marble_rows import Marble
from rx_backend.pictures.palette import FAULT, INK, QUIET, Colors

__all__ = ("Glyph",)

_RADIUS = 0.145
_TEXT_PT = 9.0
_FEW_LETTERS_IN = 0.23
_PAD = 0.08
_INNER = 0.035


class _Cell:
    """One circle, or a label with round ends for more than it can hold; one text, one colour."""

    def __init__(self, text: str, fill: str, *, edge: str = INK, is_square: bool = False) -> None:
        self.text = text
        self.fill = fill
        self.edge = edge
        self.is_square = is_square
        wide = text_width(text, _TEXT_PT) if text else 0.0
        is_circle = wide <= _FEW_LETTERS_IN and not is_square
        self.width = 2 * _RADIUS if is_circle else wide + 2 * _PAD
        self._is_circle = is_circle

    def draw(self, canvas: Canvas, x: float, y: float, name: str) -> None:
        if self._is_circle:
            canvas.circle(x, y, _RADIUS, name=name, fill=self.fill, edge=self.edge)
        else:
            rounding = 0.03 if self.is_square else _RADIUS - 0.005
            canvas.box(
                x - self.width / 2,
                y - _RADIUS,
                self.width,
                2 * _RADIUS,
                name=name,
                fill=self.fill,
                edge=self.edge,
                edge_width=1.6 if self.is_square else 1.0,
                rounding=rounding,
                layer=5,
            )
        ink = self.edge if self.edge == FAULT else INK
        canvas.text(x, y, self.text, align="center", size=_TEXT_PT, color=ink)


class Glyph:
    """
    One item, ready to be drawn.

    Args:
        marble: What it shows.
        colors: Where parts get their colours from: a letter has the same in both cases.
    """

    def __init__(self, marble: Marble, colors: Colors) -> None:
        self.marble = marble
        self._cells = [_Cell(part, colors[part.casefold()]) for part in marble.parts]
        if marble.ending:
            self._cells.append(_Cell(marble.ending, "white", is_square=True))
        if marble.fault:
            self._cells.append(_Cell(marble.fault, "#fbe9e6", edge=FAULT, is_square=True))
        if not self._cells:
            self._cells.append(_Cell("", "white"))
        self._has_frame = marble.wrapped or len(self._cells) > 1
        self.width = sum(cell.width for cell in self._cells)
        self.width += _INNER * (len(self._cells) - 1)
        if self._has_frame:
            self.width += 2 * _INNER

    def draw(self, canvas: Canvas, x: float, y: float, name: str) -> None:
        """Draw it around *x* and *y*; its cells are called *name*, its frame the same and `frame`."""
        left = x - self.width / 2
        if self._has_frame:
            canvas.box(
                left,
                y - _RADIUS - _INNER,
                self.width,
                2 * (_RADIUS + _INNER),
                name=f"{name} frame",
                fill="white",
                edge=QUIET,
                rounding=0.02 if self.marble.wrapped else _RADIUS + _INNER - 0.005,
            )
            left += _INNER
        for cell in self._cells:
            cell.draw(canvas, left + cell.width / 2, y, name)
            left += cell.width + _INNER
