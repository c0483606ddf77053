"""Marbles as they are drawn."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from reactivex import operators as ops

from operators import annotate_errors, deferred_abort, limit_tokens, until_terminal
from operators.authoring import AnyOperator
from rx_backend import Annotated, LLMEngineOutput
from rx_backend.pictures import MarblePicture, MarbleRow, MarbleRun
from rx_backend.testing import MarbleEvent
from tests.rx_backend.pictures._help import (
    Box,
    artists,
    box,
    drawn,
    fill,
    find,
    middle,
    off_the_page,
    overlap,
    overlapping_texts,
    texts,
)

CHUNKS = {
    "h": LLMEngineOutput(),
    "1": LLMEngineOutput.token(1),
    "2": LLMEngineOutput.token(2),
    "T": LLMEngineOutput.stop(),
}


def test_what_happens_at_the_same_time_stands_below_each_other() -> None:
    """One time axis for all rows, evenly spaced, from the source down to the result."""
    figure = MarbleRun("-a-b-c-|").pipe(ops.map(str.upper)).figure()
    places = [middle(figure, f"source {frame} {item}") for frame, item in ((1, "a"), (3, "b"))]
    results = [middle(figure, f"result {frame} {item}") for frame, item in ((1, "A"), (3, "B"))]
    assert [x for x, _ in places] == pytest.approx([x for x, _ in results])
    assert middle(figure, "axis 3")[0] == pytest.approx(places[1][0], abs=0.02)
    steps = {
        round(middle(figure, f"axis {n + 1}")[0] - middle(figure, f"axis {n}")[0], 1)
        for n in range(7)
    }
    assert len(steps) == 1
    source, operators, result = (
        middle(figure, name)[1] for name in ("source 1 a", "title map", "result 1 A")
    )
    assert source < operators < result


def test_the_same_item_has_the_same_colour() -> None:
    """In every row, in both cases of a letter, and in a chunk of several."""
    figure = MarbleRun("-a-b-|").pipe(ops.map(str.upper)).figure()
    assert fill(figure, "source 1 a") == fill(figure, "result 1 A")
    assert fill(figure, "source 1 a") != fill(figure, "source 3 b")


def test_ends_drops_and_errors_have_marks() -> None:
    """A bar, a broken bar and a cross, with the words that a reader needs."""
    run = MarbleRun("-a-#", error=ConnectionError("gone"))
    figure = run.pipe(ops.map(str.upper)).figure()
    assert {"source 3 error", "result 3 error"} <= set(drawn(figure))
    assert find(figure, "result 3 note").get_text() == "ConnectionError"
    figure = MarbleRun("-a-b-|").pipe(ops.map(str.upper), drop="--!").figure()
    assert {"source 2 drop", "result 2 drop"} <= set(drawn(figure))
    assert find(figure, "source 2 note").get_text() == "closed"
    assert find(figure, "result 2 note").get_text() == "dropped"
    figure = MarbleRun("-a-|").pipe(ops.map(str.upper)).figure()
    line, end = box(figure, find(figure, "result line")), middle(figure, "result 3 end")
    assert line[2] == pytest.approx(end[0], abs=0.05)


def test_chunks_show_their_tokens() -> None:
    """A handshake is empty, a terminal says its reason, an envelope has corners."""
    run = MarbleRun("-h-1-2-(T|)", values=CHUNKS)
    abort = run.effect("abort")
    figure = run.pipe(
        limit_tokens(2),
        deferred_abort(abort, stop=run.input("stop", "s---")),
        annotate_errors(Annotated, Annotated.from_error),
    ).figure()
    written = [text.get_text() for text in texts(figure)]
    assert {"1", "2", "length", "stop"} <= set(written)
    names = drawn(figure)
    assert "source 1 empty" in names
    assert "result 3 [1] frame" in names
    assert "source 3 1 frame" not in names
    assert names.count("result 5 [2 length]") == 2
    assert "abort 3 mark" in names
    assert middle(figure, "abort 3 mark")[0] == pytest.approx(middle(figure, "source 3 1")[0])


def test_busy_stretches_are_drawn_only_where_somebody_rests() -> None:
    """They reach from the question to the answer; a legend says what they are."""
    figure = MarbleRun("-a-b-|").fuse(takes=3).figure()
    stretch = box(figure, find(figure, "source 4-6 busy"))
    assert stretch[0] == pytest.approx(middle(figure, "axis 4")[0], abs=0.02)
    assert stretch[2] == pytest.approx(middle(figure, "source 6 b")[0], abs=0.02)
    assert "the consumer is busy" in [text.get_text() for text in texts(figure)]
    prompt = MarbleRun("-a-b-|").fuse(ops.map(str.upper)).figure()
    assert [name for name in drawn(prompt) if name.endswith("busy")] == []


def test_a_long_list_of_operators_is_wrapped() -> None:
    """Their names take several lines within the box."""
    chain: list[AnyOperator] = [until_terminal(), *[ops.map(str)] * 12]
    figure = MarbleRun("-1-|", values=CHUNKS).fuse(*chain).figure()
    frame = box(figure, find(figure, "operators"))
    lines = [text for text in texts(figure) if (text.get_gid() or "").startswith("title")]
    assert len(lines) > 1
    for line in lines:
        left, top, right, bottom = box(figure, line)
        assert frame[0] < left < right < frame[2]
        assert frame[1] < top < bottom < frame[3]


def rows() -> st.SearchStrategy[list[MarbleRow]]:
    items = st.one_of(
        st.sampled_from("abc"),
        st.integers(0, 200_000).map(LLMEngineOutput.token),
        st.lists(st.integers(0, 9999), max_size=3).map(lambda ids: LLMEngineOutput(token_ids=ids)),
        st.just(LLMEngineOutput.stop()),
        st.just(Annotated.from_error(ValueError("gone"))),
        st.text("wm$_^{\\", min_size=1, max_size=20),
    )
    happening = st.tuples(st.integers(0, 30), items)
    ends = st.sampled_from(["completed", "error", "drop", None])

    def row(name: str, happenings: list[tuple[int, object]], end: str | None) -> MarbleRow:
        events = [
            MarbleEvent(frame, "next", item)
            for frame, item in sorted(happenings, key=lambda one: one[0])
        ]
        if end is not None:
            last = events[-1].frame if events else 2
            error = ConnectionError() if end == "error" else None
            events.append(MarbleEvent(last, end, error))  # type: ignore[arg-type]
        return MarbleRow(name, "result" if name == "result" else "source", tuple(events))

    one = st.builds(row, st.just("source"), st.lists(happening, max_size=6), ends)
    other = st.builds(row, st.just("result"), st.lists(happening, max_size=6), ends)
    return st.tuples(one, other).map(list)


@settings(max_examples=25)
@given(rows(), st.sampled_from(["", "map", "a_rather_long_name  →  another"]))
def test_nothing_is_drawn_over_anything_else(shown: list[MarbleRow], title: str) -> None:
    """Whatever happens, items and texts have room, and stay on the page."""
    figure = MarblePicture(shown, title=title).figure()
    assert overlapping_texts(figure) == []
    assert off_the_page(figure) == []
    for row in shown:
        assert crowded(figure, row) == []


def crowded(figure: Figure, row: MarbleRow) -> list[tuple[str, str]]:
    """Items and ends of a row that lie on each other; but for those in the frame of a chunk."""
    frames = {str(event.frame) for event in row.events}
    places: list[tuple[str, Box]] = []
    for artist in artists(figure):
        name = artist.get_gid() or ""
        if name.startswith(f"{row.name} ") and name.split(" ")[1] in frames:
            places.append((name, box(figure, artist)))
    return [
        (one, other)
        for (one, here), (other, there) in combinations(places, 2)
        if overlap(here, there, by=0.02) and f"{other} frame" != one and f"{one} frame" != other
    ]


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    """Also with other settings of matplotlib, and without a word about its version."""
    import matplotlib as mpl

    others: Any = mpl
    picture = MarbleRun("-a-|").pipe(ops.map(str.upper))
    picture.save(tmp_path / "picture.png")
    image = (tmp_path / "picture.png").read_bytes()
    with others.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "red"}):
        assert picture.png() == image
    assert image.startswith(b"\x89PNG")
    assert b"atplotlib" not in image


@pytest.mark.needs("IPython")
def test_a_notebook_shows_it_at_half_its_dots() -> None:
    """IPython gets the image, and the size in which it is as large as it was drawn."""
    from IPython.core.formatters import DisplayFormatter

    formatter: Any = DisplayFormatter()
    picture = MarbleRun("-a-|").pipe(ops.map(str.upper))
    data, metadata = formatter.format(picture)
    assert data["text/plain"] == repr(picture)
    assert data["image/png"] == picture.png()
    width, height = picture.figure().get_size_inches()
    size = metadata["image/png"]
    assert (size["width"], size["height"]) == pytest.approx((width * 96, height * 96), abs=1)


def test_without_matplotlib_there_is_still_the_text() -> None:
    """Pictures are made and printed; drawing one names the extra."""
    code = """
import sys
sys.modules["matplotlib"] = None
from reactivex import operators as ops
from rx_backend.pictures import MarbleRun, Timeline
picture = MarbleRun("-a-|").pipe(ops.map(str.upper))
print(picture)
for picture in (picture, Timeline()):
    try:
        picture.png()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    asked = "pictures need the package matplotlib: pip install 'rx-backend[plot]'"
    assert done.stdout.splitlines() == ["source  -a-|", "result  -A-|", asked, asked], done.stderr
