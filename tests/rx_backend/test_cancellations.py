"""Cancellations that an engine raises, answers, or swallows, and exceptions like them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
import reactivex
from opentelemetry.trace import StatusCode
from reactivex import operators as ops

from operators import Pipeline, map_async
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import Disconnected, Unknown
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput
from tests.engines import (
    DROPPED,
    PASSES,
    FunctionEngine,
    ScriptedEngine,
    Step,
    adapter_of,
    collect,
    play_step,
    request,
    serve,
    settle,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.logs import capture_logs
from tests.meters import Meters
from tests.spans import Spans, rows_of

EVERY_PIPELINE = pytest.mark.parametrize("pipeline", PASSES.values(), ids=PASSES)


# An engine that cancels itself, or raises what looks like it.


async def cancelled_task() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_later(1, task.cancel)
    await task


async def cancelled_future() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def raised() -> None:
    raise asyncio.CancelledError


async def raised_later() -> None:
    await asyncio.sleep(1)
    raise asyncio.CancelledError


async def raised_in_a_group() -> None:
    raise BaseExceptionGroup("", [Disconnected("gone"), asyncio.CancelledError()])


async def generator_exit() -> None:
    raise GeneratorExit


async def generator_exit_later() -> None:
    await asyncio.sleep(1)
    raise GeneratorExit


@pytest.mark.rows("S6", "P4", "P7")
@pytest.mark.parametrize(
    "cancels",
    [
        *(raised, raised_later, raised_in_a_group, cancelled_task, cancelled_future),
        *(generator_exit, generator_exit_later),
    ],
)
@EVERY_PIPELINE
@virtual
async def test_a_cancellation_by_the_engine_is_a_failure(
    cancels: Callable[[], Awaitable[None]], pipeline: Pipeline
) -> None:
    """One error item, the span says so, and the consumer's task was never cancelled."""

    async def steps() -> AsyncGenerator[LLMEngineOutput]:
        yield token(1)
        await cancels()

    async with asyncio.timeout(200):
        served = await serve(FunctionEngine(steps), pipeline=pipeline)
    assert served.tokens == [[1]]
    assert isinstance(served.last.error, Unknown)
    assert served.status == (StatusCode.ERROR, "Backend(Unknown)")
    assert served.row["cancelled"] is False
    this = asyncio.current_task()
    assert this is not None
    assert this.cancelling() == 0


@pytest.mark.rows("S6", "O4")
@virtual
async def test_an_engine_that_cancels_an_operators_task() -> None:
    """No consumer was cancelled, so it is the engine's failure; no line blames the operator."""

    async def steps() -> AsyncGenerator[LLMEngineOutput]:
        yield token(1)
        await asyncio.sleep(1)
        this = asyncio.current_task()
        assert this is not None
        this.cancel()
        await asyncio.sleep(60)

    pipeline = standard_pipeline.with_operators(ops.merge(reactivex.empty()))
    with capture_logs() as events:
        served = await serve(FunctionEngine(steps), pipeline=pipeline)
    assert str(served.last.error) == "BackendUnknown: the source raised CancelledError"
    assert [event for event in events if event["log_level"] == "error"] == []


# Task groups.


# From Python 3.13 on, a task group in a task that was cancelled before continues with that.
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
        stream = await adapter_of(FunctionEngine(steps), pipeline=pipeline).generate(request())
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


@pytest.mark.rows("S6", "S7")
@pytest.mark.parametrize("taken", [1, 2])
@virtual
async def test_a_task_group_that_is_closed_is_no_failure(
    caplog: pytest.LogCaptureFixture, taken: int
) -> None:
    """The close goes through the group, which wraps it."""

    async def steps() -> AsyncGenerator[LLMEngineOutput]:
        async with asyncio.TaskGroup():
            yield token(1)
            yield stop()

    await serve(FunctionEngine(steps), take=taken)
    assert caplog.records == []


# The set-up.


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
async def test_a_caller_that_cancels_the_set_up(step: Step) -> None:
    """Its cancellation, or an interrupt, is passed on as it is, and the span ends as dropped, once."""
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


class Answering(ScriptedEngine):
    """Answers the cancellation of its second pull."""

    def __init__(self, *answers: Step) -> None:
        super().__init__()
        self._answers = answers

    async def _stream(self, context: RequestContext) -> AsyncGenerator[Any]:
        try:
            yield token(1)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                for answer in self._answers:
                    if isinstance(answer, LLMEngineOutput):
                        yield answer
                    else:
                        await play_step(answer, context)
        finally:
            self.closed += 1


ANSWERS: dict[str, list[Step]] = {
    "nothing": [],
    "a terminal": [LLMEngineOutput.cancelled()],
    "a terminal with tokens": [stop().with_tokens([4])],
    "a terminal, later": [0.5, LLMEngineOutput.cancelled()],
    "chunks": [token(2), LLMEngineOutput([2, 3]), stop()],
    "an error": [ValueError("while it was cancelled")],
}


async def by_timeout(stream: Any) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await anext(stream)


async def by_wait_for(stream: Any) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 1)


async def by_anyio(stream: Any) -> None:
    with anyio.move_on_after(1) as scope:
        await anext(stream)
    assert scope.cancelled_caught


async def by_cancel(stream: Any) -> None:
    task = asyncio.ensure_future(anext(stream))
    asyncio.get_running_loop().call_later(1, task.cancel)
    await asyncio.wait([task])
    assert task.cancelled()


async def by_close(stream: Any) -> None:
    pull = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(1)
    stream.close()
    assert await pull is None


@pytest.mark.rows("S6", "S7", "P5", "O2")
@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("leave", [by_timeout, by_wait_for, by_anyio, by_cancel, by_close])
@EVERY_PIPELINE
@virtual
async def test_a_drop_stays_a_drop_whatever_the_engine_does(
    answers: str, leave: Callable[[Any], Awaitable[None]], pipeline: Pipeline
) -> None:
    """The deadline is met, the answer is not handed out, and nothing of it is recorded."""
    for record in (True, False):
        spans, meters = Spans(), Meters()
        engine = Answering(*ANSWERS[answers])
        adapter = EngineAdapter(
            engine,
            pipeline=pipeline,
            tracer=spans.tracer,
            meter_provider=meters.provider,
            record=record,
        )
        stream = await adapter.generate(request())
        await anext(stream)
        await leave(stream)
        assert status_of(spans.one()) == DROPPED
        await asyncio.sleep(1)
        assert await anext(stream, None) is None
        attributes = rows_of(spans.one())
        assert (attributes["finish_reason"], attributes["cancelled"]) == ("Dropped", True)
        assert "error_kind" not in attributes
        assert attributes.get("output_tokens", 1) == 1
        assert ("output_tokens" in attributes) is record
        assert meters.counts("rx_backend.tokens", "gen_ai.token.type")[("output",)] == 1
        assert engine.closed == 1


@pytest.mark.rows("P5", "O2")
@pytest.mark.parametrize("script", [[token(1), stop()], [token(1), Disconnected("gone")]])
@pytest.mark.parametrize("leave", ["close", "cancel", "lose"])
@pytest.mark.parametrize("record", [True, False])
@virtual
async def test_a_drop_while_an_operator_holds_the_end(
    script: list[Step], leave: str, record: bool
) -> None:
    """A terminal or an error item that was not handed out ends nothing: the stream was dropped."""

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
