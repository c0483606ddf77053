"""
Disaggregated prefill and decode on llama.cpp, with a transfer of the KV cache.

The prefill worker reads the prompt and offers its KV cache on a TCP port. The decode worker fetches
it and generates the answer. The prefill worker keeps a cache until its peer has confirmed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from rx_backend import (
    DisaggregationMode,
    EngineConfig,
    LLMEngineOutput,
    PreprocessedRequest,
    RequestContext,
)
from rx_backend.engines.llama_cpp import LlamaCppEngine
from rx_backend.protocols import FinishReason, usage

CONFIRMED = b"confirmed\n"


class DisaggregatedLlama(LlamaCppEngine):
    """
    An engine for a prefill or a decode worker.

    Args:
        model_path: A GGUF file, the same for both workers.
        mode: The worker's role.
        host: The address at which a decode worker reaches this prefill worker.
        options: Those of `LlamaCppEngine`.
    """

    def __init__(
        self, model_path: str | Path, *, mode: str = "agg", host: str = "127.0.0.1", **options: Any
    ) -> None:
        super().__init__(model_path, **options)
        self._mode = DisaggregationMode.parse(mode)
        self._host = host
        self._server: asyncio.Server | None = None
        self._fetches: dict[str, asyncio.Task[bytes]] = {}
        self.offers: dict[str, bytes] = {}
        """In prefill mode, the caches that no peer has confirmed yet, by name."""

    async def start(self, worker_id: int) -> EngineConfig:
        """Load the model; a prefill worker also opens the port that serves caches."""
        config = await super().start(worker_id)
        if self._mode.is_prefill:
            self._server = await asyncio.start_server(self._serve_cache, self._host, 0)
        return config

    def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        """Stream the answer; in prefill mode, one chunk with the address of the cache."""
        if self._mode.is_prefill:
            return self._prefill(request, context)
        if request.prefill_result is not None:
            return self._decode(request, context, request.prefill_result.disaggregated_params)
        return super().generate(request, context)

    async def abort(self, context: RequestContext) -> None:
        """Interrupt a transfer; after the first token there is none (row A4)."""
        if context.id in self._fetches:
            self._fetches[context.id].cancel()

    async def is_quiescent(self) -> bool:
        """Return whether no cache waits for its peer, so that a prefill worker may exit."""
        return not self.offers

    async def drain(self) -> None:
        """Wait for the caches that this worker fetches, and until nothing is queued or running."""
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)
        await super().drain()

    async def cleanup(self) -> None:
        """Close the port, forget the caches, and free the model."""
        if self._server is not None:
            self._server.close()
        for fetch in self._fetches.values():
            fetch.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)
        self.offers.clear()
        await super().cleanup()

    async def _prefill(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        answer = self.answer_to(request)
        answer.limit, answer.keeps = 1, True
        async for chunk in self.stream(request, context, answer):
            # With any other finish reason the answer is complete, and decode is not called.
            if chunk.finish_reason == FinishReason.LENGTH and answer.kept is not None:
                chunk.disaggregated_params = self._offer(answer.kept)
            yield chunk

    def _offer(self, cache: bytes) -> dict[str, Any]:
        assert self._server is not None  # noqa: S101 - `start` comes first
        name = uuid4().hex
        self.offers[name] = cache
        port = self._server.sockets[0].getsockname()[1]
        return {"host": self._host, "port": port, "name": name}

    async def _serve_cache(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            name = (await reader.readline()).decode().strip()
            cache = self.offers.get(name, b"")
            writer.write(len(cache).to_bytes(8, "big") + cache)
            await writer.drain()
            if await reader.readline() == CONFIRMED:
                self.offers.pop(name, None)
        writer.close()

    async def _decode(
        self, request: PreprocessedRequest, context: RequestContext, address: dict[str, Any]
    ) -> AsyncGenerator[LLMEngineOutput]:
        answer = self.answer_to(request)
        # In a task, so that a dropped stream does not interrupt it.
        fetch = self._fetches[context.id] = asyncio.create_task(fetch_cache(**address))
        fetch.add_done_callback(lambda _: self._fetches.pop(context.id))
        await asyncio.wait([fetch])
        if fetch.cancelled():
            yield LLMEngineOutput.cancelled().with_usage(usage(len(answer.prompt), 0))
            return
        answer.received = fetch.result()
        async for chunk in self.stream(request, context, answer):
            yield chunk


async def fetch_cache(host: str, port: int, name: str) -> bytes:
    """
    Fetch a cache from the prefill worker, and confirm it.

    Raises:
        OSError: The worker does not respond.
        asyncio.IncompleteReadError: It interrupted the transfer.
        LookupError: It has no such cache.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"{name}\n".encode())
        size = int.from_bytes(await reader.readexactly(8), "big")
        if not size:
            raise LookupError(f"the prefill worker has no cache {name}")
        cache = await reader.readexactly(size)
        writer.write(CONFIRMED)
        await writer.drain()
        return cache
    finally:
        writer.close()
