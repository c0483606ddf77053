"""The picture of a replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from rx_backend.engines import SimulatedEngine
from rx_backend.replay import ReplayResult, Request, replay, synthetic
from rx_backend.replay.plot import write_plot
from rx_backend.testing import run_virtual


def results() -> dict[str, ReplayResult]:
    busy = replay(
        synthetic(40), SimulatedEngine(error_rate=0.1), cancel_rate=0.1, drop_rate=0.1, seed=1
    )
    dropped = replay([Request(0, 1, 1)], SimulatedEngine(), drop_rate=1)
    single = replay([Request(0, 1, 1)], SimulatedEngine())
    free = SimulatedEngine(step_ms=0, step_ms_per_sequence=0, prefill_ms_per_token=0)
    return {
        "busy": run_virtual(busy),
        "all dropped": run_virtual(dropped),
        "one token": run_virtual(single),
        "no time": run_virtual(replay([Request(0, 1, 30)] * 3, free)),
        "nothing": ReplayResult(0),
    }


@pytest.mark.timeout(120)
def test_writes_a_png_for_any_replay(tmp_path: Path) -> None:
    """A picture comes out also where there is little to draw."""
    for name, result in results().items():
        path = tmp_path / f"{name}.png"
        write_plot(path, result, title=name)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
