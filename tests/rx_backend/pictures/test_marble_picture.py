"""Marbles as they are drawn."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
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
from tests.rx_backend.pictures._help import box, drawn, find, middle, overlap, texts, unreadable

TOKENS = {str(n): LLMEngineOutput.token(n) for n in (1, 2)}
CHUNKS = {"h": LLMEngineOutput(), "T": LLMEngineOutput.stop(), **TOKENS}
Kind = Literal["next", "error", "completed", "drop"]


def fill(figure: Figure, name: str) -> object:
    return find(figure, name).get_bbox_patch().get_facecolor()


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def row_of(items: list[Any], *, start: int = 0, every: int = 1) -> MarbleRow:
    events = [MarbleEvent(start + n * every, "next", item) for n, item in enumerate(items)]
    return MarbleRow("source", "source", tuple(events))


def test_simultaneous_events_are_aligned() -> None:
    """One time axis for all rows, evenly spaced, from the source down to the result."""
    figure = MarbleRun("-a-b-c-|").pipe(ops.map(str.upper)).figure()
    sources = [
        middle(figure, f"source {n} item {item}")[0] for n, item in ((1, "a"), (3, "b"), (5, "c"))
    ]
    results = [
        middle(figure, f"result {n} item {item}")[0] for n, item in ((1, "A"), (3, "B"), (5, "C"))
    ]
    ticks = [middle(figure, f"axis {n}")[0] for n in (1, 3, 5)]
    assert sources == pytest.approx(results)
    assert ticks == pytest.approx(sources, abs=0.02)
    assert ticks[1] - ticks[0] == pytest.approx(ticks[2] - ticks[1], abs=0.02)
    names = ("source 1 item a", "operators title", "result 1 item A", "axis 1")
    heights = [middle(figure, name)[1] for name in names]
    assert heights == sorted(heights, reverse=True)


def test_the_same_item_has_the_same_colour() -> None:
    """In every row, in both cases of a letter, and at the beginning of a chunk of several."""
    figure = MarbleRun("-a-b-|").pipe(ops.map(str.upper)).figure()
    assert fill(figure, "source 1 item a") == fill(figure, "result 1 item A")
    assert fill(figure, "source 1 item a") != fill(figure, "source 3 item b")


def test_ends_drops_and_errors_have_marks() -> None:
    """A bar, a broken bar and a cross, with the words that a reader needs; the line ends there."""
    figure = MarbleRun("-a-#", error=ConnectionError("gone")).pipe(ops.map(str.upper)).figure()
    assert find(figure, "result label ConnectionError").get_text() == "ConnectionError"
    assert find(figure, "source 3 error ConnectionError").get_marker() == "x"
    figure = MarbleRun("-a-b-|").pipe(ops.map(str.upper), drop="--!").figure()
    assert {"source 2 drop closed", "result 2 drop dropped"} <= set(drawn(figure))
    assert {"closed", "dropped"} <= set(written(figure))
    figure = MarbleRun("-a-|--").pipe(ops.map(str.upper)).figure()
    assert find(figure, "result 3 end").get_marker() == "|"
    line, end = box(figure, find(figure, "result line")), middle(figure, "result 3 end")
    assert line.x1 == pytest.approx(end[0], abs=0.05)


def test_an_end_is_drawn_after_simultaneous_items() -> None:
    """Also after a wide item."""
    figure = MarbleRun("-(T|)", values=CHUNKS).pipe(ops.map(lambda item: item)).figure()
    assert box(figure, find(figure, "result 1 box stop")).x1 < middle(figure, "result 1 end")[0]


@pytest.mark.rows("F1")
def test_chunks_show_their_content() -> None:
    """Token ids or else the text, a finish reason, nothing for a handshake; corners for envelopes."""
    run = MarbleRun("-h-1-2-(T|)", values=CHUNKS)
    abort = run.effect("abort")
    figure = run.pipe(
        limit_tokens(2),
        deferred_abort(abort, stop=run.input("stop", "s---")),
        annotate_errors(Annotated, Annotated.from_error),
    ).figure()
    names = drawn(figure)
    assert {"source 1 item", "source 3 item 1", "result 3 box 1", "result 5 box 2 length"} <= set(
        names
    )
    assert find(figure, "abort 3 call").get_marker() == "D"
    assert middle(figure, "abort 3 call")[0] == pytest.approx(
        middle(figure, "source 3 item 1")[0], abs=0.01
    )
    items = [
        LLMEngineOutput(text=" the\ncat"),
        LLMEngineOutput(text="\n"),
        LLMEngineOutput(text="你\ud800"),
        LLMEngineOutput(token_ids=[7, 8], text="ignored"),
        LLMEngineOutput(content_parts=[{"type": "image_url"}, {"text": "seen"}]),
        Annotated(data=LLMEngineOutput(text="hm")),
        Annotated.from_error(ValueError("gone")),
        ("a", "b"),
        np.array([1, 2]),
    ]
    # Arrays can't be compared.
    values = {"x": np.array([3, 4])}
    found = written(MarblePicture([row_of(items, every=3)], values=values).figure())
    shown = [
        "the cat",
        "␣",
        "你?",
        "7 8",
        "image_url seen",
        "hm",
        "InvalidArgument",
        "a b",
        "[1 2]",
    ]
    assert [text for text in found if text in shown] == shown


def test_a_long_list_of_operators_is_wrapped() -> None:
    """Their names take several lines within the box."""
    chain: list[AnyOperator] = [until_terminal(), *[ops.map(str)] * 12]
    figure = MarbleRun("-1-|", values=CHUNKS).fuse(*chain).figure()
    frame, title = (box(figure, find(figure, name)) for name in ("operators", "operators title"))
    assert "\n" in find(figure, "operators title").get_text()
    assert overlap(frame, title) == pytest.approx(min(title.width, title.height))


def test_a_run_wider_than_a_page_continues_below() -> None:
    """As lines of music do: all rows again, with every item once, at a width that can be read."""
    rows = [row_of([LLMEngineOutput(text=f" w{n}") for n in range(150)])]
    figure = MarblePicture([*rows, MarbleRow("result", "result", rows[0].events)]).figure()
    names = drawn(figure)
    assert [names.count(f"source {n} item w{n}") for n in range(150)] == [1] * 150
    bands = names.count("source name")
    assert bands == names.count("result name") > 3
    width, height = figure.get_size_inches()
    assert width < 11
    assert height < 36
    first, last = middle(figure, "source 0 item w0"), middle(figure, "source 149 item w149")
    assert last[1] < first[1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("frames", "rows", "bands"), [(150, 4, 2), (3000, 2, 30)])
def test_items_of_runs_too_long_for_text_are_dots(frames: int, rows: int, bands: int) -> None:
    """The page is never taller than 36 inches for that."""
    row = row_of([LLMEngineOutput(text="is rather long")] * frames)
    figure = MarblePicture([row] * rows).figure()
    dots = [line for line in figure.axes[0].lines if line.get_gid() == "source dots"]
    assert sum(len(np.asarray(line.get_xdata())) for line in dots) == rows * frames
    assert written(figure).count("seconds") == bands
    assert not [text for text in figure.axes[0].texts if text.get_bbox_patch()]
    assert figure.get_size_inches()[1] <= 36


def test_of_many_items_at_one_time_the_first_are_drawn() -> None:
    """Four, and how many more; five are five."""
    events = tuple(MarbleEvent(1, "next", item) for item in "abcdefg")
    assert {"d", "+3"} <= set(
        written(MarblePicture([MarbleRow("source", "source", events)]).figure())
    )
    five = written(MarblePicture([MarbleRow("source", "source", events[:5])]).figure())
    assert {"d", "e"} <= set(five)


def rows() -> st.SearchStrategy[list[MarbleRow]]:
    words = st.text("wmil$_^{\\ \n", min_size=1, max_size=60)
    items = st.one_of(
        st.sampled_from("abc"),
        st.lists(st.integers(0, 200_000), max_size=9).map(
            lambda ids: LLMEngineOutput(token_ids=ids)
        ),
        words.map(lambda text: LLMEngineOutput(text=text)),
        st.sampled_from([LLMEngineOutput.stop(), Annotated.from_error(ValueError("gone"))]),
        words,
    )
    ends = st.sampled_from(["completed", "error", "drop", None])

    def row(
        name: str, kind: Any, happenings: list[tuple[int, object]], times: int, end: Kind | None
    ) -> MarbleRow:
        events = [
            MarbleEvent(frame + 40 * n, "next", item)
            for n in range(times)
            for frame, item in sorted(happenings, key=lambda one: one[0])
        ]
        if end is not None:
            last = events[-1].frame if events else 2
            events.append(MarbleEvent(last, end, ConnectionError() if end == "error" else None))
        return MarbleRow(name, kind, tuple(events))

    happenings = st.lists(st.tuples(st.integers(0, 39), items), max_size=6)
    kinds = st.sampled_from(["source", "input", "result", "effect"])
    return st.lists(
        st.builds(row, words, kinds, happenings, st.integers(1, 3), ends),
        min_size=1,
        max_size=4,
        unique_by=lambda row: row.name,
    )


@pytest.mark.timeout(120)
@settings(max_examples=12, deadline=None)
@given(
    rows(),
    st.sampled_from(["", "map", "a_rather_long_name  →  another " * 9]),
    st.integers(50, 300),
)
def test_nothing_overlaps(shown: list[MarbleRow], title: str, dpi: int) -> None:
    """Whatever happens, for how long, and however sharp: all can be read, and items stand apart."""
    figure = MarblePicture(shown, title=title).figure()
    assert unreadable(figure, dpi) == []
    framed = [box(figure, text) for text in texts(figure) if text.get_bbox_patch()]
    assert max((overlap(one, other) for one, other in combinations(framed, 2)), default=0) < 0.02


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    """Also with other settings of matplotlib, which stay, and without a word about its version."""
    picture = MarbleRun("-a-|").pipe(ops.map(str.upper))
    picture.save(tmp_path / "picture.png")
    image = (tmp_path / "picture.png").read_bytes()
    others: Any = mpl
    with others.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        assert picture.png() == image
        assert mpl.rcParams["font.size"] == 30
    assert image.startswith(b"\x89PNG")
    assert b"atplotlib" not in image


@pytest.mark.parametrize("name", ["m.gif.xyz", "m.svg", "m.png.jpg"])
def test_a_file_of_another_format_is_rejected(tmp_path: Path, name: str) -> None:
    """What is written is a PNG, so the name must not say that it is something else."""
    with pytest.raises(
        ValueError, match=rf"path: expected a name that ends in \.png, got .*{name}"
    ):
        MarbleRun("-a-|").pipe().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("IPython")
def test_a_notebook_shows_it_at_the_size_it_was_drawn() -> None:
    """IPython gets the image with more dots than the page has, and the size in which to show it."""
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
    """Pictures and charts are made and printed; drawing one names the extra."""
    code = """
import sys
sys.modules["matplotlib"] = None
from reactivex import operators as ops
from rx_backend.pictures import MarbleRun, Timeline
from rx_backend.replay import ReplayResult
from rx_backend.replay.plot import ReplayChart
picture = MarbleRun("-a-|").pipe(ops.map(str.upper))
print(picture)
for picture in (picture, Timeline(), ReplayChart(ReplayResult(), title="")):
    try:
        picture.png()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    asked = "a picture needs the package matplotlib: pip install 'rx-backend[plot]'"
    assert done.stdout.splitlines() == ["source  -a-|", "result  -A-|", *[asked] * 3], done.stderr
