"""A replay as one picture; drawing needs matplotlib, the extra `plot`."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from rx_backend.pictures import style
from rx_backend.pictures._matplotlib import Artist, Axes, Figure
from rx_backend.pictures.picture import Picture
from rx_backend.replay.figures import ReplayResult
from rx_backend.replay.report import Quantiles, format_table, summarize

__all__ = ("ReplayChart",)

_BLUE, _ORANGE = style.STRONG[0], style.STRONG[1]
_OUTCOMES = {
    "completed": _BLUE,
    "cancelled": _ORANGE,
    "dropped": style.FAINT,
    "error": style.FAULT,
    "interrupted": style.STRONG[3],
}
_MOST_BINS, _FEW_TOKENS = 240, 10
_LEAST_MS = 0.01
"""Where logarithmic scales begin: the smallest step of the figures."""


class ReplayChart(Picture):
    """
    Load and TTFT over time, TTFT and ITL as distributions, and ITL against load.

    No text is inside a panel, where a line could cross it.

    Args:
        result: A replay's figures.
        title: Shown above, before the main figures.
    """

    def __init__(self, result: ReplayResult, *, title: str) -> None:
        self._result = result
        self._summary = summary = summarize(result)
        figures = f"{summary.requests:,} requests, {summary.tokens:,} tokens in {summary.duration_s:,.0f} s"
        self._headline = f"{style.shorten(title, 12.0)}\n{figures}"
        changes = Counter[float](row.arrival_s for row in result.requests)
        changes.subtract(row.end_s for row in result.requests)
        self._times = sorted(changes)
        self._in_flight = list(accumulate(changes[time] for time in self._times))

    def __repr__(self) -> str:
        return format_table(self._summary)

    def _draw(self, figure: Figure) -> None:
        figure.set_layout_engine("constrained")
        figure.set_size_inches(13.0, 9.0)
        flight, ttft_shares, output, itl, ttft, by_load = figure.subplots(3, 2).flat
        flight.set(title="Requests in flight")
        flight.fill_between(self._times, self._in_flight, step="post", color=_BLUE, alpha=0.3)
        self._draw_output(output)
        ttfts = Counter(row.ttft_ms for row in self._result.requests if row.ttft_ms is not None)
        gaps = dict(self._result.itl.buckets())
        _draw_shares(ttft_shares, "TTFT, share of requests within ms", ttfts, self._summary.ttft_ms)
        _draw_shares(itl, "ITL, share of gaps within ms", gaps, self._summary.itl_ms)
        self._draw_by_load(by_load)
        for axes in (flight, output, by_load):
            axes.set_ylim(bottom=0)
        for axes in (flight, output, ttft):
            axes.set_xlim(0, max(self._result.duration_s, 1e-3))
        outcomes = list(self._draw_ttft(ttft))
        legend = {"title": self._headline, "alignment": "left", "loc": "outside upper left"}
        figure.legend(handles=outcomes, ncols=len(_OUTCOMES), **legend)

    def _draw_output(self, axes: Axes) -> None:
        axes.set(title="Output, tokens per second")
        width = max(1, -(-(int(self._result.duration_s) + 1) // _MOST_BINS))
        bins = Counter[int]()
        for second, tokens in self._result.tokens_by_s.items():
            bins[second // width] += tokens
        last = max(bins, default=0)
        edges = [place * width for place in range(last + 2)]
        rates = [bins[place] / width for place in range(last + 1)]
        axes.stairs(rates, edges, fill=True, color=_BLUE, alpha=0.4)

    def _draw_ttft(self, axes: Axes) -> Iterable[Artist]:
        axes.set(title="TTFT by arrival, ms", xlabel="seconds since the replay began")
        points: dict[str, list[tuple[float, float]]] = {name: [] for name in _OUTCOMES}
        for row in self._result.requests:
            if row.ttft_ms is not None:
                outcome = row.outcome if row.outcome in _OUTCOMES else "completed"
                points[outcome].append((row.arrival_s, max(row.ttft_ms, _LEAST_MS)))
        for name, found in points.items():
            if found:
                x, y = zip(*found, strict=True)
                yield axes.scatter(x, y, s=12, color=_OUTCOMES[name], alpha=0.6, lw=0, label=name)
        if any(points.values()):
            _make_logarithmic(axes.yaxis)

    def _draw_by_load(self, axes: Axes) -> None:
        axes.set(title="Time per output token, ms", xlabel="requests in flight at arrival")
        points = [
            (
                self._in_flight[bisect_right(self._times, row.arrival_s) - 1],
                (row.duration_ms - row.ttft_ms) / (row.tokens - 1),
            )
            for row in self._result.requests
            if row.ttft_ms is not None and row.tokens > _FEW_TOKENS
        ]
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.scatter(x, y, s=7, color=_BLUE, alpha=0.35, linewidths=0)


def _draw_shares(axes: Axes, title: str, counts: Mapping[float, int], marks: Quantiles) -> None:
    """Draw the share within each latency; lines are the quantiles that the title names."""
    named = {"p50": marks.p50, "p90": marks.p90, "p99": marks.p99}
    lines = {name: value for name, value in named.items() if value is not None}
    values = [f"{name} {ms:,.1f}" for name, ms in lines.items()]
    axes.set_title(f"{title}: {', '.join(values) or 'none'}")
    if counts:
        values = [max(ms, _LEAST_MS) for ms in counts]
        axes.ecdf(values, weights=list(counts.values()), color=_BLUE)
        _make_logarithmic(axes.xaxis)
        axes.set_xlim(min(values) * 0.9, max(values) * 1.4)
        for value in lines.values():
            axes.axvline(max(value, _LEAST_MS), color=_ORANGE, linewidth=1)


def _make_logarithmic(axis: Any) -> None:
    """Make *axis* logarithmic, labelled in numbers without powers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter  # noqa: PLC0415  # an extra

    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
