"""Open requests and goodput over time."""

# matplotlib's own annotations leave its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from operators import SloFigures
from rx_backend.pictures.palette import GUIDE, QUIET, STRONG, Colors
from rx_backend.replay.charts.chart import Chart, text_table, title_panel

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ("HistoryChart",)

# As text.
_MOST_ROWS = 20


class HistoryChart(Chart):
    """
    Open requests and goodput over time, a colour for each run.

    Of the open requests those that are late, because they have missed a target already, are filled.

    Args:
        runs: For each run, by the name to show, the SLO figures at regular times, such as
            ``SloWindows.live`` gives them.
        every_s: The time between two of them, in seconds; the first is at that time.
        shaded: Times to mark, from and to, in seconds, by the name to show.

    >>> from operators import SloWindows
    >>> windows = SloWindows(window_s=60, bucket_s=5)
    >>> windows.failed("llama")
    >>> HistoryChart({"today": [windows.snapshot().total] * 3}, every_s=5)
    run    after s  open  late  goodput %
    today        5     0     0        0.0
    today       10     0     0        0.0
    today       15     0     0        0.0
    """

    rows = 2
    height = 4.2

    def __init__(
        self,
        runs: Mapping[str, Sequence[SloFigures]],
        *,
        every_s: float = 1.0,
        shaded: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.runs = {name: list(run) for name, run in runs.items()}
        self.every_s = every_s
        self.shaded = dict(shaded or {})

    def draw(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        """Draw the requests above their goodput."""
        requests, goodput = panels
        title_panel(requests, "Open requests, the late ones filled")
        title_panel(goodput, "Goodput, %", "time, s")
        colors = Colors(STRONG)
        for name, run in self.runs.items():
            times = self._times(run)
            color = colors[name]
            late = [figures.late for figures in run]
            requests.fill_between(times, late, color=color, alpha=0.35, linewidth=0)
            yield requests.plot(times, [one.open for one in run], color=color, label=name)[0]
            shares = [math.nan if one.goodput is None else one.goodput * 100 for one in run]
            goodput.plot(times, shares, color=color)
        for name, (begin, end) in self.shaded.items():
            for axes in panels:
                axes.axvspan(begin, end, color=GUIDE, linewidth=0, zorder=0)
            requests.annotate(
                name,
                (begin, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                color=QUIET,
            )
        requests.set_xlim(
            0, max((len(run) for run in self.runs.values()), default=1) * self.every_s
        )
        requests.set_ylim(bottom=0)
        goodput.set_ylim(0, 103)

    def __repr__(self) -> str:
        return text_table(
            ("run", "after s", "open", "late", "goodput %"),
            [
                (name, f"{time:g}", one.open, one.late, one.goodput and one.goodput * 100)
                for name, run in self.runs.items()
                for time, one in _some(self._times(run), run)
            ],
        )

    def _times(self, run: Sequence[SloFigures]) -> list[float]:
        return [place * self.every_s for place in range(1, len(run) + 1)]


def _some(times: Sequence[float], run: Sequence[SloFigures]) -> list[tuple[float, SloFigures]]:
    """At most as many as can be read, the last one among them."""
    step = -(-len(run) // _MOST_ROWS) or 1
    return list(zip(times, run, strict=True))[::-step][::-1]
