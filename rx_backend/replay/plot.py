"""A replay as one picture; needs matplotlib, the extra `plot`."""

# matplotlib's own annotations leave its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rx_backend.replay.figures import ReplayResult, RequestFigures
from rx_backend.replay.report import Quantiles, Summary, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ("write_plot",)

_BLUE, _ORANGE, _RED, _GREY = "#2f6db3", "#d9822b", "#c23b3b", "#6b6f76"
_GROUPS = (
    ("completed", _BLUE, 7),
    ("cancelled", _ORANGE, 14),
    ("dropped", _GREY, 14),
    ("error", _RED, 14),
)
_TIME_BINS = 240
_ITL_BINS = 90
_FEW_TOKENS = 10
# Where logarithmic scales begin: the smallest step of the figures.
_LEAST_MS = 0.01


def write_plot(path: str | Path, result: ReplayResult, *, title: str = "") -> None:
    """
    Draw *result*: load and TTFT over time, TTFT and ITL as distributions, ITL against load.

    Args:
        path: The PNG file to write.
        result: A replay's figures.
        title: Shown above, with the main figures behind it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # an extra
    from matplotlib.figure import Figure  # noqa: PLC0415  # an extra

    summary = summarize(result)
    flight = _Flight(result.requests)
    figure = Figure(figsize=(13, 9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_headline(title, summary), x=0.01, ha="left", fontsize=11)
    axes: list[list[Axes]] = figure.subplots(
        3, 2, squeeze=False, gridspec_kw={"width_ratios": (3, 2)}
    ).tolist()
    _draw_flight(axes[0][0], flight)
    _draw_throughput(axes[1][0], result)
    _draw_ttft(axes[2][0], result.requests)
    _draw_ttft_shares(axes[0][1], result.requests, summary.ttft_ms)
    _draw_itl(axes[1][1], result, summary.itl_ms)
    _draw_itl_by_load(axes[2][1], result.requests, flight)
    for row in axes:
        row[0].set_xlim(0, max(result.duration_s, 1e-3))
        for panel in row:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(visible=True, color="#e6e6e6", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.tick_params(labelsize=8)
    figure.savefig(str(path))


class _Flight:
    """How many requests were in flight, as steps over time."""

    def __init__(self, requests: list[RequestFigures]) -> None:
        changes = Counter[float]()
        for row in requests:
            changes[row.arrival_s] += 1
            changes[row.end_s] -= 1
        self.times: list[float] = []
        self.counts: list[int] = []
        now = 0
        for time, change in sorted(changes.items()):
            now += change
            self.times.append(time)
            self.counts.append(now)

    def at(self, time_s: float) -> int:
        """Return the number in flight just after *time_s*."""
        place = bisect_right(self.times, time_s)
        return self.counts[place - 1] if place else 0


def _headline(title: str, summary: Summary) -> str:
    figures = (
        f"{summary.requests:,} requests, {summary.tokens:,} tokens in {summary.duration_s:,.0f} s; "
        f"TTFT p50 {_ms(summary.ttft_ms.p50)}, p99 {_ms(summary.ttft_ms.p99)}; "
        f"ITL p50 {_ms(summary.itl_ms.p50)}, p99 {_ms(summary.itl_ms.p99)}"
    )
    return f"{title}\n{figures}" if title else figures


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def _draw_flight(axes: Axes, flight: _Flight) -> None:
    _title(axes, "Requests in flight")
    axes.fill_between(flight.times, flight.counts, step="post", color=_BLUE, alpha=0.25, lw=0)
    axes.step(flight.times, flight.counts, where="post", color=_BLUE, lw=0.8)
    axes.set_ylim(bottom=0)


def _draw_throughput(axes: Axes, result: ReplayResult) -> None:
    _title(axes, "Output, tokens/s")
    width = max(1, -(-(int(result.duration_s) + 1) // _TIME_BINS))
    bins = Counter[int]()
    for second, tokens in result.tokens_by_s.items():
        bins[second // width] += tokens
    last = max(bins, default=0)
    starts = [place * width for place in range(last + 2)]
    rates = [bins[place] / width for place in range(last + 1)]
    axes.stairs(rates, starts, fill=True, color=_BLUE, alpha=0.35)
    axes.stairs(rates, starts, color=_BLUE, lw=0.8)
    axes.set_ylim(bottom=0)


def _draw_ttft(axes: Axes, requests: list[RequestFigures]) -> None:
    _title(axes, "TTFT by arrival, ms")
    axes.set_xlabel("seconds since the replay began", fontsize=8)
    for name, color, size in _GROUPS:
        points = [
            (row.arrival_s, max(row.ttft_ms, _LEAST_MS))
            for row in requests
            if row.ttft_ms is not None and _group(row) == name
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=size, color=color, alpha=0.6, linewidths=0, label=name)
    if axes.get_legend_handles_labels()[0]:
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
        axes.legend(fontsize=8, frameon=False, ncols=4, loc="upper left", markerscale=1.5)


def _draw_ttft_shares(axes: Axes, requests: list[RequestFigures], marks: Quantiles) -> None:
    _title(axes, "TTFT: part of the requests within ... ms")
    values = sorted(max(row.ttft_ms, _LEAST_MS) for row in requests if row.ttft_ms is not None)
    if not values:
        return
    shares = [(place + 1) / len(values) for place in range(len(values))]
    axes.step(values, shares, where="post", color=_BLUE, lw=1.4)
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.set_xlim(values[0] * 0.9, values[-1] * 1.4)
    axes.set_ylim(0, 1.02)
    _mark(axes, marks)


def _draw_itl(axes: Axes, result: ReplayResult, marks: Quantiles) -> None:
    _title(axes, "ITL: part of the gaps by length, ms")
    buckets = result.itl.buckets()
    if not buckets:
        return
    values = [max(ms, _LEAST_MS) for ms, _ in buckets]
    low, high = min(values) * 0.9, max(values) * 1.1
    step = (high / low) ** (1 / _ITL_BINS)
    edges = [low * step**place for place in range(_ITL_BINS + 1)]
    weights = [count / result.itl.total for _, count in buckets]
    axes.hist(values, bins=edges, weights=weights, color=_BLUE, alpha=0.75)
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.set_xlim(low, high * 1.3)
    _mark(axes, marks)


def _draw_itl_by_load(axes: Axes, requests: list[RequestFigures], flight: _Flight) -> None:
    _title(axes, "Time per output token, ms, by requests in flight at arrival")
    axes.set_xlabel("requests in flight", fontsize=8)
    points = [
        (flight.at(row.arrival_s), (row.duration_ms - row.ttft_ms) / (row.tokens - 1))
        for row in requests
        if row.ttft_ms is not None and row.tokens > _FEW_TOKENS
    ]
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=7, color=_BLUE, alpha=0.35, linewidths=0)
        axes.set_ylim(bottom=0)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10)


def _plain_numbers(axis: Axis) -> None:
    """Label a logarithmic *axis* in steps of 1, 2, 5, without powers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter  # noqa: PLC0415  # an extra

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _mark(axes: Axes, marks: Quantiles) -> None:
    """Mark the quantiles with lines, each named at its top, in turns so that names stay apart."""
    named = (("p50", marks.p50), ("p90", marks.p90), ("p99", marks.p99))
    for place, (name, value) in enumerate(named):
        if value:
            axes.axvline(value, color=_ORANGE, lw=1)
            axes.annotate(
                f" {name} {value:,.1f}",
                (value, 0.93 - 0.1 * place),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color=_ORANGE,
            )


def _group(row: RequestFigures) -> str:
    return row.outcome if row.outcome in {"cancelled", "dropped", "error"} else "completed"
