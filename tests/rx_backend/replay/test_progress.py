"""How a replay shows how far it is."""

from __future__ import annotations

import io
import sys

import pytest

from rx_backend.replay import ReplayResult
from rx_backend.replay.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_now_and_then() -> None:
    """Away from a terminal there is a line every two seconds, however often it is called."""
    out, times = io.StringIO(), iter([0.0, 1.0, 2.0, 3.5, 4.5])
    result = ReplayResult(9000)
    result.running = 3
    with progress(out, clock=lambda: next(times)) as update:
        for _ in range(4):
            update(result)
    line = "0 of 9,000 requests, 0 tokens, 3 in flight at 0 s\n"
    assert out.getvalue() == line * 2


def test_a_bar_on_a_terminal() -> None:
    """A terminal gets a bar that goes away at the end."""
    out, times = Terminal(), iter([0.0, 1.0])
    with progress(out, clock=lambda: next(times)) as update:
        update(ReplayResult(10))
    assert "0 of 10 requests" in out.getvalue()


def test_no_rich_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra a terminal gets lines."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    out, times = Terminal(), iter([0.0, 2.0])
    with progress(out, clock=lambda: next(times)) as update:
        update(ReplayResult(10))
    assert out.getvalue() == "0 of 10 requests, 0 tokens, 0 in flight at 0 s\n"
