"""Times are measured finely on every event loop, and follow a virtual one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from operators import LoopScheduler
from operators.assembly import loop_clock
from rx_backend.adapter import EngineAdapter
from rx_backend.testing import run_virtual
from tests.engines import ScriptedEngine, Step, collect, request, stop, token
from tests.spans import Spans

STEP_S = 0.0004

Run = Callable[[Coroutine[Any, Any, None]], None]
REAL: list[Run] = [asyncio.run]
if find_spec("uvloop") is not None:
    REAL.append(import_module("uvloop").run)


class OwnTime(asyncio.SelectorEventLoop):
    """A loop that keeps a time of its own."""

    def time(self) -> float:
        return 42.0


def work() -> None:
    """Keep the event loop busy for a step."""
    until = time.monotonic() + STEP_S
    while time.monotonic() < until:
        pass


@pytest.mark.parametrize("run", REAL)
def test_time_passes_within_an_iteration_of_a_real_loop(run: Run) -> None:
    """The loop's own time may stand still meanwhile, or count whole milliseconds."""

    async def main() -> None:
        clock, rx = loop_clock(asyncio.get_running_loop()), LoopScheduler()
        began, rx_began = clock(), rx.now
        work()
        assert clock() - began >= STEP_S
        assert (rx.now - rx_began).total_seconds() >= STEP_S - 1e-6

    run(main())


def test_a_virtual_loop_keeps_its_own_time() -> None:
    """Nothing but its timers moves it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        clock = loop_clock(loop)
        work()
        await asyncio.sleep(90.0)
        assert clock() == loop.time() == 90.0

    run_virtual(main())
    loop = OwnTime()
    assert loop_clock(loop)() == 42.0
    loop.close()


@pytest.mark.rows("F2", "F3", "F4")
@pytest.mark.parametrize("run", REAL)
def test_gaps_of_less_than_a_millisecond_are_recorded(run: Run, spans: Spans) -> None:
    """An engine that works for 0.4 ms a token has no gap of 0.0 ms."""
    steps: list[Step] = [0.0, lambda _: work(), token(7)]
    engine = ScriptedEngine(*steps * 20, stop())

    async def main() -> None:
        await collect(await EngineAdapter(engine, tracer=spans.tracer).generate(request()))

    run(main())
    recorded = dict(spans.one("engine.generate").attributes or {})
    assert recorded["itl_p50_ms"] >= STEP_S * 1e3  # pyright: ignore[reportOperatorIssue]
    assert recorded["ttft_ms"] >= STEP_S * 1e3  # pyright: ignore[reportOperatorIssue]
