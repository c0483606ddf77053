"""The colours, sizes and settings of every picture and chart, and texts that fit their places."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

__all__ = (
    "BLUSH",
    "FAINT",
    "FAULT",
    "GROUND",
    "GUIDE",
    "INK",
    "PALE",
    "QUIET",
    "SMALL_PT",
    "STRONG",
    "TEXT_PT",
    "applied",
    "one_line",
    "paler",
    "shorten",
    "text_width",
)

# Paul Tol's schemes, for any kind of colour vision.
PALE = ("#99ddff", "#ee8866", "#eedd88", "#44bb99", "#ffaabb", "#77aadd", "#bbcc33", "#aaaa00")
"""The colours under dark text."""

STRONG = ("#4477aa", "#cc7722", "#228833", "#aa3377", "#33a0c0", "#887711")
"""The colours on white."""

INK, QUIET, FAINT, GUIDE, FAULT = "#22262b", "#6b6f76", "#8f949b", "#e6e9ec", "#c0321f"
BLUSH, GROUND = "#fbe9e6", "#f3f4f6"
TEXT_PT, SMALL_PT = 10.0, 8.5
# The first comes with matplotlib; the others have what it lacks, where one is installed.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "Arial Unicode MS")

_SETTINGS = {
    "font.size": SMALL_PT,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": QUIET,
    "axes.labelsize": SMALL_PT,
    "axes.titlesize": TEXT_PT,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GUIDE,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "lines.solid_capstyle": "butt",
}


@contextmanager
def applied() -> Generator[None]:
    """Apply these settings alone, and restore the user's own; what no font has is drawn as a box."""
    import matplotlib  # noqa: ICN001, PLC0415  # an extra
    from matplotlib.font_manager import fontManager  # noqa: PLC0415  # an extra

    mpl: Any = matplotlib
    installed = {font.name for font in fontManager.ttflist}
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        mpl.rcParams["font.family"] = [name for name in _FONTS if name in installed]
        yield


@lru_cache(4096)
def text_width(text: str, size: float = SMALL_PT) -> float:
    """Return the width of a text, in inches."""
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415  # an extra
    from matplotlib.textpath import text_to_path  # noqa: PLC0415  # an extra

    font = FontProperties(size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def one_line(text: str) -> str:
    """Return *text* without white space but single blanks, and without what has no encoding."""
    return " ".join(text.encode(errors="replace").decode().split())


def shorten(text: str, room: float, size: float = SMALL_PT) -> str:
    """Return *text* on one line, cut to *room* inches; what is cut ends in "…"."""
    line = whole = one_line(text)[:200]
    while line and text_width(line if line == whole else f"{line}…", size) > room:
        line = line[:-1]
    return line if line == whole else f"{line.rstrip()}…"


def paler(color: str) -> tuple[float, float, float]:
    """Return a tint of *color* that dark text can be read on."""
    from matplotlib.colors import to_rgb  # noqa: PLC0415  # an extra

    red, green, blue = (1 - (1 - part) / 4 for part in to_rgb(color))
    return red, green, blue
