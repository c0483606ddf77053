"""What is counted and measured of requests, beside what their spans say."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from operators import deadlines
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import Disconnected, InvalidArgument
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.telemetry import EXPORT_ENABLED
from rx_backend.telemetry.metrics import OTHER_MODELS
from rx_backend.telemetry.series import EVERY_NTH_GAP
from tests.meters import Meters
from tests.rx_backend._engines import (
    ScriptedEngine,
    Step,
    Stream,
    collect,
    request,
    run_virtual,
    stop,
    token,
    virtual,
)
from tests.spans import Spans

REQUESTS, ABORTS, ACTIVE = "rx_backend.requests", "rx_backend.aborts", "rx_backend.requests.active"
DURATION, FIRST = "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"
PER_TOKEN, GAP = "gen_ai.server.time_per_output_token", "rx_backend.inter_token_latency"
HOW = ("rx_backend.finish_reason", "error.type")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment says nothing about recording."""
    monkeypatch.delenv(EXPORT_ENABLED, raising=False)


def metered(
    engine: ScriptedEngine,
    meters: Meters,
    spans: Spans | None = None,
    mode: str = "agg",
    **more: Any,
) -> EngineAdapter:
    tracer = None if spans is None else spans.tracer
    return EngineAdapter(
        engine,
        mode,
        tracer=tracer,
        meter_provider=meters.provider,
        clock=asyncio.get_running_loop().time,
        **more,
    )


async def read_all(stream: Stream) -> None:
    await collect(stream)


async def close_after_one(stream: Stream) -> None:
    await anext(stream)
    await stream.aclose()


async def cancelled_task(stream: Stream) -> None:
    task = asyncio.create_task(collect(stream))
    await asyncio.sleep(2.5)
    task.cancel()
    await asyncio.wait([task])


async def forget_after_one(stream: Stream) -> None:
    await anext(stream)
    del stream
    gc.collect()
    await asyncio.sleep(0)


Leave = Callable[[Stream], Awaitable[None]]

# Every way out: the engine's steps, what the consumer does, and how that is counted.
ENDS: dict[str, tuple[list[Step], Leave, tuple[str, str | None]]] = {
    "stop": ([1, token(1), stop()], read_all, ("stop", None)),
    "length": ([1, token(1), LLMEngineOutput.length()], read_all, ("length", None)),
    "cancelled": ([1, token(1), LLMEngineOutput.cancelled()], read_all, ("cancelled", None)),
    "error-terminal": (
        [1, token(1), LLMEngineOutput.error("prompt text")],
        read_all,
        ("error", "ErrorTerminal"),
    ),
    "typed-error": ([1, token(1), Disconnected("gone")], read_all, ("failed", "Disconnected")),
    "any-error": ([1, token(1), RuntimeError("boom")], read_all, ("failed", "Unknown")),
    "no-terminal": ([1, token(1)], read_all, ("failed", "StreamIncomplete")),
    "closed": ([1, token(1), 9, stop()], close_after_one, ("dropped", "Dropped")),
    "task-cancelled": ([1, token(1), 9, stop()], cancelled_task, ("dropped", "Dropped")),
    "forgotten": ([1, token(1), 9, stop()], forget_after_one, ("dropped", "Dropped")),
}


@pytest.mark.parametrize(("script", "leave", "how"), ENDS.values(), ids=ENDS)
@virtual
async def test_every_way_out_counts_once(
    script: list[Step], leave: Leave, how: tuple[str, str | None]
) -> None:
    """One request, its tokens, its duration with the error's type, and nothing is left active."""
    meters, spans = Meters(), Spans()
    stream = await metered(ScriptedEngine(*script), meters, spans).generate(request(prompt=5))
    assert meters.counts(ACTIVE) == {(): 1}
    held = [stream]
    del stream
    await leave(held.pop())
    assert meters.counts(REQUESTS, *HOW) == {how: 1}
    assert meters.counts(ACTIVE) == {}
    assert meters.counts("rx_backend.tokens", "gen_ai.token.type") == {
        ("input",): 5,
        ("output",): 1,
    }
    assert meters.counts(DURATION, "error.type") == {how[1:]: 1}
    assert meters.counts(FIRST) == ({(): 1} if how[1] is None else {})
    assert (spans.one().attributes or {}).get("error.type") == how[1]


@pytest.mark.parametrize(
    ("setup", "how"),
    [
        (InvalidArgument("too long"), ("setup_failed", "InvalidArgument")),
        (ValueError("too long"), ("setup_failed", "InvalidArgument")),
        (60, ("dropped", "Dropped")),
    ],
)
@virtual
async def test_a_request_without_a_stream_counts_once(
    setup: Step, how: tuple[str, str | None]
) -> None:
    """A set-up that fails, and a caller who leaves during it."""
    meters, spans = Meters(), Spans()
    adapter = metered(ScriptedEngine(setup=[setup]), meters, spans)
    with pytest.raises((InvalidArgument, TimeoutError)):
        await asyncio.wait_for(adapter.generate(request()), 5)
    assert meters.counts(REQUESTS, *HOW) == {how: 1}
    assert meters.counts(ACTIVE) == {}
    assert (spans.one().attributes or {})["error.type"] == how[1]


@virtual
async def test_latencies_have_the_buckets_and_values_of_the_conventions() -> None:
    """Set-up counts towards TTFT and duration; TPOT is per token after the first chunk's."""
    meters = Meters()
    engine = ScriptedEngine(1, token(1), 0.5, LLMEngineOutput([2, 3]), 0.5, stop(), setup=[2])
    await collect(await metered(engine, meters, Spans()).generate(request()))
    sums = {name: meters.points(name)[0].sum for name in (DURATION, FIRST, PER_TOKEN)}
    assert sums == pytest.approx({DURATION: 4.0, FIRST: 3.0, PER_TOKEN: 0.25})
    bounds = {name: meters.points(name)[0].explicit_bounds for name in sums}
    assert (bounds[DURATION][0], bounds[DURATION][-1], len(bounds[DURATION])) == (0.01, 81.92, 14)
    assert (bounds[FIRST][0], bounds[FIRST][-1], len(bounds[FIRST])) == (0.001, 10.0, 16)
    assert (bounds[PER_TOKEN][0], bounds[PER_TOKEN][-1], len(bounds[PER_TOKEN])) == (0.01, 2.5, 13)


@given(chunks=st.lists(st.integers(0, 3 * EVERY_NTH_GAP), max_size=8))
def test_one_gap_in_so_many_is_recorded(chunks: list[int]) -> None:
    """Whichever requests the gaps fall in, none is missed and none counted twice."""
    meters = Meters()

    async def run() -> None:
        for count in chunks:
            engine = ScriptedEngine(*[token(1)] * count, stop())
            await collect(await metered(engine, meters, Spans()).generate(request()))

    run_virtual(run())
    gaps = sum(max(count - 1, 0) for count in chunks)
    assert meters.counts(GAP).get((), 0) == -(-gaps // EVERY_NTH_GAP)


ALL_STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.sampled_from([token(1), LLMEngineOutput(), 1, 0.5]), max_size=4
)
ANY_END: st.SearchStrategy[list[Step]] = st.sampled_from(
    [[stop()], [LLMEngineOutput.error("e")], [Disconnected("gone")], [RuntimeError("e")], [], [60]]
)


@given(st.lists(st.tuples(ALL_STEPS, ANY_END, st.integers(0, 5)), max_size=6))
def test_metrics_agree_with_spans(requests: list[tuple[list[Step], list[Step], int]]) -> None:
    """Whatever happens to requests side by side, both say the same of how they ended."""
    meters, spans = Meters(), Spans()

    async def one(script: list[Step], end: list[Step], patience: int) -> None:
        stream = await metered(ScriptedEngine(*script, *end), meters, spans).generate(request())
        try:
            async with asyncio.timeout(patience):
                await collect(stream)
        except TimeoutError:
            pass
        finally:
            await stream.aclose()

    async def run() -> None:
        await asyncio.gather(*[one(*parts) for parts in requests])

    run_virtual(run())
    told = [(span.attributes or {}).get("error.type") for span in spans.finished]
    assert meters.counts(REQUESTS, "error.type") == {
        (kind,): told.count(kind) for kind in set(told)
    }
    tokens = sum((span.attributes or {})["output_tokens"] for span in spans.finished)  # type: ignore[misc]
    counted = meters.counts("rx_backend.tokens", "gen_ai.token.type").get(("output",), 0)
    assert counted == tokens
    assert meters.counts(ACTIVE) == {}


@pytest.mark.rows("A2", "A3", "A4", "A5")
@pytest.mark.parametrize(
    ("mode", "script", "stop_at", "what"),
    [
        ("agg", [9, stop()], 1, "immediate"),
        ("decode", [token(1), 9, stop()], 1, "immediate"),
        ("decode", [5, token(1), 5, stop()], 1, "deferred"),
        ("decode", [5, Disconnected("gone")], 1, "suppressed"),
        ("agg", [1, stop()], 2, None),
    ],
)
@virtual
async def test_what_became_of_an_abort(
    mode: str, script: list[Step], stop_at: float, what: str | None
) -> None:
    """Aborts are counted by whether they waited for the first token; the span has their moments."""
    meters, spans, context = Meters(), Spans(), RequestContext()
    stream = await metered(ScriptedEngine(*script), meters, spans, mode).generate(
        request(), context
    )
    asyncio.get_running_loop().call_later(stop_at, context.stop_generating)
    await collect(stream)
    await asyncio.sleep(5)
    assert meters.counts(ABORTS, "rx_backend.abort") == ({(what,): 1} if what else {})
    start = spans.one().start_time or 0
    moments = {
        event.name: round((event.timestamp - start) / 1e9)
        for event in spans.one().events
        if event.name != "first_token"
    }
    told = [event.timestamp for event in spans.one().events]
    assert told == sorted(told)
    requested = {"stop": 1, "abort_requested": 1}
    assert (
        moments
        == {
            "immediate": {**requested, "abort_made": 1},
            "deferred": {**requested, "abort_made": 5},
            "suppressed": {**requested, "abort_suppressed": 5},
            None: {},
        }[what]
    )


@virtual
async def test_a_deadline_that_passes_is_counted() -> None:
    """By the name of its option."""
    meters = Meters()
    pipeline = standard_pipeline.insert_before("validate_chunks", deadlines(first_token_s=2))
    adapter = metered(ScriptedEngine(9, stop()), meters, Spans(), pipeline=pipeline)
    await collect(await adapter.generate(request()))
    passed = meters.counts("rx_backend.deadlines", "rx_backend.deadline")
    assert passed == {("first_token_s",): 1}
    assert meters.counts(REQUESTS, *HOW) == {("failed", "ResponseTimeout"): 1}


@virtual
async def test_the_time_in_the_engines_queue() -> None:
    """An engine that knows says so on the context; it goes to the span and to the metrics."""
    meters, spans = Meters(), Spans()

    def know(context: RequestContext) -> None:
        context.queued_s = 1.5

    await collect(await metered(ScriptedEngine(know, stop()), meters, spans).generate(request()))
    assert meters.points("rx_backend.queue_time")[0].sum == 1.5
    attributes = spans.one().attributes or {}
    assert (attributes["queue_ms"], attributes["gen_ai.latency.time_in_queue"]) == (1500.0, 1.5)


def counted_clock(reads: list[None]) -> Callable[[], float]:
    def clock() -> float:
        reads.append(None)
        return 1.0

    return clock


@pytest.mark.rows("P8")
@virtual
async def test_an_unsampled_request_is_counted_without_a_look_at_the_clock() -> None:
    """Tokens and ends count; no sample is kept, and no latency is made up."""
    meters, reads = Meters(), list[None]()
    tracer = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("tests")
    engine = ScriptedEngine(token(1), LLMEngineOutput([2, 3]), LLMEngineOutput(), token(4), stop())
    adapter = EngineAdapter(
        engine, tracer=tracer, meter_provider=meters.provider, clock=counted_clock(reads)
    )
    await collect(await adapter.generate(request()))
    assert reads == []
    assert meters.counts(REQUESTS, *HOW) == {("stop", None): 1}
    tokens = meters.counts("rx_backend.tokens", "gen_ai.token.type")
    assert tokens == {("input",): 3, ("output",): 4}
    assert not [name for name in (DURATION, FIRST, PER_TOKEN, GAP) if meters.points(name)]


@virtual
async def test_without_tracing_everything_is_measured() -> None:
    """Metrics alone, as with a Prometheus endpoint and no traces."""
    meters = Meters()
    await collect(await metered(ScriptedEngine(1, token(1), stop()), meters).generate(request()))
    assert meters.points(FIRST)[0].sum == 1.0


@virtual
async def test_without_a_meter_provider_nothing_is_measured() -> None:
    """Nobody collects, so neither the clock is read nor an operator added."""
    reads: list[None] = []
    adapter = EngineAdapter(ScriptedEngine(token(1), stop()), clock=counted_clock(reads))
    await collect(await adapter.generate(request()))
    assert reads == []
    assert "on_outcome" not in adapter.draw()


@virtual
async def test_the_models_that_are_told_apart_are_few() -> None:
    """What clients write as a model's name can't fill the metrics' store."""
    meters = Meters()
    adapter = metered(ScriptedEngine(stop()), meters)
    for number in range(100):
        named = PreprocessedRequest(model=f"m{number}", token_ids=[1])
        await collect(await adapter.generate(named))
    models = meters.counts(REQUESTS, "gen_ai.request.model")
    assert len(models) == 33
    assert models[OTHER_MODELS,] == 68
    assert sum(models.values()) == 100


def labels_of(meters: Meters) -> Iterator[str]:
    for name in (REQUESTS, ABORTS, ACTIVE, DURATION, FIRST, "rx_backend.tokens"):
        for point in meters.points(name):
            yield from map(str, point.attributes.values())


@virtual
async def test_no_label_has_what_a_user_wrote() -> None:
    """Neither ids nor messages: only the model's name comes from the request."""
    meters = Meters()
    for end in (LLMEngineOutput.error("secret"), InvalidArgument("secret")):
        context = RequestContext("secret", {"user": "secret"})
        context.stop_generating()
        adapter = metered(ScriptedEngine(token(1), end), meters, Spans())
        await collect(await adapter.generate(request(), context))
    assert not [value for value in labels_of(meters) if "secret" in value]
