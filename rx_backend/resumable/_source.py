"""The sources of resumable streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import time
from typing import Protocol, runtime_checkable

from operators import SharedStream, fuse
from operators.authoring import FusedRun
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.protocols import Annotated, LLMEngineOutput, PreprocessedRequest

__all__ = ("AdapterSource", "OpenedStream", "StreamSource")


class OpenedStream:
    """
    One answer from a source, for :class:`ResumableStreams` to hold.

    Args:
        items: The answer's items, from the first on. One task pulls and closes them.
        context: The request's context.
        owner: The answer's owner.
        created: When it was started, in seconds since the epoch; now by default.
        started_here: Whether its engine's stream is in this process. If it is elsewhere, the stream
            is released and forgotten ``linger_s`` after its last reader here has left, but not
            stopped. A source updates the attribute when an engine here or elsewhere takes over.

    Attributes:
        items: The items, as a run that may be closed while it is pulled.
        context, owner, created, started_here: As given.
    """

    def __init__(
        self,
        items: AsyncIterator[Annotated[LLMEngineOutput]],
        *,
        context: RequestContext,
        owner: str | None = None,
        created: float | None = None,
        started_here: bool = True,
    ) -> None:
        self.items: FusedRun[Annotated[LLMEngineOutput]] = (
            items if isinstance(items, FusedRun) else fuse(items, [])
        )
        self.context = context
        self.owner = owner
        self.created = time() if created is None else created
        self.started_here = started_here

    def watch(self, shared: SharedStream[Annotated[LLMEngineOutput]]) -> None:
        """
        Receive the ``SharedStream`` from which the items are read; called once, at the start.

        By default this does nothing. A source with readers elsewhere adds a mark for each.
        """

    async def head(self) -> int:
        """
        Return how many items the answer has so far, which may be more than were pulled.

        Called when a reader wants a position that has not been pulled. By default 0.
        """
        return 0

    def stop(self) -> None:
        """
        Ask the engine to end the answer; by default through the context (rows A2 to A4).

        If that takes time, :meth:`aclose` waits for it.
        """
        self.context.stop_generating()

    def shut_down(self) -> None:
        """Prepare for the process's shutdown; by default stop the stream if it was started here."""
        if self.started_here:
            self.stop()

    async def aclose(self) -> None:
        """End the items, even during a pull, and release their resources. Idempotent."""
        await self.items.aclose()


@runtime_checkable
class StreamSource(Protocol):
    """Starts streams, and finds those that were started elsewhere."""

    async def start(
        self, id: str, request: PreprocessedRequest, context: RequestContext, owner: str | None
    ) -> OpenedStream:
        """
        Start the answer to *request* under the stream id *id*.

        Raises:
            BackendError: The engine's set-up failed (row S5); nothing remains.
        """
        ...

    async def find(self, id: str) -> OpenedStream | None:
        """
        Return the stream *id*, which is not held here, from its beginning; None if there is none.

        It may be needed only to check its owner or to stop it, and is then closed.
        """
        ...


class AdapterSource:
    """
    A source whose streams are those of an adapter, in this process.

    Args:
        adapter: The adapter; its streams must have ``Annotated`` items.
    """

    def __init__(self, adapter: EngineAdapter[Annotated[LLMEngineOutput]]) -> None:
        self._adapter = adapter

    async def start(
        self, id: str, request: PreprocessedRequest, context: RequestContext, owner: str | None
    ) -> OpenedStream:
        """
        Call the adapter.

        Raises:
            BackendError: As ``EngineAdapter.generate``.
        """
        stream = await self._adapter.generate(request, context)
        return OpenedStream(stream, context=context, owner=owner)

    async def find(self, id: str) -> OpenedStream | None:
        """Return None: there are no streams other than those of this process."""
        return None
