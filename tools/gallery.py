"""
Draw the operators: each one's marble picture, from a run of the diagram in its docstring.

The operators are made and played as in ``tests/test_docstring_diagrams.py``, so an operator that is
tested there has a picture. ``make docs`` writes the pages and their pictures.
"""

from __future__ import annotations

import colorsys
import inspect
import json
import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from reactivex import Observable

import operators
from rx_backend.pictures import MarblePicture, MarbleRow, style
from rx_backend.testing import MarbleEvent, parse_marbles
from rx_backend.testing.marble_source import MarbleSource
from tests import test_docstring_diagrams as diagrams
from tests.diagrams import MarbleDiagram, read_diagrams
from tools.document import ROOT
from tools.reference import summary

__all__ = ("dark", "groups", "names", "picture", "svg", "write")

# How light the marbles are on a dark page, where their letters are light.
_GROUND_OF_TEXT = 0.3
_OTHERS = "Parts of the standard pipeline"
_INTRODUCTION = """\
# Operator gallery

Every operator of the package `operators`, drawn from a run in virtual time. Circles are chunks with
their token ids or texts, white ones have no content. Corners mark an envelope or a bare terminal, a
bar is the end of a stream, a cross an error, a broken bar a stream that was closed, and a diamond a
call. [Operators](../docs/operators.md) tells how they are put together.
"""


def names() -> list[str]:
    """Return the names of the operators: of what shows a diagram."""
    return [name for name in operators.__all__ if read_diagrams(getattr(operators, name).__doc__)]


def groups() -> dict[str, list[str]]:
    """Return the operators by what they are for, as docs/operators.md has them."""
    found: dict[str, list[str]] = {}
    group = ""
    for line in (ROOT / "docs/operators.md").read_text().splitlines():
        if heading := re.match(r"\| \*\*(.+)\*\* \|", line):
            group = heading[1]
        elif group and line.startswith("| `"):
            named = re.findall(r"\w+", line.split(" | ")[0])
            found.setdefault(group, []).extend(name for name in named if name in names())
    listed = {name for group in found.values() for name in group}
    found[_OTHERS] = [name for name in names() if name not in listed]
    return {group: named for group, named in found.items() if named}


def picture(name: str, diagram: MarbleDiagram) -> MarblePicture:
    """Run an operator on the inputs of a diagram, and return what happened."""
    scene = diagrams.Scene()
    values = {**diagrams.LETTERS, **diagrams.OWN_LETTERS.get(name, {})}
    scene.test.values = values
    play = diagrams.PLAYS[name](scene)
    sources: list[MarbleSource] = []

    def played(*inputs: Any) -> Observable[Any]:
        sources.extend(inputs)
        return play(*inputs)

    result = diagram.play(scene.test, played)
    rows = [
        *map(_input, diagram.inputs, sources),
        MarbleRow("result", "result", result.events),
        *(_commentary(row, line, values) for row, line in scene.told.items()),
    ]
    return MarblePicture(rows, title=name, values=values)


def svg(drawn: MarblePicture) -> str:
    """Return a picture as SVG, without a ground of its own."""
    figure: Any = drawn.figure()
    file = StringIO()
    with style.applied():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def dark(image: str) -> str:
    """
    Return an SVG image for a dark page: each colour with its lightness turned round.

    >>> dark("fill: #ffffff; stroke: #22262b")
    'fill: #141414; stroke: #d2d6dc'
    """
    return re.sub(r"#[0-9a-f]{6}\b", lambda color: _turned(color[0]), image)


def write(folder: Path) -> None:
    """Write the gallery: a page for each operator, ``index.md`` and the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [_INTRODUCTION]
    for group, named in groups().items():
        lines += [f"## {group}", ""]
        for name in named:
            images = _draw(folder, name)
            (folder / f"{name}.md").write_text(_page(name, images))
            lines += [f"### [`{name}`]({name}.md)", "", summary(getattr(operators, name)), ""]
            lines += [_shown(*images[0])]
    lines += ["```{toctree}", ":hidden:", "", *sorted(names()), "```", ""]
    (folder / "index.md").write_text("\n".join(lines))


def _input(name: str, source: MarbleSource) -> MarbleRow:
    """Return what a source played: all of it, or as far as the operator listened."""
    if name == "source":
        return MarbleRow(name, "source", source.played.events)
    return MarbleRow(name, "input", source.line.events)


def _commentary(row: str, line: str, values: Mapping[str, Any]) -> MarbleRow:
    """Return a row below the result: what one more reader got, which has an end, or calls."""
    if line.endswith(("|", "#")):
        return MarbleRow(row, "result", parse_marbles(line, values).events)
    return MarbleRow(row, "effect", _effects(line, values))


def _effects(line: str, values: Mapping[str, Any]) -> tuple[MarbleEvent, ...]:
    """Read a row of commentary: a call, letters at their frames, or one text."""
    told = line.lstrip("-")
    begin = len(line) - len(told)
    if re.fullmatch(r"\w(\s+\w)*", told):
        letters = [(begin + each.start(), each[0]) for each in re.finditer(r"\w", told)]
    else:
        letters = [(begin, told)]
    return tuple(
        MarbleEvent(frame, "next", None if letter == "!" else values.get(letter, letter))
        for frame, letter in letters
    )


def _draw(folder: Path, name: str) -> list[tuple[str, str]]:
    """Write an operator's pictures; return the name of each, and its text."""
    images: list[tuple[str, str]] = []
    for number, diagram in enumerate(read_diagrams(getattr(operators, name).__doc__), 1):
        drawn = picture(name, diagram)
        image = svg(drawn)
        stem = f"{name}-{number}"
        (folder / f"{stem}-light.svg").write_text(image)
        (folder / f"{stem}-dark.svg").write_text(dark(image))
        images.append((stem, str(drawn)))
    return images


def _shown(stem: str, text: str) -> str:
    """Return the Markdown of a picture, light and dark, with its text for those who can't see it."""
    alt = json.dumps(" ".join(text.split()))
    images = "".join(
        f"```{{image}} {stem}-{theme}.svg\n:class: only-{theme}\n:alt: {alt}\n```\n"
        for theme in ("light", "dark")
    )
    return f"````{{container}} marbles\n{images}````\n"


def _page(name: str, images: list[tuple[str, str]]) -> str:
    parts = [f"# `{name}`\n", *(_shown(*image) for image in images)]
    kind = "class" if inspect.isclass(getattr(operators, name)) else "function"
    parts.append(f"```{{eval-rst}}\n.. auto{kind}:: operators.{name}\n```\n")
    return "\n".join(parts)


def _turned(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    lightness = _GROUND_OF_TEXT if color in style.PALE else 0.08 + (1 - lightness) * 0.88
    turned = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(part * 255):02x}" for part in turned)
