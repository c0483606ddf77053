"""
Thousands of requests through the real runtime, whose clients leave at any moment.

``RX_BACKEND_SOAK=20000 python -m pytest tests/rx_backend/dynamo/test_soak.py --log-cli-level=INFO``
runs more of them; the figures are in the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.rx_backend.dynamo._runtime import NEEDS, cluster, new_context

pytestmark = NEEDS

REQUESTS = int(os.environ.get("RX_BACKEND_SOAK", "1200"))
CONCURRENT = 256
WARM_UP = 2 * CONCURRENT

# What may be more at the end than after the warm-up, whatever the number of requests.
MORE_OBJECTS = 150
MORE_BLOCKS = 1_000
MORE_PROCESS_BYTES = 16_000_000

# How a client sees each end.
ENDS = {
    "terminal": "end",
    "error": "Unavailable: gone",
    "bug": "Internal: gone",
}
LEAVES = ["drop", "stop", "cancel"]


@dataclass
class Clients:
    """
    What the clients know of their requests, by their ids.

    Attributes:
        stayed: Those read to the end that the engine gave them.
        lost: Those read to another end: the runtime's, on a machine that is far too busy.
        left_hanging: Those left while the engine was at work, as it does not end before.
    """

    stayed: set[str] = field(default_factory=set[str])
    lost: dict[str, str] = field(default_factory=dict[str, str])
    left_hanging: set[str] = field(default_factory=set[str])


class Worker:
    """The worker's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def report(self) -> dict[str, Any]:
        """Ask what is left."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(b"\n")
        return {**json.loads(await stdout.readline()), **json.loads(await stdout.readline())}


@asynccontextmanager
async def worker() -> AsyncGenerator[Worker]:
    """Run the worker; it ends when its stdin does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.rx_backend.dynamo.soak_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
        # For a backtrace in its log the runtime keeps 50 MB of debug information.
        env={**os.environ, "RUST_BACKTRACE": "0", "RUST_LIB_BACKTRACE": "0"},
    )
    try:
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def one_request(client: Any, number: int, clients: Clients) -> None:
    """One request of one client, who may leave."""
    chance, name = random.Random(number), f"r{number}"
    leaves = chance.choice([None, *LEAVES])
    # The runtime misses a client that has dropped its stream when the next item comes.
    until_left = "hang" if leaves == "stop" else "endless"
    end = chance.choice([*ENDS] if leaves is None else [*ENDS, *[until_left] * 4])
    tokens = chance.randrange(16)
    asked = {
        "tokens": tokens,
        "end": end,
        "set_up_s": chance.choice([0.0, 0.002, 0.01]),
        "pause_s": chance.choice([0.0, 0.0, 0.001, 0.005]),
    }
    request = {"token_ids": [1], "extra_args": asked}
    enough = chance.randrange(tokens + 1)
    reading = read(client, request, name, leaves, enough)
    if end == until_left:
        clients.left_hanging.add(name)
    if leaves == "cancel":
        # At times that is while the request is still on its way.
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0.0, 0.1)):
                await reading
        return
    ending = await reading
    if leaves is None and ending == ENDS[end]:
        clients.stayed.add(name)
    elif leaves is None:
        clients.lost[name] = ending


async def read(
    client: Any, request: dict[str, Any], id: str, leaves: str | None, enough: int
) -> str:
    """Read a stream until the client has enough, or to its end; gives how it ended."""
    context = new_context(id)
    tokens = 0
    try:
        stream = await client.round_robin(request, context=context)
        if leaves == "stop" and enough == 0:
            context.stop_generating()
        if leaves == "drop" and enough == 0:
            return leaves
        async for item in stream:
            tokens += len(item.data()["token_ids"])
            if tokens >= enough and leaves == "drop":
                return leaves
            if tokens >= enough and leaves == "stop":
                context.stop_generating()
    except Exception as error:
        # What the engine fails with, and what the runtime says of a stream that was stopped.
        return str(error)
    return "end"


@pytest.mark.rows("A1", "A2", "A6", "S7", "P7")
@pytest.mark.timeout(90 + REQUESTS // 20)
def test_disconnected_clients_leak_nothing() -> None:
    """No task, span, object or byte stays in the worker, and each stop is one abort."""
    clients = Clients()
    begun = time.perf_counter()

    async def run(client: Any, numbers: range) -> None:
        left = iter(numbers)

        async def one_after_another() -> None:
            for number in left:
                await one_request(client, number, clients)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENT):
                tasks.create_task(one_after_another())

    async def main() -> tuple[dict[str, Any], dict[str, Any]]:
        async with cluster() as joined, worker() as served:
            client = await joined.client()
            await run(client, range(WARM_UP))
            before = await served.report()
            await run(client, range(WARM_UP, REQUESTS))
            return before, await served.report()

    before, after = asyncio.run(main())
    more = {
        name: after[name] - before[name]
        for name in ("python_objects", "python_blocks", "process_bytes")
    }
    logging.getLogger(__name__).info(
        "%d requests in %.1f s, %d aborts, %d streams closed early, %s",
        REQUESTS,
        time.perf_counter() - begun,
        len(before["aborts"] + after["aborts"]),
        len(before["closed"] + after["closed"]),
        more,
    )
    assert len(clients.lost) <= REQUESTS // 100, clients.lost
    for report in (before, after):
        assert report["left"] == {"tasks": [], "spans": 0, "streams": 0, "objects": {}}
        assert report["aborts"] == report["heard"]
        assert clients.stayed.isdisjoint(report["aborts"])
        assert clients.left_hanging.intersection(report["seen"]) <= set(report["aborts"])
        assert set(report["closed"]) <= set(report["heard"])
    assert more["python_objects"] <= MORE_OBJECTS
    assert more["python_blocks"] <= MORE_BLOCKS
    assert more["process_bytes"] <= MORE_PROCESS_BYTES
