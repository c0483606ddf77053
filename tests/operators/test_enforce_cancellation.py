"""`operators.enforce_cancellation`."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest
import reactivex
from hypothesis import example, given
from hypothesis import strategies as st
from reactivex.subject import ReplaySubject, Subject

from operators import enforce_cancellation, fuse, until_terminal
from rx_backend.testing import Marbles, run_virtual
from tests.operators._help import (
    LETTERS,
    LONG_S,
    Bare,
    Chunk,
    Engine,
    Seen,
    collect,
    now,
    terminal,
    token,
)
from tests.operators._timed import Event, consume

CUT = terminal(reason="cut")


def cut_off(grace_s: float, stop: Any = None, kill: Any = None) -> Any:
    stop = reactivex.never() if stop is None else stop
    return enforce_cancellation(grace_s, lambda: CUT, stop=stop, kill=kill)


@pytest.mark.rows("E4", "S3", "A6")
@pytest.mark.parametrize(
    ("source", "stop", "kill", "result"),
    [
        pytest.param("-a-b-----|", "----------", "-", "-a-b-----|", id="never-stopped"),
        pytest.param("-a--------", "--s-------", "-", "-a---(Z|)", id="silent"),
        pytest.param("-a-b-c-d-e", "--s-------", "-", "-a-b-(cZ|)", id="deaf"),
        pytest.param("-a-T------", "--s-------", "-", "-a-T------", id="terminal-in-time"),
        pytest.param("-a---T----", "--s-------", "-", "-a---T----", id="terminal-in-that-turn"),
        pytest.param("-a-T------", "-----s----", "-", "-a-T------", id="stop-after-the-terminal"),
        pytest.param("-a-|", "--s-------", "-", "-a-|", id="end-in-time"),
        pytest.param("-a-#", "--s-------", "-", "-a-#", id="failure-in-time"),
        pytest.param("-a---|", "--s-------", "-", "-a---|", id="end-in-that-turn"),
        pytest.param("-a---#", "--s-------", "-", "-a---#", id="failure-in-that-turn"),
        pytest.param("-a------#", "--s-------", "-", "-a---(Z|)", id="failure-too-late"),
        pytest.param("-a--------", "--s-s-s-s-", "-", "-a---(Z|)", id="stopped-again"),
        pytest.param("-a--------", "----------", "--k", "-a(Z|)", id="killed"),
        pytest.param("-a--------", "--s-------", "---k", "-a-(Z|)", id="stopped-and-killed"),
        pytest.param("-a--------", "--s-------", "-------k", "-a---(Z|)", id="killed-late"),
        pytest.param("-aT-------", "----------", "--k", "-aT-------", id="killed-at-the-terminal"),
        pytest.param("-a--------", "--s-------", "-", "-a-!", id="dropped-in-the-grace"),
    ],
)
def test_the_engine_has_the_grace_period_and_no_longer(
    source: str, stop: str, kill: str, result: str
) -> None:
    """With a grace of three frames: the engine's own end stands in time, else there is ours."""
    test = Marbles({**LETTERS, "Z": CUT})
    played, stopped, killed = test.cold(source), test.hot(stop), test.hot(kill)
    test.expect(played.pipe(cut_off(3, stopped, killed)), result)


async def test_an_engine_that_never_waits_is_cut_off_too() -> None:
    """Where neither engine nor consumer yields to the event loop, no timer is needed."""
    kill: Subject[Any] = Subject()

    async def deaf() -> AsyncGenerator[Chunk]:
        for number in itertools.count(1):
            yield token(number)

    items: list[Chunk] = []
    async for item in fuse(deaf(), [cut_off(3, kill=kill)]):
        items.append(item)
        if item == token(2):
            kill.on_next(True)
    assert items == [token(1), token(2), token(3), CUT]


@pytest.mark.rows("S3")
async def test_an_engine_may_end_by_itself_on_a_kill() -> None:
    """An engine that answers a kill within the iteration ends the stream by itself."""
    kill: ReplaySubject[Any] = ReplaySubject()
    killed: list[Any] = []
    kill.subscribe(killed.append)

    async def polite() -> AsyncGenerator[Chunk]:
        while not killed:
            yield token(1)
        yield terminal(reason="cancelled")

    stream = fuse(polite(), [cut_off(0, kill=kill), until_terminal()])
    await anext(stream)
    kill.on_next(True)
    assert await collect(stream) == Seen([terminal(reason="cancelled")], "completed")


@pytest.mark.rows("P6a", "S2")
async def test_the_terminal_comes_once_the_engine_is_closed() -> None:
    """It waits for an engine that cleans up, and completes the stream."""
    stop: Subject[Any] = Subject()
    engine = Engine(ends=False, closing_s=5.0)
    stream = fuse(engine(), [cut_off(3, stop)])
    asyncio.get_running_loop().call_later(1, stop.on_next, True)
    assert await anext(stream) == CUT
    assert asyncio.get_running_loop().time() == 9.0
    assert engine.closed == 1
    assert stream.ended
    assert stop.observers == []


async def test_the_grace_of_an_early_stop_starts_with_the_stream() -> None:
    """A level that is set already starts the grace when the stream begins."""
    stop: ReplaySubject[Any] = ReplaySubject()
    stop.on_next(True)
    stream = fuse(Engine([token(1)], every_s=2.0, ends=False)(), [cut_off(3, stop)])
    await asyncio.sleep(10.0)
    assert await collect(stream) == Seen([token(1), CUT], "completed")
    assert asyncio.get_running_loop().time() == 13.0


@pytest.mark.rows("S9")
async def test_an_engine_that_has_ended_is_not_cut_off() -> None:
    """One that has ended without a terminal, and cleans up, is given none."""
    engine = Bare([token(1)], closing_s=5.0)
    stream = fuse(engine, [cut_off(3, reactivex.of(True))])
    assert await collect(stream) == Seen([token(1)], "completed")


async def test_a_failing_terminal_factory_fails_the_stream() -> None:
    """What the factory raises comes out."""

    def refuse() -> Chunk:
        raise LookupError("refused")

    stop: ReplaySubject[Any] = ReplaySubject()
    stop.on_next(True)
    enforced = enforce_cancellation(1, refuse, stop=stop)
    assert (await collect(fuse(Engine(ends=False)(), [enforced]))).end == "LookupError('refused')"


async def test_no_timer_before_a_stop(timers: list[float]) -> None:
    """A stream that is never stopped sets none."""
    engine = Engine([token(1), terminal()], every_s=1.0)
    assert [item async for item in fuse(engine(), [cut_off(3)])] == [token(1), terminal()]
    assert timers == [1.0, 2.0]  # the engine's own


# Arrivals against stop, kill and a consumer of its own pace, and drops.


HALVES = st.integers(0, 30).map(lambda number: number + 0.5)


@dataclass(frozen=True)
class History:
    """
    What happens, and when.

    Attributes:
        gaps: How long the engine takes for each item.
        end: How it ends then: ``terminal``, ``end``, ``failure``, or not at all, ``silence``.
        pauses: How long the consumer is away after each item, in turns.
        grace_s: What the engine has after a stop.
        stop, kill: When the signals come.
        drop: When the consumer is cancelled.
    """

    gaps: list[int]
    end: str
    pauses: list[int]
    grace_s: int
    stop: float | None
    kill: float | None
    drop: float

    def pause(self, number: int) -> int:
        return self.pauses[number % len(self.pauses)]

    @property
    def cut(self) -> float:
        """When the engine is cut off, if it has not ended."""
        stopped = math.inf if self.stop is None else self.stop + self.grace_s
        return stopped if self.kill is None else min(stopped, self.kill)

    async def engine(self, closed: list[float]) -> AsyncGenerator[Chunk]:
        try:
            for gap in self.gaps:
                await asyncio.sleep(gap)
                yield token(1)
            await asyncio.sleep(LONG_S if self.end == "silence" else 1)
            if self.end == "failure":
                raise LookupError
            if self.end == "terminal":
                yield terminal()
        finally:
            closed.append(now())

    def expected(self) -> list[Event]:
        """Return what must be seen: items and how the stream ended, each with its time."""
        seen: list[Event] = []
        time = 0.0
        for number, gap in enumerate([*self.gaps, 1]):
            is_last = number == len(self.gaps)
            arrival = math.inf if is_last and self.end == "silence" else time + gap
            if self.cut < arrival:
                time = max(time, self.cut)
                seen += [(time, "cut"), (time + self.pause(number), "end")]
                break
            if is_last and self.end != "terminal":
                seen += [(arrival, self.end)] * (arrival < math.inf)
                break
            seen.append((arrival, "terminal" if is_last else "item"))
            time = arrival + self.pause(number)
            if is_last:
                seen.append((time, "end"))
        return [event for event in seen if event[0] < self.drop]


HISTORIES = st.builds(
    History,
    gaps=st.lists(st.integers(0, 5), max_size=8),
    end=st.sampled_from(["terminal", "end", "failure", "silence"]),
    pauses=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    grace_s=st.integers(0, 6),
    stop=st.none() | HALVES,
    kill=st.none() | HALVES,
    drop=st.integers(0, 60).map(lambda number: number + 0.25),
)


def name_of(item: Any) -> str:
    if isinstance(item, LookupError):
        return "failure"
    return {None: "item", "stop": "terminal", "cut": "cut"}[item.finish_reason]


@pytest.mark.rows("E3", "S1", "S7")
@given(history=HISTORIES)
@example(History([], "silence", [0], grace_s=6, stop=1.5, kill=None, drop=3.25))
def test_every_interleaving(history: History) -> None:
    """Whatever comes when, what is seen and when is what the rules above say."""
    seen: list[Event] = []
    closed: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        stopped: Subject[Any] = Subject()
        killed: Subject[Any] = Subject()
        for time, signal in ((history.stop, stopped), (history.kill, killed)):
            if time is not None:
                loop.call_at(time, signal.on_next, True)
        enforced = cut_off(history.grace_s, stopped, killed)
        stream = fuse(history.engine(closed), [enforced, until_terminal()])
        await consume(stream, history.pauses, history.drop, name_of, seen)
        assert (stopped.observers, killed.observers) == ([], [])

    run_virtual(run())
    assert seen == history.expected()
    assert len(closed) == 1
    if "cut" in [what for _, what in seen]:
        assert closed == [history.cut]
