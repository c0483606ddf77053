"""
Tokens per second through the Dynamo runtime: a bare generator, our worker without coalescing, and
our worker as shipped.

Each of them and the runtime's own client run in a process of their own, on loopback with file
discovery. All play the same engine with no delay. Run it with ``python -m benchmarks.dynamo_worker``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from rx_backend import (
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.worker import ShutdownTimes, Worker

TOKENS = 2_000
ENVIRONMENT = {
    "DYN_DISCOVERY_BACKEND": "file",
    "DYN_EVENT_PLANE": "zmq",
    "DYN_LOG": "error",
    "DYN_REQUEST_PLANE": "tcp",
    "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
}
WAYS: tuple[str, ...] = ("bare", "adapter", "shipped")


class Engine(LLMEngine):
    """Gives its tokens at once."""

    async def start(self, worker_id: int) -> EngineConfig:
        """Have nothing to do."""
        return EngineConfig(model="zero")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Give the tokens, then the terminal."""
        for token_id in range(TOKENS):
            yield LLMEngineOutput([token_id])
        yield LLMEngineOutput.length()


async def bare(request: object, context: object) -> AsyncGenerator[dict[str, Any]]:
    """Do what the engine does, with nothing around it."""
    for token_id in range(TOKENS):
        yield {"token_ids": [token_id]}
    yield {"token_ids": [], "finish_reason": "length"}


def runtime() -> Any:
    """Join the runtime that the environment names."""
    loop = asyncio.get_running_loop()
    return import_module("dynamo.runtime").DistributedRuntime(loop, "file", "tcp")


async def work(way: str) -> None:
    """Serve one way until a signal ends it."""
    if way == "bare":
        await runtime().endpoint(f"bench.{way}.generate").serve_endpoint(bare)
    else:
        times = ShutdownTimes(grace_s=0.0, drain_s=0.0)
        coalesce = way == "shipped"
        await Worker(
            Engine(), namespace="bench", component=way, coalesce=coalesce, times=times
        ).run()


async def one_stream(client: Any, firsts: list[float]) -> None:
    """Read one stream to its end, and note when its first token came, in seconds."""
    started = perf_counter()
    tokens = 0
    async for item in await client.round_robin({"token_ids": [1]}):
        got = len(item.data()["token_ids"])
        if got and not tokens:
            firsts.append(perf_counter() - started)
        tokens += got
    if tokens != TOKENS:
        raise RuntimeError(f"expected {TOKENS} tokens, got {tokens}")


async def measure(streams: list[int], rounds: int) -> None:
    """Measure the ways in turn; the best round counts, and the median of all first tokens."""
    # A client that sees what arrives when it arrives, as the real frontend does.
    sys.setswitchinterval(0.0001)
    joined = runtime()
    clients = {way: await joined.endpoint(f"bench.{way}.generate").client() for way in WAYS}
    for client in clients.values():
        await client.wait_for_instances()
        await one_stream(client, [])
    print(f"{'streams':>8}{'way':>10}{'tokens/s':>12}{'ratio':>8}{'TTFT ms':>10}")
    for count in streams:
        best = dict.fromkeys(WAYS, 0.0)
        firsts: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, client in clients.items():
                started = perf_counter()
                await asyncio.gather(*[one_stream(client, firsts[way]) for _ in range(count)])
                best[way] = max(best[way], count * TOKENS / (perf_counter() - started))
        for way, rate in best.items():
            ratio, first_ms = rate / best["bare"], median(firsts[way]) * 1e3
            print(f"{count:>8}{way:>10}{rate:>12,.0f}{ratio:>8.2f}{first_ms:>10.1f}", flush=True)
    joined.shutdown()


def main() -> None:
    """Run the worker in a process of its own, and measure from this one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dynamo_worker")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        asyncio.run(work(options.work))
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as workers:
        os.environ.update(ENVIRONMENT, DYN_FILE_KV=str(Path(folder) / "discovery"))
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.dynamo_worker", "--work", way]
            worker = workers.enter_context(subprocess.Popen(command))  # noqa: S603
            workers.callback(worker.terminate)
        asyncio.run(measure(options.streams, options.rounds))


if __name__ == "__main__":
    main()
