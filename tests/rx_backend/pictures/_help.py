"""What the tests of the pictures look for in a figure."""

from __future__ import annotations

from typing import Any, cast

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

Box = tuple[float, float, float, float]
"""Left, top, right and bottom on the page, in inches; y grows downwards."""


def drawn(figure: Figure) -> list[str]:
    """The names of what is drawn."""
    return [gid for artist in artists(figure) if (gid := artist.get_gid())]


def artists(figure: Figure) -> list[Artist]:
    return [artist for artist in figure.findobj() if not isinstance(artist, Figure)]


def find(figure: Figure, name: str) -> Any:
    """What is drawn under a name, once."""
    (found,) = [artist for artist in artists(figure) if artist.get_gid() == name]
    return found


def box(figure: Figure, artist: Artist) -> Box:
    """Where it is on the page."""
    renderer = cast("Any", figure.canvas).get_renderer()
    extent: Bbox = artist.get_window_extent(renderer)
    height = figure.get_size_inches()[1]
    left, right = extent.x0 / figure.dpi, extent.x1 / figure.dpi
    return left, height - extent.y1 / figure.dpi, right, height - extent.y0 / figure.dpi


def middle(figure: Figure, name: str) -> tuple[float, float]:
    left, top, right, bottom = box(figure, find(figure, name))
    return (left + right) / 2, (top + bottom) / 2


def overlap(one: Box, other: Box, *, by: float = 0.005) -> bool:
    across = min(one[2], other[2]) - max(one[0], other[0])
    along = min(one[3], other[3]) - max(one[1], other[1])
    return across > by and along > by


def texts(figure: Figure) -> list[Text]:
    """Everything written, without what is empty."""
    return [artist for artist in artists(figure) if isinstance(artist, Text) and artist.get_text()]


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    written = [(text.get_text(), box(figure, text)) for text in texts(figure)]
    return [
        (one, other)
        for place, (one, here) in enumerate(written)
        for other, there in written[place + 1 :]
        if overlap(here, there)
    ]


def off_the_page(figure: Figure) -> list[str]:
    width, height = figure.get_size_inches()
    found: list[str] = []
    for text in texts(figure):
        left, top, right, bottom = box(figure, text)
        if left < 0 or top < 0 or right > width or bottom > height:
            found.append(text.get_text())
    return found


def fill(figure: Figure, name: str) -> tuple[float, ...]:
    circle = find(figure, name)
    assert isinstance(circle, Circle)
    return tuple(cast("Any", circle).get_facecolor())
