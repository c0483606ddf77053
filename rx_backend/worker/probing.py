"""The health check's requests, which come in between the others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from rx_backend.worker.runtime import Handler

__all__ = ("PROBE_KEY", "with_probes")

PROBE_KEY = "_HEALTH_CHECK"
"""The key that marks a request as a health check's; see ``PreprocessedRequest.is_probe``."""


def with_probes(handler: Handler) -> Handler:
    """
    A handler that answers a health check when its run has ended, and any other request as before.

    The runtime looks at the first item of the answer only, and an engine that fails after its first
    token is not healthy: so an error comes first (row H2).

    Args:
        handler: Serves the requests; gives an error as an item whose event is ``error``.
    """

    def handle(request: Any, context: Any) -> AsyncIterator[Any]:
        is_probe = isinstance(request, dict) and PROBE_KEY in request
        return (probe if is_probe else handler)(request, context)

    async def probe(request: Any, context: Any) -> AsyncGenerator[Any]:
        items = [item async for item in handler(request, context)]
        failed = [item for item in items if item.get("event") == "error"]
        for item in failed or items:
            yield item

    return handle
