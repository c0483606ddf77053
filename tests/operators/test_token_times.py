"""`operators.token_times`."""

from __future__ import annotations

from dataclasses import astuple
from fractions import Fraction
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import LatencyFigures, TokenTimes
from operators.authoring import latency_figures, nearest_rank

SAMPLES_MS = st.lists(st.floats(0, 1e6), min_size=1, max_size=100)


def record(*gaps_ms: float, started: float = 0.0) -> TokenTimes:
    """Return the record of a first token at 1 s, and one more after each gap."""
    times = TokenTimes()
    times.started = started
    times.times.extend(accumulate((gap / 1000.0 for gap in gaps_ms), initial=1.0))
    return times


@pytest.mark.rows("F4")
@pytest.mark.reference("record_itl_distribution_computes_percentiles")
def test_the_figures_of_five_samples() -> None:
    """Samples 10 to 50 ms: average 30.00, median 30.00, 99th percentile and maximum 50.00."""
    figures = (30.00, 30.00, 50.00, 50.00, 5)
    assert latency_figures([30, 10, 50, 20, 40]) == LatencyFigures(*figures)
    assert record(30, 10, 50, 20, 40).itl_figures() == LatencyFigures(*figures)


@pytest.mark.rows("F4")
@pytest.mark.reference("record_itl_distribution_no_op_when_empty")
def test_without_a_sample_there_are_no_figures() -> None:
    """No gap gives no figure at all: not before the first token, and not after a single one."""
    assert latency_figures([]) is None
    assert TokenTimes().itl_figures() is None
    assert record().itl_figures() is None


@pytest.mark.rows("F4")
def test_the_nearest_rank() -> None:
    """The value at ``(n - 1) * q``, halves up; up to 2000 values floats put none off."""
    exact = {0.0: Fraction(0), 0.5: Fraction(1, 2), 0.99: Fraction(99, 100), 1.0: Fraction(1)}
    for n in range(1, 2_001):
        for q, fraction in exact.items():
            assert nearest_rank(range(n), q) == ((n - 1) * fraction + Fraction(1, 2)).__floor__()


@pytest.mark.rows("F4")
@given(SAMPLES_MS)
def test_the_figures_are_samples_in_order(samples_ms: list[float]) -> None:
    """Median, 99th percentile and maximum are samples, rounded, and none is above the next."""
    figures = latency_figures(samples_ms)
    assert figures is not None
    rounded = {round(sample, 2) for sample in samples_ms}
    assert {figures.p50_ms, figures.p99_ms, figures.max_ms} <= rounded
    assert figures.p50_ms <= figures.p99_ms <= figures.max_ms == max(rounded)
    assert min(rounded) - 0.01 <= figures.avg_ms <= figures.max_ms + 0.01
    assert figures.count == len(samples_ms)


@pytest.mark.rows("F3", "F4")
@given(SAMPLES_MS)
def test_a_record_has_the_figures_of_its_gaps(gaps_ms: list[float]) -> None:
    """The figures of a record are those of its gaps, though they are worked out in seconds."""
    times = record(*gaps_ms)
    figures, same = times.itl_figures(), latency_figures(times.itl_ms())
    assert figures is not None
    assert same is not None
    assert astuple(figures) == pytest.approx(astuple(same), abs=0.011)


@pytest.mark.rows("F3")
@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_each_chunk_but_the_first_has_a_gap(at_s: list[float]) -> None:
    """The samples are the differences of neighbouring times, in ms."""
    times = TokenTimes()
    times.times.extend(sorted(at_s))
    gaps_ms = [(after - before) * 1000.0 for before, after in pairwise(times.times)]
    assert times.itl_ms() == gaps_ms


@pytest.mark.rows("F2")
def test_time_to_first_token_runs_from_the_start_of_the_stream() -> None:
    """It is in ms, None while there is no token, and knows nothing of the set-up before it."""
    times = TokenTimes()
    times.setup_ms = 5000.0
    times.started = 0.75
    assert times.ttft_ms is None
    times.times.extend([1.0, 3.0])
    assert times.ttft_ms == 250.0


@pytest.mark.rows("F5")
def test_gaps_are_divided_among_tokens() -> None:
    """A gap of a chunk with several tokens counts for each of them with its share."""
    times = record(30, 20, 40)
    times.sizes.update({0: 5, 1: 3, 3: 2})
    assert times.itl_per_token_ms() == pytest.approx([10, 10, 10, 20, 20, 20])
    assert times.itl_ms() == pytest.approx([30, 20, 40])


@pytest.mark.rows("P3")
def test_output_tokens_are_tokens_and_not_chunks() -> None:
    """The count adds up what each chunk brought."""
    times = record(30, 20, 40)
    assert times.output_tokens == 4
    times.sizes.update({0: 5, 3: 2})
    assert times.output_tokens == 9


def test_the_record_does_not_read_the_clock() -> None:
    """Making a record and asking it for figures reads no clock."""

    def clock() -> float:
        raise AssertionError("the clock was read")

    times = TokenTimes(clock)
    assert (times.output_tokens, times.ttft_ms, times.itl_figures()) == (0, None, None)
