"""
A process that switches telemetry on and serves requests; it tells the test how it went.

Providers can be set up once in a process, so each of these is a process of its own. Its argument is
what to do, and its one line of output is JSON. The environment says where telemetry goes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Self

from opentelemetry import metrics, trace

from rx_backend import EngineAdapter, PreprocessedRequest, RequestContext
from rx_backend.engines import SampleEngine
from rx_backend.protocols import StopConditions, TraceLink
from rx_backend.telemetry import configure

TOKENS, REQUESTS = 5, 3
TRACE_ID, PARENT_ID = "a" * 32, "b" * 16
HEADERS = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "v=1"}
LINKED_TRACE_ID, LINKED_SPAN_ID = "c" * 32, "d" * 16

# A number no fine default of the SDK is near.
DEADLINE_S = float(os.environ.get("DEADLINE_S", "10"))


async def _serve(requests: int, headers: Mapping[str, str] = HEADERS) -> list[list[int]]:
    """The tokens of so many requests, one after the other."""
    adapter = EngineAdapter(SampleEngine(token_interval_ms=0))
    return [
        await _tokens(adapter, RequestContext(str(number), trace_headers=headers))
        for number in range(requests)
    ]


async def _tokens(adapter: EngineAdapter, context: RequestContext) -> list[int]:
    request = PreprocessedRequest(
        token_ids=[1, 2, 3],
        model="sample",
        stop_conditions=StopConditions(max_tokens=TOKENS),
        migration_link=TraceLink(trace_id=LINKED_TRACE_ID, span_id=LINKED_SPAN_ID),
    )
    stream = await adapter.generate(request, context)
    return [token async for item in stream if item.data for token in item.data.token_ids]


def served() -> dict[str, Any]:
    """Serve a few requests, then shut down."""
    with _Warnings() as warnings:
        telemetry = configure()
        told = str(telemetry)
        tokens = asyncio.run(_serve(REQUESTS))
        telemetry.shutdown(DEADLINE_S)
        telemetry.shutdown(DEADLINE_S)
    threads = [thread.name for thread in threading.enumerate()]
    return {
        "told": told,
        "tokens": tokens,
        "lost": dict(telemetry.lost),
        "warnings": warnings.seen,
        "threads": threads,
    }


def at_exit() -> dict[str, Any]:
    """Serve, and leave the rest to the end of the process."""
    telemetry = configure()
    return {"tokens": asyncio.run(_serve(1)), "told": str(telemetry)}


def beside_others() -> dict[str, Any]:
    """Serve with providers that the application has set up itself."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    with _Warnings() as warnings:
        with configure() as telemetry:
            told = str(telemetry)
        asyncio.run(_serve(REQUESTS))
    data = reader.get_metrics_data()
    assert data is not None
    return {
        "told": told,
        "spans": [span.name for span in spans.get_finished_spans()],
        "metrics": [
            metric.name
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ],
        "same": trace.get_tracer_provider() is tracers and metrics.get_meter_provider() is meters,
        "warnings": warnings.seen,
    }


def scraped() -> dict[str, Any]:
    """Serve with a Prometheus endpoint, and scrape it before and after the shutdown."""
    with configure(prometheus_port=0, traces=False) as telemetry:
        asyncio.run(_serve(REQUESTS, {}))
        url = telemetry.prometheus_url
        assert url is not None
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    try:
        urllib.request.urlopen(url, timeout=10)
    except OSError as error:
        after = type(getattr(error, "reason", error)).__name__
    else:
        after = "it still answers"
    return {"text": text, "after": after, "told": str(telemetry), "url": url}


class _Warnings(logging.Handler):
    """What is logged from warnings up, by whichever logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(f"{record.name}: {record.getMessage()}")

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


_DO: dict[str, Callable[[], dict[str, Any]]] = {
    action.__name__: action for action in (served, at_exit, beside_others, scraped)
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(_DO[sys.argv[1]]()) + "\n")
