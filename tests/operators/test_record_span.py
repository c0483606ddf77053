"""`operators.record_span`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from opentelemetry.trace import INVALID_SPAN, Span, StatusCode

from operators import TokenTimes, fuse, itl_window, record_span
from operators.authoring import Stage, operator
from tests.operators._help import Engine, Life, Seen, handshake, terminal, token
from tests.spans import Spans, rows_of

DROPPED = (StatusCode.ERROR, "stream dropped before terminal")
FINE = (StatusCode.UNSET, None)

# Of two tokens that come half a second after the start and 100 ms later.
FIGURES = {
    "output_tokens": 2,
    "ttft_ms": 500.0,
    "avg_itl_ms": 100.0,
    "itl_p50_ms": 100.0,
    "itl_p99_ms": 100.0,
    "itl_max_ms": 100.0,
}


@dataclass(frozen=True)
class Reason:
    """A finish reason with a name of its own."""

    name: str
    is_error: bool = False


class Gone(Exception):
    """A typed failure."""


def start(spans: Spans) -> Span:
    return spans.tracer.start_span("engine.generate")


def ticking(*times_s: float) -> TokenTimes:
    return TokenTimes(iter(times_s).__next__)


def written(spans: Spans) -> dict[str, Any]:
    """Return the attributes of the only span."""
    return rows_of(spans.one())


def status(spans: Spans) -> tuple[StatusCode, str | None]:
    """Return the status of the only span."""
    return spans.one().status.status_code, spans.one().status.description


def name_of(reason: Reason) -> str:
    return reason.name


def watched(span: Span, on_end: Callable[[], object]) -> Span:
    """Return the same span; calls a function when it is ended."""

    class Watched:
        def end(self, end_time: int | None = None) -> None:
            on_end()
            span.end(end_time)

        def __getattr__(self, name: str) -> Any:
            return getattr(span, name)

    return cast("Span", Watched())


class TestOutcomes:
    """What is written, for each way in which a stream ends."""

    @pytest.mark.rows("P3", "P6")
    def test_a_stream_with_a_terminal(self, life: Life, spans: Spans) -> None:
        """The figures of the record, the reason's name, numbers as numbers, and no status."""
        times = ticking(10, 10.5, 10.6, 10.9)
        chunks = [handshake(), token(1), token(2), terminal(5, 6, 7, reason=Reason("Stop"))]
        seen = life(
            chunks, itl_window(times), record_span(start(spans), times, reason_name=name_of)
        )
        assert list(map(id, seen.items)) == list(map(id, chunks))
        assert written(spans) == {
            "cancelled": False,
            "finish_reason": "Stop",
            "output_tokens": 5,
            "ttft_ms": 500.0,
            "avg_itl_ms": 200.0,
            "itl_p50_ms": 300.0,
            "itl_p99_ms": 300.0,
            "itl_max_ms": 300.0,
        }
        assert status(spans) == FINE

    @pytest.mark.rows("F2", "P3")
    def test_the_set_up_time_is_recorded_separately(self, life: Life, spans: Spans) -> None:
        """The engine's set-up has a figure of its own, with two decimals as the others."""
        times = ticking(0, 0.0123456)
        times.setup_ms = 7.0 / 3.0
        life([terminal(1)], itl_window(times), record_span(start(spans), times))
        attributes = written(spans)
        assert (attributes["setup_ms"], attributes["ttft_ms"]) == (2.33, 12.35)

    @pytest.mark.rows("P4")
    def test_a_failure(self, life: Life, spans: Spans) -> None:
        """Kind and status of the error, what was counted so far, and no finish reason."""
        times = ticking(10, 10.5, 10.6)
        window, gone = itl_window(times), Gone("peer")
        recorded = record_span(start(spans), times, error_kind=lambda error: f"Backend({error})")
        seen = life([token(1), token(2)], window, recorded, error=gone)
        assert seen.error is gone
        assert written(spans) == {
            "cancelled": False,
            "error_kind": "Backend(peer)",
            **FIGURES,
        }
        assert status(spans) == (StatusCode.ERROR, "Backend(peer)")

    @pytest.mark.rows("P4")
    async def test_a_failing_set_up_of_a_later_operator_is_a_drop(self, spans: Spans) -> None:
        """When a later operator can't start, the only outcome is a drop."""

        @operator
        def refuse() -> Stage[Any, Any]:
            raise Gone("no start")
            yield

        with pytest.raises(Gone):
            fuse(Engine()(), [record_span(start(spans)), refuse()])
        assert written(spans) == {"cancelled": True, "finish_reason": "Dropped"}
        assert status(spans) == DROPPED

    @pytest.mark.rows("P5")
    @pytest.mark.parametrize(
        "how", [{}, {"take": 2}, {"ends": False}], ids=["no-terminal", "dropped", "dropped-waiting"]
    )
    def test_a_stream_without_a_terminal(
        self, life: Life, spans: Spans, how: dict[str, Any]
    ) -> None:
        """A drop, or an end without a terminal: ``Dropped``, and what was counted is kept."""
        times = ticking(10, 10.5, 10.6)
        life([token(1), token(2)], itl_window(times), record_span(start(spans), times), **how)
        assert written(spans) == {
            "cancelled": True,
            "finish_reason": "Dropped",
            **FIGURES,
        }
        assert status(spans) == DROPPED

    @pytest.mark.rows("P5", "P8")
    @pytest.mark.parametrize(
        ("how", "expected"),
        [
            pytest.param({}, DROPPED, id="no-terminal"),
            pytest.param({"error": Gone()}, (StatusCode.ERROR, "Gone"), id="failed"),
            pytest.param({"take": 1}, DROPPED, id="dropped"),
        ],
    )
    def test_without_attributes_the_status_is_still_set(
        self,
        life: Life,
        spans: Spans,
        how: dict[str, Any],
        expected: tuple[StatusCode, str | None],
    ) -> None:
        """With ``attributes=False`` nothing but the status is written, and that it was a drop."""
        life([token(1)], record_span(start(spans), attributes=False), **how)
        dropped = {"cancelled": True, "finish_reason": "Dropped"}
        assert written(spans) == (dropped if expected is DROPPED else {})
        assert status(spans) == expected


class TestSpans:
    """What happens to the span itself."""

    @pytest.mark.rows("P7")
    @pytest.mark.parametrize("how", [{}, {"error": Gone()}, {"take": 1}, {"ends": False}], ids=str)
    @pytest.mark.parametrize("recording", [True, False])
    def test_the_span_ends_exactly_once(
        self, life: Life, spans: Spans, recording: bool, how: dict[str, Any]
    ) -> None:
        """On every path, for spans that record and for those that don't."""
        ends: list[str] = []
        inner = start(spans) if recording else INVALID_SPAN
        life(
            [token(1), terminal()],
            record_span(watched(inner, lambda: ends.append("end"))),
            **how,
        )
        assert ends == ["end"]

    @pytest.mark.rows("P8")
    def test_a_span_that_is_not_recording_costs_nothing(self, life: Life) -> None:
        """No chunk is inspected and no callback is called for a span that does not record."""

        def refuse(*_: object) -> Any:
            raise AssertionError("asked for nothing")

        operator = record_span(
            INVALID_SPAN, is_cancelled=refuse, reason_name=refuse, error_kind=refuse
        )
        assert life(["no chunk"], operator) == Seen(["no chunk"], "completed")
        assert life(["no chunk"], operator, error=Gone()).end == "Gone()"

    @pytest.mark.rows("P7")
    @pytest.mark.parametrize("broken", ["is_cancelled", "reason_name", "error_kind"])
    def test_a_callback_that_raises_does_not_keep_the_span_open(
        self, life: Life, spans: Spans, broken: str
    ) -> None:
        """The span ends even when what to write on it can't be found out."""

        def refuse(*_: object) -> Any:
            raise LookupError

        callbacks: dict[str, Any] = {broken: refuse}
        error = Gone() if broken == "error_kind" else None
        life([token(1), terminal()], record_span(start(spans), **callbacks), error=error)
        assert len(spans.finished) == 1
