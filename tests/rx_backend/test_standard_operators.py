"""Operators of the library in an adapter's pipeline: aborts, spans and ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import SpanContext, StatusCode

from operators import (
    Drains,
    FirstTokenTimeout,
    Pipeline,
    abort_gate,
    coalesce,
    deadlines,
    drain_until_first_token,
    enforce_cancellation,
    heartbeat,
    limit_tokens,
    stop_on,
    usage,
)
from operators.authoring import SCOPE, AnyOperator, Stage, TextTail, hold_back, operator
from rx_backend import protocols
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.errors import BackendError, Disconnected, InvalidArgument, ResponseTimeout, Unknown
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import (
    Annotated,
    CompletionUsage,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    to_builtins,
)
from rx_backend.scope import RequestScope
from rx_backend.testing import run_virtual
from tests.engines import (
    DROPPED,
    ENTRY,
    PASSES,
    FunctionEngine,
    Item,
    ScriptedEngine,
    Step,
    Stream,
    adapter_of,
    after,
    before,
    chunk_of,
    collect,
    now,
    request,
    serve,
    settle,
    status_of,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.engines.leaving import (
    Leave,
    aclose,
    aclose_while_another_task_pulls,
    cancel_in_a_pull,
    dispose_of_a_subscription,
    lose_the_last_reference,
    run_out_of_time_in_timeout,
)
from tests.leaks import LeakWatch
from tests.logs import capture_logs
from tests.spans import Spans, rows_of

EVERY_MODE = pytest.mark.parametrize("mode", list(DisaggregationMode))
HANDSHAKE = LLMEngineOutput(engine_data="handshake")
PING: Annotated[LLMEngineOutput] = Annotated(comment=["ping"])
STOP = "stop_generating"


def ahead(*operators: AnyOperator) -> Pipeline:
    """Return the standard pipeline with operators in front."""
    return before("validate_chunks", *operators)


# Coalescing, with a consumer that lags.


def tokens_each(interval_s: float, *token_ids: int) -> list[Step]:
    return [step for token_id in token_ids for step in (interval_s, token(token_id))]


async def slowly(stream: Stream, busy_s: float) -> list[Item]:
    items: list[Item] = []
    async for item in stream:
        items.append(item)
        await asyncio.sleep(busy_s)
    return items


EVERY_PLACE = pytest.mark.parametrize(
    "pipeline",
    [before("annotate_errors", coalesce()), standard_pipeline.with_operators(coalesce())],
    ids=["last-of-chunks", "where-it-is-added"],
)


@pytest.mark.rows("S1", "T3", "P3", "P7", "O2")
@EVERY_PLACE
@virtual
async def test_coalesced_the_span_ends_when_the_terminal_is_handed_out(
    pipeline: Pipeline, spans: Spans
) -> None:
    """The engine is closed as soon as it has ended; the span waits for what the client reads."""
    engine = ScriptedEngine(*tokens_each(0.01, *range(9)), stop())
    stream = await adapter_of(engine, "agg", spans, pipeline=pipeline).generate(request())
    first = chunk_of(await anext(stream))
    assert (first.token_ids, first.worker_trace_link is None) == ([0], False)
    await asyncio.sleep(5.0)
    assert engine.closed == 1
    assert spans.finished == ()
    assert tokens_of(await slowly(stream, 5.0)) == [list(range(1, 9)), []]
    row = rows_of(spans.one())
    assert (row["output_tokens"], row["finish_reason"]) == (9, "Stop")


@pytest.mark.rows("F3")
@virtual
async def test_coalesced_gaps_are_those_of_the_engine(spans: Spans) -> None:
    """Among the items it leaves the gaps between tokens to the engine, however the client lags."""
    engine = ScriptedEngine(*tokens_each(0.01, *range(9)), stop())
    adapter = adapter_of(engine, "agg", spans).with_operators(coalesce())
    await slowly(await adapter.generate(request()), 5.0)
    assert rows_of(spans.one())["itl_max_ms"] == 10.0


@pytest.mark.rows("A2", "A3", "A6", "S3")
@EVERY_PLACE
@virtual
async def test_a_stop_between_pulls(pipeline: Pipeline) -> None:
    """The engine is aborted at once, and once; its own terminal comes out after what waits."""
    halt = asyncio.Event()
    engine = ScriptedEngine(
        *tokens_each(1.0, *range(4)),
        halt,
        LLMEngineOutput.cancelled(),
        abort=[lambda _: halt.set()],
    )
    context = RequestContext()
    stream = await adapter_of(engine, pipeline=pipeline).generate(request(), context)
    await anext(stream)
    asyncio.get_running_loop().call_later(9.5, context.stop_generating)
    await asyncio.sleep(60.0)
    assert engine.aborts == [10.5]
    context.kill()
    items = await slowly(stream, 1.0)
    assert tokens_of(items) == [[1, 2, 3], []]
    assert chunk_of(items[-1]).finish_reason == LLMEngineOutput.cancelled().finish_reason
    assert engine.aborts == [10.5]


@pytest.mark.rows("A4")
@EVERY_PLACE
@virtual
async def test_the_gate_opens_when_the_engine_yields_the_first_token(pipeline: Pipeline) -> None:
    """A deferred abort does not wait for a client that is busy with the handshake."""
    engine = ScriptedEngine(LLMEngineOutput(), 3.0, *tokens_each(1.0, 1, 2), 100.0, stop())
    context = RequestContext()
    adapter = adapter_of(engine, DisaggregationMode.DECODE, pipeline=pipeline)
    stream = await adapter.generate(request(), context)
    await anext(stream)
    context.stop_generating()
    await asyncio.sleep(50.0)
    assert engine.aborts == [4.0]
    assert chunk_of(await anext(stream)).token_ids == [1]
    assert chunk_of(await anext(stream)).token_ids == [2]
    await stream.aclose()
    assert now() == 50.0


# Draining decode streams that are dropped before their first token.


def draining(drains: Drains) -> Pipeline:
    """Return the standard pipeline with a drain where the documentation says."""
    return standard_pipeline.insert_after("deferred_abort", drain_until_first_token(drains=drains))


def decoding(engine: object, drains: Drains, spans: Spans | None = None) -> EngineAdapter:
    return adapter_of(engine, "decode", spans, pipeline=draining(drains))


IN_A_PULL: list[Leave] = [
    *(cancel_in_a_pull, aclose_while_another_task_pulls, run_out_of_time_in_timeout),
    dispose_of_a_subscription,
]
UNPULLED: list[Leave] = [aclose, lose_the_last_reference]


@pytest.mark.rows("A2", "A4", "P5", "P7", "P9", "S7")
@pytest.mark.parametrize("drop", [*IN_A_PULL, *UNPULLED])
@pytest.mark.parametrize("traced", [True, False])
@virtual
async def test_a_dropped_stream_is_aborted_by_its_first_token(drop: Leave, traced: bool) -> None:
    """The caller and the span are rid of it at once; the engine is aborted, once, and closed."""
    spans = Spans()

    class Tracing(ScriptedEngine):
        async def _stream(self, context: RequestContext) -> AsyncGenerator[Any]:
            with spans.tracer.start_as_current_span("work"):
                async for chunk in super()._stream(context):
                    yield chunk

    async with Drains(grace_s=4) as drains:
        engine = Tracing(3, HANDSHAKE, 3, token(1), 1, token(2), 60, stop())
        owner = [await decoding(engine, drains, spans if traced else None).generate(request())]
        if drop in UNPULLED:
            await asyncio.sleep(1)
        await drop(owner)
        owner.clear()
        await settle()
        assert (now(), engine.closes, drains.running) == (1, [], 1)
        if traced:
            assert rows_of(spans.one())["finish_reason"] == "Dropped"
            assert status_of(spans.one()) == DROPPED
        await drains.wait()
        first_s = 7 if drop in UNPULLED else 6
        assert engine.aborts == [first_s]
        assert (engine.closes, engine.closed) == ([first_s + 4], 1)
        assert asyncio.all_tasks() == {asyncio.current_task()}
    if traced:
        assert spans.one("work").parent == spans.one("engine.generate").get_span_context()


# The steps of the engine, when a stop is signalled, when it is aborted and when it closes. The
# stream is dropped at 1 s, the drain gives up at 30 s, and the engine has 4 s to end.
DRAINED: dict[str, tuple[list[Step], float | None, list[float], list[float]]] = {
    "stopped before": ([6, token(1), 60, stop()], 0.5, [6], [10]),
    "stopped in the drain": ([6, token(1), 60, stop()], 1.5, [6], [10]),
    "stopped late": ([6, token(1), 60, stop()], 6.5, [6], [10]),
    "noticed": ([5, RequestContext.notify_first_token, 60, token(1)], None, [5], [9]),
    "ends": ([5, stop()], None, [], [5]),
    "ends with a token": ([5, LLMEngineOutput.length().with_tokens([1])], None, [], [5]),
    "fails": ([5, Disconnected("gone")], None, [], [5]),
    "malformed": ([5, {"token_ids": [-1]}], None, [], [5]),
    "no terminal": ([5], None, [], [5]),
    "watches for the stop": (
        [5, token(1), lambda context: context.stopped(), LLMEngineOutput.cancelled()],
        None,
        [5],
        [5],
    ),
    "too slow": ([60, token(1)], None, [], [35]),
}


@pytest.mark.rows("A1", "A2", "A4", "A5", "C4", "E4")
@pytest.mark.parametrize("case", DRAINED)
@pytest.mark.parametrize("traced", [True, False])
@virtual
async def test_how_a_drain_ends(case: str, traced: bool) -> None:
    """Aborted once with the first token; an engine that ends by itself, or is too slow, is not."""
    script, stopped_s, aborts, closes = DRAINED[case]
    async with Drains(timeout_s=30, grace_s=4) as drains:
        context = RequestContext()
        engine = ScriptedEngine(*script)
        adapter = decoding(engine, drains, Spans() if traced else None)
        owner = [await adapter.generate(request(), context)]
        if stopped_s is not None:
            after(stopped_s, context.kill)
        await cancel_in_a_pull(owner)
    assert (engine.aborts, engine.closes) == (aborts, closes)
    assert context.is_stopped is (bool(aborts) or case == "too slow")
    assert drains.timed_out == (case == "too slow")


class Transfers(LLMEngine):
    """
    Moves a request's KV blocks from a peer before its first token, as decode engines do.

    Attributes:
        held: Requests whose blocks the peer holds.
        running: Requests that the engine works on.
        aborts: How often each request was aborted.
    """

    def __init__(self, transfer_s: float, token_s: float, is_eager: bool) -> None:
        self._transfer_s = transfer_s
        self._token_s = token_s
        self._is_eager = is_eager
        self.held: set[str] = set()
        self.running: set[str] = set()
        self.aborts: dict[str, int] = {}

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="transfers")

    async def abort(self, context: RequestContext) -> None:
        assert context.id not in self.held, "the abort came in the transfer"
        self.aborts[context.id] = self.aborts.get(context.id, 0) + 1
        self.running.discard(context.id)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.held.add(context.id)
        self.running.add(context.id)
        if self._is_eager:
            yield LLMEngineOutput()
        # A transfer that is broken off leaves the blocks with the peer.
        await asyncio.sleep(self._transfer_s)
        self.held.remove(context.id)
        for number in range(3):
            await asyncio.sleep(self._token_s)
            yield token(number)
            if context.id not in self.running:
                yield LLMEngineOutput.cancelled()
                return
        self.running.discard(context.id)
        yield stop()


@pytest.mark.rows("A2", "A4", "A5", "S7")
@given(
    transfer_s=st.integers(0, 4),
    token_s=st.integers(0, 2),
    is_eager=st.booleans(),
    drops=st.lists(
        st.tuples(st.sampled_from([*IN_A_PULL, *UNPULLED, None]), st.integers(-1, 3)), max_size=6
    ),
)
@virtual
async def test_no_transfer_is_orphaned(
    transfer_s: float, token_s: float, is_eager: bool, drops: Sequence[tuple[Leave | None, int]]
) -> None:
    """Whenever consumers leave and whenever they stop, the peer gets all its blocks back."""
    engine = Transfers(transfer_s, token_s, is_eager)
    async with Drains() as drains:
        adapter = decoding(engine, drains)

        async def consume(number: int, drop: Leave | None, stopped_s: int) -> None:
            context = RequestContext(str(number))
            stream = await adapter.generate(request(), context)
            if stopped_s >= 0:
                asyncio.get_running_loop().call_later(stopped_s, context.stop_generating)
            if drop is None:
                await collect(stream)
            else:
                owner = [stream]
                del stream
                await drop(owner)

        async with asyncio.TaskGroup() as group:
            for number, (drop, stopped_s) in enumerate(drops):
                group.create_task(consume(number, drop, stopped_s))
    assert engine.held == set()
    assert set(engine.aborts.values()) <= {1}
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.rows("P5", "P7", "O2")
@pytest.mark.parametrize("behind", ["deferred_abort", "record_span"])
@virtual
async def test_the_span_has_the_consumers_outcome_at_any_position_of_the_drain(behind: str) -> None:
    """It ends with the drop, and says so: the consumer was handed nothing of what came later."""
    recorded = Spans()
    async with Drains(grace_s=4) as drains:
        pipeline = standard_pipeline.insert_after(behind, drain_until_first_token(drains=drains))
        engine = ScriptedEngine(5, token(1), 1, stop())
        adapter = adapter_of(engine, "decode", recorded, pipeline=pipeline)
        await cancel_in_a_pull([await adapter.generate(request())])
        assert status_of(recorded.one()) == DROPPED
    assert (recorded.one().attributes or {})["finish_reason"] == "Dropped"
    assert engine.closed == 1


@pytest.mark.rows("A4")
@pytest.mark.parametrize("label", [None, "mine"])
@virtual
async def test_a_drain_prefers_its_own_arguments(
    label: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """To the request's stop, its notice, and its id in the log."""
    aborts: list[float] = []

    def abort() -> None:
        aborts.append(now())
        raise LookupError("no such request")

    notified: reactivex.Subject[None] = reactivex.Subject()
    asyncio.get_running_loop().call_later(3.0, notified.on_next, None)
    async with Drains(grace_s=4) as drains:
        drain = drain_until_first_token(abort, drains=drains, notified=notified, label=label)
        pipeline = standard_pipeline.insert_after("deferred_abort", drain)
        engine = ScriptedEngine(2, RequestContext.notify_first_token, 60, token(1), stop())
        adapter = adapter_of(engine, "decode", pipeline=pipeline)
        await cancel_in_a_pull([await adapter.generate(request(), RequestContext("r-17"))])
    assert (aborts, engine.aborts, engine.closes) == ([3.0], [], [7.0])
    (failed,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert failed.getMessage() == f"the abort of the dropped stream {label or 'r-17'} failed"


# Peeking: a failure before the first token reaches the caller.


@pytest.mark.rows("S5", "S6", "P4", "P6")
@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        pytest.param(Disconnected("gone"), Disconnected, "gone", id="typed"),
        pytest.param(ValueError("too long"), InvalidArgument, "too long", id="untyped"),
        pytest.param({"token_ids": [-1]}, InvalidArgument, "token_ids", id="malformed"),
        pytest.param(LLMEngineOutput.error("boom"), Unknown, "boom", id="error-terminal"),
    ],
)
@pytest.mark.parametrize("before", [[], [HANDSHAKE, 1, HANDSHAKE, 1]])
@virtual
async def test_an_early_failure_is_raised_typed(
    failure: Step, kind: type[BackendError], message: str, before: list[Step]
) -> None:
    """Everything is released by then, and the span says what it would have said."""
    spans = Spans()
    engine = ScriptedEngine(*before, failure, closing=[2])
    stream = await adapter_of(engine, spans=spans).generate(request())
    with pytest.raises(kind, match=message):
        await stream.peek_first()
    assert (engine.closed, engine.aborts) == (1, [])
    assert status_of(spans.one())[0].name == "ERROR"
    assert await collect(stream) == []


@virtual
async def test_a_pipeline_that_annotates_nothing_fails_typed_too() -> None:
    """What the pull raises is typed as an item's error is, with the original as its cause."""
    engine = ScriptedEngine(HANDSHAKE, KeyError("slot"))
    stream = await adapter_of(engine, pipeline=Pipeline([])).generate(request())
    with pytest.raises(Unknown) as caught:
        await stream.peek_first()
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.rows("S1", "S4", "S7", "P3")
@pytest.mark.parametrize("peeks", [1, 2])
@virtual
async def test_a_working_stream_is_unchanged(peeks: int) -> None:
    """It hands out all items, pulls no further, and can be subscribed to; peeking twice is harmless."""
    spans, items = Spans(), list[Item]()
    engine = ScriptedEngine(1, HANDSHAKE, 1, token(1), 1, token(2), 1, stop())
    context = RequestContext()
    async with await adapter_of(engine, spans=spans).generate(request(), context) as stream:
        for _ in range(peeks):
            assert await stream.peek_first() is stream
        assert (now(), engine.pulls, stream.context) == (2, 2, context)
        stream.subscribe(items.append)
        await asyncio.sleep(10)
    assert tokens_of(items) == [[], [1], [2], []]
    row = rows_of(spans.one())
    assert (row["ttft_ms"], row["finish_reason"]) == (2000.0, "Stop")


@pytest.mark.rows("P6a")
@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (LLMEngineOutput.length().with_tokens([1]), "Length"),
        (LLMEngineOutput.cancelled(), "Cancelled"),
    ],
)
@pytest.mark.parametrize("leaves", [True, False])
@virtual
async def test_a_request_of_one_chunk_is_complete(
    chunk: LLMEngineOutput, reason: str, leaves: bool
) -> None:
    """The terminal has come, so the caller that then leaves has not dropped it; it is no failure."""
    spans = Spans()
    stream = await adapter_of(ScriptedEngine(chunk), spans=spans).generate(request())
    await stream.peek_first()
    if leaves:
        await stream.aclose()
    assert len(await collect(stream)) == (not leaves)
    assert rows_of(spans.one())["finish_reason"] == reason


@pytest.mark.rows("A4", "S7")
@virtual
async def test_cancelling_a_peek_drains() -> None:
    """A caller that waits no longer is a consumer that is gone before the first token."""
    async with Drains(grace_s=1) as drains:
        drain: AnyOperator = drain_until_first_token(drains=drains)
        pipeline = standard_pipeline.insert_after("deferred_abort", drain)
        engine = ScriptedEngine(HANDSHAKE, 5, token(1), 60)
        stream = await adapter_of(engine, "decode", pipeline=pipeline).generate(request())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.peek_first(), 1)
    assert (engine.aborts, engine.closes) == ([5], [6])


# Deadlines.


with_deadlines = deadlines(first_token_s=5, idle_s=3, total_s=60)


enforced = enforce_cancellation(3, LLMEngineOutput.cancelled)


@pytest.mark.rows("S6", "P4", "A2", "A3", "A5")
@pytest.mark.parametrize(("mode", "aborts"), [("agg", [5]), ("prefill", [5]), ("decode", [])])
@virtual
async def test_a_first_token_timeout(mode: str, aborts: list[float]) -> None:
    """An error item says which deadline; the engine is aborted as after any stop."""
    spans = Spans()
    engine = ScriptedEngine(HANDSHAKE, 100, stop())
    adapter = adapter_of(engine, mode, spans, pipeline=ahead(with_deadlines))
    *before, item = await collect(await adapter.generate(request()))
    await asyncio.sleep(100)
    assert tokens_of(before) == [[]]
    assert item.comment == ["no first token within 5 s (first_token_s), tokens so far: 0"]
    assert isinstance(item.error, ResponseTimeout)
    assert isinstance(item.error.__cause__, FirstTokenTimeout)
    assert (engine.aborts, engine.closes, engine.closed) == (aborts, [5], 1)
    span = spans.one("engine.generate")
    assert status_of(span) == (StatusCode.ERROR, "Backend(ResponseTimeout)")
    assert rows_of(span) == ENTRY | {
        "disagg_role": mode,
        "error_kind": "Backend(ResponseTimeout)",
        "output_tokens": 0,
        "setup_ms": 0.0,
        "cancelled": True,
    }


@pytest.mark.rows("A2", "S7")
@virtual
async def test_the_total_deadline_passes_between_pulls() -> None:
    """Abort and close come then; the client gets the error when it comes back."""
    engine = ScriptedEngine(token(1), token(2), stop())
    stream = await adapter_of(engine, pipeline=ahead(with_deadlines)).generate(request())
    await anext(stream)
    await asyncio.sleep(100)
    assert (engine.aborts, engine.closes) == ([60], [60])
    (item,) = await collect(stream)
    assert item.comment == ["no end within 60 s (total_s), tokens so far: 1"]


@pytest.mark.rows("A4")
@virtual
async def test_an_expired_deadline_can_be_drained() -> None:
    """After a drain operator, a decode engine continues to its first token, and is aborted then."""
    spans = Spans()
    engine = ScriptedEngine(20, token(1), 100, stop())
    async with Drains() as drains:
        pipeline = standard_pipeline.insert_after(
            "deferred_abort", drain_until_first_token(drains=drains), with_deadlines
        )
        adapter = adapter_of(engine, "decode", spans, pipeline=pipeline)
        (item,) = await collect(await adapter.generate(request()))
        assert asyncio.get_running_loop().time() == 5
        assert isinstance(item.error, ResponseTimeout)
        assert status_of(spans.one())[1] == "Backend(ResponseTimeout)"
        await asyncio.sleep(100)
    assert engine.aborts == [20]
    assert engine.closed == 1


# Enforced cancellation.


@pytest.mark.rows("E4", "A2", "P3", "P6a", "S3")
@pytest.mark.parametrize("steps", [[100], [1, token(2)] * 50], ids=["silent", "deaf"])
@pytest.mark.parametrize(("signal", "cut"), [(STOP, 5), ("kill", 2)])
@EVERY_MODE
@virtual
async def test_an_engine_that_ignores_a_stop(
    mode: DisaggregationMode, signal: str, cut: float, steps: list[Step]
) -> None:
    """It is aborted at once and cut off after the grace; the stream ends as one that was stopped."""
    engine = ScriptedEngine(token(1), *steps, stop())
    served = await serve(engine, mode, pipeline=ahead(enforced), signals=[(2, signal)])
    assert (served.finish_reason, served.tokens[-1]) == ("cancelled", [])
    assert (engine.aborts, engine.closes) == ([2], [cut])
    assert served.status == (StatusCode.UNSET, None)
    assert (served.row["finish_reason"], served.row["cancelled"]) == ("Cancelled", True)
    assert served.row["output_tokens"] == sum(map(len, served.tokens))


@pytest.mark.rows("A4")
@virtual
async def test_decode_can_be_spared_until_its_first_token() -> None:
    """With a gate for the stop, the grace begins when the first token has come too."""

    def patient(scope: RequestScope) -> Pipeline:
        context = scope.context
        both = abort_gate(context.stopped(), context.first_token(), reactivex.never())
        return ahead(enforce_cancellation(3, LLMEngineOutput.cancelled, stop=both))

    engine = ScriptedEngine(HANDSHAKE, 20, token(1), 100, stop())
    context = RequestContext()
    adapter = adapter_of(engine, "decode", pipeline=patient)
    stream = await adapter.generate(request(), context)
    after(1, context.stop_generating)
    assert tokens_of(await collect(stream)) == [[], [1], []]
    assert (engine.aborts, engine.closes) == ([20], [23])


# Heartbeats.


@pytest.mark.rows("S1", "P6a", "P7", "P9")
@EVERY_MODE
@virtual
async def test_heartbeats_between_items(mode: str) -> None:
    """They are comments to the client, and nothing to the engine, the span and the abort."""
    spans = Spans()
    seen: list[SpanContext | None] = []

    def look(_: RequestContext) -> None:
        seen.append(trace.get_current_span().get_span_context())

    engine = ScriptedEngine(look, 5, token(1), look, 5, token(2), 1, stop(), closing=[1, look])
    adapter = adapter_of(engine, mode, spans).with_operators(heartbeat(2, PING))
    items = await collect(await adapter.generate(request()))
    await asyncio.sleep(100)
    assert to_builtins(PING) == {"comment": ["ping"]}
    ours = ["ping" if item is PING else item.data and item.data.token_ids for item in items]
    assert ours == ["ping", "ping", [1], "ping", "ping", [2], []]
    span = spans.one()
    assert seen == [span.get_span_context()] * 3
    attributes = rows_of(span)
    assert (attributes["finish_reason"], attributes["output_tokens"]) == ("Stop", 2)
    assert attributes["avg_itl_ms"] == 5000.0
    assert engine.aborts == []


@pytest.mark.rows("A2", "E4", "S7", "P5")
@virtual
async def test_a_stalled_engine_behind_heartbeats() -> None:
    """One error item at the end; a client that leaves in a gap cancels the engine's step."""
    engine = ScriptedEngine(token(1), 100, stop())
    pipeline = ahead(enforced, deadlines(idle_s=10)).with_operators(heartbeat(4, PING))
    served = await serve(engine, pipeline=pipeline)
    assert [item is PING for item in served.items] == [False, True, True, False]
    assert isinstance(served.last.error, ResponseTimeout)
    assert (engine.aborts, engine.closes) == ([10], [10])
    left = ScriptedEngine(token(1), 100, stop())
    began = now()
    served = await serve(left, pipeline=before("items", heartbeat(2, PING)), take=2)
    assert (left.closes, left.closed) == ([began + 2], 1)
    assert served.row["finish_reason"] == "Dropped"


BEATS, MERGES = heartbeat(1, PING), coalesce()


@pytest.mark.rows("O4")
@pytest.mark.parametrize(
    "added",
    [[BEATS], [MERGES], [BEATS, MERGES], [MERGES, BEATS], [BEATS, MERGES, BEATS]],
    ids=["beats", "merges", "beats-merges", "merges-beats", "three"],
)
@pytest.mark.parametrize("is_reading", [True, False])
def test_the_end_of_the_loop_is_no_failure_of_an_operator(
    leaks: LeakWatch, added: list[AnyOperator], is_reading: bool
) -> None:
    """It cancels the tasks of operators like all others, and nothing is said of that."""
    leaks.allow("task not done|generator not closed")
    kept: list[object] = []

    async def leave() -> None:
        engine = ScriptedEngine(token(1), 100, stop())
        stream = await adapter_of(engine).with_operators(*added).generate(request())
        kept.append(stream)
        await anext(stream)
        if is_reading:
            kept.append(asyncio.ensure_future(collect(stream)))
        await asyncio.sleep(5.5)

    with capture_logs(logging.ERROR) as log:
        run_virtual(leave())
    assert log == []


# Ends by tokens, and their count.

IN_FRONT = pytest.mark.parametrize("place", ["validate_chunks", "first_token"])


@pytest.mark.rows("S2", "S4", "P3", "P6a")
@pytest.mark.parametrize(
    ("added", "tokens", "reason"),
    [
        (limit_tokens(3), [[1], [2], [3]], FinishReason.LENGTH),
        (stop_on([[2, 3]]), [[1], []], FinishReason.STOP),
        (stop_on(3, include=True), [[1], [2], [3]], FinishReason.STOP),
    ],
    ids=["limit", "stop", "included"],
)
@IN_FRONT
@EVERY_MODE
@virtual
async def test_a_limited_request_ends_like_any_other(
    added: AnyOperator,
    tokens: list[list[int]],
    reason: FinishReason,
    place: str,
    mode: DisaggregationMode,
) -> None:
    """Reason, span and token count are those of a terminal of the engine's; nothing is aborted."""
    engine = ScriptedEngine(token(1), token(2), LLMEngineOutput([3, 4]), token(5), stop())
    served = await serve(engine, mode, pipeline=before(place, added))
    assert (served.tokens, served.finish_reason) == (tokens, str(reason))
    assert (engine.pulls, engine.closed, engine.aborts) == (3, 1, [])
    assert served.row["finish_reason"] == reason.span_value
    assert served.row["output_tokens"] == sum(map(len, tokens))
    assert served.status == (StatusCode.UNSET, None)


@pytest.mark.rows("P5", "S3", "S6", "S7")
@IN_FRONT
@virtual
async def test_the_usage_of_a_request(place: str) -> None:
    """What the client was given is reported once: cut short, dropped, cancelled or failed."""
    ends: list[tuple[list[Step], int | None, int]] = [
        ([60], 2, 3),
        ([RequestContext.stop_generating, LLMEngineOutput.cancelled()], None, 3),
        ([Disconnected("gone")], None, 3),
        ([token(4), token(5), stop()], None, 4),
    ]
    for end, take, count in ends:
        costs: list[CompletionUsage] = []
        engine = ScriptedEngine(token(1), LLMEngineOutput([2, 3]), *end)
        counting = usage(3, protocols.usage, on_end=costs.append)
        pipeline = before(place, stop_on(9), limit_tokens(4), counting)
        served = await serve(engine, pipeline=pipeline, take=take)
        assert costs == [protocols.usage(3, count)]
        assert engine.closed == 1
        if count == 4:
            assert chunk_of(served.last).completion_usage == costs[0]


@pytest.mark.rows("S5")
@virtual
async def test_a_request_s_own_limits() -> None:
    """A pipeline reads them from the request; one that is not set limits nothing, a bad one fails."""

    def pipeline(scope: RequestScope) -> Pipeline:
        conditions = scope.request.stop_conditions
        return ahead(stop_on(conditions.stop_token_ids_hidden), limit_tokens(conditions.max_tokens))

    given: dict[tuple[int | None, int | None], list[list[int]]] = {
        (2, None): [[1], [2]],
        (None, 3): [[1], [2], []],
        (None, None): [[1], [2], [3], [4], []],
    }
    engine = ScriptedEngine(*map(token, range(1, 5)), stop())
    asked = request()
    for (limit, stop_id), expected in given.items():
        asked.stop_conditions.max_tokens = limit
        asked.stop_conditions.stop_token_ids_hidden = None if stop_id is None else [stop_id]
        assert (await serve(engine, pipeline=pipeline, asked=asked)).tokens == expected
    asked.stop_conditions.max_tokens = 0
    with pytest.raises(InvalidArgument, match=r"limit_tokens: limit: expected .* at least 1 token"):
        await serve(engine, pipeline=pipeline, asked=asked)
    assert engine.calls == 3


@pytest.mark.rows("E3")
@virtual
async def test_text_that_ends_one_of_several_answers() -> None:
    """`hold_back` has from the scope how many there are: the stream continues with the other one."""

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


# Scopes of the engine.

VARIABLE = contextvars.ContextVar("variable", default="unset")
PULLING: dict[str, Pipeline] = {
    **PASSES,
    "coalesce": before("annotate_errors", coalesce()),
    "coalesce on items": before("items", coalesce()),
    "deadlines": ahead(with_deadlines),
    "enforced": ahead(enforced),
    "heartbeat": before("items", heartbeat(2, PING)),
}


@pytest.mark.rows("P9", "P7", "S7")
@pytest.mark.parametrize("pipeline", PULLING.values(), ids=PULLING)
@pytest.mark.parametrize("ends", [True, False])
@virtual
async def test_scopes_that_the_engine_keeps_across_its_yields(
    pipeline: Pipeline, ends: bool, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    """Its span and its context variable stay set for it, whichever task pulls or closes it."""

    async def steps() -> AsyncGenerator[LLMEngineOutput]:
        undo = VARIABLE.set("engine")
        try:
            with spans.tracer.start_as_current_span("outer"):
                for number in range(6):
                    await asyncio.sleep(1.0)
                    with spans.tracer.start_as_current_span(f"step {number}"):
                        await asyncio.sleep(1.0)
                    assert VARIABLE.get() == "engine"
                    yield token(number)
                yield stop()
        finally:
            VARIABLE.reset(undo)

    adapter = adapter_of(FunctionEngine(steps), "agg", spans, pipeline=pipeline)
    stream = await adapter.generate(request())
    number = 0
    async for _ in stream:
        assert VARIABLE.get() == "unset"
        number += 1
        await asyncio.sleep(0.0 if number % 2 else 4.5)
        if number == 4 and not ends:
            break
    await stream.aclose()
    await asyncio.sleep(10)
    parents = {span.name: span.parent.span_id for span in spans.finished if span.parent}
    contexts = {span.name: span.get_span_context() for span in spans.finished}
    ids = {name: context.span_id for name, context in contexts.items() if context}
    assert parents.pop("outer") == ids["engine.generate"]
    assert set(parents.values()) == {ids["outer"]}
    assert not spans.open
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
