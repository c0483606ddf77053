"""`operators._core.pulled_segment`: an asynchronous generator over its source, as a part of a stream."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import fuse, until_terminal
from operators.authoring import (
    FusedRun,
    Stage,
    StageResult,
    complete_with,
    emit,
    fail_after,
    operator,
)
from rx_backend.testing import run_virtual
from tests.operators._help import (
    Engine,
    Owner,
    Seen,
    by_aclose,
    by_close,
    by_losing_it,
    collect,
    observed,
    same,
    settle,
    spy,
    terminal,
    token,
)

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)


@operator
async def through(source: FusedRun[Any]) -> AsyncGenerator[Any]:
    """Hand every item through."""
    async for item in source:
        yield item


@operator
async def words(
    source: FusedRun[Any], count: int = 1, error: object = None, pause_s: object = None
) -> AsyncGenerator[Any]:
    """Hand every item through; at the end so many more, and then fail or not."""
    async for item in source:
        yield item
    for number in range(count):
        if pause_s is not None:
            await asyncio.sleep(1.0)
        yield f"word {number}"
    if isinstance(error, Exception):
        raise error


async def ends_known(stream: FusedRun[Any]) -> tuple[list[tuple[Any, bool]], Exception | None]:
    """Return each item with whether the stream knew that it was the last, and the failure."""
    seen: list[tuple[Any, bool]] = []
    try:
        async for item in stream:
            seen += [(item, stream.ended)]
    except LookupError as error:
        return seen, error
    return seen, None


@pytest.mark.rows("P6a")
class TestTheLastItem:
    """It is known to be the last when it is handed out (row P6a)."""

    @pytest.mark.parametrize("depth", [0, 1, 2, 3])
    async def test_the_last_item_of_a_source_that_knows_its_end(self, depth: int) -> None:
        """Everything is over by then, however many generators stand behind one another."""
        engine = Engine([token(1), terminal(), token(2)])
        journal: list[str] = []
        stream = observed(
            engine(),
            [until_terminal(), *([through()] * depth), spy(journal)],
            on_end=lambda dropped: journal.append(f"end {dropped}"),
        )
        assert await anext(stream) == token(1)
        assert not stream.ended
        assert await anext(stream) == terminal()
        assert stream.ended
        assert journal[-2:] == ["|", "end False"]
        await settle()
        assert (engine.pulls, engine.closed) == (2, 1)
        assert await collect(stream) == Seen([], "completed")

    @pytest.mark.parametrize("waits", [True, False])
    async def test_the_last_item_of_a_generator_that_yields_after_the_end(
        self, waits: bool
    ) -> None:
        """The generator is run on only until it has yielded once more: that is the last then."""
        ended_at: list[float] = []
        stream = fuse(
            Engine([token(1), terminal()])(),
            [until_terminal(), words(2, pause_s=1.0 if waits else None), same()],
        )
        clock = asyncio.get_running_loop().time
        seen: list[tuple[Any, bool]] = []
        async for item in stream:
            seen.append((item, stream.ended))
            ended_at.append(clock())
        assert seen == [
            (token(1), False),
            (terminal(), False),
            ("word 0", False),
            ("word 1", True),
        ]
        assert ended_at == ([0.0, 1.0, 2.0, 2.0] if waits else [0.0] * 4)

    @pytest.mark.rows("S6")
    @pytest.mark.parametrize("count", [0, 1, 2])
    async def test_the_last_item_of_a_generator_that_fails_after_the_end(self, count: int) -> None:
        """Its items come out first; none of them is the last, for the failure is."""
        stream = fuse(
            Engine([token(1), terminal()])(), [until_terminal(), words(count, LookupError("late"))]
        )
        seen, error = await ends_known(stream)
        assert seen == [
            (token(1), False),
            (terminal(), False),
            *((f"word {number}", False) for number in range(count)),
        ]
        assert repr(error) == "LookupError('late')"
        assert getattr(error, "__notes__", []) == ["raised by the operator words"]
        assert await collect(stream) == Seen([], "completed")

    @pytest.mark.parametrize(
        ("said", "items", "end"),
        [
            (complete_with(8, 9), [1, 8, 9], "completed"),
            (complete_with(), [1], "completed"),
            (emit(8, 9), [1, 8, 9, 3], "completed"),
            (emit(), [1, 3], "completed"),
            (fail_after(LookupError("said"), 8), [1, 8], "LookupError('said')"),
        ],
        ids=["last", "last-none", "several", "none", "failure"],
    )
    async def test_the_last_item_of_a_generator_that_ends_the_stream(
        self, said: StageResult, items: list[int], end: str
    ) -> None:
        """What ends the stream is known with its last item; the source is closed, and not pulled."""

        @operator
        async def says(source: FusedRun[int]) -> AsyncGenerator[int | StageResult]:
            async for item in source:
                yield said if item == 2 else item

        engine = Engine([1, 2, 3])
        stream = fuse(engine(), [says(), same()])
        knows = False
        seen = Seen([], "completed")
        try:
            async for item in stream:
                seen.items.append(item)
                knows = stream.ended
        except LookupError as error:
            seen.fail(error)
        assert seen == Seen(items, end)
        assert knows is (said.ends and said.error is None and bool(said.items))
        assert engine.closed == 1
        assert engine.pulls == (2 if said.ends or said.error else 3)

    @pytest.mark.parametrize("way", ["return", "complete_with", "fail_after", "raise"])
    @pytest.mark.parametrize("count", [1, 2, 3])
    async def test_the_last_item_of_a_stream_that_an_operator_ends(
        self, way: str, count: int
    ) -> None:
        """For later operators the source has completed; for earlier ones it is a drop."""

        @operator
        def ending() -> Stage[Any, Any]:
            item = yield
            for _ in range(count - 1):
                item = yield item
            if way == "raise":
                raise LookupError
            if way == "return":
                return item
            yield complete_with(item) if way == "complete_with" else fail_after(LookupError(), item)

        ahead: list[str] = []
        between: list[str] = []
        source = [token(1), token(2), terminal()]
        stream = fuse(
            Engine(source)(),
            [spy(ahead), until_terminal(), through(), spy(between), ending(), same()],
        )
        seen = await collect(stream)
        assert seen.items == source[: count - 1 if way == "raise" else count]
        assert (ahead[-1], between[-1]) == (("!", "|") if count == 3 else ("!", "!"))


@given(
    items=st.lists(st.integers(0, 9), max_size=5),
    count=st.integers(0, 3),
    fails=st.booleans(),
    depth=st.integers(1, 3),
    every_s=st.sampled_from([None, 1.0]),
    take=st.none() | st.integers(1, 5),
)
@pytest.mark.rows("S1", "P6a")
def test_the_last_item_of_any_chain_of_generators(
    items: list[int],
    count: int,
    depth: int,
    take: int | None,
    *,
    fails: bool,
    every_s: float | None,
) -> None:
    """All items come out in order; only the very last one is ever called that."""
    error = LookupError("late") if fails else None

    @operator
    def taking() -> Stage[Any, Any]:
        item = yield
        for _ in range((take or 99) - 1):
            item = yield item
        return item

    async def run() -> tuple[list[tuple[Any, bool]], Exception | None]:
        source = Engine(items, every_s=every_s)
        operators = [words(count, error), *[through()] * depth, taking()]
        return await ends_known(fuse(source(), operators))

    seen, end = run_virtual(run())
    whole = [*items, *(f"word {number}" for number in range(count))]
    is_cut = take is not None and take <= len(whole)
    assert [item for item, _ in seen] == whole[:take]
    assert (end is not None) is (fails and not is_cut)
    assert not any(is_last for _, is_last in seen[:-1])
    if is_cut:
        assert seen[-1][1]
    if fails and not is_cut:
        assert not any(is_last for _, is_last in seen)


class TestErrors:
    """Who is said to have raised what."""

    @pytest.mark.rows("O4")
    async def test_only_its_own_errors_are_attributed_to_the_generator(self) -> None:
        """What comes out of its source is not noted as its own, and not logged twice."""
        engine_failed = await collect(fuse(Engine([1], error=LookupError())(), [through()]))
        assert not hasattr(engine_failed.error, "__notes__")
        seen = await collect(fuse(Engine([1])(), [words(0, LookupError()), through(), through()]))
        assert seen.error is not None
        assert seen.error.__notes__ == ["raised by the operator words"]

    @pytest.mark.rows("S7")
    @pytest.mark.parametrize("way", [by_close, by_aclose, by_losing_it])
    async def test_a_generator_that_fails_during_close_is_logged(
        self, way: Callable[[Owner], Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is logged with its name and without its message; the engine is closed all the same."""

        @operator
        async def clumsy(source: FusedRun[Any]) -> AsyncGenerator[Any]:
            try:
                async for item in source:
                    yield item
            finally:
                await asyncio.sleep(1)
                raise LookupError("".join(secret))

        secret = ["what somebody", " wrote"]
        engine = Engine([1, 2])
        owner: Owner = [fuse(engine(), [clumsy()])]
        await anext(owner[0])
        await way(owner)
        await asyncio.sleep(10)
        assert engine.closed == 1
        (record,) = caplog.records
        assert record.getMessage() == "closing the operator clumsy failed"
        assert "what somebody wrote" not in caplog.text
        caplog.clear()


@pytest.mark.rows("S7")
class TestDrop:
    """The generator is closed before its source, once, in the stream's context (row S7)."""

    @pytest.mark.rows("P9")
    @pytest.mark.parametrize("way", [by_close, by_aclose, by_losing_it])
    @pytest.mark.parametrize("pulled", [0, 1])
    async def test_the_generator_is_closed_before_its_source(
        self, pulled: int, way: Callable[[Owner], Any]
    ) -> None:
        """It may still wait in its ``finally``; one that was never pulled does not begin."""
        noted: list[str] = []

        async def engine() -> AsyncGenerator[int]:
            try:
                yield 1
                yield 2
            finally:
                noted.append(f"engine {NUMBER.get()}")

        @operator
        async def tidy(source: FusedRun[Any]) -> AsyncGenerator[Any]:
            try:
                async for item in source:
                    yield item
            finally:
                await asyncio.sleep(1)
                noted.append(f"generator {NUMBER.get()}")

        context = contextvars.copy_context()
        context.run(NUMBER.set, 7)
        owner: Owner = [fuse(engine(), [tidy()], own_context=context)]
        for _ in range(pulled):
            await anext(owner[0])
        await way(owner)
        await asyncio.sleep(10)
        assert noted == ["generator 7", "engine 7"] * pulled

    async def test_an_adopted_source_stays_open(self) -> None:
        """``is_adopted``: the source outlives the stream, and its stages see no drop."""
        journal: list[str] = []
        kept: list[FusedRun[Any]] = []

        @operator
        async def adopts(source: FusedRun[Any]) -> AsyncGenerator[Any]:
            async for item in source:
                yield item
                source.is_adopted = True
                kept.append(source)

        engine = Engine([1, 2, 3])
        stream = fuse(engine(), [spy(journal), adopts()])
        assert [await anext(stream) for _ in range(2)] == [1, 2]
        await stream.aclose()
        assert (journal, engine.closed) == (["1", "2"], 0)
        assert [item async for item in kept[0]] == [3]
        assert (journal, engine.closed) == (["1", "2", "3", "|"], 1)

    async def test_it_may_close_its_source_from_another_task(self) -> None:
        """From another task: the pull ends without an item, and the generator continues."""

        @operator
        async def impatient(source: FusedRun[Any]) -> AsyncGenerator[Any]:
            timer = asyncio.get_running_loop().call_later(1.5, source.close)
            async for item in source:
                yield item
            timer.cancel()
            yield "given up"

        engine = Engine(range(9), every_s=1.0)
        seen = await collect(fuse(engine(), [same(), impatient(), same()]))
        assert seen == Seen([0, "given up"], "completed")
        assert (engine.pulls, engine.closed) == (1, 1)

    @pytest.mark.rows("S6")
    async def test_a_generator_that_swallows_the_consumers_cancellation(self) -> None:
        """The cancellation continues all the same."""

        @operator
        async def stubborn(source: FusedRun[Any]) -> AsyncGenerator[Any]:
            with suppress(asyncio.CancelledError):
                async for item in source:
                    yield item
            yield "never mind"

        engine = Engine([1], ends=False)
        consumer = asyncio.create_task(collect(fuse(engine(), [stubborn(), same()])))
        await asyncio.sleep(1)
        consumer.cancel()
        await asyncio.wait([consumer])
        assert consumer.cancelled()
        await settle()
        assert engine.closed == 1
