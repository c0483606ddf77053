"""The service in ``examples``, whose engine comes as far as a test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fastapi import FastAPI

from examples import fastapi_service
from rx_backend import LLMEngineOutput, PreprocessedRequest, RequestContext
from rx_backend.engines import SampleEngine
from rx_backend.worker.model_files import shared_model_folder

__all__ = ("app",)

TOKENS = 200


class HeldEngine(SampleEngine):
    """Counts; behind the token of number *limit* it waits until that is raised, or for a stop."""

    def __init__(self) -> None:
        super().__init__(token_interval_ms=1, default_max_tokens=TOKENS)
        self.limit = TOKENS

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        made = 0
        async for chunk in super().generate(request, context):
            while made >= self.limit and not context.is_stopped:  # noqa: ASYNC110 - either ends it
                await asyncio.sleep(0.005)
            made += 1
            yield chunk


engine = HeldEngine()
fastapi_service.load_engine = lambda: (engine, shared_model_folder())
app: FastAPI = fastapi_service.app


@app.put("/limit", status_code=204)
async def limit(tokens: int = TOKENS) -> None:
    """Let answers come to *tokens*, or to their end."""
    engine.limit = tokens
