"""
Tokens per second through the Dynamo runtime, and the worker's CPU for each of them.

Four ways beside each other: a bare generator that the runtime pulls, one that pushes, our worker
without coalescing, and our worker as shipped. Each of them and the runtime's own client run in a
process of their own, on loopback with file discovery. All play the same engine: with no delay, or
with ``--rate`` so many tokens a second for each stream. Run it with
``python -m benchmarks.dynamo_worker``, or for 256 paced streams with
``python -m benchmarks.dynamo_worker --streams 256 --rate 20 --tokens 200 --rounds 3``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean, quantiles
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

ENVIRONMENT = {
    "DYN_DISCOVERY_BACKEND": "file",
    "DYN_EVENT_PLANE": "zmq",
    "DYN_LOG": "error",
    "DYN_REQUEST_PLANE": "tcp",
    "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
}
WAYS: tuple[str, ...] = ("bare", "pushed", "adapter", "shipped")


@dataclass
class Load:
    """What each stream is: its tokens, and the pause before each of them."""

    tokens: int = 2_000
    pause_s: float = 0.0


LOAD = Load()


async def token_ids() -> AsyncGenerator[int]:
    """Return the tokens of one stream, in their time."""
    for token_id in range(LOAD.tokens):
        if LOAD.pause_s:
            await asyncio.sleep(LOAD.pause_s)
        yield token_id


class Engine(LLMEngine):
    """Plays the tokens."""

    async def start(self, worker_id: int) -> EngineConfig:
        """Do nothing: there is nothing to load."""
        return EngineConfig(model="zero")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Return the tokens, then the terminal."""
        async for token_id in token_ids():
            yield LLMEngineOutput([token_id])
        yield LLMEngineOutput.length()


async def bare(request: object, context: object) -> AsyncGenerator[dict[str, Any]]:
    """Do what the engine does, with nothing around it."""
    async for token_id in token_ids():
        yield {"token_ids": [token_id]}
    yield {"token_ids": [], "finish_reason": "length"}


async def pushed(request: object, context: object, response_sender: Any) -> AsyncGenerator[Any]:
    """Do the same, pushing; an engine that never waits leaves others their turn."""
    async for token_id in token_ids():
        response_sender.send({"token_ids": [token_id]})
        if token_id % 32 == 0:
            await asyncio.sleep(0)
    response_sender.send({"token_ids": [], "finish_reason": "length"})
    response_sender.close()
    return
    yield


def runtime() -> Any:
    """Join the runtime that the environment names."""
    loop = asyncio.get_running_loop()
    return import_module("dynamo.runtime").DistributedRuntime(loop, "file", "tcp")


async def work(way: str) -> None:
    """Serve one way until a signal ends it."""
    if way in {"bare", "pushed"}:
        handler = bare if way == "bare" else pushed
        await runtime().endpoint(f"bench.{way}.generate").serve_endpoint(handler)
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
    if tokens != LOAD.tokens:
        raise RuntimeError(f"expected {LOAD.tokens} tokens, got {tokens}")


@dataclass
class Round:
    """One way's figures of one round: tokens a second, CPU of the worker, times to first token."""

    rate: float
    cpu_s: float
    firsts_s: list[float]


async def one_round(client: Any, worker: int, count: int) -> Round:
    """Read so many streams at once."""
    firsts: list[float] = []
    cpu_s, started = cpu_seconds(worker), perf_counter()
    await asyncio.gather(*[one_stream(client, firsts) for _ in range(count)])
    rate = count * LOAD.tokens / (perf_counter() - started)
    return Round(rate, cpu_seconds(worker) - cpu_s, firsts)


def cpu_seconds(process: int) -> float:
    """How long a process has been at work, all threads together; read as Linux gives it."""
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


async def measure(workers: Mapping[str, int], streams: list[int], rounds: int) -> None:
    """Measure the ways in turn; the best round's rate counts, and the first tokens of all rounds."""
    # A client that sees what arrives when it arrives, as the real frontend does.
    sys.setswitchinterval(0.0001)
    joined = runtime()
    clients = {way: await joined.endpoint(f"bench.{way}.generate").client() for way in WAYS}
    for client in clients.values():
        await client.wait_for_instances()
        await one_stream(client, [])
    print(
        f"{'streams':>8}{'way':>10}{'tokens/s':>12}{'ratio':>8}"
        f"{'CPU us/token':>14}{'TTFT ms: mean':>15}{'p50':>7}{'p95':>7}"
    )
    for count in streams:
        seen: dict[str, list[Round]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, client in clients.items():
                seen[way].append(await one_round(client, workers[way], count))
        best = {way: max(one.rate for one in seen[way]) for way in WAYS}
        for way, figures in seen.items():
            # The least, as other programs on the machine only add to it.
            cpu_us = min(one.cpu_s for one in figures) / count / LOAD.tokens * 1e6
            firsts_ms = [first * 1e3 for one in figures for first in one.firsts_s]
            marks = quantiles([*firsts_ms, *firsts_ms], n=20, method="inclusive")
            print(
                f"{count:>8}{way:>10}{best[way]:>12,.0f}{best[way] / best['bare']:>8.2f}"
                f"{cpu_us:>14.1f}{fmean(firsts_ms):>15.1f}{marks[9]:>7.1f}{marks[18]:>7.1f}",
                flush=True,
            )
    joined.shutdown()


def main() -> None:
    """Run each worker in a process of its own, and measure from this one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dynamo_worker")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=LOAD.tokens, help="tokens of a stream")
    parser.add_argument("--rate", type=float, default=0.0, help="tokens a second of a stream")
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    LOAD.tokens = options.tokens
    LOAD.pause_s = 1.0 / options.rate if options.rate else 0.0
    if options.work:
        asyncio.run(work(options.work))
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.environ.update(
            ENVIRONMENT,
            DYN_FILE_KV=str(Path(folder) / "discovery"),
        )
        workers: dict[str, int] = {}
        for way in WAYS:
            command = [
                sys.executable,
                "-m",
                "benchmarks.dynamo_worker",
                "--work",
                way,
                *sys.argv[1:],
            ]
            worker = stack.enter_context(subprocess.Popen(command))  # noqa: S603
            stack.callback(worker.terminate)
            workers[way] = worker.pid
        asyncio.run(measure(workers, options.streams, options.rounds))


if __name__ == "__main__":
    main()
