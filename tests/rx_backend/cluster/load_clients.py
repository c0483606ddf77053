"""Clients of the OpenAI frontend over plain sockets, many at once: those that stay and those that leave."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.rx_backend.cluster.load_engine import FIRST, MODEL

TOKENS = 100
RETRY_S = 0.25


class Clients:
    """
    What so many clients saw.

    Args:
        port: Of the frontend.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    async def run(self, *, staying: int, leaving: int, slow: int, deaf: int) -> None:
        """Keep so many clients of each kind going until `stop`; those that stay read to their end."""
        kinds = [
            *[self._repeat("stayed", pause_s=0.0) for _ in range(staying)],
            *[self._repeat("slow", pause_s=0.04) for _ in range(slow)],
            *[self._leave(place) for place in range(leaving)],
            *[self._hold() for _ in range(deaf)],
        ]
        await asyncio.gather(*kinds)

    def stop(self) -> None:
        """Have each client end once it is through with what it reads."""
        self._over.set()

    async def _repeat(self, kind: str, *, pause_s: float) -> None:
        while not self._over.is_set():
            numbers, end = await self._read(pause_s)
            if end == "refused":
                self.counts["refused"] += 1
                await asyncio.sleep(RETRY_S)
            elif end == "length" and numbers == list(range(FIRST, FIRST + TOKENS)):
                self.counts[kind] += 1
            else:
                self.faults.append(f"{kind}: ended with {end!r}, {_shown(numbers)}")

    async def _leave(self, place: int) -> None:
        """Leave in mid-stream, with an abort of the connection, again and again."""
        while not self._over.is_set():
            with suppress(OSError):
                async with self._ask() as reader, asyncio.timeout(5 + place % 7):
                    for _ in range(place % 23):
                        await reader.readline()
                self.counts["left"] += 1
            await asyncio.sleep(0.1 + place % 5 / 10)

    async def _hold(self) -> None:
        """Ask for a long answer and never read of it."""
        with suppress(OSError):
            async with self._ask(tokens=5000):
                await self._over.wait()

    async def _read(self, pause_s: float) -> tuple[list[int], str]:
        numbers: list[int] = []
        try:
            async with self._ask() as reader:
                if b" 200 " not in await reader.readline():
                    return numbers, "refused"
                async for event in _events(reader):
                    if "error" in event:
                        return numbers, json.dumps(event["error"]) if numbers else "refused"
                    for choice in event["choices"]:
                        numbers += map(int, (choice["delta"].get("content") or "").split())
                        if choice.get("finish_reason"):
                            return numbers, choice["finish_reason"]
                    await asyncio.sleep(pause_s)
        except OSError as error:
            return numbers, repr(error) if numbers else "refused"
        return numbers, "no end"

    @asynccontextmanager
    async def _ask(self, tokens: int = TOKENS) -> AsyncGenerator[asyncio.StreamReader]:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "count"}],
            "max_tokens": tokens,
            "stream": True,
        }
        sent = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(sent), sent)
        )
        try:
            yield reader
        finally:
            writer.transport.abort()


async def _events(reader: asyncio.StreamReader) -> AsyncGenerator[dict[str, Any]]:
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


def _shown(numbers: list[int]) -> str:
    """Name the first place at which tokens are not each there once, in order."""
    for place, number in enumerate(numbers):
        if number != FIRST + place:
            return f"token {place} is {number}, expected {FIRST + place}"
    return f"{len(numbers)} tokens"
