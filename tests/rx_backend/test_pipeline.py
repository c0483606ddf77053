"""Pipelines: operators added anywhere, and those that fail."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from reactivex import operators as ops

from operators import (
    BufferOverflow,
    Pipeline,
    TotalTimeout,
    coalesce,
    deadlines,
    heartbeat,
    map_async,
    tap,
    until_terminal,
)
from operators.assembly import name_of
from operators.authoring import (
    SCOPE,
    AnyOperator,
    Completed,
    FusedRun,
    Stage,
    complete_with,
    detach,
    emit,
    operator,
)
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import Disconnected, StreamIncomplete, Unknown
from rx_backend.pipeline import standard_pipeline
from rx_backend.scope import RequestScope
from tests.engines import (
    ScriptedEngine,
    Step,
    Stream,
    adapter_of,
    before,
    collect,
    itself,
    now,
    request,
    serve,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.logs import capture_logs
from tests.meters import Meters
from tests.spans import Spans, rows_of

SECRET = "what a user wrote"
PLACES = [*standard_pipeline.names, "items"]


@operator
def noting(seen: list[object]) -> Stage[Any, Any]:
    """Write down every item, and how the stream went."""
    try:
        item = yield
        while True:
            seen.append(item)
            item = yield item
    finally:
        seen.append("end")


# Adding operators.


@pytest.mark.rows("S1", "S7", "P8")
@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("per_request", [True, False])
@pytest.mark.parametrize("times", [0, 1, 2])
@virtual
async def test_an_adapter_can_be_extended(record: bool, per_request: bool, times: int) -> None:
    """``with_operators`` makes another one that serves and measures alike; the first stays as it is."""
    spans, meters, seen = Spans(), Meters(), list[object]()
    reads = count()
    adapter = plain = EngineAdapter(
        ScriptedEngine(token(1), stop()),
        "decode",
        pipeline=(lambda _: standard_pipeline) if per_request else standard_pipeline,
        tracer=spans.tracer,
        meter_provider=meters.provider,
        clock=lambda: float(next(reads)),
        record=record,
    )
    for _ in range(times):
        adapter = adapter.with_operators(noting(seen))
    assert (adapter.engine, adapter.mode) == (plain.engine, plain.mode)
    items = await collect(await adapter.generate(request()))
    if times == 1:
        assert seen == [*items, "end"]
    attributes = rows_of(spans.one())
    assert ("ttft_ms" in attributes) is record
    assert (next(reads) > 0) is record
    assert meters.counts("rx_backend.requests") == {(): 1}
    await collect(await plain.generate(request()))
    assert len(seen) == 3 * times


@pytest.mark.rows("S1")
@virtual
async def test_a_pipeline_may_be_made_for_each_request() -> None:
    """A function has the request, its context, span and role; streams share no operator's state."""
    scopes: list[RequestScope] = []
    spans = Spans()

    def pipeline(scope: RequestScope) -> Pipeline:
        scopes.append(scope)
        return standard_pipeline

    adapter = adapter_of(ScriptedEngine(token(1), stop()), "prefill", spans, pipeline=pipeline)
    contexts = [RequestContext("r1"), RequestContext("r2")]
    asked = request()
    for context in contexts:
        await collect(await adapter.generate(asked, context))
    assert [scope.context for scope in scopes] == contexts
    assert all(scope.request is asked and scope.recording for scope in scopes)
    assert all(scope.mode is DisaggregationMode.PREFILL for scope in scopes)
    assert [scope.span.get_span_context() for scope in scopes] == [
        span.context for span in spans.finished
    ]
    assert [scope.times.output_tokens for scope in scopes] == [1, 1]


@pytest.mark.rows("P7")
@pytest.mark.parametrize(
    "script",
    [[token(1), stop()], [token(1)], [token(1), Disconnected("gone")], [token(1), 60, token(2)]],
    ids=["terminal", "no-terminal", "error", "drop"],
)
@pytest.mark.parametrize("has_operator", [True, False], ids=["one", "empty"])
@virtual
async def test_without_our_span_operator_the_span_still_ends(
    script: list[Step], has_operator: bool
) -> None:
    """A pipeline that leaves everything out has plain chunks and errors, and one ended span."""
    spans = Spans()
    engine = ScriptedEngine(*script)
    pipeline = Pipeline([until_terminal()] if has_operator else [])
    adapter = adapter_of(engine, spans=spans, pipeline=pipeline)
    stream: Any = await adapter.generate(request())
    assert await anext(stream) == token(1)
    if 60 in script:
        await stream.aclose()
    elif isinstance(script[-1], Disconnected):
        with pytest.raises(Disconnected):
            await anext(stream)
    elif len(script) == 1:
        with pytest.raises(StreamIncomplete):
            await anext(stream)
    else:
        await collect(stream)
    assert engine.closed == 1
    assert rows_of(spans.one()) == {"model": "mock", "input_tokens": 3, "disagg_role": "agg"}


@pytest.mark.rows("A2", "A6")
@pytest.mark.parametrize("mode", list(DisaggregationMode))
@pytest.mark.parametrize("place", [PLACES[0], "items"])
@virtual
async def test_an_operator_may_stop_its_request(mode: DisaggregationMode, place: str) -> None:
    """A budget, say, that stops the request aborts the engine once, and the stream continues."""

    @operator
    def budget(*, scope: RequestScope = SCOPE) -> Stage[Any, Any]:
        item = yield
        while True:
            item = yield item
            scope.stop()

    engine = ScriptedEngine(token(1), 1, token(2), 1, token(3), 1, stop())
    served = await serve(engine, mode, pipeline=before(place, budget()))
    assert served.tokens == [[1], [2], [3], []]
    assert engine.aborts == [1]


# Exceptions.


@operator
def raising(error: Exception) -> Stage[Any, Any]:
    """Raise at the second item."""
    item = yield
    yield item
    raise error


@operator
async def raising_async(source: FusedRun[Any], error: Exception) -> AsyncGenerator[Any]:
    """Raise at the second item, in an asynchronous generator."""
    async for item in source:
        yield item
        break
    await anext(source)
    raise error


def at_second(make: Callable[[], Any]) -> Callable[[Any], Any]:
    """Return a function that passes items on, but for the second, for which it calls *make*."""
    seen: list[object] = []

    def look(item: object) -> Any:
        seen.append(item)
        return make() if len(seen) == 2 else item

    return look


def awaited_at_second(make: Callable[[], Any]) -> Callable[[Any], Awaitable[Any]]:
    look = at_second(make)

    async def wait(item: Any) -> Any:
        return look(item)

    return wait


def raises(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


RAISING: dict[str, Callable[[Exception], AnyOperator]] = {
    "raising": raising,
    "raising_async": raising_async,
    "map": lambda error: ops.map(at_second(raises(error))),
    "map_async": lambda error: map_async(awaited_at_second(raises(error))),
}


class Awkward(Exception):
    """An exception whose text holds what a user wrote."""

    def __init__(self, text: str = SECRET, *, more: str = SECRET) -> None:
        super().__init__(text, more)


async def take_into(items: list[Any], stream: Stream) -> Any:
    """Take all items, and return the error that they end with: that of an item, or one that is raised."""
    try:
        async for item in stream:
            items.append(item)  # noqa: PERF401 - what came before an error is kept
    except Exception as error:
        return error
    return items.pop().error


def logged_failure(events: Sequence[Any]) -> Any:
    """Return the only line at ERROR, which says that an operator failed."""
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert event["event"] == "operator failed"
    assert event["request_id"] == "r1"
    return event


@pytest.mark.rows("O4", "O2", "S6", "S7", "P4")
@pytest.mark.parametrize("name", RAISING)
@pytest.mark.parametrize("place", PLACES)
@virtual
async def test_an_operator_that_raises_is_logged_once(name: str, place: str) -> None:
    """At ERROR, with request, operator, class and place; no text; and it ends the request."""
    for kind in (KeyError, ValueError, Awkward):
        error = kind(SECRET)
        spans, items = Spans(), list[Any]()
        engine = ScriptedEngine(token(1), token(2), stop())
        adapter = adapter_of(engine, spans=spans, pipeline=before(place, RAISING[name](error)))
        with capture_logs() as events:
            stream = await adapter.generate(request(), RequestContext("r1"))
            failure = await take_into(items, stream)
        assert failure is error if place == "items" else failure.__cause__ is error
        assert tokens_of(items) == [[1]]
        event = logged_failure(events)
        assert event["operator"] == name
        assert kind.__name__ in repr(event)
        assert SECRET not in repr(events)
        typed = "InvalidArgument" if kind is ValueError else "Unknown"
        assert spans.one().status.description == f"Backend({typed})"
        assert engine.closed == 1
        assert await collect(stream) == []


GIVING_UP: dict[str, tuple[Callable[[], AnyOperator], type[Exception], str]] = {
    "coalesce": (
        lambda: coalesce(max_chunks=1, overflow="fail"),
        BufferOverflow,
        "Backend(Unknown)",
    ),
    "deadlines": (lambda: deadlines(total_s=3), TotalTimeout, "Backend(ResponseTimeout)"),
}


@pytest.mark.rows("O4", "O2", "S6", "P4")
@pytest.mark.parametrize("name", GIVING_UP)
@pytest.mark.parametrize("place", PLACES)
@virtual
async def test_a_deliberate_failure_is_not_logged(name: str, place: str) -> None:
    """Its error is an item before the mapping, and raised after it; it is no bug to be logged."""
    make, kind, span_kind = GIVING_UP[name]
    spans, items = Spans(), list[Any]()
    engine = ScriptedEngine(*[1, token(1)] * 9, stop())
    adapter = adapter_of(engine, spans=spans, pipeline=before(place, make()))
    raised: list[Exception] = []
    with capture_logs() as events:
        stream = await adapter.generate(request())
        try:
            async for item in stream:
                items.append(item)
                await asyncio.sleep(5)
        except Exception as error:
            raised.append(error)
    if place == "items":
        assert [type(error) for error in raised] == [kind]
    else:
        assert raised == []
        assert isinstance(items[-1].error.__cause__, kind)
    assert spans.one().status.description == span_kind
    assert [event for event in events if event["event"] == "operator failed"] == []
    assert engine.closed == 1


@operator
def flushing() -> Stage[Any, Any]:
    """Fail at the end, by a cancellation of its own making."""
    item = yield
    try:
        while True:
            item = yield item
    except Completed:
        raise asyncio.CancelledError from None


@pytest.mark.rows("O4", "S6")
@pytest.mark.parametrize("name", [*RAISING, "flushing"])
@virtual
async def test_a_cancellation_raised_by_an_operator(name: str) -> None:
    """The client was not cancelled: it is a failure like any other, and the operator is named."""
    cancelled: Any = asyncio.CancelledError()
    made = flushing() if name == "flushing" else RAISING[name](cancelled)
    with capture_logs() as events:
        served = await serve(
            ScriptedEngine(token(1), token(2), stop()), pipeline=before("annotate_errors", made)
        )
    assert isinstance(served.last.error, Unknown)
    assert served.row["error_kind"] == "Backend(Unknown)"
    assert logged_failure(events)["operator"] == name


@pytest.mark.rows("O4", "S6")
@virtual
async def test_an_interrupt_in_an_operator() -> None:
    """Ctrl-C may come in any step: it comes out as it is, and no line blames the operator."""
    interrupt: Any = KeyboardInterrupt()
    engine = ScriptedEngine(token(1), token(2))
    with capture_logs() as events, pytest.raises(KeyboardInterrupt):
        await serve(engine, pipeline=before("annotate_errors", raising(interrupt)))
    assert [event for event in events if event["log_level"] == "error"] == []


@pytest.mark.rows("O4")
@pytest.mark.parametrize("place", ["annotate_errors", "items"])
@virtual
async def test_an_engine_failure_is_not_attributed_to_an_operator(place: str) -> None:
    """It passes operators of every kind, and no line says that one of them failed."""
    pipeline = before(place, passing(), ops.do_action(), map_async(itself))
    with capture_logs() as events:
        served = await serve(ScriptedEngine(token(1), LookupError("gone")), pipeline=pipeline)
    assert isinstance(served.last.error, Unknown)
    assert [event for event in events if event["log_level"] == "error"] == []


@operator
def failing_setup() -> Stage[Any, Any]:
    """Raise before there is a first item."""
    if now() >= 0:
        raise LookupError("no table")
    yield


@pytest.mark.rows("O4", "S5", "P4", "S7")
@pytest.mark.parametrize("place", PLACES)
@virtual
async def test_an_operator_that_fails_to_start_fails_the_setup(place: str) -> None:
    """The caller has a typed error, the engine's stream and the span an end; the log names it once."""
    seen: list[object] = []
    engine, spans = ScriptedEngine(token(1), stop()), Spans()
    pipeline = before(place, noting(seen), failing_setup())
    adapter = adapter_of(engine, spans=spans, pipeline=pipeline)
    with capture_logs() as events, pytest.raises(Unknown, match="no table") as raised:
        await adapter.generate(request(), RequestContext("r1"))
    assert isinstance(raised.value.__cause__, LookupError)
    assert logged_failure(events)["operator"] == "failing_setup"
    assert seen == ["end"]
    assert engine.pulls == 0
    assert spans.one().status.description == "setup_failed"


# What may not be handed out.


@operator
def saying(value: Any) -> Stage[Any, Any]:
    """Hand out *value* for the second item."""
    item = yield
    item = yield item
    while True:
        item = yield value


@operator
async def saying_async(source: FusedRun[Any], value: Any) -> AsyncGenerator[Any]:
    """Hand out *value* for the second item."""
    count = 0
    async for item in source:
        count += 1
        yield value if count == 2 else item


SAYING: dict[str, Callable[[Any], AnyOperator]] = {
    "saying": saying,
    "saying_async": saying_async,
    "map": lambda value: ops.map(at_second(lambda: value)),
    "map_async": lambda value: map_async(awaited_at_second(lambda: value)),
}


HALF_CHUNKS = [SimpleNamespace(token_ids=[1]), SimpleNamespace(finish_reason=None)]


@pytest.mark.rows("O5", "S6")
@pytest.mark.parametrize("name", SAYING)
@pytest.mark.parametrize("value", [None, 5, {"token_ids": [1]}, *HALF_CHUNKS], ids=repr)
@virtual
async def test_an_invalid_item_of_an_operator_is_an_error(name: str, value: Any) -> None:
    """Nothing where an item is due, anywhere, and no chunk among the chunks: the operator is named."""
    places = ["until_terminal", "trace_link", "annotate_errors", *(["items"] if not value else [])]
    for place in places:
        spans, items = Spans(), list[Any]()
        adapter = adapter_of(
            ScriptedEngine(token(1), token(2), stop()),
            spans=spans,
            pipeline=before(place, SAYING[name](value)),
        )
        with capture_logs() as events:
            stream = await adapter.generate(request(), RequestContext("r1"))
            failure = await take_into(items, stream)
        cause = failure.__cause__ or failure
        assert isinstance(cause, TypeError), place
        assert tokens_of(items) == [[1]]
        if value is not None:
            assert str(cause) == f"expected a chunk to hand out, got {type(value).__name__}"
            assert isinstance(cause.__context__, AttributeError | TypeError)
        logged = logged_failure(events)
        assert (logged["operator"], logged["error_class"]) == (name, "TypeError")
        assert spans.one().status.description == "Backend(Unknown)"


@operator
def passing(*, detached: bool = False) -> Stage[Any, Any]:
    """Pass every item on."""
    item = yield
    while True:
        item = yield detach(item) if detached else item


PASSING: list[AnyOperator] = [
    *(coalesce(), deadlines(idle_s=5), heartbeat(5, token(0)), map_async(itself), tap(id)),
    ops.do_action(),
]


@pytest.mark.rows("O5", "S6", "O4")
@virtual
async def test_only_the_failing_operator_is_named() -> None:
    """However the value is handed out, and whatever operators pass it on or stand in front."""
    on_chunks = operator(takes="chunks")(inspect.unwrap(raising))
    lists: list[tuple[str, list[AnyOperator]]] = [
        *(
            ("saying", [passing(), saying(make("text")), passing(detached=True)])
            for make in (emit, detach, complete_with)
        ),
        # Stock operators side by side are one chain.
        *(
            (f"map, {name_of(behind)}" if (name, behind) == ("map", PASSING[-1]) else name,
             [make({"a": 1}), behind])
            for name, make in SAYING.items()
            for behind in PASSING
        ),
        ("raising", [passing(), raising(TypeError("broken"))]),
        ("raising", [passing(), on_chunks(TypeError("broken"))]),
        ("raising", [saying("text"), on_chunks(LookupError("broken"))]),
    ]  # fmt: skip
    for name, operators in lists:
        pipeline = before("annotate_errors", *operators)
        with capture_logs() as events:
            served = await serve(ScriptedEngine(token(1), token(2), stop()), pipeline=pipeline)
        assert served.tokens == [[1]], name
        assert isinstance(served.last.error, Unknown)
        assert logged_failure(events)["operator"] == name
