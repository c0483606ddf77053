"""Requests that touch every metric, and what a scrape of them shows."""

from __future__ import annotations

import asyncio

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from operators import coalesce, deadlines
from rx_backend import EngineAdapter, LLMEngineOutput, RequestContext, standard_pipeline
from rx_backend.errors import Disconnected
from rx_backend.hedging import HedgedEngine
from rx_backend.resumable import ResumableStreams
from rx_backend.telemetry.metrics import COALESCED
from rx_backend.telemetry.series import EVERY_NTH_GAP
from rx_backend.testing import run_virtual
from tests.engines import (
    LosableEngine,
    ScriptedEngine,
    Step,
    collect,
    counting_request,
    request,
    token,
)

__all__ = ("Scraped",)


class Scraped:
    """
    A meter provider that Prometheus scrapes.

    Attributes:
        registry: What is scraped.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        readers = [PrometheusMetricReader(registry=self.registry)]
        self._provider = MeterProvider(readers, shutdown_on_exit=False)

    def load(self) -> None:
        """Serve requests in virtual time: good ones, failures, drops, aborts, deadlines, a queue."""
        run_virtual(self._load())

    def samples(self) -> dict[str, list[Sample]]:
        """Return what a scrape shows, by the metric's name."""
        found: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(generate_latest(self.registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample)
        return found

    async def _load(self) -> None:
        many = [token(1)] * (EVERY_NTH_GAP + 2)
        await self._serve(_queued, 0.01, *many, 0.01, LLMEngineOutput.length())
        await self._serve(token(1), Disconnected("gone"))
        await self._serve(token(1))
        await self._serve(9, LLMEngineOutput.stop())
        await self._serve(2, LLMEngineOutput.cancelled(), stop_at=1)
        await self._serve(2, token(1), LLMEngineOutput.cancelled(), stop_at=1, mode="decode")
        await self._serve(2, Disconnected("gone"), stop_at=1, mode="decode")
        await self._leave()
        await self._come_back()
        hedged = HedgedEngine(LosableEngine(delay_s=60), LosableEngine(), after_s=1)
        adapter = EngineAdapter(hedged, meter_provider=self._provider, record=True)
        await collect(await adapter.generate(counting_request()))

    async def _leave(self) -> None:
        adapter = EngineAdapter(ScriptedEngine(token(1), 60), meter_provider=self._provider)
        async with await adapter.generate(request()) as stream:
            await anext(stream)

    async def _come_back(self) -> None:
        adapter = EngineAdapter(ScriptedEngine(token(1), 60), meter_provider=self._provider)
        async with ResumableStreams(adapter, linger_s=1, meter_provider=self._provider) as streams:
            async with await streams.start(request()) as reader:
                await anext(reader)
            await (await streams.resume(reader.stream_id)).aclose()
            await asyncio.sleep(2)

    async def _serve(self, *script: Step, stop_at: float | None = None, mode: str = "agg") -> None:
        loop, context = asyncio.get_running_loop(), RequestContext()
        adapter = EngineAdapter(
            ScriptedEngine(*script),
            mode,
            _pipeline,
            meter_provider=self._provider,
            clock=loop.time,
            record=True,
        )
        if stop_at is not None:
            loop.call_later(stop_at, context.stop_generating)
        await collect(await adapter.generate(request(), context))


def _queued(context: RequestContext) -> None:
    context.queued_s = 0.25


_pipeline = standard_pipeline.insert_before(
    "validate_chunks", deadlines(first_token_s=5)
).with_operators(coalesce(counts=COALESCED))
