"""Spans as lines of JSON, on the replay's clock."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from rx_backend.engines import SampleEngine, SimulatedEngine
from rx_backend.replay import Request, replay, synthetic
from rx_backend.replay.spans import span_lines
from rx_backend.testing import run_virtual


@pytest.mark.rows("P7")
def test_spans_have_virtual_times(tmp_path: Path) -> None:
    """Start and duration are those of the loop's clock, not of the wall's."""
    path = tmp_path / "spans.jsonl"

    async def main() -> None:
        with span_lines(path, asyncio.get_running_loop().time) as tracer:
            rows = [Request(0, 3, 2), Request(7200, 1, 5)]
            await replay(rows, SampleEngine(token_interval_ms=1000), tracer=tracer)

    run_virtual(main())
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["name"], first["start_s"], first["duration_ms"]) == ("engine.generate", 0, 2000)
    assert (second["start_s"], second["duration_ms"]) == (7200, 5000)
    assert second["attributes"]["ttft_ms"] == 1000
    assert second["attributes"]["finish_reason"] == "Length"
    assert (second["status"], second["description"], second["parent_id"]) == ("UNSET", None, None)
    assert len(second["trace_id"]) == 32
    assert len(second["span_id"]) == 16


@pytest.mark.rows("P4", "P5")
def test_every_request_has_one_span_whatever_its_end(tmp_path: Path) -> None:
    """Each request has a line; those that were dropped or failed have an error status."""
    path = tmp_path / "spans.jsonl"

    async def main() -> list[str]:
        rows, engine = synthetic(100, rate_per_s=50), SimulatedEngine(error_rate=0.2)
        with span_lines(path, asyncio.get_running_loop().time) as tracer:
            result = await replay(rows, engine, cancel_rate=0.2, drop_rate=0.2, tracer=tracer)
        return [row.outcome for row in result.requests]

    outcomes = run_virtual(main())
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 100
    failed = [row["description"] for row in rows if row["status"] == "ERROR"]
    assert len(failed) == outcomes.count("dropped") + outcomes.count("error")
    assert failed.count("stream dropped before terminal") == outcomes.count("dropped")
    cancelled = [row for row in rows if row["attributes"].get("finish_reason") == "Cancelled"]
    assert len(cancelled) == outcomes.count("cancelled")


def test_spans_inside_name_their_parent(tmp_path: Path) -> None:
    """A span inside another names it; one that ends behind the block is not written."""
    with span_lines(tmp_path / "spans.jsonl", lambda: 1.0) as tracer:
        with tracer.start_as_current_span("outer"):
            tracer.start_span("inner").end()
        late = tracer.start_span("late")
    late.end()
    inner, outer = map(json.loads, (tmp_path / "spans.jsonl").read_text().splitlines())
    assert inner["parent_id"] == outer["span_id"]
    assert inner["duration_ms"] == 0
