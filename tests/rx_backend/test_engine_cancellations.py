"""Cancellations that an engine raises, answers, or swallows, and exceptions like them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from reactivex import operators as ops

from operators import Pipeline, map_async
from operators.authoring import FusedRun, operator
from rx_backend.context import RequestContext
from rx_backend.errors import (
    BackendError,
    CannotConnect,
    Disconnected,
    InvalidArgument,
    ResponseTimeout,
    StreamIncomplete,
    Unknown,
)
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from tests.rx_backend._engines import (
    DROPPED,
    ScriptedEngine,
    Step,
    adapter_of,
    collect,
    request,
    settle,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans, rows_of

Steps = Callable[[], AsyncGenerator[LLMEngineOutput]]


class Engine(ScriptedEngine):
    """An engine whose stream is a function of ours."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Any:
        return self._steps()


@operator
async def passing(source: FusedRun[Any]) -> AsyncGenerator[Any]:
    """Pass items on, as an operator that pulls for itself."""
    async for item in source:
        yield item


async def itself(item: Any) -> Any:
    return item


PIPELINES = {
    "standard": standard_pipeline,
    "async operator among the chunks": standard_pipeline.insert_before("trace_link", passing()),
    "async operator at the end": standard_pipeline.with_operators(passing()),
    "map_async": standard_pipeline.with_operators(map_async(itself)),
    "stock": standard_pipeline.with_operators(ops.do_action()),
    "stock, detached": standard_pipeline.with_operators(ops.delay(0.001)),
}
EVERY_PIPELINE = pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)


# An engine that cancels itself, or raises what looks like it.


async def raises_cancelled() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    raise asyncio.CancelledError


async def raises_cancelled_later() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    await asyncio.sleep(1)
    raise asyncio.CancelledError


async def awaits_a_cancelled_task() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    task = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_later(1, task.cancel)
    await task


async def awaits_a_cancelled_future() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def raises_generator_exit() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    raise GeneratorExit


async def raises_generator_exit_later() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    await asyncio.sleep(1)
    raise GeneratorExit


SELF_CANCELLING: list[Steps] = [
    raises_cancelled,
    raises_cancelled_later,
    awaits_a_cancelled_task,
    awaits_a_cancelled_future,
    raises_generator_exit,
    raises_generator_exit_later,
]


@pytest.mark.rows("S6", "P4", "P7")
@pytest.mark.parametrize("steps", SELF_CANCELLING, ids=lambda steps: steps.__name__)
@EVERY_PIPELINE
@virtual
async def test_a_cancellation_of_the_engine_s_own_is_a_failure(
    steps: Steps, pipeline: Pipeline
) -> None:
    """One error item, the span says so, and the consumer's task was never cancelled."""
    spans = Spans()
    engine = Engine(steps)
    stream = await adapter_of(engine, spans=spans, pipeline=pipeline).generate(request())
    async with asyncio.timeout(10):
        *items, last = await collect(stream)
        assert await anext(stream, None) is None
    assert tokens_of(items) == [[1]]
    assert isinstance(last.error, Unknown)
    assert status_of(spans.one()) == (StatusCode.ERROR, "Backend(Unknown)")
    assert rows_of(spans.one())["cancelled"] is False
    this = asyncio.current_task()
    assert this is not None
    assert this.cancelling() == 0


@pytest.mark.rows("S6", "S9")
@EVERY_PIPELINE
@virtual
async def test_an_engine_that_survives_its_own_cancellation_goes_on(pipeline: Pipeline) -> None:
    """A time limit within the engine cancels the pull, and takes that back."""

    async def steps() -> AsyncGenerator[LLMEngineOutput]:
        yield token(1)
        try:
            async with asyncio.timeout(1):
                await asyncio.sleep(60)
        except TimeoutError:
            yield token(2)
        yield stop()

    items = await collect(await adapter_of(Engine(steps), pipeline=pipeline).generate(request()))
    assert tokens_of(items) == [[1], [2], []]


# Groups.

KINDS: list[tuple[BaseException, type[BackendError]]] = [
    (ExceptionGroup("", [Disconnected("a")]), Disconnected),
    (ExceptionGroup("", [Disconnected("a"), ConnectionResetError()]), Disconnected),
    (
        ExceptionGroup("", [ExceptionGroup("", [TimeoutError()]), ResponseTimeout("b")]),
        ResponseTimeout,
    ),
    (ExceptionGroup("", [ValueError("a"), InvalidArgument("b")]), InvalidArgument),
    (ExceptionGroup("", [ConnectionRefusedError(), CannotConnect("b")]), CannotConnect),
    (ExceptionGroup("", [Disconnected("a"), ValueError("b")]), Unknown),
    (ExceptionGroup("", [Disconnected("a"), ExceptionGroup("", [KeyError("b")])]), Unknown),
    (BaseExceptionGroup("", [asyncio.CancelledError()]), Unknown),
    (BaseExceptionGroup("", [Disconnected("a"), asyncio.CancelledError()]), Unknown),
]


@pytest.mark.rows("S6", "P4")
@pytest.mark.parametrize(("raised", "kind"), KINDS, ids=lambda value: repr(value)[:60])
@pytest.mark.parametrize("before", [[], [1.0]], ids=["at-once", "later"])
@virtual
async def test_a_group_is_of_the_kind_of_its_leaves(
    raised: BaseException, kind: type[BackendError], before: list[Step]
) -> None:
    """Where all are of one, nested too; else it is unknown, and it is an item in any case."""
    spans = Spans()
    engine = ScriptedEngine(token(1), *before, raised)
    *items, last = await collect(await adapter_of(engine, spans=spans).generate(request()))
    assert tokens_of(items) == [[1]]
    assert type(last.error) is kind
    assert spans.one().status.description == f"Backend({kind.__name__})"
    assert engine.closed == 1


# From Python 3.13 on, a task group in a task that was cancelled before goes on with that.
CANCELLED_BEFORE = [0] if sys.version_info >= (3, 13) else [0, 1]


async def body_waits(group: asyncio.TaskGroup) -> None:
    await asyncio.sleep(60)


async def exit_waits(group: asyncio.TaskGroup) -> None:
    """Leave the wait for the tasks to the end of the block."""


async def both_wait(group: asyncio.TaskGroup) -> None:
    group.create_task(asyncio.sleep(60))


async def inner_exit_waits(group: asyncio.TaskGroup) -> None:
    async with asyncio.TaskGroup() as inner:
        inner.create_task(asyncio.sleep(60))


@pytest.mark.rows("S6")
@pytest.mark.parametrize("body", [body_waits, exit_waits, both_wait, inner_exit_waits])
@pytest.mark.parametrize("cancelled_before", CANCELLED_BEFORE)
@EVERY_PIPELINE
@virtual
async def test_a_task_group_that_fails_is_a_failure(
    pipeline: Pipeline,
    body: Callable[[asyncio.TaskGroup], Awaitable[None]],
    cancelled_before: int,
) -> None:
    """It cancels the task that it is in, which is the consumer's; that one is not cancelled."""

    async def failing() -> None:
        await asyncio.sleep(1)
        raise Disconnected("gone")

    async def steps() -> AsyncGenerator[LLMEngineOutput]:
        yield token(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(failing())
            await body(group)
        yield stop()

    async def consume() -> None:
        if cancelled_before:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        stream = await adapter_of(Engine(steps), pipeline=pipeline).generate(request())
        async with asyncio.timeout(10):
            *items, last = await collect(stream)
            await asyncio.sleep(1)
        assert tokens_of(items) == [[1]]
        assert isinstance(last.error, Disconnected)

    consumer = asyncio.create_task(consume())
    await settle()
    if cancelled_before:
        consumer.cancel()
    await consumer
    assert consumer.cancelling() == cancelled_before


async def raises_it(_context: RequestContext) -> None:
    raise asyncio.CancelledError


async def awaits_what_was_cancelled(_context: RequestContext) -> None:
    own = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_later(1, own.cancel)
    await own


@pytest.mark.rows("S5", "S6", "P4")
@pytest.mark.parametrize("step", [raises_it, awaits_what_was_cancelled])
@pytest.mark.parametrize("cancelled_before", [0, 1])
@virtual
async def test_a_set_up_that_cancels_itself_is_a_failure(step: Step, cancelled_before: int) -> None:
    """Of the engine: the caller gets a typed error, also one that had been cancelled before."""
    spans = Spans()

    async def call() -> None:
        if cancelled_before:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        with pytest.raises(Unknown):
            await adapter_of(ScriptedEngine(setup=[step]), spans=spans).generate(request())

    caller = asyncio.create_task(call())
    await settle()
    if cancelled_before:
        caller.cancel()
    await asyncio.wait([caller])
    assert not caller.cancelled()
    caller.result()
    assert caller.cancelling() == cancelled_before
    assert status_of(spans.one()) == (StatusCode.ERROR, "setup_failed")


class Interrupted(BaseException):
    pass


@pytest.mark.rows("S5", "P7")
@pytest.mark.parametrize("step", [60, raises_it, Interrupted()])
@virtual
async def test_a_caller_that_leaves_during_set_up(step: Step) -> None:
    """Its cancellation, or an interrupt, goes on as it is, and the span ends as dropped, once."""
    spans = Spans()
    engine = ScriptedEngine(setup=[0.5, step])
    caller = asyncio.create_task(adapter_of(engine, spans=spans).generate(request()))
    await asyncio.sleep(0.5 if step == 60 else 0)
    if not isinstance(step, Interrupted):
        caller.cancel()
    await asyncio.wait([caller])
    if isinstance(step, Interrupted):
        assert caller.exception() is step
    else:
        assert caller.cancelled()
    assert status_of(spans.one()) == DROPPED
    assert spans.open == ()


# The consumer's cancellation, and engines that answer it.


async def swallows_with_terminal() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        yield LLMEngineOutput.cancelled()


async def swallows_with_chunk() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        yield token(2)
        yield stop()


async def swallows_with_error() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise ValueError("while it was cancelled") from None


async def swallows_and_returns() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return


async def swallows_and_waits() -> AsyncGenerator[LLMEngineOutput]:
    yield token(1)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.5)
        yield LLMEngineOutput.cancelled()


SWALLOWING: list[Steps] = [
    swallows_with_terminal,
    swallows_with_chunk,
    swallows_with_error,
    swallows_and_returns,
    swallows_and_waits,
]


async def by_timeout(stream: Any) -> object:
    async with asyncio.timeout(1):
        return await anext(stream)


async def by_wait_for(stream: Any) -> object:
    return await asyncio.wait_for(anext(stream), 1)


async def by_cancel(stream: Any) -> object:
    task = asyncio.ensure_future(anext(stream))
    asyncio.get_running_loop().call_later(1, task.cancel)
    await asyncio.wait([task])
    if task.cancelled():
        raise TimeoutError
    return task.result()


@pytest.mark.rows("S6", "S7", "P5", "O2")
@pytest.mark.parametrize("steps", SWALLOWING, ids=lambda steps: steps.__name__)
@pytest.mark.parametrize("leave", [by_timeout, by_wait_for, by_cancel])
@pytest.mark.parametrize("record", [True, False])
@EVERY_PIPELINE
@virtual
async def test_the_consumer_s_cancellation_goes_on(
    steps: Steps, leave: Callable[[Any], Awaitable[object]], record: bool, pipeline: Pipeline
) -> None:
    """Whatever the engine makes of it: the deadline is met, and it is recorded as a drop."""
    spans = Spans()
    adapter = adapter_of(Engine(steps), spans=spans, pipeline=pipeline, record=record)
    stream = await adapter.generate(request())
    await anext(stream)
    with pytest.raises(TimeoutError):
        await leave(stream)
    await asyncio.sleep(1)
    assert await anext(stream, None) is None
    attributes = rows_of(spans.one())
    assert (attributes["finish_reason"], attributes["cancelled"]) == ("Dropped", True)
    assert "error_kind" not in attributes
    assert status_of(spans.one()) == DROPPED
    if record:
        assert attributes["output_tokens"] == 1


@pytest.mark.rows("S7", "P5", "O2")
@pytest.mark.parametrize("steps", SWALLOWING, ids=lambda steps: steps.__name__)
@pytest.mark.parametrize("record", [True, False])
@EVERY_PIPELINE
@virtual
async def test_a_close_in_a_pull_is_a_drop_whatever_the_engine_answers(
    steps: Steps, record: bool, pipeline: Pipeline
) -> None:
    """The pull ends without an item, and the span says that the stream was dropped."""
    spans = Spans()
    adapter = adapter_of(Engine(steps), spans=spans, pipeline=pipeline, record=record)
    stream = await adapter.generate(request())
    await anext(stream)
    pull = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(1)
    stream.close()
    assert status_of(spans.one()) == DROPPED
    assert await pull is None
    await stream.aclose()
    attributes = rows_of(spans.one())
    assert (attributes["finish_reason"], attributes["cancelled"]) == ("Dropped", True)
    if record:
        assert attributes["output_tokens"] == 1


@pytest.mark.rows("P5", "O2")
@pytest.mark.parametrize("script", [[token(1), stop()], [token(1), Disconnected("gone")]])
@pytest.mark.parametrize("leave", ["close", "cancel", "lose"])
@pytest.mark.parametrize("record", [True, False])
@virtual
async def test_a_drop_while_an_operator_holds_the_end(
    script: list[Step], leave: str, record: bool
) -> None:
    """A terminal or an error item that nobody was handed ends nothing: the stream was dropped."""

    async def slow(item: Any) -> Any:
        await asyncio.sleep(1)
        return item

    spans = Spans()
    pipeline = standard_pipeline.with_operators(map_async(slow))
    engine = ScriptedEngine(*script)
    adapter = adapter_of(engine, spans=spans, pipeline=pipeline, record=record)
    held = [await adapter.generate(request())]
    await anext(held[0])
    pull = asyncio.ensure_future(anext(held[0], None))
    await asyncio.sleep(0.5)
    if leave == "close":
        held[0].close()
    elif leave == "cancel":
        pull.cancel()
    else:
        pull.cancel()
        held.clear()
    await asyncio.wait([pull])
    del pull
    await settle()
    attributes = rows_of(spans.one())
    assert (attributes["finish_reason"], attributes["cancelled"]) == ("Dropped", True)
    assert status_of(spans.one()) == DROPPED
    assert engine.closed == 1


# Ends without a terminal.


@pytest.mark.rows("S9", "P3")
@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("mode", ["agg", "prefill", "decode"])
@EVERY_PIPELINE
@virtual
async def test_an_engine_that_just_returns(tokens: int, mode: str, pipeline: Pipeline) -> None:
    """One error item behind what came, of a kind that sends the request to another worker."""
    spans = Spans()
    engine = ScriptedEngine(*map(token, range(tokens)))
    stream = await adapter_of(engine, mode, spans, pipeline=pipeline).generate(request())
    *items, last = await collect(stream)
    assert tokens_of(items) == [[n] for n in range(tokens)]
    assert isinstance(last.error, StreamIncomplete)
    assert "engine" in last.error.message
    assert status_of(spans.one()) == (StatusCode.ERROR, "Backend(StreamIncomplete)")
