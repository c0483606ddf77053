"""Dropping a fused stream, in every state and every way: all is released, once and silently."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from operators import TokenTimes, fuse, heartbeat, itl_window, map_async, until_terminal
from operators.authoring import AnyOperator, Stage, operator
from rx_backend.testing import VirtualTimeLoop
from tests.operators._drops import (
    EVERY_WAY,
    IN_A_PULL,
    InPull,
    Way,
    by_an_exception_in_a_loop,
    by_cancelling,
    by_leaving_a_loop,
)
from tests.operators._help import (
    Bare,
    Engine,
    Owner,
    Seen,
    by_aclose,
    by_close,
    by_losing_it,
    collect,
    later,
    observed,
    same,
    settle,
    spy,
    terminal,
    token,
    twice,
)


class Run:
    """
    A stream and all that it holds: an engine, two operators and an ``on_end``.

    Args:
        engine: Makes the source, from the journal.
    """

    def __init__(self, engine: Callable[[list[str]], AsyncIterator[Any]]) -> None:
        self.journal: list[str] = []
        self.owner: Owner = [
            observed(
                engine(self.journal),
                [spy(self.journal, "a"), twice(), spy(self.journal, "b")],
                on_end=lambda _dropped: self.journal.append("on_end"),
            )
        ]

    def pull(self) -> asyncio.Task[Seen]:
        """Return a task that pulls the stream to its end."""
        return asyncio.create_task(collect(self.owner[0]))

    async def released(self) -> list[str]:
        """Wait until nothing happens any more, and give what was noted of the end."""
        await asyncio.sleep(1000)
        return sorted(entry for entry in self.journal if entry[-1] in "!|#d")


# Turns of the loop.
MANY = 200_000

_SECRET = "a prompt"
_place = contextvars.ContextVar("_place", default="outside")


# What is noted of an end by a drop.
DROPPED = ["a!", "b!", "closed", "on_end"]


def quick(journal: list[str]) -> AsyncIterator[Any]:
    """Return an engine that never waits, but for its second item."""
    return Engine([1], ends=False, journal=journal)()


def slow_to_close(journal: list[str]) -> AsyncIterator[Any]:
    """Return an engine whose ``finally`` waits."""
    return Engine([1], ends=False, closing_s=2.0, journal=journal)()


def engine_that(
    work: Callable[[], Awaitable[object]],
) -> Callable[[list[str]], AsyncGenerator[Any]]:
    """Return an engine that yields an item, and then is busy until it is dropped."""

    async def engine(journal: list[str]) -> AsyncGenerator[Any]:
        try:
            yield 1
            await work()
            journal.append("never dropped")
        finally:
            journal.append("closed")

    return engine


async def _spin() -> None:
    for _ in range(MANY):
        await asyncio.sleep(0)


async def _spin_after_a_failure() -> None:
    with suppress(LookupError):
        await _fails_after(0.05)
    await _spin()


async def _spin_after_a_cancellation() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await _spin()


async def _wait_for_a_task() -> None:
    await asyncio.create_task(asyncio.sleep(1_000_000))


async def _fails_after(delay_s: float) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(delay_s, future.set_exception, LookupError())
    await future


BUSY = pytest.mark.parametrize(
    "engine",
    [quick, slow_to_close, *map(engine_that, (_spin, _spin_after_a_failure, _wait_for_a_task))],
    ids=["quick", "slow-to-close", "spinning", "spinning-after-a-failure", "waiting-in-a-task"],
)


@pytest.mark.rows("S7")
class TestNobodyWaits:
    """The stream is dropped while no task waits in a pull."""

    @pytest.mark.parametrize("way", EVERY_WAY)
    @pytest.mark.parametrize("engine", [quick, slow_to_close])
    @pytest.mark.parametrize("pulled", [0, 1, 2], ids=["unpulled", "items-wait", "between"])
    async def test_everything_is_released_once(
        self,
        pulled: int,
        engine: Callable[[list[str]], AsyncIterator[Any]],
        way: Way,
    ) -> None:
        """Operators and engine are closed and ``on_end`` is called, whichever way it is dropped."""
        loops = way in {by_leaving_a_loop, by_an_exception_in_a_loop}
        if loops and pulled == 2:
            pulled = 1
        run = Run(engine)
        for _ in range(pulled):
            assert await anext(run.owner[0]) == 1
        await way(run.owner)
        started = pulled > 0 or loops
        assert await run.released() == [end for end in DROPPED if started or end != "closed"]

    @pytest.mark.parametrize("way", [by_close, by_losing_it])
    async def test_synchronous_parts_are_released_at_once(self, way: Way) -> None:
        """The stages' end and ``on_end`` come with the drop, the engine's ``finally`` next."""
        run = Run(quick)
        await anext(run.owner[0])
        before = [*run.journal]
        await way(run.owner)
        if way is by_losing_it:
            # The collector may come in the middle of anything, so even that waits for the loop.
            assert run.journal == before
            await asyncio.sleep(0)
        assert run.journal == [*before, "a!", "b!", "on_end"]
        await asyncio.sleep(0)
        assert run.journal == [*before, "a!", "b!", "on_end", "closed"]

    async def test_aclose_waits_for_the_engine(self) -> None:
        """It returns when a clean-up of two seconds is done, however often it is called."""
        loop = asyncio.get_running_loop()
        run = Run(slow_to_close)
        await anext(run.owner[0])
        run.owner[0].close()
        assert loop.time() == 0.0
        await asyncio.gather(*(run.owner[0].aclose() for _ in range(3)))
        assert loop.time() == 2.0
        await run.owner[0].aclose()
        assert loop.time() == 2.0
        assert await run.released() == DROPPED

    @pytest.mark.parametrize("way", [by_close, by_losing_it])
    async def test_a_cancelled_release_is_silent(
        self, way: Way, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The end of an event loop cancels every task: that of a release ends so, without a word."""
        run = Run(slow_to_close)
        await anext(run.owner[0])
        others = asyncio.all_tasks()
        await way(run.owner)
        await asyncio.sleep(1)
        closing = asyncio.all_tasks() - others
        for task in closing:
            task.cancel()
        await asyncio.wait(closing)
        assert [task.cancelled() for task in closing] == [True]
        assert caplog.records == []

    @pytest.mark.rows("P9")
    @pytest.mark.parametrize("closing_s", [None, 2.0])
    @pytest.mark.parametrize("between", [[], [map_async(later)]], ids=["alone", "pulled"])
    async def test_an_engine_collected_with_its_stream_is_closed_once(
        self,
        closing_s: float | None,
        between: list[AnyOperator],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Its clean-up runs once, in the stream's context: the event loop does not begin another."""
        closed: list[str] = []
        own = contextvars.copy_context()
        own.run(_place.set, "own")

        async def engine(owner: Owner) -> AsyncGenerator[int]:
            try:
                yield len(owner)
                yield 2
            finally:
                closed.append(_place.get())
                if closing_s is not None:
                    await asyncio.sleep(closing_s)
                closed.append(_place.get())

        async def lose() -> None:
            owner: Owner = []
            owner.append(fuse(engine(owner), [same(), *between], own_context=own))
            assert await anext(owner[0]) == 1

        await lose()
        gc.collect()
        await asyncio.sleep(10)
        assert closed == ["own", "own"]
        assert caplog.records == []

    @pytest.mark.parametrize("way", [by_close, by_aclose, by_losing_it])
    async def test_an_engine_that_fails_during_close_is_logged(
        self, way: Way, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is logged, and keeps nothing from being released."""

        async def clumsy(journal: list[str]) -> AsyncGenerator[int]:
            try:
                yield 1
            finally:
                journal.append("closed")
                if len(journal) % 2:
                    await asyncio.sleep(1)
                raise ExceptionGroup("broken release", [LookupError()])

        run = Run(clumsy)
        await anext(run.owner[0])
        await way(run.owner)
        assert await run.released() == DROPPED
        assert [record.getMessage() for record in caplog.records] == [
            "closing the source of a stream failed"
        ]
        caplog.clear()

    async def test_an_on_end_that_fails_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        """No caller could receive the error."""

        def refuse(_dropped: bool) -> None:
            raise LookupError

        stream = observed(Engine([1])(), [same()], on_end=refuse)
        await stream.aclose()
        (record,) = caplog.records
        assert (record.levelno, record.getMessage()) == (
            logging.ERROR,
            "the callback at the end of a stream failed",
        )
        caplog.clear()

    def test_a_stream_dropped_between_two_runs_of_its_loop(self) -> None:
        """What has to wait is released when the loop runs again."""
        loop = VirtualTimeLoop()

        async def begin() -> Run:
            run = Run(slow_to_close)
            await anext(run.owner[0])
            return run

        run = loop.run_until_complete(begin())
        run.owner.clear()
        assert loop.run_until_complete(run.released()) == DROPPED
        loop.close()

    def test_a_stream_at_interpreter_exit_is_silent(self) -> None:
        """One that lasts until modules are taken apart is silent, whether it has ended or not."""
        script = """if True:
            import asyncio, gc
            from operators import fuse
            from operators._core import fusion
            async def engine():
                for number in range(3):
                    yield number
            async def main():
                fusion.kept = [fuse(engine(), []), fuse(engine(), [])]
                async for _ in fusion.kept[0]:
                    pass
                await anext(fusion.kept[1])
            asyncio.run(main())
            gc.freeze()
        """
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stderr == ""


@pytest.mark.rows("S7")
class TestATaskWaits:
    """The stream is dropped while a task waits in a pull."""

    @pytest.mark.parametrize("way", IN_A_PULL)
    @BUSY
    async def test_everything_is_released_once(
        self, engine: Callable[[list[str]], AsyncIterator[Any]], way: InPull
    ) -> None:
        """A pull that is closed ends without an item; a cancellation goes through and out of it."""
        run = Run(engine)
        pulling = run.pull()
        await asyncio.sleep(0.1)
        await way(pulling, run.owner[0])
        if way is by_cancelling:
            with pytest.raises(asyncio.CancelledError, match="the client left"):
                await pulling
        else:
            assert await pulling == Seen([1, 1], "completed")
        assert await run.released() == DROPPED

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("answer", ["chunk", "terminal", "error", "end", "wait"])
    @pytest.mark.parametrize("pause_s", [None, 0.0, 5.0])
    async def test_an_engine_that_swallows_the_consumers_cancellation(
        self, answer: str, pause_s: float | None
    ) -> None:
        """Whatever it makes of it, at once or later, the cancellation continues and is a drop."""

        async def stubborn(journal: list[str]) -> AsyncGenerator[Any]:
            try:
                yield 1
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                if pause_s is not None:
                    await asyncio.sleep(pause_s)
                if answer == "error":
                    raise LookupError("no answer")
                if answer != "end":
                    yield terminal() if answer == "terminal" else 2
                if answer == "wait":
                    await asyncio.Event().wait()
                journal.append("went on")
            finally:
                journal.append("closed")

        run = Run(stubborn)
        pulling = run.pull()
        await asyncio.sleep(1)
        pulling.cancel()
        await asyncio.wait([pulling])
        assert pulling.cancelled()
        assert asyncio.get_running_loop().time() == 1.0 + (pause_s or 0.0)
        assert await run.released() == DROPPED
        assert ("went on" in run.journal) is (answer == "end")
        assert [item for item in run.journal if item[0] == "b"] == ["b1", "b1", "b!"]

    @pytest.mark.parametrize("way", [by_close, by_aclose])
    async def test_a_second_close_waits_for_the_first(self, way: Way) -> None:
        """The second one cuts no clean-up short, whether the first was a close or a cancellation."""
        for is_cancelled in (True, False):
            run = Run(slow_to_close)
            pulling = run.pull()
            await asyncio.sleep(1)
            closing = [pulling] if is_cancelled else [asyncio.ensure_future(way(run.owner))]
            if is_cancelled:
                pulling.cancel()
            await asyncio.sleep(1)
            second = asyncio.ensure_future(way(run.owner))
            await asyncio.sleep(0)
            assert run.journal[-3:] == ["a!", "b!", "on_end"]
            await asyncio.wait([pulling, second, *closing])
            assert pulling.cancelled() is is_cancelled
            assert await run.released() == DROPPED

    async def test_an_engine_that_swallowed_the_consumers_cancellation(self) -> None:
        """A drop that follows in the same pull ends the stages at once; the engine is left to unwind."""
        run = Run(engine_that(_spin_after_a_cancellation))
        pulling = run.pull()
        await asyncio.sleep(0.1)
        pulling.cancel()
        await asyncio.sleep(0.01)
        run.owner[0].close()
        assert run.journal[-3:] == ["a!", "b!", "on_end"]
        pulling.cancel()
        await asyncio.wait([pulling])
        assert pulling.cancelled()
        assert await run.released() == DROPPED
        assert "never dropped" not in run.journal

    async def test_a_close_in_the_iteration_of_an_item(self) -> None:
        """What the engine waits for is there, but the pull has not gone on yet: no item comes."""

        async def engine(journal: list[str]) -> AsyncGenerator[int]:
            try:
                await ready
                yield 1
            finally:
                journal.append("closed")

        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        run = Run(engine)
        pulling = run.pull()
        await asyncio.sleep(1)
        ready.set_result(None)
        run.owner[0].close()
        assert await pulling == Seen([], "completed")
        assert await run.released() == DROPPED

    async def test_cancelling_a_wait_for_the_release_does_not_stop_it(self) -> None:
        """
        The stream was at its end.

        The clean-up continues although no task waits for it any more.
        """
        loop = asyncio.get_running_loop()
        engine = Engine([terminal(), token(1)], closing_s=5.0)
        stream = fuse(engine(), [until_terminal()])
        assert await anext(stream) == terminal()
        pulling = asyncio.create_task(collect(stream))
        await asyncio.sleep(1)
        pulling.cancel()
        await asyncio.wait([pulling])
        assert (pulling.cancelled(), engine.closed, loop.time()) == (True, 0, 1.0)
        assert await collect(stream) == Seen([], "completed")
        assert (engine.closed, loop.time()) == (1, 5.0)

    @pytest.mark.rows("O4")
    @pytest.mark.parametrize("cancels", [True, False])
    @pytest.mark.parametrize("cleaning_s", [None, 2.0])
    async def test_an_engine_that_fails_at_a_drop_is_logged(
        self, cleaning_s: float | None, cancels: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The consumer is gone, so its failure is logged, once and without its message."""

        async def engine() -> AsyncGenerator[int]:
            yield 1
            try:
                await asyncio.Event().wait()
            finally:
                if cleaning_s is not None:
                    await asyncio.sleep(cleaning_s)
                raise LookupError(_SECRET)

        stream = fuse(engine(), [same()])
        assert await anext(stream) == 1
        pull = asyncio.create_task(collect(stream))
        await asyncio.sleep(1)
        if cancels:
            pull.cancel()
        else:
            stream.close()
        await asyncio.wait([pull])
        assert pull.cancelled() is cancels
        (record,) = caplog.records
        assert (record.levelno, record.getMessage()) == (logging.ERROR, "a dropped source failed")
        assert "LookupError" in caplog.text
        assert _SECRET not in caplog.text


class TestFromInside:
    """The stream is dropped by what runs in it."""

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("every_s", [None, 1.0])
    async def test_an_operator_drops_its_own_stream(self, every_s: float | None) -> None:
        """Its step may end, and the next pull is none: the engine is not resumed for one more item."""
        run: Owner = []
        journal: list[str] = []

        @operator
        def close() -> Stage[int, int]:
            item = yield
            while True:
                run[0].close()
                item = yield item

        engine = Engine(range(3), every_s=every_s)
        run.append(fuse(engine(), [spy(journal, "a"), close(), spy(journal, "b")]))
        assert await collect(run[0]) == Seen([0], "completed")
        await asyncio.sleep(100)
        assert journal == ["a0", "b0", "a!", "b!"]
        assert (engine.pulls, engine.closed) == (1, 1)


class TestThreads:
    """The last reference is lost in another thread."""

    @pytest.mark.rows("S7")
    async def test_everything_is_released_on_the_loops_thread(self) -> None:
        """Operators and engine never run in the thread that happened to lose the stream."""
        threads: set[int] = set()

        async def engine(journal: list[str]) -> AsyncGenerator[int]:
            try:
                yield 1
            finally:
                threads.add(threading.get_ident())

        @operator
        def note() -> Stage[int, int]:
            try:
                item = yield
                while True:
                    item = yield item
            finally:
                threads.add(threading.get_ident())

        owner: Owner = [fuse(engine([]), [note()])]
        await anext(owner[0])
        await asyncio.to_thread(owner.clear)
        await asyncio.sleep(1)
        assert threads == {threading.get_ident()}


@pytest.mark.rows("S7")
@pytest.mark.parametrize("way", ["close", "lose"])
@pytest.mark.parametrize("closing_s", [None, 0.02])
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("shuts_down", [True, False])
def test_a_stream_can_outlive_its_loop(
    way: str, closing_s: float | None, depth: int, shuts_down: bool
) -> None:
    """It is closed with its loop, as a generator is; where that was just closed, afterwards."""
    journal: list[str] = []

    async def pulled() -> Owner:
        made: list[AnyOperator] = [spy(journal), *[same()] * depth]
        owner: Owner = [
            observed(
                Bare([1, 2], closing_s=closing_s, journal=journal),
                made,
                on_end=lambda _dropped: journal.append("end"),
            )
        ]
        assert await anext(owner[0]) == 1
        return owner

    if shuts_down:
        owner = asyncio.run(pulled())
        assert journal == ["pull", "1", "!", "end", "closed"]
    else:
        loop = asyncio.new_event_loop()
        owner = loop.run_until_complete(pulled())
        loop.close()
        assert journal == ["pull", "1"]
    if way == "close":
        owner[0].close()
        owner[0].close()
    owner.clear()
    gc.collect()
    assert journal == ["pull", "1", "!", "end", "closed"]


@pytest.mark.rows("S7")
@pytest.mark.parametrize("turns", range(12))
async def test_nothing_starts_after_a_drop(turns: int) -> None:
    """However many tasks stand between consumer and engine, and wherever the drop finds them."""
    journal: list[str] = []

    async def engine() -> AsyncGenerator[int]:
        journal.append("begins")
        while True:
            await asyncio.sleep(1)
            yield 1

    alive = [heartbeat(9.0, 0) for _ in range(4)]
    consumer = asyncio.create_task(collect(fuse(engine(), [*alive, itl_window(TokenTimes())])))
    for _ in range(turns):
        await asyncio.sleep(0)
    consumer.cancel()
    await asyncio.wait([consumer])
    journal.append("dropped")
    await settle()
    assert journal in (["dropped"], ["begins", "dropped"])
