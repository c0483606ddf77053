"""
The colours and sizes of the pictures.

Colours are from Paul Tol's schemes, which people with any kind of colour vision can tell apart: the
pale ones carry dark text, the strong ones stand on white.
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = (
    "BUSY",
    "FAINT",
    "FAULT",
    "GUIDE",
    "INK",
    "OPERATOR",
    "PALE",
    "QUIET",
    "STRONG",
    "TEXT_PT",
    "TINY_PT",
    "Colors",
    "paler",
)

PALE = (
    "#99ddff",
    "#ee8866",
    "#eedd88",
    "#44bb99",
    "#ffaabb",
    "#77aadd",
    "#bbcc33",
    "#aaaa00",
)
STRONG = ("#4477aa", "#cc7722", "#228833", "#aa3377", "#33a0c0", "#887711")

INK = "#22262b"
QUIET = "#6b6f76"
FAINT = "#8f949b"
GUIDE = "#eceef0"
OPERATOR = "#f3f4f6"
FAULT = "#c0321f"
BUSY = ("#d5e4f2", "#f6e3bd")
"""Behind a row while it is at work: a source, and a consumer."""

TEXT_PT = 10.0
TINY_PT = 8.0


class Colors:
    """
    A colour for each thing, in the order in which they are first asked for.

    >>> colors = Colors(["red", "blue"])
    >>> colors["a"], colors["b"], colors["a"]
    ('red', 'blue', 'red')
    """

    def __init__(self, colors: tuple[str, ...] | list[str]) -> None:
        self._colors = colors
        self._given: dict[Hashable, str] = {}

    def __getitem__(self, thing: Hashable) -> str:
        return self._given.setdefault(thing, self._colors[len(self._given) % len(self._colors)])


def paler(color: str) -> str:
    """
    Give a tint of a colour that dark text can be read on.

    >>> paler("#4477aa")
    '#d0ddea'
    """
    parts = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - part) / 4):02x}" for part in parts)
