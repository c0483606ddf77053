"""SLO figures of several runs: by load, over time, and as outcomes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import ClassVar

from operators import LatencyQuantiles, SloFigures
from rx_backend.pictures import style
from rx_backend.pictures.style import Artist, Axes
from rx_backend.replay.charts.chart import Chart, finite, plain_logarithm, run_colors, text_table

__all__ = ("HistoryChart", "LoadChart", "OutcomeChart")

_MOST_ROWS = 20
_OUTCOMES = {
    "good": (style.STRONG[0], "white"),
    "slow": (style.PALE[2], style.INK),
    "failed": (style.STRONG[3], "white"),
    "cancelled": (style.FAINT, "white"),
}


class _LineChart(Chart):
    """
    Lines of figures against one other, a colour for each run; the table has the same figures.

    Attributes:
        against: The name and the title of what they are shown against.
        figures: The names of the figures in each panel, by its title. All but the last are dashed.
    """

    against: ClassVar[tuple[str, str]]
    figures: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, runs: Mapping[str, Sequence[tuple[float | None, ...]]]) -> None:
        self._runs = runs

    def _fill(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        for axes, title in zip(panels, self.figures, strict=True):
            axes.set(title=title, xlim=(0, self._last() * 1.03 or 1))
        for axes in panels[-self.grid[1] :]:
            axes.set_xlabel(self.against[1])
        for name, color in run_colors(self._runs).items():
            rows = [
                [math.nan if value is None else value for value in row] for row in self._runs[name]
            ]
            x, *columns = zip(*rows, strict=True) if rows else [()] * 9
            marker = "o" if len(x) <= _MOST_ROWS else ""
            lines = iter(columns)
            for axes, names in zip(panels, self.figures.values(), strict=True):
                for _ in names[:-1]:
                    axes.plot(x, next(lines), f"{marker}--", color=color, markerfacecolor="white")
                axes.plot(x, next(lines), f"{marker}-", color=color, label=name)
            yield panels[-1].lines[-1]

    def _last(self) -> float:
        return max((row[0] or 0.0 for run in self._runs.values() for row in run), default=0.0)

    def __repr__(self) -> str:
        names = [name for names in self.figures.values() for name in names]
        rows: list[tuple[object, ...]] = []
        for name, run in self._runs.items():
            step = -(-len(run) // _MOST_ROWS) or 1
            rows += [(name, f"{x:g}", *figures) for x, *figures in run[::-step][::-1]]
        return text_table(("run", self.against[0], *names), rows)


class LoadChart(_LineChart):
    """
    TTFT, ITL and goodput against the request rate, a colour for each run.

    Args:
        runs: For each run, by the name to show, the SLO figures at each request rate (per second).
        ttft_ms: The target for TTFT, to be shown as a line.
        itl_ms: The target for ITL.

    Raises:
        ValueError: A rate or a target is not finite, or below 0; names it.

    >>> from operators import SloWindows
    >>> windows = SloWindows(window_s=60, bucket_s=60)
    >>> windows.failed("llama")
    >>> LoadChart({"today": {2.5: windows.snapshot().total}})
    run    rate/s  TTFT p50  TTFT p99 ms  ITL p50  ITL p99 ms  good/s
    today     2.5         -            -        -           -     0.0
    """

    grid = (1, 3)
    against = ("rate/s", "requests per second")
    figures: ClassVar = {
        "TTFT, ms: p99, p50 dashed": ("TTFT p50", "TTFT p99 ms"),
        "ITL, ms: p99, p50 dashed": ("ITL p50", "ITL p99 ms"),
        "Good requests per second": ("good/s",),
    }

    def __init__(
        self,
        runs: Mapping[str, Mapping[float, SloFigures]],
        *,
        ttft_ms: float | None = None,
        itl_ms: float | None = None,
    ) -> None:
        super().__init__(
            {name: [_at_rate(*one) for one in sorted(run.items())] for name, run in runs.items()}
        )
        targets = {"ttft_ms": ttft_ms, "itl_ms": itl_ms}
        self._targets = tuple(
            target if target is None else finite(f"LoadChart: {name}", target, above=True)
            for name, target in targets.items()
        )

    def _fill(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        yield from super()._fill(panels)
        plain_logarithm(panels[0].yaxis)
        most = self._last()
        yield panels[2].plot([0, most], [0, most], color=style.FAINT, linewidth=1, label="all")[0]
        for axes in panels[1:]:
            axes.set_ylim(bottom=0)
        for axes, target in zip(panels, self._targets, strict=False):
            if target is not None:
                yield axes.axhline(
                    target,
                    color=style.INK,
                    linewidth=1,
                    linestyle="dotted",
                    label=f"target {target:g} ms",
                )


class HistoryChart(_LineChart):
    """
    Open requests and goodput over time, a colour for each run.

    Of the open requests those that are late, because they have missed a target already, are dashed.

    Args:
        runs: For each run, by the name to show, the SLO figures at regular times, such as
            ``SloWindows.live`` emits.
        every_s: The time between two of them, in seconds; the first is at that time.
        shaded: Times to mark, from and to, in seconds, by the name to show.

    Raises:
        ValueError: A time is not finite, or below 0; names the argument.
    """

    grid = (2, 1)
    size = (8.8, 4.2)
    against = ("after s", "time, s")
    figures: ClassVar = {
        "Open requests, the late ones dashed": ("late", "open"),
        "Goodput, %": ("goodput %",),
    }

    def __init__(
        self,
        runs: Mapping[str, Sequence[SloFigures]],
        *,
        every_s: float = 1.0,
        shaded: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        finite("HistoryChart: every_s", every_s, above=True)
        for time in chain.from_iterable((shaded or {}).values()):
            finite("HistoryChart: shaded", time)
        super().__init__(
            {
                name: [
                    (every_s * place, one.late, one.open, one.goodput and one.goodput * 100)
                    for place, one in enumerate(run, 1)
                ]
                for name, run in runs.items()
            }
        )
        self._shaded = dict(shaded or {})

    def _fill(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        yield from super()._fill(panels)
        for place, (name, stretch) in enumerate(self._shaded.items()):
            color = (style.FAINT, 0.2 + 0.2 * (place % 3))
            for axes in panels:
                axes.axvspan(*stretch, color=color, linewidth=0, zorder=0, label=name)
            yield panels[0].patches[-1]
        panels[0].set_ylim(bottom=0)
        panels[1].set_ylim(0, 103)


class OutcomeChart(Chart):
    """
    What became of the requests of several runs: good, slow, failed, cancelled.

    Args:
        runs: The SLO figures of each run, by the name to show; the first stands at the top.
        title: What the names are.
    """

    def __init__(self, runs: Mapping[str, SloFigures], *, title: str = "Requests") -> None:
        self._counts = {
            name: [getattr(figures, outcome) for outcome in _OUTCOMES]
            for name, figures in runs.items()
        }
        self._title = title
        self.size = (8.8, 1.15 + 0.23 * len(runs))

    def _fill(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        (axes,) = panels
        axes.set(title=style.shorten(self._title, 6.0), xlabel="requests")
        axes.set_yticks(
            range(len(self._counts)), [style.shorten(name, 2.0) for name in self._counts]
        )
        axes.set_ylim(max(len(self._counts), 1) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        per_inch = max(map(sum, self._counts.values()), default=0) / 6
        before = [0] * len(self._counts)
        for counts, (outcome, (color, ink)) in zip(
            zip(*self._counts.values(), strict=True), _OUTCOMES.items(), strict=False
        ):
            bars = axes.barh(range(len(counts)), counts, 0.72, before, color=color)
            shown = [
                f"{n:,}" if n > per_inch * (style.text_width(f"{n:,}") + 0.1) else ""
                for n in counts
            ]
            axes.bar_label(bars, shown, label_type="center", color=ink)
            before = [sum(pair) for pair in zip(before, counts, strict=True)]
            if any(counts):
                bars.patches[0].set_label(outcome)
                yield bars.patches[0]

    def __repr__(self) -> str:
        return text_table(
            ("", *_OUTCOMES), [(name, *counts) for name, counts in self._counts.items()]
        )


def _at_rate(rate_per_s: float, figures: SloFigures) -> tuple[float | None, ...]:
    finite("LoadChart: runs", rate_per_s)

    def both(latency: LatencyQuantiles | None) -> tuple[float | None, float | None]:
        return (None, None) if latency is None else (latency.p50_ms, latency.p99_ms)

    good = None if figures.goodput is None else rate_per_s * figures.goodput
    return (rate_per_s, *both(figures.ttft), *both(figures.itl), good)
