"""What pictures are drawn with: shapes and text on a page measured in inches."""

# matplotlib's own annotations leave its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from rx_backend.pictures.palette import FAULT, INK, QUIET, TEXT_PT

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

__all__ = ("EDGE", "Canvas", "require_matplotlib", "text_width")

EDGE = 0.14
"""The margin of a page, in inches."""

# Both come with matplotlib, so they are the same on every machine.
_FONT, _CODE_FONT = "DejaVu Sans", "DejaVu Sans Mono"
_POINTS_PER_INCH = 72.0


def require_matplotlib() -> None:
    """
    Check that there is something to draw with.

    Raises:
        ImportError: There isn't; names the extra.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("pictures need the package matplotlib: pip install 'rx-backend[plot]'")


def text_width(text: str, size: float = TEXT_PT, *, code: bool = False) -> float:
    """Give the width of a text, in inches."""
    from matplotlib.textpath import text_to_path  # noqa: PLC0415  # an extra

    width, _, _ = text_to_path.get_text_width_height_descent(text, _font(size, code=code), False)
    return width / _POINTS_PER_INCH


@functools.cache
def _font(size: float, *, code: bool) -> FontProperties:
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415  # an extra

    return FontProperties(family=_CODE_FONT if code else _FONT, size=size)


class Canvas:
    """
    A white page; x grows to the right and y downwards, in inches.

    What is drawn has a name, matplotlib's ``gid``, by which it can be found in the figure.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # an extra
        from matplotlib.figure import Figure  # noqa: PLC0415  # an extra

        self.figure: Figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(self.figure)
        self._axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(height, 0)
        self._axes.set_axis_off()

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        name: str = "",
        align: Literal["left", "center", "right"] = "left",
        size: float = TEXT_PT,
        color: str = INK,
        code: bool = False,
    ) -> None:
        """Write *text*, centred on *y*."""
        artist = self._axes.text(
            x,
            y,
            text,
            fontproperties=_font(size, code=code),
            color=color,
            ha=align,
            va="center_baseline",
            parse_math=False,
            zorder=6,
        )
        _call(artist, name)

    def line(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        *,
        name: str = "",
        color: str = QUIET,
        width: float = 1.2,
        style: Literal["solid", "dotted", "dashed"] = "solid",
        layer: int = 2,
    ) -> None:
        """Draw a line; *width* in points."""
        x, y = zip(start, end, strict=True)
        (artist,) = self._axes.plot(
            x, y, color=color, linewidth=width, linestyle=style, zorder=layer
        )
        artist.set_solid_capstyle("butt")
        _call(artist, name)

    def arrow_head(self, x: float, y: float, *, down: bool = False, color: str = QUIET) -> None:
        """Draw the head of an arrow to the right, or down, with its tip there."""
        from matplotlib.patches import Polygon  # noqa: PLC0415  # an extra

        corners = [(x - 0.09, y - 0.045), (x, y), (x - 0.09, y + 0.045)]
        if down:
            corners = [(x - 0.045, y - 0.09), (x, y), (x + 0.045, y - 0.09)]
        self._axes.add_patch(Polygon(corners, facecolor=color, edgecolor="none", zorder=2))

    def circle(
        self,
        x: float,
        y: float,
        radius: float,
        *,
        name: str = "",
        fill: str,
        edge: str = INK,
        edge_width: float = 1.0,
    ) -> None:
        """Draw a disc; *edge_width* in points."""
        from matplotlib.patches import Circle  # noqa: PLC0415  # an extra

        patch = Circle(
            (x, y), radius, facecolor=fill, edgecolor=edge, linewidth=edge_width, zorder=5
        )
        self._axes.add_patch(patch)
        _call(patch, name)

    def box(
        self,
        left: float,
        top: float,
        width: float,
        height: float,
        *,
        name: str = "",
        fill: str,
        edge: str = "none",
        edge_width: float = 1.0,
        rounding: float = 0.0,
        layer: int = 4,
    ) -> None:
        """Draw a rectangle with corners of the radius *rounding*."""
        from matplotlib.patches import FancyBboxPatch  # noqa: PLC0415  # an extra

        patch = FancyBboxPatch(
            (left, top),
            width,
            height,
            boxstyle=f"round,pad=0,rounding_size={rounding}" if rounding else "square,pad=0",
            facecolor=fill,
            edgecolor=edge,
            linewidth=edge_width,
            zorder=layer,
        )
        self._axes.add_patch(patch)
        _call(patch, name)

    def diamond(self, x: float, y: float, radius: float, *, name: str = "", fill: str) -> None:
        """Draw a square that stands on a corner."""
        from matplotlib.patches import Polygon  # noqa: PLC0415  # an extra

        corners = ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))
        patch = Polygon(corners, facecolor=fill, edgecolor=INK, linewidth=1.0, zorder=5)
        self._axes.add_patch(patch)
        _call(patch, name)

    def end(self, x: float, y: float, *, name: str = "", color: str = INK) -> None:
        """Draw the bar of a completion."""
        self.line((x, y - 0.15), (x, y + 0.15), name=name, color=color, width=2.4, layer=5)

    def drop(self, x: float, y: float, *, name: str = "", color: str = QUIET) -> None:
        """Draw the broken bar of a drop."""
        for part, top in enumerate((-0.15, -0.04, 0.07)):
            self.line(
                (x, y + top),
                (x, y + top + 0.08),
                name="" if part else name,
                color=color,
                width=2.4,
                layer=5,
            )

    def cross(self, x: float, y: float, *, name: str = "", color: str = FAULT) -> None:
        """Draw the cross of an error."""
        for part, slope in enumerate((1, -1)):
            self.line(
                (x - 0.1, y - 0.1 * slope),
                (x + 0.1, y + 0.1 * slope),
                name="" if part else name,
                color=color,
                width=2.6,
                layer=5,
            )


def _call(artist: Artist, name: str) -> None:
    if name:
        artist.set_gid(name)
