"""
A process that switches telemetry on and serves requests; its one line of output is JSON.

Providers can be set up once in a process, so each of these is a process of its own. Its argument is
what to do; the environment says where telemetry goes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opentelemetry import metrics, trace

from rx_backend import EngineAdapter, PreprocessedRequest, RequestContext
from rx_backend.engines import SampleEngine
from rx_backend.protocols import StopConditions, TraceLink
from rx_backend.telemetry import configure

TOKENS, REQUESTS = 5, 3
TRACE_ID, PARENT_ID = "a" * 32, "b" * 16
HEADERS = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "v=1"}
LINKED_TRACE_ID, LINKED_SPAN_ID = "c" * 32, "d" * 16


async def _serve(requests: int, headers: Mapping[str, str] = HEADERS) -> list[list[int]]:
    """Return the tokens of so many requests, one after the other."""
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
    # As engines do, for sampling that can be repeated.
    random.seed(0)
    stream = await adapter.generate(request, context)
    return [token async for item in stream if item.data for token in item.data.token_ids]


def served() -> dict[str, Any]:
    """Serve a few requests, then shut down."""
    telemetry = configure(service_name="unless-named")
    told = str(telemetry)
    tokens = asyncio.run(_serve(REQUESTS))
    # No fine default of the SDK is near.
    deadline_s = float(os.environ.get("DEADLINE_S", "10"))
    telemetry.shutdown(deadline_s)
    telemetry.shutdown(deadline_s)
    return {
        "told": told,
        "tokens": tokens,
        "lost": telemetry.lost,
        "threads": [thread.name for thread in threading.enumerate()],
        "memory_mb": peak_mb(),
    }


def peak_mb() -> float:
    """Return the most memory so far; the kernel's other count begins with that of our parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def at_exit() -> dict[str, Any]:
    """Serve, and leave the rest to the end of the process."""
    telemetry = configure(service_name="unless-named")
    return {"tokens": asyncio.run(_serve(1)), "told": str(telemetry)}


def beside_others() -> dict[str, Any]:
    """Serve with providers that the application has set up itself."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    from tests.meters import Meters
    from tests.spans import Spans

    meters, spans = Meters(), Spans()
    ours: tuple[TracerProvider, MeterProvider] = (spans.provider, meters.provider)
    trace.set_tracer_provider(ours[0])
    metrics.set_meter_provider(ours[1])
    with configure() as telemetry:
        told = str(telemetry)
    asyncio.run(_serve(REQUESTS))
    return {
        "told": told,
        "spans": [span.name for span in spans.finished],
        "requests": sum(point.value for point in meters.points("rx_backend.requests")),
        "same": (trace.get_tracer_provider(), metrics.get_meter_provider()) == ours,
    }


def scraped() -> dict[str, Any]:
    """Serve with a Prometheus endpoint, and scrape it."""
    with configure() as telemetry:
        asyncio.run(_serve(REQUESTS, {}))
        if telemetry.tracer_provider is not None:
            telemetry.tracer_provider.force_flush()
        with urllib.request.urlopen(telemetry.metrics.split()[-1], timeout=10) as answer:
            text = answer.read().decode()
    return {"text": text, "told": str(telemetry)}


class _Warnings(logging.Handler):
    """What is logged from warnings up, by whichever logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(f"{record.name}: {record.getMessage()}")


_DO: dict[str, Callable[[], dict[str, Any]]] = {
    action.__name__: action for action in (served, at_exit, beside_others, scraped)
}


def main() -> None:
    """Do what the argument says."""
    warnings = _Warnings()
    logging.getLogger().addHandler(warnings)
    done = _DO[sys.argv[1]]()
    sys.stdout.write(json.dumps({**done, "warnings": warnings.seen}) + "\n")
