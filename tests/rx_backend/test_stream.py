"""The stream in its consumer's hands: pulling, every way of leaving, and the end of its loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import reactivex
from reactivex import abc
from reactivex import operators as ops
from reactivex.scheduler import ImmediateScheduler

import tests.leaks
from operators import Drains, coalesce, deadlines, drain_until_first_token, heartbeat, map_async
from operators.authoring import AnyOperator, AsyncObservableSource
from rx_backend import HedgedEngine, ResponseStream
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import LLMEngine
from rx_backend.failover import FailoverEngine
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import Annotated, LLMEngineOutput
from rx_backend.testing import VirtualTimeLoop, run_virtual
from tests.engines import (
    DROPPED,
    FunctionEngine,
    Item,
    ScriptedEngine,
    Stream,
    adapter_of,
    before,
    chunk_of,
    collect,
    itself,
    now,
    request,
    status_of,
    stop,
    token,
    virtual,
)
from tests.engines.leaving import Box
from tests.leaks import LeakWatch
from tests.spans import Spans

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# (The types of ``reactivex`` leave open what an operator without a source works on.)


# Pulling.


@pytest.mark.rows("S4")
@pytest.mark.parametrize("place", [*standard_pipeline.names, "items"])
@virtual
async def test_a_pull_of_the_consumer_is_one_pull_of_the_engine(place: str) -> None:
    """In every mode, however long the consumer takes, and with a stock operator anywhere."""
    for mode, pipeline in product(
        DisaggregationMode, [standard_pipeline, before(place, ops.do_action())]
    ):
        engine = ScriptedEngine(*map(token, range(5)), stop())
        stream = await adapter_of(engine, mode, Spans(), pipeline=pipeline).generate(request())
        for pulled in range(6):
            await asyncio.sleep(10)
            assert engine.pulls == pulled
            await anext(stream)
        assert await collect(stream) == []
        assert engine.pulls == 6


# As an Observable and as an AsyncObservable.


class Watch:
    """
    An observer of either kind that writes down its events, with their times.

    Args:
        busy_s: How long it is busy with each item.
    """

    def __init__(self, busy_s: float = 0.0) -> None:
        self.events: list[str] = []
        self._busy_s = busy_s
        self.disposing: Any = None

    def note(self, what: object) -> None:
        self.events.append(f"{now():g} {what}")

    def note_error(self, error: Exception) -> None:
        self.note(f"# {error}")

    def note_item(self, item: Item) -> None:
        self.note(item.data.token_ids if item.data else "error")

    def subscribe(self, source: Any) -> abc.DisposableBase:
        return source.subscribe(self.note_item, self.note_error, lambda: self.note("|"))

    async def subscribe_async(self, stream: Stream) -> Any:
        return await stream.as_async_observable().subscribe_async(self.send, self.fail, self.end)

    async def send(self, item: Item) -> None:
        self.note_item(item)
        if self.disposing is not None:
            await self.disposing.dispose_async()
            self.note("disposed")
        await asyncio.sleep(self._busy_s)

    async def fail(self, error: Exception) -> None:
        self.note_error(error)

    async def end(self) -> None:
        self.note("|")


NEEDS_AIO = pytest.mark.needs("aioreactive")
ONLY_ONCE = "# a response stream can be subscribed to only once"


@pytest.mark.rows("S1", "S6", "S7")
@pytest.mark.parametrize("kind", ["observable", pytest.param("async", marks=NEEDS_AIO)])
@virtual
async def test_a_stream_can_be_subscribed_to(kind: str) -> None:
    """Once: it pushes items as the engine makes them, an error item among them, and then the end."""
    seen: list[list[str]] = []
    for end in (stop(), ValueError("bad")):
        stream = await adapter_of(ScriptedEngine(1, token(1), 1, end)).generate(request())
        began = now()
        watches = Watch(), Watch(), Watch()
        if kind == "async":
            await watches[0].subscribe_async(stream)
            await watches[1].subscribe_async(stream)
        else:
            watches[0].subscribe(stream.as_observable())
            watches[1].subscribe(stream.as_observable())
        watches[2].subscribe(stream)
        await asyncio.sleep(0.5)
        with pytest.raises(RuntimeError, match="already being pulled"):
            await anext(stream)
        await asyncio.sleep(10 - 0.5)
        assert watches[1].events == watches[2].events == [f"{began:g} {ONLY_ONCE}"]
        seen.append(watches[0].events)
    assert seen == [["1 [1]", "2 []", "2 |"], ["11 [1]", "12 error", "12 |"]]


@pytest.mark.rows("S1", "S7")
@virtual
async def test_a_stream_can_be_piped() -> None:
    """Stock operators work on it; one that has enough drops it, and the engine is not pulled again."""
    stream = await adapter_of(ScriptedEngine(token(1), 1, token(2), stop())).generate(request())

    def count(item: Item) -> int:
        return len(chunk_of(item).token_ids)

    assert await stream.pipe(ops.map(count), ops.sum()) == 2
    engine = ScriptedEngine(token(1), token(2), token(3))
    watch = Watch()
    watch.subscribe((await adapter_of(engine).generate(request())).pipe(ops.take(2)))
    await asyncio.sleep(1)
    assert watch.events == ["1 [1]", "1 [2]", "1 |"]
    assert (engine.pulls, engine.closed) == (2, 1)


@pytest.mark.rows("S6", "S7")
@pytest.mark.parametrize("kind", ["observable", pytest.param("async", marks=NEEDS_AIO)])
@virtual
async def test_a_subscriber_that_raises_gets_its_error_back(kind: str) -> None:
    """A bug in ``on_next`` drops the stream and is handed to ``on_error``, not lost."""
    engine = ScriptedEngine(token(1), token(2))
    stream = await adapter_of(engine).generate(request())
    errors: list[Exception] = []

    def fail(_: Item) -> None:
        raise LookupError("bug")

    async def send(item: Item) -> None:
        fail(item)

    async def note(error: Exception) -> None:
        errors.append(error)

    if kind == "async":
        await stream.as_async_observable().subscribe_async(send, note)
    else:
        stream.subscribe(fail, errors.append)
    await asyncio.sleep(1)
    assert [repr(error) for error in errors] == ["LookupError('bug')"]
    assert (engine.pulls, engine.closed) == (1, 1)


@pytest.mark.rows("S6")
@virtual
async def test_an_engine_that_cancels_the_task_at_the_end_ends_the_subscription() -> None:
    """
    The subscriber gets the end or the cancellation: without either, it would wait forever.

    From Python 3.12 on the engine is closed before the cancellation can arrive.
    """
    ends: list[object] = []

    async def chunks() -> AsyncGenerator[LLMEngineOutput]:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        yield LLMEngineOutput.stop()

    stream = await adapter_of(FunctionEngine(chunks)).generate(request())
    stream.subscribe(on_error=ends.append, on_completed=lambda: ends.append("completed"))
    await asyncio.sleep(1)
    (end,) = ends
    assert end == "completed" or isinstance(end, asyncio.CancelledError)


@pytest.mark.rows("S7")
@NEEDS_AIO
@virtual
async def test_disposing_waits_for_an_observer_that_it_cancels() -> None:
    """However long that would be busy with its item; nothing of it runs afterwards."""
    engine, ended = ScriptedEngine(token(1), token(2), stop()), list[float]()

    async def busy(_: Item) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(2)
            ended.append(now())

    stream = await adapter_of(engine).generate(request())
    subscription = await stream.as_async_observable().subscribe_async(busy)
    await asyncio.sleep(5)
    await subscription.dispose_async()
    assert (now(), ended, engine.closed) == (7, [7], 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.rows("S4")
@NEEDS_AIO
@virtual
async def test_the_engine_waits_for_an_asynchronous_observer() -> None:
    """While ``asend`` is awaited, the engine is not pulled."""
    engine = ScriptedEngine(token(1), token(2), stop())
    watch = Watch(busy_s=10)
    await watch.subscribe_async(await adapter_of(engine).generate(request()))
    for pulls in (1, 2, 3):
        await asyncio.sleep(9.9)
        assert engine.pulls == pulls
        await asyncio.sleep(0.1)
    await asyncio.sleep(10)
    assert watch.events == ["0 [1]", "10 [2]", "20 []", "30 |"]


@pytest.mark.rows("S7", "P5")
@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.0, 1.5], ids=str)
@pytest.mark.parametrize("busy_s", [0.0, 60.0], ids=["waiting", "busy"])
@NEEDS_AIO
@virtual
async def test_disposing_asynchronously_drops_the_stream(busy_s: float, at_s: float) -> None:
    """At any time: no more events, and the engine has closed when it returns."""
    spans = Spans()
    engine = ScriptedEngine(1, token(1), 60, token(2), closing=[2])
    watch = Watch(busy_s)
    stream = await adapter_of(engine, spans=spans).generate(request())
    subscription = await watch.subscribe_async(stream)
    await asyncio.sleep(at_s)
    await subscription.dispose_async()
    events = [*watch.events]
    assert engine.closed == len(engine.closes) == (1 if engine.pulls else 0)
    assert status_of(spans.one()) == DROPPED
    await asyncio.sleep(100)
    assert watch.events == events
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.rows("S7")
@NEEDS_AIO
@virtual
async def test_disposing_from_within_the_observer() -> None:
    """It may dispose while it takes an item, and continues when everything is released."""
    engine = ScriptedEngine(1, token(1), token(2), stop(), closing=[2])
    watch = Watch(busy_s=1)
    watch.disposing = await watch.subscribe_async(await adapter_of(engine).generate(request()))
    await asyncio.sleep(60)
    assert watch.events == ["1 [1]", "3 disposed"]
    assert engine.closed == 1


@pytest.mark.rows("S1", "S7")
@NEEDS_AIO
@virtual
async def test_into_operators_of_aioreactive_and_back() -> None:
    """A stream goes through ``aioreactive`` operators and is pulled again; a drop reaches through."""
    import aioreactive as rx

    async def late(item: Item) -> list[int]:
        await asyncio.sleep(1)
        return chunk_of(item).token_ids

    async def piped(engine: ScriptedEngine) -> AsyncObservableSource[Any]:
        stream = await adapter_of(engine).generate(request())
        return AsyncObservableSource(
            rx.pipe(stream.as_async_observable(), rx.map_async(late), rx.skip(1))
        )

    engine = ScriptedEngine(token(1), token(2), token(3), stop())
    assert await collect(await piped(engine)) == [[2], [3], []]
    assert engine.closed == 1
    dropped = ScriptedEngine(token(1), token(2), token(3), stop())
    source = await piped(dropped)
    assert await anext(source) == [2]
    await source.aclose()
    assert dropped.closed == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.rows("O6")
@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (ops.buffer_with_time(2.5), [(2.5, 2), (4.0, 2)]),
        (ops.debounce(0.5), [(1.5, 1), (2.5, 1), (3.5, 1), (4.0, 1)]),
        (ops.delay(10.0), [(11.0, 1), (12.0, 1), (13.0, 1), (14.0, 1)]),
        (ops.sample(2.5), [(2.5, 1), (5.0, 1)]),
        (ops.throttle_first(1.5), [(1.0, 1), (3.0, 1)]),
    ],
    ids=["buffer_with_time", "debounce", "delay", "sample", "throttle_first"],
)
@virtual
async def test_stock_timers_run_on_the_streams_loop(
    operator: Any, expected: list[tuple[float, int]]
) -> None:
    """In virtual time too, without a scheduler being named anywhere."""
    engine = ScriptedEngine(1, token(1), 1, token(2), 1, token(3), 1, stop())
    stream = await adapter_of(engine).generate(request())
    came: list[tuple[float, int]] = []

    def note(item: Any) -> None:
        came.append((now(), len(item) if hasattr(item, "append") else 1))

    stream.pipe(operator).subscribe(note)
    await asyncio.sleep(60)
    assert came == expected


@pytest.mark.rows("O6")
@virtual
async def test_an_explicit_scheduler_is_used() -> None:
    """By each subscriber; a connectable and a single value stay what they are."""
    stream = await adapter_of(ScriptedEngine(1, token(1), stop())).generate(request())
    seen: list[abc.SchedulerBase | None] = []

    def look(source: reactivex.Observable[Any]) -> reactivex.Observable[Any]:
        def subscribe(
            observer: abc.ObserverBase[Any], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            seen.append(scheduler)
            return source.subscribe(observer, scheduler=scheduler)

        return reactivex.create(subscribe)

    mine = ImmediateScheduler()
    stream.pipe(look).subscribe(scheduler=mine)
    assert seen == [mine]
    assert hasattr(stream.pipe(ops.publish()), "connect")
    await asyncio.sleep(60)


Dispose = Callable[..., None]


def in_a_thread(dispose: Dispose) -> threading.Thread:
    thread = threading.Thread(target=dispose)
    thread.start()
    return thread


def in_another_loop(dispose: Dispose) -> threading.Thread:
    async def call() -> None:
        dispose()

    def run() -> None:
        asyncio.run(call())

    return in_a_thread(run)


def in_a_signal_handler(dispose: Dispose) -> None:
    signal.signal(signal.SIGUSR1, dispose)
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()


DISPOSING: dict[str, Callable[[Dispose], object]] = {
    "thread": in_a_thread,
    "other loop": in_another_loop,
    "signal": in_a_signal_handler,
    "callback": lambda dispose: asyncio.get_running_loop().call_soon(dispose),
    "task": lambda dispose: dispose(),
}


@pytest.mark.rows("S7")
@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("where", DISPOSING)
@pytest.mark.parametrize("piped", [False, True])
def test_a_subscription_can_be_disposed_of_in_any_thread(
    where: str, debug: bool, piped: bool
) -> None:
    """From wherever it is disposed of, the loop is woken and the engine released."""

    async def main() -> None:
        began, released = asyncio.Event(), asyncio.Event()

        def begin(_: RequestContext) -> None:
            began.set()

        def release(_: RequestContext) -> None:
            released.set()

        engine = ScriptedEngine(token(1), begin, 60, stop(), closing=[release])
        stream = await adapter_of(engine).generate(request())
        source: Any = stream.pipe(ops.skip(0)) if piped else stream
        subscription: abc.DisposableBase = source.subscribe()
        await began.wait()

        def dispose(*_: object) -> None:
            subscription.dispose()

        begun = DISPOSING[where](dispose)
        # A loop that is not woken sleeps until the engine goes on, longer than a test may take.
        await released.wait()
        if isinstance(begun, threading.Thread):
            begun.join()

    asyncio.run(main(), debug=debug)


# The end of the loop.


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


BEHIND: dict[str, Callable[[], list[AnyOperator]]] = {
    "nothing": list,
    "coalesce": lambda: [coalesce()],
    "heartbeat": lambda: [heartbeat(5.0, Annotated[LLMEngineOutput](comment=["ping"]))],
    "deadlines": lambda: [deadlines(idle_s=5.0)],
    "map_async": lambda: [map_async(itself)],
    "drain": lambda: [drain_until_first_token(drains=Drains())],
    "delay": lambda: [ops.delay(0.001)],
    "map": lambda: [ops.map(lambda item: item)],
}


LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [VirtualTimeLoop]


def slow() -> ScriptedEngine:
    """Make an engine whose clean-up has to wait."""
    return ScriptedEngine(*[0.001, token(7)] * 1000, closing=[0.01])


async def leave_open(stream: ResponseStream[Any], how: str, kept: list[Any]) -> None:
    """Read a stream in some way, not to its end; *kept* is what refers to it then."""
    if how == "subscribed":
        kept.append(stream.subscribe(lambda _: None))
        await asyncio.sleep(0.005)
    elif how == "in_a_task":
        kept.append(asyncio.ensure_future(collect(stream)))
        await asyncio.sleep(0.005)
    else:
        await anext(stream)
        kept.extend([stream] if how == "kept" else [])


def run_and_leave(
    engine: LLMEngine,
    how: str,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    operators: Sequence[AnyOperator] = (),
) -> list[Any]:
    """Open a stream in a loop of its own, leave it open, and return what asyncio complained of."""
    complaints: list[Any] = []
    kept: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        adapter = EngineAdapter(engine).with_operators(*operators)
        await leave_open(await adapter.generate(request()), how, kept)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    return complaints


@pytest.mark.rows("S7")
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("how", ["kept", "lost", "in_a_task", "subscribed"])
@pytest.mark.parametrize("new_loop", LOOPS)
def test_open_streams_are_closed_with_their_loop(
    leaks: LeakWatch,
    monkeypatch: pytest.MonkeyPatch,
    behind: str,
    how: str,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """`asyncio.run` waits for the engine's clean-up, and asyncio complains of nothing."""
    leaks.allow("task not done|generator not closed")
    # The watch gives the loop some turns before its end, in which a release may begin.
    monkeypatch.setattr(
        asyncio.runners, "_cancel_all_tasks", vars(tests.leaks)["_cancel_all_tasks"]
    )
    engine = slow()
    assert run_and_leave(engine, how, new_loop, BEHIND[behind]()) == []
    assert len(engine.closes) == 1
    # `asyncio.run` cancels all tasks, and so a release that has begun by then.
    assert engine.closed == 1 or how == "lost"


@pytest.mark.rows("S7")
@pytest.mark.parametrize("how", ["kept", "lost", "in_a_task"])
@pytest.mark.parametrize("combine", [FailoverEngine, partial(HedgedEngine, after_s=0.002)])
def test_combined_engines_are_closed_with_their_loop(
    leaks: LeakWatch, how: str, combine: Callable[[Any, Any], LLMEngine]
) -> None:
    """Their engines' generators are left to their streams too."""
    leaks.allow("task not done|generator not closed")
    engines = [slow(), slow()]
    assert run_and_leave(combine(*engines), how, VirtualTimeLoop) == []
    assert [len(engine.closes) for engine in engines] == [engine.calls for engine in engines]


@pytest.mark.rows("S7")
@virtual
async def test_a_release_whose_task_is_cancelled_before_it_starts(
    leaks: LeakWatch,
) -> None:
    """As `asyncio.run` cancels all tasks, and so the one that was to close a lost stream."""
    leaks.allow("task not done")
    engine = slow()
    stream = await EngineAdapter(engine).generate(request())
    await anext(stream)
    stream.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert len(others) == 1
    for task in others:
        task.cancel()
    await stream.aclose()
    assert engine.closed == 1


PULLED_ELSEWHERE: dict[str, list[AnyOperator]] = {
    "no operator": [],
    "a generator over its source": [map_async(itself)],
    "a task that pulls": [heartbeat(60.0, Annotated(comment=["ping"]))],
    "a task in between": [coalesce()],
    "reactivex, at once": [ops.map(lambda item: item)],
    "reactivex, detached": [ops.delay(0.01)],
}


@pytest.mark.parametrize("added", PULLED_ELSEWHERE.values(), ids=PULLED_ELSEWHERE.keys())
def test_a_stream_that_is_pulled_on_another_loop_fails(added: list[AnyOperator]) -> None:
    adapter = EngineAdapter(ScriptedEngine(LLMEngineOutput([1]), 0.01, LLMEngineOutput([2])))
    own = asyncio.new_event_loop()
    stream = own.run_until_complete(adapter.with_operators(*added).generate(request()))

    async def failure() -> str:
        try:
            *_, last = [item async for item in stream]
        except RuntimeError as error:
            return str(error)
        return str(last.error)

    assert "pulled on an event loop other than its own" in asyncio.run(failure())
    own.run_until_complete(stream.aclose())
    own.run_until_complete(own.shutdown_asyncgens())
    own.close()


@virtual
async def test_the_reprs_of_a_stream_and_its_adapter() -> None:
    engine = ScriptedEngine(token(1), stop())
    adapter = adapter_of(engine)
    assert repr(adapter) == f"EngineAdapter({engine!r}, 'agg', {adapter.pipeline!r})"
    stream, left = await adapter.generate(request()), await adapter.generate(request())
    about = f"<ResponseStream of {stream.context!r}"
    assert repr(stream) == f"{about}, open>"
    await collect(stream)
    await left.aclose()
    assert repr(stream) == f"{about}, ended>"
    assert repr(left) == f"<ResponseStream of {left.context!r}, dropped>"
