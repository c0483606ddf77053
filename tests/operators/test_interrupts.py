"""Cancellations on their way through a pull: the consumer's, the engine's own, and those of a drop."""

# The types of ``reactivex`` leave open what an operator without a source works on.
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from reactivex import operators as ops

from operators import coalesce, fuse, heartbeat, map_async, until_terminal
from operators.assembly import Callbacks, callbacks, make_stream
from operators.authoring import AnyOperator, FusedRun, Stage, emit, operator
from tests.operators._help import (
    Engine,
    Owner,
    Seen,
    by_aclose,
    by_close,
    collect,
    later,
    now,
    observed,
    same,
    settle,
    spy,
    terminal,
    token,
)


@callbacks()
def watching(journal: list[str]) -> Callbacks[Any, Any]:
    """Note the interrupts, and the end."""
    return Callbacks(
        on_interrupt=lambda interrupted: journal.append("interrupt" if interrupted else "no drop"),
        on_end=lambda failure, dropped: journal.append("dropped" if dropped else repr(failure)),
    )


async def timing_out(times: int = 1, pause_s: float | None = None) -> AsyncGenerator[Any]:
    """Cancel the task that pulls by a timeout of its own, and go on."""
    yield token(1)
    for _ in range(times):
        try:
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        except TimeoutError:
            if pause_s is not None:
                await asyncio.sleep(pause_s)
            yield token(2)


class TestTheEnginesOwn:
    """An engine may cancel the task that pulls, and take that back, as ``asyncio.timeout`` does."""

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("times", [1, 3])
    @pytest.mark.parametrize("pause_s", [None, 2.0])
    @pytest.mark.parametrize("cancelled_before", [0, 2])
    async def test_a_timeout_inside_the_engine_is_no_drop(
        self, times: int, pause_s: float | None, cancelled_before: int
    ) -> None:
        """
        Stages are notified of that as soon as it is caught, not with the engine's next item.

        Also in a task that had swallowed cancellations before.
        """
        journal: list[str] = []
        told: list[tuple[float, bool]] = []

        @callbacks()
        def timing() -> Callbacks[Any, Any]:
            return Callbacks(on_interrupt=lambda interrupted: told.append((now(), interrupted)))

        async def consume() -> Seen:
            for _ in range(cancelled_before):
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            operators = [watching(journal), timing(), spy(journal)]
            return await collect(fuse(timing_out(times, pause_s), operators))

        consumer = asyncio.create_task(consume())
        for _ in range(cancelled_before):
            await settle()
            consumer.cancel()
        seen = await consumer
        assert seen == Seen([token(1), *[token(2)] * times], "completed")
        assert consumer.cancelling() == cancelled_before
        notes = [note for note in journal if "Chunk" not in note]
        assert notes == ["interrupt", "no drop"] * times + ["None", "|"]
        moments = [1.0 + number * (1.0 + (pause_s or 0.0)) for number in range(times)]
        assert told == [(moment, how) for moment in moments for how in (True, False)]

    @pytest.mark.rows("S6", "S7")
    async def test_a_timeout_of_the_consumer_is_a_drop(self) -> None:
        """The same from the outside: everything is released, and the consumer's block raises."""
        journal: list[str] = []
        engine = Engine([token(1)], ends=False, closing_s=2.0)
        stream = fuse(engine(), [watching(journal), spy(journal)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await collect_plainly(stream)
        assert asyncio.get_running_loop().time() == 3.0
        assert journal[1:] == ["interrupt", "dropped", "!"]
        assert engine.closed == 1
        assert await collect(stream) == Seen([], "completed")


async def collect_plainly(stream: Any) -> None:
    async for _ in stream:
        pass


class ObserverRecord:
    """Notes what a stream's observer is told."""

    def __init__(self) -> None:
        self.left: list[int] = []
        self.ended: list[bool] = []

    def mark_undelivered(self, items: Sequence[int]) -> None:
        self.left += items

    def end(self, dropped: bool) -> None:
        self.ended.append(dropped)


class Interrupted(BaseException):
    pass


@operator
def raising(error: BaseException) -> Stage[Any, Any]:
    yield
    raise error


class TestNobodyWaits:
    """A consumer that leaves waits for no clean-up that does not run in its own pull."""

    @pytest.mark.rows("S6", "S7")
    @pytest.mark.parametrize("answer", ["item", "end", "failure"])
    @pytest.mark.parametrize("between", [[], [map_async(later)]], ids=["alone", "pulled"])
    @pytest.mark.parametrize("cancelled_s", [0.5, 4.0])
    async def test_a_cancelled_consumer_does_not_wait_for_clean_up(
        self, answer: str, between: list[AnyOperator], cancelled_s: float
    ) -> None:
        """It has left at once, and the engine's clean-up continues to its end."""
        loop = asyncio.get_running_loop()
        closed: list[float] = []

        async def engine() -> AsyncGenerator[Any]:
            try:
                yield token(1)
                try:
                    if answer == "item":
                        await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass
                yield terminal()
            finally:
                await asyncio.sleep(10)
                closed.append(loop.time())

        ending: AnyOperator = until_terminal() if answer == "end" else same()
        if answer == "failure":
            ending = raising(LookupError())
        consumer = asyncio.create_task(collect_plainly(fuse(engine(), [ending, *between])))
        await asyncio.sleep(cancelled_s)
        consumer.cancel()
        await asyncio.wait([consumer])
        assert consumer.cancelled()
        assert loop.time() == cancelled_s
        await asyncio.sleep(100)
        assert closed == [cancelled_s + 10 if answer == "item" else 10.0]

    @pytest.mark.rows("O2", "S7")
    @pytest.mark.parametrize("at", [1, 2])
    @pytest.mark.parametrize("makes", [1, 3])
    async def test_items_lost_to_a_cancellation_are_marked_undelivered(
        self, at: int, makes: int
    ) -> None:
        """A consumer that is cancelled in the very step that an engine answers gets none of them."""
        seen, told = Seen(), ObserverRecord()

        @operator
        def cancelling() -> Stage[int, int]:
            item = yield
            while True:
                if item == at:
                    consumer.cancel()
                item = yield emit(*[item] * makes)

        async def engine() -> AsyncGenerator[int]:
            for item in range(3):
                own = asyncio.ensure_future(asyncio.Event().wait())
                asyncio.get_running_loop().call_later(1, own.cancel)
                with suppress(asyncio.CancelledError):
                    await own
                yield item

        async def consume() -> None:
            stream = make_stream(engine(), [cancelling()], FusedRun[int], observer=told)
            async for item in stream:
                seen.items.append(item)

        consumer = asyncio.create_task(consume())
        await asyncio.wait([consumer])
        assert consumer.cancelled()
        assert seen.items == [item for item in range(at) for _ in range(makes)]
        assert (told.left, told.ended) == ([at] * makes, [True])

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("error", [SystemExit(), Interrupted()])
    @pytest.mark.parametrize("behind", [True, False])
    async def test_an_interrupt_is_never_an_item(self, error: BaseException, behind: bool) -> None:
        """
        Also where another operator would make one of whatever is raised.

        It reaches the consumer at once, and the engine's clean-up continues to its end.
        """

        @operator
        def forgiving() -> Stage[Any, Any]:
            with suppress(BaseException):
                item = yield
                while True:
                    item = yield item
            return terminal()

        journal: list[str] = []
        operators = [raising(error), forgiving()]
        engine = Engine([token(1)], ends=False, closing_s=10)
        stream = fuse(
            engine(),
            [spy(journal), *(operators if behind else reversed(operators)), spy(journal)],
        )
        with pytest.raises(type(error)):
            await collect_plainly(stream)
        assert journal == [str(token(1)), "!", "!"]
        assert now() == 0.0
        await asyncio.sleep(100)
        assert engine.closed == 1


@pytest.mark.rows("S7")
class TestClosedPulls:
    """Pulls whose coroutine was closed, as a drop that nobody waits for."""

    @pytest.mark.parametrize("closing_s", [None, 2.0])
    @pytest.mark.parametrize("depth", [0, 1])
    async def test_the_engine_is_unwound_in_a_task(
        self, closing_s: float | None, depth: int
    ) -> None:
        """``aclose`` waits for it; the stages have ended by then, once, and later pulls are over."""
        loop = asyncio.get_running_loop()
        engine = Engine([1], ends=False, closing_s=closing_s)
        ended: list[bool] = []
        between: list[AnyOperator] = [map_async(later)] * depth
        stream = observed(
            engine(), [spy(engine.journal), *between, spy(engine.journal)], on_end=ended.append
        )
        assert await anext(stream) == 1
        pull = stream.__anext__()
        pull.send(None)
        pull.close()
        assert ended == [True]
        assert engine.journal.count("!") == 2
        begun = loop.time()
        await asyncio.gather(stream.aclose(), stream.aclose())
        assert loop.time() - begun == (closing_s or 0.0)
        assert (engine.closed, engine.journal.count("!"), ended) == (1, 2, [True])
        assert await collect(stream) == Seen([], "completed")

    @pytest.mark.parametrize("leaves", [0, 1, 2])
    async def test_a_waiter_may_be_cancelled(self, leaves: int) -> None:
        """Others who wait for the same are not disturbed, nor is the engine's clean-up."""
        engine = Engine([1], ends=False, closing_s=5.0)
        stream = fuse(engine(), [same()])
        await anext(stream)
        pull = asyncio.create_task(collect(stream))
        await settle()
        waiting = [asyncio.create_task(stream.aclose()) for _ in range(3)]
        await asyncio.sleep(1)
        assert waiting.pop(leaves).cancel()
        await asyncio.gather(*waiting)
        assert asyncio.get_running_loop().time() == 5.0
        assert (engine.closed, await pull) == (1, Seen([], "completed"))

    async def test_a_pull_that_never_started_can_be_closed(self) -> None:
        """Closing it disturbs nothing: the next pull continues."""
        stream = fuse(Engine([1, 2])(), [same()])
        stream.__anext__().close()
        assert await collect(stream) == Seen([1, 2], "completed")


class TestFromInside:
    """The engine drops its own stream, whatever stands between the two (row S7)."""

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("way", [by_close, by_aclose])
    @pytest.mark.parametrize(
        "make",
        [
            same,
            lambda: map_async(later),
            lambda: heartbeat(1e6, "beat"),
            coalesce,
            lambda: ops.map(lambda item: item),
            lambda: ops.delay(0.0),
        ],
        ids=["ours", "pulling", "pumped", "ahead", "fed", "detached"],
    )
    @pytest.mark.parametrize("at", ["start", "item"])
    async def test_the_engine_drops_its_own_stream(
        self, at: str, make: Callable[[], AnyOperator], way: Callable[[Owner], Any]
    ) -> None:
        """Everything is released once, in whichever task the engine runs."""
        owner: Owner = []
        journal: list[str] = []
        ended: list[bool] = []

        async def drop() -> None:
            # Nobody can wait for the end of what waits for him.
            if way is by_aclose:
                await asyncio.wait([asyncio.ensure_future(way(owner))], timeout=0.0)
            else:
                await way(owner)
            await asyncio.sleep(1)
            journal.append("went on")

        async def engine() -> AsyncGenerator[int]:
            try:
                if at == "start":
                    await drop()
                yield 1
                if at == "item":
                    await drop()
                yield 2
            finally:
                journal.append("closed")

        owner.append(observed(engine(), [spy(journal), make(), spy(journal)], on_end=ended.append))
        seen = await collect(owner[0])
        assert seen.end == "completed"
        await settle()
        assert journal.count("closed") == 1
        assert "went on" not in journal
        assert ended == [True]
        assert journal.count("!") == 2
