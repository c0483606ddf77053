"""`operators.slo`."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Any

import pytest

from operators import Pipeline, SloFigures, SloWindows, TokenTimes, deadlines, fuse, itl_window, slo
from operators.authoring import Stage, emit, operator
from rx_backend import EngineAdapter, PreprocessedRequest, RequestContext, standard_pipeline
from rx_backend.engines import SampleEngine
from rx_backend.protocols import StopConditions
from rx_backend.scope import RequestScope
from tests.operators._help import (
    Engine,
    Life,
    collect,
    handshake,
    terminal,
    token,
    virtual,
)

# A clock that ticks at every look: the first token comes 1000 ms after the start, and each further
# one after another 1000 ms.
ON_TIME: dict[str, Any] = {"ttft_ms": 1000, "itl_ms": 1000}
LATE_FIRST: dict[str, Any] = {"ttft_ms": 999, "itl_ms": 1000}
LATE_LATER: dict[str, Any] = {"ttft_ms": 1000, "itl_ms": 999}


class Broken:
    """A finish reason that says the run failed."""

    is_error = True


def ticking() -> TokenTimes:
    ticks = count()
    return TokenTimes(lambda: float(next(ticks)))


def still() -> SloWindows:
    return SloWindows(clock=lambda: 0.0)


def outcome(figures: SloFigures) -> str:
    """Which of the four the only request became."""
    assert figures.requests == 1
    assert figures.open == 0
    (found,) = (
        name for name in ("good", "slow", "failed", "cancelled") if getattr(figures, name) == 1
    )
    return found


@pytest.mark.parametrize(
    ("items", "how", "options", "expected"),
    [
        pytest.param([token(1), token(2), terminal()], {}, ON_TIME, "good", id="in-time"),
        pytest.param([token(1), token(2), terminal()], {}, LATE_FIRST, "slow", id="ttft"),
        pytest.param([token(1), token(2), terminal()], {}, LATE_LATER, "slow", id="itl"),
        pytest.param([token(1), terminal(2)], {}, LATE_LATER, "slow", id="terminal-with-token"),
        pytest.param(
            [token(1), token(2), terminal()],
            {},
            {"ttft_ms": None, "itl_ms": 1000},
            "good",
            id="no-ttft-target",
        ),
        pytest.param(
            [token(1), token(2), terminal()],
            {},
            {"ttft_ms": 1000, "itl_ms": None},
            "good",
            id="no-itl-target",
        ),
        pytest.param([token(1), terminal()], {}, LATE_LATER, "good", id="one-token"),
        pytest.param([handshake(), terminal()], {}, ON_TIME, "good", id="no-token"),
        pytest.param([terminal()], {}, LATE_FIRST, "slow", id="no-token-but-late"),
        pytest.param([token(1), terminal(reason=Broken())], {}, ON_TIME, "failed", id="says-error"),
        pytest.param([token(1)], {"error": LookupError()}, ON_TIME, "failed", id="error"),
        pytest.param([], {"error": LookupError()}, ON_TIME, "failed", id="error-at-once"),
        pytest.param([token(1)], {}, ON_TIME, "failed", id="no-terminal"),
        pytest.param([token(1), token(2)], {"take": 1}, ON_TIME, "cancelled", id="dropped"),
        pytest.param([token(1), token(2)], {"take": 1}, LATE_FIRST, "slow", id="dropped-late"),
        pytest.param([token(1), token(2)], {"take": 1}, LATE_LATER, "slow", id="dropped-waiting"),
        pytest.param([], {"ends": False}, ON_TIME, "cancelled", id="dropped-before-a-token"),
        pytest.param([], {"ends": False}, LATE_FIRST, "slow", id="dropped-before-a-token-late"),
        pytest.param([token(1), terminal(), token(2)], {"take": 2}, ON_TIME, "good", id="taken"),
        pytest.param(
            [token(1), terminal(reason="cancelled")], {}, ON_TIME, "cancelled", id="says-cancelled"
        ),
        pytest.param(
            [token(1)],
            {"error": LookupError()},
            {**ON_TIME, "is_cancelled": lambda: True},
            "cancelled",
            id="error-after-a-stop",
        ),
    ],
)
@pytest.mark.rows("P6a")
def test_what_becomes_of_a_request(
    life: Life, items: list[Any], how: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    """Every way out counts once, and the items that came out are the source's own."""
    windows = still()
    seen = life(items, slo(**options, windows=windows, key="m", times=ticking()), **how)
    assert list(map(id, seen.items)) == list(map(id, items[: len(seen.items)]))
    assert outcome(windows.snapshot()["m"]) == expected


@pytest.mark.rows("F5")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"itl_ms": 500}, "good", id="mean"),
        pytest.param({"itl_ms": 499}, "slow", id="mean-missed"),
        pytest.param({"itl_ms": 999, "itl_by": "p99"}, "slow", id="p99"),
        pytest.param({"itl_ms": 1000, "itl_by": "p99"}, "good", id="p99-met"),
    ],
)
def test_tokens_of_one_chunk_share_its_gap(
    life: Life, options: dict[str, Any], expected: str
) -> None:
    """The first chunk's tokens have no gap; three later tokens in 1 s and one in 1 s are 500 ms."""
    windows = still()
    chunks = [token(1, 2), token(3, 4, 5), token(6), terminal()]
    life(chunks, slo(None, **options, windows=windows, key="m", times=ticking()))
    figures = windows.snapshot()["m"]
    assert outcome(figures) == expected
    assert figures.tokens == 6
    assert figures.itl is not None
    assert figures.itl.count == 4
    assert figures.itl.p50_ms == pytest.approx(1000 / 3, rel=0.01)
    assert figures.itl.p99_ms == pytest.approx(1000, rel=0.01)


@pytest.mark.rows("F2")
@pytest.mark.parametrize(("ttft_ms", "expected"), [(1249, "slow"), (1250, "good")])
def test_set_up_is_a_part_of_the_first_tokens_time(
    life: Life, ttft_ms: float, expected: str
) -> None:
    """A client waits through both, so the target and the figures are for the sum."""
    windows, times = still(), ticking()
    times.setup_ms = 250.0
    life([token(1), terminal()], slo(ttft_ms, None, windows=windows, key="m", times=times))
    figures = windows.snapshot()["m"]
    assert outcome(figures) == expected
    assert figures.ttft is not None
    assert figures.ttft.p50_ms == pytest.approx(1250, rel=0.01)


@virtual
async def test_a_record_that_another_operator_fills_is_enough() -> None:
    """No item visits the operator: the clock is read once at the start, and once per token."""
    ticks = count(1)
    times = TokenTimes(lambda: float(next(ticks)))
    windows = still()
    counted = slo(**ON_TIME, windows=windows, key="m", times=times)
    chunks = [token(1), token(2), terminal()]
    await collect(fuse(Engine(chunks)(), [itl_window(times), counted]))
    assert next(ticks) == 4
    assert outcome(windows.snapshot()["m"]) == "good"


@virtual
async def test_an_open_request_shows_and_is_late_when_a_target_is_missed() -> None:
    """Before its end it is in `open` alone; a wait that is too long shows while it lasts."""
    now = [0.0]
    windows = SloWindows(clock=lambda: now[0])
    stream = fuse(
        Engine([token(1), token(2)], ends=False)(), [slo(500, 50, windows=windows, key="m")]
    )

    def open_and_late() -> tuple[int, int, int]:
        figures = windows.snapshot()["m"]
        return figures.open, figures.late, figures.requests

    assert open_and_late() == (1, 0, 0)
    now[0] = 0.501
    assert open_and_late() == (1, 1, 0)
    now[0] = 0.5
    await anext(stream)
    now[0] = 0.54
    await anext(stream)
    assert open_and_late() == (1, 0, 0)
    now[0] = 0.601
    assert open_and_late() == (1, 1, 0)
    await stream.aclose()
    figures = windows.snapshot()["m"]
    assert (figures.open, figures.late, figures.slow) == (0, 0, 1)


@pytest.mark.rows("F2", "P8", "O2")
@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("before", ["validate_chunks", "trace_link", None])
@virtual
async def test_in_the_standard_pipeline(record: bool, before: str | None) -> None:
    """Wherever it stands it counts tokens, failures and stops, recorded or not."""
    windows = SloWindows(clock=lambda: 0.0)

    def pipeline(scope: RequestScope) -> Pipeline:
        key = scope.request.model, "tenant"
        counted = slo(500, 50, windows=windows, key=key)
        if before is None:
            return standard_pipeline.with_operators(counted)
        return standard_pipeline.insert_before(before, counted)

    async def run(engine: SampleEngine, model: str, *, stop: bool = False) -> None:
        adapter = EngineAdapter(engine, pipeline=pipeline, record=record)
        request = PreprocessedRequest(
            model=model, token_ids=[1], stop_conditions=StopConditions(max_tokens=4)
        )
        context = RequestContext()
        async for _ in await adapter.generate(request, context):
            if stop:
                context.stop_generating()

    await run(SampleEngine(token_interval_ms=50), "fast")
    await run(SampleEngine(token_interval_ms=51), "slow")
    await run(SampleEngine(token_interval_ms=50), "stopped", stop=True)
    snapshot = windows.snapshot()
    assert {key[0]: outcome(figures) for key, figures in snapshot.items()} == {
        "fast": "good",
        "slow": "slow",
        "stopped": "cancelled",
    }
    assert snapshot["fast", "tenant"].tokens == 4
    assert snapshot["fast", "tenant"].goodput == 1.0
    assert snapshot.total.goodput == 0.5


@pytest.mark.rows("O2", "S9")
@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("before", ["validate_chunks", "trace_link", None])
@pytest.mark.parametrize("ends", ["error", "terminal", "kept"])
@virtual
async def test_the_outcome_is_what_the_consumer_was_handed(
    record: bool, before: str | None, ends: str
) -> None:
    """What operators behind it make of the end counts: the same as on the span."""
    windows = SloWindows(clock=lambda: 0.0)

    @operator(takes="items")
    def behind() -> Stage[Any, Any]:
        item = yield
        while True:
            if item.data is not None and item.data.finish_reason is not None:
                if ends == "error":
                    raise LookupError("gone")
                item = yield item if ends == "terminal" else emit()
            else:
                item = yield item

    counted = slo(500, 50, windows=windows, key="m")
    standard: Pipeline[Any] = standard_pipeline
    standard = (
        standard.with_operators(counted)
        if before is None
        else standard.insert_before(before, counted)
    )
    adapter = EngineAdapter(
        SampleEngine(token_interval_ms=50),
        pipeline=standard.with_operators(behind()),
        record=record,
    )
    request = PreprocessedRequest(token_ids=[1], stop_conditions=StopConditions(max_tokens=4))
    with suppress(LookupError):
        async for _ in await adapter.generate(request):
            pass
    assert outcome(windows.snapshot()["m"]) == ("good" if ends == "terminal" else "failed")


@virtual
async def test_a_deadline_is_no_clients_doing() -> None:
    """It stops the request, which counts as failed all the same."""
    windows = SloWindows(clock=lambda: 0.0)
    timed = standard_pipeline.insert_before("validate_chunks", deadlines(first_token_s=1))
    adapter = EngineAdapter(
        SampleEngine(token_interval_ms=5_000),
        pipeline=timed.with_operators(slo(500, 50, windows=windows, key="m")),
    )
    async for _ in await adapter.generate(PreprocessedRequest(token_ids=[1])):
        pass
    assert outcome(windows.snapshot()["m"]) == "failed"
