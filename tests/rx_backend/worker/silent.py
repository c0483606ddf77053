"""An engine that falls silent, and pipelines for it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

from operators import Pipeline, deadlines, heartbeat
from rx_backend import (
    Annotated,
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
    RequestScope,
    standard_pipeline,
)
from tests.rx_backend.worker.engines import say, text_of

MODEL = "silent"
SILENCE_S = float(os.environ.get("SILENCE_S", "30"))


class SilentEngine(LLMEngine):
    """Makes all but two of the tokens it may make, is silent for SILENCE_S, and makes the rest."""

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model=MODEL)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        say("called")
        wanted = request.stop_conditions.max_tokens or 2
        for token_id in range(wanted):
            if token_id == wanted - 2:
                await asyncio.sleep(SILENCE_S)
            yield LLMEngineOutput.token(token_id)
        yield LLMEngineOutput.length()


class StuckEngine(SilentEngine):
    """Falls silent in a thread, which nothing can end."""

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        yield LLMEngineOutput.token(0)
        await asyncio.to_thread(time.sleep, SILENCE_S)
        yield LLMEngineOutput.length()


PIPELINES = {
    "first_token": standard_pipeline.insert_before("validate_chunks", deadlines(first_token_s=0.2)),
    "idle": standard_pipeline.insert_before("validate_chunks", deadlines(idle_s=0.2)),
    "total": standard_pipeline.insert_before("validate_chunks", deadlines(total_s=0.2)),
    "retried": standard_pipeline.insert_before(
        "validate_chunks", deadlines(first_token_s=0.2, retry=True)
    ),
    "comment": standard_pipeline.with_operators(heartbeat(0.05, Annotated(comment=["ping"]))),
    "event": standard_pipeline.with_operators(
        heartbeat(0.05, Annotated(event="ping", comment=["ping"]))
    ),
    "empty": standard_pipeline.with_operators(heartbeat(0.05, Annotated(LLMEngineOutput()))),
    "standard": standard_pipeline,
}


def by_question(scope: RequestScope) -> Pipeline:
    """Return the pipeline that the user's message names."""
    (name,) = text_of(scope.request.token_ids).removeprefix("user: ").split("\n")[:1]
    return PIPELINES[name]
