"""Laws of resumable streams, over random engines and readers that come, lag, go and come back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import PositionDropped, PositionUnknown
from rx_backend import Disconnected, EngineAdapter, LLMEngineOutput
from rx_backend.resumable import ResumableReader, ResumableStreams, StreamNotFound
from rx_backend.testing import run_virtual
from tests.engines.scripted import ScriptedEngine, Step, now
from tests.examples import examples
from tests.rx_backend.resumable.answers import REQUEST, Item, text_of, told, until_stopped
from tests.spans import Spans

ENDS: dict[str, tuple[Step, ...]] = {
    "stop": (LLMEngineOutput.stop(),),
    "error terminal": (LLMEngineOutput.error("no"),),
    "failure": (Disconnected("gone"),),
    "no terminal": (),
    "obeys": (until_stopped, LLMEngineOutput.cancelled()),
    "ignores stops": (10_000.0, LLMEngineOutput.stop()),
}
ENDLESS = ("obeys", "ignores stops")
# Room for the first chunk with its trace link, a terminal or an error item, held as objects.
ONE_OBJECT = 3_000


@dataclass(frozen=True)
class Reading:
    """One reader: when it comes, where it begins, how much and how fast it reads, how it leaves."""

    comes: float
    after: int | Literal["last"]
    count: int
    pace: float
    leaves: Literal["close", "cancel", "lose"]


@dataclass
class Run:
    """
    What happened in one run.

    Attributes:
        visits: When each reader came and left.
        last: Where the last reader that left was.
        most_delivered: The position that the fastest of all readers has reached.
    """

    engine: ScriptedEngine
    tokens: int
    options: dict[str, Any]
    visits: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    last: int = 0
    most_delivered: int = 0

    def check_bounds(self, streams: ResumableStreams) -> None:
        held = streams.stats()
        assert held.held_bytes <= self.options["max_bytes"] + ONE_OBJECT
        is_free = self.engine.aborts or self.options["when_abandoned"] == "continue"
        if not is_free:
            # With nothing ahead it is pulled when a reader waits.
            ahead = max(self.options["max_ahead"], 1)
            assert self.engine.pulls <= self.most_delivered + ahead + 1


readings = st.lists(
    st.builds(
        Reading,
        comes=st.integers(0, 15).map(float),
        after=st.just("last") | st.integers(0, 12),
        count=st.integers(0, 15),
        pace=st.sampled_from((0.0, 0.3, 2.1)),
        leaves=st.sampled_from(("close", "cancel", "lose")),
    ),
    max_size=5,
)
bounds = st.fixed_dictionaries(
    {
        "max_ahead": st.sampled_from((0, 1, 3, 256)),
        "max_bytes": st.sampled_from((1, 150, 1_000_000)),
        "linger_s": st.sampled_from((0.0, 1.25, 4.25)),
        "stop_grace_s": st.sampled_from((0.0, 2.0)),
        "keep_s": st.sampled_from((0.0, 5.0, 100.0)),
        "when_abandoned": st.sampled_from(("stop", "stop", "continue")),
    }
)


async def read(streams: ResumableStreams, reader: ResumableReader, how: Reading, run: Run) -> None:
    """Read as *how* says, and check that what comes is the answer from the reader's position on."""
    came, after = now(), reader.position
    items: list[Item] = []
    position, is_over = after, False
    dropped: PositionDropped | None = None
    try:
        while len(items) < how.count:
            # The next item may be far away; waiting is cut short, which is a cancellation.
            async with asyncio.timeout(9.0):
                item = await anext(reader, None)
            if item is None:
                is_over = True
                break
            items.append(item)
            position = reader.position
            run.most_delivered = max(run.most_delivered, position)
            run.check_bounds(streams)
            await asyncio.sleep(how.pace)
    except TimeoutError:
        pass
    except PositionDropped as error:
        dropped = error
    # Losing its place is for a slow one where little is held.
    assert dropped is None or (run.options["max_bytes"] < 1_000_000 and dropped.first > position)
    assert reader.position == position
    wanted = range(after, max(after, min(position, run.tokens)))
    assert told(items) == list(wanted)
    assert text_of(items) == "".join(f"{n} " for n in wanted)
    if is_over and items:
        chunk = items[-1].data
        assert items[-1].is_error or (chunk is not None and chunk.finish_reason is not None)
    run.last = position
    run.visits.append((came, now()))
    if how.leaves == "close":
        await reader.aclose()


async def visit(streams: ResumableStreams, id: str, how: Reading, run: Run, offset: float) -> None:
    await asyncio.sleep(how.comes + offset)
    after = run.last if how.after == "last" else how.after
    reader, reason = None, None
    try:
        reader = await streams.resume(id, after)
    except (PositionDropped, PositionUnknown, StreamNotFound) as error:
        reason = type(error)
    if reader is None:
        assert reason is not PositionDropped or run.options["max_bytes"] < 1_000_000
        assert reason is not StreamNotFound or run.engine.closes
        return
    if how.leaves == "cancel":
        task = asyncio.create_task(read(streams, reader, how, run))
        del reader
        await task
        return
    await read(streams, reader, how, run)


def rule(run: Run) -> float:
    """Return when the rule stops an engine that has not ended: no reader for ``linger_s``."""
    linger = run.options["linger_s"]
    until = 0.0
    for came, left in [*sorted(run.visits), (float("inf"), 0.0)]:
        if came - until > linger:
            break
        until = max(until, left)
    return round(until + linger, 6)


@pytest.mark.rows("S1", "S7", "A2", "P7")
@examples(250)
@given(
    st.lists(st.sampled_from((0.0, 0.0, 1.0, 3.0)), max_size=12),
    st.sampled_from(tuple(ENDS)),
    bounds,
    readings,
    st.integers(0, 6),
)
def test_every_reader_gets_exactly_the_answer(
    pauses: list[float], end: str, options: dict[str, Any], coming: list[Reading], at_first: int
) -> None:
    """
    Each reader has the answer's tokens from its position on, once and in order; the bounds hold at
    every step; the engine is stopped when the rule says, and once; nothing is left.
    """
    script: list[Step] = []
    for n, pause in enumerate(pauses):
        script += [pause, LLMEngineOutput([n], text=f"{n} ")]
    script += ENDS[end]
    spans = Spans()
    engine = ScriptedEngine(*script)
    adapter = EngineAdapter(engine, tracer=spans.tracer)
    run = Run(engine, len(pauses), options)

    async def main() -> None:
        async with ResumableStreams(adapter, **options) as streams:
            reader = await streams.start(REQUEST)
            stream_id = reader.stream_id
            how = Reading(0.0, 0, at_first, 0.0, "close")
            tasks = [asyncio.create_task(read(streams, reader, how, run))]
            del reader
            for number, each in enumerate(coming):
                # Nothing comes in the moment in which something else happens.
                offset = 0.07 + number / 100
                tasks.append(asyncio.create_task(visit(streams, stream_id, each, run, offset)))
            await asyncio.gather(*tasks)
            del tasks
            await asyncio.sleep(300)
            run.check_bounds(streams)
            assert streams.stats().readers == 0
            if options["when_abandoned"] == "stop":
                # Stopped or closed at the latest, and forgotten.
                assert engine.closed == engine.calls == 1
                assert len(streams) == 0
                stop, closed = rule(run), engine.closes[0]
                # An engine may end by itself in the very moment of the stop.
                is_stopped = stop < closed or (stop == closed and engine.aborts != [])
                assert engine.aborts == ([stop] if is_stopped or end == "obeys" else [])
            else:
                assert engine.aborts == []
                assert len(streams) == (end in ENDLESS)
        assert len(streams) == 0
        assert engine.closed == 1
        assert len(engine.aborts) <= 1

    run_virtual(main())
    assert spans.open == ()
    assert len(spans.finished) == 1
