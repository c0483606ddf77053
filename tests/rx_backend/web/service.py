"""The service that the servers under test run; what the engine does is the model's name."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rx_backend import (
    CannotConnect,
    Disconnected,
    EngineAdapter,
    EngineConfig,
    InvalidArgument,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    protocols,
)
from rx_backend.resumable import ResumableStreams
from rx_backend.web import ChatChunks, JsonItems, context_of, respond, resume, start_or_resume

TOKENS = 20
SILENCE_S = 0.25


class Engine(LLMEngine):
    """Answers with numbers, and counts its aborts by request."""

    def __init__(self) -> None:
        self.aborts: Counter[str] = Counter()
        self.open: set[str] = set()

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="numbers")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        if request.model == "refused":
            raise InvalidArgument("messages: expected fewer")
        if request.model == "full":
            raise CannotConnect("no room")
        self.open.add(context.id)
        return self._stream(request)

    async def abort(self, context: RequestContext) -> None:
        self.aborts[context.id] += 1

    async def _stream(self, request: PreprocessedRequest) -> AsyncGenerator[LLMEngineOutput]:
        if request.model == "prefill":
            await asyncio.sleep(60.0)
        for number in range(TOKENS):
            await asyncio.sleep(0.005)
            if number == 3:
                if request.model == "breaks":
                    raise Disconnected("peer gone")
                if request.model == "silent":
                    await asyncio.sleep(SILENCE_S)
                if request.model == "endless":
                    await asyncio.sleep(60.0)
            yield LLMEngineOutput([number], text=f"{number} ")
        yield LLMEngineOutput.stop().with_usage(protocols.usage(2, TOKENS))


engine = Engine()
adapter = EngineAdapter(engine)


async def chat(http_request: Request) -> Response:
    """Stream a chat, which a client may come back to where the path says so."""
    body: dict[str, Any] = await http_request.json()
    request = PreprocessedRequest(token_ids=[1, 2], model=body["model"])
    context = context_of(http_request)
    options: dict[str, Any] = {
        "headers_first": bool(body.get("headers_first")),
        "keep_alive_s": 0.05,
    }
    form = ChatChunks("numbers", include_usage="stream_options" in body)
    if http_request.url.path.startswith("/resumable"):
        streams: ResumableStreams = http_request.app.state.streams
        opening = start_or_resume(streams, http_request, request, context)
        return respond(opening, form, context=context, **options)
    return respond(adapter.generate(request, context), form, context=context, **options)


async def read(http_request: Request) -> Response:
    """Stream the rest of an answer as items."""
    streams: ResumableStreams = http_request.app.state.streams
    opening = resume(streams, http_request, http_request.path_params["id"])
    return respond(opening, JsonItems())


async def aborts(http_request: Request) -> Response:
    """Return how often a request was aborted."""
    return JSONResponse(engine.aborts[http_request.path_params["id"]])


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    async with ResumableStreams(adapter, linger_s=5.0) as streams:
        app.state.streams = streams
        yield


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/resumable/chat/completions", chat, methods=["POST"]),
        Route("/streams/{id}", read),
        Route("/aborts/{id}", aborts),
    ],
    lifespan=lifespan,
)
