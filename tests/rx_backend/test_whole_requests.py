"""What a request's client, its span, its metrics and its log see of odd ends: the same."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import pytest
import reactivex
from reactivex import operators as ops
from structlog.testing import capture_logs

from operators import TokenTimes, first_token, heartbeat, tap, usage
from operators.authoring import (
    AnyOperator,
    Completed,
    FusedRun,
    Stage,
    complete_with,
    emit,
    fail_after,
    operator,
)
from operators.span_events import add_event
from rx_backend import (
    Annotated,
    Disconnected,
    EngineAdapter,
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    StreamIncomplete,
)
from tests.meters import Meters
from tests.rx_backend._engines import ScriptedEngine, collect, request, settle, stop, token, virtual
from tests.spans import Spans, rows_of


def adapter_of(engine: LLMEngine, spans: Spans, meters: Meters) -> EngineAdapter:
    return EngineAdapter(engine, tracer=spans.tracer, meter_provider=meters.provider)


@operator
def together(how: str) -> Stage[Any, Any]:
    """Hand out the last three items at once, with the end."""
    items = [(yield emit()), (yield emit()), (yield emit())]
    if how == "return":
        return emit(*items)
    if how == "fail":
        return fail_after(LookupError("gone"), *items)
    yield complete_with(*items)
    raise AssertionError


@pytest.mark.rows("S7", "P5", "P7")
@pytest.mark.parametrize("how", ["return", "yield", "fail"])
@pytest.mark.parametrize("phase", ["chunks", "items"])
@pytest.mark.parametrize("taken", [1, 2])
@virtual
async def test_a_stream_that_is_lost_with_items_left(
    spans: Spans, how: str, phase: str, taken: int
) -> None:
    """The source is closed by then; the drop is recorded all the same."""
    meters = Meters()
    place = "trace_link" if phase == "chunks" else None
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), spans, meters)
    made = together(how)
    adapter = (
        EngineAdapter(
            adapter.engine,
            pipeline=adapter.pipeline.insert_before(place, made),  # type: ignore[union-attr]
            tracer=spans.tracer,
            meter_provider=meters.provider,
        )
        if place
        else adapter.with_operators(made)
    )
    stream = await adapter.generate(request())
    for _ in range(taken):
        await anext(stream)
    del stream
    gc.collect()
    await settle()
    assert rows_of(spans.one())["finish_reason"] == "Dropped"
    assert rows_of(spans.one())["output_tokens"] == taken
    assert meters.counts("rx_backend.requests.active") == {}


@operator(takes="chunks")
def failing_flush() -> Stage[Any, Any]:
    item = yield
    try:
        while True:
            item = yield item
    except Completed:
        raise RuntimeError("flush failed") from None


@operator(takes="chunks")
async def failing_behind(source: FusedRun[Any]) -> AsyncGenerator[Any]:
    async for item in source:
        yield item
    raise RuntimeError("flush failed")


@operator(takes="items")
async def failing_on_items(source: FusedRun[Any]) -> AsyncGenerator[Any]:
    async for item in source:
        yield item
    raise RuntimeError("flush failed")


@pytest.mark.rows("P6a", "O2")
@pytest.mark.parametrize("failing", [failing_flush, failing_behind, failing_on_items])
@pytest.mark.parametrize("leaves", [True, False])
@virtual
async def test_a_client_that_leaves_with_the_terminal(
    spans: Spans, failing: Callable[[], AnyOperator], leaves: bool
) -> None:
    """It was handed the terminal; one that reads on gets the failure behind it, and that counts."""
    adapter = adapter_of(ScriptedEngine(token(1), stop()), spans, Meters())
    try:
        async with await adapter.with_operators(failing()).generate(request()) as stream:
            async for item in stream:
                if leaves and item.data is not None and item.data.finish_reason is not None:
                    break
    except RuntimeError:
        assert failing is failing_on_items
    row = rows_of(spans.one())
    if leaves:
        assert row["finish_reason"] == "Stop"
    elif failing is not failing_on_items:
        assert row["error_kind"] == "Backend(Unknown)"


def cancelled_result() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    future.result()


@operator(takes="chunks")
def cancelling_step() -> Stage[Any, Any]:
    item = yield
    yield item
    cancelled_result()


@operator(takes="chunks")
def cancelling_flush() -> Stage[Any, Any]:
    item = yield
    try:
        while True:
            item = yield item
    except Completed:
        cancelled_result()


@operator(takes="chunks")
async def cancelling_pull(source: FusedRun[Any]) -> AsyncGenerator[Any]:
    async for item in source:
        yield item
        cancelled_result()


@pytest.mark.rows("O4", "S6")
@pytest.mark.parametrize("made", [cancelling_step, cancelling_flush, cancelling_pull])
@virtual
async def test_a_cancellation_of_an_operators_own_making(
    spans: Spans, made: Callable[[], AnyOperator]
) -> None:
    """Nobody has cancelled the client: it is a failure like any other, and the operator is named."""
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), spans, Meters())
    with capture_logs() as log:
        items = await collect(await adapter.with_operators(made()).generate(request()))
    assert items[-1].error is not None
    assert items[-1].error.kind == "Unknown"
    assert rows_of(spans.one())["error_kind"] == "Backend(Unknown)"
    failed = [entry["operator"] for entry in log if entry["event"] == "operator failed"]
    assert failed == [made.__name__]


@pytest.mark.rows("S6", "S7")
@pytest.mark.parametrize("scope", [anyio.move_on_after, anyio.fail_after])
@pytest.mark.parametrize("behind", ["nothing", "heartbeat", "delay", "peek_first"])
@virtual
async def test_a_scope_of_anyio_around_the_client(
    spans: Spans, scope: Callable[[float], Any], behind: str
) -> None:
    """It ends at the scope, which knows its own cancellation by the message."""
    operators: dict[str, list[AnyOperator]] = {
        "heartbeat": [heartbeat(50.0, Annotated[LLMEngineOutput](comment=["ping"]))],
        "delay": [ops.delay(0.1)],
    }
    adapter = adapter_of(ScriptedEngine(100.0, token(1), stop()), spans, Meters())
    stream = await adapter.with_operators(*operators.get(behind, [])).generate(request())
    has_left = True
    try:
        with scope(1.0):
            if behind == "peek_first":
                await stream.peek_first()
            else:
                await collect(stream)
            has_left = False
    except TimeoutError:
        assert scope is anyio.fail_after
    else:
        assert scope is anyio.move_on_after
    assert has_left
    await stream.aclose()
    assert rows_of(spans.one())["finish_reason"] == "Dropped"


VARIABLE = contextvars.ContextVar("variable", default="unset")


class Binding(LLMEngine):
    """Sets a variable of its context for the time of a stream."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="m")

    async def generate(self, request: object, context: object) -> AsyncGenerator[LLMEngineOutput]:
        before = VARIABLE.set("engine")
        try:
            yield token(1)
            assert VARIABLE.get() == "engine"
            yield stop()
        finally:
            VARIABLE.reset(before)


@pytest.mark.rows("P9", "S7")
@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("traced", [True, False])
@virtual
async def test_an_engine_that_binds_a_context_variable(
    spans: Spans, caplog: pytest.LogCaptureFixture, leaves: bool, traced: bool
) -> None:
    """It runs in one context to its end, with and without a tracer, and its client sees none of it."""
    adapter = EngineAdapter(Binding(), tracer=spans.tracer if traced else None)
    async with await adapter.generate(request()) as stream:
        async for _ in stream:
            assert VARIABLE.get() == "unset"
            if leaves:
                break
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


class Grouped(LLMEngine):
    """Yields within a task group."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="m")

    async def generate(self, request: object, context: object) -> AsyncGenerator[LLMEngineOutput]:
        async with asyncio.TaskGroup():
            yield token(1)
            yield stop()


@pytest.mark.rows("S6", "S7")
@pytest.mark.parametrize("taken", [1, 2])
@virtual
async def test_a_task_group_that_is_closed_is_no_failure(
    caplog: pytest.LogCaptureFixture, taken: int
) -> None:
    """The close goes through the group, which wraps it."""
    async with await EngineAdapter(Grouped()).generate(request()) as stream:
        for _ in range(taken):
            await anext(stream)
    assert caplog.records == []


@pytest.mark.rows("O2")
@virtual
async def test_a_subscriber_that_disposes_in_an_operators_step(spans: Spans) -> None:
    """The item of that step is not pushed, and does not count."""
    subscriptions: list[reactivex.abc.DisposableBase] = []

    @operator(takes="items")
    def quota() -> Stage[Any, Any]:
        item = yield
        item = yield item
        subscriptions[0].dispose()
        while True:
            item = yield item

    got: list[Any] = []
    adapter = adapter_of(
        ScriptedEngine(0.1, token(1), 0.1, token(2), 0.1, token(3), stop()), spans, Meters()
    )
    stream = await adapter.with_operators(quota()).generate(request())
    subscriptions.append(stream.subscribe(got.append))
    await asyncio.sleep(5.0)
    assert len(got) == 1
    assert rows_of(spans.one())["output_tokens"] == 1


@pytest.mark.rows("S9", "O2")
@virtual
async def test_an_operator_that_keeps_the_error_item(spans: Spans) -> None:
    """The client learns of it, and the engine's failure is the cause."""
    adapter = adapter_of(ScriptedEngine(token(1), Disconnected("gone")), spans, Meters())

    def is_no_failure(item: Any) -> bool:
        return item.error is None

    adapter = adapter.with_operators(ops.filter(is_no_failure))
    items: list[Any] = await collect(await adapter.generate(request()))
    error = items[-1].error
    assert isinstance(error, StreamIncomplete)
    assert "behind annotate_errors kept the error item back" in str(error)
    assert isinstance(error.__cause__, Disconnected)


@pytest.mark.rows("P6a", "O2")
@pytest.mark.parametrize("leaves", [True, False])
@virtual
async def test_an_error_item_without_a_typed_error(spans: Spans, leaves: bool) -> None:
    """It is one all the same: nothing follows it, and who leaves with it was handed it."""

    def blocked(item: Annotated[LLMEngineOutput]) -> Annotated[LLMEngineOutput]:
        if item.data is not None and item.data.finish_reason is not None:
            return Annotated(event="error", comment=["blocked by policy"])
        return item

    adapter = adapter_of(ScriptedEngine(token(1), stop()), spans, Meters())
    seen: list[str | None] = []
    async with await adapter.with_operators(ops.map(blocked)).generate(request()) as stream:
        async for item in stream:
            seen.append(item.event)
            if leaves and item.event == "error":
                break
    assert seen == [None, "error"]
    assert rows_of(spans.one())["error_kind"] == "Backend(Unknown)"


@pytest.mark.rows("P7")
def test_no_event_is_added_to_a_span_that_has_ended(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream may go on behind its request."""
    span = spans.tracer.start_span("engine.generate")
    span.end()
    add_event(span, TokenTimes(), "late")
    assert caplog.records == []


async def asynchronous(*_: object) -> None: ...


@pytest.mark.rows("O5")
@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: tap(asynchronous), "tap: observe"),
        (lambda: usage(3, asynchronous), "usage: make"),
        (lambda: heartbeat(1.0, asynchronous), "heartbeat: item"),
        (lambda: first_token(asynchronous), "first_token: "),
    ],
)
def test_an_async_function_that_nobody_would_await(make: Callable[[], object], option: str) -> None:
    """It is refused when the operator is made, by operator and option."""
    with pytest.raises(TypeError, match=f"{option}.*not async"):
        make()
