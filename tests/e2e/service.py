"""
The web service under test; what is behind it is in the environment.

``UPSTREAMS`` are servers with OpenAI's API, of which the next one continues where one is lost.
``NATS_URL`` keeps the answers outside of the process. Without them an engine counts, with
``INTERVAL_S`` between two tokens. Below ``/small`` next to nothing is held of an answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from tokenizers import Tokenizer

from operators import detokenize
from rx_backend import (
    EngineAdapter,
    FailoverEngine,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    standard_pipeline,
)
from rx_backend.engines.openai import OpenAIEngine
from rx_backend.protocols import StopConditions
from rx_backend.resumable import ResumableStreams
from rx_backend.resumable.jetstream import JetStreamSource
from rx_backend.web import (
    ChatChunks,
    CompletionChunks,
    JsonItems,
    context_of,
    respond,
    resume,
    start_or_resume,
)
from rx_backend.worker.model_files import shared_model_folder
from tests.rx_backend.resumable.jetstream._answers import LEASE_S, PROMPT, CountingEngine

SMALL_BYTES = 4096
GATED = "gated"


class GatedEngine(CountingEngine):
    """Counts; for the model ``gated`` it waits behind the first token until the gate is opened."""

    def __init__(self, interval_s: float) -> None:
        super().__init__(interval_s)
        self.gate = asyncio.Event()

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        async for chunk in super().generate(request, context):
            # Log probabilities stay with their token: chunks that have some are not merged.
            yield replace(chunk, cum_log_probs=None, log_probs=None)
            if request.model == GATED:
                await self.gate.wait()


def streams_of(http_request: Request) -> ResumableStreams:
    """Return the streams for a path."""
    is_small = http_request.url.path.startswith("/small")
    return http_request.app.state.streams["small" if is_small else "usual"]


async def answer(http_request: Request) -> Response:
    """Stream an answer in one of OpenAI's forms, or the rest of one."""
    body: dict[str, Any] = await http_request.json()
    request = PreprocessedRequest(
        model=body.get("model", "m"),
        token_ids=PROMPT,
        stop_conditions=StopConditions(max_tokens=body.get("max_tokens")),
    )
    context, owner = context_of(http_request), http_request.headers.get("user")
    opening = start_or_resume(streams_of(http_request), http_request, request, context, owner=owner)
    form = ChatChunks if "messages" in body else CompletionChunks
    return respond(opening, form("m", include_usage="stream_options" in body), context=context)


async def items(http_request: Request) -> Response:
    """Stream an answer's items from a position on."""
    owner = http_request.headers.get("user")
    id = http_request.path_params["id"]  # noqa: A001 - what the path calls it
    return respond(resume(streams_of(http_request), http_request, id, owner=owner), JsonItems())


async def open_gate(http_request: Request) -> Response:
    """Let the engine go on."""
    http_request.app.state.engine.gate.set()
    return Response(status_code=204)


def engine_of(upstreams: str) -> LLMEngine:
    """Return the engine."""
    if not upstreams:
        return GatedEngine(float(os.environ.get("INTERVAL_S", "0")))
    return FailoverEngine(*(OpenAIEngine(url) for url in upstreams.split(",")))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    tokenizer = Tokenizer.from_file(f"{shared_model_folder()}/tokenizer.json")
    app.state.engine = engine = engine_of(os.environ.get("UPSTREAMS", ""))
    pipeline = standard_pipeline.with_operators(detokenize(tokenizer))
    adapter = EngineAdapter(engine, pipeline=pipeline)
    await engine.start(0)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.cleanup)
        source, url = adapter, os.environ.get("NATS_URL")
        if url is not None:
            source = await stack.enter_async_context(JetStreamSource(adapter, url, lease_s=LEASE_S))
        app.state.streams = {
            "usual": await stack.enter_async_context(ResumableStreams(source, max_bytes=2**26)),
            "small": await stack.enter_async_context(
                ResumableStreams(adapter, max_bytes=SMALL_BYTES)
            ),
        }
        yield


ROUTES = [
    Route("/v1/chat/completions", answer, methods=["POST"]),
    Route("/v1/completions", answer, methods=["POST"]),
    Route("/streams/{id}", items),
]
app = Starlette(
    routes=[*ROUTES, Mount("/small", routes=ROUTES), Route("/gate", open_gate, methods=["POST"])],
    lifespan=lifespan,
)
