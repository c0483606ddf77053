"""When the tokens of a few streams came."""

# matplotlib's own annotations leave its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from operators import TokenTimes
from operators.authoring import latency_figures
from rx_backend.pictures.palette import STRONG, Colors
from rx_backend.replay.charts.chart import Chart, plain_logarithm, text_table, title_panel

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

__all__ = ("TokenChart",)

# From here on seconds read better.
_MOST_MS = 3000.0
# More dots than these on a line would be a thicker line.
_MANY = 80


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

    columns = 2

    def __init__(
        self, streams: Mapping[str, TokenTimes], *, beside: Literal["gaps", "sizes"] = "gaps"
    ) -> None:
        if beside not in {"gaps", "sizes"}:
            raise ValueError(f"TokenChart: beside: expected 'gaps' or 'sizes', got {beside!r}")
        self.streams = dict(streams)
        self.beside = beside

    def draw(self, panels: Sequence[Axes]) -> Iterable[Artist]:
        """Draw the lines, and the dots beside them."""
        lines, dots = panels
        ends = [_since_ms(times)[-1] for times in self.streams.values() if times.times]
        unit, per_ms = ("s", 1e-3) if max(ends, default=0.0) > _MOST_MS else ("ms", 1.0)
        label = f"time since the request, {unit}"
        title_panel(lines, "Tokens received", label)
        title_panel(dots, _BESIDE[self.beside], label)
        colors = Colors(STRONG)
        for name, times in self.streams.items():
            came = [ms * per_ms for ms in _since_ms(times)]
            sizes = [times.sizes.get(place, 1) for place in range(len(came))]
            tokens = list(accumulate(sizes))
            color = colors[name]
            if len(came) <= _MANY:
                lines.plot(came, tokens, ".", color=color)
            if self.beside == "gaps":
                dots.plot(came[1:], times.itl_ms(), ".", color=color)
            else:
                dots.plot(came, sizes, ".", color=color)
            ttft = "no token" if times.ttft_ms is None else f"TTFT {times.ttft_ms:,.0f} ms"
            named = f"{name} ({ttft})"
            yield lines.step(came, tokens, where="post", color=color, label=named)[0]
        for axes in panels:
            axes.set_xlim(left=0)
            highest = float(axes.dataLim.y1)
            axes.set_ylim(0, highest * 1.06 if 0 < highest < math.inf else 1)
        if self.beside == "sizes":
            plain_logarithm(dots)
            dots.set_ylim(0.8, None)

    def __repr__(self) -> str:
        rows: list[tuple[object, ...]] = []
        for name, times in self.streams.items():
            itl = times.itl_figures()
            per_token = latency_figures(times.itl_per_token_ms())
            rows.append(
                (
                    name,
                    len(times.times),
                    times.output_tokens,
                    times.ttft_ms,
                    _since_ms(times)[-1] if times.times else None,
                    itl and itl.p50_ms,
                    itl and itl.max_ms,
                    per_token and per_token.p50_ms,
                )
            )
        return text_table(_HEAD, rows)


_BESIDE = {"gaps": "Gap before each chunk, ms", "sizes": "Tokens in each chunk"}
_HEAD = (
    "",
    "chunks",
    "tokens",
    "TTFT ms",
    "last ms",
    "ITL p50 ms",
    "max ms",
    "per token p50 ms",
)


def _since_ms(times: TokenTimes) -> list[float]:
    return [(time - times.started) * 1000.0 for time in times.times]
