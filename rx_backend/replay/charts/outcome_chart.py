"""What became of the requests of several runs."""

# matplotlib's own annotations leave its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from operators import SloFigures
from rx_backend.pictures.palette import FAINT, INK, PALE, STRONG
from rx_backend.replay.charts.chart import Chart, text_table, title_panel

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ("OutcomeChart",)

_OUTCOMES = {
    "good": (STRONG[0], "white"),
    "slow": (PALE[2], INK),
    "failed": (STRONG[3], "white"),
    "cancelled": (FAINT, "white"),
}
# In inches: of all but the bars, and for each bar.
_HEIGHT, _BAR_HEIGHT = 1.15, 0.23
# A number needs about this part of the width.
_ROOM = 0.03


class OutcomeChart(Chart):
    """
    What became of the requests of several runs: good, slow, failed, cancelled.

    Args:
        runs: The SLO figures of each run, by the name to show; the first stands at the top.
        title: What the names are.

    >>> from operators import SloWindows
    >>> windows = SloWindows(window_s=60, bucket_s=5)
    >>> windows.failed("llama")
    >>> OutcomeChart({"Monday": windows.snapshot().total})
            good  slow  failed  cancelled
    Monday     0     0       1          0
    """

    def __init__(self, runs: Mapping[str, SloFigures], *, title: str = "Requests") -> None:
        self.runs = dict(runs)
        self.title = title
        self.height = _HEIGHT + _BAR_HEIGHT * len(self.runs)

    def draw(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        """Draw a bar for each run, in parts."""
        (axes,) = panels
        title_panel(axes, self.title, "requests")
        most = max((figures.requests for figures in self.runs.values()), default=0)
        places = range(len(self.runs))
        before = [0] * len(self.runs)
        for outcome, (color, ink) in _OUTCOMES.items():
            counts = [getattr(figures, outcome) for figures in self.runs.values()]
            if not any(counts):
                continue
            bars = axes.barh(places, counts, left=before, color=color, height=0.72)
            bars.patches[0].set_label(outcome)
            shown = [f"{count:,}" if count > most * _ROOM else "" for count in counts]
            axes.bar_label(bars, shown, label_type="center", color=ink)
            before = [sum(pair) for pair in zip(before, counts, strict=True)]
            yield bars.patches[0]
        axes.set_yticks(places, list(self.runs))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    def __repr__(self) -> str:
        return text_table(
            ("", *_OUTCOMES),
            [
                (name, *(getattr(figures, outcome) for outcome in _OUTCOMES))
                for name, figures in self.runs.items()
            ],
        )
