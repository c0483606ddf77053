"""The picture of a replay."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from rx_backend.engines import SimulatedEngine
from rx_backend.replay import ReplayResult, Request, replay, synthetic
from rx_backend.replay.plot import ReplayChart
from rx_backend.replay.report import format_table, summarize
from rx_backend.testing import run_virtual
from tests.rx_backend.pictures._help import unreadable


@cache
def results() -> dict[str, ReplayResult]:
    busy = replay(
        synthetic(40), SimulatedEngine(error_rate=0.1), cancel_rate=0.1, drop_rate=0.1, seed=1
    )
    single = replay([Request(0, 1, 1)], SimulatedEngine())
    free = SimulatedEngine(step_ms=0, step_ms_per_sequence=0, prefill_ms_per_token=0)
    return {
        "busy": run_virtual(busy),
        "one token": run_virtual(single),
        "no time": run_virtual(replay([Request(0, 1, 30)] * 3, free)),
        "nothing": ReplayResult(0),
    }


@pytest.mark.timeout(120)
def test_any_replay_can_be_drawn() -> None:
    """Also where there is little to draw the picture can be read, and so can the table."""
    for name, result in results().items():
        chart = ReplayChart(result, title=name * 40)
        assert unreadable(chart.figure()) == []
        assert repr(chart) == format_table(summarize(result))


@pytest.mark.timeout(60)
def test_panels_show_the_figures() -> None:
    """Requests in flight, tokens per second, TTFT by outcome, shares, and time per token by load."""
    result = results()["busy"]
    panels: list[Any] = ReplayChart(result, title="busy").figure().axes
    flight, ttft_shares, output, itl, ttft, by_load = panels
    most = flight.collections[0].get_paths()[0].vertices[:, 1].max()
    rows = result.requests
    assert most == max(
        sum(row.arrival_s <= at.arrival_s < row.end_s for row in rows) for at in rows
    )
    stairs = output.patches[0].get_data()
    assert np.sum(stairs.values * np.diff(stairs.edges)) == sum(result.tokens_by_s.values())
    timed = [row for row in rows if row.ttft_ms is not None]
    outcomes = {dots.get_label(): len(dots.get_offsets()) for dots in ttft.collections}
    assert sum(outcomes.values()) == len(timed)
    assert outcomes["error"] == sum(row.outcome == "error" for row in timed)
    scales = [(panel.get_xscale(), panel.get_yscale()) for panel in panels]
    logarithmic = {ttft_shares: ("log", "linear"), itl: ("log", "linear"), ttft: ("linear", "log")}
    assert scales == [logarithmic.get(panel, ("linear", "linear")) for panel in panels]
    line, *marks = ttft_shares.lines
    summary = summarize(result)
    assert line.get_xdata()[-1] == pytest.approx(summary.ttft_ms.max)
    quantiles = [summary.ttft_ms.p50, summary.ttft_ms.p90, summary.ttft_ms.p99]
    assert [mark.get_xdata()[0] for mark in marks] == quantiles
    assert f"p50 {summary.itl_ms.p50:,.1f}" in itl.get_title(loc="left")
    points = by_load.collections[0].get_offsets()
    slow = [
        (row.duration_ms - (row.ttft_ms or 0)) / (row.tokens - 1)
        for row in timed
        if row.tokens > 10
    ]
    assert sorted(points[:, 1]) == pytest.approx(sorted(slow))
    assert points[:, 0].min() >= 1


@pytest.mark.timeout(60)
def test_interrupted_requests_are_not_shown_as_completed() -> None:
    """The legend has the outcomes of the requests that had a token, in one colour each."""
    rows = results()["busy"].requests
    first = next(row for row in rows if row.outcome == "length")
    result = ReplayResult()
    result.requests = [first, replace(first, outcome="interrupted")]
    legend = ReplayChart(result, title="").figure().legends[0]
    assert [text.get_text() for text in legend.texts] == ["completed", "interrupted"]


@pytest.mark.timeout(60)
def test_each_outcome_keeps_its_colour_in_the_file() -> None:
    """The file has few colours, but cancelled requests don't look like failed ones."""
    chart = ReplayChart(results()["busy"], title="busy")
    legend: list[Any] = chart.figure().legends[0].legend_handles
    pixels = np.array(Image.open(BytesIO(chart.png())).convert("RGB")).reshape(-1, 3)
    assert len(legend) == 4
    for dot in legend:
        *color, alpha = dot.get_facecolor()[0]
        wanted = 255 * (alpha * np.array(color) + 1 - alpha)
        assert np.abs(pixels - wanted).max(axis=1).min() < 8
