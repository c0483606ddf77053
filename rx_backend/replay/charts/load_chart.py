"""What the request rate does to latency and goodput."""

# matplotlib's own annotations leave its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from operators import SloFigures
from rx_backend.pictures.palette import FAINT, QUIET, STRONG, Colors
from rx_backend.replay.charts.chart import (
    Chart,
    mark_target,
    plain_logarithm,
    text_table,
    title_panel,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ("LoadChart",)

_LABEL = "requests per second"
_Latency: TypeAlias = Literal["ttft", "itl"]
_LATENCIES: tuple[_Latency, _Latency] = ("ttft", "itl")
_Quantile: TypeAlias = Literal["p50", "p99"]


class LoadChart(Chart):
    """
    TTFT, ITL and goodput against the request rate, a colour for each run.

    Args:
        runs: For each run, by the name to show, the SLO figures at each request rate (per second).
        ttft_ms: The target for TTFT, to be shown as a line.
        itl_ms: The target for ITL.

    >>> from operators import SloWindows
    >>> windows = SloWindows(window_s=60, bucket_s=60)
    >>> windows.failed("llama")
    >>> LoadChart({"today": {2.5: windows.snapshot().total}})
    run    rate/s  TTFT p50  TTFT p99 ms  ITL p50  ITL p99 ms  good/s
    today     2.5         -            -        -           -     0.0
    """

    columns = 3

    def __init__(
        self,
        runs: Mapping[str, Mapping[float, SloFigures]],
        *,
        ttft_ms: float | None = None,
        itl_ms: float | None = None,
    ) -> None:
        self.runs = {name: dict(run) for name, run in runs.items()}
        self.ttft_ms = ttft_ms
        self.itl_ms = itl_ms

    def draw(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        """Draw the quantiles, the targets, and what is good of what was asked."""
        ttft, itl, good = panels
        title_panel(ttft, "TTFT, ms", _LABEL)
        title_panel(itl, "ITL, ms", _LABEL)
        title_panel(good, "Good requests per second", _LABEL)
        plain_logarithm(ttft)
        colors = Colors(STRONG)
        for name, run in self.runs.items():
            rates = sorted(run)
            color = colors[name]
            for axes, which in zip((ttft, itl), _LATENCIES, strict=True):
                for quantile, look in _LOOKS.items():
                    values = [_quantile(run[rate], which, quantile) for rate in rates]
                    axes.plot(rates, [_drawn(value) for value in values], color=color, **look)
            goods = [_drawn(_good_per_s(rate, run[rate])) for rate in rates]
            yield good.plot(rates, goods, color=color, label=name, **_LOOKS["p99"])[0]
        for name, look in _LOOKS.items():
            yield ttft.plot([], [], color=QUIET, label=name, **look)[0]
        most = max((rate for run in self.runs.values() for rate in run), default=0.0)
        yield good.plot([0, most], [0, most], color=FAINT, linewidth=1, zorder=1, label="all")[0]
        mark_target(ttft, self.ttft_ms)
        mark_target(itl, self.itl_ms)
        for axes in panels:
            axes.set_xlim(left=0)
        for axes in (itl, good):
            axes.set_ylim(bottom=0)

    def __repr__(self) -> str:
        return text_table(
            ("run", "rate/s", "TTFT p50", "TTFT p99 ms", "ITL p50", "ITL p99 ms", "good/s"),
            [
                (
                    name,
                    f"{rate:g}",
                    *(_quantile(run[rate], which, q) for which in _LATENCIES for q in _LOOKS),
                    _good_per_s(rate, run[rate]),
                )
                for name, run in self.runs.items()
                for rate in sorted(run)
            ],
        )


_LOOKS: dict[_Quantile, dict[str, Any]] = {
    "p50": {"marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    "p99": {"marker": "o"},
}


def _quantile(figures: SloFigures, which: _Latency, name: _Quantile) -> float | None:
    latency = figures.ttft if which == "ttft" else figures.itl
    if latency is None:
        return None
    return latency.p50_ms if name == "p50" else latency.p99_ms


def _good_per_s(rate_per_s: float, figures: SloFigures) -> float | None:
    return None if figures.goodput is None else rate_per_s * figures.goodput


def _drawn(value: float | None) -> float:
    """What is not known leaves a gap in a line."""
    return math.nan if value is None else value
