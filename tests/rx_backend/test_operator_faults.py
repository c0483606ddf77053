"""Faults of operators: refused when the pipeline is made, or named and logged when they happen."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from reactivex import operators as ops
from structlog.testing import capture_logs

from operators import (
    NotAnOperator,
    Pipeline,
    annotate_errors,
    coalesce,
    deadlines,
    filter_async,
    heartbeat,
    limit_tokens,
    map_async,
    stop_on,
    tap,
    trace_link,
    until_terminal,
    usage,
    validate_contract,
)
from operators.assembly import name_of
from operators.authoring import (
    AnyOperator,
    FusedRun,
    Operator,
    Stage,
    StageResult,
    complete_with,
    detach,
    emit,
    fail_after,
    operator,
)
from rx_backend import protocols
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import Disconnected, InvalidArgument, Unknown
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import Annotated
from tests.rx_backend._engines import (
    Item,
    ScriptedEngine,
    Stream,
    adapter_of,
    collect,
    request,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans

SECRET = "what a user wrote"
PHASES = ["chunks", "items"]


def with_added(phase: str, *added: AnyOperator) -> Pipeline:
    """Return the standard pipeline with operators at the end of a phase."""
    if phase == "chunks":
        return standard_pipeline.insert_before("annotate_errors", *added)
    items = [*standard_pipeline.items, *added]
    return Pipeline(standard_pipeline.chunks, items, annotate=standard_pipeline.annotate)


async def take_into(items: list[Any], stream: Stream) -> None:
    async for item in stream:
        items.append(item)  # noqa: PERF401 - what came before an error is kept


# In the wrong place.


@operator(takes="items")
def only_items() -> Stage[Item, Item]:
    """Pass annotated items on."""
    item = yield
    while True:
        item = yield item


@operator(takes="chunks")
async def only_chunks(source: FusedRun[Any]) -> AsyncGenerator[Any]:
    """Pass chunks on."""
    async for chunk in source:
        yield chunk


CHUNK_OPERATORS: list[Operator[Any, Any]] = [
    until_terminal(),
    limit_tokens(3),
    stop_on(7),
    usage(3, protocols.usage),
    trace_link(),
    validate_contract(),
    only_chunks(),
]


@pytest.mark.rows("O1")
@pytest.mark.parametrize("misplaced", CHUNK_OPERATORS, ids=lambda each: each.name)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_chunk_operator_among_the_items_is_refused(
    misplaced: Operator[Any, Any], place: int
) -> None:
    """By its name and place, and when the pipeline is made."""
    others: list[AnyOperator] = [ops.do_action(), only_items()]
    items = [*others[:place], misplaced, *others[place:]]
    with pytest.raises(NotAnOperator, match=rf"items\[{place}\]: {misplaced.name} takes .* chunks"):
        Pipeline(standard_pipeline.chunks, items, annotate=standard_pipeline.annotate)
    with pytest.raises(NotAnOperator, match=rf"items\[0\]: {misplaced.name} "):
        standard_pipeline.insert_after("annotate_errors", misplaced)


@pytest.mark.rows("O1")
@pytest.mark.parametrize("place", range(len(standard_pipeline.chunks) + 1))
def test_an_item_operator_among_the_chunks_is_refused(place: int) -> None:
    """By its name and place, wherever among the standard operators."""
    chunks = [*standard_pipeline.chunks[:place], only_items(), *standard_pipeline.chunks[place:]]
    with pytest.raises(
        NotAnOperator, match=rf"chunks\[{place}\]: only_items takes annotated items"
    ):
        Pipeline(chunks, annotate=standard_pipeline.annotate)


@pytest.mark.rows("O1")
def test_items_need_what_makes_them() -> None:
    """Operators on items without the one that makes items of chunks are refused."""
    with pytest.raises(NotAnOperator, match=r"items: .*without annotate.* got only_items"):
        Pipeline([until_terminal()], [only_items()])
    with pytest.raises(NotAnOperator, match=r"chunks\[1\]: only_items takes annotated items"):
        Pipeline([until_terminal()]).with_operators(only_items())


@pytest.mark.rows("O1")
@pytest.mark.parametrize("added", [*CHUNK_OPERATORS, only_items()], ids=lambda each: each.name)
@pytest.mark.parametrize("by", ["pipeline", "adapter"])
@virtual
async def test_with_operators_puts_each_where_it_works(added: Operator[Any, Any], by: str) -> None:
    """One that takes chunks among the chunks, any other at the end; the request is served."""
    seen: list[object] = []
    watching: AnyOperator = ops.do_action(seen.append)
    engine = ScriptedEngine(token(1), stop())
    if by == "pipeline":
        pipeline = standard_pipeline.with_operators(watching, added)
        names = pipeline.names
        in_chunks = names.index(added.name, len(names) - 4) < names.index("annotate_errors")
        assert in_chunks is (added.takes == "chunks")
        adapter = adapter_of(engine, pipeline=pipeline)
    else:
        adapter = adapter_of(engine).with_operators(watching, added)
    items = await collect(await adapter.generate(request()))
    assert tokens_of(items) == [[1], []]
    assert seen == items


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


def mapping(error: Exception) -> AnyOperator:
    """Raise at the second item, in a stock operator."""
    seen: list[object] = []

    def look(item: object) -> object:
        seen.append(item)
        if len(seen) == 2:
            raise error
        return item

    return ops.map(look)


def mapping_async(error: Exception) -> AnyOperator:
    """Raise at the second item, in a function that is awaited."""
    seen: list[object] = []

    async def look(item: object) -> object:
        seen.append(item)
        if len(seen) == 2:
            raise error
        return item

    return map_async(look)


def filtering_async(error: Exception) -> AnyOperator:
    """Raise at the second item, in a predicate that is awaited."""
    seen: list[object] = []

    async def look(item: object) -> bool:
        seen.append(item)
        if len(seen) == 2:
            raise error
        return True

    return filter_async(look)


FAILING = [
    pytest.param(raising, "raising", id="generator"),
    pytest.param(raising_async, "raising_async", id="async-generator"),
    pytest.param(mapping_async, "map_async", id="map_async"),
    pytest.param(filtering_async, "filter_async", id="filter_async"),
]


class Awkward(Exception):
    """An exception whose text holds what a user wrote."""

    def __init__(self, text: str = SECRET, *, more: str = SECRET) -> None:
        super().__init__(text, more)


@pytest.mark.rows("O4", "O2")
@pytest.mark.parametrize(("make", "name"), FAILING)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", [KeyError, ValueError, Awkward])
@virtual
async def test_an_operator_that_raises_is_logged_once(
    make: Callable[[Exception], AnyOperator], name: str, phase: str, kind: type[Exception]
) -> None:
    """At ERROR, with request, operator, class and place; no text; and it ends the request."""
    error = kind(SECRET)
    spans = Spans()
    engine = ScriptedEngine(token(1), token(2), stop())
    adapter = adapter_of(engine, spans=spans, pipeline=with_added(phase, make(error)))
    items: list[Any] = []
    with capture_logs() as events:
        stream = await adapter.generate(request(), RequestContext("r1"))
        if phase == "chunks":
            items = await collect(stream)
            assert items[-1].error is not None
            assert items.pop().error.__cause__ is error
        else:
            with pytest.raises(kind) as raised:
                await take_into(items, stream)
            assert raised.value is error
    assert tokens_of(items) == [[1]]
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert event["event"] == "operator failed"
    assert (event["request_id"], event["operator"]) == ("r1", name)
    told = repr(event)
    assert type(error).__name__ in told
    assert "test_operator_faults" in told
    assert SECRET not in repr(events)
    typed = "InvalidArgument" if kind is ValueError else "Unknown"
    assert spans.one().status.description == f"Backend({typed})"
    assert engine.closed == 1


@pytest.mark.rows("O4")
@pytest.mark.parametrize("phase", PHASES)
@virtual
async def test_a_stock_operator_that_raises_is_logged_once(phase: str) -> None:
    """It is named as a part of its neighbours, which are one chain."""
    error = KeyError(SECRET)
    adapter = adapter_of(
        ScriptedEngine(token(1), token(2), stop()), pipeline=with_added(phase, mapping(error))
    )
    with capture_logs() as events:
        stream = await adapter.generate(request(), RequestContext("r1"))
        if phase == "chunks":
            *_, last = await collect(stream)
            assert isinstance(last.error, Unknown)
        else:
            with pytest.raises(KeyError):
                await collect(stream)
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert (event["request_id"], event["event"]) == ("r1", "operator failed")
    assert "map" in event["operator"]
    assert "KeyError" in repr(event)
    assert SECRET not in repr(events)


@pytest.mark.rows("O4")
@pytest.mark.parametrize("phase", PHASES)
@virtual
async def test_a_failure_of_the_engine_is_no_operator_s(phase: str) -> None:
    """It passes operators of every kind, and no line says that one of them failed."""
    passing: AnyOperator = only_chunks() if phase == "chunks" else only_items()
    pipeline = with_added(phase, passing, ops.do_action(), map_async(itself))
    adapter = adapter_of(ScriptedEngine(token(1), Disconnected("gone")), pipeline=pipeline)
    with capture_logs() as events:
        *_, last = await collect(await adapter.generate(request()))
    assert isinstance(last.error, Disconnected)
    assert [event for event in events if event["log_level"] == "error"] == []


async def itself(item: Any) -> Any:
    return item


@pytest.mark.rows("O4")
@virtual
async def test_an_operator_s_set_up_that_raises_is_logged_once() -> None:
    """The caller has the typed error, and the log says whose it was."""

    @operator
    def broken(*, scope: Any = None) -> Stage[Any, Any]:
        if scope is not None:
            raise LookupError(SECRET)
        yield

    adapter = adapter_of(ScriptedEngine(stop()), pipeline=with_added("chunks", broken()))
    with capture_logs() as events, pytest.raises(Unknown):
        await adapter.generate(request(), RequestContext("r1"))
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert (event["request_id"], event["operator"]) == ("r1", "broken")


@pytest.mark.rows("O4")
@virtual
async def test_a_release_that_raises_is_logged_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What an operator raises while the stream is dropped reaches the log, and nobody else."""

    @operator
    def clinging() -> Stage[Any, Any]:
        try:
            item = yield
            while True:
                item = yield item
        finally:
            raise LookupError(SECRET)

    async def leave(stream: Stream) -> None:
        await anext(stream)
        await stream.aclose()

    with caplog.at_level(logging.ERROR):
        adapter = adapter_of(ScriptedEngine(token(1), 60)).with_operators(clinging())
        await leave(await adapter.generate(request()))
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "clinging" in record.getMessage()
    assert SECRET not in caplog.text
    assert "LookupError" in caplog.text


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


def mapping_to(value: Any) -> AnyOperator:
    """Hand out *value* for the second item, by a stock operator."""
    seen: list[object] = []

    def look(item: object) -> object:
        seen.append(item)
        return value if len(seen) == 2 else item

    return ops.map(look)


def mapping_async_to(value: Any) -> AnyOperator:
    """Hand out *value* for the second item, by a function that is awaited."""
    seen: list[object] = []

    async def look(item: object) -> object:
        seen.append(item)
        return value if len(seen) == 2 else item

    return map_async(look)


NAMES = {"mapping_to": "map", "mapping_async_to": "map_async"}


@pytest.mark.rows("O5", "S6")
@pytest.mark.parametrize("make", [saying, saying_async, mapping_to, mapping_async_to])
@pytest.mark.parametrize("phase", PHASES)
@virtual
async def test_nothing_where_an_item_is_due(make: Callable[[Any], AnyOperator], phase: str) -> None:
    """It is an error that names the operator, as one that it raised."""
    spans = Spans()
    pipeline = with_added(phase, make(None))
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), spans=spans, pipeline=pipeline)
    items: list[Any] = []
    with capture_logs() as events:
        try:
            await take_into(items, await adapter.generate(request()))
            error = items.pop().error
            cause = error.__cause__ or error
        except TypeError as raised:
            cause = raised
    assert isinstance(cause, TypeError)
    named = [*getattr(cause, "__notes__", ()), str(cause)]
    name = NAMES.get(make.__name__, make.__name__)
    assert any(name in text for text in named), named
    assert tokens_of(items) == [[1]]
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert event["operator"] == name
    assert spans.one().status.description == "Backend(Unknown)"


@pytest.mark.rows("O5", "S6")
@pytest.mark.parametrize("value", [5, "text", {"token_ids": [1]}], ids=["int", "text", "mapping"])
@pytest.mark.parametrize("make", [saying, saying_async, mapping_to, mapping_async_to])
@pytest.mark.parametrize("before", ["until_terminal", "trace_link", "annotate_errors"])
@virtual
async def test_a_value_of_the_wrong_type(
    make: Callable[[Any], AnyOperator], before: str, value: Any
) -> None:
    """Among the chunks it is an error that names the operator that made it, and no silent loss."""
    spans = Spans()
    pipeline = standard_pipeline.insert_before(before, make(value))
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), spans=spans, pipeline=pipeline)
    with capture_logs() as events:
        *items, last = await collect(await adapter.generate(request()))
    assert tokens_of(items) == [[1]]
    assert isinstance(last.error, Unknown)
    assert str(last.error.__cause__) == f"expected a chunk to hand out, got {type(value).__name__}"
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert event["operator"] == NAMES.get(make.__name__, make.__name__)
    assert spans.one().status.description == "Backend(Unknown)"


@operator
def passing(*, detached: bool = False) -> Stage[Any, Any]:
    """Pass every item on."""
    item = yield
    while True:
        item = yield detach(item) if detached else item


PASSING: list[AnyOperator] = [
    coalesce(),
    deadlines(idle_s=5),
    heartbeat(5, token(0)),
    map_async(itself),
    tap(id),
    ops.do_action(),
]


@pytest.mark.rows("O5", "S6")
@pytest.mark.parametrize(
    "make_result", [emit, detach, complete_with], ids=["emit", "detach", "complete_with"]
)
@virtual
async def test_a_value_of_the_wrong_type_however_it_is_handed_out(
    make_result: Callable[..., StageResult],
) -> None:
    """The operator is named, and none that the value did not come through."""
    operators = [passing(), saying(make_result("text")), passing(detached=True)]
    pipeline = standard_pipeline.insert_before("annotate_errors", *operators)
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), pipeline=pipeline)
    with capture_logs() as events:
        *items, last = await collect(await adapter.generate(request()))
    assert tokens_of(items) == [[1]]
    assert isinstance(last.error, Unknown)
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert event["operator"] == "saying"


@pytest.mark.rows("O5", "S6")
@pytest.mark.parametrize("make", [saying, saying_async, mapping_to, mapping_async_to])
@pytest.mark.parametrize("behind", PASSING, ids=name_of)
@virtual
async def test_a_value_of_the_wrong_type_that_others_pass_on(
    make: Callable[[Any], AnyOperator], behind: AnyOperator
) -> None:
    """An operator that pulls for itself, and hands the value out as it came, is not named."""
    pipeline = standard_pipeline.insert_before("annotate_errors", make({"a": 1}), behind)
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), pipeline=pipeline)
    with capture_logs() as events:
        *_, last = await collect(await adapter.generate(request()))
    assert isinstance(last.error, Unknown)
    (event,) = [event for event in events if event["log_level"] == "error"]
    name = NAMES.get(make.__name__, make.__name__)
    # Stock operators side by side are one chain.
    are_one = make is mapping_to and name_of(behind) == "do_action"
    assert event["operator"] == ("map, do_action" if are_one else name)


@pytest.mark.rows("O4")
@virtual
async def test_an_operator_that_fails_over_a_chunk_is_named_itself() -> None:
    """A TypeError over a good chunk is no fault of what is in front."""
    error = TypeError("broken")
    pipeline = standard_pipeline.insert_before("annotate_errors", passing(), raising(error))
    adapter = adapter_of(ScriptedEngine(token(1), token(2), stop()), pipeline=pipeline)
    with capture_logs() as events:
        *_, last = await collect(await adapter.generate(request()))
    assert last.error is not None
    assert last.error.__cause__ is error
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert event["operator"] == "raising"


@pytest.mark.rows("O5")
def test_a_body_of_the_wrong_kind_is_refused_when_it_is_made() -> None:
    """A coroutine function, a plain function and a class are no bodies, and the error says which is."""

    async def coroutine(item: Any) -> Any:
        return item

    def plain(item: Any) -> Any:
        return item

    for body in (coroutine, plain, StageResult):
        with pytest.raises(TypeError, match="expected a generator or an asynchronous generator"):
            operator(body)  # type: ignore[call-overload]


@pytest.mark.rows("O5")
@pytest.mark.parametrize(
    "make",
    [
        lambda: limit_tokens("3"),  # type: ignore[arg-type]
        lambda: limit_tokens(limit_=3),  # type: ignore[call-arg]
        lambda: stop_on([[]]),
        lambda: map_async(5),  # type: ignore[arg-type]
        lambda: annotate_errors(Annotated),  # type: ignore[call-arg]
        lambda: usage(-1, protocols.usage),
    ],
)
def test_a_wrong_argument_is_refused_when_it_is_made(make: Callable[[], object]) -> None:
    """The message names the operator."""
    with pytest.raises((TypeError, ValueError)) as raised:
        make()
    names = ("limit_tokens", "stop_on", "map_async", "annotate_errors", "usage")
    assert str(raised.value).startswith(names)


@pytest.mark.rows("O5", "S5")
@virtual
async def test_a_pipeline_that_is_made_wrongly_for_a_request_fails_its_set_up() -> None:
    """Where a function makes it, the error is the request's, and typed."""
    adapter = EngineAdapter(
        ScriptedEngine(stop()),
        pipeline=lambda _: Pipeline([], [emit], annotate=standard_pipeline.annotate),  # type: ignore[list-item]
    )
    with pytest.raises(InvalidArgument, match=r"items\[0\] is no operator"):
        await adapter.generate(request())


@operator
async def ending_with(source: FusedRun[Any], last: Any) -> AsyncGenerator[Any]:
    """End the stream at its second item, by what *last* says."""
    async for item in source:
        yield item
        break
    yield last


@pytest.mark.rows("S2", "S6", "S9")
@pytest.mark.parametrize("phase", PHASES)
@virtual
async def test_an_operator_that_pulls_may_end_the_stream_with_items(phase: str) -> None:
    """Its last items and its failure are handed out, and everything is released."""
    last = stop() if phase == "chunks" else Annotated(stop())
    engine = ScriptedEngine(token(1), token(2), stop())
    adapter = adapter_of(engine, pipeline=with_added(phase, ending_with(complete_with(last))))
    assert tokens_of(await collect(await adapter.generate(request()))) == [[1], []]
    assert engine.closed == 1
    held = token(7) if phase == "chunks" else Annotated(token(7))
    failing = ending_with(fail_after(Disconnected("gone"), held))
    engine = ScriptedEngine(token(1), token(2), stop())
    items: list[Any] = []
    try:
        stream = await adapter_of(engine, pipeline=with_added(phase, failing)).generate(request())
        await take_into(items, stream)
        error = items.pop().error
    except Disconnected as raised:
        error = raised
    assert tokens_of(items) == [[1], [7]]
    assert isinstance(error, Disconnected)
    assert engine.closed == 1
