"""
The server of ``benchmarks.web_load``: one engine, and the ways to send its answers to readers.

Each process serves one way on a port that it prints. ``bare`` is Starlette's own response over the
engine, with events written by hand; ``shared`` is ``rx_backend.web`` over ``ResumableStreams``;
``alone`` runs the engine and sends nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import monotonic, process_time
from types import FrameType
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rx_backend import (
    EngineAdapter,
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.protocols import Annotated
from rx_backend.resumable import ResumableStreams
from rx_backend.web import ChatChunks, Format, JsonItems, respond

TOKENS_PER_S = 20
KEEP_S = 5.0
FORMATS: dict[str, Format] = {"json": JsonItems(), "chat": ChatChunks("paced")}

_encode = msgspec.json.Encoder().encode
_text = json.dumps


def json_event(position: int, chunk: LLMEngineOutput) -> bytes:
    """Write a chunk by hand, as plain JSON."""
    return b"id: %d\ndata: %b\n\n" % (position, _encode(chunk))


def chat_event(position: int, chunk: LLMEngineOutput) -> bytes:
    """Write a chunk by hand, as one of OpenAI's."""
    text = f"{{{_text('content')}:{_text(chunk.text or '')}}}"
    return (
        f'id: {position}\ndata: {{"object":"chat.completion.chunk","id":"chatcmpl-1","created":1,'
        f'"model":"paced","choices":[{{"index":0,"delta":{text},"logprobs":null,'
        f'"finish_reason":null}}]}}\n\n'
    ).encode()


BY_HAND: dict[str, Callable[[int, LLMEngineOutput], bytes]] = {
    "json": json_event,
    "chat": chat_event,
}


class PacedEngine(LLMEngine):
    """Yields so many tokens a second once the gate is open; a late one does not delay the others."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.opened_at = 0.0

    async def start(self, worker_id: int) -> EngineConfig:
        """Return the config."""
        return EngineConfig(model="paced")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Yield tokens whose text is their number, then the terminal."""
        offset_ms, count = request.token_ids
        await self.gate.wait()
        due = self.opened_at + offset_ms / 1000
        for number in range(count):
            wait = due + number / TOKENS_PER_S - monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            yield LLMEngineOutput([number], text=f" {number}")
        yield LLMEngineOutput.length()


class Service:
    """One way's routes, and those by which the benchmark reads the process's figures."""

    def __init__(self, way: str, format: str) -> None:
        self.engine = PacedEngine()
        self.streams = ResumableStreams(EngineAdapter(self.engine), keep_s=KEEP_S)
        self.ids: dict[str, asyncio.Future[str]] = {}
        self.format_name = format
        self.format, self.by_hand = FORMATS[format], BY_HAND[format]
        self.loop_lag_s = 0.0
        self.watch: asyncio.Task[None] | None = None
        endpoints = {"alone": self.engine_alone, "bare": self.bare, "shared": self.shared}
        self.app = Starlette(
            routes=[
                Route("/answers/{number}", endpoints[way]),
                Route("/open", self.open),
                Route("/figures", self.figures),
                Route("/encoding", self.encoding),
            ]
        )

    def request(self, http_request: Request) -> PreprocessedRequest:
        """Return the engine's request: when it begins, in ms behind the gate, and its tokens."""
        query = http_request.query_params
        return PreprocessedRequest(token_ids=[int(query["offset_ms"]), int(query["tokens"])])

    async def bare(self, http_request: Request) -> Response:
        """Send the engine's own stream."""
        return StreamingResponse(
            self._events(self.request(http_request)), media_type="text/event-stream"
        )

    async def _events(self, request: PreprocessedRequest) -> AsyncGenerator[bytes]:
        position, event = 0, self.by_hand
        async for chunk in self.engine.generate(request, RequestContext()):
            if chunk.finish_reason is None:
                position += 1
                yield event(position, chunk)
        yield b"data: [DONE]\n\n"

    async def shared(self, http_request: Request) -> Response:
        """Send a stream that others read too: begin it, or join the one that has begun."""
        number = http_request.path_params["number"]
        begun = self.ids.get(number)
        if begun is not None:
            return respond(await self.streams.resume(await begun), self.format)
        self.ids[number] = begun = asyncio.get_running_loop().create_future()
        reader = await self.streams.start(self.request(http_request))
        begun.set_result(reader.stream_id)
        return respond(reader, self.format)

    async def engine_alone(self, http_request: Request) -> Response:
        """Run the engine, as the streams do, and send nothing."""
        engine = self.engine.generate(self.request(http_request), RequestContext())
        count = [None async for _ in engine]
        return Response(f"{len(count)}")

    async def open(self, _: Request) -> Response:
        """Let the engine begin; return when that was."""
        self.engine.opened_at = monotonic()
        self.engine.gate.set()
        self.watch = asyncio.create_task(self._watch_loop())
        return JSONResponse(self.engine.opened_at)

    async def _watch_loop(self) -> None:
        while True:
            due = monotonic() + 0.05
            await asyncio.sleep(0.05)
            self.loop_lag_s = max(self.loop_lag_s, monotonic() - due)

    async def figures(self, http_request: Request) -> Response:
        """Return what the process has used so far; after a garbage collection where that is asked."""
        if http_request.query_params:
            gc.collect()
        held = self.streams.stats()
        lag, self.loop_lag_s = self.loop_lag_s, 0.0
        return JSONResponse(
            {
                "cpu_s": process_time(),
                "rss": resident_bytes(),
                "held_bytes": held.held_bytes,
                "streams": len(self.streams),
                "loop_lag_s": lag,
            }
        )

    async def encoding(self, _: Request) -> Response:
        """Return the µs that a chunk's event takes to write, by hand and by the format."""
        return JSONResponse(us_to_write(self.format_name))


def us_to_write(format: str) -> dict[str, float]:
    """Return the µs that a chunk's event takes to write, by hand and by the format."""
    chunks = [LLMEngineOutput([number], text=f" {number}") for number in range(100)]
    writer = FORMATS[format].writer(_nothing())

    def ours(number: int, chunk: LLMEngineOutput) -> bytes:
        return writer.item(Annotated(chunk, id=f"gX2S0mgDGyLEnp9FeXUTMw:{number}"))

    return {"bare": _us_of(BY_HAND[format], chunks), "shared": _us_of(ours, chunks)}


def resident_bytes() -> int:
    """Return the memory of this process, as Linux gives it."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def _nothing() -> AsyncGenerator[Annotated[Any]]:
    return
    yield


def _us_of(way: Callable[[int, LLMEngineOutput], bytes], chunks: list[LLMEngineOutput]) -> float:
    best = float("inf")
    for _ in range(50):
        began = process_time()
        for number, chunk in enumerate(chunks):
            way(number, chunk)
        best = min(best, process_time() - began)
    return best / len(chunks) * 1e6


async def serve(way: str, format: str, loop_kind: str, profile: str | None) -> None:
    """Serve until a signal ends it."""
    service = Service(way, format)
    # uvicorn raises it once more when it has ended, and the rest of this is still to be done.
    signal.signal(signal.SIGTERM, _ignore)
    server = uvicorn.Server(
        uvicorn.Config(service.app, port=0, log_level="error", lifespan="off", backlog=8192)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    profiling: AbstractContextManager[Any] = cProfile.Profile() if profile else nullcontext()
    with profiling:
        await serving
    await service.streams.aclose()
    if isinstance(profiling, cProfile.Profile):
        profiling.dump_stats(str(profile))


def _ignore(_: int, __: FrameType | None) -> None: ...


def main() -> None:
    """Serve the way that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web_server")
    parser.add_argument("way", choices=("bare", "shared", "alone"))
    parser.add_argument("--format", choices=FORMATS, default="json")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--profile", help="write the figures of cProfile to this file")
    options = parser.parse_args()
    serving = serve(options.way, options.format, options.loop, options.profile)
    if options.loop == "uvloop":
        import uvloop

        uvloop.run(serving)
    else:
        asyncio.run(serving)


if __name__ == "__main__":
    main()
