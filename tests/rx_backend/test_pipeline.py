"""Pipelines: adding operators of one's own or stock ones, anywhere, and leaving ours out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from reactivex import Observable
from reactivex import operators as ops

from operators import Pipeline, annotate_errors, until_terminal, validate_contract
from operators.authoring import SCOPE, AnyOperator, Operator, Stage, emit, operator
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import Disconnected, InvalidArgument, StreamIncomplete, Unknown
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import Annotated, LLMEngineOutput
from rx_backend.scope import RequestScope
from tests.meters import Meters
from tests.rx_backend._engines import (
    Item,
    ScriptedEngine,
    Step,
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
from tests.spans import Spans, rows_of

RxOperator = Callable[[Observable[Any]], Observable[Any]]


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


@operator
def without_handshakes() -> Stage[LLMEngineOutput, LLMEngineOutput]:
    """Swallow chunks that say nothing."""
    chunk = yield
    while True:
        chunk = yield chunk if chunk.token_ids or chunk.finish_reason else emit()


@operator
def failing_at(token_id: int, error: Exception) -> Stage[Any, Any]:
    """Raise at one token."""
    item = yield
    while True:
        if getattr(item, "data", item).token_ids == [token_id]:
            raise error
        item = yield item


@operator
def failing_setup() -> Stage[Any, Any]:
    """Raise before there is a first item."""
    if now() >= 0:
        raise LookupError("no table")
    yield


def double(item: Item) -> Item:
    chunk_of(item).token_ids *= 2
    return item


def before(neighbour: str, *added: AnyOperator) -> Pipeline:
    """Return the standard pipeline with operators before one of its own, or behind all of them."""
    if neighbour == THE_END:
        standard = standard_pipeline
        return Pipeline(standard.chunks, [*standard.items, *added], annotate=standard.annotate)
    return standard_pipeline.insert_before(neighbour, *added)


def as_it_is(source: Observable[Any]) -> Observable[Any]:
    return source


def itself(item: object) -> object:
    return item


# One that answers at once, one that answers later, and one that only looks like an operator.
STOCK = [
    pytest.param(ops.map(itself), id="map"),
    pytest.param(ops.delay(0.5), id="delay"),
    pytest.param(as_it_is, id="identity"),
]
THE_END = "the end"
PLACES = [*standard_pipeline.names, THE_END]


@pytest.mark.rows("S1", "S7")
@virtual
async def test_one_line_adds_an_operator() -> None:
    """An operator at the end of the list sees every item as the consumer does, and the end."""
    seen: list[object] = []
    engine = ScriptedEngine(token(1), stop())
    adapter = EngineAdapter(engine, pipeline=standard_pipeline.with_operators(noting(seen)))
    items = await collect(await adapter.generate(request()))
    assert seen == [*items, "end"]


@pytest.mark.rows("S1")
@virtual
async def test_an_adapter_can_be_extended() -> None:
    """``with_operators`` makes an adapter of the same engine and role; the first is not changed."""
    seen: list[object] = []
    plain = adapter_of(ScriptedEngine(token(1), stop()), "decode")
    extended = plain.with_operators(noting(seen)).with_operators(noting(seen))
    assert (extended.engine, extended.mode) == (plain.engine, plain.mode)
    await collect(await plain.generate(request()))
    assert seen == []
    await collect(await extended.generate(request()))
    assert len(seen) == 2 * 3


@pytest.mark.rows("S1", "P8")
@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("per_request", [True, False])
@pytest.mark.parametrize("times", [0, 1, 2])
@virtual
async def test_an_extended_adapter_measures_as_before(
    record: bool, per_request: bool, times: int
) -> None:
    """``with_operators`` keeps tracer, meters, clock and *record*, whatever the pipeline is."""
    spans, meters = Spans(), Meters()
    reads = count()
    adapter = EngineAdapter(
        ScriptedEngine(token(1), stop()),
        pipeline=(lambda _: standard_pipeline) if per_request else standard_pipeline,
        tracer=spans.tracer,
        meter_provider=meters.provider,
        clock=lambda: float(next(reads)),
        record=record,
    )
    for _ in range(times):
        adapter = adapter.with_operators(noting([]))
    await collect(await adapter.generate(request()))
    attributes = rows_of(spans.one())
    assert ("ttft_ms" in attributes) is record
    if record:
        assert attributes["ttft_ms"] >= 1000.0
    assert (next(reads) > 0) is record
    assert meters.counts("rx_backend.requests") == {(): 1}


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


@pytest.mark.rows("S1", "S2", "P3", "P7")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stock", STOCK)
@virtual
async def test_a_stock_operator_can_stand_anywhere(place: str, stock: RxOperator) -> None:
    """Before, between and after ours it changes neither the items nor the span."""
    spans = Spans()
    engine = ScriptedEngine(1, token(1), 1, token(2), 1, LLMEngineOutput.length(), token(3))
    adapter = adapter_of(engine, spans=spans, pipeline=before(place, stock))
    items = await collect(await adapter.generate(request()))
    assert tokens_of(items) == [[1], [2], []]
    assert engine.closed == 1
    attributes = rows_of(spans.one())
    assert attributes is not None
    assert (attributes["finish_reason"], attributes["output_tokens"]) == ("Length", 2)
    assert attributes["cancelled"] is False
    assert spans.one().status.status_code is StatusCode.UNSET


@pytest.mark.rows("S6", "P4", "S7")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("end", [Disconnected("gone"), "drop"], ids=["error", "drop"])
@virtual
async def test_ends_pass_a_stock_operator(place: str, stock: RxOperator, end: Step | str) -> None:
    """With one anywhere an error is still one item, and a drop still releases everything."""
    spans = Spans()
    script: list[Step] = [token(1), 60] if isinstance(end, str) else [token(1), 1, end]
    engine = ScriptedEngine(*script)
    adapter = adapter_of(engine, spans=spans, pipeline=before(place, stock))
    stream = await adapter.generate(request())
    await anext(stream)
    if end == "drop":
        await stream.aclose()
        expected = "stream dropped before terminal"
    else:
        (item,) = await collect(stream)
        assert item.comment == ["gone"]
        expected = "Backend(Disconnected)"
    assert engine.closed == 1
    assert spans.one().status.description == expected


@pytest.mark.rows("S4")
@pytest.mark.parametrize("place", PLACES)
@virtual
async def test_a_stock_operator_pulls_no_further_than_asked(place: str) -> None:
    """With one that answers at once the engine is still pulled once for each pull."""
    engine = ScriptedEngine(*map(token, range(5)), stop())
    adapter = adapter_of(engine, spans=Spans(), pipeline=before(place, ops.do_action()))
    stream = await adapter.generate(request())
    for pulled in range(1, 7):
        await anext(stream)
        await asyncio.sleep(1)
        assert engine.pulls == pulled
    assert await collect(stream) == []


@pytest.mark.rows("S1", "S2", "S7")
@virtual
async def test_stock_operators_shape_a_stream() -> None:
    """Ours and stock ones mix freely, several of each, also where items get fewer."""
    spans = Spans()
    engine = ScriptedEngine(LLMEngineOutput(), token(1), LLMEngineOutput(), token(2), stop())
    adapter = adapter_of(
        engine,
        spans=spans,
        pipeline=standard_pipeline.insert_before(
            "validate_chunks", ops.filter(bool), without_handshakes()
        ).with_operators(ops.map(double), ops.take(2)),
    )
    *items, incomplete = await collect(await adapter.generate(request()))
    assert tokens_of(items) == [[1, 1], [2, 2]]
    assert isinstance(incomplete.error, StreamIncomplete)
    assert "take" in incomplete.error.message
    assert engine.closed == 1
    assert spans.one().status.description == "Backend(StreamIncomplete)"


@pytest.mark.rows("S8", "E3")
@virtual
async def test_the_validating_operator_reports_a_broken_contract() -> None:
    """Ahead of the standard list, told not to end at the terminal, it fails what follows one."""
    engine = ScriptedEngine(token(1), stop(), token(2))

    strict = Pipeline(
        [validate_contract(error=InvalidArgument)],
        annotate=annotate_errors(Annotated, Annotated.from_error),
    )
    stream = await adapter_of(engine, pipeline=strict).generate(request())
    first, terminal, report = await collect(stream)
    assert tokens_of([first, terminal]) == [[1], []]
    assert report.comment == ["item after the terminal: token_ids=[2], finish_reason=None"]


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


@pytest.mark.rows("S6", "P4", "S7")
@pytest.mark.parametrize("place", standard_pipeline.names)
@virtual
async def test_an_operator_that_raises_is_a_failure_in_mid_stream(place: str) -> None:
    """Ahead of the span's operator it is recorded like the engine's; the consumer has one item."""
    spans = Spans()
    failing = failing_at(2, ValueError("bad luck"))
    adapter = adapter_of(
        engine := ScriptedEngine(token(1), token(2), stop()),
        spans=spans,
        pipeline=before(place, failing),
    )
    first, error = await collect(await adapter.generate(request()))
    assert tokens_of([first]) == [[1]]
    assert isinstance(error.error, InvalidArgument)
    assert engine.closed == 1
    assert spans.one().status.description == "Backend(InvalidArgument)"


@pytest.mark.rows("S7", "O2", "O4")
@virtual
async def test_an_operator_that_raises_behind_the_last_of_ours_reaches_the_consumer() -> None:
    """It comes as it is, since no operator is left to make an item of it, and it is on the span."""
    spans = Spans()
    engine = ScriptedEngine(token(1), token(2), stop())
    adapter = adapter_of(engine, spans=spans).with_operators(failing_at(2, LookupError("bug")))
    stream = await adapter.generate(request())
    await anext(stream)
    with pytest.raises(LookupError, match="bug"):
        await anext(stream)
    assert await collect(stream) == []
    assert engine.closed == 1
    assert spans.one().status.description == "Backend(Unknown)"


@pytest.mark.rows("S5", "P4", "S7")
@pytest.mark.parametrize("place", PLACES)
@virtual
async def test_an_operator_that_fails_to_start_fails_the_setup(place: str) -> None:
    """Wherever it stands the caller has a typed error, the engine's stream and the span an end."""
    spans = Spans()
    seen: list[object] = []
    adapter = adapter_of(
        engine := ScriptedEngine(token(1), stop()),
        spans=spans,
        pipeline=before(place, noting(seen), failing_setup()),
    )
    with pytest.raises(Unknown, match="no table") as raised:
        await adapter.generate(request())
    assert isinstance(raised.value.__cause__, LookupError)
    assert seen == ["end"]
    assert engine.pulls == 0
    assert spans.one().status.description == "setup_failed"


@pytest.mark.rows("A2", "A6")
@pytest.mark.parametrize("mode", list(DisaggregationMode))
@pytest.mark.parametrize("place", [PLACES[0], THE_END])
@virtual
async def test_an_operator_may_stop_its_request(mode: DisaggregationMode, place: str) -> None:
    """A budget, say, that stops the request aborts the engine once, and the stream goes on."""

    @operator
    def budget(*, scope: RequestScope = SCOPE) -> Stage[Any, Any]:
        item = yield
        while True:
            item = yield item
            scope.stop()

    pipeline = before(place, budget())
    engine = ScriptedEngine(token(1), 1, token(2), 1, token(3), 1, stop())
    stream = await adapter_of(engine, mode, Spans(), pipeline=pipeline).generate(request())
    assert tokens_of(await collect(stream)) == [[1], [2], [3], []]
    assert engine.aborts == [1]


@pytest.mark.rows("S7")
@virtual
async def test_an_operator_may_drop_its_stream() -> None:
    """Closing the stream from within takes effect after the step, and releases everything."""
    spans = Spans()
    seen: list[object] = []
    streams: list[Any] = []
    dropping: Operator[Any, Any] = dropping_at_second(streams)
    engine = ScriptedEngine(token(1), token(2), 1, token(3))
    adapter = adapter_of(engine, spans=spans).with_operators(dropping, noting(seen))
    streams.append(await adapter.generate(request()))
    items = await collect(streams[0])
    assert tokens_of(items) == [[1], [2]]
    assert seen[-1] == "end"
    assert engine.closed == 1
    assert spans.one().status.description == "stream dropped before terminal"


@operator
def dropping_at_second(streams: list[Any]) -> Stage[Any, Any]:
    """Close the stream while it handles its second item."""
    item = yield
    item = yield item
    streams[0].close()
    while True:
        item = yield item
