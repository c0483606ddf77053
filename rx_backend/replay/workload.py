"""What to replay: rows of arrival time, prompt length and output length."""

from __future__ import annotations

import csv
import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice, pairwise
from math import cos, tau
from pathlib import Path
from typing import NamedTuple

from rx_backend.engines.checks import fraction, number, whole
from rx_backend.errors import InvalidArgument

__all__ = ("TRACE_COLUMNS", "Request", "at_speed", "read_trace", "synthetic")

TRACE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Columns of the public Azure LLM inference traces."""


class Request(NamedTuple):
    """One request of a workload."""

    arrival_s: float
    """Seconds since the first request."""
    prompt_tokens: int
    """Length of the prompt, in tokens."""
    output_tokens: int
    """Tokens to generate."""


def read_trace(path: str | Path, *, limit: int | None = None) -> list[Request]:
    """
    Read a workload in the CSV format of the public Azure LLM inference traces.

    The first line names the columns `TIMESTAMP,ContextTokens,GeneratedTokens`; further columns
    are ignored. A time looks like `2023-11-16 18:15:46.6805900`, with any number of fractional
    digits. Arrivals count from the first row; rows out of order are sorted.

    Args:
        path: The file.
        limit: Most requests to read, from the start; None for all.

    Raises:
        InvalidArgument: The file can't be read, is empty, lacks a column, or has a bad value;
            the message names file, line and column.
    """
    if limit is not None:
        whole("limit", limit, low=1, unit="requests")
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as lines:
            rows = list(islice(_rows(str(path), lines), limit))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgument(f"trace {path}: can't be read: {reason}") from error
    if not rows:
        raise InvalidArgument(f"trace {path}: has no requests")
    rows.sort(key=lambda row: row[0])
    start, start_fraction = rows[0][0]
    return [
        # Whole seconds and fractions apart: a float of today's epoch holds no 100 ns.
        Request((whole_s - start) + (part - start_fraction), prompt, output)
        for (whole_s, part), prompt, output in rows
    ]


def at_speed(workload: Sequence[Request], speed: float) -> list[Request]:
    """
    Return *workload* with its arrivals *speed* times as fast.

    Raises:
        InvalidArgument: *speed* is not above 0.
    """
    number("speed", speed, low=0, above=True)
    return [row._replace(arrival_s=row.arrival_s / speed) for row in workload]


def synthetic(
    requests: int = 19_366,
    *,
    seed: int = 0,
    rate_per_s: float = 5.53,
    swing: float = 0.35,
    period_s: float = 3600.0,
) -> list[Request]:
    """
    Make up a workload of the shape of the Azure conversation trace of 2023.

    Arrivals are a Poisson process whose rate is a wave: it starts below the mean, and peaks at
    0.58 of its period. Prompt lengths follow the trace's quantiles, from 2 to 14,050 tokens
    with a median of 1,020; output lengths those that the trace has for such prompts, from 7 to
    1,000 tokens with a median of 129. Same arguments, same workload.

    Args:
        requests: How many.
        seed: Decides all draws.
        rate_per_s: Mean arrivals per second.
        swing: How far the rate goes up and down, as a part of the mean, 0 to 1; 0 for a plain
            Poisson process.
        period_s: Length of the wave, in seconds.

    Raises:
        InvalidArgument: A parameter is out of its range.

    Source of the quantiles: AzurePublicDataset (CC-BY 4.0), Patel et al., "Splitwise: Efficient
    generative LLM inference using phase splitting", ISCA 2024.
    """
    whole("requests", requests, low=1)
    rate = number("rate_per_s", rate_per_s, low=0, above=True)
    swing = fraction("swing", swing)
    period = number("period_s", period_s, low=0, unit="s", above=True)
    draw = random.Random(seed)  # noqa: S311  # a simulation, no secret
    rows: list[Request] = []
    now = 0.0
    top = rate * (1 + swing)
    while len(rows) < requests:
        if rows:
            # Thinning: candidates at the top rate, kept as often as the rate of now says.
            now += draw.expovariate(top)
            wave = 1 + swing * cos(tau * (now / period - _PEAK))
            if draw.random() * (1 + swing) >= wave:
                continue
        prompt = _from_quantiles(_PROMPT_TOKENS, draw.random())
        band = _OUTPUT_TOKENS[bisect_right(_PROMPT_BANDS, prompt)]
        rows.append(Request(now, prompt, _from_quantiles(band, draw.random())))
    return rows


_PEAK = 0.58

# (part of the requests, tokens): the trace's own quantiles, straight lines between them.
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
    for (low, least), (high, most) in pairwise(table):
        if part <= high:
            return round(least + (most - least) * (part - low) / (high - low))
    return table[-1][1]


_Row = tuple[tuple[int, float], int, int]


def _rows(path: str, lines: Iterable[str]) -> Iterable[_Row]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, ())]
    places: list[int] = []
    for column in TRACE_COLUMNS:
        if column not in header:
            raise InvalidArgument(f"trace {path}, line 1: column {column} is missing")
        places.append(header.index(column))
    for fields in reader:
        if not fields:
            continue
        cells = [fields[place].strip() if place < len(fields) else "" for place in places]
        where = f"trace {path}, line {reader.line_num}, column "
        time = _time(cells[0], where + TRACE_COLUMNS[0])
        prompt = _count(cells[1], where + TRACE_COLUMNS[1], low=0)
        yield time, prompt, _count(cells[2], where + TRACE_COLUMNS[2], low=1)


def _time(text: str, where: str) -> tuple[int, float]:
    # The standard parser knows six fractional digits; the traces have seven.
    moment, _, digits = text.partition(".")
    try:
        since = datetime.fromisoformat(moment) - _EPOCH
        part = float(f"0.{digits or 0}")
    except (ValueError, TypeError):
        raise InvalidArgument(
            f"{where}: expected a time like 2023-11-16 18:15:46.6805900, got {text!r}"
        ) from None
    return since.days * 86_400 + since.seconds, part


_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # the traces' times have no zone; only gaps matter


def _count(text: str, where: str, *, low: int) -> int:
    if text.isascii() and text.isdigit() and int(text) >= low:
        return int(text)
    raise InvalidArgument(f"{where}: expected a whole number >= {low}, got {text!r}")
