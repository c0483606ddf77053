"""Timelines: what is noted, and how it is drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rx_backend import EngineAdapter, PreprocessedRequest
from rx_backend.engines import SampleEngine
from rx_backend.pictures import Timeline, TimelineMark, TimelineSpan
from rx_backend.protocols import StopConditions
from rx_backend.testing import run_virtual
from tests.rx_backend.pictures._help import (
    artists,
    box,
    drawn,
    find,
    middle,
    off_the_page,
    overlap,
    overlapping_texts,
    texts,
)


def ticking(*times_s: float) -> Timeline:
    """A timeline whose clock gives these times, one for each look at it."""
    return Timeline(clock=iter(times_s).__next__)


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
    times = [entry.at_ms for entry in timeline.entries if entry.lane == "stream"]
    assert times == [20.0, 40.0, 60.0, 60.0]
    assert repr(timeline).splitlines()[0] == " 0 ms  client  reads (until 60 ms)"
    assert repr(timeline).splitlines()[-1] == "60 ms  stream  through (end)"


def test_time_counts_from_the_first_thing() -> None:
    """Not from when the timeline was made; in milliseconds, without digits that mean nothing."""
    timeline = ticking(17.1, 17.1 + 0.1 + 0.2)
    timeline.mark("a")
    timeline.mark("b", "later", kind="error")
    assert timeline.entries == [
        TimelineMark("a", 0.0),
        TimelineMark("b", 300.0, "later", "error"),
    ]


def test_a_span_ends_however_its_block_does() -> None:
    """Also by an exception, which goes on; one that goes on has no end yet."""
    timeline = ticking(0.0, 0.01, 0.03, 0.04)
    with timeline.span("engine", "request"):
        with pytest.raises(ConnectionError), timeline.span("engine", "prefill"):
            raise ConnectionError
        going_on = repr(timeline)
    assert going_on.splitlines() == [
        " 0 ms  engine  request (still going on)",
        "10 ms  engine  prefill (until 30 ms)",
    ]


def test_marks_can_be_callbacks() -> None:
    """What calls without arguments is given a mark of its own."""
    timeline = ticking(0.0)
    call = partial(timeline.mark, "abort", "called")
    call()
    assert repr(timeline) == "0 ms  abort  called"


def test_groups_share_a_clock() -> None:
    """Each request has its lanes; the whole has a heading for each, in order of the first."""
    timeline = ticking(0.0, 0.01, 0.02)
    first, second = timeline.group("request 1"), timeline.group("request 2")
    second.mark("client", "asks")
    first.mark("client", "asks")
    second.mark("engine")
    assert [entry.group for entry in first.entries] == ["request 1"]
    assert repr(first) == "10 ms  client  asks"
    figure = timeline.figure()
    headings = [name for name in drawn(figure) if name.endswith("heading")]
    assert headings == ["request 2 heading", "request 1 heading"]
    assert middle(figure, "request 2 engine name")[1] < middle(figure, "request 1 heading")[1]
    assert not any(name.endswith("heading") for name in drawn(second.figure()))


def test_tokens_are_counted_in_the_text() -> None:
    """Neighbours without a label make one line."""
    timeline = ticking(0.0, 0.01, 0.02, 0.03)
    timeline.mark("client", "asks")
    for _ in range(3):
        timeline.mark("engine")
    assert repr(timeline).splitlines() == [" 0 ms  client  asks", "10 ms  engine  x 3, until 30 ms"]


def test_an_unknown_kind_is_told() -> None:
    """And nothing is noted."""
    timeline = Timeline()
    with pytest.raises(ValueError, match="expected event, end, error or drop, got 'stop'"):
        timeline.mark("client", kind="stop")  # type: ignore[arg-type]
    assert timeline.entries == []
    assert repr(timeline) == "nothing happened"
    assert timeline.png().startswith(b"\x89PNG")


def test_places_are_true_to_time() -> None:
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
    assert (bar[0], bar[2]) == pytest.approx((start, end), abs=0.02)
    text = box(figure, find(figure, "engine label prefill"))
    assert overlap(bar, text)


def test_a_label_without_room_stands_above() -> None:
    """A short span's, and that of one with tokens on it."""
    timeline = ticking(0.0, 0.05, 0.1, 0.2, 0.201)
    with timeline.span("engine", "decode"):
        timeline.mark("engine")
    with timeline.span("engine", "a short one"):
        pass
    figure = timeline.figure()
    for name in ("0 span decode", "200 span a short one"):
        bar = box(figure, find(figure, f"engine {name}"))
        text = box(figure, find(figure, f"engine label {name.split('span ')[1]}"))
        assert text[3] <= bar[1]


LABELS = st.sampled_from(
    ["", "stop", "first token", "Backend(Unknown): $gone^", "a much longer one"]
)
TIMES = st.integers(0, 300).map(float)


def entries() -> st.SearchStrategy[list[Any]]:
    lanes = st.sampled_from(["client", "engine"])
    groups = st.sampled_from(["", "request 1"])
    kinds = st.sampled_from(["event", "end", "error", "drop"])
    marks = st.builds(TimelineMark, lanes, TIMES, LABELS, kinds, groups)

    def span(lane: str, at: float, takes: float | None, label: str, group: str) -> TimelineSpan:
        return TimelineSpan(lane, at, None if takes is None else at + takes, label, group)

    spans = st.builds(
        span,
        lanes,
        TIMES,
        st.none() | TIMES,
        LABELS,
        groups,
    )
    return st.lists(marks | spans, max_size=9)


@settings(max_examples=25)
@given(entries())
def test_nothing_is_written_over_anything_else(noted: Iterable[Any]) -> None:
    """Whatever happens, labels have room, overlapping spans too, and all stays on the page."""
    timeline = Timeline()
    timeline._notes.entries.extend(noted)  # pyright: ignore[reportPrivateUsage]
    figure = timeline.figure()
    assert overlapping_texts(figure) == []
    assert off_the_page(figure) == []
    bars = [
        box(figure, artist) for artist in artists(figure) if " span" in (artist.get_gid() or "")
    ]
    assert not any(
        overlap(one, other, by=0.035) for at, one in enumerate(bars) for other in bars[at + 1 :]
    )
    assert len(texts(figure)) >= len({entry.lane for entry in noted})
