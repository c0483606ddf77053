"""
A process with an engine that logs, and an adapter; its argument is what to do about logging.

Under pytest standard logging has handlers, so what happens without any needs a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable

from opentelemetry.sdk.trace import TracerProvider
from structlog.processors import JSONRenderer
from structlog.stdlib import ExtraAdder, ProcessorFormatter

from rx_backend import EngineAdapter, PreprocessedRequest, RequestContext
from rx_backend.engines import SampleEngine
from rx_backend.errors import Disconnected
from rx_backend.protocols import LLMEngineOutput, StopConditions
from rx_backend.telemetry import add_trace_ids, configure_logs


class LoggingEngine(SampleEngine):
    """Logs with both libraries, then gives a token and fails."""

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        logging.getLogger("an_engine").warning("a line of %s", "an engine's")
        yield LLMEngineOutput.token(7)
        raise Disconnected("gone")


async def _serve() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("child")
    for name, engine in (("r1", SampleEngine(token_interval_ms=0)), ("r2", LoggingEngine())):
        adapter = EngineAdapter(engine, tracer=tracer)
        request = PreprocessedRequest(
            model="mock", token_ids=[1, 2, 3], stop_conditions=StopConditions(max_tokens=2)
        )
        async for _ in await adapter.generate(request, RequestContext(name)):
            pass


def nothing() -> None:
    """Leave everything as it is."""


def everything() -> None:
    """Write what all loggers tell."""
    configure_logs(whole_process=True)


def ours() -> None:
    """Write what the library tells."""
    configure_logs()


def stdlib() -> None:
    """Set standard logging up first."""
    logging.basicConfig(level=logging.INFO, format="%(name)s|%(message)s|%(pathname)s")
    everything()


def with_structlog() -> None:
    """Set structlog up first, with standard logging as its documentation has it."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[ExtraAdder(), add_trace_ids],
            processors=[ProcessorFormatter.remove_processors_meta, JSONRenderer()],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    everything()


WAYS: dict[str, Callable[[], None]] = {
    way.__name__: way for way in (nothing, everything, ours, stdlib, with_structlog)
}


def main() -> None:
    """Do what the argument says, then serve."""
    WAYS[sys.argv[1]]()
    asyncio.run(_serve())
