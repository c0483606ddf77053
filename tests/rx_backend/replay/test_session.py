"""A whole run: which workload, which files."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from rx_backend.errors import InvalidArgument
from rx_backend.replay.session import TRACE_VARIABLE, RunOptions, find_trace, run

TRACE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,4\n"
    "2023-11-16 18:15:50.9951690,396,9\n"
    "2023-11-16 18:15:51.2224670,879,5\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with no trace in sight."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv(TRACE_VARIABLE, raising=False)
    return here


def put_trace(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TRACE)
    return path


def quiet(**options: object) -> tuple[list[str], Path]:
    """Run with few files; give what was said and the folder."""
    said: list[str] = []
    given: dict[str, object] = {"plot": False, "spans": False, **options}
    chosen = RunOptions(**given)  # pyright: ignore[reportArgumentType]
    run(chosen, say=said.append, live=io.StringIO())
    return said, chosen.out


def test_the_trace_nearby_is_found(folder: Path) -> None:
    """Without a word the trace beside the project is replayed, if it is there."""
    assert find_trace({}) is None
    put_trace(folder.parent / "shared" / "data" / "azure_llm_conv_2023.csv")
    assert find_trace({}) == Path("../shared/data/azure_llm_conv_2023.csv")
    said, _ = quiet()
    assert said[0] == "workload: trace ../shared/data/azure_llm_conv_2023.csv, 3 requests"


def test_the_environment_names_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`RX_BACKEND_TRACE` wins over the trace nearby, an option over both."""
    put_trace(folder.parent / "shared" / "data" / "azure_llm_conv_2023.csv")
    monkeypatch.setenv(TRACE_VARIABLE, str(put_trace(folder / "named.csv")))
    assert "named.csv" in quiet()[0][0]
    assert "given.csv" in quiet(trace=put_trace(folder / "given.csv"))[0][0]
    assert "synthetic" in quiet(synthetic=True, limit=5)[0][0]


def test_a_named_trace_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that was asked for and is not there is an error, no reason to make one up."""
    monkeypatch.setenv(TRACE_VARIABLE, "gone.csv")
    with pytest.raises(InvalidArgument, match=r"gone\.csv: can't be read: No such file"):
        quiet()


def test_synthetic_is_the_last_resort() -> None:
    """With no trace anywhere the synthetic workload is taken, and said to be."""
    said, _ = quiet(limit=12)
    assert said[0] == (
        "workload: synthetic, in the shape of the Azure conversation trace, 12 requests"
    )
    assert said[1] == "engine: simulated, virtual time"


def test_limits(folder: Path) -> None:
    """A limit cuts the workload; 0 takes all; the default says how to get all."""
    trace = put_trace(folder / "t.csv")
    assert quiet(trace=trace, limit=2)[0][0].endswith("t.csv, 2 requests")
    assert quiet(trace=trace, limit=0)[0][0].endswith("t.csv, 3 requests")
    lines = TRACE.splitlines(keepends=True)
    trace.write_text(lines[0] + lines[1] * 4001)
    assert quiet(trace=trace)[0][0].endswith("4,000 requests (--limit all replays the whole)")
    with pytest.raises(InvalidArgument, match="limit must be"):
        quiet(limit=-1)


def test_speed_and_engine_parameters_reach_the_run(folder: Path) -> None:
    """Twice the speed is half the arrivals' time; the engine's parameters show in the figures."""
    trace = put_trace(folder / "t.csv")
    said, out = quiet(trace=trace, speed=2, step_ms=100, prefill_ms_per_token=0)
    assert said[0].endswith("at 2 times the speed")
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    assert [row["arrival_s"] for row in rows] == pytest.approx([0, 2.15729, 2.270939], abs=1e-5)
    assert rows[0]["ttft_ms"] == 100
    with pytest.raises(InvalidArgument, match="speed must be a number > 0"):
        quiet(speed=0)
    with pytest.raises(InvalidArgument, match="max_batch must be"):
        quiet(max_batch=0)


@pytest.mark.timeout(120)
def test_files_are_written_and_named(folder: Path) -> None:
    """Everything that is asked for is in the folder, and its path is said."""
    said, out = quiet(out=folder / "a" / "b", limit=20, plot=True, spans=True, drop_rate=0.3)
    names = ["summary.json", "requests.jsonl", "spans.jsonl", "replay.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert said[-4:] == [f"  {out / name}" for name in names]
    assert len((out / "spans.jsonl").read_text().splitlines()) == 20
    assert any(line.startswith("requests ") for line in said[3].splitlines())


def test_no_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the run says how to get a plot, and writes the rest."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said, out = quiet(plot=True, limit=3)
    assert any("rx-backend[plot]" in line for line in said)
    assert sorted(path.name for path in out.iterdir()) == ["requests.jsonl", "summary.json"]


def test_the_real_clock(folder: Path) -> None:
    """On the real clock the same run takes real time: here next to none."""
    trace = put_trace(folder / "t.csv")
    options = {"step_ms": 0, "step_ms_per_sequence": 0, "prefill_ms_per_token": 0}
    said, out = quiet(trace=trace, real=True, limit=1, **options)
    assert said[1] == "engine: simulated, real clock"
    assert json.loads((out / "summary.json").read_text())["tokens"] == 4
