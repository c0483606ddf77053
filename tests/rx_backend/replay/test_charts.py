"""The charts show the figures they are given, legibly, whatever these are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from operators import LatencyQuantiles, SloFigures, TokenTimes
from rx_backend.replay.charts import HistoryChart, LoadChart, OutcomeChart, TokenChart
from rx_backend.replay.charts.chart import Chart
from tests.rx_backend.pictures._help import unreadable


def stream(*came_s: float, sizes: dict[int, int] | None = None) -> TokenTimes:
    times = TokenTimes(clock=lambda: 0.0)
    times.times.extend(came_s)
    times.sizes.update(sizes or {})
    return times


NONE = SloFigures(0, 0, 0, 0, 0, 0, None, 0.0, 0.0, 0.0, 0, 0, None, None)


def figures(
    good: int = 0, slow: int = 0, failed: int = 0, p50: float = 0, p99: float = 0, **more: int
) -> SloFigures:
    judged = good + slow + failed
    latency = LatencyQuantiles(p50, p99, p99, judged) if p99 else None
    judged_as = {"requests": judged, "good": good, "slow": slow, "failed": failed}
    share = good / judged if judged else None
    return replace(NONE, goodput=share, ttft=latency, itl=latency, **judged_as, **more)


def panels(chart: Chart) -> list[Any]:
    return chart.figure().axes


def lines(axes: Any) -> list[list[tuple[float, float]]]:
    return [[(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.lines]


def legend(chart: Chart) -> list[str]:
    return [text.get_text() for text in chart.figure().legends[0].get_texts()]


QUICK = stream(0.04, 0.055, 0.07)
MERGED = stream(0.04, 0.08, sizes={1: 2})
CHARTS: dict[str, Chart] = {
    "tokens": TokenChart({"quick": QUICK, "merged": MERGED}),
    "sizes": TokenChart({"quick": QUICK, "merged": MERGED}, beside="sizes"),
    "load": LoadChart(
        {
            name: {
                rate: figures(good=9, slow=slow, p50=50 * rate, p99=800 * rate) for rate in (1, 2)
            }
            for slow, name in enumerate(("prefill chunk 2,048", "512"))
        },
        ttft_ms=1000,
        itl_ms=60,
    ),
    "history": HistoryChart(
        {
            "no deadline": [figures(good=n, slow=20 - n, open=n, late=n // 2) for n in range(20)],
            "1 s": [figures(good=n, open=3) for n in range(20)],
        },
        shaded={"burst": (4, 9)},
    ),
    "outcomes": OutcomeChart(
        {"0.5 s": figures(good=80, failed=41), "none": figures(good=60, slow=60, failed=1)}
    ),
}
EMPTY: dict[str, Chart] = {
    "no streams": TokenChart({}),
    "no tokens": TokenChart({"no token": stream(), "one": stream(0.0)}),
    "no loads": LoadChart({}),
    "no load": LoadChart({"none": {1.0: figures()}}),
    "no histories": HistoryChart({}),
    "no history": HistoryChart({"none": [], "one": [figures()]}),
    "no outcomes": OutcomeChart({}),
    "no requests": OutcomeChart({"none": figures()}),
}


def test_a_line_has_the_tokens_and_the_dots_the_gaps() -> None:
    """A chunk of two tokens is one dot, two tokens up; its gap is the chunk's."""
    tokens, gaps = panels(TokenChart({"merged": MERGED}))
    assert lines(tokens)[-1] == [(40, 1), (80, 3)]
    assert lines(gaps) == [[(80, 40)]]
    assert legend(TokenChart({"merged": MERGED})) == ["merged (TTFT 40 ms)"]


def test_the_dots_can_be_the_sizes_of_chunks() -> None:
    """The first chunk is shown too."""
    _, sizes = panels(TokenChart({"merged": MERGED}, beside="sizes"))
    assert lines(sizes) == [[(40, 1), (80, 2)]]
    wrong: Any = "lags"
    with pytest.raises(ValueError, match="beside: expected 'gaps' or 'sizes', got 'lags'"):
        TokenChart({}, beside=wrong)


def test_long_streams_are_shown_in_seconds() -> None:
    """Nobody reads five-digit milliseconds, nor dots that lie upon each other."""
    tokens, gaps = panels(TokenChart({"long": stream(*range(1, 101))}))
    assert tokens.get_xlabel() == gaps.get_xlabel() == "time since the request, s"
    (line,) = lines(tokens)
    assert line[-1] == (100, 100)


def test_load_shows_latencies_and_the_good_part_of_the_rate() -> None:
    """Rates stand in order; of 4 per second with three in four good, 3 per second are good."""
    run = {4.0: figures(good=3, slow=1, p50=20, p99=2000), 2.0: figures(good=3, p50=15, p99=90)}
    chart = LoadChart({"run": run}, ttft_ms=1000)
    ttft, itl, good = panels(chart)
    for axes in (ttft, itl):
        assert lines(axes)[:2] == [[(2, 15), (4, 20)], [(2, 90), (4, 2000)]]
        assert [line.get_linestyle() for line in axes.lines[:2]] == ["--", "-"]
    assert lines(good)[0] == [(2, 2), (4, 3)]
    assert lines(good)[1] == [(0, 0), (4, 4)]
    assert lines(ttft)[2] == [(0, 1000), (1, 1000)]
    assert len(itl.lines) == 2
    assert legend(chart) == ["run", "all", "target 1000 ms"]
    assert ttft.get_yscale() == "log"


def test_history_shows_open_requests_and_goodput() -> None:
    """A window in which no request ended has no goodput, and leaves a gap."""
    run = [figures(good=3, slow=1, open=2), figures(open=5, late=4), figures(good=1)]
    chart = HistoryChart({"run": run}, every_s=5, shaded={"burst": (4, 9)})
    requests, goodput = panels(chart)
    assert lines(requests) == [[(5, 0), (10, 4), (15, 0)], [(5, 2), (10, 5), (15, 0)]]
    assert str(lines(goodput)) == "[[(5.0, 75.0), (10.0, nan), (15.0, 100.0)]]"
    assert legend(chart) == ["run", "burst"]
    for axes in (requests, goodput):
        (burst,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert (burst.get_x(), burst.get_width()) == (4, 5)


def test_a_long_history_is_short_as_text() -> None:
    """Some of it is enough to read; its end is there."""
    rows = repr(HistoryChart({"run": [figures(good=1, open=n) for n in range(100)]})).splitlines()
    assert len(rows) == 21
    assert rows[-1].split() == ["run", "100", "0", "99", "100.0"]


def test_outcomes_are_parts_of_a_bar() -> None:
    """Each part begins where the one before it ends, and has its number where there is room."""
    (axes,) = panels(CHARTS["outcomes"])
    parts = [(bar.get_x(), bar.get_width()) for bar in axes.patches if isinstance(bar, Rectangle)]
    assert [part for part in parts if part[1]] == [(0, 80), (0, 60), (60, 60), (80, 41), (120, 1)]
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["80", "60", "60", "41"]
    assert legend(CHARTS["outcomes"]) == ["good", "slow", "failed"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.5 s", "none"]


@pytest.mark.timeout(60)
def test_each_of_many_runs_has_a_colour_of_its_own() -> None:
    """And a place in the legend, which makes the page taller, not the panels smaller."""
    few, many = (
        LoadChart({f"run {n}": {1: figures(good=9, p50=n + 1, p99=n + 9)} for n in range(count)})
        for count in (3, 40)
    )
    good = panels(many)[2].lines[:40]
    assert len({str(line.get_color()) for line in good}) == 40
    heights = [chart.figure().axes[0].get_window_extent().height for chart in (few, many)]
    assert heights[1] == pytest.approx(heights[0], rel=0.15)


def charts() -> st.SearchStrategy[Chart]:
    names = st.text("wi$_^{ ", min_size=1, max_size=70)
    counts, many = st.integers(0, 10**6), st.integers(1, 30)
    judged = st.builds(
        figures, good=counts, slow=counts, failed=counts, p50=st.just(1.0), p99=st.floats(1, 1e6)
    )
    gaps = st.lists(st.floats(0.0, 9.0), max_size=40)
    streams = gaps.map(lambda some: stream(*accumulate(some), sizes={0: 70}))

    def runs(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return many.flatmap(lambda most: st.dictionaries(names, values, max_size=most))

    rates = st.dictionaries(st.floats(0.1, 1e4), judged, max_size=5)
    return st.one_of(
        st.builds(TokenChart, runs(streams), beside=st.sampled_from(["gaps", "sizes"])),
        st.builds(LoadChart, runs(rates), ttft_ms=st.none() | st.floats(1, 1e6)),
        st.builds(HistoryChart, runs(st.lists(judged, max_size=9)), shaded=runs(st.just((2, 5)))),
        st.builds(OutcomeChart, runs(judged), title=names),
    )


@pytest.mark.parametrize("name", [*CHARTS, *EMPTY])
def test_no_text_lies_upon_another(name: str) -> None:
    """Titles, labels, legends and numbers can all be read, also where there is nothing to show."""
    chart = {**CHARTS, **EMPTY}[name]
    assert unreadable(chart.figure()) == []
    assert repr(chart)


@pytest.mark.timeout(120)
@settings(max_examples=12, deadline=None)
@given(charts(), st.integers(50, 300))
def test_nothing_is_written_over_anything_else(chart: Chart, dpi: int) -> None:
    """However many runs, however long their names, and whatever their figures: all can be read."""
    assert unreadable(chart.figure(), dpi) == []


@pytest.mark.parametrize("odd", [math.inf, math.nan, -1.0])
def test_a_number_that_has_no_place_is_refused(odd: float) -> None:
    """The error names the argument, where it is given."""
    charts: dict[str, Callable[[], Chart]] = {
        "LoadChart: runs": lambda: LoadChart({"a": {odd: NONE, 1.0: NONE}}),
        "LoadChart: ttft_ms": lambda: LoadChart({}, ttft_ms=odd),
        "LoadChart: itl_ms": lambda: LoadChart({}, itl_ms=odd),
        "HistoryChart: every_s": lambda: HistoryChart({}, every_s=odd),
        "HistoryChart: shaded": lambda: HistoryChart({}, shaded={"a": (0.0, odd)}),
    }
    for name, make in charts.items():
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number .*, got {odd}$"):
            make()
