"""
Dynamo's own worker with our operators, in a process of its own.

It writes a line for each thing that happens to the engine, and ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from importlib import import_module
from typing import Any

from operators import Pipeline, limit_tokens
from rx_backend.dynamo import as_dynamo_engine, from_dynamo_engine
from rx_backend.pipeline import standard_pipeline
from rx_backend.scope import RequestScope

backend = import_module("dynamo._core.backend")
exceptions = import_module("dynamo.llm.exceptions")


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Engine:
    """An engine as Dynamo's users write them: dicts, and a context with methods."""

    async def start(self, worker_id: int) -> Any:
        tell("start")
        return backend.EngineConfig(model="echo")

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncGenerator[Any]:
        (what,) = request["token_ids"]
        if what == 1:
            yield {"token_ids": [7], "index": 0}
            raise exceptions.CannotConnect("boom")
        while not context.is_stopped():
            yield {"token_ids": [8], "index": 0}
            await asyncio.sleep(0)
        yield {"token_ids": [], "index": 0, "finish_reason": "cancelled"}

    async def abort(self, context: Any) -> None:
        tell(f"abort {context.id()}")

    async def cleanup(self) -> None:
        tell("cleanup")


def limited(scope: RequestScope) -> Pipeline:
    """The standard operators, and one that ends a stream at its limit."""
    limit = scope.request.stop_conditions.max_tokens
    if limit is None:
        return standard_pipeline
    return standard_pipeline.insert_before("record_span", limit_tokens(limit))


async def serve() -> None:
    engine = as_dynamo_engine(from_dynamo_engine(Engine()), limited)
    config = backend.WorkerConfig(namespace="rx", endpoint_types="completions")
    await backend.Worker(engine, config, asyncio.get_running_loop()).run()


if __name__ == "__main__":
    asyncio.run(serve())
