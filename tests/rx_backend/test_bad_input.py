"""Mistakes of engines, callers and pipelines: each a typed error that names what was wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from operators import NotAnOperator, Pipeline, until_terminal
from operators.authoring import Operator
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import (
    BackendError,
    EngineShutdown,
    InvalidArgument,
    ResponseTimeout,
    Unknown,
)
from rx_backend.failover import FailoverEngine
from rx_backend.hedging import HedgedEngine
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, SamplingOptions
from rx_backend.resumable import TooManyStreams
from rx_backend.scope import RequestScope
from tests.engines import (
    Give,
    ScriptedEngine,
    Step,
    adapter_of,
    collect,
    request,
    stop,
    token,
    virtual,
)
from tests.spans import Spans

A_LIST: list[Operator[Any, Any]] = [until_terminal()]


def chunk(**fields: object) -> LLMEngineOutput:
    """Make a chunk with fields of any type, as an engine without a type checker makes them."""
    made = LLMEngineOutput()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("pipeline", [5, A_LIST, "standard"])
@pytest.mark.rows("S5", "O5")
def test_a_non_pipeline_is_rejected(pipeline: object) -> None:
    """A list of operators is not a pipeline: it does not say which phase they are in."""
    with pytest.raises(InvalidArgument, match=r"pipeline: expected a Pipeline, .*, got") as raised:
        EngineAdapter(ScriptedEngine(), pipeline=cast("Pipeline", pipeline))
    assert raised.value.message.endswith(type(pipeline).__name__)


@pytest.mark.parametrize("made", [ScriptedEngine, Pipeline, dict])
@pytest.mark.rows("S5", "O5")
def test_a_class_is_rejected_as_a_pipeline_factory(made: type[Any]) -> None:
    """It could be called with a scope, but every request would fail."""
    with pytest.raises(InvalidArgument, match=f"pipeline: .*, got the class {made.__name__}$"):
        EngineAdapter(ScriptedEngine(), pipeline=cast("Any", made))


def hedged(second: Any) -> HedgedEngine:
    return HedgedEngine(ScriptedEngine(), second, after_s=1)


@pytest.mark.rows("E2", "S5")
@pytest.mark.parametrize("value", [None, 5, "mine:Engine", ScriptedEngine, Mapping])
@pytest.mark.parametrize(
    "make", [EngineAdapter, FailoverEngine, hedged], ids=lambda one: one.__name__
)
def test_a_non_engine_is_rejected(make: Callable[[Any], object], value: object) -> None:
    """When the whole is made, not by its first request; a class without its call's () is none."""
    with pytest.raises((InvalidArgument, TypeError), match=r"engines?: expected .*, got"):
        make(value)


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("clock", "now"),
        ("clock", 7),
        ("record", "yes"),
        ("record", 1),
        ("record", []),
        ("tracer", "otel"),
        ("tracer", 0),
        ("meter_provider", "otel"),
        ("meter_provider", 0),
    ],
)
def test_an_invalid_option_is_rejected(option: str, given: object) -> None:
    """The error comes when the adapter is made, not with the first request."""
    options: dict[str, Any] = {option: given}
    with pytest.raises(
        InvalidArgument, match=rf"{option}: expected .*, got {re.escape(repr(given))}"
    ):
        EngineAdapter(ScriptedEngine(), **options)


@pytest.mark.parametrize("option", ["metadata", "trace_headers"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(
            (given, "expected a mapping from names to strings")
            for given in ("traceparent", 7, [("traceparent", "00-1-2-01")])
        ),
        ({"traceparent": "00-1-2-01", 5: "x"}, "expected names that are strings, got 5"),
    ],
)
def test_metadata_must_be_a_mapping(option: str, given: object, message: str) -> None:
    """The error names the argument."""
    options: dict[str, Any] = {option: given}
    with pytest.raises(InvalidArgument, match=f"{option}: {message}"):
        RequestContext(**options)


@pytest.mark.rows("S5", "P7")
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *(
            ("request", value, f"expected a PreprocessedRequest, got {type(value).__name__}")
            for value in (None, 5, "text", {"token_ids": [1]}, token(1))
        ),
        ("token_ids", None, "token_ids"),
        ("token_ids", 5, "token_ids"),
        (
            "migration_link",
            {"trace_id": "a" * 32, "span_id": "b" * 16},
            "migration_link: expected TraceLink, got dict",
        ),
        *(
            ("sampling_options", SamplingOptions(n=value), r"sampling_options\.n: expected int")
            for value in cast("Any", ("2", 2.5, -1, True, [1]))
        ),
        *(("model", value, "model: expected str") for value in (None, 5, ["a"])),
        ("context", "r1", "context"),
        (
            "context",
            RequestContext(metadata=cast("Any", {"traceparent": 5})),
            "context: the trace headers",
        ),
    ],
)
@virtual
async def test_a_request_of_another_type_is_rejected(field: str, value: Any, message: str) -> None:
    """What the adapter reads itself is checked: the field is named, the engine not called."""
    asked, context = request(), RequestContext()
    if field == "context":
        context = value
    elif field == "request":
        asked = value
    else:
        setattr(asked, field, value)
    engine, spans = ScriptedEngine(stop()), Spans()
    with pytest.raises(InvalidArgument, match=message):
        await adapter_of(engine, spans=spans).generate(asked, context)
    assert engine.calls == 0
    assert spans.open == ()


@pytest.mark.rows("E2", "S6", "P4")
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Give(None), "expected an object, got NoneType"),
        (Give(object()), "got object"),
        ({"token_ids": [1, -1]}, r"token_ids\[1\]"),
        ({"token_ids": [1], "finish_reason": 5}, "finish_reason"),
        (chunk(token_ids=[1, 2, -3]), r"token_ids\[2\]: .*got -3"),
        (chunk(token_ids=[1 << 32]), r"token_ids\[0\]: .*got 4294967296"),
        (chunk(token_ids=[True]), r"token_ids\[0\]: .*got True"),
        (chunk(token_ids=None), "token_ids"),
        (chunk(finish_reason=5), "finish_reason"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("place", [0, 1])
@virtual
async def test_a_malformed_chunk_is_one_error_item(step: Step, message: str, place: int) -> None:
    """It names what was wrong and ends the stream; the engine is closed, the span records it."""
    spans = Spans()
    engine = ScriptedEngine(*[token(7)] * place, step, token(8), stop())
    *chunks, error = await collect(await adapter_of(engine, spans=spans).generate(request()))
    assert len(chunks) == place
    assert isinstance(error.error, InvalidArgument), error
    with pytest.raises(InvalidArgument, match=message):
        raise error.error
    assert (engine.pulls, engine.closed) == (place + 1, 1)
    assert spans.one().status.description == "Backend(InvalidArgument)"


def raising(error: Exception) -> Callable[[RequestScope], Any]:
    def make(_: RequestScope) -> Any:
        raise error

    return make


def giving(value: object) -> Callable[[RequestScope], Any]:
    return lambda _: value


def adding(value: Any) -> Callable[[RequestScope], Any]:
    return lambda _: standard_pipeline.with_operators(value)


@pytest.mark.rows("S5", "S6", "P4", "P7")
@pytest.mark.parametrize(
    ("pipeline", "kind", "message"),
    [
        (raising(TooManyStreams("no room for acme")), TooManyStreams, "no room for acme"),
        (raising(EngineShutdown("no room")), EngineShutdown, "no room"),
        (raising(TimeoutError("no answer")), ResponseTimeout, "no answer"),
        (raising(ValueError("stop: not empty")), InvalidArgument, "stop: not empty"),
        (raising(LookupError("no such operator")), Unknown, "no such operator"),
        (giving(None), Unknown, "expected the function to return a Pipeline, got NoneType"),
        (giving(5), Unknown, "expected the function to return a Pipeline, got int"),
        (giving("abc"), Unknown, "expected the function to return a Pipeline, got str"),
        (giving(A_LIST), Unknown, "expected the function to return a Pipeline, got list"),
        (adding(5), Unknown, r"items\[0\] is not an operator: .*got int 5"),
    ],
    ids=["own", "typed", "timeout", "value", "lookup", "none", "int", "text", "list", "adds-int"],
)
@virtual
async def test_a_pipeline_error_is_found_before_the_engine_is_called(
    pipeline: Callable[[RequestScope], Pipeline], kind: type[BackendError], message: str
) -> None:
    """It fails like `generate`: a fault of the service is not reported as the client's."""
    spans = Spans()
    engine = ScriptedEngine(token(1), stop())
    with pytest.raises(BackendError, match=message) as raised:
        await adapter_of(engine, spans=spans, pipeline=pipeline).generate(request())
    assert type(raised.value) is kind
    assert [note for note in noted(raised.value) if "raised by the pipeline" in note]
    assert (engine.calls, engine.pulls) == (0, 0)
    assert spans.one().status.description == "setup_failed"


def noted(error: BaseException) -> list[str]:
    """Return the notes on an error and on its cause."""
    both = (error, error.__cause__)
    return [note for one in both for note in getattr(one, "__notes__", ())]


@pytest.mark.rows("O5")
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (5, "got int 5"),
        (None, "got NoneType"),
        (A_LIST, "got list"),
        (giving(5), "returned int"),
        (until_terminal, "until_terminal"),
        (int, ""),
    ],
    ids=["int", "none", "list", "function-to-int", "uncalled-factory", "type"],
)
@pytest.mark.parametrize("where", ["adapter", "function", "pipeline"])
@virtual
async def test_a_non_operator_is_rejected_when_it_is_added(
    value: Any, got: str, where: str
) -> None:
    """The message names the place and what is there, before there is a request."""
    message = rf"items\[0\] is not an operator: .*{got}"
    if where == "pipeline":
        with pytest.raises(NotAnOperator, match=message):
            standard_pipeline.with_operators(value)
        return
    pipeline = standard_pipeline if where == "adapter" else giving(standard_pipeline)
    adapter = adapter_of(ScriptedEngine(), pipeline=pipeline)
    match = message if where == "adapter" else rf"\[0\] is not an operator: .*{got}"
    with pytest.raises(InvalidArgument, match=match):
        adapter.with_operators(value)
