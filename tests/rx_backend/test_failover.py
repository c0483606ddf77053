"""An engine that resumes a request on another engine when the one at work is lost."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.engine import LLMEngine
from rx_backend.engines import SampleEngine, SimulatedEngine
from rx_backend.errors import (
    CannotConnect,
    Disconnected,
    EngineShutdown,
    ResponseTimeout,
    StreamIncomplete,
)
from rx_backend.failover import FailoverEngine
from rx_backend.protocols import (
    BootstrapInfo,
    FinishReason,
    GuidedDecodingOptions,
    LLMEngineOutput,
    OutputOptions,
    PrefillResult,
    PreprocessedRequest,
    PromptTokensDetails,
    SamplingOptions,
    StopConditions,
    TraceLink,
    usage,
)
from rx_backend.retry_budget import RetryBudget
from rx_backend.testing import run_virtual
from tests.engines import (
    LosableEngine,
    ScriptedEngine,
    Served,
    adapter_of,
    chunk_of,
    collect,
    counting_request,
    flat,
    now,
    serve,
    stop,
    token,
    virtual,
)
from tests.logs import capture_logs
from tests.meters import Meters
from tests.spans import Spans

PROMPT = [0, 1, 2]
ALL = [3, 4, 5, 6, 7, 8]
GONE = Disconnected("gone")


async def answer(engine: LLMEngine, mode: str = "agg", **fields: Any) -> Served:
    return await serve(engine, mode, asked=counting_request(**fields))


@pytest.mark.rows("S1", "P3", "P7", "T1", "T3")
@pytest.mark.parametrize("kind", ["sample", "simulated"])
@virtual
async def test_a_lost_worker_is_not_noticed(kind: str) -> None:
    """Tokens, usage, link and span are those of one stream; the spare has what is left to do."""

    def engine() -> LLMEngine:
        return SampleEngine() if kind == "sample" else SimulatedEngine()

    spans = Spans()
    lost, spare = LosableEngine(engine(), lives=2), LosableEngine(engine())
    adapter = adapter_of(FailoverEngine(lost, spare), spans=spans)
    context = RequestContext("r1", {"tenant": "a"})
    asked = counting_request(output_options=OutputOptions(logprobs=1, prompt_logprobs=1))
    asked.stop_conditions.max_thinking_tokens = 5
    with capture_logs() as log:
        items = await collect(await adapter.generate(asked, context))
    assert flat(items) == [3, 4, 5, 6, 7, 8]
    last = chunk_of(items[-1])
    assert (last.finish_reason, last.completion_usage) == (FinishReason.LENGTH, usage(3, 6))
    (got,) = spare.requests
    assert got.token_ids == [0, 1, 2, 3, 4]
    assert got.stop_conditions == StopConditions(max_tokens=4, min_tokens=2, max_thinking_tokens=3)
    assert got.output_options == OutputOptions(logprobs=1)
    assert lost.requests[0].token_ids == PROMPT
    span = spans.one()
    assert got.migration_link == chunk_of(items[0]).worker_trace_link
    assert span.attributes is not None
    assert span.attributes["output_tokens"] == 6
    assert span.attributes["finish_reason"] == "Length"
    assert {event.name for event in span.events} == {"first_token", "resumed"}
    ((first,), (child,)) = lost.contexts, spare.contexts
    assert (first.id, child.id, child.metadata) == ("r1", "r1/resume-1", {"tenant": "a"})
    assert [chunk_of(item).worker_trace_link is None for item in items[1:]] == [True] * 5
    assert (lost.closed, spare.closed, lost.aborts, spare.aborts) == (1, 1, [], [])
    (line,) = (line for line in log if line["log_level"] == "warning")
    assert (line["event"], line["request_id"], line["output_tokens"]) == (
        "request resumed on another engine",
        "r1",
        2,
    )


@virtual
async def test_a_request_is_resumed_repeatedly() -> None:
    """As often as the limit says, on one engine after the other, and then on the first again."""
    engines = LosableEngine(lives=1), LosableEngine(lives=0), LosableEngine(lives=2, ends=True)
    served = await answer(FailoverEngine(*engines, limit=5))
    assert flat(served.items) == ALL
    assert chunk_of(served.last).completion_usage == usage(3, 6)
    assert [len(one.requests) for one in engines] == [2, 2, 2]
    assert [one.closed for one in engines] == [2, 2, 2]


@pytest.mark.rows("S9")
@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (EngineShutdown("down"), True),
        (CannotConnect("nobody"), True),
        (StreamIncomplete("cut"), True),
        (None, True),
        (ValueError("bug"), False),
        (ResponseTimeout("silent"), False),
        (RuntimeError("bug"), False),
    ],
)
@virtual
async def test_which_errors_mean_a_lost_engine(error: Exception | None, is_lost: bool) -> None:
    """Those of a lost worker, and an end without a terminal; no other adds load elsewhere."""
    lost, spare = LosableEngine(lives=1, error=error, ends=error is None), LosableEngine()
    served = await answer(FailoverEngine(lost, spare))
    assert (served.last.error is None) == spare.opened == is_lost
    assert is_lost or not getattr(error, "__notes__", [])


@pytest.mark.parametrize(
    "lost",
    [
        ScriptedEngine(setup=[GONE]),
        ScriptedEngine(GONE),
        # Some engines write an empty reason on every chunk but the last.
        ScriptedEngine(LLMEngineOutput(finish_reason=cast("FinishReason", "")), GONE),
    ],
)
@virtual
async def test_a_set_up_that_fails_is_a_loss_too(lost: LLMEngine) -> None:
    """An engine may be lost before its stream exists, or before its first token."""
    assert flat((await answer(FailoverEngine(lost, LosableEngine()))).items) == ALL


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
    spare = LosableEngine()
    with capture_logs() as log:
        served = await answer(FailoverEngine(LosableEngine(lives=1), spare), **fields)
    assert served.tokens == [[3]]
    failure = served.last.error
    assert isinstance(failure, Disconnected)
    assert why in failure.__notes__[0]
    (line,) = (line for line in log if line["event"] == "request not resumed")
    assert why in line["because"]
    assert spare.opened == 0
    assert served.row["error_kind"] == "Backend(Disconnected)"


@pytest.mark.parametrize(
    ("chunk", "why"),
    [
        (LLMEngineOutput(text="a"), "no token ids to continue from"),
        (LLMEngineOutput(content_parts=[{"a": 1}]), "no token ids to continue from"),
        (LLMEngineOutput([1], index=1), "several choices"),
        ({"token_ids": [1], "index": 1}, "several choices"),
    ],
)
@virtual
async def test_chunks_that_cannot_move(chunk: Any, why: str) -> None:
    """What was handed out is no prompt for another engine."""
    error = Disconnected("gone")
    engine = FailoverEngine(ScriptedEngine(chunk, error), LosableEngine())
    *_, failed = await collect(await adapter_of(engine).generate(counting_request()))
    assert failed.error is error
    assert why in error.__notes__[0]


@virtual
async def test_a_prompt_of_embeddings_is_retried_before_its_first_token() -> None:
    """As long as there is nothing to append, it is the same request."""
    spare = LosableEngine()
    served = await answer(FailoverEngine(LosableEngine(lives=0), spare), prompt_embeds="AAAA")
    assert flat(served.items) == ALL
    assert spare.requests[0].token_ids == PROMPT


@pytest.mark.rows("T1")
@virtual
async def test_the_migration_link_names_the_lost_worker() -> None:
    """A worker that is remote says itself which span it was; one that an earlier one had is gone."""
    link = {"trace_id": "a" * 32, "span_id": "b" * 16}
    lost = ScriptedEngine({"token_ids": [3], "worker_trace_link": link}, token(4), GONE)
    spares = [LosableEngine(lives=1), LosableEngine()]
    spans = Spans()
    engine = FailoverEngine(lost, *spares, limit=2)
    await collect(await adapter_of(engine, spans=spans).generate(counting_request()))
    own = spans.one().get_span_context()
    assert own is not None
    assert [spare.requests[0].migration_link for spare in spares] == [
        TraceLink("a" * 32, "b" * 16),
        TraceLink(f"{own.trace_id:032x}", f"{own.span_id:016x}"),
    ]


def complete(tokens: list[int], eos: list[int], conditions: StopConditions) -> FinishReason | None:
    """Return what ends an answer of these tokens, by another wording of the rule."""
    if len(tokens) >= (conditions.min_tokens or 0):
        if tokens[-1] in set(eos) and conditions.ignore_eos is not True:
            return FinishReason.EOS
        stops = {*(conditions.stop_token_ids or ()), *(conditions.stop_token_ids_visible or ())}
        if tokens[-1] in stops:
            return FinishReason.STOP
    return FinishReason.LENGTH if len(tokens) == conditions.max_tokens else None


few = st.lists(st.integers(0, 3), max_size=2)


@pytest.mark.rows("E3", "S1")
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    eos=few,
    stops=few,
    visible=few,
    ignore_eos=st.sampled_from([None, False, True]),
    min_tokens=st.none() | st.integers(0, 4),
    spare_tokens=st.none() | st.integers(0, 2),
    limit=st.integers(0, 1),
)
def test_an_answer_that_lacks_only_its_terminal(  # noqa: PLR0917
    tokens: list[int],
    eos: list[int],
    stops: list[int],
    visible: list[int],
    ignore_eos: bool | None,
    min_tokens: int | None,
    spare_tokens: int | None,
    limit: int,
) -> None:
    """It is ended as its engine would have, whatever the limit; any other goes to the next engine."""
    conditions = StopConditions(
        max_tokens=None if spare_tokens is None else len(tokens) + spare_tokens,
        min_tokens=min_tokens,
        stop_token_ids=stops,
        stop_token_ids_visible=visible,
        ignore_eos=ignore_eos,
    )
    request = PreprocessedRequest(token_ids=PROMPT, eos_token_ids=eos, stop_conditions=conditions)
    spare = ScriptedEngine(token(9), stop())
    lost = ScriptedEngine(*map(token, tokens), Disconnected("gone"))

    async def run() -> list[Any]:
        engine = FailoverEngine(lost, spare, limit=limit)
        return await collect(await adapter_of(engine).generate(request))

    items = run_virtual(run())
    reason = complete(tokens, eos, conditions)
    assert flat(items[: len(tokens)]) == tokens
    if reason is not None:
        assert spare.calls == 0
        (end,) = map(chunk_of, items[len(tokens) :])
        assert (end.finish_reason, end.completion_usage) == (reason, usage(3, len(tokens)))
    else:
        assert spare.calls == limit
        assert (items[-1].error is None) == bool(limit)


@pytest.mark.parametrize(
    "fields", [{"sampling_options": SamplingOptions(n=2)}, {"is_probe": True}], ids=["n", "probe"]
)
@virtual
async def test_what_is_never_assumed_complete(fields: dict[str, Any]) -> None:
    """The end token of one answer is not that of another, and a health check sees the loss."""
    lost = ScriptedEngine(token(8), token(3), token(3), token(3), Disconnected("gone"))
    served = await answer(FailoverEngine(lost, LosableEngine()), eos_token_ids=[3], **fields)
    assert isinstance(served.last.error, Disconnected)


@pytest.mark.rows("E3", "S9")
@pytest.mark.parametrize("ended", [0, 1])
@pytest.mark.parametrize("loss", [[GONE], []], ids=["lost", "ends"])
@virtual
async def test_the_end_of_one_answer_is_not_that_of_all(
    ended: int, loss: list[Disconnected]
) -> None:
    """An engine lost after it is lost, and why no other one continues is reported as usual."""
    end = LLMEngineOutput(finish_reason=FinishReason.STOP, index=ended)
    engine = FailoverEngine(ScriptedEngine(token(8), end, *loss), LosableEngine())
    with capture_logs() as log:
        served = await answer(engine, sampling_options=SamplingOptions(n=2))
    failure = served.last.error
    assert isinstance(failure, Disconnected if loss else StreamIncomplete)
    assert "several choices" in failure.__notes__[0]
    assert [line["event"] for line in log].count("request not resumed") == 1


@virtual
async def test_cumulative_log_probabilities_continue() -> None:
    """They are sums over the whole answer, on either side of the seam."""

    def chunk(token_id: int, cumulated: float) -> LLMEngineOutput:
        return LLMEngineOutput([token_id], cum_log_probs=cumulated)

    lost = ScriptedEngine(chunk(3, -1.0), chunk(4, -3.0), GONE)
    end = stop().with_usage(usage(5, 1))
    served = await answer(FailoverEngine(lost, ScriptedEngine(chunk(5, -0.5), end)))
    sums = [chunk_of(item).cum_log_probs for item in served.items]
    assert sums == [-1.0, -3.0, -3.5, None]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (None, None),
        (PromptTokensDetails(audio_tokens=1), PromptTokensDetails(audio_tokens=1)),
        (PromptTokensDetails(cached_tokens=2), PromptTokensDetails(cached_tokens=2)),
        # The spare has the first two tokens of the answer in its cache too.
        (
            PromptTokensDetails(cached_tokens=5, audio_tokens=1),
            PromptTokensDetails(cached_tokens=3, audio_tokens=1),
        ),
    ],
)
@virtual
async def test_prompt_details_are_those_of_the_clients_prompt(
    told: PromptTokensDetails | None, shown: PromptTokensDetails | None
) -> None:
    """Its prompt has three tokens, and no more than those can be cached."""
    counts = usage(5, 1)
    counts.prompt_tokens_details = told
    last = LLMEngineOutput.stop().with_usage(counts)
    spare = ScriptedEngine(token(5), last)
    served = await answer(FailoverEngine(ScriptedEngine(token(3), token(4), GONE), spare))
    expected = usage(3, 3)
    expected.prompt_tokens_details = shown
    assert chunk_of(served.last).completion_usage == expected


# Stops.


@pytest.mark.rows("A2", "A3", "A5")
@pytest.mark.parametrize("mode", ["agg", "decode"])
@virtual
async def test_a_stop_concurrent_with_an_end(mode: str) -> None:
    """Before the first pull, or in the iteration of a drop, the engine is aborted all the same."""
    for pulls in (0, 1):
        engine, context, began = LosableEngine(), RequestContext("r1"), now()
        adapter = adapter_of(FailoverEngine(engine), mode)
        stream = await adapter.generate(counting_request(), context)
        for _ in range(pulls):
            await anext(stream)
        context.stop_generating()
        if pulls:
            await stream.aclose()
        else:
            items = await collect(stream)
            assert chunk_of(items[-1]).finish_reason == FinishReason.CANCELLED
        await asyncio.sleep(0)
        # An engine that has no token yet is not aborted in decode mode.
        expected = [("r1", began + pulls)] if pulls or mode == "agg" else []
        assert engine.aborts == expected


@pytest.mark.rows("A2")
@pytest.mark.parametrize("ends", [False, True])
@virtual
async def test_after_a_stop_nothing_is_resumed(ends: bool) -> None:
    """The engine that is lost then was aborted, and its error is passed on as it is."""
    lost, spare, context = LosableEngine(lives=1, ends=ends), LosableEngine(), RequestContext("r1")
    stream = await adapter_of(FailoverEngine(lost, spare)).generate(counting_request(), context)
    await anext(stream)
    context.stop_generating()
    items = await collect(stream)
    await asyncio.sleep(0)
    if not ends:
        (failed,) = items
        assert isinstance(failed.error, Disconnected)
        assert not hasattr(failed.error, "__notes__")
    assert (lost.aborts, spare.opened) == ([("r1", 1.0)], 0)


@pytest.mark.rows("S2")
@virtual
async def test_after_the_terminal_nothing_is_resumed() -> None:
    """An error after it passes unchanged to a consumer that pulls on."""
    error, spare = Disconnected("late"), LosableEngine()
    engine = FailoverEngine(ScriptedEngine(token(1), stop(), error), spare)
    chunks = engine.generate(counting_request(), RequestContext())
    assert [(await anext(chunks)).token_ids, (await anext(chunks)).token_ids] == [[1], []]
    with pytest.raises(Disconnected):
        await anext(chunks)
    assert (hasattr(error, "__notes__"), spare.opened) == (False, 0)


@pytest.mark.rows("A4", "A5")
@pytest.mark.parametrize("told_by", ["token", "notice", "drop"])
@virtual
async def test_in_decode_mode_the_spare_has_its_own_first_token(told_by: str) -> None:
    """A stop that finds the spare before it waits for it, though the client has tokens already."""
    contexts: list[RequestContext] = []
    spare = ScriptedEngine(contexts.append, 5, token(4), stop())
    lost, context = LosableEngine(lives=1), RequestContext()
    engine = FailoverEngine(lost, spare)
    stream = await adapter_of(engine, "decode").generate(counting_request(), context)
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


@pytest.mark.rows("A4", "C4")
@virtual
async def test_an_engines_first_token_notification_reaches_the_request() -> None:
    """The request's own gate opens too, before any chunk."""
    context = RequestContext()
    engine = FailoverEngine(
        ScriptedEngine(1, RequestContext.notify_first_token, 5, token(1), stop())
    )
    stream = await adapter_of(engine, "decode").generate(counting_request(), context)
    pull = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(2)
    assert context.first_token().is_set
    await pull
    await stream.aclose()


@virtual
async def test_an_abort_without_a_stop_stops_the_active_engine() -> None:
    """Without an adapter the engine can be aborted directly; what has ended is not aborted."""
    lost, spare, context = LosableEngine(lives=1), LosableEngine(), RequestContext("r1")
    engine = FailoverEngine(lost, spare)
    chunks = engine.generate(counting_request(), context)
    await anext(chunks)
    await anext(chunks)
    await engine.abort(context)
    await engine.abort(context)
    await asyncio.sleep(0)
    assert ([who for who, _ in spare.aborts], lost.aborts) == (["r1/resume-1"], [])
    await chunks.aclose()
    await engine.abort(context)
    assert len(spare.aborts) == 1
    assert context.is_stopped


# The budget.


@virtual
async def test_when_the_budget_is_spent_a_lost_request_fails() -> None:
    """With its own error, which says so; requests fill the budget again."""
    engine = FailoverEngine(
        LosableEngine(lives=1), LosableEngine(), budget=RetryBudget(ratio=0.5, burst=1)
    )
    # What can't be resumed takes nothing from it.
    assert (await answer(engine, sampling_options=SamplingOptions(n=2))).last.error is not None
    errors = [(await answer(engine)).last.error for _ in range(5)]
    assert [error is None for error in errors] == [True, False, True, False, True]
    assert isinstance(errors[1], Disconnected)
    # The engine raises the same instance for every request.
    assert errors[1].__notes__.count("not resumed: the retry budget is spent") == 1


@virtual
async def test_the_default_budget() -> None:
    """A fifth of all requests, and a burst of 100."""
    spare = LosableEngine()
    engine = FailoverEngine(LosableEngine(lives=0), spare)
    for _ in range(150):
        await answer(engine, max_tokens=1)
    assert spare.opened == 100 + 150 // 5 - 1


@pytest.mark.parametrize(
    ("lost", "budget", "read", "wasted"),
    [
        # The engine had no load of it, so no budget bounds another try.
        (LosableEngine(lives=0, error=CannotConnect("nobody")), RetryBudget(0, 0), 3, {}),
        # The spare's prompt is work too, and none that an answer needed.
        (LosableEngine(lives=2), None, 8, {("input",): 5}),
    ],
    ids=["refused", "lost"],
)
@virtual
async def test_reprocessed_tokens_are_counted(
    lost: LosableEngine, budget: RetryBudget | None, read: int, wasted: dict[Any, int]
) -> None:
    """As tokens, and as wasted ones; a refused connection costs nothing."""
    meters = Meters()
    engine = FailoverEngine(lost, LosableEngine(), budget=budget)
    adapter = EngineAdapter(engine, meter_provider=meters.provider)
    assert flat(await collect(await adapter.generate(counting_request()))) == ALL
    counted = meters.counts("rx_backend.tokens", "gen_ai.token.type")
    assert counted == {("input",): read, ("output",): 6}
    assert meters.counts("rx_backend.tokens.wasted", "gen_ai.token.type") == wasted


@given(
    ratio=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    burst=st.integers(0, 5),
    calls=st.lists(st.booleans(), max_size=60),
)
def test_a_budget_bounds_the_extra_load(ratio: float, burst: int, calls: list[bool]) -> None:
    """Extra calls are at most the share of all requests and the burst, and as many as that allows."""
    budget = RetryBudget(ratio, burst)
    extra = 0
    for requests, wants in enumerate(calls, 1):
        budget.add_request()
        extra += wants and budget.withdraw()
        assert extra <= ratio * requests + burst + 1e-6
    always = RetryBudget(ratio, burst)
    granted = 0
    for _ in range(100):
        always.add_request()
        granted += always.withdraw()
    # Where the bucket holds less than an extra call and a share, some of the share spills over.
    assert granted >= min(int(ratio * 100 + 1e-6), 100) * (burst >= 1 + ratio)


# What the combination does as one engine.


class Started(SampleEngine):
    """Notes what is called, in a journal that engines share."""

    def __init__(self, name: str, journal: list[str], *failing: str) -> None:
        super().__init__()
        self.name, self.journal, self.failing = name, journal, failing

    def note(self, what: str) -> None:
        self.journal.append(f"{self.name}.{what}")
        if what in self.failing:
            raise LookupError(self.name)

    async def start(self, worker_id: int) -> Any:
        self.note("start")
        return replace(await super().start(worker_id), model=self.name)

    async def cleanup(self) -> None:
        self.note("cleanup")

    async def drain(self) -> None:
        self.note("drain")

    async def is_quiescent(self) -> bool:
        self.note("is_quiescent")
        return self.name != "b"

    async def health_check_payload(self) -> dict[str, Any]:
        return {"of": self.name}


@pytest.mark.rows("E1", "E5")
@virtual
async def test_the_life_of_all_engines() -> None:
    """Each is started once, also where it is there twice, and cleaned up; the first one speaks."""
    journal: list[str] = []
    a, b = Started("a", journal), Started("b", journal)
    engine = FailoverEngine(a, b, a)
    assert (await engine.start(7)).model == "a"
    assert await engine.health_check_payload() == {"of": "a"}
    assert not await engine.is_quiescent()
    await engine.drain()
    await engine.cleanup()
    assert journal == [
        f"{name}.{what}"
        for what in ("start", "is_quiescent", "drain", "cleanup")
        for name in ("a", "b")
    ]
    assert await FailoverEngine(a).is_quiescent()


class MayBeLost(Started):
    """Is lost after so many seconds, if any are given."""

    def __init__(self, name: str, journal: list[str], lost_s: float | None = None) -> None:
        super().__init__(name, journal)
        self.lost_s = lost_s

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Any:
        self.note("generate")
        return super().generate(request, context)

    async def lost(self) -> str:
        if self.lost_s is None:
            return await super().lost()
        await asyncio.sleep(self.lost_s)
        raise OSError(f"{self.name} is gone")


@pytest.mark.rows("E7")
@virtual
async def test_it_is_lost_when_all_engines_are() -> None:
    """The reason has all of theirs; one that can't be lost keeps the others' from counting."""
    engines = [MayBeLost(name, [], at) for name, at in (("a", 5), ("b", 3))]
    began = asyncio.get_running_loop().time()
    reason = await FailoverEngine(*engines).lost()
    assert asyncio.get_running_loop().time() - began == 5
    assert "a is gone" in reason
    assert "b is gone" in reason
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(FailoverEngine(*engines, MayBeLost("c", [])).lost(), 100)


@pytest.mark.rows("E7")
@virtual
async def test_a_lost_engine_gets_no_requests() -> None:
    """Once someone awaits `lost`, as a worker does; when all are lost the order is as before."""
    journal: list[str] = []
    engine = FailoverEngine(*(MayBeLost(name, journal, 5 if name == "a" else 50) for name in "abc"))
    watch = asyncio.create_task(engine.lost())
    for seconds in (1, 9, 90):
        await asyncio.sleep(seconds)
        await collect(await EngineAdapter(engine).generate(counting_request()))
    assert journal == ["a.generate", "b.generate", "a.generate"]
    await watch


@pytest.mark.rows("E5")
@pytest.mark.parametrize("failing", ["a", "ab"])
@virtual
async def test_all_engines_are_cleaned_up_though_one_fails(failing: str) -> None:
    """One failure is raised as it is, several as a group."""
    journal: list[str] = []
    engines = [Started(name, journal, *(["cleanup"] * (name in failing))) for name in "ab"]
    with pytest.raises((LookupError, ExceptionGroup)) as caught:
        await FailoverEngine(*engines).cleanup()
    assert isinstance(caught.value, ExceptionGroup) == (failing == "ab")
    assert journal == ["a.cleanup", "b.cleanup"]


class Duck:
    """An engine without what it need not have."""

    def generate(self, request: PreprocessedRequest, context: RequestContext) -> Any:
        return SampleEngine().generate(request, context)


@pytest.mark.rows("E5")
@virtual
async def test_optional_methods_may_be_missing() -> None:
    """Its defaults are taken."""
    engine = FailoverEngine(Duck())  # type: ignore[arg-type]
    assert await engine.is_quiescent()
    assert await engine.health_check_payload() is None
    await engine.drain()
