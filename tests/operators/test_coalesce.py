"""Merging while the consumer lags: nothing lost, nothing delayed, a bound on what waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from operators import BufferOverflow, CoalesceCounts, coalesce, fuse, until_terminal
from rx_backend import LLMEngineOutput, TraceLink
from rx_backend.testing import run_virtual
from tests.leaks import LeakWatch
from tests.operators._help import (
    Engine,
    handshake,
    now,
    terminal,
    token,
)

Received = list[tuple[float, Any]]


async def received(
    stream: AsyncIterator[Any], busy_s: Sequence[float], into: Received | None = None
) -> Received:
    """Consume *stream*, busy so long after each item, the last time for all others; with times."""
    seen: Received = [] if into is None else into
    async for item in stream:
        busy = busy_s[min(len(seen), len(busy_s) - 1)]
        seen.append((now(), item))
        if busy:
            await asyncio.sleep(busy)
    return seen


@pytest.mark.rows("S1", "S4")
@pytest.mark.parametrize("every_s", [None, 1.0])
@pytest.mark.parametrize("turns", [0, 1])
async def test_a_consumer_that_keeps_up_gets_the_chunks_unchanged(
    every_s: float | None, turns: int
) -> None:
    """
    The very objects, one for one, with nothing pulled ahead and no task made.

    Also an iteration late.
    """
    chunks = [handshake(), *map(token, range(20)), terminal()]
    engine = Engine(chunks, every_s=every_s)
    stream = fuse(engine(), [coalesce()])
    tasks = asyncio.all_tasks()
    number = 0
    async for item in stream:
        number += 1
        assert item is chunks[number - 1]
        for _ in range(turns):
            await asyncio.sleep(0)
        assert engine.pulls == number
        assert asyncio.all_tasks() == tasks
    assert number == len(chunks)


@pytest.mark.rows("P6a", "S2")
async def test_chunks_that_can_not_be_merged_are_barriers() -> None:
    """Another choice, or a chunk with something else on it, comes by itself; so does the terminal."""
    chunks = [token(n) for n in range(6)]
    chunks[3].worker_trace_link = "link"
    engine = Engine([*chunks, terminal(6), token(7)], ends=False)
    stream = fuse(engine(), [until_terminal(), coalesce()])
    assert await anext(stream) is chunks[0]
    await asyncio.sleep(1.0)
    assert engine.closed == 1
    seen: list[Any] = []
    async for item in stream:
        seen.append(item)
        assert stream.ended == (item.finish_reason is not None)
    assert seen == [token(1, 2), chunks[3], token(4, 5), terminal(6)]


@pytest.mark.rows("S6")
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_pump_ends_the_run(
    interrupt: type[BaseException], leaks: LeakWatch
) -> None:
    """As out of any task it goes to what runs the event loop, and the engine is closed."""
    # It stops the loop in the middle; what was going on is cancelled as the loop is closed.
    leaks.allow("task not done")
    leaks.allow("async generator not closed")
    engine = Engine(map(token, range(4)), error=interrupt())

    async def main() -> None:
        await received(fuse(engine(), [coalesce()]), [5.0])

    with pytest.raises(interrupt):
        run_virtual(main())
    assert engine.closed == 1


async def test_a_full_buffer_may_fail_the_stream() -> None:
    """The engine is closed then; what waits comes out first, then the error."""
    engine = Engine(map(token, range(100)), every_s=1.0)
    stream = fuse(engine(), [coalesce(max_chunks=3, overflow="fail")])
    await anext(stream)
    await asyncio.sleep(20.0)
    assert (engine.pulls, engine.closed) == (4, 1)
    assert await anext(stream) == token(1, 2, 3)
    with pytest.raises(BufferOverflow, match="the consumer is too slow: 3 chunks are waiting"):
        await anext(stream)


# Any timing.


@dataclass(slots=True)
class Timing:
    """
    One run of an engine against a consumer.

    Attributes:
        steps: The engine's chunks: what kind, and how long it waits before each.
        end: ``terminal``, ``none`` or ``error``.
        busy_s: How long the consumer is busy after each item, the last time for all others.
        drop_after_s: When it drops the stream.
    """

    steps: list[tuple[str, float | None]]
    end: str
    busy_s: list[float]
    drop_after_s: float | None


TIMINGS = st.builds(
    Timing,
    steps=st.lists(
        st.tuples(
            st.sampled_from(["token", "tokens", "empty", "linked"]),
            st.sampled_from([None, 0.0, 1.0, 2.0, 5.0]),
        ),
        max_size=25,
    ),
    end=st.sampled_from(["terminal", "none", "error"]),
    busy_s=st.lists(st.sampled_from([0.0, 0.5, 3.0, 20.0]), min_size=1, max_size=12),
    drop_after_s=st.none() | st.floats(0.0, 60.0),
)


class Scripted:
    """
    An engine whose chunks say in their text which they are, and that knows what waits.

    Attributes:
        given_at: When it gave each of them.
        seen: What the consumer has received.
        most_waiting: The most chunks that it has given and nobody had received.
        begun: How often it was begun, and closed how often closed.
    """

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.given_at: list[float] = []
        self.seen: Received = []
        self.most_waiting = 0
        self.begun = self.closed = 0

    async def __call__(self) -> AsyncGenerator[Any]:
        self.begun += 1
        try:
            for number, (kind, wait_s) in enumerate(self._timing.steps):
                if wait_s is not None:
                    await asyncio.sleep(wait_s)
                yield self._give(number, kind)
            if self._timing.end == "terminal":
                yield LLMEngineOutput.stop()
            if self._timing.end == "error":
                raise LookupError
        finally:
            self.closed += 1

    def _give(self, number: int, kind: str) -> LLMEngineOutput:
        self.given_at.append(now())
        taken = sum(len(numbers_of(chunk)) for _, chunk in self.seen)
        self.most_waiting = max(self.most_waiting, number + 1 - taken)
        chunk = LLMEngineOutput([number] * TOKENS.get(kind, 1), text=f"{number};")
        if kind == "linked":
            chunk.worker_trace_link = TraceLink("a" * 32, "b" * 16)
        return chunk


TOKENS = {"empty": 0, "tokens": 3}


def numbers_of(chunk: LLMEngineOutput) -> list[int]:
    """Which of the engine's chunks are in *chunk*."""
    return [int(number) for number in (chunk.text or "").split(";")[:-1]]


@pytest.mark.rows("F1", "S1", "S2", "S6", "S7")
@given(TIMINGS, st.integers(1, 6))
@example(Timing([("empty", None), *[("token", None)] * 2], "terminal", [0.5], None), 2)
def test_any_timing_of_engine_and_consumer(timing: Timing, max_chunks: int) -> None:
    """The engine's tokens in order, each as soon as it is there; barriers and bounds hold."""
    engine = Scripted(timing)
    counts = CoalesceCounts()
    merging = coalesce(max_chunks=max_chunks, counts=counts)

    async def run() -> str:
        stream = fuse(engine(), [until_terminal(), merging])
        try:
            async with asyncio.timeout(timing.drop_after_s):
                await received(stream, timing.busy_s, engine.seen)
        except LookupError:
            return "error"
        except TimeoutError:
            return "dropped"
        finally:
            await stream.aclose()
        return "through"

    end = run_virtual(run())
    assert engine.closed == engine.begun
    assert engine.most_waiting <= max_chunks
    ends = [chunk for _, chunk in engine.seen if chunk.finish_reason is not None]
    items = [chunk for _, chunk in engine.seen if chunk.finish_reason is None]
    numbers = [number for chunk in items for number in numbers_of(chunk)]
    assert [chunk for _, chunk in engine.seen] == [*items, *ends]
    assert numbers == list(range(len(numbers)))
    if end != "dropped":
        assert end == ("error" if timing.end == "error" else "through")
        assert len(numbers) == len(timing.steps)
        assert ends == [LLMEngineOutput.stop()] * (timing.end == "terminal")
    # At the end of the source one item more is made, which a drop may overtake.
    assert counts.chunks_out - len(engine.seen) in ({0, 1} if end == "dropped" else {0})
    if counts.chunks_out == len(engine.seen):
        assert counts.chunks_in == len(numbers) + len(ends)
    check_items(items, timing)
    check_times(engine, timing)


def check_items(items: list[LLMEngineOutput], timing: Timing) -> None:
    """Each has the tokens of its chunks; the first output, and those with a link, are alone."""
    for place, item in enumerate(items):
        kinds = [timing.steps[number][0] for number in numbers_of(item)]
        tokens = [n for n in numbers_of(item) for _ in range(TOKENS.get(timing.steps[n][0], 1))]
        assert item.token_ids == tokens
        if len(kinds) > 1:
            assert place > 0  # text alone is output too
            assert "linked" not in kinds


def check_times(engine: Scripted, timing: Timing) -> None:
    """Check that an item comes when the consumer asks, or when its first chunk is there."""
    asked = 0.0
    for place, (at, item) in enumerate(engine.seen):
        if item.finish_reason is None:
            assert at == max(asked, engine.given_at[numbers_of(item)[0]])
        asked = at + timing.busy_s[min(place, len(timing.busy_s) - 1)]
