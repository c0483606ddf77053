"""
Dynamo's own worker as a decode worker, in a process of its own; it ends on SIGTERM.

Its engine makes no token. When its request is stopped it tells of a first token, and waits until
Dynamo's worker aborts the request.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from importlib import import_module
from typing import Any

from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.dynamo import DynamoEngine
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest


def tell(line: str) -> None:
    sys.stdout.write(f"told {line}\n")
    sys.stdout.flush()


class Engine(LLMEngine):
    def __init__(self, aborted: asyncio.Event) -> None:
        self._aborted = aborted

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="decoding")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        tell("asked")
        await context.stopped()
        tell("notice")
        context.notify_first_token()
        await self._aborted.wait()
        tell("end")
        yield LLMEngineOutput.cancelled()

    async def abort(self, context: RequestContext) -> None:
        tell("abort of ours")


class Hosted(DynamoEngine):
    """What Dynamo's worker sees."""

    def __init__(self, aborted: asyncio.Event) -> None:
        super().__init__(EngineAdapter(Engine(aborted), "decode"))
        self._aborted = aborted

    async def abort(self, context: Any) -> None:
        tell("abort of Dynamo's")
        self._aborted.set()


async def serve() -> None:
    backend = import_module("dynamo._core.backend")
    config = backend.WorkerConfig(
        namespace="rx",
        endpoint_types="completions",
        disaggregation_mode=backend.DisaggregationMode.Decode,
    )
    hosted = Hosted(asyncio.Event())
    await backend.Worker(hosted, config, asyncio.get_running_loop()).run()


if __name__ == "__main__":
    asyncio.run(serve())
