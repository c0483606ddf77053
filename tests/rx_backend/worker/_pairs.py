"""Clients of several workers behind one frontend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

from openai import APIStatusError, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from rx_backend.worker.frontend import until_listed
from tests.rx_backend.worker._processes import START_S, Served
from tests.rx_backend.worker.peers import FIRST, MODEL

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def ask(client: OpenAI, letter: str, tokens: int) -> Stream[ChatCompletionChunk]:
    """Start to stream an answer."""
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": letter}],
        max_tokens=tokens,
        stream=True,
        extra_headers={"traceparent": TRACEPARENT},
    )


def words(chunks: Iterator[ChatCompletionChunk]) -> Iterator[str]:
    """Give what an answer says, number by number, and its finish reason at the end."""
    for chunk in chunks:
        for choice in chunk.choices:
            yield from (choice.delta.content or "").split()
            if choice.finish_reason is not None:
                yield choice.finish_reason


def counted(tokens: int) -> list[str]:
    """What a whole answer says."""
    return [*map(str, range(FIRST, FIRST + tokens)), "length"]


def warm_up(client: OpenAI, port: int, *workers: Served) -> None:
    """Ask until each of the workers was asked something; clear what they have told."""
    asyncio.run(until_listed("127.0.0.1", port, MODEL))
    ends = time.monotonic() + START_S
    while not all(worker.told("request") for worker in workers):
        assert time.monotonic() < ends, "\n".join("".join(worker.seen) for worker in workers)
        # A frontend lists a model a moment before it knows where the workers are.
        with suppress(APIStatusError):
            assert list(words(ask(client, "c", 2))) == counted(2)
