"""Replays in virtual time: what clients see, and what they do."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reactivex import operators as ops

from operators import heartbeat
from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig
from rx_backend.engines import SampleEngine, SimulatedEngine
from rx_backend.errors import Disconnected, InvalidArgument, Unknown
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import (
    Annotated,
    CompletionUsage,
    FinishReason,
    LLMEngineOutput,
    PreprocessedRequest,
    usage,
)
from rx_backend.replay import ReplayResult, Request, at_speed, replay, synthetic
from rx_backend.testing import run_virtual
from tests.engines import ScriptedEngine, virtual
from tests.engines.broken import DuckEngine
from tests.spans import Spans


def test_a_request_is_measured_from_its_arrival() -> None:
    """Arrival, TTFT, gaps and duration are those of the engine's pace."""
    engine = SampleEngine(token_interval_ms=20)
    result = run_virtual(replay([Request(0, 3, 2), Request(1.5, 7, 5)], engine))
    first, second = result.requests
    assert (first.index, first.tokens, first.duration_ms) == (0, 2, 40)
    assert (second.index, second.arrival_s, second.prompt_tokens) == (1, 1.5, 7)
    assert (second.tokens, second.requested_tokens, second.outcome) == (5, 5, "length")
    assert second.error is None
    assert second.ttft_ms == 20
    assert (second.itl_p50_ms, second.itl_p90_ms, second.itl_p99_ms) == (20, 20, 20)
    assert second.end_s == pytest.approx(1.6)
    assert result.duration_s == pytest.approx(1.6)
    assert result.itl.buckets() == [(20.0, 5)]
    assert result.tokens_by_s == {0: 2, 1: 5}
    assert result.running == 0


def test_ttft_includes_the_queue() -> None:
    """A request that waits for a slot has its waiting time in its TTFT."""
    engine = SimulatedEngine(max_batch=1, step_ms=10, step_ms_per_sequence=0)
    result = run_virtual(replay([Request(0, 0, 10), Request(0.01, 0, 1)], engine))
    assert [row.ttft_ms for row in result.requests] == [10, 100]


def test_every_token_arrives() -> None:
    """Without interference each request gets exactly the tokens that it asked for."""
    rows = synthetic(120, seed=2)
    result = run_virtual(replay(rows, SimulatedEngine(max_batch=16)))
    assert result.planned == len(result.requests) == 120
    assert {row.outcome for row in result.requests} == {"length"}
    received = {row.index: row.tokens for row in result.requests}
    assert received == {index: row.output_tokens for index, row in enumerate(rows)}
    assert sum(result.tokens_by_s.values()) == result.tokens
    assert result.itl.total == result.tokens - 120


def test_the_rates_of_cancels_drops_and_failures_are_kept() -> None:
    """
    The rates decide how requests end; clients that left early have fewer tokens.

    Nothing is leaked.
    """
    rows = synthetic(400, rate_per_s=40)
    engine = SimulatedEngine(error_rate=0.1, seed=4)
    result = run_virtual(replay(rows, engine, cancel_rate=0.2, drop_rate=0.3, seed=4))
    outcomes = Counter(row.outcome for row in result.requests)
    assert 50 < outcomes["cancelled"] < 110
    assert 80 < outcomes["dropped"] < 150
    assert 10 < outcomes["error"] < 50
    assert sum(outcomes.values()) == 400
    for row in result.requests:
        assert (row.error is not None) == (row.outcome == "error")
        assert (row.tokens < row.requested_tokens) == (row.outcome != "length")
    assert run_virtual(engine.is_quiescent())
    assert (engine.load.waiting, engine.load.decoding, engine.load.kv_tokens) == (0, 0, 0)


def test_same_seed_same_replay() -> None:
    """A replay in virtual time gives the same figures again; another seed gives others."""

    def rows(seed: int) -> list[object]:
        engine = SimulatedEngine(error_rate=0.1, seed=seed, max_batch=8)
        running = replay(synthetic(60), engine, cancel_rate=0.1, drop_rate=0.1, seed=seed)
        return [*run_virtual(running).requests]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


@pytest.mark.rows("A2", "A6")
def test_a_cancelling_client_reads_up_to_the_terminal() -> None:
    """After its stop the client still gets what was under way, and the engine's `cancelled`."""
    rows = [Request(0, 1, 40)] * 20
    result = run_virtual(replay(rows, SimulatedEngine(), cancel_rate=1, seed=1))
    assert {row.outcome for row in result.requests} == {"cancelled"}
    assert len({row.tokens for row in result.requests}) > 5


@pytest.mark.rows("S7")
def test_a_client_drops_before_the_end() -> None:
    """Also before the first pull, and then there is no TTFT; never behind the last token."""
    result = run_virtual(replay([Request(0, 1, 2)] * 20, SimulatedEngine(), drop_rate=1))
    assert {(row.outcome, row.tokens) for row in result.requests} == {
        ("dropped", 0),
        ("dropped", 1),
    }
    assert all((row.ttft_ms is None) == (row.tokens == 0) for row in result.requests)


class Journal(ScriptedEngine):
    """Notes the calls of its life."""

    async def drain(self) -> None:
        self.calls += 10

    async def cleanup(self) -> None:
        self.calls += 100


@pytest.mark.parametrize(
    ("then", "outcome", "error", "tokens"),
    [
        (ValueError("boom"), "error", "InvalidArgument", 3),
        (LLMEngineOutput.error("boom").with_tokens([4]), "error", "terminal", 4),
        (LLMEngineOutput.stop(), "stop", None, 3),
        (0.0, "error", "StreamIncomplete", 3),
    ],
)
def test_every_outcome_is_distinguished(
    then: Any, outcome: str, error: str | None, tokens: int
) -> None:
    """Mid-stream error, error terminal, stop and no terminal have their names."""
    engine = Journal(LLMEngineOutput(), 0.5, LLMEngineOutput([1, 2, 3]), 0.25, then)
    result = run_virtual(replay([Request(0, 1, 9)], engine))
    (row,) = result.requests
    assert (row.outcome, row.error, row.tokens, row.ttft_ms) == (outcome, error, tokens, 500)
    assert result.itl.buckets() == [(250.0, 1)] * (tokens == 4)
    assert engine.calls == 111


@pytest.mark.rows("F1")
@pytest.mark.parametrize(
    "content", [{"text": "word"}, {"content_parts": [{"type": "image_url"}]}], ids=["text", "parts"]
)
@pytest.mark.parametrize("told", [None, usage(1, 7)], ids=["no-usage", "usage"])
def test_content_without_token_ids_is_measured_too(
    content: dict[str, Any], told: CompletionUsage | None
) -> None:
    """Its times are those of the chunks, its tokens those of the usage; clients stop and leave by it."""
    script = [step for _ in range(4) for step in (0.5, LLMEngineOutput(**content))]
    end = LLMEngineOutput(finish_reason=FinishReason.STOP, completion_usage=told)
    engine = ScriptedEngine(*script, end)
    result = run_virtual(replay([Request(0, 1, 9)], engine))
    (row,) = result.requests
    assert (row.ttft_ms, row.itl_p99_ms, row.tokens) == (500, 500, 0 if told is None else 7)
    assert (result.itl.total, sum(result.tokens_by_s.values())) == (3, 4)
    left = run_virtual(replay([Request(0, 1, 4)] * 20, engine, drop_rate=1)).requests
    assert {row.outcome for row in left} == {"dropped"}
    assert {row.ttft_ms for row in left} == {None, 500}


@pytest.mark.rows("F5")
def test_each_token_of_a_chunk_counts() -> None:
    """Tokens per second, and the tokens after which clients stop or leave, are no chunks."""
    script = [step for _ in range(4) for step in (0.5, LLMEngineOutput([7] * 5))]
    engine = ScriptedEngine(*script, LLMEngineOutput.length())
    result = run_virtual(replay([Request(0, 1, 20)], engine))
    assert (result.tokens, result.tokens_by_s) == (20, {0: 5, 1: 10, 2: 5})
    left = run_virtual(replay([Request(0, 1, 15)] * 20, engine, drop_rate=1)).requests
    assert {row.outcome for row in left} == {"dropped"}
    assert {row.tokens for row in left} == {0, 5, 10, 15}


class OperatorBug(Exception):
    """What an operator on items raises."""


def failing(item: Any) -> Any:
    if item.data is not None and item.data.token_ids == [2]:
        raise OperatorBug
    return item


@pytest.mark.parametrize(
    ("added", "outcome", "error"),
    [
        (heartbeat(0.1, Annotated[LLMEngineOutput](comment=["alive"])), "length", None),
        (heartbeat(0.1, Annotated[LLMEngineOutput](event="alive")), "length", None),
        (ops.map(failing), "error", "Unknown"),
    ],
    ids=["comments", "events", "a-bug"],
)
def test_any_pipeline_of_items_is_measured(added: Any, outcome: str, error: str | None) -> None:
    """Events beside the answer end nothing, and what an operator raises fails its own request."""
    pipeline = standard_pipeline.with_operators(added)
    engine = SampleEngine(token_interval_ms=1000)
    result = run_virtual(replay([Request(0, 1, 4), Request(9, 1, 2)], engine, pipeline=pipeline))
    first, second = result.requests
    assert (first.outcome, first.error, first.ttft_ms) == (outcome, error, 1000)
    assert (second.outcome, second.tokens, second.ttft_ms) == ("length", 2, 1000)


@pytest.mark.parametrize(
    ("added", "got"),
    [(ops.buffer_with_count(2), "list"), (ops.map(str), "str"), (ops.map(id), "int")],
    ids=["list", "str", "int"],
)
def test_a_pipeline_of_other_items_is_named(added: Any, got: str) -> None:
    """Requests in flight end first; those that would come later are not sent."""
    pipeline, result = standard_pipeline.with_operators(added), ReplayResult()
    rows = [Request(0, 1, 4), Request(0, 1, 4), Request(9, 1, 4)]
    with pytest.raises(InvalidArgument, match=rf"pipeline: expected Annotated items, got {got}"):
        run_virtual(replay(rows, SampleEngine(), pipeline=pipeline, result=result))
    assert [row.error for row in result.requests] == ["InvalidArgument"] * 2


def test_a_failed_set_up_has_its_kind() -> None:
    """A request that has no stream has no TTFT either."""
    engine = ScriptedEngine(setup=[Disconnected("gone before the stream")])
    (row,) = run_virtual(replay([Request(0, 1, 9)], engine)).requests
    assert (row.outcome, row.error, row.tokens, row.ttft_ms) == ("error", "Disconnected", 0, None)


def test_progress_is_reported_at_each_end(spans: Spans) -> None:
    """The callback sees the result grow; with a tracer each request has its span."""
    counts: list[tuple[int, int, int]] = []

    def note(result: ReplayResult) -> None:
        counts.append((len(result.requests), result.running, result.tokens))

    rows = [Request(0, 1, 2), Request(0, 1, 4)]
    run_virtual(replay(rows, SampleEngine(), on_end=note, tracer=spans.tracer))
    assert counts == [(1, 1, 2), (2, 0, 6)]
    assert [span.attributes["ttft_ms"] for span in spans.finished if span.attributes] == [10, 10]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"cancel_rate": -0.1}, "cancel_rate: expected"),
        ({"drop_rate": 2}, "drop_rate: expected"),
        ({"cancel_rate": 0.6, "drop_rate": 0.6}, "must not sum to more than 1"),
        ({"seed": [1]}, "seed: expected a whole number, got"),
        ({"pipeline": 5}, "pipeline: expected a Pipeline"),
        ({"tracer": "otel"}, "tracer: expected a Tracer, got 'otel'"),
        ({"record": 1}, "record: expected True, False or None, got 1"),
        ({"on_end": "x"}, "on_end: expected a function that is not async, got 'x'"),
        ({"on_end": asyncio.sleep}, "on_end: expected a function that is not async"),
        ({"result": []}, "result: expected a ReplayResult, got"),
        ({"workload": None}, "workload: expected requests, got None"),
    ],
)
def test_options_are_checked(options: dict[str, Any], complaint: str) -> None:
    """What does not fit is refused by name, before the engine starts."""
    engine = Journal()
    options = {"workload": [], **options}
    with pytest.raises(InvalidArgument, match=complaint):
        run_virtual(replay(engine=engine, **options))
    assert engine.calls == 0


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (None, r"workload\[1\]: expected a Request, got None"),
        ((0.0, 1, 1), r"workload\[1\]: expected a Request, got"),
        (Request(-1, 1, 1), r"\.arrival_s: expected a number of seconds, 0 or more, got -1"),
        (Request(math.nan, 1, 1), r"\.arrival_s: expected"),
        (Request(math.inf, 1, 1), r"\.arrival_s: expected"),
        (
            Request(0, -1, 1),
            r"\.prompt_tokens: expected a whole number of tokens, 0 or more, got -1",
        ),
        (Request(0, 1, 0), r"workload\[1\]\.output_tokens: expected"),
        (Request(0, 1, True), r"\.output_tokens: expected"),
    ],
)
def test_requests_are_checked(row: Any, complaint: str) -> None:
    """When it is their turn: those before are served, and those in flight end."""
    result = ReplayResult()
    rows = [Request(0, 1, 9), row, Request(0, 1, 1)]
    with pytest.raises(InvalidArgument, match=complaint):
        run_virtual(replay(rows, SampleEngine(), drop_rate=0.0, result=result))
    assert [request.outcome for request in result.requests] == ["length"]
    with pytest.raises(InvalidArgument, match=complaint):
        list(at_speed(rows, 1))


@virtual
async def test_a_cancelled_replay_keeps_its_figures() -> None:
    """Its clients are cancelled, the engine is cleaned up, and what was seen stays in the result."""
    engine = SimulatedEngine()
    result = ReplayResult()
    rows = [Request(0, 1, 1), *[Request(0, 1, 10_000)] * 5]
    running = asyncio.create_task(replay(rows, engine, result=result))
    await asyncio.sleep(1)
    assert engine.load.decoding == result.running == 5
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await engine.is_quiescent()
    outcomes = [(row.outcome, row.error) for row in result.requests]
    assert outcomes == [("length", None)] + [("interrupted", None)] * 5
    assert result.requests[-1].tokens > 50
    assert result.requests[-1].ttft_ms is not None
    assert (result.planned, result.running) == (6, 0)


@virtual
async def test_a_workload_may_be_read_as_it_is_replayed() -> None:
    """Rows are taken when they are due; one that fails ends the replay behind those in flight."""
    loop = asyncio.get_running_loop()
    taken: list[float] = []

    def rows() -> Iterator[Request]:
        for n in range(3):
            taken.append(loop.time())
            yield Request(n, 1, 150)
        raise InvalidArgument("line 4")

    result = ReplayResult()
    with pytest.raises(InvalidArgument, match="line 4"):
        await replay(rows(), SampleEngine(), result=result)
    assert taken == [0.0, 0.0, 1.0]
    assert [row.outcome for row in result.requests] == ["length"] * 3
    assert result.planned is None


class Reader(SampleEngine):
    """Keeps the requests that it gets."""

    def __init__(self, context_length: int | None = None) -> None:
        super().__init__(token_interval_ms=0)
        self.context_length = context_length
        self.requests: list[PreprocessedRequest] = []

    async def start(self, worker_id: int) -> EngineConfig:
        await super().start(worker_id)
        return EngineConfig(model="path", served_model_name="m", context_length=self.context_length)

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.requests.append(request)
        return super().generate(request, context)


def test_prompts_are_drawn() -> None:
    """Ids below the vocabulary's size, by the seed, and none without one; answers have full length."""

    def prompts(**options: Any) -> list[list[int]]:
        engine = Reader()
        run_virtual(replay([Request(0, 500, 1), Request(0, 500, 1)], engine, **options))
        assert [request.model for request in engine.requests] == ["path", "path"]
        assert all(request.stop_conditions.ignore_eos for request in engine.requests)
        return [request.token_ids for request in engine.requests]

    first, second = drawn = prompts(vocab_size=10)
    assert len(first) == len(second) == 500
    assert set(first) == set(second) == set(range(1, 10))
    assert first != second
    assert prompts(vocab_size=10) == drawn != prompts(vocab_size=10, seed=1)
    assert prompts() == [[0] * 500] * 2
    with pytest.raises(InvalidArgument, match="vocab_size: expected a whole number, 2 or more"):
        prompts(vocab_size=1)


@given(st.integers(0, 60), st.integers(1, 60), st.none() | st.integers(1, 80))
def test_a_request_fits_into_the_context(prompt: int, output: int, length: int | None) -> None:
    """What is too long is cut and counted: the output not below half of the context."""
    engine = Reader(length)
    result = run_virtual(replay([Request(0, prompt, output)], engine))
    (request,), (row,) = engine.requests, result.requests
    sent = len(request.token_ids), request.stop_conditions.max_tokens or 0
    assert sent == (row.prompt_tokens, row.requested_tokens)
    if length is None or prompt + output <= length:
        assert sent == (prompt, output)
        assert result.truncated == 0
    else:
        assert sum(sent) == length or sent == (prompt, max(length - prompt, 1))
        assert min(output, length // 2) <= sent[1] <= output
        assert sent[0] <= prompt
        assert result.truncated == 1
    assert (result.model, result.context_length, row.outcome) == ("m", length, "length")


class Failing(SampleEngine):
    """Fails in the named steps of its life."""

    def __init__(self, *steps: str) -> None:
        super().__init__()
        self.steps = steps

    def _fail(self, step: str) -> None:
        if step in self.steps:
            raise ValueError(f"no {step}")

    async def start(self, worker_id: int) -> EngineConfig:
        self._fail("start")
        return EngineConfig(model=" " if "config" in self.steps else "failing")

    async def drain(self) -> None:
        self._fail("drain")

    async def cleanup(self) -> None:
        self._fail("cleanup")


@pytest.mark.rows("E1", "E5")
@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["start", "cleanup"], r"Failing\.start raised ValueError: no start"),
        (["config"], r"Failing\.start raised InvalidArgument: start\(\) must return"),
        (["drain", "cleanup"], r"Failing\.drain raised ValueError: no drain"),
        (["cleanup"], r"Failing\.cleanup raised ValueError: no cleanup"),
    ],
)
def test_a_failing_engine_is_named(steps: list[str], message: str) -> None:
    """The first failure of its life is raised; figures from before it are kept."""
    result = ReplayResult()
    with pytest.raises(Unknown, match=message):
        run_virtual(replay([Request(0, 1, 2)], Failing(*steps), result=result))
    assert len(result.requests) == (steps[0] in {"drain", "cleanup"})


@pytest.mark.rows("E1", "E5")
def test_an_engine_without_a_required_method_is_not_started() -> None:
    """It could not be cleaned up."""
    started: list[int] = []
    engine: Any = SimpleNamespace(start=started.append, generate=SampleEngine().generate)
    with pytest.raises(InvalidArgument, match="engine: SimpleNamespace has no method cleanup"):
        run_virtual(replay([Request(0, 1, 2)], engine))
    assert started == []


@pytest.mark.rows("E5")
def test_an_engine_without_optional_methods_is_replayed() -> None:
    """It needs no base class, and no `drain`."""
    result = run_virtual(replay([Request(0, 1, 2)], cast("Any", DuckEngine())))
    assert [row.error for row in result.requests] == [None]
