"""Operators that end a stream by its tokens, or count them, in the standard pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from operators import Pipeline, limit_tokens, stop_on, usage
from operators.authoring import SCOPE, AnyOperator, Operator, Stage, TextTail, hold_back, operator
from rx_backend import protocols
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import CompletionUsage, FinishReason, LLMEngineOutput
from rx_backend.scope import RequestScope
from tests.rx_backend._engines import (
    ScriptedEngine,
    Step,
    adapter_of,
    collect,
    request,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans


def with_added(place: int, *added: AnyOperator) -> Pipeline:
    """Return the standard pipeline with operators before the one at *place*."""
    return standard_pipeline.insert_before(standard_pipeline.names[place], *added)


# In front of everything, and behind the operators that check chunks and end at the terminal.
PLACES = pytest.mark.parametrize("place", [0, 2], ids=["in-front", "behind-the-checks"])
EVERY_MODE = pytest.mark.parametrize("mode", list(DisaggregationMode))


@pytest.mark.rows("S2", "S4", "P3", "P6a")
@pytest.mark.parametrize(
    ("added", "tokens", "reason"),
    [
        pytest.param(limit_tokens(3), [[1], [2], [3]], FinishReason.LENGTH, id="limit"),
        pytest.param(
            limit_tokens(3, reason=FinishReason.STOP),
            [[1], [2], [3]],
            FinishReason.STOP,
            id="limit-with-a-reason",
        ),
        pytest.param(stop_on([[2, 3]]), [[1], []], FinishReason.STOP, id="stop"),
        pytest.param(stop_on(3, include=True), [[1], [2], [3]], FinishReason.STOP, id="included"),
    ],
)
@PLACES
@EVERY_MODE
@virtual
async def test_the_request_ends_like_any_other(
    added: Operator[LLMEngineOutput, LLMEngineOutput],
    tokens: list[list[int]],
    reason: FinishReason,
    place: int,
    mode: DisaggregationMode,
) -> None:
    """Reason, span and token count are those of a terminal of the engine's; nothing is aborted."""
    spans = Spans()
    engine = ScriptedEngine(token(1), token(2), LLMEngineOutput([3, 4]), token(5), stop())
    adapter = adapter_of(engine, mode, spans, pipeline=with_added(place, added))
    items = await collect(await adapter.generate(request()))
    assert tokens_of(items) == tokens
    assert items[-1].data is not None
    assert items[-1].data.finish_reason == reason
    assert (engine.pulls, engine.closed, engine.aborts) == (3, 1, [])
    span = spans.one()
    assert span.attributes is not None
    assert span.attributes["finish_reason"] == reason.span_value
    assert span.attributes["output_tokens"] == sum(map(len, tokens))
    assert span.status.status_code is StatusCode.UNSET


@PLACES
@virtual
async def test_the_usage_of_a_request_cut_short(place: int) -> None:
    """Behind operators that end the stream it says what the client was given."""
    costs: list[CompletionUsage] = []
    engine = ScriptedEngine(*map(token, range(1, 9)), stop())
    counting = usage(3, protocols.usage, on_end=costs.append)
    adapter = adapter_of(engine, pipeline=with_added(place, stop_on(9), limit_tokens(4), counting))
    items = await collect(await adapter.generate(request()))
    assert items[-1].data is not None
    assert items[-1].data.completion_usage == protocols.usage(3, 4)
    assert costs == [protocols.usage(3, 4)]


@pytest.mark.rows("P5", "S3", "S6", "S7")
@PLACES
@pytest.mark.parametrize("end", ["dropped", "cancelled", "failed"])
@virtual
async def test_the_usage_of_a_request_without_an_ordinary_end(place: int, end: str) -> None:
    """Dropped, cancelled, failed: what was generated so far is told once."""
    costs: list[CompletionUsage] = []
    ending: dict[str, list[Step]] = {
        "dropped": [60],
        "cancelled": [RequestContext.stop_generating, LLMEngineOutput.cancelled()],
        "failed": [Disconnected("gone")],
    }
    engine = ScriptedEngine(token(1), LLMEngineOutput([2, 3]), *ending[end])
    counting = usage(3, protocols.usage, on_end=costs.append)
    adapter = adapter_of(engine, pipeline=with_added(place, counting))
    stream = await adapter.generate(request())
    await anext(stream)
    await anext(stream)
    if end == "dropped":
        await stream.aclose()
    else:
        await collect(stream)
    assert costs == [protocols.usage(3, 3)]
    assert engine.closed == 1


@virtual
async def test_a_request_own_limits() -> None:
    """A pipeline reads them from the request; what a request doesn't say limits nothing."""

    def pipeline(scope: RequestScope) -> Pipeline:
        conditions = scope.request.stop_conditions
        return with_added(
            0, stop_on(conditions.stop_token_ids_hidden), limit_tokens(conditions.max_tokens)
        )

    adapter = adapter_of(ScriptedEngine(*map(token, range(1, 5)), stop()), pipeline=pipeline)
    given = {
        (2, None): [[1], [2]],
        (None, 3): [[1], [2], []],
        (None, None): [[1], [2], [3], [4], []],
    }
    for (limit, stop_id), expected in given.items():
        asked = request()
        asked.stop_conditions.max_tokens = limit
        asked.stop_conditions.stop_token_ids_hidden = None if stop_id is None else [stop_id]
        assert tokens_of(await collect(await adapter.generate(asked))) == expected


@pytest.mark.rows("E3")
@virtual
async def test_text_that_ends_one_of_several_answers() -> None:
    """`hold_back` has from the scope how many there are: the stream goes on with the other one."""

    @operator(takes="chunks")
    def stop_at(stop: str, *, scope: RequestScope = SCOPE) -> Stage[LLMEngineOutput, Any]:
        def step(tail: TextTail) -> Iterator[LLMEngineOutput]:
            place = tail.text.find(stop)
            yield from tail.rest() if place < 0 else tail.end(place)

        return (yield from hold_back(step, scope=scope))

    said = [(0, "a"), (1, "b"), (0, "c"), (1, "a")]
    engine = ScriptedEngine(*[LLMEngineOutput(text=text, index=index) for index, text in said])
    asked = request()
    asked.sampling_options.n = 2
    items = await collect(await adapter_of(engine).with_operators(stop_at("a")).generate(asked))
    chunks = [item.data for item in items if item.data]
    assert [(chunk.index, chunk.text, str(chunk.finish_reason)) for chunk in chunks] == [
        (0, None, "stop"),
        (1, "b", "None"),
        (1, None, "stop"),
    ]


@pytest.mark.rows("S5")
@virtual
async def test_a_bad_limit_fails_the_request_before_the_engine_is_called() -> None:
    """The caller has a typed error that names the option."""
    engine = ScriptedEngine(token(1))
    adapter = adapter_of(engine, pipeline=lambda _: Pipeline([limit_tokens(0)]))
    with pytest.raises(InvalidArgument, match=r"limit_tokens: limit: expected .* at least 1 token"):
        await adapter.generate(request())
    assert engine.calls == 0
