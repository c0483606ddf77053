"""Traces from CSV, and the synthetic workload."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from operators.authoring import nearest_rank
from rx_backend.errors import InvalidArgument
from rx_backend.replay import Request, at_speed, read_trace, synthetic

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: str, end: str = "\r\n") -> Path:
        path = tmp_path / "trace.csv"
        path.write_bytes("".join(line + end for line in lines).encode())
        return path

    return write


def test_reads_the_public_format(write: Write) -> None:
    """Times count from the first row, to the seventh digit and across midnight."""
    path = write(
        HEADER,
        "2023-11-16 23:59:59.6805900,374,44",
        "2023-11-16 23:59:59.6805901,396,109",
        "2023-11-17 00:00:01.0000000,879,55",
    )
    rows = read_trace(path)
    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [
        (374, 44),
        (396, 109),
        (879, 55),
    ]
    assert [row.arrival_s for row in rows] == pytest.approx([0, 1e-7, 1.31941], abs=1e-9)


def test_other_columns_and_their_order_do_not_matter(write: Write) -> None:
    """Columns are found by name; empty lines, a byte order mark and short times are fine."""
    path = write(
        "\ufeffGeneratedTokens,Extra,TIMESTAMP,ContextTokens",
        "5,x,2023-11-16 18:00:00,7",
        "",
        "6,x,2023-11-16 18:00:01.5,0",
        end="\n",
    )
    assert read_trace(path) == [Request(0.0, 7, 5), Request(1.5, 0, 6)]


def test_rows_out_of_order_are_sorted(write: Write) -> None:
    """Arrivals rise whatever the order of the rows."""
    path = write(HEADER, "2023-11-16 18:00:02,1,1", "2023-11-16 18:00:00.5,2,2")
    assert read_trace(path) == [Request(0.0, 2, 2), Request(1.5, 1, 1)]


def test_limit_stops_reading(write: Write) -> None:
    """Rows behind the limit are not even looked at."""
    path = write(HEADER, "2023-11-16 18:00:00,1,1", "broken")
    assert len(read_trace(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "line 1: column TIMESTAMP is missing"),
        (["TIMESTAMP,GeneratedTokens"], "line 1: column ContextTokens is missing"),
        ([HEADER], "has no requests"),
        ([HEADER, "yesterday,1,1"], "line 2, column TIMESTAMP: .* got 'yesterday'"),
        ([HEADER, "2023-11-16 18:00:00.5x,1,1"], "line 2, column TIMESTAMP"),
        ([HEADER, "2023-11-16 18:00:00+01:00,1,1"], "line 2, column TIMESTAMP"),
        ([HEADER, "2023-11-16 18:00:00,1,1", "2023-11-16 18:00:00,-1,1"], "line 3, .*ContextTok"),
        ([HEADER, "2023-11-16 18:00:00,1.5,1"], "line 2, column ContextTokens: .* got '1.5'"),
        ([HEADER, "2023-11-16 18:00:00,\u0663,1"], "line 2, column ContextTokens"),
        ([HEADER, "2023-11-16 18:00:00,1,0"], "GeneratedTokens: expected a whole number >= 1"),
        ([HEADER, "2023-11-16 18:00:00,1"], "line 2, column GeneratedTokens: .* got ''"),
    ],
)
def test_bad_input_names_line_and_column(write: Write, lines: list[str], complaint: str) -> None:
    """What is wrong is said with file, line and column."""
    path = write(*lines)
    with pytest.raises(InvalidArgument, match=complaint) as caught:
        read_trace(path)
    assert str(path) in caught.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and a file that is no text are typed errors too."""
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.csv", tmp_path, binary):
        with pytest.raises(InvalidArgument, match="can't be read"):
            read_trace(path)


def test_speed_shortens_the_gaps() -> None:
    """Twice the speed is half the time between arrivals; lengths stay."""
    assert at_speed([Request(0, 1, 2), Request(3, 4, 5)], 2) == [(0, 1, 2), (1.5, 4, 5)]
    with pytest.raises(InvalidArgument, match="speed must be a number > 0, got 0"):
        at_speed([], 0)


def test_synthetic_has_the_quantiles_of_the_trace() -> None:
    """Lengths and gaps are within a tenth of the trace's quantiles."""
    rows = synthetic(seed=3)
    assert len(rows) == 19_366
    gaps = [late.arrival_s - soon.arrival_s for soon, late in pairwise(rows)]
    figures = (
        ([row.prompt_tokens for row in rows], {0.1: 207, 0.5: 1020, 0.9: 2734, 0.99: 4142}),
        ([row.output_tokens for row in rows], {0.1: 54, 0.5: 129, 0.9: 424, 0.99: 601}),
        (gaps, {0.25: 0.048, 0.5: 0.118, 0.9: 0.421, 0.99: 0.891}),
    )
    for values, expected in figures:
        ordered = sorted(values)
        found = {q: nearest_rank(ordered, q) for q in expected}
        assert found == pytest.approx(expected, rel=0.1)


def test_synthetic_rate_rises_and_falls() -> None:
    """The busiest part of the wave is at its peak; without a swing there is none."""

    def per_third(swing: float) -> list[int]:
        counts = [0, 0, 0]
        for row in synthetic(6000, swing=swing, period_s=1000, rate_per_s=6):
            if row.arrival_s < 900:
                counts[int(row.arrival_s / 300)] += 1
        return counts

    low, high, _ = per_third(0.5)
    assert high > 1.5 * low
    low, high, _ = per_third(0)
    assert high == pytest.approx(low, rel=0.1)


def test_synthetic_is_decided_by_its_arguments() -> None:
    """Same seed, same workload; another seed, another; a shorter one is the beginning of it."""
    assert synthetic(50, seed=1) == synthetic(80, seed=1)[:50]
    assert synthetic(50, seed=1) != synthetic(50, seed=2)
    assert synthetic(1)[0].arrival_s == 0


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("requests", 0), ("rate_per_s", 0), ("swing", 2), ("period_s", -1)],
)
def test_synthetic_parameters_are_checked(parameter: str, value: float) -> None:
    """A value out of range is refused by its name."""
    given: dict[str, float] = {parameter: value}
    with pytest.raises(InvalidArgument, match=f"{parameter} must be"):
        synthetic(**given)  # pyright: ignore[reportArgumentType]
