"""The open streams and the tasks of an event loop: what it closes, and waits for, when it shuts down."""

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
    The streams that live on one event loop, and the tasks that the library has started there.

    ``loop.shutdown_asyncgens``, which ``asyncio.run`` awaits, closes the asynchronous generators of
    a loop side by side. Those of one stream belong together, and one of them may be closed by a task
    of ours already. So the loop is given one generator for all streams, which closes them as their
    consumers would, and waits until nothing is left.

    Attributes:
        open: The streams that are open.
        releases: The tasks that close something, and that are not done.
        tasks: Likewise the others. They are referred to here, as the loop does so weakly.
    """

    __slots__ = ("__weakref__", "_shutdown", "open", "releases", "tasks")

    def __init__(self) -> None:
        self.open: WeakSet[FusedRun[Any]] = WeakSet()
        self.releases: set[asyncio.Task[None]] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._shutdown: AsyncGenerator[None] | None = None

    def add(self, stream: FusedRun[Any]) -> None:
        """Add a stream, in the running loop."""
        self.open.add(stream)
        if self._shutdown is None:
            # It has no step that waits, so it has begun then, and the loop knows it.
            self._shutdown = _until_shutdown(self)
            with contextlib.suppress(StopIteration):
                anext(self._shutdown).send(None)

    async def close(self) -> None:
        """Close all streams, and wait until nothing is being closed any more."""
        streams = list(self.open)
        await asyncio.gather(*(stream.aclose() for stream in streams), return_exceptions=True)
        while self.releases:
            await asyncio.wait(self.releases)


_all: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopStreams] = WeakKeyDictionary()


def streams_of(loop: asyncio.AbstractEventLoop) -> LoopStreams:
    """Return those of *loop*."""
    found = _all.get(loop)
    if found is None:
        found = _all[loop] = LoopStreams()
    return found


async def _until_shutdown(streams: LoopStreams) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await streams.close()
