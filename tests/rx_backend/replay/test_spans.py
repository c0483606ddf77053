"""Spans as lines of JSON, on the replay's clock."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from rx_backend.engines import SampleEngine
from rx_backend.replay import Request, replay
from rx_backend.replay.spans import span_lines
from rx_backend.testing import run_virtual
from tests.spans import Spans


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


def test_spans_inside_name_their_parent(tmp_path: Path) -> None:
    """A span inside another names it; one that ends after the block is not written."""
    with span_lines(tmp_path / "spans.jsonl", lambda: 1.0) as tracer:
        with tracer.start_as_current_span("outer"):
            tracer.start_span("inner").end()
        late = tracer.start_span("late")
    late.end()
    inner, outer = map(json.loads, (tmp_path / "spans.jsonl").read_text().splitlines())
    assert inner["parent_id"] == outer["span_id"]
    assert inner["duration_ms"] == 0


def test_spans_of_a_provider_are_exported_too(tmp_path: Path, spans: Spans) -> None:
    """As with `--otlp`."""
    with span_lines(tmp_path / "spans.jsonl", lambda: 1.0, spans.provider) as tracer:
        tracer.start_span("one").end()
    assert [span.name for span in spans.finished] == ["one"]
    (line,) = map(json.loads, (tmp_path / "spans.jsonl").read_text().splitlines())
    assert line["name"] == "one"
