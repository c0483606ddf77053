"""An engine that counts on from its prompt, and that may die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from msgspec.structs import replace

from rx_backend.context import RequestContext
from rx_backend.engine import EngineConfig, LLMEngine
from rx_backend.engines import SampleEngine
from rx_backend.errors import Disconnected
from rx_backend.protocols import LLMEngineOutput, PreprocessedRequest, StopConditions
from tests.engines.scripted import now

__all__ = ("LosableEngine", "counting_request")


class LosableEngine(LLMEngine):
    """
    Another engine, whose tokens count on from the prompt, and which may die.

    Args:
        engine: The engine.
        lives: After how many tokens it dies; None for never.
        error: What it dies with.
        ends: Return without a terminal in place of raising.
        delay_s: How long it is silent before it begins.
    """

    def __init__(
        self,
        engine: LLMEngine | None = None,
        lives: int | None = None,
        *,
        error: Exception | None = None,
        ends: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        self.engine = SampleEngine(token_interval_ms=1000) if engine is None else engine
        self.lives = lives
        self.error = Disconnected("gone") if error is None else error
        self.ends = ends
        self.delay_s = delay_s
        self.requests: list[PreprocessedRequest] = []
        self.contexts: list[RequestContext] = []
        self.aborts: list[tuple[str, float]] = []
        self.opened = self.closed = 0
        self.opened_at = self.closed_at = -1.0
        self.first_token_at: float | None = None

    async def start(self, worker_id: int) -> EngineConfig:
        return await self.engine.start(worker_id)

    async def abort(self, context: RequestContext) -> None:
        self.aborts.append((context.id, now()))
        await self.engine.abort(context)

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.requests.append(request)
        self.contexts.append(context)
        self.opened += 1
        self.opened_at = now()
        made = 0
        # It gives the first of several answers.
        first = replace(request, sampling_options=replace(request.sampling_options, n=None))
        chunks: Any = self.engine.generate(first, context)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.lives == 0:
                raise self.error
            async for chunk in chunks:
                done = len(request.token_ids) + made
                made += len(chunk.token_ids)
                if made and self.first_token_at is None:
                    self.first_token_at = now()
                yield replace(chunk, token_ids=list(range(done, done + len(chunk.token_ids))))
                if self.lives is not None and made >= self.lives:
                    if self.ends:
                        return
                    raise self.error
        finally:
            await chunks.aclose()
            self.closed += 1
            self.closed_at = now()


def counting_request(max_tokens: int = 6, **fields: Any) -> PreprocessedRequest:
    """Make a request that a `LosableEngine` engine answers with tokens from 3 on."""
    conditions = StopConditions(max_tokens=max_tokens, min_tokens=4)
    return PreprocessedRequest(
        model="mock", token_ids=[0, 1, 2], stop_conditions=conditions, **fields
    )
