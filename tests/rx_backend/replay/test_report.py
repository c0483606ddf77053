"""Figures, tables and files of a replay."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rx_backend.engines import SampleEngine, SimulatedEngine
from rx_backend.errors import InvalidArgument
from rx_backend.replay import (
    LatencyCounts,
    Quantiles,
    ReplayResult,
    Request,
    RequestFigures,
    format_table,
    replay,
    summarize,
    synthetic,
    write_requests,
    write_summary,
)
from rx_backend.replay.figures import token_gaps
from rx_backend.testing import run_virtual


@pytest.mark.rows("F3", "F4")
def test_gaps_of_a_request() -> None:
    """Gaps are between chunks, their quantiles by the nearest rank, with two decimals."""
    ticks, quantiles = token_gaps(array("d", [0.0, 0.010, 0.030, 0.060, 0.100, 0.150]))
    assert ticks == [1000, 2000, 3000, 4000, 5000]
    assert quantiles == (30.0, 50.0, 50.0)
    assert token_gaps(array("d", [1.0])) == ([], (None, None, None))


@pytest.mark.rows("F4")
def test_counts_give_the_quantiles_of_all_gaps() -> None:
    """The quantiles of counted gaps are those of the sorted gaps."""
    counts = LatencyCounts()
    assert counts.quantile(0.5) is None
    counts.add([5000, 1000])
    counts.add([4000, 2000, 3000])
    assert [counts.quantile(q) for q in (0, 0.5, 0.9, 0.99, 1)] == [10, 30, 50, 50, 50]
    assert counts.total == 5


def figures(outcome: str, ttft_ms: float | None = 10.0) -> RequestFigures:
    return RequestFigures(
        index=0,
        arrival_s=0.0,
        prompt_tokens=100,
        requested_tokens=1000,
        tokens=1000,
        outcome=outcome,
        error="Unknown" if outcome == "error" else None,
        ttft_ms=ttft_ms,
        itl_p50_ms=None,
        itl_p90_ms=None,
        itl_p99_ms=None,
        duration_ms=2000.0,
    )


def test_summary_counts_each_outcome_once() -> None:
    """Completed are those that ended by themselves; the others have a count of their own."""
    outcomes = ["length", "stop", "eos", "cancelled", "dropped", "error", "error", "interrupted"]
    result = ReplayResult()
    result.requests = [*map(figures, outcomes), figures("dropped", None)]
    result.duration_s = 2.0
    summary = summarize(result)
    assert (summary.requests, summary.completed, summary.interrupted) == (9, 3, 1)
    assert (summary.cancelled, summary.dropped, summary.errors) == (1, 2, {"Unknown": 2})
    assert (summary.tokens, summary.tokens_per_s, summary.requests_per_s) == (9000, 4500, 4.5)
    assert (summary.ttft_ms.p50, summary.ttft_ms.max, summary.itl_ms.p99) == (10, 10, None)


@pytest.mark.rows("F4")
def test_each_quantile_of_a_summary_is_the_one_it_is_named_after() -> None:
    """That of the requests' TTFTs, and of the gaps of all requests."""
    result = ReplayResult()
    result.requests = [figures("length", float(ms)) for ms in range(100, 0, -1)]
    result.itl.add([ms * 100 for ms in range(1, 101)])
    summary = summarize(result)
    assert summary.ttft_ms == summary.itl_ms == Quantiles(p50=51.0, p90=90.0, p99=99.0, max=100.0)


def test_table() -> None:
    """The table shows counts, rates and the latencies in ms; and that a replay was stopped."""
    rows = [Request(0, 3, 2), Request(1.5, 1200, 5)]
    result = run_virtual(replay(rows, SampleEngine(token_interval_ms=20)))
    table = format_table(summarize(result))
    assert table.splitlines() == [
        "requests                  2  1.25 per s",
        "  completed               2",
        "  cancelled               0",
        "  dropped                 0",
        "  errors                  0",
        "prompt tokens         1,203",
        "output tokens             7  4.4 per s",
        "duration              1.6 s",
        "",
        "                        p50         p90         p99         max",
        "TTFT, ms              20.00       20.00       20.00       20.00",
        "ITL, ms               20.00       20.00       20.00       20.00",
    ]
    result.truncated, result.context_length = 1, 1024
    lines = format_table(summarize(result)).splitlines()
    assert lines[1] == "  truncated               1  to the context of 1,024 tokens"
    nothing = ReplayResult()
    nothing.stopped_by = "interrupt"
    lines = format_table(summarize(nothing)).splitlines()
    assert lines[0] == "stopped early after 0 requests: interrupt"
    assert "  interrupted             0  in flight when stopped" in lines
    assert lines[-1].split() == ["ITL,", "ms", "-", "-", "-", "-"]


def test_files(tmp_path: Path) -> None:
    """Requests are lines in the order of the workload; the summary is one object."""
    engine = SimulatedEngine(error_rate=0.3, max_batch=4)
    result = run_virtual(replay(synthetic(30, rate_per_s=50), engine, drop_rate=0.2))
    write_requests(tmp_path / "requests.jsonl", result)
    write_summary(tmp_path / "summary.json", summarize(result))
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(30))
    assert set(json.loads(lines[0])) == set(RequestFigures.__struct_fields__)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["requests"], summary["planned"], summary["stopped_by"]) == (30, 30, None)
    assert summary["ttft_ms"]["p50"] == summarize(result).ttft_ms.p50


NO_REPORT: list[tuple[Callable[..., object], tuple[Any, ...], str]] = [
    (summarize, (None,), "result: expected a ReplayResult, got None"),
    (format_table, (None,), "summary: expected a Summary, got None"),
    (write_requests, ("out", None), "result: expected a ReplayResult, got None"),
    (write_summary, ("out", None), "summary: expected a Summary, got None"),
    (write_requests, (None, ReplayResult()), "path: expected a path, got None"),
    (write_summary, (None, summarize(ReplayResult())), "path: expected a path, got None"),
]


@pytest.mark.parametrize(("report", "arguments", "complaint"), NO_REPORT)
def test_an_unreportable_result_is_rejected(
    report: Callable[..., object],
    arguments: tuple[Any, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By name, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match=complaint):
        report(*arguments)
    assert list(tmp_path.iterdir()) == []
