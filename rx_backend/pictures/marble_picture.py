"""Rows of marbles, drawn on one time axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rx_backend.pictures.marble_drawing import draw_marbles
from rx_backend.pictures.marble_rows import MarbleRow, rows_as_text
from rx_backend.pictures.picture import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ("MarblePicture",)


class MarblePicture(Picture):
    """
    What went into operators and what came out, on one time axis; a ``MarbleRun`` makes them.

    Circles are items with their letters or token ids, the same colour for the same one; a frame
    around some is a chunk of several tokens, and one with corners is an envelope. A bar is the
    end, a cross an error, a broken bar a drop, and a diamond an effect without an item.

    Args:
        rows: The rows, from the top down; the operators are drawn above the first ``result``.
        title: What is written on the operators.
        values: What letters stand for.

    Attributes:
        rows: The rows.
        title: What is written on the operators.

    >>> from rx_backend.testing import MarbleEvent
    >>> MarblePicture([MarbleRow("tokens", "source", (MarbleEvent(1, "next", "a"),))])
    tokens  -a
    """

    def __init__(
        self,
        rows: Iterable[MarbleRow],
        *,
        title: str = "",
        values: Mapping[str, Any] | None = None,
    ) -> None:
        self.rows = tuple(rows)
        self.title = title
        self._values = dict(values or {})

    def without(self, name: str) -> MarblePicture:
        """The picture without the row called *name*."""
        rows = [row for row in self.rows if row.name != name]
        return MarblePicture(rows, title=self.title, values=self._values)

    def figure(self) -> Figure:
        """
        Draw it as a new matplotlib figure.

        Each artist has a ``gid``: the row's name, the frame, and what it shows.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """
        return draw_marbles(self.rows, self.title, self._values)

    def __eq__(self, other: object) -> bool:
        """Whether the same happened at the same time in both, whatever did it."""
        return isinstance(other, MarblePicture) and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return rows_as_text(self.rows, self._values)
