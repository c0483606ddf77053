"""A second engine for a request: when the first is lost, and when it is slow to begin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from operators import HedgeOutcome, NotResumable, ResumePoint
from operators.authoring import AnyOperator
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines import SampleEngine, SimulatedEngine
from rx_backend.errors import (
    Disconnected,
    EngineShutdown,
    InvalidArgument,
    ResponseTimeout,
)
from rx_backend.failover import resume_on_engine
from rx_backend.hedging import hedge_engines
from rx_backend.pipeline import Pipeline, RequestScope, standard_pipeline
from rx_backend.protocols import (
    BootstrapInfo,
    FinishReason,
    GuidedDecodingOptions,
    LLMEngineOutput,
    PrefillResult,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    TraceLink,
    usage,
)
from rx_backend.testing import run_virtual
from tests.rx_backend._engines import (
    Item,
    ScriptedEngine,
    Stream,
    adapter_of,
    chunk_of,
    collect,
    now,
    stop,
    token,
    tokens_of,
    virtual,
)
from tests.spans import Spans

PROMPT = [0, 1, 2]


class Mortal(LLMEngine):
    """
    Another engine, whose tokens count on from the prompt, and which may die.

    Args:
        engine: The engine.
        lives: After how many tokens it dies; None for never.
        error: What it dies with; None to end without a terminal.
        delay_s: How long it is silent before it begins.
    """

    def __init__(
        self,
        engine: LLMEngine | None = None,
        lives: int | None = None,
        *,
        error: Exception | None = None,
        ends: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        self.engine = SampleEngine(token_interval_ms=1000) if engine is None else engine
        self.lives = lives
        self.error = Disconnected("gone") if error is None else error
        self.ends = ends
        self.delay_s = delay_s
        self.requests: list[PreprocessedRequest] = []
        self.contexts: list[RequestContext] = []
        self.aborts: list[tuple[str, float]] = []
        self.opened = self.closed = 0
        self.opened_at = self.closed_at = -1.0
        self.first_token_at: float | None = None

    async def start(self, worker_id: int) -> EngineConfig:
        return await self.engine.start(worker_id)

    async def abort(self, context: RequestContext) -> None:
        self.aborts.append((context.id, now()))
        await self.engine.abort(context)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.requests.append(request)
        self.contexts.append(context)
        self.opened += 1
        self.opened_at = now()
        made = 0
        chunks: Any = self.engine.generate(request, context)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.lives == 0:
                raise self.error
            async for chunk in chunks:
                done = len(request.token_ids) + made
                made += len(chunk.token_ids)
                if made and self.first_token_at is None:
                    self.first_token_at = now()
                yield replace(chunk, token_ids=list(range(done, done + len(chunk.token_ids))))
                if self.lives is not None and made >= self.lives:
                    if self.ends:
                        return
                    raise self.error
        finally:
            await chunks.aclose()
            self.closed += 1
            self.closed_at = now()


def request(max_tokens: int = 6, **fields: Any) -> PreprocessedRequest:
    conditions = StopConditions(max_tokens=max_tokens, min_tokens=4)
    return PreprocessedRequest(model="mock", token_ids=PROMPT, stop_conditions=conditions, **fields)


def first(make: Callable[[RequestScope], AnyOperator]) -> Pipeline:
    return lambda scope: [make(scope), *standard_pipeline(scope)]


def resuming(spare: Any, **options: Any) -> Pipeline:
    return first(lambda scope: resume_on_engine(scope, spare, **options))


def hedged(after_s: float, second: Any, **options: Any) -> Pipeline:
    return first(lambda scope: hedge_engines(scope, after_s, second, **options))


def flat(items: list[Item]) -> list[int]:
    return [token_id for tokens in tokens_of(items) for token_id in tokens]


# Resuming.


@pytest.mark.rows("S1", "P3", "P7", "T1", "T3")
@pytest.mark.parametrize("kind", ["sample", "simulated"])
@virtual
async def test_a_lost_worker_is_not_noticed(kind: str) -> None:
    """Tokens, usage, link and span are those of one stream; the spare has what is left to do."""

    def engine() -> LLMEngine:
        return SampleEngine() if kind == "sample" else SimulatedEngine()

    spans = Spans()
    lost, spare = Mortal(engine(), lives=2), Mortal(engine())
    adapter = adapter_of(lost, spans=spans, pipeline=resuming(spare))
    context = RequestContext("r1", {"tenant": "a"})
    items = await collect(await adapter.generate(request(), context))
    assert flat(items) == [3, 4, 5, 6, 7, 8]
    last = chunk_of(items[-1])
    assert (last.finish_reason, last.completion_usage) == (FinishReason.LENGTH, usage(3, 6))
    (got,) = spare.requests
    assert got.token_ids == [0, 1, 2, 3, 4]
    assert (got.stop_conditions.max_tokens, got.stop_conditions.min_tokens) == (4, 2)
    assert lost.requests[0].token_ids == PROMPT
    span = spans.one()
    assert got.migration_link == chunk_of(items[0]).worker_trace_link
    assert span.attributes is not None
    assert span.attributes["output_tokens"] == 6
    assert span.attributes["finish_reason"] == "Length"
    assert [event.name for event in span.events] == ["first_token", "resumed"]
    (child,) = spare.contexts
    assert (child.id, child.metadata) == ("r1/resume-1", {"tenant": "a"})
    assert [chunk_of(item).worker_trace_link is None for item in items[1:]] == [True] * 5
    assert (lost.closed, spare.closed, lost.aborts, spare.aborts) == (1, 1, [], [])


@virtual
async def test_a_request_is_resumed_time_and_again() -> None:
    """As often as the limit says, on the engine that is chosen each time."""
    engines = [Mortal(lives=1), Mortal(lives=0), Mortal(lives=2, ends=True), Mortal()]
    points: list[ResumePoint] = []

    async def choose(point: ResumePoint) -> LLMEngine:
        points.append(point)
        return engines[point.attempt]

    adapter = adapter_of(engines[0], pipeline=resuming(choose, limit=3))
    items = await collect(await adapter.generate(request()))
    assert flat(items) == [3, 4, 5, 6, 7, 8]
    assert chunk_of(items[-1]).completion_usage == usage(3, 6)
    assert [type(point.error).__name__ for point in points] == [
        "Disconnected",
        "Disconnected",
        "StreamIncomplete",
    ]
    assert [engine.closed for engine in engines] == [1, 1, 1, 1]


@pytest.mark.parametrize("error", [EngineShutdown("down"), ValueError("bug"), ResponseTimeout("?")])
@virtual
async def test_which_errors_are_resumed(error: Exception) -> None:
    """Those of a lost worker by default; any that the user names."""
    items = await collect(
        await adapter_of(Mortal(lives=1, error=error), pipeline=resuming(Mortal())).generate(
            request()
        )
    )
    assert (items[-1].error is None) == isinstance(error, EngineShutdown)
    named = resuming(Mortal(), errors=(ResponseTimeout, InvalidArgument))
    lost = Mortal(lives=1, error=error)
    items = await collect(await adapter_of(lost, pipeline=named).generate(request()))
    assert (items[-1].error is None) != isinstance(error, EngineShutdown)


REFUSED = [
    pytest.param(
        {"sampling_options": SamplingOptions(guided_decoding=GuidedDecodingOptions(regex="a+"))},
        "guided decoding",
        id="guided",
    ),
    pytest.param({"sampling_options": SamplingOptions(n=2)}, "several choices", id="n"),
    pytest.param({"sampling_options": SamplingOptions(best_of=2)}, "several choices", id="best"),
    pytest.param(
        {"sampling_options": SamplingOptions(use_beam_search=True)}, "several choices", id="beams"
    ),
    pytest.param({"prompt_embeds": "AAAA"}, "embeddings", id="embeddings"),
    pytest.param(
        {"prefill_result": PrefillResult(disaggregated_params={})}, "hand-off", id="prefill"
    ),
    pytest.param(
        {"bootstrap_info": BootstrapInfo(bootstrap_host="h", bootstrap_port=1, bootstrap_room=2)},
        "hand-off",
        id="bootstrap",
    ),
    pytest.param({"encoder_result": {"handle": 1}}, "hand-off", id="encoder"),
    pytest.param({"is_probe": True}, "health check", id="probe"),
]


@pytest.mark.rows("S6", "P4")
@pytest.mark.parametrize(("fields", "why"), REFUSED)
@virtual
async def test_state_that_cannot_move(fields: dict[str, Any], why: str) -> None:
    """The client has the lost worker's error, which says why it was not resumed."""
    spare, spans = Mortal(), Spans()
    adapter = adapter_of(Mortal(lives=1), spans=spans, pipeline=resuming(spare))
    *tokens, failed = await collect(await adapter.generate(request(**fields)))
    assert flat(tokens) == [3]
    assert isinstance(failed.error, Disconnected)
    assert isinstance(failed.error.__cause__, NotResumable)
    (note,) = failed.error.__notes__
    assert why in note
    assert why in str(failed.error.__cause__)
    assert spare.opened == 0
    assert (spans.one().attributes or {})["error_kind"] == "Backend(Disconnected)"


def nobody(point: ResumePoint) -> None:
    """No engine."""


@virtual
async def test_nobody_to_go_on() -> None:
    """A function that finds no engine refuses too."""
    adapter = adapter_of(Mortal(lives=1), pipeline=resuming(nobody))
    *_, failed = await collect(await adapter.generate(request()))
    assert isinstance(failed.error, Disconnected)
    assert "there is no other engine" in failed.error.__notes__[0]


@virtual
async def test_a_prompt_of_embeddings_is_tried_anew_before_its_first_token() -> None:
    """As long as there is nothing to append, it is the same request."""
    spare = Mortal()
    adapter = adapter_of(Mortal(lives=0), pipeline=resuming(spare))
    items = await collect(await adapter.generate(request(prompt_embeds="AAAA")))
    assert flat(items) == [3, 4, 5, 6, 7, 8]
    assert spare.requests[0].token_ids == PROMPT


@pytest.mark.rows("T1")
@virtual
async def test_the_link_is_the_lost_workers() -> None:
    """A worker that is remote says itself which span it was."""
    link = TraceLink("a" * 32, "b" * 16)
    lost = ScriptedEngine(
        {"token_ids": [3], "worker_trace_link": {"trace_id": "a" * 32, "span_id": "b" * 16}},
        Disconnected("gone"),
    )
    spare = Mortal()
    await collect(
        await adapter_of(lost, spans=Spans(), pipeline=resuming(spare)).generate(request())
    )
    assert spare.requests[0].migration_link == link


@virtual
async def test_all_tokens_were_there() -> None:
    """A stream that was only to end is ended, without another engine."""
    spare = Mortal()
    lost = ScriptedEngine(*map(token, range(3, 9)), Disconnected("gone"))
    items = await collect(await adapter_of(lost, pipeline=resuming(spare)).generate(request()))
    assert flat(items) == [3, 4, 5, 6, 7, 8]
    last = chunk_of(items[-1])
    assert (last.finish_reason, last.completion_usage) == (FinishReason.LENGTH, usage(3, 6))
    assert spare.opened == 0


@virtual
async def test_cumulative_log_probabilities_go_on() -> None:
    """They are sums over the whole answer, on either side of the seam."""
    lost = ScriptedEngine(
        LLMEngineOutput([3], cum_log_probs=-1.0),
        LLMEngineOutput([4], cum_log_probs=-3.0),
        Disconnected("gone"),
    )
    spare = ScriptedEngine(LLMEngineOutput([5], cum_log_probs=-0.5), stop())
    items = await collect(await adapter_of(lost, pipeline=resuming(spare)).generate(request()))
    assert [chunk_of(item).cum_log_probs for item in items] == [-1.0, -3.0, -3.5, None]


@pytest.mark.rows("A4")
@virtual
async def test_a_hand_off_is_repeated() -> None:
    """A decode worker's request is resumed where its prefill can be; the peer checks it."""

    async def prefill(asked: PreprocessedRequest) -> PreprocessedRequest:
        chunks = SampleEngine(mode="prefill").generate(asked, RequestContext())
        (terminal,) = [chunk async for chunk in chunks]
        handed = PrefillResult(disaggregated_params=terminal.disaggregated_params)
        return replace(asked, prefill_result=handed)

    lost, spare = (Mortal(SampleEngine(mode="decode"), lives) for lives in (2, None))
    adapter = adapter_of(lost, "decode", pipeline=resuming(spare, hand_off=prefill))
    items = await collect(await adapter.generate(await prefill(request())))
    assert flat(items) == [3, 4, 5, 6, 7, 8]


@pytest.mark.rows("A2", "A3", "A6", "E4")
@pytest.mark.parametrize("signal", [RequestContext.stop_generating, RequestContext.kill])
@virtual
async def test_a_stop_reaches_the_engine_at_work(signal: Callable[[RequestContext], None]) -> None:
    """The lost one is not aborted, the spare once, and its own end stands."""
    lost, spare, context = Mortal(lives=1), Mortal(), RequestContext("r1")
    stream = await adapter_of(lost, pipeline=resuming(spare)).generate(request(), context)
    items = [await anext(stream), await anext(stream)]
    signal(context)
    signal(context)
    await asyncio.sleep(0.5)
    assert spare.aborts == [("r1/resume-1", 2.0)]
    items += await collect(stream)
    assert chunk_of(items[-1]).finish_reason == FinishReason.CANCELLED
    assert chunk_of(items[-1]).completion_usage == usage(3, 2)
    assert spare.contexts[0].is_killed == context.is_killed
    assert lost.aborts == []


@pytest.mark.rows("A2")
@virtual
async def test_after_a_stop_nothing_is_resumed() -> None:
    """The engine that is lost then was aborted, and its error goes on as it is."""
    lost, spare, context = Mortal(lives=1), Mortal(), RequestContext("r1")
    stream = await adapter_of(lost, pipeline=resuming(spare)).generate(request(), context)
    await anext(stream)
    context.stop_generating()
    (failed,) = await collect(stream)
    await asyncio.sleep(0)
    assert isinstance(failed.error, Disconnected)
    assert failed.error.__cause__ is None
    assert (lost.aborts, spare.opened) == ([("r1", 1.0)], 0)


@pytest.mark.rows("A4", "A5")
@pytest.mark.parametrize("told_by", ["token", "notice", "drop"])
@virtual
async def test_in_decode_mode_the_spare_has_its_own_first_token(told_by: str) -> None:
    """A stop that finds the spare before it waits for it, though the client has tokens already."""
    contexts: list[RequestContext] = []
    spare = ScriptedEngine(contexts.append, 5, token(4), stop())
    lost, context = Mortal(lives=1), RequestContext()
    stream = await adapter_of(lost, "decode", pipeline=resuming(spare)).generate(request(), context)
    assert flat([await anext(stream)]) == [3]
    pull = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(2)
    context.stop_generating()
    await asyncio.sleep(1)
    assert spare.aborts == []
    if told_by == "notice":
        contexts[0].notify_first_token()
        await asyncio.sleep(0.1)
        assert spare.aborts == [4.0]
    if told_by == "drop":
        pull.cancel()
        await asyncio.wait([pull])
    else:
        assert flat([await pull]) == [4]
    await stream.aclose()
    assert len(spare.aborts) == (told_by != "drop")
    assert lost.aborts == []


# Hedging.


@pytest.mark.rows("A2", "S1", "P7")
@virtual
async def test_the_second_engine_answers_first() -> None:
    """The first is aborted once and closed; a stop after that reaches the second alone."""
    spans, outcomes = Spans(), list[HedgeOutcome]()
    slow, fast, context = Mortal(delay_s=60), Mortal(), RequestContext("r1")
    pipeline = hedged(2, lambda: fast, on_outcome=outcomes.append)
    stream = await adapter_of(slow, spans=spans, pipeline=pipeline).generate(request(), context)
    assert flat([await anext(stream), await anext(stream)]) == [3, 4]
    assert slow.aborts == [("r1", 3.0)]
    assert slow.closed == 1
    assert not context.is_stopped
    context.stop_generating()
    items = await collect(stream)
    assert chunk_of(items[-1]).finish_reason == FinishReason.CANCELLED
    await asyncio.sleep(0)
    assert fast.aborts == [("r1/hedge", 4.0)]
    assert (len(slow.aborts), fast.closed) == (1, 1)
    assert outcomes == [HedgeOutcome("second", 3.0)]
    (event,) = (event for event in spans.one().events if event.name == "hedged")
    assert dict(event.attributes or {}) == {"winner": "second"}


@pytest.mark.rows("A2", "E4")
@virtual
async def test_the_first_engine_answers_after_all() -> None:
    """The second is stopped, aborted once and closed; the request goes on."""
    slow, slower, context = Mortal(delay_s=4), Mortal(delay_s=60), RequestContext("r1")
    stream = await adapter_of(slow, pipeline=hedged(2, slower)).generate(request(), context)
    items = await collect(stream)
    assert flat(items) == [3, 4, 5, 6, 7, 8]
    assert chunk_of(items[-1]).completion_usage == usage(3, 6)
    assert (slower.aborts, slow.aborts) == ([("r1/hedge", 5.0)], [])
    assert slower.contexts[0].is_stopped
    assert not context.is_stopped
    assert (slow.closed, slower.closed) == (1, 1)


@pytest.mark.rows("A5")
@virtual
async def test_in_decode_mode_a_loser_is_not_aborted() -> None:
    """It has no first token yet, so it is only closed."""
    for first_s, second_s in ((60, 0), (4, 60)):
        one, other = Mortal(delay_s=first_s), Mortal(delay_s=second_s)
        items = await collect(
            await adapter_of(one, "decode", pipeline=hedged(2, other)).generate(request())
        )
        assert flat(items) == [3, 4, 5, 6, 7, 8]
        assert (one.aborts, other.aborts, one.closed, other.closed) == ([], [], 1, 1)


@pytest.mark.rows("A2", "A3", "A4")
@pytest.mark.parametrize("mode", ["agg", "decode"])
@virtual
async def test_a_stop_in_a_race_is_for_both(mode: str) -> None:
    """Each is aborted once at most: at once, or in decode mode at its own first token."""
    first_engine, second, context = (
        ScriptedEngine(8, token(3), stop()),
        ScriptedEngine(5, token(7), 1, stop()),
        RequestContext(),
    )
    stream = await adapter_of(first_engine, mode, pipeline=hedged(1, second)).generate(
        request(), context
    )
    pull = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(3)
    context.stop_generating()
    assert flat([await pull]) == [7]
    await asyncio.sleep(0)
    await collect(stream)
    assert first_engine.aborts == ([3.0] if mode == "agg" else [])
    assert second.aborts == ([3.0] if mode == "agg" else [6.0])


@pytest.mark.rows("A2")
@virtual
async def test_an_engine_that_failed_in_the_race_is_not_aborted() -> None:
    """A stop after that is for the one that is left."""
    failing = ScriptedEngine(3, Disconnected("gone"))
    other, context = ScriptedEngine(9, token(7), stop()), RequestContext()
    stream = await adapter_of(failing, pipeline=hedged(1, other)).generate(request(), context)
    pull = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(5)
    context.stop_generating()
    assert flat([await pull]) == [7]
    await collect(stream)
    assert (failing.aborts, other.aborts) == ([], [5.0])


@pytest.mark.parametrize(
    "fields",
    [
        {"is_probe": True},
        {"prefill_result": PrefillResult(disaggregated_params={})},
        {"encoder_result": {"handle": 1}},
    ],
)
@virtual
async def test_what_is_not_hedged(fields: dict[str, Any]) -> None:
    """What only one engine can take, and a health check."""
    slow, fast = Mortal(delay_s=60), Mortal()
    items = await collect(
        await adapter_of(slow, pipeline=hedged(1, fast)).generate(request(**fields))
    )
    assert flat(items) == [3, 4, 5, 6, 7, 8]
    assert fast.opened == 0


@pytest.mark.rows("P9")
@virtual
async def test_the_other_engines_spans_nest() -> None:
    """Those that it opens in its set-up and in its stream are children of the request's span."""
    spans = Spans()

    class Traced(Mortal):
        def generate(self, request: Any, context: Any) -> Any:
            with spans.tracer.start_as_current_span("set-up"):
                return super().generate(request, context)

    def step(context: RequestContext) -> None:
        spans.tracer.start_span("step").end()

    traced = Traced(ScriptedEngine(step, token(1), step, token(2), stop()))
    races = [(Mortal(lives=0), resuming(traced)), (Mortal(delay_s=60), hedged(1, traced))]
    for engine, pipeline in races:
        await collect(await adapter_of(engine, spans=spans, pipeline=pipeline).generate(request()))
    requests = [span for span in spans.finished if span.name == "engine.generate"]
    for span in requests:
        children = [one.name for one in spans.finished if one.parent == span.get_span_context()]
        assert sorted(children) == ["set-up", "step", "step"]
    assert len(requests) == 2


@virtual
async def test_both_together() -> None:
    """A hedged request whose winner dies is resumed."""
    slow, fast, spare = Mortal(delay_s=60), Mortal(lives=2), Mortal()

    def pipeline(scope: RequestScope) -> list[AnyOperator]:
        return [
            hedge_engines(scope, 1, fast),
            resume_on_engine(scope, spare),
            *standard_pipeline(scope),
        ]

    context = RequestContext("r1")
    stream = await adapter_of(slow, pipeline=pipeline).generate(request(), context)
    items = [await anext(stream) for _ in range(4)]
    context.stop_generating()
    items += await collect(stream)
    await asyncio.sleep(0)
    assert flat(items) == [3, 4, 5, 6]
    assert chunk_of(items[-1]).completion_usage == usage(3, 4)
    assert (len(slow.aborts), fast.aborts) == (1, [])
    assert [who for who, _ in spare.aborts] == ["r1/resume-1"]


@pytest.mark.parametrize(
    ("pipeline", "error"),
    [
        (resuming(7), "resume_on_engine: next_engine: expected an engine or a function"),
        (resuming(Mortal(), limit=-1), "resume_on: limit: expected 0 resumptions or more"),
        (resuming(Mortal(), errors=(7,)), "resume_on_engine: errors: expected classes of errors"),
        (resuming(Mortal(), hand_off=7), "resume_on_engine: hand_off: expected a function"),
        (hedged(-1, Mortal()), "hedge: after_s: expected a number of seconds"),
        (hedged(1, None), "hedge_engines: second_engine: expected an engine or a function"),
        (hedged(1, Mortal(), on_outcome=7), "hedge_engines: on_outcome: expected a function"),
    ],
)
@virtual
async def test_bad_arguments(pipeline: Pipeline, error: str) -> None:
    """They fail the request before any engine is called, and are named."""
    engine = Mortal()
    with pytest.raises(InvalidArgument, match=error):
        await adapter_of(engine, pipeline=pipeline).generate(request())
    assert engine.opened == 0


# Any history: what has to be true whatever happens when.


async def drive(stream: Stream, items: list[Item]) -> None:
    async for item in stream:
        items.append(item)  # noqa: PERF401 - those before a drop too


def check_aborts(engine: Mortal, stop_at: float | None, mode: str) -> None:
    """An engine is aborted at a stop while it is at work, or for losing a race."""
    times = [at for _, at in engine.aborts]
    token_at = engine.first_token_at
    if stop_at is not None and engine.opened_at < stop_at <= engine.closed_at:
        # In decode mode not before its own first token.
        begins = engine.opened_at if mode == "agg" else token_at
        assert times == ([] if begins is None else [max(begins, stop_at)])
    elif times:
        # The loser had no token yet, so in decode mode it is not aborted at all.
        assert (times, token_at, mode) == ([engine.closed_at], None, "agg")


@pytest.mark.rows("S1", "S2", "S7", "A1", "A2", "A3", "A4", "A5", "P7")
@settings(max_examples=200)
@given(
    lives=st.lists(st.none() | st.integers(0, 4), min_size=3, max_size=3),
    delays=st.lists(st.sampled_from([0.0, 1.0, 7.0]), min_size=3, max_size=3),
    operators=st.sampled_from([("resume",), ("hedge",), ("hedge", "resume"), ("resume", "hedge")]),
    simulated=st.booleans(),
    mode=st.sampled_from(["agg", "decode"]),
    stop_at=st.none() | st.integers(0, 12),
    drop_at=st.none() | st.integers(0, 14),
)
@example([1, None, None], [0, 0, 0], ("resume",), False, "agg", 2, None)
def test_any_history(  # noqa: PLR0917
    lives: list[int | None],
    delays: list[float],
    operators: tuple[str, ...],
    simulated: bool,
    mode: str,
    stop_at: int | None,
    drop_at: int | None,
) -> None:
    """Tokens in order, one end, one span, all closed, and each engine aborted as the rows say."""
    spans, items = Spans(), list[Item]()

    def engine() -> LLMEngine:
        return SimulatedEngine(step_ms=1000) if simulated else SampleEngine(token_interval_ms=1000)

    engines = [
        Mortal(engine(), count, delay_s=delay) for count, delay in zip(lives, delays, strict=True)
    ]
    context = RequestContext("r1")

    def pipeline(scope: RequestScope) -> list[AnyOperator]:
        makers = {
            "hedge": lambda: hedge_engines(scope, 2.25, engines[1]),
            "resume": lambda: resume_on_engine(scope, engines[2]),
        }
        return [*(makers[name]() for name in operators), *standard_pipeline(scope)]

    async def run() -> None:
        adapter = EngineAdapter(engines[0], mode, pipeline, tracer=spans.tracer)
        stream = await adapter.generate(request(), context)
        task = asyncio.create_task(drive(stream, items))
        loop = asyncio.get_running_loop()
        if stop_at is not None:
            loop.call_later(stop_at + 0.4, context.stop_generating)
        if drop_at is not None:
            loop.call_later(drop_at + 0.6, stream.close)
        await asyncio.wait([task])
        await stream.aclose()
        task.result()
        await asyncio.sleep(100)
        for one in engines:
            await one.engine.cleanup()

    run_virtual(run())
    ends = [item for item in items if item.data is None or chunk_of(item).finish_reason]
    assert len(ends) <= 1
    assert not ends or items[-1] is ends[0]
    assert ends or drop_at is not None
    chunks = [item for item in items if item.data is not None]
    tokens = flat(chunks)
    assert tokens == list(range(3, 3 + len(tokens)))
    if ends and ends[0].data is not None:
        assert chunk_of(ends[0]).completion_usage == usage(3, len(tokens))
    spans.one()
    for one in engines:
        assert one.opened == one.closed
        check_aborts(one, None if stop_at is None else stop_at + 0.4, mode)
