"""What charts share: a page of panels below one legend, and figures as a table."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from rx_backend.pictures import style
from rx_backend.pictures.picture import Picture
from rx_backend.pictures.style import Artist, Axes, Figure

__all__ = ("Chart", "finite", "plain_logarithm", "run_colors", "text_table")


class Chart(Picture):
    """
    A page of panels below one legend, whose height grows with its entries.

    Nothing is written into a panel, where a line could cross it.

    Attributes:
        grid: How many panels stand above each other and side by side; those above each other share
            what they are shown against.
        size: Of the page, in inches, with one line of legend.
        headline: What stands above the legend.
    """

    grid: ClassVar[tuple[int, int]] = (1, 1)
    size: tuple[float, float] = (8.8, 2.9)
    headline: str = ""

    @abstractmethod
    def _fill(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        """Draw into *panels*, and return what the legend names."""

    def _draw(self, figure: Figure) -> None:
        width, height = self.size
        figure.set_layout_engine("constrained")
        figure.set_size_inches(width, height)
        panels = figure.subplots(*self.grid, squeeze=False, sharex=self.grid[1] == 1)
        named = list(self._fill(panels.ravel().tolist()))
        for artist in named:
            artist.set_label(style.shorten(str(artist.get_label()), 3.0))
        widest = max((style.text_width(str(artist.get_label())) for artist in named), default=0.0)
        columns = max(1, int((width - 0.2) / (widest + 0.7)))
        figure.set_size_inches(width, height + 0.2 * ((len(named) - 1) // columns))
        legend = {"title": self.headline, "alignment": "left", "loc": "outside upper left"}
        figure.legend(handles=named, ncols=columns, **legend)


def finite(name: str, value: float, *, above: bool = False) -> float:
    """Return a finite *value* >= 0 (> 0 if *above*), or raise a ``ValueError`` that names it."""
    if math.isfinite(value) and (value > 0 if above else value >= 0):
        return value
    raise ValueError(f"{name}: expected a finite number {'>' if above else '>='} 0, got {value!r}")


def run_colors(names: Iterable[str]) -> dict[str, Any]:
    """Return a colour for each run; more than six have colours from dark to light, in order."""
    from matplotlib import colormaps  # noqa: PLC0415  # an extra

    names = list(names)
    if len(names) <= len(style.STRONG):
        return dict(zip(names, style.STRONG, strict=False))
    return {name: colormaps["viridis"](place / len(names)) for place, name in enumerate(names)}


def plain_logarithm(axis: Any) -> None:
    """Make *axis* logarithmic, labelled in numbers without powers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter  # noqa: PLC0415  # an extra

    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def text_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """
    Lay out a table as text: the first column to the left, numbers to the right.

    >>> print(text_table(("run", "good"), [("plain", 7), ("late", None)]))
    run    good
    plain     7
    late      -
    """
    lines = [list(head), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip()
        for first, *others in lines
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
