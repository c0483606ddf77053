"""An engine whose tokens say where they belong, and what tests do with its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rx_backend import EngineAdapter, LLMEngine, PreprocessedRequest, RequestContext
from rx_backend.engine import EngineConfig
from rx_backend.protocols import Annotated, LLMEngineOutput, StopConditions, usage
from rx_backend.resumable import ResumableReader, ResumableStreams
from rx_backend.resumable.jetstream import JetStreamSource

PROMPT = [7, 7, 7]
LEASE_S = 0.6
# The client leaves the sockets of attempts to connect that fail to the garbage collector.
leaves_sockets = pytest.mark.filterwarnings("ignore::ResourceWarning")


class CountingEngine(LLMEngine):
    """
    Each token is the number of those before it, the prompt included.

    So the tokens of an answer are 3, 4, 5, ... however often it was continued: one that is missing
    or comes twice is seen.
    """

    def __init__(self, interval_s: float = 0.0) -> None:
        self.interval_s = interval_s
        self.made = 0
        self.live = 0
        self.requests: list[PreprocessedRequest] = []

    async def start(self, worker_id: int) -> EngineConfig:
        return EngineConfig(model="counting")

    async def generate(
        self, request: PreprocessedRequest, context: RequestContext
    ) -> AsyncGenerator[LLMEngineOutput]:
        self.requests.append(request)
        self.live += 1
        start, wanted = len(request.token_ids), request.stop_conditions.max_tokens or 16
        try:
            for count in range(1, wanted + 1):
                await asyncio.sleep(self.interval_s)
                if context.is_stopped:
                    yield LLMEngineOutput.cancelled()
                    return
                self.made += 1
                token = start + count - 1
                chunk = LLMEngineOutput(
                    [token], text=f" {token}", cum_log_probs=-float(count), log_probs=[-1.0]
                )
                if count == wanted:
                    chunk.finish_reason = LLMEngineOutput.length().finish_reason
                    chunk.completion_usage = usage(start, count)
                yield chunk
        finally:
            self.live -= 1


def request(max_tokens: int, **fields: Any) -> PreprocessedRequest:
    return PreprocessedRequest(
        token_ids=PROMPT, stop_conditions=StopConditions(max_tokens=max_tokens), **fields
    )


def expected(max_tokens: int, after: int = 0) -> list[int]:
    return list(range(len(PROMPT) + after, len(PROMPT) + max_tokens))


def tokens(items: list[Annotated[LLMEngineOutput]]) -> list[int]:
    """The tokens of items, in order; an error item fails the test."""
    found: list[int] = []
    for item in items:
        assert item.error is None, item.error
        if item.data is not None:
            found += item.data.token_ids
    return found


@asynccontextmanager
async def process(
    url: str | Sequence[str],
    engine: LLMEngine,
    *,
    lease_s: float = LEASE_S,
    keep_s: float = 60.0,
    **options: Any,
) -> AsyncGenerator[ResumableStreams]:
    """What one web process has: a source with a connection of its own, and streams."""
    source = JetStreamSource(
        EngineAdapter(engine),
        url,
        lease_s=lease_s,
        keep_s=keep_s,
        max_bytes=options.pop("stored_bytes", 2**26),
        **{
            name: options.pop(name)
            for name in (
                "batch_items",
                "timeout_s",
                "max_takeovers",
                "max_age_s",
                "replicas",
                "connect",
            )
            if name in options
        },
    )
    async with source, ResumableStreams(source, keep_s=keep_s, **options) as streams:
        yield streams


async def read(reader: ResumableReader) -> list[int]:
    """Return the tokens of all that comes."""
    async with reader:
        return tokens([item async for item in reader])


async def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - of several processes
            await asyncio.sleep(0.01)
