"""What the tests of pictures and charts look for in a figure; all places are in inches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def drawn(figure: Figure) -> list[str]:
    """Return the names of what is drawn."""
    return [gid for artist in figure.findobj() if (gid := artist.get_gid())]


def find(figure: Figure, name: str) -> Any:
    """Return what is drawn under a name, once."""
    (found,) = [artist for artist in figure.findobj() if artist.get_gid() == name]
    return found


def box(figure: Figure, artist: Artist) -> Bbox:
    """Return where it is on the page, from the bottom left corner; with its frame, if it has one."""
    patch = artist.get_bbox_patch() if isinstance(artist, Text) else None
    extent = (artist if patch is None else patch).get_window_extent()
    return Bbox(extent.get_points() / figure.dpi)


def middle(figure: Figure, name: str) -> tuple[float, float]:
    """Return the middle of what is drawn under a name; y grows upwards."""
    place = box(figure, find(figure, name))
    return (place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2


def texts(figure: Figure) -> list[Text]:
    """Return everything that can be read."""
    figure.draw_without_rendering()
    found: list[Any] = figure.findobj(Text)
    return [text for text in _shown(figure, found) if text.get_text().strip()]


def _shown(figure: Figure, artists: list[Any]) -> list[Any]:
    """Leave out ticks beyond the ends of an axis, and axes that are off."""
    hidden: set[int] = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in axis.get_major_ticks():
                if not axes.axison or not min(limits) <= tick.get_loc() <= max(limits):
                    hidden |= {id(artist) for artist in tick.findobj()}
    return [one for one in artists if one.get_visible() and id(one) not in hidden]


def unreadable(figure: Figure, dpi: float = 100) -> list[str]:
    """
    Name what can't be read at a resolution: text that lies on text or off the page, or is crossed.

    A text in a frame of its own, and one on a bar, hide what is below them.
    """
    figure.dpi = dpi
    places = [(text, box(figure, text).padded(-0.005)) for text in texts(figure)]
    page = Bbox.from_bounds(0, 0, *figure.get_size_inches())
    found = [f"{text.get_text()!r} off the page" for text, at in places if not _is_in(at, page)]
    found += [
        f"{one.get_text()!r} on {other.get_text()!r}"
        for (one, here), (other, there) in combinations(places, 2)
        if overlap(here, there) > 0.01
    ]
    grounds = {id(figure.patch), *(id(axes.patch) for axes in figure.axes)}
    bars = [box(figure, bar) for bar in figure.findobj(Rectangle) if id(bar) not in grounds]
    lines = list(_lines(figure))
    edges = np.array([[line.min(axis=0), line.max(axis=0)] for line in lines]).reshape(-1, 4)
    for text, at in places:
        if text.get_bbox_patch() is None and not any(_is_in(at, bar) for bar in bars):
            low, high = edges[:, :2] <= at.max, edges[:, 2:] >= at.min
            near = np.flatnonzero(low.all(axis=1) & high.all(axis=1))
            if any(Path(lines[place]).intersects_bbox(at, filled=False) for place in near):
                found.append(f"{text.get_text()!r} crossed")
    return found


def overlap(one: Bbox, other: Bbox) -> float:
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    return min(across, min(one.y1, other.y1) - max(one.y0, other.y0))


def _is_in(inner: Bbox, outer: Bbox) -> bool:
    return outer.contains(inner.x0, inner.y0) and outer.contains(inner.x1, inner.y1)


def _lines(figure: Figure) -> Iterator[Any]:
    """Yield the points of lines and marks; what is drawn in a panel ends at its edges."""
    lines: list[Any] = figure.findobj(Line2D) + figure.findobj(LineCollection)
    for line in _shown(figure, lines):
        paths = line.get_paths() if isinstance(line, LineCollection) else [line.get_path()]
        for path in paths:
            points = line.get_transform().transform(path.vertices) / figure.dpi
            if line.axes is not None and line.get_clip_on():
                points = np.clip(points, *(line.axes.bbox.get_points() / figure.dpi))
            if isinstance(line, Line2D) and line.get_marker() not in {"None", "", " "}:
                half = (0, line.get_markersize() / 2 / 72)
                yield from (np.array([point - half, point + half]) for point in points)
            if len(points) > 1:
                yield points
