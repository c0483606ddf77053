"""One source for many readers: nobody misses an item, and the source lives as long as it should."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal
from weakref import WeakSet, ref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators import PositionDropped, PositionUnknown, SharedStream, SourceClosed, fuse
from operators._core.failures import SourceCancelled
from operators._replay_log import ItemLog
from operators.authoring import Reader
from rx_backend.testing import run_virtual
from tests.leaks import LeakWatch
from tests.operators._drops import EVERY_WAY
from tests.operators._help import LONG_S, Engine, busy, handshake, now, settle, spy, token

GONE = LookupError("gone")


async def rest(reader: Reader[Any], into: list[Any] | None = None) -> list[Any]:
    seen: list[Any] = [] if into is None else into
    async for item in reader:
        seen.append(item)  # noqa: PERF401 - what came before a failure counts
    return seen


async def waiting(reader: Reader[Any]) -> asyncio.Task[Any]:
    """Return a task that waits for the reader's next item."""

    async def pull() -> Any:
        return await anext(reader)

    task = asyncio.create_task(pull())
    await settle()
    return task


# Reading.


@pytest.mark.parametrize("ahead", [0, 1, 3])
async def test_the_source_is_at_most_max_ahead(
    ahead: int, caplog: pytest.LogCaptureFixture
) -> None:
    """
    It is pulled up to *max_ahead* items beyond the fastest reader.

    With 0, only while one waits.
    """
    engine = Engine(range(10))
    shared = SharedStream(engine(), max_ahead=ahead)
    assert engine.pulls == 0
    quick = shared.read()
    await settle()
    assert engine.pulls == ahead
    for count in (1, 2, 3):
        await anext(quick)
        await settle()
        assert engine.pulls == count + ahead
    slow = shared.read()
    await anext(slow)
    assert shared.fastest == 3
    await quick.aclose()
    await settle()
    assert engine.pulls == 3 + ahead
    await slow.aclose()
    assert caplog.records == []


async def test_only_present_readers_count_as_fastest() -> None:
    """Where the fastest has left, the source waits for the next one to come as far."""
    for linger_s in (0.0, 60.0):
        engine = Engine(range(9), every_s=1.0)
        shared = SharedStream(engine(), max_ahead=3, linger_s=linger_s)
        quick = shared.read()
        slow = shared.read() if linger_s == 0.0 else None
        assert [await anext(quick), await anext(quick)] == [0, 1]
        await quick.aclose()
        slow = slow or shared.read()
        await asyncio.sleep(10.0)
        assert engine.pulls == 3
        await anext(slow)
        await asyncio.sleep(10.0)
        assert engine.pulls == 4
        await shared.aclose()


async def test_readers_that_leave_in_the_iteration_of_an_item() -> None:
    """One that is cancelled, and one that is closed, keep the item from no other."""
    given = asyncio.Event()

    async def engine() -> AsyncGenerator[str]:
        await given.wait()
        yield "a"

    shared = SharedStream(engine())
    readers = [shared.read() for _ in range(3)]
    cancelled, closed, staying = [await waiting(reader) for reader in readers]
    readers[1].close()
    await settle()
    assert isinstance(closed.exception(), StopAsyncIteration)
    given.set()
    cancelled.cancel()
    assert await staying == "a"
    await shared.aclose()


# What is held.


async def calls_of_leaving(count: int) -> int:
    """Return how many Python functions are called while so many readers leave at the end."""
    shared = SharedStream(Engine([1, 2])())
    readers = [shared.read() for _ in range(count)]
    for reader in readers:
        assert [await anext(reader), await anext(reader)] == [1, 2]
    calls = 0

    def count_call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count_call)
    try:
        for reader in readers:
            assert await anext(reader, None) is None
    finally:
        sys.setprofile(None)
    return calls


async def test_thousands_of_readers_may_leave_at_once() -> None:
    """As at the end of an answer: what that costs grows with their number, and not with its square."""
    assert await calls_of_leaving(400) < 8 * await calls_of_leaving(100)


@pytest.mark.rows("E6")
async def test_held_items_are_copies() -> None:
    """Neither an engine that reuses its chunk nor another reader changes what a reader gets."""

    async def engine() -> AsyncGenerator[Any]:
        chunk = handshake()
        for number in (1, 2):
            chunk.token_ids.append(number)
            yield chunk
            chunk.token_ids.clear()

    shared = SharedStream(engine())
    async with shared.read() as first, shared.read() as second:
        chunk = await anext(first)
        chunk.token_ids.append(99)
        assert await anext(second) == token(1)
        assert await rest(first) == [token(2)]
        assert await rest(shared.read()) == [token(1), token(2)]


async def test_a_reader_that_is_too_slow_fails() -> None:
    """A reader whose next item was dropped fails, and leaves; there is never a gap."""
    shared = SharedStream(Engine(range(9))(), log=ItemLog(3))
    quick, slow = shared.read(), shared.read()
    for _ in range(3):
        await anext(quick)
    assert [await anext(slow), await anext(slow)] == [0, 1]
    for _ in range(3):
        await anext(quick)
    assert (shared.first, shared.head) == (3, 6)
    with pytest.raises(PositionDropped, match="position 2 was dropped: items are held from 3 on"):
        await anext(slow)
    assert (slow.position, shared.readers) == (2, 1)
    with pytest.raises(StopAsyncIteration):
        await anext(slow)
    with pytest.raises(PositionDropped) as dropped:
        shared.read(2)
    assert (dropped.value.position, dropped.value.first) == (2, 3)
    with pytest.raises(PositionUnknown, match="position 7 is unknown: items so far: 6") as unknown:
        shared.read(7)
    assert (unknown.value.position, unknown.value.head) == (7, 6)
    assert shared.readers == 1
    assert await rest(shared.read(3)) == [3, 4, 5, 6, 7, 8]


class Merged(ItemLog[str]):
    """A log that hands out all that it has as one."""

    __slots__ = ()

    def read(self, position: int) -> tuple[str, int]:
        items = [super(Merged, self).read(place)[0] for place in range(position, self.head)]
        return "".join(items), self.head


async def test_a_log_may_merge() -> None:
    """A reader that lags gets what it lacks as one item, and its position says how much it was."""
    shared = SharedStream(Engine("abcd")(), log=Merged())
    quick, slow = shared.read(), shared.read()
    assert [await anext(quick), await anext(quick), await anext(quick)] == ["a", "b", "c"]
    assert (await anext(slow), slow.position) == ("abc", 3)
    assert await rest(slow) == ["d"]


async def test_an_exception_of_the_log_fails_the_stream() -> None:
    """What a log raises for an item reaches the readers, and the source is closed."""

    class Full(ItemLog[int]):
        def append(self, item: int) -> None:
            if item == 1:
                raise MemoryError("no room")
            super().append(item)

    engine = Engine(range(3))
    shared = SharedStream(engine(), log=Full())
    seen: list[int] = []
    with pytest.raises(MemoryError, match="no room"):
        await rest(shared.read(), seen)
    await shared.aclose()
    assert (seen, engine.closed) == ([0], 1)


# The end.


async def test_a_failures_traceback_does_not_grow_with_readers() -> None:
    """However many readers have raised it, its traceback shows the source and one reader."""
    shared = SharedStream(Engine(error=LookupError("gone"))())
    depths: list[int] = []
    for _ in range(3):
        with pytest.raises(LookupError) as caught:
            await anext(shared.read())
        depths.append(len(caught.traceback))
        assert caught.traceback[-1].name == "__call__"
    assert len(set(depths)) == 1


@pytest.mark.rows("S6")
async def test_a_cancellation_by_the_source_is_a_failure() -> None:
    """An unrequested ``CancelledError`` fails the readers, and cancels none of them."""
    shared = SharedStream(Engine("a", error=asyncio.CancelledError())())
    seen: list[str] = []
    with pytest.raises(SourceCancelled):
        await rest(shared.read(), seen)
    assert seen == ["a"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("idle", [False, True])
async def test_cancelling_the_pulling_task_fails_the_readers(idle: bool, fused: bool) -> None:
    """
    Readers don't wait forever.

    To a stream that is the source it is a drop, as any consumer's.
    """
    engine = Engine("ab", every_s=1.0)
    told: list[BaseException | None] = []
    journal: list[str] = []

    async def end(failure: BaseException | None) -> None:
        told.append(failure)

    source = fuse(engine(), [spy(journal)]) if fused else engine()
    shared = SharedStream(source, on_end=end)
    reader = shared.read()
    before = asyncio.all_tasks()
    pull = await waiting(reader)
    (pump,) = asyncio.all_tasks() - before - {pull}
    if idle:
        assert await pull == "a"
    pump.cancel()
    with pytest.raises(SourceCancelled):
        await (anext(reader) if idle else pull)
    await shared.aclose()
    assert engine.closed == 1
    assert [type(each) for each in told] == [SourceCancelled]
    assert journal == (["a"] * idle + ["!"] if fused else [])


async def test_closing_while_readers_wait() -> None:
    """They get what is held, then an error that says so; later readers too."""
    engine = Engine("abc", every_s=1.0, closing_s=5.0)
    told: list[BaseException | None] = []

    async def end(failure: BaseException | None) -> None:
        told.append(failure)

    shared = SharedStream(engine(), on_end=end)
    first, lagging = shared.read(), shared.read()
    await anext(first)
    pull = await waiting(first)
    shared.close()
    with pytest.raises(SourceClosed, match="closed before its source ended"):
        await pull
    assert now() == 1.0
    await shared.aclose()
    await shared.aclose()
    assert (now(), engine.closed, engine.pulls) == (6.0, 1, 1)
    for reader in (lagging, shared.read()):
        seen: list[str] = []
        with pytest.raises(SourceClosed):
            await rest(reader, seen)
        assert seen == ["a"]
    assert told == []


async def test_closing_before_the_first_reader() -> None:
    """The source is closed, though it has never been pulled."""
    engine = Engine("a")
    stream = fuse(engine(), [])
    shared = SharedStream(stream)
    await shared.aclose()
    assert stream.dropped
    with pytest.raises(SourceClosed):
        await anext(shared.read())
    assert (engine.pulls, shared.is_over) == (0, True)


async def test_closing_the_source_is_an_error_for_readers() -> None:
    """A stream that is dropped beside its shared stream is no clean end for the readers."""
    stream = fuse(Engine("ab", every_s=1.0)(), [])
    shared = SharedStream(stream)
    reader = shared.read()
    await anext(reader)
    await stream.aclose()
    with pytest.raises(SourceClosed, match="the source of a shared stream was closed"):
        await anext(reader)


# Leaving.


async def by_leaving_the_block(owner: list[Any]) -> None:
    async with owner.pop():
        pass


async def by_cancelling_its_pull(owner: list[Any]) -> None:
    task = await waiting(owner[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(StopAsyncIteration):
        await anext(owner.pop())


async def by_closing_it_while_it_waits(owner: list[Any]) -> None:
    task = await waiting(owner[0])
    owner.pop().close()
    with pytest.raises(StopAsyncIteration):
        await task


@pytest.mark.rows("S7")
@pytest.mark.parametrize(
    "leave",
    [
        *EVERY_WAY,
        by_leaving_the_block,
        by_cancelling_its_pull,
        by_closing_it_while_it_waits,
    ],
)
async def test_the_source_is_closed_with_the_last_reader(
    leave: Callable[[list[Any]], Awaitable[None]],
) -> None:
    """The source is closed when the last reader has left, in whatever way, and not before."""
    engine = Engine("abcd", every_s=1.0)
    shared = SharedStream(engine())
    stays = shared.read()
    owner: list[Any] = [shared.read()]
    await leave(owner)
    await settle()
    assert (shared.readers, shared.is_over, engine.closed) == (1, False, 0)
    await anext(stays)
    owner = [stays]
    del stays
    await leave(owner)
    await settle()
    assert (shared.readers, shared.is_over, engine.closed) == (0, True, 1)
    assert busy() == []


async def test_on_abandoned_is_called_once() -> None:
    """
    With a callback the source continues to its end.

    The callback is called once, to hasten it.
    """
    engine = Engine(range(9), every_s=1.0)
    told: list[float] = []
    shared = SharedStream(engine(), linger_s=2.0, on_abandoned=lambda: told.append(now()))
    async with shared.read() as reader:
        await anext(reader)
    reader.close()
    await asyncio.sleep(1.5)
    await shared.read(1).aclose()
    await asyncio.sleep(1.9)
    assert told == []
    await asyncio.sleep(0.7)
    await shared.read(1).aclose()
    await asyncio.sleep(LONG_S)
    assert (told, shared.head, engine.closed) == ([4.5], 9, 1)
    async with shared.read(1) as back:
        assert await rest(back) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert told == [4.5]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("error", [None, GONE])
async def test_on_end_is_called_once(error: Exception | None, fused: bool) -> None:
    """The owner is notified once, also where no reader waits for it and readers come later."""
    engine = Engine("ab", every_s=1.0, error=error)
    told: list[BaseException | None] = []

    async def end(failure: BaseException | None) -> None:
        told.append(failure)
        await asyncio.sleep(5.0)

    shared = SharedStream(fuse(engine(), []) if fused else engine(), max_ahead=9, on_end=end)
    async with shared.read() as reader:
        seen = [await anext(reader), await anext(reader)]
        await settle()
        assert told == [error]
        closing = asyncio.create_task(shared.aclose())
        await asyncio.sleep(1.0)
        assert (shared.is_over, closing.done()) == (False, False)
        with pytest.raises(LookupError, match="gone") if error else nullcontext():
            await rest(reader, seen)
        assert (seen, now()) == (["a", "b"], 7.0)
    assert (told, shared.is_over) == ([error], True)
    await closing
    assert engine.closed == 1


async def test_a_run_is_pulled_in_its_own_context() -> None:
    """That in which it was made, whoever reads."""
    variable: ContextVar[str] = ContextVar("variable", default="nobody's")
    seen: list[str] = []

    async def engine() -> AsyncGenerator[str]:
        for item in "ab":
            seen.append(variable.get())
            yield item

    variable.set("the request's")
    source = fuse(engine(), [])
    variable.set("the reader's")
    assert await rest(SharedStream(source).read()) == ["a", "b"]
    assert seen == ["the request's"] * 2


async def test_an_ended_stream_releases_its_source() -> None:
    """A stream that is held on to holds its items, and neither the engine's stream nor its owner."""

    class Owner:
        def abandon(self) -> None: ...

        async def end(self, failure: BaseException | None) -> None: ...

    source, owner = fuse(Engine("ab")(), []), Owner()
    shared = SharedStream(source, on_abandoned=owner.abandon, on_end=owner.end)
    assert await rest(shared.read()) == ["a", "b"]
    await settle()
    lost = ref(source), ref(owner)
    del source, owner
    assert [each() for each in lost] == [None, None]
    assert await rest(shared.read()) == ["a", "b"]


@pytest.mark.parametrize(
    ("takes", "kind"), [(1, "an abandoned stream"), (2, "the end of a shared stream")]
)
async def test_a_failing_callback_is_logged(
    takes: int, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged without its message, and the source is closed, or has ended, all the same."""
    secret = "what somebody wrote"

    def fail() -> None:
        raise ValueError(secret)

    async def fail_at_the_end(_: BaseException | None) -> None:
        fail()

    engine = Engine("ab")
    shared = SharedStream(engine(), on_abandoned=fail, on_end=fail_at_the_end)
    async with shared.read() as reader:
        assert [await anext(reader) for _ in range(takes)] == ["a", "b"][:takes]
        if takes == 2:
            assert await rest(reader) == []
    await shared.aclose()
    assert (shared.is_over, engine.closed) == (True, 1)
    assert [record.getMessage() for record in caplog.records] == [f"the callback for {kind} failed"]
    assert secret not in caplog.text


async def test_without_linger_s_it_is_never_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    """With ``linger_s=None`` the source continues without readers, once one was there."""
    engine = Engine(range(5), every_s=1.0)
    shared = SharedStream(engine(), linger_s=None)
    await asyncio.sleep(3.0)
    assert engine.pulls == 0
    async with shared.read() as reader:
        await anext(reader)
        await asyncio.sleep(3.0)
        assert engine.pulls == 1
    await asyncio.sleep(LONG_S)
    assert (engine.pulls, engine.closed, shared.is_over) == (5, 1, True)
    assert await rest(shared.read(1)) == [1, 2, 3, 4]
    assert caplog.records == []


async def test_leaving_waits_for_a_slow_source() -> None:
    """Leaving as the last one waits for it; being cancelled there does not disturb it."""
    engine = Engine("ab", closing_s=3.0)
    shared = SharedStream(engine())
    reader = shared.read()
    await anext(reader)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await reader.aclose()
    assert (now(), engine.closed) == (1.0, 0)
    await reader.aclose()
    assert (now(), engine.closed) == (3.0, 1)


class SlowToClose:
    """A source of one item, which takes three seconds to be released."""

    def __init__(self, error: Exception | None) -> None:
        self._source = Engine("a", error=error)()
        self.is_closed = False

    def __aiter__(self) -> SlowToClose:
        return self

    async def __anext__(self) -> str:
        return await anext(self._source)

    async def aclose(self) -> None:
        await asyncio.sleep(3.0)
        self.is_closed = True


@pytest.mark.parametrize(("error", "end"), [(None, ["a"]), (GONE, GONE)])
async def test_a_source_that_has_ended_and_is_released(
    error: Exception | None, end: object
) -> None:
    """Its end counts, though the last reader leaves meanwhile and all is closed; so does a failure."""
    told: list[str] = []
    source = SlowToClose(error)
    shared = SharedStream(source, on_abandoned=lambda: told.append("abandoned"))
    reader = shared.read()
    assert await anext(reader) == "a"
    pull = await waiting(reader)
    assert shared.is_over is False
    pull.cancel()
    await settle()
    shared.close()
    (late,) = await asyncio.gather(rest(shared.read()), return_exceptions=True)
    assert (late, now(), source.is_closed, told) == (end, 3.0, True, [])
    GONE.__traceback__ = None


async def test_a_source_that_swallows_a_cancellation() -> None:
    """It is closed nevertheless, and what it does with the cancellation has no effect."""
    closed: list[float] = []

    async def stubborn() -> AsyncGenerator[str]:
        try:
            try:
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError:
                await asyncio.sleep(1.0)
            yield "late"
        finally:
            closed.append(now())

    shared = SharedStream(stubborn())
    task = await waiting(shared.read())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shared.aclose()
    assert (closed, shared.head) == ([1.0], 0)


# Losing everything.


@pytest.mark.rows("S7")
@pytest.mark.parametrize("linger_s", [0.0, 60.0, None])
@pytest.mark.parametrize("pulled", [False, True])
async def test_a_stream_without_references_is_closed(linger_s: float | None, pulled: bool) -> None:
    """A stream without references can't be read again, so its source is closed at once."""
    engine = Engine("ab", every_s=1.0)
    shared = SharedStream(engine(), linger_s=linger_s)
    reader = shared.read()
    await anext(reader)
    if pulled:
        task = await waiting(reader)
        await asyncio.sleep(0.5)
        task.cancel()
        await settle()
        del task
    del shared
    await settle()
    if not pulled:
        assert engine.closed == 0
    del reader
    await settle()
    assert (engine.closed, engine.pulls) == (1, 1)
    assert busy() == []


@pytest.mark.rows("S7")
async def test_a_reader_keeps_the_stream() -> None:
    """A reference to a reader keeps the whole stream alive."""
    engine = Engine("ab", every_s=1.0)
    reader = SharedStream(engine()).read()
    gc.collect()
    assert await rest(reader) == ["a", "b"]


@pytest.mark.rows("S7")
def test_the_loop_closes_a_stream_that_is_still_open(leaks: LeakWatch) -> None:
    """What is still referenced when the loop ends is closed with it, without a warning."""
    leaks.allow("task not done")
    leaks.allow("async generator not closed")
    engine = Engine("ab", ends=False)
    kept: list[Any] = []

    async def main() -> None:
        shared = SharedStream(engine(), max_ahead=5)
        kept.extend((shared, shared.read()))
        await settle()

    asyncio.run(main())
    assert engine.closed == 1
    kept.clear()
    gc.collect()


@pytest.mark.rows("S7")
def test_a_loop_that_cancels_no_tasks(leaks: LeakWatch) -> None:
    """Closing the asynchronous generators of a loop closes shared streams too, and waits for it."""
    leaks.allow("task not done")
    leaks.allow("async generator not closed")
    engine = Engine("ab", closing_s=0.01)
    kept: list[Any] = []

    async def main() -> None:
        shared = SharedStream(engine())
        kept.extend((shared, shared.read()))
        await anext(kept[1])

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert engine.closed == 1
    loop.run_until_complete(kept[0].aclose())
    loop.close()


async def test_a_reader_collected_in_another_thread_leaves_on_the_loop() -> None:
    """The collector may find it anywhere; nothing of the stream is touched there."""
    shared = SharedStream(Engine("ab")())
    owner = [shared.read()]
    thread = threading.Thread(target=owner.clear)
    thread.start()
    thread.join()
    assert shared.readers == 1
    await settle()
    assert shared.readers == 0


# Marks.


async def test_a_mark_counts_as_a_reader() -> None:
    """It keeps the source, and permits it to go on; one that has everything is one that waits."""
    engine = Engine(range(9))
    shared = SharedStream(engine(), max_ahead=2)
    mark = shared.mark(0)
    await settle()
    assert (engine.pulls, shared.readers) == (2, 1)
    mark.advance(2)
    await settle()
    assert (engine.pulls, mark.position) == (4, 2)
    async with shared.read(4) as reader:
        await anext(reader)
    await settle()
    assert (shared.readers, engine.closed) == (1, 0)
    mark.close()
    mark.close()
    await settle()
    assert (shared.readers, engine.closed) == (0, 1)
    mark.advance(5)
    assert mark.position == 2
    engine = Engine(range(9))
    shared = SharedStream(engine())
    mark = shared.mark(0)
    for position in (1, 2, 3):
        await settle()
        assert engine.pulls == position
        mark.advance(position)
    del mark
    await settle()
    assert engine.closed == 1


async def test_a_mark_stays_within_the_held_items() -> None:
    """A mark can't be ahead of the source, nor go back."""
    shared = SharedStream(Engine(range(9))(), max_ahead=2)
    with pytest.raises(PositionUnknown):
        shared.mark(1)
    mark = shared.mark(0)
    await settle()
    mark.advance(1)
    mark.advance(1)
    with pytest.raises(ValueError, match="position: expected at least 1, as before, got 0"):
        mark.advance(0)
    with pytest.raises(PositionUnknown):
        mark.advance(7)
    assert mark.position == 1
    await shared.aclose()


# Misuse.


async def test_an_invalid_position_is_named() -> None:
    """It is named, with what was expected."""
    shared: Any = SharedStream(Engine()())
    wrong: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, "after: expected at least 0, got -1", lambda: shared.read(-1)),
        (TypeError, "after: expected a whole number, got '1'", lambda: shared.read("1")),
        (TypeError, "after: expected a whole number, got True", lambda: shared.mark(True)),
        (ValueError, "position: expected at least 0, got -1", lambda: shared.mark(0).advance(-1)),
    ]
    for kind, message, call in wrong:
        with pytest.raises(kind, match=message):
            call()


def test_a_reader_on_another_event_loop_is_rejected() -> None:
    """A shared stream lives on the loop of its first reader, or of its source."""

    async def begin() -> tuple[SharedStream[str], SharedStream[str]]:
        shared = SharedStream(Engine("ab")())
        await anext(shared.read())
        await shared.aclose()
        return shared, SharedStream(fuse(Engine("ab")(), []))

    async def go_on(shared: SharedStream[str], match: str) -> None:
        with pytest.raises(RuntimeError, match=match):
            shared.read()
        assert shared.readers == 0

    first, second = run_virtual(begin())
    run_virtual(go_on(first, "on the event loop of its first reader"))
    run_virtual(go_on(second, "the source of a shared stream belongs to another event loop"))
    with pytest.raises(RuntimeError, match="on the event loop of its first reader"):
        run_virtual(first.aclose())
    with pytest.raises(RuntimeError, match="on a running event loop"):
        first.close()
    with pytest.raises(RuntimeError, match="on a running event loop"):
        first.read()


async def test_a_concurrent_read_is_rejected() -> None:
    """The second is refused, and the first continues."""
    shared = SharedStream(Engine("ab", every_s=1.0)())
    reader = shared.read()
    first = await waiting(reader)
    with pytest.raises(RuntimeError, match="already being pulled by another task"):
        await anext(reader)
    assert await first == "a"
    await reader.aclose()


# Everything at random.

Leave = Literal["aclose", "close", "lose", "cancel"]
LINGER_S = 1.3


@dataclass(frozen=True)
class Visit:
    """
    A reader's visit.

    Args:
        starts_s: When it comes.
        after: Where it begins, as a part of what has come.
        paces_s: How long it is busy after each item, the last time for all others.
        takes: After how many items it leaves; None to stay to the end.
        leaves: How it leaves.
    """

    starts_s: float
    after: float
    paces_s: tuple[float, ...]
    takes: int | None
    leaves: Leave


TIMES = st.sampled_from([0.0, 0.5, 1.0, 2.5])
VISITS = st.lists(
    st.builds(
        Visit,
        starts_s=st.sampled_from([0.0, 0.0, 0.75, 1.5, 3.0, 5.0]),
        after=st.sampled_from([0.0, 0.0, 0.5, 1.0]),
        paces_s=st.lists(TIMES, min_size=1, max_size=3).map(tuple),
        takes=st.none() | st.integers(0, 6),
        leaves=st.sampled_from(("aclose", "close", "lose", "cancel")),
    ),
    min_size=1,
    max_size=5,
)


@dataclass
class World:
    """
    A shared stream that is watched.

    Attributes:
        journal: When readers came (+1) and left (-1).
        pulls: How many items the source was asked for.
        over_at: When the source has ended by itself.
        closed_at: When its clean-up began.
    """

    delays_s: list[float]
    end: Literal["ends", "fails", "hangs"]
    ahead: int
    buffer: int | None
    linger_s: float
    journal: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    readers: WeakSet[Reader[int]] = field(default_factory=WeakSet[Reader[int]])
    awaits: int = 0
    furthest: int = 0
    pulls: int = 0
    over_at: float | None = None
    closed_at: list[float] = field(default_factory=list[float])

    async def source(self) -> AsyncGenerator[int]:
        loop = asyncio.get_running_loop()
        try:
            for number, delay_s in enumerate(self.delays_s):
                self.check_demand()
                if delay_s:
                    await asyncio.sleep(delay_s)
                yield number
            self.check_demand()
            if self.end == "hangs":
                await asyncio.Event().wait()
            self.over_at = loop.time()
            if self.end == "fails":
                raise LookupError("gone")
        finally:
            self.closed_at.append(loop.time())

    def check_demand(self) -> None:
        """It is pulled only as far ahead as allowed, and with nothing ahead only for one that waits."""
        self.pulls += 1
        self.furthest = max([self.furthest, *(reader.position for reader in self.readers)])
        assert self.pulls <= self.furthest + max(self.ahead, 1)
        if self.ahead == 0:
            assert self.awaits

    async def visit(self, shared: SharedStream[int], visit: Visit) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(visit.starts_s)
        after = round(visit.after * shared.head)
        if after < shared.first:
            with pytest.raises(PositionDropped):
                shared.read(after)
            return
        self.journal.append((loop.time(), 1))
        owner = [shared.read(after)]
        self.readers.add(owner[0])
        # The source is asked in the next turn, when this reader may have left.
        self.furthest = max(self.furthest, after)
        seen: list[int] = []
        end = "left"
        try:
            await self.take(owner[0], visit, seen)
            if visit.leaves == "cancel":
                await self.cancel_pull(owner[0])
        except StopAsyncIteration:
            end = "ends"
        except LookupError as error:
            end = "dropped" if isinstance(error, PositionDropped) else "fails"
        except SourceClosed:
            end = "closed"
        self.check_reader(shared, end, after, seen)
        if visit.leaves == "lose":
            owner.clear()
            # It leaves in the next turn.
            await asyncio.sleep(0)
        self.journal.append((loop.time(), -1))
        if visit.leaves == "aclose":
            await owner[0].aclose()
        elif owner:
            owner[0].close()

    async def take(self, reader: Reader[int], visit: Visit, seen: list[int]) -> None:
        after = reader.position
        while visit.takes is None or len(seen) < visit.takes:
            self.awaits += 1
            try:
                seen.append(await anext(reader))
            finally:
                self.awaits -= 1
            self.furthest = max(self.furthest, reader.position)
            assert reader.position == after + len(seen)
            pace_s = visit.paces_s[min(len(seen), len(visit.paces_s)) - 1]
            if pace_s:
                await asyncio.sleep(pace_s)

    async def cancel_pull(self, reader: Reader[int]) -> None:
        self.awaits += 1
        pull = await waiting(reader)
        self.awaits -= 1
        if pull.cancel():
            await asyncio.wait([pull])

    def check_reader(
        self, shared: SharedStream[int], end: str, after: int, seen: list[int]
    ) -> None:
        """It has exactly the source's items from its position on, and its end is the source's."""
        assert seen == list(range(after, after + len(seen)))
        if end in {"ends", "fails"}:
            assert end == self.end
            assert after + len(seen) == len(self.delays_s)
        elif end == "dropped":
            assert after + len(seen) < shared.first
        elif end == "closed":
            assert after + len(seen) == shared.head
            assert self.over_at is None
            assert shared.is_over

    def closes_at(self) -> float | None:
        """When the source should have been closed, by its end and by who came and left."""
        count = 0
        for (time, change), following in itertools.zip_longest(self.journal, self.journal[1:]):
            count += change
            next_s = float("inf") if following is None else following[0]
            closes_s = time + self.linger_s
            if (
                not count
                and closes_s < next_s
                and (self.over_at is None or closes_s < self.over_at)
            ):
                return closes_s
            if not count and self.linger_s == 0.0 and self.over_at is None:
                return closes_s
        return self.over_at


@pytest.mark.rows("S4", "S7")
@given(
    delays_s=st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0]), max_size=8),
    end=st.sampled_from(["ends", "fails", "hangs"]),
    ahead=st.integers(0, 3),
    buffer=st.none() | st.integers(3, 4),
    linger_s=st.sampled_from([0.0, LINGER_S]),
    visits=VISITS,
)
def test_any_sequence_of_readers(
    *,
    delays_s: list[float],
    end: Literal["ends", "fails", "hangs"],
    ahead: int,
    buffer: int | None,
    linger_s: float,
    visits: list[Visit],
) -> None:
    """Readers come, go, lag and return: no gap, no pull too many, one clean-up in time."""
    world = World(delays_s, end, ahead, buffer, linger_s)

    async def main() -> None:
        shared = SharedStream(
            world.source(), log=ItemLog(buffer), max_ahead=ahead, linger_s=linger_s
        )
        tasks = [asyncio.create_task(world.visit(shared, each)) for each in visits]
        stuck: set[asyncio.Task[None]] = set()
        if tasks:
            done, stuck = await asyncio.wait(tasks, timeout=LONG_S)
            for task in done:
                task.result()
        for task in stuck:
            # A source that hangs.
            task.cancel()
        if stuck:
            await asyncio.wait(stuck)
        await asyncio.sleep(LONG_S)
        assert busy() == []
        assert shared.readers == 0
        if stuck:
            assert end == "hangs"
        elif world.pulls:
            assert world.closed_at == [world.closes_at()]
        assert len(world.closed_at) == min(world.pulls, 1)

    run_virtual(main())
