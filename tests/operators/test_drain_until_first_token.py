"""`operators.drain_until_first_token` and the `Drains` that own the drains."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reactivex.subject import ReplaySubject

from operators import Drains, drain_until_first_token, fuse, record_span, until_terminal
from operators.authoring import FusedRun
from rx_backend.testing import VirtualTimeLoop, run_virtual
from tests.leaks import LeakWatch
from tests.operators._drops import IN_A_PULL, InPull, by_cancelling, by_closing, by_losing_a_cycle
from tests.operators._help import (
    Chunk,
    Engine,
    Owner,
    Seen,
    busy,
    by_aclose,
    by_close,
    by_losing_it,
    collect,
    handshake,
    now,
    observed,
    settle,
    spy,
    terminal,
    token,
)
from tests.spans import Spans


class Request:
    """
    A stream with a drain in it, and what becomes of it.

    Args:
        source: The engine's stream.
        drains: Its owner.
        options: Of the operator.

    Attributes:
        aborts: When the abort was called.
        ends: When the stream was over for its consumer.
    """

    def __init__(self, source: AsyncIterator[Any], drains: Drains, **options: Any) -> None:
        self.aborts: list[float] = []
        self.ends: list[float] = []
        drain = drain_until_first_token(lambda: self.aborts.append(now()), drains=drains, **options)
        self.owner: Owner = [
            observed(
                source, [until_terminal(), drain], on_end=lambda _dropped: self.ends.append(now())
            )
        ]

    @property
    def stream(self) -> FusedRun[Any]:
        return self.owner[0]

    def pull(self) -> asyncio.Task[Seen]:
        return asyncio.create_task(collect(self.stream))


BETWEEN_PULLS = [by_close, by_aclose, by_losing_it, by_losing_a_cycle]


@pytest.mark.rows("A1", "S2")
@pytest.mark.parametrize("pulled", [0, 1])
async def test_a_terminal_ends_the_drain_too(pulled: int, caplog: pytest.LogCaptureFixture) -> None:
    """
    Also where no earlier operator ends the stream with it.

    Then nothing waits for it any more.
    """
    engine = Engine([terminal()], ends=False, every_s=1.0, closing_s=5.0)
    notified = ReplaySubject[bool]()
    async with Drains(timeout_s=3.0) as drains:
        drain = drain_until_first_token(
            lambda: pytest.fail("aborted"), drains=drains, notified=notified
        )
        stream = fuse(engine(), [drain])
        for _ in range(pulled):
            await anext(stream)
        stream.close()
        await stream.aclose()
    assert (now(), engine.closed) == (6.0, 1)
    assert (busy(), notified.observers, caplog.records) == ([], [], [])


@pytest.mark.rows("S6", "S7", "S9")
@pytest.mark.parametrize("fails", [False, True])
async def test_a_stream_that_ends_before_its_first_token(fails: bool) -> None:
    """The consumer sees its end or its failure; there is nothing to drain, and nothing is kept."""
    source = Engine([handshake()], error=LookupError("gone") if fails else None)()
    drains = Drains(limit=0)
    request, lost = Request(source, drains), ref(source)
    end = "LookupError('gone')" if fails else "completed"
    assert await collect(request.stream) == Seen([handshake()], end)
    assert (drains.drained, drains.timed_out, drains.refused) == (0, 0, 0)
    del request, source
    gc.collect()
    assert lost() is None


async def test_items_other_than_chunks_do_not_end_the_drain() -> None:
    """A keep-alive item has no token; the first one that has some does."""
    others = [object(), SimpleNamespace(token_ids=None)]
    engine = Engine([*others, {"token_ids": [1]}], ends=False, every_s=1.0)
    aborts: list[float] = []
    async with Drains(grace_s=3.0) as drains:
        drain = drain_until_first_token(lambda: aborts.append(now()), drains=drains)
        fuse(engine(), [drain]).close()
    assert (now(), aborts, engine.closed) == (6.0, [3.0], 1)


async def test_the_time_limit(caplog: pytest.LogCaptureFixture) -> None:
    """The engine is asked to stop, has its grace, and is closed; the log names the stream."""
    engine = Engine([handshake()], ends=False, every_s=2.0, closing_s=1.0)
    async with Drains(timeout_s=10.0, grace_s=3.0) as drains:
        request = Request(engine(), drains, label="r-17")
        request.stream.close()
        await drains.wait()
    assert (now(), request.aborts, engine.closed) == (14.0, [10.0], 1)
    assert (drains.drained, drains.timed_out) == (0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "the dropped stream r-17 had no first token within 10 s"
    ]


async def test_the_number_limit(caplog: pytest.LogCaptureFixture) -> None:
    """One more than the limit is closed at its drop; there is room again when one is done."""
    engines = [Engine([token(1)], ends=False, every_s=5.0) for _ in range(4)]
    async with Drains(limit=2, grace_s=0.0) as drains:
        requests = [Request(engine(), drains, label=f"r-{n}") for n, engine in enumerate(engines)]
        for request in requests[:3]:
            request.stream.close()
        pull = requests[3].pull()
        await asyncio.sleep(1.0)
        await by_cancelling(pull, requests[3].stream)
        await settle()
        assert [engine.closed for engine in engines] == [0, 0, 0, 1]
        assert (drains.running, drains.refused) == (2, 2)
        await drains.wait()
        assert [request.aborts for request in requests] == [[5.0], [5.0], [], []]
        again = Request(Engine([token(1)])(), drains)
        again.stream.close()
        assert drains.running == 1
    assert (drains.drained, drains.refused, drains.running) == (3, 2, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"the stream r-{n} was dropped before its first token, and closed: the limit of 2 is reached"
        for n in (2, 3)
    ]


@pytest.mark.rows("S1", "S4", "P6a")
async def test_a_stream_that_is_read_to_its_end() -> None:
    """All comes out, one pull for one chunk, and no task is there from the first token on."""
    chunks = [handshake(), handshake(), token(1), token(2), terminal()]
    engine = Engine(chunks)
    async with Drains() as drains:
        request = Request(engine(), drains)
        for number, chunk in enumerate(chunks, 1):
            assert await anext(request.stream) is chunk
            await asyncio.sleep(1.0)
            assert engine.pulls == number
            assert len(asyncio.all_tasks()) == (2 if number < 3 else 1)
        # Handing out the terminal was the end.
        assert (request.ends, engine.closed) == ([4.0], 1)
        assert await collect(request.stream) == Seen([], "completed")
    assert request.aborts == []


async def test_an_engine_that_never_waits_does_not_starve_other_tasks() -> None:
    """What it still yields after the abort does not block other tasks."""

    async def engine() -> AsyncGenerator[Chunk]:
        while True:
            yield token(1)

    async with Drains(grace_s=1 / 64) as drains:
        Request(engine(), drains).stream.close()
        turns = 0
        while drains.running:
            turns += 1
            await asyncio.sleep(1 / 512)
    assert now() == pytest.approx(1 / 64, abs=0.001)
    assert turns == 8


async def test_an_abort_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The drain continues to its end."""

    def abort() -> None:
        raise LookupError("no such request")

    engine = Engine([token(1), token(2)], ends=False, every_s=1.0)
    async with Drains(grace_s=3.0) as drains:
        drain = drain_until_first_token(abort, drains=drains, label="r-17")
        fuse(engine(), [drain]).close()
    assert (now(), engine.closed) == (4.0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "the abort of the dropped stream r-17 failed"
    ]


@pytest.mark.rows("P5", "P7")
async def test_earlier_operators_see_the_whole_drain() -> None:
    """
    A span recorded before it has the true outcome.

    After it, the span says that it was dropped.
    """
    spans, journal = Spans(), list[str]()
    front, behind = (spans.tracer.start_span(name) for name in ("front", "behind"))
    async with Drains() as drains:
        drain = drain_until_first_token(lambda: None, drains=drains)
        fuse(
            Engine([token(1), terminal()], every_s=2.0)(),
            [until_terminal(), spy(journal), record_span(front), drain, record_span(behind)],
        ).close()
        assert spans.one().name == "behind"
    assert len(journal) == 3
    outcomes = {span.name: (span.attributes or {})["finish_reason"] for span in spans.finished}
    assert outcomes == {"front": "stop", "behind": "Dropped"}


NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)


@pytest.mark.rows("P9")
@pytest.mark.parametrize(
    "dropped_s", [None, 0.0, 1.5], ids=["not-dropped", "unpulled", "in-a-pull"]
)
async def test_the_engine_keeps_its_context_and_its_task_until_the_first_token(
    dropped_s: float | None,
) -> None:
    """What it sets is there in its next step, whoever pulls; and it may hold a scope of its task."""
    seen: list[int] = []
    tasks: set[asyncio.Task[Any] | None] = set()

    async def engine() -> AsyncGenerator[Chunk]:
        try:
            async with asyncio.timeout(30.0):
                for chunk in (handshake(), handshake(), token(1)):
                    seen.append(NUMBER.get())
                    NUMBER.set(NUMBER.get() + 1)
                    tasks.add(asyncio.current_task())
                    await asyncio.sleep(1.0)
                    if chunk.token_ids:
                        break
                    yield chunk
            yield token(1)
            seen.append(NUMBER.get())
            await asyncio.sleep(1.0)
            yield terminal()
        finally:
            await asyncio.sleep(1.0)
            seen.append(NUMBER.get())

    own = contextvars.copy_context()
    own.run(NUMBER.set, 5)
    async with Drains() as drains:
        drain = drain_until_first_token(lambda: None, drains=drains)
        stream = fuse(engine(), [until_terminal(), drain], own_context=own)
        if dropped_s == 0.0:
            stream.close()
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.create_task(collect(stream)), dropped_s)
        await drains.wait()
    assert seen == [5, 6, 7, 8, 8]
    assert len(tasks) == 1
    assert NUMBER.get() == 0


class TestDrains:
    """The owner."""

    async def test_closing_waits_for_running_drains(self) -> None:
        """By default as long as they may take; later streams are not drained."""
        drains = Drains(timeout_s=10.0, grace_s=1.0)
        request = Request(Engine([token(1)], ends=False, every_s=5.0)(), drains)
        silent = Request(Engine(ends=False)(), drains)
        request.stream.close()
        silent.stream.close()
        await drains.aclose()
        assert (now(), request.aborts, silent.aborts) == (11.0, [5.0], [10.0])
        Request(Engine([token(1)])(), drains).stream.close()
        assert (drains.drained, drains.timed_out, drains.refused) == (1, 1, 1)
        await drains.aclose()

    @pytest.mark.parametrize("timeout_s", [1.0, 60.0])
    async def test_closing_cuts_drains_off_at_its_limit(self, timeout_s: float) -> None:
        """After its own time limit, drains that still run are aborted and closed."""
        drains = Drains(timeout_s=timeout_s, grace_s=5.0)
        engine = Engine([handshake()], ends=False, every_s=1.0, closing_s=2.0)
        request = Request(engine(), drains)
        request.stream.close()
        await drains.aclose(3.0)
        assert (now(), request.aborts, engine.closed) == (5.0, [min(timeout_s, 3.0)], 1)
        assert (drains.running, drains.timed_out) == (0, 1)

    async def test_closing_does_not_wait_for_a_stuck_engine(self) -> None:
        """An engine that does not let itself be closed is not waited for without end."""
        stubborn = asyncio.Event()

        async def engine() -> AsyncGenerator[Chunk]:
            try:
                yield handshake()
                await asyncio.sleep(1000.0)
            finally:
                await stubborn.wait()

        drains = Drains(grace_s=5.0)
        Request(engine(), drains).stream.close()
        await drains.aclose(3.0)
        assert (now(), drains.running) == (8.0, 1)
        stubborn.set()
        await drains.wait()

    def test_an_ending_event_loop_cancels_drains(self, caplog: pytest.LogCaptureFixture) -> None:
        """Drains that nobody closed are cancelled with all other tasks, and their engines closed."""
        engine = Engine([handshake(), handshake()], ends=False, every_s=1.0)
        drains = Drains()

        async def main() -> Request:
            request = Request(engine(), drains)
            request.stream.close()
            Request(Engine(ends=False)(), drains).stream.close()
            await asyncio.sleep(1.5)
            return request

        with asyncio.Runner() as runner:
            # In a loop of its own for the watch of leaks, which would find the tasks.
            loop = runner.get_loop()
            request = loop.run_until_complete(asyncio.wait_for(main(), 10.0))
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        assert (engine.closed, request.aborts, drains.running) == (1, [], 0)
        assert (drains.drained, drains.timed_out) == (0, 2)
        assert caplog.records == []

    @pytest.mark.parametrize("pulled", [0, 1])
    def test_a_stream_that_outlives_its_loop_is_not_drained(
        self, pulled: int, leaks: LeakWatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A stream that outlives its loop has nothing to continue in; it is closed with it."""
        leaks.allow("async generator not closed")
        engine = Engine([handshake(), token(1)])
        drains = Drains()

        async def main() -> FusedRun[Any]:
            stream = fuse(engine(), [drain_until_first_token(print, drains=drains)])
            for _ in range(pulled):
                await anext(stream)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                # What ends with the loop; here for the watch of leaks.
                task.cancel()
            await asyncio.sleep(0)
            return stream

        run_virtual(main()).close()
        assert caplog.records == []
        assert (engine.closed, drains.running) == (1, 0)

    def test_a_stream_dropped_after_its_loop_closed(self) -> None:
        """It closes no stream, and one that is closed then has nowhere to be drained."""
        drains, loop = Drains(), VirtualTimeLoop()

        async def main() -> FusedRun[Any]:
            return fuse(Engine()(), [drain_until_first_token(print, drains=drains)])

        stream = loop.run_until_complete(main())
        loop.close()
        stream.close()
        assert drains.running == 0


async def test_without_a_scope_it_needs_the_abort() -> None:
    """The error comes when the stream is made, and names the option."""
    with pytest.raises(TypeError, match="drain_until_first_token: abort: expected a function"):
        fuse(Engine([token(1)])(), [drain_until_first_token(drains=Drains())])


# Any timing.

# What the engine gives and after how many seconds. No two things happen at one time: chunks come at
# whole seconds (or, in a stream that was not pulled, at halves), drops at halves, and so on.
STEPS = st.lists(st.tuples(st.integers(1, 3), st.sampled_from("hhaaTUe|")), max_size=6)
CHUNKS = {"h": handshake(), "a": token(1), "T": terminal(), "U": terminal(1)}
GRACE_S = 1.1
NEVER_S = float("inf")


async def scripted(steps: Sequence[tuple[int, str]], closes: list[float]) -> AsyncGenerator[Chunk]:
    try:
        for delay_s, what in steps:
            await asyncio.sleep(delay_s)
            if what == "e":
                raise LookupError
            if what == "|":
                return
            yield CHUNKS[what]
        await asyncio.Event().wait()
    finally:
        closes.append(now())


@dataclass(frozen=True)
class Timing:
    """A stream, and what is done to it."""

    steps: Sequence[tuple[int, str]]
    dropped_s: float
    drop: Any
    timeout_s: float = 50.25
    notified_s: float | None = None
    limit: int = 1

    @property
    def is_pulled(self) -> bool:
        return self.drop in IN_A_PULL

    def expected(self) -> tuple[str, list[float], list[float], str]:
        """Return what the consumer sees, when the abort is called, when the engine is closed, what counts."""
        begun_s = 0.0 if self.is_pulled else self.dropped_s
        times = [begun_s + time_s for time_s in accumulate(delay_s for delay_s, _ in self.steps)]
        line = list(zip(times, (what for _, what in self.steps), strict=True))
        end_s = next((time_s for time_s, what in line if what in "TUe|"), NEVER_S)
        token_s = next((time_s for time_s, what in line if what in "aU"), NEVER_S)
        seen = "".join(what for time_s, what in line if time_s <= end_s and time_s < self.dropped_s)
        seen = seen.rstrip("e|")
        if min(token_s, end_s) < self.dropped_s:
            return seen, [], [min(end_s, self.dropped_s)], ""
        if self.limit == 0:
            return seen, [], [self.dropped_s] if self.is_pulled else [], "refused"
        notice_s = NEVER_S if self.notified_s is None else max(self.notified_s, self.dropped_s)
        abort_s = min(token_s, self.dropped_s + self.timeout_s, notice_s)
        if end_s <= abort_s:
            return seen, [], [end_s], "drained"
        counted = "timed_out" if abort_s < min(token_s, notice_s) else "drained"
        return seen, [abort_s], [min(end_s, abort_s + GRACE_S)], counted


@pytest.mark.rows("A1", "A4", "A5", "C4", "S1", "S2", "S4", "S6", "S7")
@given(
    timing=st.builds(
        Timing,
        steps=STEPS,
        dropped_s=st.integers(0, 8).map(lambda second: second + 0.5),
        drop=st.sampled_from([*IN_A_PULL, *BETWEEN_PULLS]),
        timeout_s=st.sampled_from([0.25, 2.25, 50.25]),
        notified_s=st.none() | st.integers(0, 8).map(lambda second: second + 0.6),
        limit=st.integers(0, 1),
    )
)
@example(Timing([(1, "h"), (3, "a")], 2.5, by_cancelling))
@example(Timing([(1, "h"), (3, "U")], 2.5, by_closing, 2.25, 2.6))
@example(Timing([(3, "a"), (1, "T")], 0.5, by_losing_it))
def test_any_timing_of_engine_and_consumer(timing: Timing) -> None:
    """Items, abort and closing come when the rules say, and nothing is left."""

    async def play() -> None:
        level: ReplaySubject[bool] = ReplaySubject()
        if timing.notified_s is not None:
            asyncio.get_running_loop().call_at(timing.notified_s, level.on_next, True)
        closes: list[float] = []
        drains = Drains(timing.limit, timeout_s=timing.timeout_s, grace_s=GRACE_S)
        request = Request(scripted(timing.steps, closes), drains, notified=level)
        items: list[Chunk] = []

        async def consume() -> Seen:
            with suppress(LookupError):
                async for item in request.stream:
                    items.append(item)  # noqa: PERF401 - a comprehension that is cancelled gives nothing
            return Seen(items)

        if timing.is_pulled:
            pull = asyncio.create_task(consume())
            await asyncio.sleep(timing.dropped_s)
            await timing.drop(pull, request.stream)
        else:
            await asyncio.sleep(timing.dropped_s)
            await timing.drop(request.owner)
        assert now() == timing.dropped_s
        await drains.wait()
        await asyncio.sleep(100.0)
        seen, aborts, closed, counted = timing.expected()
        assert items == [CHUNKS[what] for what in seen]
        assert request.aborts == pytest.approx(aborts)
        assert closes == pytest.approx(closed)
        for name in ("drained", "timed_out", "refused"):
            assert getattr(drains, name) == (name == counted)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(play())


@pytest.mark.rows("A5", "S7")
@given(
    turns=st.integers(0, 6),
    engine=st.lists(st.sampled_from(["turn", "h", "a", "T", "e"]), max_size=6),
    drop=st.sampled_from(IN_A_PULL),
)
def test_any_race(turns: int, engine: Sequence[str], drop: InPull) -> None:
    """A drop in any iteration near a first token or an end: at most one abort, and no leak."""

    async def racing(closes: list[float]) -> AsyncGenerator[Chunk]:
        try:
            for what in engine:
                if what == "turn":
                    await asyncio.sleep(0)
                elif what == "e":
                    raise LookupError
                else:
                    yield CHUNKS[what]
            await asyncio.Event().wait()
        finally:
            closes.append(now())

    async def play() -> None:
        closes: list[float] = []
        async with Drains(timeout_s=7.0, grace_s=1.0) as drains:
            request = Request(racing(closes), drains)
            pull = request.pull()
            for _ in range(turns):
                await asyncio.sleep(0)
            await drop(pull, request.stream)
            was_drained = drains.running
            await drains.wait()
            steps = "".join(what[0] for what in engine if what != "turn").lstrip("h")
            must_abort = was_drained and steps[:1] not in {"T", "e"}
            assert len(request.aborts) == bool(must_abort)
            assert len(closes) <= 1
            if was_drained:
                assert len(closes) == 1
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(play())
