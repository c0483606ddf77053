"""Web processes of their own, which are ended on every way out."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tests.rx_backend.worker._processes import ROOT

__all__ = ("Child", "child")

_WITHIN_S = 20.0


class Child:
    """A running ``_child.py``, and what it has told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.tokens: list[int] = []
        self.position = 0

    async def line(self) -> list[str]:
        """Return the words of the next line; none at the end."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_WITHIN_S):
            words = (await self._process.stdout.readline()).decode().split()
        if words[:1] == ["read"]:
            self.position = int(words[1])
            self.tokens += map(int, words[2:])
        return words

    async def id(self) -> str:
        """Return the id of the answer that it began."""
        word, stream_id = await self.line()
        assert word == "id"
        return stream_id

    async def read_to(self, position: int) -> None:
        """Wait until it has read so many items."""
        while self.position < position:
            assert await self.line(), "the process has ended"

    async def read_to_end(self) -> None:
        """Wait until it has read the answer."""
        while await self.line() != ["end"]:
            pass

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill it, and take what it had told."""
        self.signal(signal.SIGKILL)
        while await self.line():
            pass
        await self._process.wait()


@asynccontextmanager
async def child(
    url: str, *, max_tokens: int, interval_s: float, lease_s: float
) -> AsyncGenerator[Child]:
    """Run a web process that begins an answer and reads it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.rx_backend.resumable.jetstream._child",
        url,
        *map(str, (max_tokens, interval_s, lease_s)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
