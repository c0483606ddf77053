"""What all charts share: a page of panels in the style of the pictures, and tables as text."""

# matplotlib's own annotations leave its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rx_backend.pictures.canvas import require_matplotlib
from rx_backend.pictures.palette import FAINT, GUIDE, INK, QUIET, TEXT_PT, TINY_PT
from rx_backend.pictures.picture import Picture

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ("Chart", "mark_target", "plain_logarithm", "text_table", "title_panel")

_WIDTH = 8.8
# Comes with matplotlib, so it is the same on every machine.
_FONT = "DejaVu Sans"
_SMALL_PT = TINY_PT + 0.5


class Chart(Picture):
    """
    A page of panels with one legend above them.

    A subclass says how many panels there are, and draws into them.

    Attributes:
        rows: How many panels stand above each other; they share what is below them.
        columns: How many stand side by side.
        height: Of the page, in inches.
    """

    rows: ClassVar[int] = 1
    columns: ClassVar[int] = 1
    height: float = 2.9

    @abstractmethod
    def draw(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        """Draw into *panels*, and give what the legend is to name."""

    def figure(self) -> Figure:
        """
        Draw it as a new matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """
        require_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # an extra
        from matplotlib.figure import Figure  # noqa: PLC0415  # an extra

        with _settings():
            figure = Figure(figsize=(_WIDTH, self.height), layout="constrained")
            FigureCanvasAgg(figure)
            grid = figure.subplots(self.rows, self.columns, squeeze=False, sharex=self.rows > 1)
            panels: list[Axes] = grid.ravel().tolist()
            for axes in panels:
                axes.spines[["top", "right"]].set_visible(False)
                # Said here and not by a setting: ticks may be made when the figure is drawn.
                axes.grid(visible=True, color=GUIDE, linewidth=0.8)
                axes.tick_params(
                    color=FAINT, labelcolor=QUIET, labelsize=_SMALL_PT, labelfontfamily=_FONT
                )
            named = list(self.draw(panels))
            if named:
                figure.legend(handles=named, loc="outside upper left", ncols=len(named))
        return figure

    def png(self) -> bytes:
        """
        Draw it as a PNG file's content.

        Raises:
            ImportError: matplotlib is not installed; names the extra.
        """
        require_matplotlib()
        with _settings():
            return super().png()


@contextmanager
def _settings() -> Generator[None]:
    """The charts' settings of matplotlib; the user's own make no difference, and are left alone."""
    import matplotlib as mpl  # noqa: PLC0415  # an extra

    with mpl.rc_context():
        mpl.rcdefaults()
        cast("Any", mpl.rcParams).update(_STYLE)
        yield


_STYLE = {
    "font.family": [_FONT],
    "font.size": _SMALL_PT,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": QUIET,
    "axes.labelsize": _SMALL_PT,
    "axes.titlecolor": INK,
    "axes.titlesize": TEXT_PT,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.fontsize": TINY_PT + 1,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
}


def title_panel(axes: Axes, title: str, x_label: str = "") -> None:
    """Name what a panel shows, with its unit, and what it is shown against."""
    axes.set_title(title)
    if x_label:
        axes.set_xlabel(x_label)


def mark_target(axes: Axes, target: float | None) -> None:
    """Draw a latency target as a line across the panel, named at its left end."""
    if target is None:
        return
    axes.axhline(target, color=INK, linewidth=1.0, linestyle=(0, (1, 2)))
    axes.annotate(
        "target",
        (0.02, target),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        color=INK,
    )


def plain_logarithm(axes: Axes) -> None:
    """Make the vertical axis logarithmic, labelled in numbers without powers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter  # noqa: PLC0415  # an extra

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


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
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
