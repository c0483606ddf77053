"""Timelines: what is noted, and how it is drawn."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rx_backend import EngineAdapter, PreprocessedRequest
from rx_backend.engines import SampleEngine
from rx_backend.pictures import Mark, Timeline
from rx_backend.protocols import StopConditions
from rx_backend.testing import run_virtual
from tests.rx_backend.pictures._help import box, drawn, find, middle, texts, unreadable


def ticking(*times_s: float) -> Timeline:
    """Return a timeline whose clock reads these times, one after the other."""
    return Timeline(clock=iter(times_s).__next__)


def timeline_of(marks: list[Mark]) -> Timeline:
    timeline = Timeline()
    timeline._marks.extend(marks)  # pyright: ignore[reportPrivateUsage]
    return timeline


def test_time_is_that_of_the_loop() -> None:
    """A real request in virtual time: its tokens come when the engine says, to the millisecond."""
    timeline = Timeline()

    async def main() -> None:
        engine = SampleEngine(token_interval_ms=20)
        await engine.start(worker_id=0)
        request = PreprocessedRequest(token_ids=[1], stop_conditions=StopConditions(max_tokens=3))
        await asyncio.sleep(7)
        with timeline.span("client", "reads"):
            stream = await EngineAdapter(engine).generate(request)
            async for _ in stream:
                timeline.mark("stream")
        timeline.mark("stream", "through", kind="end")
        await engine.cleanup()

    run_virtual(main())
    assert repr(timeline).splitlines() == [
        "client",
        "    0 ms to 60 ms reads",
        "stream",
        "    20 ms to 60 ms x 3",
        "    60 ms through (end)",
    ]


def test_time_counts_from_the_first_entry() -> None:
    """Not from when the timeline was made; in milliseconds, without digits that mean nothing."""
    timeline = ticking(17.1, 17.1 + 0.1 + 0.2)
    timeline.mark("a")
    timeline.mark("b", "later", kind="error")
    assert timeline.entries == [Mark("a", 0.0), Mark("b", 300.0, "later", "error")]


def test_a_clock_is_a_function() -> None:
    """A reading of one is refused when the picture is made."""
    reading: Any = 0.0
    with pytest.raises(TypeError, match=r"Timeline: clock: expected a function or None, got 0\.0"):
        Timeline(reading)


def test_without_a_loop_time_is_monotonic() -> None:
    """As in a script."""
    timeline = Timeline()
    timeline.mark("a")
    timeline.mark("a")
    first, second = timeline.entries
    assert first.at == 0.0 <= second.at < 60_000


def test_a_span_ends_however_its_block_does() -> None:
    """Also by an exception, which is raised further; one that lasts has no end yet."""
    timeline = ticking(0.0, 0.01, 0.03, 0.04)
    with timeline.span("engine", "request"):
        with pytest.raises(ConnectionError), timeline.span("engine", "prefill"):
            raise ConnectionError
        lasting, figure = repr(timeline), timeline.figure()
    assert lasting.splitlines() == ["engine", "    0 ms open request", "    10 ms to 30 ms prefill"]
    assert "request …" in {text.get_text() for text in texts(figure)}
    bar, line = (box(figure, find(figure, f"engine {name}")) for name in ("0 span request", "line"))
    assert bar.x1 == pytest.approx(line.x1, abs=0.02)


def test_groups_share_a_clock() -> None:
    """Each request has its lanes; the whole has a heading for each, in order of the first."""
    timeline = ticking(0.0, 0.01, 0.02)
    first, second = timeline.group("request 1"), timeline.group("request 2")
    second.mark("client", "asks")
    first.mark("client", "asks")
    second.mark("engine")
    assert [entry.group for entry in first.entries] == ["request 1"]
    assert repr(first) == "client\n    10 ms asks"
    figure = timeline.figure()
    order = ("request 2", "request 2 engine", "request 1", "request 1 client")
    heights = [middle(figure, f"{name} name")[1] for name in order]
    assert heights == sorted(heights, reverse=True)
    assert "request 2 name" not in drawn(second.figure())


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_an_invalid_time_is_rejected(odd: float) -> None:
    """And nothing is noted."""
    timeline = Timeline(clock=iter([1.0, odd]).__next__)
    timeline.mark("client")
    with pytest.raises(ValueError, match=f"Timeline: clock: expected a finite time, got {odd}"):
        timeline.mark("client")
    assert len(timeline.entries) == 1


WRONG_TEXTS: list[tuple[str, Callable[[Any], object]]] = [
    ("lane", lambda line: line.mark(None)),
    ("label", lambda line: line.mark("tokens", [7])),
    ("lane", lambda line: line.span(5).__enter__()),
    ("label", lambda line: line.span("client", None).__enter__()),
    ("name", lambda line: line.group(1).mark("client")),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG_TEXTS)
def test_a_label_must_be_text(name: str, wrong: Callable[[Any], object]) -> None:
    """Where it is given, not where the picture is shown; and nothing is noted."""
    timeline = Timeline()
    with pytest.raises(TypeError, match=rf"Timeline: {name}: expected a string, got "):
        wrong(timeline)
    assert timeline.entries == []


@pytest.mark.parametrize("kind", ["stop", ["end"]])
def test_an_unknown_kind_is_rejected(kind: Any) -> None:
    """And nothing is noted; a timeline without entries can be shown all the same."""
    timeline = Timeline()
    with pytest.raises(ValueError, match="expected event, end, error or drop, got "):
        timeline.mark("client", kind=kind)
    assert timeline.entries == []
    assert repr(timeline) == "no entries"
    assert timeline.png().startswith(b"\x89PNG")


def test_positions_are_proportional_to_time() -> None:
    """Twice the time is twice the way; spans reach from their beginning to their end."""
    timeline = ticking(0.0, 0.0, 0.05, 0.1)
    timeline.mark("client", "asks")
    with timeline.span("engine", "prefill"):
        timeline.mark("abort", "now", kind="drop")
    figure = timeline.figure()
    start, half, end = (middle(figure, f"axis {ms}")[0] for ms in (0, 50, 100))
    assert half - start == pytest.approx(end - half, abs=0.02)
    assert middle(figure, "client 0 event asks")[0] == pytest.approx(start, abs=0.01)
    assert middle(figure, "abort 50 drop now")[0] == pytest.approx(half, abs=0.02)
    bar = box(figure, find(figure, "engine 0 span prefill"))
    assert (bar.x0, bar.x1) == pytest.approx((start, end), abs=0.02)
    label = box(figure, find(figure, "engine label prefill"))
    assert label.y0 > bar.y1


def test_long_times_stay_on_the_page() -> None:
    """Also where the last one stands at the end of the axis."""
    mark = Mark("client", 2_900_000.0, "asks")
    mark.kind, mark.until = "span", 6_000_000.0
    assert unreadable(timeline_of([mark]).figure()) == []


def test_labels_without_room_are_omitted_and_counted() -> None:
    """Four stand above each other; those of errors and ends stay, and every mark does."""
    marks = [Mark("client", n / 10, f"token {n}") for n in range(300)]
    marks += [Mark("client", 15.0, "gone", "error"), Mark("client", 30.0, "through", "end")]
    figure = timeline_of(marks).figure()
    shown = [text.get_text() for text in texts(figure)]
    labels = {"gone", "through", *(f"token {n}" for n in range(300))} & set(shown)
    assert {"gone", "through"} <= labels
    assert 20 < len(labels) < 60
    assert f"client (+{len(marks) - len(labels)} labels)" in shown
    assert len([name for name in drawn(figure) if " event token " in name]) == 300
    assert figure.get_size_inches()[1] < 2


def entries() -> st.SearchStrategy[list[Mark]]:
    words = st.text("wmil$_^{ \n", max_size=80)
    lanes, groups = (
        st.sampled_from(["client", "engine", "w" * 60]),
        st.sampled_from(["", "request 1"]),
    )
    times = st.integers(0, 300).map(float)
    kinds: Any = st.sampled_from(["event", "end", "error", "drop"])

    def span(mark: Mark, duration: float | None) -> Mark:
        mark.kind, mark.until = "span", None if duration is None else mark.at + duration
        return mark

    marks = st.builds(Mark, lanes, times, words, kinds, group=groups)
    return st.lists(marks | st.builds(span, marks, st.none() | times), max_size=40)


@pytest.mark.timeout(120)
@settings(max_examples=12, deadline=None)
@given(entries(), st.sampled_from([1e-3, 1.0, 1e5]), st.integers(50, 300))
def test_labels_do_not_overlap(noted: list[Mark], scale: float, dpi: int) -> None:
    """Whatever happens, however fast, and however sharp: all can be read."""
    for mark in noted:
        mark.at *= scale
        mark.until = None if mark.until is None else mark.until * scale
    figure = timeline_of(noted).figure()
    assert unreadable(figure, dpi) == []
    assert len(texts(figure)) >= len({entry.lane for entry in noted})
