"""The ten-line engine: it repeats its prompt, a token at a time."""

import asyncio
from collections.abc import AsyncIterator

from rx_backend import (
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)


class EchoEngine(LLMEngine):
    """Repeats the prompt."""

    async def start(self, worker_id: int) -> EngineConfig:
        """Announce the model; a real engine loads it here."""
        return EngineConfig(model="echo")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        """Stream the prompt's tokens."""
        for token_id in request.token_ids[: request.stop_conditions.max_tokens]:
            if context.is_stopped:
                yield LLMEngineOutput.cancelled()
                return
            await asyncio.sleep(0.02)  # where the model works
            yield LLMEngineOutput.token(token_id)
        yield LLMEngineOutput.stop()
