"""Workloads: requests with arrival time, prompt length and output length."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import cos, tau
from typing import Any, Final, NamedTuple, cast

from rx_backend.checks import fraction, instance, integer, number
from rx_backend.errors import InvalidArgument

__all__ = ("MIN_SPEED", "Request", "at_speed", "checked", "synthetic")

MIN_SPEED: Final = 1e-6
"""At this speed a day takes over 2,000 years; floats are too coarse for much longer times."""


class Request(NamedTuple):
    """One request of a workload."""

    arrival_s: float
    """Seconds since the first request."""
    prompt_tokens: int
    """Length of the prompt, in tokens."""
    output_tokens: int
    """Tokens to generate."""


def at_speed(workload: Iterable[Request], speed: float) -> Iterator[Request]:
    """
    Yield *workload* with its arrivals *speed* times as fast.

    Raises:
        InvalidArgument: *speed* is below :data:`MIN_SPEED`; or as :func:`checked`.
    """
    number("speed", speed, low=MIN_SPEED)
    return (row._replace(arrival_s=row.arrival_s / speed) for row in checked(workload))


def checked(workload: Iterable[Request]) -> Iterator[Request]:
    """
    Yield *workload*, each request checked.

    Raises:
        InvalidArgument: *workload* can't be iterated; or, during iteration, an element is not a
            request, or has invalid figures.
    """
    if not isinstance(cast("Any", workload), Iterable):
        raise InvalidArgument(f"workload: expected requests, got {workload!r}")
    return (_checked(f"workload[{index}]", row) for index, row in enumerate(workload))


def _checked(name: str, row: Request) -> Request:
    instance(name, row, Request)
    number(f"{name}.arrival_s", row.arrival_s, low=0, unit="seconds")
    integer(f"{name}.prompt_tokens", row.prompt_tokens, low=0, unit="tokens")
    integer(f"{name}.output_tokens", row.output_tokens, low=1, unit="tokens")
    return row


def synthetic(
    requests: int = 19_366,
    *,
    seed: int = 0,
    rate_per_s: float = 5.53,
    swing: float = 0.35,
    period_s: float = 3600.0,
) -> list[Request]:
    """
    Generate a workload in the shape of the Azure conversation trace of 2023.

    Arrivals are a Poisson process whose rate is a wave: it starts below the mean, and peaks at
    0.58 of its period. Prompt lengths follow the trace's quantiles, from 2 to 14,050 tokens
    with a median of 1,020; output lengths those of the trace for such prompts, from 7 to 1,000
    tokens with a median of 129. The same arguments give the same workload.

    Args:
        requests: Number of requests.
        seed: Seed of all draws.
        rate_per_s: Mean arrivals per second.
        swing: Amplitude of the wave as a fraction of the mean, 0 to 1; 0 for a plain Poisson
            process.
        period_s: Length of the wave, in seconds.

    Raises:
        InvalidArgument: A parameter is out of its range.

    Source of the quantiles: AzurePublicDataset (CC-BY 4.0), Patel et al., "Splitwise: Efficient
    generative LLM inference using phase splitting", ISCA 2024.
    """
    integer("requests", requests, low=1)
    integer("seed", seed)
    rate = number("rate_per_s", rate_per_s, low=0, above=True)
    swing = fraction("swing", swing)
    period = number("period_s", period_s, low=0, unit="seconds", above=True)
    draw = random.Random(seed)  # noqa: S311  # a simulation, no secret
    rows: list[Request] = []
    now = 0.0
    top = rate * (1 + swing)
    while len(rows) < requests:
        if rows:
            # Thinning: candidates at the peak rate, kept in proportion to the current rate.
            now += draw.expovariate(top)
            wave = 1 + swing * cos(tau * (now / period - _PEAK))
            if draw.random() * (1 + swing) >= wave:
                continue
        prompt = _from_quantiles(_PROMPT_TOKENS, draw.random())
        band = _OUTPUT_TOKENS[bisect_right(_PROMPT_BANDS, prompt)]
        rows.append(Request(now, prompt, _from_quantiles(band, draw.random())))
    return rows


_PEAK = 0.58

# (share of the requests, tokens): the trace's quantiles, interpolated linearly.
_PROMPT_TOKENS = (
    (0.0, 2), (0.01, 29), (0.02, 91), (0.05, 181), (0.1, 207), (0.15, 372), (0.2, 387),
    (0.3, 403), (0.4, 703), (0.45, 984), (0.5, 1020), (0.6, 1071), (0.7, 1130), (0.75, 1189),
    (0.8, 1315), (0.85, 1876), (0.9, 2734), (0.95, 4083), (0.98, 4098), (0.99, 4142),
    (0.995, 4831), (0.999, 6179), (1.0, 14050),
)  # fmt: skip

# Output lengths by prompt length: below each of these bounds, and above the last.
_PROMPT_BANDS = (200, 360, 600, 850, 1300, 2000, 3500)
_STEPS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_OUTPUT_TOKENS = tuple(
    tuple(zip(_STEPS, tokens, strict=True))
    for tokens in (
        (11, 12, 43, 101, 143, 183, 217, 224, 327, 1000),
        (14, 14, 18, 69, 152, 181, 217, 217, 223, 436),
        (7, 58, 66, 83, 94, 107, 130, 145, 180, 739),
        (10, 36, 43, 62, 86, 110, 125, 140, 444, 649),
        (26, 80, 120, 389, 402, 426, 474, 546, 651, 1000),
        (24, 50, 56, 82, 132, 181, 228, 285, 468, 918),
        (15, 42, 47, 66, 89, 118, 147, 164, 203, 458),
        (17, 29, 34, 42, 55, 80, 125, 154, 247, 757),
    )
)


def _from_quantiles(table: Sequence[tuple[float, int]], part: float) -> int:
    steps = (step for step in pairwise(table) if part <= step[1][0])
    (low, least), (high, most) = next(steps)
    return round(least + (most - least) * (part - low) / (high - low))
