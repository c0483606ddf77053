"""What a worker needs of the runtime that it runs on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from rx_backend.disagg import DisaggregationMode
from rx_backend.engine import EngineConfig

__all__ = ("Handler", "ModelEntry", "WorkerRuntime")

Handler: TypeAlias = Callable[[Any, Any], AsyncIterator[Any]]
"""Serves one request: from it and the runtime's context to its items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """
    What the worker says of its model to routers and frontends.

    Attributes:
        config: What the started engine said of itself.
        mode: The worker's role.
        path: Folder with the model's tokenizer and chat template.
    """

    config: EngineConfig
    mode: DisaggregationMode
    path: str


class WorkerRuntime(Protocol):
    """
    One worker's place in a distributed runtime.

    The order of calls: ``serve`` (which lasts), ``reachable``, ``register``; at the end ``leave``,
    then ``shutdown``, upon which ``serve`` returns.
    """

    @property
    def worker_id(self) -> int:
        """The worker's number among all."""
        ...

    async def serve(self, handler: Handler, probe: Mapping[str, Any] | None) -> None:
        """
        Serve requests until :meth:`shutdown`.

        Args:
            handler: Serves each request.
            probe: The request that shows whether the engine works; None for no check.
        """
        ...

    async def reachable(self) -> None:
        """Wait until others can find the worker."""
        ...

    async def register(self, model: ModelEntry) -> None:
        """Announce the model."""
        ...

    async def leave(self) -> None:
        """Leave discovery, so that no new requests are sent here."""
        ...

    def shutdown(self) -> None:
        """End the runtime."""
        ...
