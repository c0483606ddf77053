"""A server with OpenAI's API that answers as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web

from rx_backend.engines.openai import OpenAIEngine

__all__ = ("ScriptedServer", "choice", "data", "started", "streaming")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DONE = b"data: [DONE]\n\n"


def choice(*token_ids: int, **fields: Any) -> dict[str, Any]:
    """Return an event with a choice as vLLM sends it."""
    return {"choices": [{"index": 0, "text": "x", "token_ids": [*token_ids], **fields}]}


def data(*events: object, end: bytes = DONE) -> bytes:
    """Return events as they are on the wire."""
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + end


def streaming(*parts: bytes, cut: bool = False) -> Handler:
    """Answer with these bytes, a part at a time; *cut* loses the connection behind the last."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        if cut:
            transport = request.transport
            assert transport is not None
            transport.abort()
        return response

    return handle


def _refuse(request: web.Request) -> Awaitable[web.StreamResponse]:
    raise web.HTTPNotFound


@dataclass
class ScriptedServer:
    """
    What the server answers, and what it was asked.

    Attributes:
        answer: Answers the next requests for an answer, by their path if there is an entry for it.
        models: What is listed.
        pages: What is found at further paths.
        bodies, headers, paths: Of the requests for an answer.
    """

    answer: Handler = _refuse
    models: Sequence[dict[str, Any]] = ({"id": "m", "owned_by": "vllm", "max_model_len": 100},)
    pages: dict[str, Any] = field(default_factory=dict[str, Any])
    bodies: list[Any] = field(default_factory=list[Any])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    paths: list[str] = field(default_factory=list[str])
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            self.paths.append(request.path)
            self.bodies.append(await request.json())
            self.headers.append(dict(request.headers))
            return await self.answer(request)
        if request.path == "/v1/models":
            return web.json_response({"data": [*self.models]})
        if request.path in self.pages:
            return web.json_response(self.pages[request.path])
        raise web.HTTPNotFound

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[ScriptedServer]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = cast("tuple[str, int]", runner.addresses[0])
        self.url = f"http://127.0.0.1:{address[1]}"
        try:
            yield self
        finally:
            await runner.cleanup()
            await asyncio.sleep(0)


@asynccontextmanager
async def started(script: ScriptedServer, **options: Any) -> AsyncGenerator[OpenAIEngine]:
    """Run the server, and an engine on it."""
    async with script.running():
        engine = OpenAIEngine(f"{script.url}/v1", **options)
        try:
            await engine.start(0)
            yield engine
        finally:
            await engine.cleanup()
