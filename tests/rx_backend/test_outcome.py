"""The recorded outcome is that of what the consumer was handed: span, metrics and log agree."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import reactivex
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from opentelemetry.trace import StatusCode
from reactivex import operators as ops

from operators import Pipeline, TokenTimes, coalesce, limit_tokens, map_async, on_outcome, stop_on
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
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.errors import Disconnected, StreamIncomplete, as_backend_error
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import (
    Annotated,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    to_builtins,
    usage,
)
from rx_backend.testing import run_virtual
from tests.engines import (
    Item,
    ScriptedEngine,
    Step,
    adapter_of,
    before,
    collect,
    request,
    serve,
    settle,
    stop,
    token,
    virtual,
)
from tests.examples import examples
from tests.logs import capture_logs
from tests.meters import Meters
from tests.spans import Spans, rows_of

PHASES = ["annotate_errors", "items"]


def chunk_in(item: Item | LLMEngineOutput) -> LLMEngineOutput | None:
    """Return the chunk in an item, or the chunk itself."""
    return item.data if isinstance(item, Annotated) else item


def with_chunk(item: Item | LLMEngineOutput, **changes: Any) -> Any:
    """Return a copy of an item whose chunk has *changes*."""
    chunk = chunk_in(item)
    assert chunk is not None
    changed = replace(chunk, **changes)
    return Annotated(changed) if isinstance(item, Annotated) else changed


def is_terminal(item: Any) -> bool:
    chunk = chunk_in(item)
    return chunk is not None and chunk.finish_reason is not None


ENDINGS = ["request ended", "request failed", "request dropped"]


# Operators that end, cut or change a stream, for chunks and for items.


@operator
def take_some(count: int) -> Stage[Any, Any]:
    """Hand out *count* items and end the stream."""
    item = yield
    for _ in range(count - 1):
        item = yield item
    return item


@operator
async def take_pulled(
    source: FusedRun[Any], count: int, says_so: bool = False
) -> AsyncGenerator[Any]:
    """Hand out *count* items and end the stream, as an operator that pulls its source."""
    for number in range(count):
        item = await anext(source)
        yield complete_with(item) if says_so and number == count - 1 else item


@operator
def saying(reason: FinishReason) -> Stage[Any, Any]:
    """Give every terminal another reason."""
    item = yield
    while True:
        item = yield with_chunk(item, finish_reason=reason) if is_terminal(item) else item


@operator
def without_terminals() -> Stage[Any, Any]:
    """Keep the terminal back."""
    item = yield
    while True:
        item = yield emit() if is_terminal(item) else item


@operator
def doubled() -> Stage[Any, Any]:
    """Hand out every token twice, in one chunk."""
    item = yield
    while True:
        chunk = chunk_in(item)
        item = yield item if chunk is None else with_chunk(item, token_ids=chunk.token_ids * 2)


@operator
def split() -> Stage[Any, Any]:
    """Hand out every chunk in two: its tokens, and the rest."""
    item = yield
    while True:
        if chunk_in(item) is None:
            item = yield item
        else:
            tokens = with_chunk(item, finish_reason=None)
            item = yield emit(tokens, with_chunk(item, token_ids=[]), tokens)


@operator
def without_tokens() -> Stage[Any, Any]:
    """Keep all tokens back."""
    item = yield
    while True:
        item = yield item if chunk_in(item) is None else with_chunk(item, token_ids=[])


@operator
def failing_at(place: int) -> Stage[Any, Any]:
    """Raise in place of an item."""
    item = yield
    for _ in range(place):
        item = yield item
    raise LookupError("a bug")


@operator
def forgiving() -> Stage[Any, Any]:
    """Make a good end of an error item."""
    item = yield
    while True:
        failed = isinstance(item, Annotated) and item.error is not None
        item = yield Annotated(stop()) if failed else item


@operator
def announced() -> Stage[Any, Any]:
    """Hand out a comment before what ends the stream."""
    item = yield
    while True:
        is_end = is_terminal(item) or item.error is not None
        item = yield emit(Annotated(comment=["the end"]), item) if is_end else item


@operator
def goodbye() -> Stage[Any, Any]:
    """Hand out a comment behind what ends the stream."""
    try:
        item = yield
        while True:
            item = yield item
    except Completed:
        return Annotated[LLMEngineOutput](comment=["goodbye"])


async def slowly(item: Any) -> Any:
    await asyncio.sleep(0.5)
    return item


OPERATORS: dict[str, AnyOperator] = {
    "take_some(1)": take_some(1),
    "take_some(2)": take_some(2),
    "ops.take(2)": ops.take(2),
    "ops.skip(1)": ops.skip(1),
    "saying length": saying(FinishReason.LENGTH),
    "saying error": saying(FinishReason.error("no")),
    "without_terminals": without_terminals(),
    "doubled": doubled(),
    "split": split(),
    "without_tokens": without_tokens(),
    "failing_at(0)": failing_at(0),
    "failing_at(2)": failing_at(2),
    "forgiving": forgiving(),
    "map_async": map_async(slowly),
    "coalesce": coalesce(),
    "ops.delay": ops.delay(0.5),
    "a function": lambda source: source,
}


ONLY_CHUNKS: dict[str, AnyOperator] = {
    "limit_tokens(2)": limit_tokens(2),
    "stop_on(7)": stop_on(7),
}
ONLY_ITEMS: dict[str, AnyOperator] = {"announced": announced(), "goodbye": goodbye()}


# Where an operator may stand: before each of the standard ones, and behind all of them.
CHUNK_PLACES = standard_pipeline.names


added_operators = st.lists(
    st.tuples(st.sampled_from(CHUNK_PLACES), st.sampled_from([*OPERATORS, *ONLY_CHUNKS]))
    | st.tuples(st.just("items"), st.sampled_from([*OPERATORS, *ONLY_ITEMS])),
    max_size=3,
)


def pipeline_of(added: Sequence[tuple[str, str]]) -> Pipeline:
    pipeline = standard_pipeline
    for place, name in added:
        made = (OPERATORS | ONLY_CHUNKS | ONLY_ITEMS)[name]
        if place == "items":
            items = [*pipeline.items, made]
            pipeline = Pipeline(pipeline.chunks, items, annotate=pipeline.annotate)
        else:
            pipeline = pipeline.insert_before(place, made)
    return pipeline


@dataclass
class Handed:
    """What a consumer was handed."""

    items: list[Any] = field(default_factory=list[Any])
    error: Exception | None = None
    has_left: bool = False

    @property
    def tokens(self) -> int:
        chunks = [chunk for chunk in map(chunk_in, self.items) if chunk is not None]
        return sum(len(chunk.token_ids) for chunk in chunks)

    def told(self) -> tuple[str | None, str | None, str, str | None]:
        """Return what is to be recorded: on the span two, then for metrics and log."""
        for item in self.items:
            if item.error is not None:
                return None, item.error.span_kind, "failed", item.error.kind
            if is_terminal(item):
                reason = item.data.finish_reason
                error_type = "ErrorTerminal" if reason.is_error else None
                return reason.span_value, None, reason.kind, error_type
        if self.error is not None:
            typed = as_backend_error(self.error)
            return None, typed.span_kind, "failed", typed.kind
        assert self.has_left, "the stream ended, and nothing was handed out that says how"
        return "Dropped", None, "dropped", "Dropped"


async def consume(adapter: EngineAdapter, takes: int | None) -> Handed:
    """Take so many items and leave; all of them for None."""
    handed = Handed()
    stream = await adapter.generate(request(), RequestContext("r1"))
    try:
        while takes is None or len(handed.items) < takes:
            handed.items.append(await anext(stream))
    except StopAsyncIteration:
        return handed
    except Exception as error:
        handed.error = error
        return handed
    handed.has_left = True
    await stream.aclose()
    return handed


async def check(script: Sequence[Step], pipeline: Pipeline, takes: int | None) -> Handed:
    """Compare what is recorded of a request with what its consumer was handed."""
    spans, meters = Spans(), Meters()
    adapter = EngineAdapter(
        ScriptedEngine(*script),
        "agg",
        pipeline,
        tracer=spans.tracer,
        meter_provider=meters.provider,
        clock=asyncio.get_running_loop().time,
        record=True,
    )
    with capture_logs() as events:
        handed = await consume(adapter, takes)
        await asyncio.sleep(1)
    reason, error_kind, how, error_type = handed.told()
    attributes = rows_of(spans.one())
    assert attributes.get("finish_reason") == reason
    assert attributes.get("error_kind") == error_kind
    assert attributes["output_tokens"] == handed.tokens
    assert (spans.one().status.status_code is StatusCode.ERROR) is (error_type is not None)
    ends = meters.counts("rx_backend.requests", "rx_backend.finish_reason", "error.type")
    assert ends == {(how, error_type): 1}
    counted = meters.counts("rx_backend.tokens", "gen_ai.token.type").get(("output",), 0)
    assert counted == handed.tokens
    (event,) = [event for event in events if event["event"] in ENDINGS]
    assert (event["finish_reason"], event.get("error_type")) == (how, error_type)
    assert event["output_tokens"] == handed.tokens
    return handed


ENDS: dict[str, list[Step]] = {
    "stop": [stop()],
    "length with a token": [LLMEngineOutput.length().with_tokens([9])],
    "error terminal": [LLMEngineOutput.error("boom")],
    "error": [Disconnected("gone")],
    "nothing": [],
}


@pytest.mark.rows("O2", "S9", "P3", "P4", "P5", "P6", "P6a")
@examples(200)
@given(
    sizes=st.lists(st.integers(0, 3), max_size=4),
    end=st.sampled_from([*ENDS]),
    added=added_operators,
    takes=st.none() | st.integers(0, 5),
)
@example([1], "stop", [("items", "announced"), ("items", "split")], 2)
@example([1], "error", [("items", "announced")], 2)
@example([1, 1], "stop", [("items", "goodbye")], 3)
@example([1, 1], "stop", [("items", "goodbye")], None)
@example([0, 0], "stop", [("validate_chunks", "take_some(2)"), ("items", "failing_at(2)")], 2)
def test_span_metrics_and_log_agree_on_the_outcome(
    sizes: list[int], end: str, added: list[tuple[str, str]], takes: int | None
) -> None:
    """Wherever operators end, cut or change the stream, and wherever its consumer leaves."""
    script = [LLMEngineOutput(list(range(6, 6 + size))) for size in sizes]
    run_virtual(check([*script, *ENDS[end]], pipeline_of(added), takes))


CUTS: dict[str, tuple[AnyOperator, str]] = {
    "ours": (take_some(2), "the operator take_some ended"),
    "stock": (ops.take(2), "the operator take ended"),
    "pulled": (take_pulled(2), "the operator take_pulled ended"),
    "pulled-known": (take_pulled(2, says_so=True), "the operator take_pulled ended"),
    "kept-back": (without_terminals(), "without_terminals"),
}


@pytest.mark.rows("O2", "S9")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("place", PHASES)
@virtual
async def test_an_operator_that_ends_without_a_terminal_is_named(place: str, cut: str) -> None:
    """The consumer gets one error item that names it, and everything that is recorded says so."""
    for ahead, behind in product(([], [map_async(slowly)]), ([], [doubled()])):
        made, message = CUTS[cut]
        script = [token(1), token(2), stop()] if cut == "kept-back" else map(token, range(5))
        handed = await check([*script], before(place, *ahead, made, *behind), None)
        *items, last = handed.items
        assert len(items) == 2
        assert isinstance(last.error, StreamIncomplete)
        assert message in last.error.message


@pytest.mark.rows("O2", "H1")
@pytest.mark.parametrize(
    ("end", "reason"),
    [(stop(), "Stop"), (LLMEngineOutput.error("boom"), 'Error("boom")'), (60, "Dropped")],
    ids=["stop", "error", "drop"],
)
@virtual
async def test_items_in_their_json_form_are_read(end: Step, reason: str) -> None:
    """An operator at the end may make JSON of the items."""
    spans = Spans()
    adapter = EngineAdapter(
        ScriptedEngine(token(1), LLMEngineOutput([2, 3]), end), tracer=spans.tracer, record=True
    ).with_operators(ops.map(to_builtins))
    stream: Any = await adapter.generate(request())
    for _ in range(2 if end == 60 else 3):
        await anext(stream)
    await stream.aclose()
    attributes = rows_of(spans.one())
    assert (attributes["finish_reason"], attributes["output_tokens"]) == (reason, 3)


@pytest.mark.rows("O2", "F1")
@pytest.mark.parametrize("place", PHASES)
@virtual
async def test_tokens_of_an_engine_without_ids(place: str) -> None:
    """They are those of the terminal's usage, also with later operators."""
    terminal = replace(stop(), completion_usage=usage(3, 5))
    engine = ScriptedEngine(LLMEngineOutput(text="a b"), LLMEngineOutput(text="c"), terminal)
    served = await serve(engine, pipeline=before(place, ops.do_action()))
    assert served.row["output_tokens"] == 5


@pytest.mark.rows("O2", "P6a")
@virtual
async def test_on_outcome_gets_the_same_outcome_at_any_position() -> None:
    """A pipeline has one outcome, with its observer before or after the operator that cuts."""
    for place in [*standard_pipeline.names, "items"]:
        seen: list[Any] = []
        watching = on_outcome(seen.append)
        pipeline = standard_pipeline.with_operators(take_some(1))
        if place == "items":
            pipeline = pipeline.with_operators(watching)
        else:
            pipeline = pipeline.insert_before(place, watching)
        await check([token(1), token(2), stop()], pipeline, None)
        (outcome,) = seen
        assert isinstance(outcome.error, StreamIncomplete)
        assert outcome.output_tokens == 1


# Several answers.


def several(answers: int) -> PreprocessedRequest:
    return PreprocessedRequest(
        model="mock", token_ids=[1, 2, 3], sampling_options=SamplingOptions(n=answers)
    )


REASONS = [
    FinishReason.STOP,
    FinishReason.LENGTH,
    FinishReason.CANCELLED,
    FinishReason.CONTENT_FILTER,
    FinishReason.EOS,
    FinishReason.error("boom"),
]


answer_chunks = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.integers(0, 99), max_size=2),
        st.none() | st.sampled_from(REASONS),
        st.booleans(),
    ),
    max_size=8,
)


@pytest.mark.rows("P11", "E3", "S2", "S8")
@examples(150)
@given(
    answers=st.integers(1, 4),
    chunks=answer_chunks,
    last=st.lists(st.sampled_from(REASONS), min_size=4, max_size=4),
    with_items=st.booleans(),
    coalesced=st.booleans(),
)
@virtual
async def test_several_answers(
    answers: int,
    chunks: list[tuple[int, list[int], FinishReason | None, bool]],
    last: list[FinishReason],
    with_items: bool,
    coalesced: bool,
) -> None:
    """Each has a terminal and nothing behind it; the worst of their reasons is the request's."""
    chunks = [(index % answers, made, reason, absent) for index, made, reason, absent in chunks]
    chunks += [(index, [], last[index], False) for index in range(answers)]
    script: list[Step] = []
    tokens: dict[int, list[int]] = {index: [] for index in range(answers)}
    reasons: dict[int, FinishReason] = {}
    for index, made, reason, is_absent in chunks:
        wire = None if index == 0 and is_absent else index
        script.append(LLMEngineOutput(list(made), finish_reason=reason, index=wire))
        if index not in reasons and len(reasons) < answers:
            tokens[index] += made
            if reason is not None:
                reasons[index] = reason
    spans = Spans()
    pipeline = standard_pipeline
    if coalesced:
        pipeline = pipeline.with_operators(coalesce())
    if with_items:
        pipeline = pipeline.with_operators(ops.do_action())
    adapter = EngineAdapter(
        engine := ScriptedEngine(*script), pipeline=pipeline, tracer=spans.tracer, record=True
    )
    stream = await adapter.generate(several(answers))
    got: dict[int, list[int]] = {index: [] for index in range(answers)}
    ended: dict[int, FinishReason] = {}
    async for item in stream:
        assert item.data is not None
        index = item.data.index or 0
        assert index not in ended, "something follows an answer's terminal"
        got[index] += item.data.token_ids
        if item.data.finish_reason is not None:
            ended[index] = item.data.finish_reason
        await asyncio.sleep(0)
    assert (got, ended) == (tokens, reasons)
    assert engine.closed == 1
    attributes = spans.one().attributes or {}
    in_order = [reasons[index] for index in range(answers)]
    assert attributes["gen_ai.response.finish_reasons"] == tuple(r.kind for r in in_order)
    errors = [reason for reason in in_order if reason.is_error]
    stopped = [reason for reason in in_order if reason == FinishReason.CANCELLED]
    assert attributes["finish_reason"] == [*errors, *stopped, *in_order][0].span_value
    assert attributes["output_tokens"] == sum(map(len, tokens.values()))
    assert (spans.one().status.status_code is StatusCode.ERROR) is bool(errors)


@pytest.mark.rows("E3", "S9", "P11", "P5", "P6a")
@virtual
async def test_the_last_answer_s_terminal_completes_the_request() -> None:
    """One terminal of two is no good end; a raised error ends them all, and leaving before drops."""
    first = LLMEngineOutput(finish_reason=FinishReason.STOP, index=0)
    last = LLMEngineOutput(finish_reason=FinishReason.STOP, index=1)
    rests: list[tuple[list[Step], int | None, str]] = [
        ([], None, "Backend(StreamIncomplete)"),
        ([RuntimeError("boom")], None, "Backend(Unknown)"),
        ([last], 1, "Dropped"),
        ([last], 2, "Dropped"),
        ([last], 3, "Stop"),
    ]
    for (rest, take, ending), place in product(rests, PHASES):
        engine = ScriptedEngine(first, LLMEngineOutput([4], index=1), *rest)
        pipeline = before(place, ops.do_action())
        served = await serve(engine, pipeline=pipeline, take=take, asked=several(2))
        assert len(served.items) == (take or 3)
        assert ending in {served.row.get("finish_reason"), served.row.get("error_kind")}


# Odd ends: the client, the span, the metrics and the log see the same.


def metered(engine: LLMEngine, spans: Spans, meters: Meters) -> EngineAdapter:
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
@pytest.mark.parametrize("place", ["trace_link", "items"])
@pytest.mark.parametrize("taken", [1, 2])
@virtual
async def test_a_stream_collected_with_undelivered_items(
    spans: Spans, how: str, place: str, taken: int
) -> None:
    """The source is closed by then; the drop is recorded all the same."""
    meters = Meters()
    adapter = EngineAdapter(
        ScriptedEngine(token(1), token(2), stop()),
        pipeline=before(place, together(how)),
        tracer=spans.tracer,
        meter_provider=meters.provider,
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


@pytest.mark.rows("O2")
@pytest.mark.parametrize("place", ["trace_link", "items"])
@pytest.mark.parametrize("taken", [0, 1])
@virtual
async def test_peeked_items_are_not_counted_as_delivered(
    spans: Spans, place: str, taken: int
) -> None:
    """A consumer that looks at the beginning and leaves was handed what it took after that."""
    engine = ScriptedEngine(token(1), token(2), stop())
    adapter = EngineAdapter(engine, pipeline=before(place, passing()), tracer=spans.tracer)
    stream = await adapter.generate(request())
    await stream.peek_first()
    for _ in range(taken):
        await anext(stream)
    await stream.aclose()
    assert rows_of(spans.one())["finish_reason"] == "Dropped"
    assert rows_of(spans.one())["output_tokens"] == taken


@operator
def passing() -> Stage[Any, Any]:
    item = yield
    while True:
        item = yield item


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
async def test_a_client_that_disconnects_with_the_terminal(
    spans: Spans, failing: Callable[[], AnyOperator], leaves: bool
) -> None:
    """It was handed the terminal; one that reads on gets the failure after it, and that counts."""
    adapter = metered(ScriptedEngine(token(1), stop()), spans, Meters())
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


@operator(takes="items")
def copying() -> Stage[Any, Any]:
    item = yield
    while True:
        item = yield emit(item, item)


@pytest.mark.rows("O2", "P6a")
@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (stop(), {"finish_reason": "Stop"}),
        (Disconnected("gone"), {"error_kind": "Backend(Disconnected)"}),
    ],
)
@pytest.mark.parametrize("taken", [2, 3, 4])
@virtual
async def test_a_client_that_disconnects_before_a_copy_of_the_end(
    spans: Spans, last: Step, expected: dict[str, str], taken: int
) -> None:
    """The first of an operator's copies completes the request; without one it was dropped."""
    adapter = metered(ScriptedEngine(token(1), last), spans, Meters()).with_operators(copying())
    async with await adapter.generate(request()) as stream:
        for _ in range(taken):
            await anext(stream)
    row = rows_of(spans.one())
    ended = expected if taken > 2 else {"finish_reason": "Dropped"}
    assert {name: row[name] for name in ended} == ended
    assert row["output_tokens"] == 2


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
    adapter = metered(
        ScriptedEngine(0.1, token(1), 0.1, token(2), 0.1, token(3), stop()), spans, Meters()
    )
    stream = await adapter.with_operators(quota()).generate(request())
    subscriptions.append(stream.subscribe(got.append))
    await asyncio.sleep(5.0)
    assert len(got) == 1
    assert rows_of(spans.one())["output_tokens"] == 1


@pytest.mark.rows("S9", "E3")
@pytest.mark.parametrize("with_items", [False, True])
@pytest.mark.parametrize("ended", [0, 1, 2])
@virtual
async def test_answers_without_a_terminal_are_counted(ended: int, *, with_items: bool) -> None:
    """An engine with fewer answers than requested is distinguished from one that breaks off."""
    script = [LLMEngineOutput([n], index=n, finish_reason=FinishReason.STOP) for n in range(ended)]
    adapter = adapter_of(ScriptedEngine(*script))
    if with_items:
        adapter = adapter.with_operators(ops.do_action())
    *_, last = await collect(await adapter.generate(several(3)))
    assert isinstance(last.error, StreamIncomplete)
    missing = f"for {3 - ended} of 3 answers"
    assert last.error.message == f"the engine's stream ended without a terminal {missing}"


@pytest.mark.rows("S9", "E3", "O2")
@pytest.mark.parametrize("place", PHASES)
@virtual
async def test_answers_that_an_operator_leaves_without_a_terminal_are_counted(place: str) -> None:
    """It ends the stream with one answer's terminal, while another is open."""

    def is_open(item: Any) -> bool:
        chunk: Any = getattr(item, "data", item)
        return chunk.finish_reason is None

    script = [token(1), LLMEngineOutput([2], index=1, finish_reason=FinishReason.STOP), token(3)]
    cut: AnyOperator = ops.take_while(is_open, inclusive=True)
    adapter = EngineAdapter(ScriptedEngine(*script), pipeline=before(place, cut))
    error = (await collect(await adapter.generate(several(2))))[-1].error
    assert isinstance(error, StreamIncomplete)
    assert error.message == (
        "the operator take_while ended the stream without a terminal for 1 of 2 answers"
    )


@pytest.mark.rows("S9", "O2")
@virtual
async def test_an_operator_that_swallows_the_error_item(spans: Spans) -> None:
    """The client learns of it, and the engine's failure is the cause."""
    adapter = metered(ScriptedEngine(token(1), Disconnected("gone")), spans, Meters())

    def is_no_failure(item: Any) -> bool:
        return item.error is None

    adapter = adapter.with_operators(ops.filter(is_no_failure))
    items: list[Any] = await collect(await adapter.generate(request()))
    error = items[-1].error
    assert isinstance(error, StreamIncomplete)
    assert "after annotate_errors held back the error item" in str(error)
    assert isinstance(error.__cause__, Disconnected)


@pytest.mark.rows("P6a", "O2")
@pytest.mark.parametrize("leaves", [True, False])
@virtual
async def test_an_error_item_without_a_typed_error(spans: Spans, leaves: bool) -> None:
    """It is one all the same: nothing follows it, and a client that leaves then has received it."""

    def blocked(item: Annotated[LLMEngineOutput]) -> Annotated[LLMEngineOutput]:
        if item.data is not None and item.data.finish_reason is not None:
            return Annotated(event="error", comment=["blocked by policy"])
        return item

    adapter = metered(ScriptedEngine(token(1), stop()), spans, Meters())
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
    """A stream may outlive its request."""
    span = spans.tracer.start_span("engine.generate")
    span.end()
    add_event(span, TokenTimes(), "late")
    assert caplog.records == []
