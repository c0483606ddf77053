"""The progress of a replay, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from rx_backend.replay import ReplayResult
from rx_backend.replay.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(out: io.StringIO, planned: int | None, *times: float) -> str:
    result, clock = ReplayResult(planned), iter(times)
    result.running = 3
    with progress(out, clock=lambda: next(clock)) as update:
        for _ in times[1:]:
            update(result)
    return out.getvalue()


def test_occasional_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from a terminal, or without `rich`, there is a line every two seconds."""
    line = "0 of 9,000 requests, 0 tokens, 3 in flight at 0 s\n"
    assert shown(io.StringIO(), 9000, 0.0, 1.0, 2.0, 3.5, 4.5) == line * 2
    assert shown(io.StringIO(), None, 0.0, 2.0) == line.replace(" of 9,000", "")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert shown(Terminal(), 9000, 0.0, 2.0) == line


def test_a_bar_on_a_terminal() -> None:
    """A terminal gets a bar that goes away at the end, whether or not the length is known."""
    assert "0 of 10 requests" in shown(Terminal(), 10, 0.0, 1.0)
    assert "0 requests" in shown(Terminal(), None, 0.0, 1.0)
