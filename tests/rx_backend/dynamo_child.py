"""
A worker and a client of the real Dynamo runtime in a process of their own, driven through pipes.

A line of JSON on stdin is one exchange, a line of JSON on stdout its outcome; the end of stdin ends
the process. The worker is the runtime's own: in front of the engine it parses the request with the
runtime's types, and behind it the chunks.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

from rx_backend.errors import KINDS, to_dynamo

core = import_module("dynamo._core")
backend = import_module("dynamo._core.backend")

NAMESPACE = "rx"


class Engine:
    """Keeps the request as it arrives and yields what it was told to."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.chunks: list[dict[str, Any]] = []

    async def start(self, worker_id: int) -> object:
        return backend.EngineConfig(model="echo")

    async def generate(self, request: dict[str, Any], context: object) -> AsyncIterator[Any]:
        self.seen.append(request)
        for chunk in self.chunks:
            yield chunk

    async def abort(self, context: object) -> None: ...

    async def cleanup(self) -> None: ...

    async def drain(self) -> None: ...

    async def health_check_payload(self) -> None: ...

    async def kv_event_sources(self) -> list[object]:
        return []

    async def on_endpoint_ready(self, endpoint: object) -> None: ...

    async def register_prometheus(self, metrics: object) -> None: ...

    def component_metrics_dp_ranks(self) -> list[int]:
        return []

    def supported_controls(self) -> list[str]:
        return []

    def supported_updates(self) -> list[str]:
        return []


async def receive(client: Any, request: object) -> dict[str, Any]:
    """Send a request and write down what the client is given."""
    items: list[dict[str, Any]] = []
    item: Any
    try:
        async for item in await client.round_robin(request):
            received = {"data": item.data(), "event": item.event(), "comment": item.comments()}
            items.append(received)
    except Exception as exc:
        return {"items": items, "error": {"type": type(exc).__name__, "text": str(exc)}}
    return {"items": items}


async def serve() -> None:
    loop = asyncio.get_running_loop()
    engine = Engine()
    config = backend.WorkerConfig(namespace=NAMESPACE, endpoint_types="completions")
    worker = asyncio.ensure_future(backend.Worker(engine, config, loop).run())
    runtime = core.DistributedRuntime(loop, "file", "tcp")
    client = await runtime.endpoint(f"{NAMESPACE}.backend.generate").client()
    await client.wait_for_instances()

    async def through_the_worker(order: dict[str, Any]) -> dict[str, Any]:
        engine.seen.clear()
        engine.chunks = order["chunks"]
        outcome = await receive(client, order["request"])
        return {**outcome, "seen": engine.seen}

    async def through_a_handler(order: dict[str, Any]) -> dict[str, Any]:
        """Serve the items, or the error, from an endpoint of their own: some errors close one."""

        async def handler(request: object, context: object) -> AsyncIterator[Any]:
            for item in order.get("items", ()):
                # The runtime takes a dict with this mark for an item, any other for data.
                yield {"_dynamo_annotated": True, **item}
            if kind := order.get("raises"):
                raise to_dynamo(KINDS[kind](order["message"]))

        endpoint = runtime.endpoint(f"{NAMESPACE}.handler.{order['endpoint']}")
        served = asyncio.ensure_future(endpoint.serve_endpoint(handler))
        caller = await endpoint.client()
        await caller.wait_for_instances()
        outcome = await receive(caller, {})
        tasks.append(served)
        return outcome

    tasks: list[asyncio.Future[Any]] = []
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        run = through_a_handler if "endpoint" in order else through_the_worker
        sys.stdout.write(json.dumps(await run(order)) + "\n")
        sys.stdout.flush()
    # The worker ends on the signal that ends a container.
    os.kill(os.getpid(), signal.SIGTERM)
    await worker
    runtime.shutdown()
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(serve())
