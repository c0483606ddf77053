"""What engines made of engines leave behind, and what they can't be made of."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.engines import SampleEngine
from rx_backend.errors import Disconnected
from rx_backend.failover import FailoverEngine
from rx_backend.hedging import HedgedEngine
from rx_backend.retry_budget import RetryBudget
from tests.engines import (
    ScriptedEngine,
    Step,
    adapter_of,
    collect,
    counting_request,
    token,
    virtual,
)


def gone(_: RequestContext) -> None:
    # A new one each time, since its traceback refers to the request.
    raise Disconnected("gone")


def failing(*tokens: Step) -> LLMEngine:
    return ScriptedEngine(2, *tokens, gone)


def sample(interval_s: float = 1) -> LLMEngine:
    return SampleEngine(token_interval_ms=interval_s * 1000)


ENGINES: dict[str, Callable[[], LLMEngine]] = {
    "failover": lambda: FailoverEngine(sample()),
    "resumed": lambda: FailoverEngine(failing(token(7)), sample()),
    "not resumed": lambda: FailoverEngine(failing(token(7)), sample(), limit=0),
    "not hedged": lambda: HedgedEngine(sample(), sample(), after_s=5),
    "hedged, first wins": lambda: HedgedEngine(sample(2), sample(9), after_s=1),
    "hedged, second wins": lambda: HedgedEngine(sample(9), sample(), after_s=1),
    "hedged, both fail": lambda: HedgedEngine(failing(), failing(), after_s=1),
    "hedged failover": lambda: HedgedEngine(
        FailoverEngine(failing(), sample()), sample(9), after_s=1
    ),
}


@pytest.mark.rows("S7")
@pytest.mark.parametrize("mode", ["agg", "decode"])
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
@virtual
async def test_a_request_is_freed_without_the_collector(
    make: Callable[[], LLMEngine], mode: str
) -> None:
    """Contexts, calls and races are in no reference cycle once the request is over."""
    adapter = adapter_of(make(), mode)
    gc.collect()
    gc.disable()
    try:
        context = RequestContext()
        items = await collect(await adapter.generate(counting_request(), context))
        assert items
        await asyncio.sleep(1)
        freed = weakref.ref(context)
        del context, items
        assert freed() is None
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(one).__name__ for one in gc.garbage}
        assert left.isdisjoint({"RequestContext", "Latches", "EngineCall", "_Race", "_Racer"})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("combine", [FailoverEngine, partial(HedgedEngine, after_s=1)])
def test_one_engine_that_needs_a_tokenizer_is_enough(combine: Callable[..., LLMEngine]) -> None:
    """What has no such attribute, as any object may, needs none."""

    class Remote(SampleEngine):
        needs_tokenizer = True

    class Bare:
        generate = SampleEngine.generate

    assert combine(SampleEngine(), Remote()).needs_tokenizer
    assert not combine(SampleEngine(), Bare()).needs_tokenizer


NO_BUDGET: Any = 0.2


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (FailoverEngine, "FailoverEngine: engines: expected one or more"),
        (
            lambda: FailoverEngine(sample(), limit=-1),
            "FailoverEngine: limit: expected a whole number, at least 0",
        ),
        (
            lambda: FailoverEngine(sample(), limit=True),
            "FailoverEngine: limit: expected a whole number, at least 0",
        ),
        (
            lambda: FailoverEngine(sample(), budget=NO_BUDGET),
            "FailoverEngine: budget: expected RetryBudget or None, got 0.2",
        ),
        (
            lambda: HedgedEngine(sample(), sample(), after_s=-1),
            "HedgedEngine: after_s: expected a number, at least 0 seconds, got -1",
        ),
        (
            lambda: HedgedEngine(sample(), sample(), after_s=True),
            "HedgedEngine: after_s: expected a number, at least 0 seconds, got True",
        ),
        (
            lambda: HedgedEngine(sample(), sample(), after_s=1, budget=NO_BUDGET),
            "HedgedEngine: budget: expected RetryBudget or None, got 0.2",
        ),
        (
            lambda: RetryBudget(ratio=-1),
            "RetryBudget: ratio: expected a number, at least 0, got -1",
        ),
        (lambda: RetryBudget(burst=float("nan")), "RetryBudget: burst: expected a number"),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: str) -> None:
    """They are named when the engine is made."""
    with pytest.raises((TypeError, ValueError), match=error):
        make()
