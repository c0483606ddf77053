"""
Disaggregated prefill and decode: one worker reads the prompt, another writes the answer.

The answer continues the prompt's numbers, and the "cache" of a prompt is the next number. The
prefill worker keeps it until its peer has fetched it, as engines keep the blocks of a KV cache.
"""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

from rx_backend import (
    DisaggregationMode,
    EngineConfig,
    LLMEngine,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)

NUMBERS = 1000  # the tokenizer for workers without a model has numbers below this


class CountingEngine(LLMEngine):
    """An engine that continues the numbers of its prompt, in one worker or in two."""

    def __init__(self, mode: str = "agg") -> None:
        self._mode = DisaggregationMode.parse(mode)
        self._caches: dict[str, int] = {}
        self._names = map(str, count())
        self._server: asyncio.Server | None = None

    async def start(self, worker_id: int) -> EngineConfig:
        """Announce the model; a prefill worker also opens the port that serves caches."""
        if self._mode.is_prefill:
            self._server = await asyncio.start_server(self._give_cache, "127.0.0.1", 0)
        return EngineConfig(model="counting")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncIterator[LLMEngineOutput]:
        """Stream the answer; in prefill mode, one chunk with the address of the cache."""
        if self._mode.is_prefill:
            yield self._prefilled(request)
            return
        if request.prefill_result is None:
            number = read_prompt(request.token_ids)
        else:
            # A stop is ignored here: otherwise the peer would keep the cache forever.
            number = await fetch_cache(**request.prefill_result.disaggregated_params)
        for token_id in range(number, number + (request.stop_conditions.max_tokens or 16)):
            yield LLMEngineOutput.token(token_id % NUMBERS)
            if context.is_stopped:
                yield LLMEngineOutput.cancelled()
                return
            await asyncio.sleep(0.02)  # the model works here
        yield LLMEngineOutput.length()

    async def is_quiescent(self) -> bool:
        """Return whether all caches were fetched, so that a prefill worker may exit."""
        return not self._caches

    async def cleanup(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()

    def _prefilled(self, request: PreprocessedRequest) -> LLMEngineOutput:
        name = next(self._names)
        self._caches[name] = read_prompt(request.token_ids)
        assert self._server is not None  # noqa: S101 - `start` comes first
        chunk = LLMEngineOutput.length()  # any other finish reason would end the whole answer
        port = self._server.sockets[0].getsockname()[1]
        chunk.disaggregated_params = {"port": port, "name": name}
        return chunk

    async def _give_cache(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        writer.write(f"{self._caches.pop(name)}\n".encode())
        await writer.drain()
        writer.close()


def read_prompt(token_ids: list[int]) -> int:
    """Return the next number: after the prompt's last token, or the prompt's length."""
    return token_ids[-1] + 1 if token_ids[-1] < NUMBERS else len(token_ids)


async def fetch_cache(port: int, name: str, **_: Any) -> int:
    """Fetch a cache from the prefill worker."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{name}\n".encode())
    number = int(await reader.readline())
    writer.close()
    return number
