"""The stream in its consumer's hands: pulling, every way of leaving, and the Observable side."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, cast

import pytest
from reactivex import operators as ops

from operators.authoring import AnyOperator
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.testing import run_virtual
from tests.leaks import LeakWatch
from tests.rx_backend._engines import (
    Item,
    ScriptedEngine,
    Step,
    Stream,
    adapter_of,
    chunk_of,
    collect,
    now,
    request,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans

Box: TypeAlias = list[Stream]
"""Holds the only lasting reference to a stream."""


async def until(seconds: float) -> None:
    await asyncio.sleep(seconds - now())


async def aclose(box: Box) -> None:
    await box[0].aclose()


async def aclose_twice_at_once(box: Box) -> None:
    await asyncio.gather(box[0].aclose(), box[0].aclose())


async def aclose_while_another_task_pulls(box: Box) -> None:
    pull = asyncio.create_task(collect(box[0]))
    await until(1)
    await box[0].aclose()
    await pull


async def aclose_twice_while_another_task_pulls(box: Box) -> None:
    pull = asyncio.create_task(collect(box[0]))
    await until(1)
    box[0].close()
    await asyncio.sleep(0)
    await box[0].aclose()
    await pull


async def close_without_waiting(box: Box) -> None:
    box[0].close()


async def leave_async_with(box: Box) -> None:
    async with box[0]:
        pass


async def fail_inside_async_with(box: Box) -> None:
    with pytest.raises(LookupError):
        async with box[0]:
            raise LookupError


async def break_out_of_async_for(box: Box) -> None:
    async for _ in box.pop():
        break


async def fail_inside_async_for(box: Box) -> None:
    with suppress(LookupError):
        async for _ in box.pop():
            raise LookupError


async def lose_the_last_reference(box: Box) -> None:
    del box[0]


async def lose_the_last_reference_in_a_thread(box: Box) -> None:
    await asyncio.to_thread(box.clear)


async def lose_a_cycle(box: Box) -> None:
    cycle: list[Any] = [box.pop()]
    cycle.append(cycle)
    del cycle
    gc.collect()


async def cancel_in_a_pull(box: Box) -> None:
    pull = asyncio.create_task(collect(box[0]))
    await until(1)
    pull.cancel()
    await asyncio.wait([pull])
    assert pull.cancelled()


async def cancel_elsewhere(box: Box) -> None:
    async def consume(stream: Stream) -> None:
        async with stream:
            await asyncio.sleep(60)

    task = asyncio.create_task(consume(box.pop()))
    await until(1)
    task.cancel()
    await asyncio.wait([task])


async def cancel_elsewhere_without_async_with(box: Box) -> None:
    async def consume(stream: Stream) -> None:
        async for _ in stream:
            await asyncio.sleep(60)

    task = asyncio.create_task(consume(box.pop()))
    await until(1)
    task.cancel()
    await asyncio.wait([task])


async def run_out_of_time_in_wait_for(box: Box) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(collect(box[0]), 1)


async def run_out_of_time_in_timeout(box: Box) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await collect(box[0])


async def fail_beside_in_a_task_group(box: Box) -> None:
    async def fail() -> None:
        await until(1)
        raise LookupError

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(collect(box.pop()))
            tasks.create_task(fail())


async def dispose_of_a_subscription(box: Box) -> None:
    subscription = box.pop().subscribe()
    await until(1)
    subscription.dispose()


async def dispose_before_the_first_push(box: Box) -> None:
    box.pop().subscribe().dispose()


WAYS_OF_LEAVING: list[Callable[[Box], Awaitable[None]]] = [
    aclose,
    aclose_twice_at_once,
    aclose_while_another_task_pulls,
    aclose_twice_while_another_task_pulls,
    close_without_waiting,
    leave_async_with,
    fail_inside_async_with,
    break_out_of_async_for,
    fail_inside_async_for,
    lose_the_last_reference,
    lose_the_last_reference_in_a_thread,
    lose_a_cycle,
    cancel_in_a_pull,
    cancel_elsewhere,
    cancel_elsewhere_without_async_with,
    run_out_of_time_in_wait_for,
    run_out_of_time_in_timeout,
    fail_beside_in_a_task_group,
    dispose_of_a_subscription,
    dispose_before_the_first_push,
]


# At the pipeline's end: nothing, an operator that answers at once, and one that uses timers.
STOCK = [
    pytest.param(None, id="ours"),
    pytest.param(cast("AnyOperator", ops.do_action()), id="stock"),
    pytest.param(cast("AnyOperator", ops.delay(0)), id="timer"),
]


@pytest.mark.rows("S7", "P5", "P7", "A1")
@pytest.mark.parametrize("leave", WAYS_OF_LEAVING)
@pytest.mark.parametrize("closing", [(), (0.25, 0.25)], ids=["at-once", "awaiting"])
@pytest.mark.parametrize("stock", STOCK)
@virtual
async def test_every_way_of_leaving_is_a_drop(
    leave: Callable[[Box], Awaitable[None]], closing: Sequence[Step], stock: AnyOperator | None
) -> None:
    """The engine's ``finally`` runs once and to its end, and the span ends once, as dropped."""
    spans = Spans()
    engine = ScriptedEngine(token(1), token(2), 60, token(3), closing=closing)
    adapter = adapter_of(engine, spans=spans)
    if stock is not None:
        adapter = adapter.with_operators(stock)
    box = [await adapter.generate(request())]
    await anext(box[0])
    await leave(box)
    await asyncio.sleep(10)
    assert len(engine.closes) == engine.closed == 1
    assert engine.closes[0] <= 1
    assert engine.aborts == []
    assert spans.one().status.description == "stream dropped before terminal"
    box.clear()


@pytest.mark.rows("S7")
@pytest.mark.parametrize("leave", [aclose, lose_the_last_reference, leave_async_with])
@virtual
async def test_leaving_before_the_first_pull_never_runs_the_engine(
    leave: Callable[[Box], Awaitable[None]],
) -> None:
    """A stream that nobody pulled is released without a warning, its span ended as dropped."""
    spans = Spans()
    engine = ScriptedEngine(token(1), stop())
    box = [await adapter_of(engine, spans=spans).generate(request())]
    await leave(box)
    box.clear()
    await asyncio.sleep(1)
    assert (engine.calls, engine.pulls, engine.closes) == (1, 0, [])
    assert spans.one().status.description == "stream dropped before terminal"


@pytest.mark.rows("S7")
@virtual
async def test_aclose_waits_until_the_engine_has_closed() -> None:
    """After ``aclose`` nothing of the request runs any more; a second one returns at once."""
    engine = ScriptedEngine(token(1), 60, closing=[2])
    stream = await adapter_of(engine).generate(request())
    await anext(stream)
    await stream.aclose()
    assert (now(), engine.closed) == (2, 1)
    await stream.aclose()
    assert now() == 2


@pytest.mark.rows("S7")
@virtual
async def test_who_waits_for_aclose_may_leave() -> None:
    """Cancelling an ``aclose`` does not cut the engine's ``finally`` short."""
    engine = ScriptedEngine(token(1), 60, closing=[5])
    stream = await adapter_of(engine).generate(request())
    await anext(stream)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.aclose(), 1)
    await asyncio.sleep(10)
    assert (engine.closes, engine.closed) == ([0], 1)


@pytest.mark.rows("S7")
@virtual
async def test_a_dropped_stream_has_no_more_items() -> None:
    """Pulling after a drop ends at once, and a stop then aborts nothing."""
    context = RequestContext()
    engine = ScriptedEngine(token(1), token(2), stop())
    stream = await adapter_of(engine).generate(request(), context)
    await anext(stream)
    await stream.aclose()
    assert await collect(stream) == []
    context.kill()
    await asyncio.sleep(1)
    assert engine.aborts == []


@pytest.mark.rows("S7")
@virtual
async def test_a_consumer_may_be_cancelled_where_the_engine_only_yields_a_turn() -> None:
    """A drop also ends a pull of an engine that spins on ``sleep(0)``."""
    engine = ScriptedEngine(token(1), *[0] * 50, token(2))
    stream = await adapter_of(engine).generate(request())
    await anext(stream)
    pull = asyncio.create_task(collect(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    assert await pull == []
    assert engine.closed == 1


@pytest.mark.rows("S7")
@virtual
async def test_an_engine_may_drop_its_own_stream() -> None:
    """Closing the stream from within the engine takes effect when the step is through."""
    box: Box = []
    engine = ScriptedEngine(token(1), lambda _: box[0].close(), 1, token(2))
    box.append(await adapter_of(engine).generate(request()))
    assert tokens_of(await collect(box[0])) == [[1]]
    assert engine.closed == 1


@pytest.mark.rows("S7", "P7")
@pytest.mark.parametrize("held_by", ["task", "box"])
def test_the_end_of_the_loop_is_a_drop(leaks: LeakWatch, held_by: str) -> None:
    """A stream left behind when the loop ends is released, also if its reference outlives that."""
    leaks.allow("task not done|async generator not closed")
    spans = Spans()
    engine = ScriptedEngine(token(1), 60, token(2))
    box: Box = []

    @virtual
    async def main() -> None:
        stream = await adapter_of(engine, spans=spans).generate(request())
        await anext(stream)
        if held_by == "task":
            box.clear()
            leftover.append(asyncio.create_task(collect(stream)))
            await asyncio.sleep(1)
        else:
            box.append(stream)

    leftover: list[object] = []
    main()
    leftover.clear()
    box.clear()
    assert engine.closed == 1
    assert spans.one().status.description == "stream dropped before terminal"


@pytest.mark.rows("S7", "A5")
def test_a_stream_may_outlive_its_loop_with_an_abort_deferred(
    leaks: LeakWatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is aborted and nothing is logged when such a stream goes after its loop."""
    leaks.allow("async generator not closed")
    spans = Spans()
    engine = ScriptedEngine(1, token(1))
    box: Box = []

    async def main() -> None:
        context = RequestContext()
        box.append(await adapter_of(engine, "decode", spans).generate(request(), context))
        context.stop_generating()

    run_virtual(main())
    box.clear()
    assert engine.aborts == []
    assert spans.one().status.description == "stream dropped before terminal"
    assert caplog.messages == []


@pytest.mark.rows("S4")
@pytest.mark.parametrize("mode", list(DisaggregationMode))
@virtual
async def test_a_pull_of_the_consumer_is_one_pull_of_the_engine(mode: DisaggregationMode) -> None:
    """The engine is never ahead of its consumer, however long that takes."""
    engine = ScriptedEngine(*map(token, range(5)), stop())
    stream = await adapter_of(engine, mode, Spans()).generate(request())
    for pulled in range(6):
        await asyncio.sleep(10)
        assert engine.pulls == pulled
        await anext(stream)
    assert engine.pulls == 6
    assert await collect(stream) == []
    assert engine.pulls == 6


@pytest.mark.rows("S4")
@virtual
async def test_a_second_pull_at_a_time_is_refused() -> None:
    """Two tasks that pull at once are a mistake: the later is told, the earlier not disturbed."""
    engine = ScriptedEngine(1, token(1), stop())
    stream = await adapter_of(engine).generate(request())
    first = asyncio.create_task(collect(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already being pulled"):
        await anext(stream)
    assert tokens_of(await first) == [[1], []]


@pytest.mark.rows("S4")
@virtual
async def test_pulls_may_come_from_different_tasks() -> None:
    """One after the other, tasks may share the consumer's work."""
    stream = await adapter_of(ScriptedEngine(token(1), 1, token(2), stop())).generate(request())
    items = [await asyncio.create_task(stream.__anext__()) for _ in range(3)]
    assert tokens_of(items) == [[1], [2], []]


def watch(stream: Stream) -> list[str]:
    """Subscribe, and write down what comes, with its time."""
    events: list[str] = []
    stream.subscribe(
        lambda item: events.append(f"{now():g} {item.data.token_ids if item.data else 'error'}"),
        lambda error: events.append(f"{now():g} # {error!r}"),
        lambda: events.append(f"{now():g} |"),
    )
    return events


@pytest.mark.rows("S1", "S6")
@virtual
async def test_a_stream_can_be_subscribed_to() -> None:
    """As an Observable it pushes its items as the engine makes them, and completes."""
    done = watch(await adapter_of(ScriptedEngine(1, token(1), 1, stop())).generate(request()))
    failed = watch(await adapter_of(ScriptedEngine(1, ValueError("bad"))).generate(request()))
    assert done == failed == []
    await asyncio.sleep(5)
    assert done == ["1 [1]", "2 []", "2 |"]
    assert failed == ["1 error", "1 |"]


@pytest.mark.rows("S1")
@virtual
async def test_a_stream_can_be_piped() -> None:
    """Stock operators work on a stream, and waiting for the result drives it."""
    stream = await adapter_of(ScriptedEngine(token(1), 1, token(2), stop())).generate(request())

    def count(item: Item) -> int:
        return len(chunk_of(item).token_ids)

    assert await stream.pipe(ops.map(count), ops.sum()) == 2


@pytest.mark.rows("S7")
@pytest.mark.parametrize("second", ["same", "as_observable", "pull"])
@virtual
async def test_a_second_consumer_is_refused(second: str) -> None:
    """It gets an error, at once or when it pulls, and the first subscriber is not disturbed."""
    stream = await adapter_of(ScriptedEngine(1, token(1), 1, stop())).generate(request())
    observable = stream.as_observable()
    counts: list[int] = []
    observable.pipe(ops.count()).subscribe(counts.append)
    await asyncio.sleep(0.5)
    errors: list[Exception] = []
    if second == "pull":
        with pytest.raises(RuntimeError, match="already being pulled"):
            await anext(stream)
    else:
        again = observable if second == "same" else stream.as_observable()
        again.subscribe(on_error=errors.append)
    await asyncio.sleep(5)
    assert counts == [2]
    assert [type(error) for error in errors] == ([] if second == "pull" else [RuntimeError])


@pytest.mark.rows("S7")
@virtual
async def test_a_subscriber_may_dispose_while_it_is_called() -> None:
    """An operator that has enough drops the stream, and the engine is not pulled again."""
    engine = ScriptedEngine(token(1), token(2), token(3))
    stream = await adapter_of(engine).generate(request())
    items: list[Item] = []
    stream.pipe(ops.take(2)).subscribe(items.append)
    await asyncio.sleep(1)
    assert tokens_of(items) == [[1], [2]]
    assert (engine.pulls, engine.closed) == (2, 1)


@pytest.mark.rows("S7")
@virtual
async def test_a_subscriber_that_raises_gets_its_error_back() -> None:
    """A bug in ``on_next`` drops the stream and is handed to ``on_error``, not lost."""
    engine = ScriptedEngine(token(1), token(2))
    stream = await adapter_of(engine).generate(request())
    errors: list[Exception] = []

    def fail(_: Item) -> None:
        raise LookupError("bug")

    stream.subscribe(fail, errors.append)
    await asyncio.sleep(1)
    assert [repr(error) for error in errors] == ["LookupError('bug')"]
    assert (engine.pulls, engine.closed) == (1, 1)
