"""`operators.on_outcome`, and the other ways to hear of a stream without a look at its chunks."""

from __future__ import annotations

from typing import Any

import pytest
from reactivex.subject import Subject

from operators import AbortStep, Outcome, TokenTimes, deferred_abort, itl_window, on_outcome
from tests.operators._help import Life, handshake, terminal, token

GONE = ConnectionError("gone")


@pytest.mark.rows("P3", "P4", "P5", "P6a")
@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize(
    ("stream", "outcome"),
    [
        ({"items": [token(1), terminal()]}, Outcome("stop", None, is_cancelled=False)),
        ({"items": [token(1)]}, Outcome(None, None, is_cancelled=True)),
        ({"items": [token(1)], "error": GONE}, Outcome(None, GONE, is_cancelled=False)),
        ({"items": [token(1), token(2)], "take": 1}, Outcome(None, None, is_cancelled=True)),
        ({"items": [token(1)], "ends": False}, Outcome(None, None, is_cancelled=True)),
    ],
    ids=["terminal", "no-terminal", "error", "dropped", "dropped-waiting"],
)
def test_it_tells_once_how_the_stream_ended(
    life: Life, stream: dict[str, Any], outcome: Outcome, timed: bool
) -> None:
    """By the terminal, by the error, or by neither, with and without a record of the times."""
    told: list[Outcome] = []
    times = TokenTimes() if timed else None
    operators = [*([itl_window(times)] if times else []), on_outcome(told.append, times=times)]
    how = {name: value for name, value in stream.items() if name != "items"}
    life(stream["items"], *operators, **how)
    (one,) = told
    assert (one.finish_reason, one.error, one.is_cancelled) == (
        outcome.finish_reason,
        outcome.error,
        outcome.is_cancelled,
    )
    assert one.times is times
    assert one.is_dropped is (outcome.finish_reason is None and outcome.error is None)


@pytest.mark.rows("P8")
def test_tokens_are_counted_without_a_clock(life: Life) -> None:
    """No time is read or kept; the finish reason is there."""
    times = TokenTimes(iter([]).__next__)
    life([handshake(), token(1), token(2, 3, 4), terminal(5)], itl_window(times, count_only=True))
    assert (times.output_tokens, times.finish_reason, len(times.times)) == (5, "stop", 0)
    assert (times.ttft_ms, times.itl_figures(), times.is_timed) == (None, None, False)


@pytest.mark.rows("A2", "A3", "A4", "A5")
@pytest.mark.parametrize(
    ("chunks", "stop_at", "defer", "steps"),
    [
        ([token(1), terminal()], 0, False, [AbortStep.MADE]),
        ([token(1), terminal()], 0, True, [AbortStep.MADE_DEFERRED]),
        ([token(1), token(2), terminal()], 1, True, [AbortStep.MADE]),
        ([handshake(), terminal()], 0, True, [AbortStep.SUPPRESSED]),
        ([token(1), terminal()], None, True, None),
    ],
)
def test_the_gate_tells_what_becomes_of_the_abort(
    chunks: list[Any], stop_at: int | None, defer: bool, steps: list[AbortStep] | None
) -> None:
    """First that it was asked for, then one thing more; nothing for a stream without a stop."""
    told: list[AbortStep] = []
    source: Subject[Any] = Subject()
    stop: Subject[Any] = Subject()
    gate = deferred_abort(lambda: None, stop=stop, defer=defer, on_step=told.append)
    source.pipe(gate).subscribe()
    for place, chunk in enumerate(chunks):
        if place == stop_at:
            stop.on_next(True)
        source.on_next(chunk)
    source.on_completed()
    assert told == ([] if steps is None else [AbortStep.REQUESTED, *steps])
