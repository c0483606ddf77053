"""What the tests of pictures and charts look for in a figure; all places are in inches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, cast

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
    """The names of what is drawn."""
    return [gid for artist in figure.findobj() if (gid := artist.get_gid())]


def find(figure: Figure, name: str) -> Any:
    """What is drawn under a name, once."""
    (found,) = [artist for artist in figure.findobj() if artist.get_gid() == name]
    return found


def box(figure: Figure, artist: Artist) -> Bbox:
    """Where it is on the page, from the bottom left corner; with its frame, if it has one."""
    patch = artist.get_bbox_patch() if isinstance(artist, Text) else None
    renderer = cast("Any", figure.canvas).get_renderer()
    extent = (artist if patch is None else patch).get_window_extent(renderer)
    return Bbox(extent.get_points() / figure.dpi)


def middle(figure: Figure, name: str) -> tuple[float, float]:
    """The middle of what is drawn under a name; y grows upwards."""
    place = box(figure, find(figure, name))
    return (place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2


def texts(figure: Figure) -> list[Text]:
    """Everything that can be read."""
    figure.draw_without_rendering()
    hidden = _hidden(figure)
    found = [artist for artist in figure.findobj(Text) if isinstance(artist, Text)]
    return [
        text
        for text in found
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def _hidden(figure: Figure) -> set[int]:
    """Ticks beyond the ends of an axis, and axes that are off: matplotlib has them in hand."""
    hidden: list[Artist] = []
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(limits)
            for tick in axis.get_major_ticks():
                if not axes.axison or not low <= tick.get_loc() <= high:
                    hidden += tick.findobj()
    return {id(artist) for artist in hidden}


def unreadable(figure: Figure, dpi: float = 100) -> list[str]:
    """
    What can't be read, at a resolution.

    That is text upon text, text off the page, and text that a line or a mark crosses. A text in a
    frame of its own, and one on a bar, hide what is below them.
    """
    figure.dpi = dpi
    places = [(text, box(figure, text).padded(-0.005)) for text in texts(figure)]
    width, height = figure.get_size_inches()
    found = [
        f"{text.get_text()!r} is off the page"
        for text, at in places
        if at.x0 < 0 or at.y0 < 0 or at.x1 > width or at.y1 > height
    ]
    found += [
        f"{one.get_text()!r} is upon {other.get_text()!r}"
        for (one, here), (other, there) in combinations(places, 2)
        if _overlap(here, there)
    ]
    grounds = {id(figure.patch), *(id(axes.patch) for axes in figure.axes)}
    bars = [box(figure, bar) for bar in figure.findobj(Rectangle) if id(bar) not in grounds]
    lines = list(_lines(figure))
    ends = [[*line.vertices.min(axis=0), *line.vertices.max(axis=0)] for _, line in lines]
    edges = np.array(ends).reshape(-1, 4)
    for text, at in places:
        if text.get_bbox_patch() is not None or any(_is_on(at, bar) for bar in bars):
            continue
        is_near = (edges[:, 0] <= at.x1) & (edges[:, 2] >= at.x0)
        is_near &= (edges[:, 1] <= at.y1) & (edges[:, 3] >= at.y0)
        for place in np.flatnonzero(is_near):
            name, line = lines[place]
            if line.intersects_bbox(at, filled=False):
                found.append(f"{text.get_text()!r} is crossed by {name}")
    return found


def _is_on(at: Bbox, bar: Bbox) -> bool:
    return bar.contains(at.x0, at.y0) and bar.contains(at.x1, at.y1)


def _overlap(one: Bbox, other: Bbox, by: float = 0.01) -> bool:
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    along = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > by and along > by


def _lines(figure: Figure) -> Iterator[tuple[str, Path]]:
    """Lines and marks as paths; what is drawn in a panel ends at its edges."""
    hidden = _hidden(figure)
    for artist in figure.findobj(lambda one: isinstance(one, Line2D | LineCollection)):
        found: Any = artist
        if not found.get_visible() or id(found) in hidden:
            continue
        paths = found.get_paths() if isinstance(found, LineCollection) else [found.get_path()]
        for path in paths:
            vertices = found.get_transform().transform(path.vertices) / figure.dpi
            if found.axes is not None and found.get_clip_on():
                edges = found.axes.bbox.get_points() / figure.dpi
                vertices = np.clip(vertices, *edges)
            if isinstance(found, Line2D) and str(found.get_marker()) not in {"None", "", " "}:
                half = found.get_markersize() / 2 / 72
                for x, y in vertices:
                    yield str(found), Path([(x, y - half), (x, y + half)])
            if len(vertices) > 1:
                yield str(found.get_gid() or found), Path(vertices)
