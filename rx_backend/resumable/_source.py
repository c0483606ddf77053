"""Where resumable streams come from."""

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
    One answer as a source hands it out, for :class:`ResumableStreams` to hold.

    Args:
        items: The answer's items, the first one first. They are pulled and closed by one task.
        context: The request's context.
        owner: Whose answer it is.
        created: When it was begun, in seconds since the epoch; now by default.
        begun_here: Whether its engine's stream is in this process. One that is elsewhere is released
            and forgotten when its last reader here has left for ``linger_s``, and not stopped. A
            source sets the attribute where an engine here takes over, or one elsewhere does.

    Attributes:
        items: The items, as a run that may be closed while it is pulled.
        context, owner, created, begun_here: As given.
    """

    def __init__(
        self,
        items: AsyncIterator[Annotated[LLMEngineOutput]],
        *,
        context: RequestContext,
        owner: str | None = None,
        created: float | None = None,
        begun_here: bool = True,
    ) -> None:
        self.items: FusedRun[Annotated[LLMEngineOutput]] = (
            items if isinstance(items, FusedRun) else fuse(items, [])
        )
        self.context = context
        self.owner = owner
        self.created = time() if created is None else created
        self.begun_here = begun_here

    def watch(self, shared: SharedStream[Annotated[LLMEngineOutput]]) -> None:
        """
        Take notice of the ``SharedStream`` that the items are read from; called once, at the start.

        By default nothing is done. A source with readers elsewhere adds a mark for each.
        """

    async def head(self) -> int:
        """
        Return how many items the answer has so far, where that may be more than were pulled.

        Asked when a reader wants a position that has not been pulled. By default 0.
        """
        return 0

    def stop(self) -> None:
        """
        Ask the engine to end the answer; by default through the context (rows A2 to A4).

        Where that takes time, :meth:`aclose` waits until it is done.
        """
        self.context.stop_generating()

    def shut_down(self) -> None:
        """Prepare to be closed because the process ends; by default a stop, if it was begun here."""
        if self.begun_here:
            self.stop()

    async def aclose(self) -> None:
        """End the items, also while they are pulled, and release what belongs to them. Idempotent."""
        await self.items.aclose()


@runtime_checkable
class StreamSource(Protocol):
    """Where streams are begun, and where those are found that were begun elsewhere."""

    async def start(
        self, id: str, request: PreprocessedRequest, context: RequestContext, owner: str | None
    ) -> OpenedStream:
        """
        Begin the answer to *request* under the stream id *id*.

        Raises:
            BackendError: The engine's set-up failed (row S5); nothing is left then.
        """
        ...

    async def find(self, id: str) -> OpenedStream | None:
        """
        Return the stream *id*, which is not held here, from its beginning; None if there is none.

        It may be wanted for its owner alone, or to be stopped, and is closed then.
        """
        ...


class AdapterSource:
    """
    A source whose streams are those of an adapter, in this process.

    Args:
        adapter: Its streams have ``Annotated`` items.
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
        """Return None: streams that this process doesn't hold are nowhere else."""
        return None
