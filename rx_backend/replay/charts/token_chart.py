"""When the tokens of a few streams arrived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from operators import TokenTimes
from operators.authoring import latency_figures
from rx_backend.pictures import style
from rx_backend.pictures.style import Artist, Axes
from rx_backend.replay.charts.chart import Chart, plain_logarithm, run_colors, text_table

__all__ = ("TokenChart",)

_SECONDS_FROM_MS = 3000.0
_MOST_DOTS = 80
"""More on a line would be a thicker line."""
_BESIDE = {"gaps": "Gap before each chunk, ms", "sizes": "Tokens in each chunk"}


class TokenChart(Chart):
    """
    Tokens received over time, a line for each stream, and beside it something about their chunks.

    A line begins at the stream's TTFT and is as steep as its ITL is short; each dot is a chunk.

    Args:
        streams: The records of some streams, by the names to show.
        beside: What to show of each chunk: the ``gaps`` before them, in ms, or their ``sizes``, in
            tokens.

    Raises:
        ValueError: *beside* is neither.

    >>> times = TokenTimes(clock=lambda: 0.0)
    >>> times.times.extend([0.1, 0.12, 0.16])
    >>> times.sizes[2] = 4
    >>> TokenChart({"a stream": times})
              chunks  tokens  TTFT ms  last ms  ITL p50 ms  max ms  per token p50 ms
    a stream       3       6    100.0    160.0        40.0    40.0              10.0
    """

    grid = (1, 2)

    def __init__(
        self, streams: Mapping[str, TokenTimes], *, beside: Literal["gaps", "sizes"] = "gaps"
    ) -> None:
        if beside not in _BESIDE:
            raise ValueError(f"TokenChart: beside: expected 'gaps' or 'sizes', got {beside!r}")
        self._streams = dict(streams)
        self._beside = beside

    def _fill(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        lines, dots = panels
        ends = [_since_ms(times)[-1] for times in self._streams.values() if times.times]
        unit, per_ms = ("s", 1e-3) if max(ends, default=0.0) > _SECONDS_FROM_MS else ("ms", 1.0)
        label = f"time since the request, {unit}"
        lines.set(title="Tokens received", xlabel=label)
        dots.set(title=_BESIDE[self._beside], xlabel=label)
        if self._beside == "sizes":
            plain_logarithm(dots.yaxis)
        for name, color in run_colors(self._streams).items():
            times = self._streams[name]
            arrivals = [ms * per_ms for ms in _since_ms(times)]
            sizes = [times.sizes.get(place, 1) for place in range(len(arrivals))]
            tokens = list(accumulate(sizes))
            marker = "." if len(arrivals) <= _MOST_DOTS else ""
            if self._beside == "gaps":
                dots.plot(arrivals[1:], times.itl_ms(), ".", color=color)
            else:
                dots.plot(arrivals, sizes, ".", color=color)
            ttft = "no token" if times.ttft_ms is None else f"TTFT {times.ttft_ms:,.0f} ms"
            label = f"{style.shorten(name, 2.0)} ({ttft})"
            font = {"where": "post", "color": color, "marker": marker, "label": label}
            yield lines.step(arrivals, tokens, **font)[0]
        for axes in panels:
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0.8 if axes.get_yscale() == "log" else 0)

    def __repr__(self) -> str:
        rows: list[tuple[object, ...]] = []
        for name, times in self._streams.items():
            itl = times.itl_figures()
            per_token = latency_figures(times.itl_per_token_ms())
            last = _since_ms(times)[-1] if times.times else None
            row = (name, len(times.times), times.output_tokens, times.ttft_ms, last)
            rows.append(
                (*row, itl and itl.p50_ms, itl and itl.max_ms, per_token and per_token.p50_ms)
            )
        return text_table(
            (
                "",
                "chunks",
                "tokens",
                "TTFT ms",
                "last ms",
                "ITL p50 ms",
                "max ms",
                "per token p50 ms",
            ),
            rows,
        )


def _since_ms(times: TokenTimes) -> list[float]:
    return [(time - times.started) * 1000.0 for time in times.times]
