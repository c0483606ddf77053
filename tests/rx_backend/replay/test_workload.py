"""The synthetic workload, and arrivals at another speed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from operators.authoring import nearest_rank
from rx_backend.errors import InvalidArgument
from rx_backend.replay import Request, at_speed, synthetic


def test_speed_shortens_the_gaps() -> None:
    """Twice the speed is half the time between arrivals; lengths stay."""
    assert list(at_speed([Request(0, 1, 2), Request(3, 4, 5)], 2)) == [(0, 1, 2), (1.5, 4, 5)]
    with pytest.raises(InvalidArgument, match="speed: expected a number, 1e-06 or more, got 0"):
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


def test_the_synthetic_workload_is_deterministic() -> None:
    """Same seed, same workload; another seed, another; a shorter one is the beginning of it."""
    assert synthetic(50, seed=1) == synthetic(80, seed=1)[:50]
    assert synthetic(50, seed=1) != synthetic(50, seed=2)
    assert synthetic(1)[0].arrival_s == 0


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("requests", 0), ("rate_per_s", 0), ("swing", 2), ("period_s", -1), ("seed", 0.5)],
)
def test_synthetic_parameters_are_checked(parameter: str, value: float) -> None:
    """A value out of range is refused by its name."""
    given: dict[str, float] = {parameter: value}
    with pytest.raises(InvalidArgument, match=f"{parameter}: expected"):
        synthetic(**given)  # pyright: ignore[reportArgumentType]
