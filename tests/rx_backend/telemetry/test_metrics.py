"""What is counted and measured of requests, beside what their spans say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from operators import deadlines
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.engines import SampleEngine
from rx_backend.errors import InvalidArgument
from rx_backend.pipeline import standard_pipeline
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest
from rx_backend.telemetry.metrics import OTHER_MODELS
from rx_backend.telemetry.series import EVERY_NTH_GAP
from rx_backend.testing import run_virtual
from tests.engines import ScriptedEngine, collect, request, stop, token, virtual
from tests.logs import capture_logs
from tests.meters import Meters
from tests.rx_backend.telemetry._ends import metered
from tests.spans import Spans

REQUESTS, ABORTS, ACTIVE = "rx_backend.requests", "rx_backend.aborts", "rx_backend.requests.active"
DURATION, FIRST = "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"
PER_TOKEN, GAP = "gen_ai.server.time_per_output_token", "rx_backend.inter_token_latency"
HOW = ("rx_backend.finish_reason", "error.type")


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
def test_one_gap_in_256_is_recorded(chunks: list[int]) -> None:
    """Whichever requests the gaps fall in, none is missed and none counted twice."""
    meters = Meters()

    async def run() -> None:
        for count in chunks:
            engine = ScriptedEngine(*[token(1)] * count, stop())
            await collect(await metered(engine, meters, Spans()).generate(request()))

    run_virtual(run())
    gaps = sum(max(count - 1, 0) for count in chunks)
    assert meters.counts(GAP).get((), 0) == -(-gaps // EVERY_NTH_GAP)


@virtual
async def test_a_deadline_that_passes_is_counted() -> None:
    """By the name of its option; it is meant, and no failure of the operator."""
    meters = Meters()
    pipeline = standard_pipeline.insert_before("validate_chunks", deadlines(first_token_s=2))
    adapter = metered(ScriptedEngine(9, stop()), meters, Spans(), pipeline=pipeline)
    with capture_logs() as events:
        await collect(await adapter.generate(request()))
    assert "operator failed" not in [event["event"] for event in events]
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
async def test_an_unsampled_request_is_counted_without_clock_reads() -> None:
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


class Serves(SampleEngine):
    """Refuses every model that it does not serve; without a name it serves all."""

    def __init__(self, *models: str) -> None:
        super().__init__(token_interval_ms=0)
        self.models = models

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        if self.models and request.model not in self.models:
            raise InvalidArgument("no such model")
        await asyncio.sleep(1)
        yield token(1)
        yield stop()


async def asked_for(
    models: Iterable[str], engine: Serves, *, together: bool = False
) -> dict[Any, int]:
    """Ask for each model, in turn or together; the requests counted, by model and reason."""
    meters = Meters()
    adapter = metered(engine, meters, Spans())

    async def ask(model: str) -> None:
        await collect(await adapter.generate(PreprocessedRequest(model=model, token_ids=[1])))

    if together:
        await asyncio.gather(*map(ask, models))
    else:
        for model in models:
            await ask(model)
    assert meters.counts(ACTIVE) == {}
    tokens = meters.counts("rx_backend.tokens", "gen_ai.token.type", "gen_ai.request.model")
    requests = meters.counts(REQUESTS, "gen_ai.request.model")
    assert {model: tokens["input", model] for (model,) in requests} == {
        model: count for (model,), count in requests.items()
    }
    labels = {point.attributes["gen_ai.request.model"] for point in meters.points(DURATION)}
    assert labels == {model for (model,) in requests}
    idle = {point.attributes["gen_ai.request.model"] for point in meters.points(ACTIVE)}
    assert idle == labels - {OTHER_MODELS}
    return meters.counts(REQUESTS, "gen_ai.request.model", "rx_backend.finish_reason")


@pytest.mark.parametrize("junk", [1, 40, 500])
@virtual
async def test_rejected_models_share_a_label(junk: int) -> None:
    """However many there are, and before or after the first request for one that is served."""
    models = [*(f"typo-{number}" for number in range(junk)), "real", "typo", "real", "other"]
    assert await asked_for(models, Serves("real", "other")) == {
        ("real", "stop"): 2,
        ("other", "stop"): 1,
        (OTHER_MODELS, "failed"): junk + 1,
    }


@pytest.mark.parametrize("together", [False, True])
@virtual
async def test_the_number_of_model_labels_is_limited(together: bool) -> None:
    """An engine that serves whatever clients write can't fill the metrics' store."""
    models = [f"m{number}" for number in [*range(100), 0]]
    counts = await asked_for(models, Serves(), together=together)
    assert len(counts) == 33
    assert (counts["m0", "stop"], counts[OTHER_MODELS, "stop"]) == (2, 68)


@pytest.mark.rows("P10")
@virtual
async def test_a_label_that_can_not_be_encoded_is_repaired() -> None:
    """It would cost the whole scrape."""
    models = ["cut \ud83d", "pair \ud83d\ude00", "cut \ud83e"]
    assert await asked_for(models, Serves()) == {
        ("cut \ufffd", "stop"): 2,
        ("pair \U0001f600", "stop"): 1,
    }


def labels_of(meters: Meters) -> Iterator[str]:
    for name in (REQUESTS, ABORTS, ACTIVE, DURATION, FIRST, "rx_backend.tokens"):
        for point in meters.points(name):
            yield from map(str, point.attributes.values())


@virtual
async def test_no_label_contains_user_text() -> None:
    """Neither ids nor messages: only the model's name comes from the request."""
    meters = Meters()
    for end in (LLMEngineOutput.error("secret"), InvalidArgument("secret")):
        context = RequestContext("secret", {"user": "secret"})
        context.stop_generating()
        adapter = metered(ScriptedEngine(token(1), end), meters, Spans())
        await collect(await adapter.generate(request(), context))
    assert not [value for value in labels_of(meters) if "secret" in value]
