"""The open streams and tasks of an event loop, closed and awaited when it shuts down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

if TYPE_CHECKING:
    from operators._core.fusion import FusedRun

__all__ = ("LoopStreams", "streams_of")


class LoopStreams:
    """
    The streams of one event loop, and the tasks that the library has started there.

    ``loop.shutdown_asyncgens``, which ``asyncio.run`` awaits, closes a loop's asynchronous
    generators concurrently. But those of one stream belong together, and a task of ours may already
    be closing one of them. So the loop gets a single generator for all streams, which closes them
    as their consumers would, and waits until all are released.

    Attributes:
        open: The open streams.
        releases: The unfinished tasks that release something.
        tasks: The other unfinished tasks, referenced here because the loop does so only weakly.
    """

    def __init__(self) -> None:
        self.open: WeakSet[FusedRun[Any]] = WeakSet()
        self.releases: set[asyncio.Task[None]] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._shutdown: AsyncGenerator[None] | None = None

    def add(self, stream: FusedRun[Any]) -> None:
        """Add a stream, in the running loop."""
        self.open.add(stream)
        if self._shutdown is None:
            # Its first step does not wait, so this starts it and registers it with the loop.
            self._shutdown = _until_shutdown(self)
            with contextlib.suppress(StopIteration):
                anext(self._shutdown).send(None)

    async def close(self) -> None:
        """Close all streams, and wait until all are released."""
        streams = list(self.open)
        await asyncio.gather(*(stream.aclose() for stream in streams), return_exceptions=True)
        while self.releases:
            await asyncio.wait(self.releases)


_all: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopStreams] = WeakKeyDictionary()


def streams_of(loop: asyncio.AbstractEventLoop) -> LoopStreams:
    """Return the streams of *loop*."""
    found = _all.get(loop)
    if found is None:
        found = _all[loop] = LoopStreams()
    return found


async def _until_shutdown(streams: LoopStreams) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await streams.close()
