"""A server with OpenAI's API that gives token ids, as vLLM does; each is the number of those before."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

INTERVAL_S = float(os.environ.get("INTERVAL_S", "0"))

asked: list[int] = []


async def models(http_request: Request) -> Response:
    entry = {"id": "m", "owned_by": "vllm", "max_model_len": 4096}
    return JSONResponse({"object": "list", "data": [entry]})


async def completions(http_request: Request) -> Response:
    """Count on from the prompt."""
    body: dict[str, Any] = await http_request.json()
    asked.append(len(body["prompt"]))
    return StreamingResponse(
        count(len(body["prompt"]), body["max_tokens"]), media_type="text/event-stream"
    )


async def count(start: int, wanted: int) -> AsyncGenerator[str]:
    for token in range(start, start + wanted):
        await asyncio.sleep(INTERVAL_S)
        reason = "length" if token == start + wanted - 1 else None
        choice = {"index": 0, "text": "", "token_ids": [token], "finish_reason": reason}
        yield f"data: {json.dumps({'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"


async def prompts(http_request: Request) -> Response:
    """Tell how long the prompts were."""
    return JSONResponse(asked)


app = Starlette(
    routes=[
        Route("/v1/models", models),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/prompts", prompts),
    ]
)
