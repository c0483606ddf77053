"""`operators.itl_window`: one record per request, and sliding windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from operators import LatencyFigures, TokenTimes, itl_window, sliding_itl
from rx_backend.testing import Marbles
from tests.operators._help import LETTERS, Life, handshake, terminal, token

VALUES = {**LETTERS, "m": token(1, 2, 3)}


def scripted(*times_s: float) -> Callable[[], float]:
    return iter(times_s).__next__


class TestItlWindow:
    """One record per request."""

    @pytest.mark.rows("F1", "F3", "S1")
    @pytest.mark.parametrize(
        ("source", "result", "subscription", "times_s"),
        [
            pytest.param("--|", "--|", "^-!", [], id="empty"),
            pytest.param("--a|", "--a|", "^--!", [2], id="one"),
            pytest.param("-h-a--b-m-T|", "-h-a--b-m-T|", "^----------!", [3, 6, 8], id="many"),
            pytest.param("-a-U|", "-a-U|", "^---!", [1, 3], id="terminal-with-a-token"),
            pytest.param("-a-b-#", "-a-b-#", "^----!", [1, 3], id="source-error"),
        ],
    )
    def test_chunks_with_tokens_are_timed(
        self, source: str, result: str, subscription: str, times_s: list[float]
    ) -> None:
        """The record has the time of each chunk with tokens; chunks pass when they come."""
        test = Marbles(VALUES)
        times = TokenTimes(test.clock)
        played = test.cold(source)
        test.expect(played.pipe(itl_window(times)), result)
        assert list(times.times) == times_s
        assert played.subscriptions == [subscription]

    @pytest.mark.rows("P8")
    def test_one_clock_read_per_chunk_with_tokens(self, life: Life) -> None:
        """The clock is read at the start and for each chunk with tokens, and never otherwise."""
        reads: list[float] = []

        def clock() -> float:
            reads.append(0.0)
            return 0.0

        chunks = [handshake(), token(1), handshake(), token(2, 3), terminal(4), terminal()]
        life(chunks, itl_window(TokenTimes(clock)))
        assert len(reads) == 1 + 3

    @pytest.mark.rows("P5")
    @pytest.mark.parametrize(
        "how",
        [
            pytest.param({}, id="completed"),
            pytest.param({"error": LookupError()}, id="failed"),
            pytest.param({"take": 2}, id="dropped"),
            pytest.param({"ends": False}, id="dropped-while-waiting"),
        ],
    )
    def test_the_end_is_reported_once(self, life: Life, how: dict[str, Any]) -> None:
        """``on_end`` gets the record once, whichever way the stream ended."""
        told: list[TokenTimes] = []
        times = TokenTimes(lambda: 0.0)
        life([token(1), token(2)], itl_window(times, told.append), **how)
        assert told == [times]
        assert times.output_tokens == 2


class TestSlidingItl:
    """Live figures over a sliding window."""

    @pytest.mark.rows("F3")
    @pytest.mark.parametrize(
        ("source", "result", "subscription"),
        [
            pytest.param("--|", "--|", "^-!", id="empty"),
            pytest.param("--a|", "---|", "^--!", id="one"),
            pytest.param("-h-a-b-h-c-T|", "-----x---y--|", "^-----------!", id="many"),
            pytest.param("-a-b-#", "---x-#", "^----!", id="source-error"),
        ],
    )
    def test_each_gap_yields_figures(self, source: str, result: str, subscription: str) -> None:
        """Figures come for each chunk with tokens but the first, when it comes."""
        test = Marbles({**LETTERS, "x": figures(2000), "y": figures(2000, 4000)})
        played = test.cold(source)
        test.expect(played.pipe(sliding_itl(count=9, clock=test.clock)), result)
        assert played.subscriptions == [subscription]

    @pytest.mark.rows("F4")
    @pytest.mark.parametrize(
        ("options", "times_s", "windows_ms"),
        [
            pytest.param(
                {"count": 2},
                (0.0, 0.01, 0.03, 0.06, 0.07),
                [(10,), (10, 20), (20, 30), (30, 10)],
                id="so-many-gaps",
            ),
            pytest.param(
                {"window_s": 2.5},
                (0.0, 1.0, 2.0, 4.0, 4.5, 9.0),
                [(1000,), (1000, 1000), (1000, 2000), (1000, 2000, 500), (4500,)],
                id="so-many-seconds",
            ),
            pytest.param({"window_s": 2}, (0, 1, 3), [(1000,), (1000, 2000)], id="ended-just-then"),
            pytest.param(
                {"count": 2, "window_s": 10},
                (0.0, 1.0, 2.0, 3.0, 30.0),
                [(1000,), (1000, 1000), (1000, 1000), (27000,)],
                id="what-is-reached-first",
            ),
        ],
    )
    def test_figures_are_over_the_gaps_in_the_window(
        self,
        life: Life,
        options: dict[str, Any],
        times_s: tuple[float, ...],
        windows_ms: list[tuple[float, ...]],
    ) -> None:
        """A gap leaves the window by number, or when its end is further back than *window_s*."""
        window = sliding_itl(**options, clock=scripted(*times_s))
        seen = life([token(n) for n in range(len(times_s))], window)
        assert seen.items == [figures(*gaps_ms) for gaps_ms in windows_ms]


def figures(*gaps_ms: float) -> LatencyFigures:
    """Return the figures of up to four gaps, whose 99th percentile is the greatest."""
    ordered = sorted(gaps_ms)
    return LatencyFigures(
        avg_ms=round(sum(ordered) / len(ordered), 2),
        p50_ms=ordered[len(ordered) // 2],
        p99_ms=ordered[-1],
        max_ms=ordered[-1],
        count=len(ordered),
    )
