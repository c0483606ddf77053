"""`operators.heartbeat`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reactivex import Observable

from operators import fuse, heartbeat, until_terminal
from rx_backend.testing import assert_marbles, run_virtual
from tests.operators._help import LETTERS, Engine, Seen, collect, terminal, token
from tests.operators._timed import Event, consume


@pytest.mark.rows("S1", "S2")
@pytest.mark.parametrize(
    ("source", "result"),
    [
        pytest.param("-------", "---p--p!", id="never"),
        pytest.param("-|", "-|", id="empty"),
        pytest.param("----a-|", "---pa-|", id="before-the-first"),
        pytest.param("-a--b--T---|", "-a--b--(T|)", id="in-the-very-turn"),
        pytest.param("-a---b----T--", "-a--pb--p-(T|)", id="gaps"),
        pytest.param("-a-----#", "-a--p--#", id="failure"),
        pytest.param("-a----|", "-a--p-|", id="end"),
        pytest.param("-a------", "-a--p-!", id="early-dispose"),
        pytest.param("-a------", "-a--(p!)", id="dispose-inside"),
    ],
)
def test_heartbeats_fill_a_gap(source: str, result: str) -> None:
    """One heartbeat for each three frames of silence, none beside an item or after the last."""

    def beating(stream: Observable[Any]) -> Observable[Any]:
        return stream.pipe(until_terminal(), heartbeat(3, "p"))

    assert_marbles(beating, source=source, result=result, values=LETTERS)


async def test_the_item_may_come_from_a_function() -> None:
    """A function is called for each heartbeat; what it raises fails the stream."""
    numbers = itertools.count(1)
    engine = Engine(["a"], every_s=7.0)
    stream = fuse(engine(), [heartbeat(2.0, lambda: next(numbers))])
    assert await collect(stream) == Seen([1, 2, 3, "a"], "completed")

    def refuse() -> str:
        raise LookupError("refused")

    engine = Engine(["a"], every_s=7.0)
    assert await collect(fuse(engine(), [heartbeat(2.0, refuse)])) == Seen(
        [], "LookupError('refused')"
    )
    assert engine.closed == 1


@pytest.mark.rows("P6a", "S2")
async def test_the_last_item_completes_the_stream() -> None:
    """The engine is closed before it is handed out, and no heartbeat follows."""
    engine = Engine([token(1), terminal(), token(2)], every_s=3.0)
    stream = fuse(engine(), [until_terminal(), heartbeat(2.0, "p")])
    assert [await anext(stream) for _ in range(4)] == ["p", token(1), "p", terminal()]
    assert (stream.ended, engine.closed) == (True, 1)
    assert (await collect(stream)).items == []


# Arrivals against heartbeats against a consumer of its own pace, and drops.


def expected(
    gaps: Sequence[int], pauses: Sequence[int], interval_s: int, drop: float
) -> list[Event]:
    """Return what must be seen, with its time."""
    seen: list[Event] = []
    now, number = 0.0, itertools.count()

    def hand_out(time: float, what: str) -> float:
        seen.append((time, what))
        return time + pauses[next(number) % len(pauses)]

    # The end takes a second, as a step of the engine like any other.
    for gap, what in [*((gap, "item") for gap in gaps), (1, "end")]:
        arrival = now + gap
        while arrival > now + interval_s:
            now = hand_out(now + interval_s, "beat")
        now = hand_out(max(now, arrival), what)
    return [event for event in seen if event[0] < drop]


@pytest.mark.rows("S1", "S4", "S7")
@given(
    gaps=st.lists(st.integers(0, 9), max_size=8),
    pauses=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    interval_s=st.integers(1, 5),
    drop=st.integers(0, 60).map(lambda number: number + 0.25),
)
def test_every_interleaving(
    gaps: list[int], pauses: list[int], interval_s: int, drop: float
) -> None:
    """Whatever comes when, what is seen and when is what the rules above say."""
    seen: list[Event] = []
    journal: list[str] = []

    async def engine() -> AsyncGenerator[str]:
        try:
            for gap in gaps:
                journal.append("pulled")
                await asyncio.sleep(gap)
                yield "item"
            journal.append("pulled")
            await asyncio.sleep(1)
        finally:
            journal.append("closed")

    async def run() -> None:
        stream = fuse(engine(), [heartbeat(interval_s, "beat")])
        await consume(stream, pauses, drop, str, seen)

    run_virtual(run())
    told = expected(gaps, pauses, interval_s, drop)
    assert seen == told
    assert journal[-1] == "closed"
    items = sum(what == "item" for _, what in told)
    assert items <= journal.count("pulled") <= items + 1
