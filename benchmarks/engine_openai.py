"""
CPU per chunk of reading a server's stream: `OpenAIEngine` behind the adapter, and others beside it.

A server in a process of its own plays chunks as vLLM sends them, a chunk a write. The ways take turns
in one process, each with so many streams at a time, and the least CPU of all rounds counts: it is the
reader's own work, whatever the server's pace. Run it with ``python -m benchmarks.engine_openai``, or
with ``--pause-ms 2 --chunks 500``, where each chunk arrives alone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any

import aiohttp
from aiohttp import web

from rx_backend import EngineAdapter, PreprocessedRequest
from rx_backend.engines.openai import OpenAIEngine
from rx_backend.protocols import StopConditions

_HEAD = {"id": "cmpl-1f6f8f3f4b2c4c7e", "object": "text_completion", "created": 1, "model": "m"}


@dataclass
class Pause:
    """How long the server waits behind each chunk; with 0 some arrive together."""

    seconds: float = 0.0


PAUSE = Pause()


def event(index: int, reason: str | None = None) -> bytes:
    """Return an event with one token."""
    choice = {
        "index": 0,
        "text": " token",
        "logprobs": None,
        "finish_reason": reason,
        "stop_reason": None,
        "token_ids": [index],
    }
    return b"data: " + json.dumps({**_HEAD, "choices": [choice], "usage": None}).encode() + b"\n\n"


async def complete(request: web.Request) -> web.StreamResponse:
    """Play a stream of as many tokens as the request asks for."""
    count = (await request.json())["max_tokens"]
    counts = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for index in range(count):
        await response.write(event(index, "length" if index == count - 1 else None))
        await asyncio.sleep(PAUSE.seconds)
    last = json.dumps({**_HEAD, "choices": [], "usage": counts})
    await response.write(f"data: {last}\n\ndata: [DONE]\n\n".encode())
    return response


async def models(request: web.Request) -> web.Response:
    """Tell that this is a vLLM."""
    entry = {"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 1_000_000}
    return web.json_response({"object": "list", "data": [entry]})


async def serve() -> None:
    """Serve on a free port, and print it."""
    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/completions", complete)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def through_engine(url: str, count: int, streams: int) -> int:
    """Read with the engine, behind the adapter and its standard pipeline."""
    engine = OpenAIEngine(url)
    await engine.start(0)
    adapter = EngineAdapter(engine)

    async def one() -> int:
        request = PreprocessedRequest(
            token_ids=[1], stop_conditions=StopConditions(max_tokens=count)
        )
        async with await adapter.generate(request) as stream:
            return sum([len(item.data.token_ids) async for item in stream if item.data])

    got = await asyncio.gather(*[one() for _ in range(streams)])
    await engine.cleanup()
    return sum(got)


async def through_sdk(url: str, count: int, streams: int) -> int:
    """Read with the official SDK."""
    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def one() -> int:
            stream = await client.completions.create(
                model="m",
                prompt=[1],
                max_tokens=count,
                stream=True,
                stream_options={"include_usage": True},
            )
            return sum([len(chunk.choices) async for chunk in stream])

        return sum(await asyncio.gather(*[one() for _ in range(streams)]))


async def lines_only(url: str, count: int, streams: int) -> int:
    """Read the lines with aiohttp, and no more: the floor."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> int:
            body = {"max_tokens": count}
            async with session.post(f"{url}/v1/completions", json=body) as response:
                return sum([line.startswith(b"data: {") async for line in response.content]) - 1

        return sum(await asyncio.gather(*[one() for _ in range(streams)]))


WAYS: dict[str, Callable[[str, int, int], Awaitable[int]]] = {
    "OpenAIEngine and adapter": through_engine,
    "openai SDK": through_sdk,
    "aiohttp, lines alone": lines_only,
}


def measure(url: str, *, rounds: int, count: int, streams: int) -> dict[str, float]:
    """Return each way's least CPU per chunk, in µs."""
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(rounds):
        for name, way in WAYS.items():
            gc.collect()
            started = process_time()
            got = asyncio.run(_run(partial(way, url, count, streams)))
            spent = (process_time() - started) / got * 1e6
            if got != count * streams:
                raise RuntimeError(f"{name}: expected {count * streams} chunks, got {got}")
            best[name] = min(best[name], spent)
    return best


async def _run(way: Callable[[], Awaitable[int]]) -> int:
    return await way()


def main() -> None:
    """Start the server, and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_openai")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=1_000)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--pause-ms", type=float, default=0.0, help="before each next chunk")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    PAUSE.seconds = options.pause_ms / 1000
    if options.serve:
        asyncio.run(serve())
        return
    command = [sys.executable, "-m", "benchmarks.engine_openai", "--serve", *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        try:
            port: Any = server.stdout and server.stdout.readline().strip()
            for streams in options.streams:
                best = measure(
                    f"http://127.0.0.1:{port}",
                    rounds=options.rounds,
                    count=options.chunks,
                    streams=streams,
                )
                print(f"\nCPU per chunk, {streams} streams (µs; ratio to the engine)")
                for name, value in best.items():
                    print(f"  {name:<34}{value:>8.1f}{value / best[next(iter(WAYS))]:>8.2f}")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
