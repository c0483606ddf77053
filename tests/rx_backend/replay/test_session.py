"""A whole run: which workload, which files."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rx_backend.engine import EngineConfig
from rx_backend.engines import SampleEngine
from rx_backend.errors import InvalidArgument
from rx_backend.replay import plot
from rx_backend.replay.figures import ReplayResult
from rx_backend.replay.session import TRACE_VARIABLE, RunOptions, run
from tests.forks import fork

TRACE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,4\n"
    "2023-11-16 18:15:50.9951690,396,9\n"
    "2023-11-16 18:15:51.2224670,879,5\n"
)
FILES = ["requests.jsonl", "spans.jsonl", "summary.json"]


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


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Which workload.


def test_which_trace_is_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option wins over `RX_BACKEND_TRACE`; without either the workload is synthetic."""
    said, _ = quiet(limit=12)
    assert said[:2] == [
        "workload: synthetic, in the shape of the Azure conversation trace, 12 requests",
        "engine: simulated, virtual time",
    ]
    monkeypatch.setenv(TRACE_VARIABLE, str(put_trace(folder / "named.csv")))
    assert "named.csv" in quiet()[0][0]
    assert "given.csv" in quiet(trace=put_trace(folder / "given.csv"))[0][0]
    assert "synthetic" in quiet(synthetic=True, limit=5)[0][0]
    monkeypatch.setenv(TRACE_VARIABLE, "gone.csv")
    with pytest.raises(InvalidArgument, match=r"gone\.csv: can't be read: No such file"):
        quiet()


def test_limits(folder: Path) -> None:
    """A limit cuts the workload; 0 takes all; the default says how to get all."""
    trace = put_trace(folder / "t.csv")
    assert quiet(trace=trace, limit=2)[0][0].endswith("t.csv, 2 requests")
    assert quiet(trace=trace, limit=0)[0][0].endswith("t.csv, all requests")
    lines = TRACE.splitlines(keepends=True)
    trace.write_text(lines[0] + lines[1] * 4001)
    assert quiet(trace=trace)[0][0].endswith("4,000 requests (--limit all replays the whole)")


def test_speed_and_engine_parameters_reach_the_run(folder: Path) -> None:
    """Twice the speed is half the arrivals' time; the engine's parameters show in the figures."""
    trace = put_trace(folder / "t.csv")
    said, out = quiet(trace=trace, speed=2, step_ms=100, prefill_ms_per_token=0)
    assert said[0].endswith("at 2 times the speed")
    rows = lines_of(out / "requests.jsonl")
    assert [row["arrival_s"] for row in rows] == pytest.approx([0, 2.15729, 2.270939], abs=1e-5)
    assert rows[0]["ttft_ms"] == 100


def test_skipped_rows_are_counted(folder: Path) -> None:
    """The run says how many rows of the trace it could not use."""
    trace = put_trace(folder / "t.csv")
    trace.write_text(TRACE + "2023-11-16 18:15:52,1,0\n" * 1200)
    assert "left out: 1,200 rows of the trace without output tokens" in quiet(trace=trace)[0]
    assert not any("left out" in line for line in quiet(trace=trace, limit=3)[0])


def test_a_chart_at_the_slowest_speed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its axes cope with gaps of years; its title leaves the number of requests to its figures."""
    titles: list[str] = []

    class Noted(plot.ReplayChart):
        def __init__(self, result: ReplayResult, *, title: str) -> None:
            titles.append(title)
            super().__init__(result, title=title)

    monkeypatch.setattr(plot, "ReplayChart", Noted)
    said, out = quiet(synthetic=True, limit=5, speed=1e-6, plot=True)
    shape = "synthetic, in the shape of the Azure conversation trace"
    assert titles == [f"{shape}, at 1e-06 times the speed; simulated"]
    assert said[0] == f"workload: {shape}, 5 requests, at 1e-06 times the speed"
    assert (out / "replay.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"trace": Path("t.csv"), "synthetic": True}, "--synthetic contradicts --trace"),
        (
            {"trace": Path("x", "..", "requests.jsonl"), "out": Path()},
            "--out contradicts the trace",
        ),
        ({"cancel_rate": 0.6, "drop_rate": 0.6}, "--cancel-rate and --drop-rate must not sum"),
        ({"limit": -1}, "--limit: expected"),
        ({"speed": 0}, "--speed: expected a number, 1e-06 or more"),
        ({"speed": 1e-300}, "--speed: expected a number, 1e-06 or more, got 1e-300"),
        ({"max_batch": 0}, "--max-batch: expected"),
        ({"pipeline": "os:sep"}, "pipeline os:sep: expected"),
        (
            {"engine": "rx_backend.engines:SampleEngine", "model_path": "m"},
            "--model-path: engine rx_backend.engines:SampleEngine takes no model_path",
        ),
    ],
)
def test_bad_options_are_named(folder: Path, options: dict[str, object], complaint: str) -> None:
    """Also those that contradict each other; nothing is read or written then."""
    put_trace(folder / "requests.jsonl")
    with pytest.raises(InvalidArgument, match=complaint):
        quiet(**options)
    assert [path.name for path in folder.iterdir()] == ["requests.jsonl"]
    assert (folder / "requests.jsonl").read_text() == TRACE


def test_the_default_trace_is_not_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of that name in the output folder would be removed before the run."""
    monkeypatch.setenv(TRACE_VARIABLE, str(put_trace(folder / "requests.jsonl")))
    with pytest.raises(InvalidArgument, match="--out contradicts the trace"):
        quiet(out=folder)
    assert (folder / "requests.jsonl").read_text() == TRACE


# Which files.


@pytest.mark.timeout(120)
def test_files_are_written_and_named(folder: Path) -> None:
    """Everything that is asked for is in the folder, and its path is said."""
    said, out = quiet(out=folder / "a" / "b", limit=20, plot=True, spans=True, drop_rate=0.3)
    names = ["summary.json", "requests.jsonl", "spans.jsonl", "replay.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert said[-4:] == [f"  {out / name}" for name in names]
    assert len((out / "spans.jsonl").read_text().splitlines()) == 20
    assert any(line.startswith("requests ") for line in said[3].splitlines())


def test_no_plot_without_matplotlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the run says how to get a plot; what an earlier run left is removed."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (folder / "out").mkdir()
    for name in ("replay.png", "spans.jsonl"):
        (folder / "out" / name).touch()
    said, out = quiet(plot=True, limit=3, out=folder / "out")
    assert any("rx-backend[plot]" in line for line in said)
    assert sorted(path.name for path in out.iterdir()) == ["requests.jsonl", "summary.json"]


class RunsAnother(SampleEngine):
    """While it starts, another run begins and ends in the same folder."""

    async def start(self, worker_id: int) -> EngineConfig:
        await asyncio.to_thread(quiet, limit=2, spans=True)
        return await super().start(worker_id)


def test_two_runs_in_one_folder(folder: Path) -> None:
    """All files are of the one that ended last."""
    trace = put_trace(folder / "t.csv")
    _, out = quiet(engine=f"{__name__}:RunsAnother", trace=trace, spans=True, speed=1000)
    assert [len(lines_of(out / name)) for name in FILES[:2]] == [3, 3]
    assert json.loads((out / "summary.json").read_text())["requests"] == 3
    assert sorted(path.name for path in out.iterdir()) == FILES


# What is left of a run that did not come to its end.


@pytest.mark.timeout(120)
@pytest.mark.parametrize("real", [False, True])
def test_an_interrupted_run(folder: Path, real: bool) -> None:
    """Its table and each of its files has what was done, and says that it was stopped."""
    out = folder / "out"
    out.mkdir()
    (out / "replay.png").touch()

    def interrupt() -> None:
        while not any(part.stat().st_size for part in out.glob(".*.part")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    quick: dict[str, Any] = {"step_ms": 1, "step_ms_per_sequence": 0, "prefill_ms_per_token": 0}
    options = RunOptions(synthetic=True, limit=0, out=out, plot=False, real=real, speed=9, **quick)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(options, say=said.append, live=io.StringIO())
    thread.join()
    assert sorted(path.name for path in out.iterdir()) == FILES
    rows, spans = lines_of(out / "requests.jsonl"), lines_of(out / "spans.jsonl")
    summary = json.loads((out / "summary.json").read_text())
    assert rows.pop() == spans.pop() == {"stopped_by": "interrupt"}
    assert summary["stopped_by"] == "interrupt"
    assert summary["planned"] == 19_366
    assert len(rows) == len(spans) == summary["requests"] < 19_366
    in_flight = [row for row in rows if row["outcome"] == "interrupted"]
    assert len(in_flight) == summary["interrupted"] > 0
    assert summary["completed"] == len(rows) - len(in_flight)
    table = next(text for text in said if "TTFT" in text)
    assert table.startswith(f"stopped early after {len(rows):,} of 19,366 requests: interrupt\n")
    assert f"interrupted{len(in_flight):>14,}  in flight when stopped" in table
    assert [line.strip() for line in said[-3:]] == [
        str(out / name) for name in ("summary.json", "requests.jsonl", "spans.jsonl")
    ]


TIDY = """
from pathlib import Path
from rx_backend.engines import SampleEngine

class Tidy(SampleEngine):
    async def cleanup(self):
        await super().cleanup()
        Path("cleaned up").touch()
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("chosen", ["--real", "--engine tidy:Tidy"])
def test_an_interrupted_command_is_silent_otherwise(folder: Path, chosen: str) -> None:
    """Exit code 130, the table, no traceback, and an engine that is cleaned up."""
    (folder / "tidy.py").write_text(TIDY)
    command = ["rx_backend_cli", "run", *chosen.split(), "--out", str(folder / "out")]
    with (folder / "said").open("w") as said, (folder / "complained").open("w") as complained:
        process = fork(
            ["rx_backend.cli", "rx_backend.replay.session"],
            command,
            cwd=folder,
            stdout=said.fileno(),
            stderr=complained.fileno(),
        )
    while not list(folder.glob("out/.*.part")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    out, err = (folder / "said").read_text(), (folder / "complained").read_text()
    assert "stopped early after" in out
    assert (folder / "cleaned up").exists() == ("tidy" in chosen)
    assert "Traceback" not in err
    assert not any(line for line in err.splitlines() if "in flight at" not in line)


def test_a_bad_row_in_a_long_trace(folder: Path) -> None:
    """What was replayed until then is kept, and the files say what stopped it."""
    trace = put_trace(folder / "t.csv")
    trace.write_text(TRACE + "tomorrow,1,1\n")
    with pytest.raises(InvalidArgument, match="line 5: column TIMESTAMP"):
        quiet(trace=trace, limit=0, out=folder / "out", spans=True)
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert (summary["requests"], summary["completed"], summary["planned"]) == (3, 3, None)
    for name in FILES[:2]:
        last = lines_of(folder / "out" / name)[-1]
        assert last == {"stopped_by": summary["stopped_by"]}
    assert "line 5: column TIMESTAMP" in summary["stopped_by"]
    trace.write_text(TRACE.replace("2023-11-16 18:15:46", "yesterday"))
    for limit in (0, 10):
        with pytest.raises(InvalidArgument, match="line 2: column TIMESTAMP"):
            quiet(trace=trace, limit=limit, out=folder / "none")
    assert not (folder / "none").exists()


def test_the_real_clock(folder: Path) -> None:
    """On the real clock the same run takes real time: here next to none."""
    trace = put_trace(folder / "t.csv")
    options = {"step_ms": 0, "step_ms_per_sequence": 0, "prefill_ms_per_token": 0}
    said, out = quiet(trace=trace, real=True, limit=1, **options)
    assert said[1] == "engine: simulated, real clock"
    assert json.loads((out / "summary.json").read_text())["tokens"] == 4
