"""Health probes in JSON, through the same adapter as every request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from operators.authoring import Stage, operator
from rx_backend.adapter import EngineAdapter
from rx_backend.context import RequestContext
from rx_backend.errors import Unknown
from rx_backend.protocols import Annotated, LLMEngineOutput, convert_request, to_builtins
from rx_backend.stream import ResponseStream

__all__ = ("JsonProbeAdapter",)

Item = Annotated[LLMEngineOutput]
JsonItem = Annotated[dict[str, Any]]


class JsonProbeAdapter:
    """
    Serve health probes that arrive as JSON, through the same adapter (rows H1, H2).

    Args:
        adapter: The adapter that serves the worker's requests.
    """

    def __init__(self, adapter: EngineAdapter) -> None:
        self._adapter = adapter.with_operators(_as_json())

    async def generate(
        self, payload: Mapping[str, Any], context: RequestContext | None = None
    ) -> ResponseStream[Annotated[dict[str, Any]]]:
        """
        Run one probe and return the stream of its items, in JSON.

        Raises:
            InvalidArgument: *payload* is not a request; names the field and what was expected.
            BackendError: The engine's set-up failed.
        """
        request = convert_request(payload)
        return await self._adapter.generate(request, context)


@operator
def _as_json() -> Stage[Item, JsonItem]:
    """Turn each item's chunk into plain JSON data."""
    item = yield
    while True:
        item = yield _json_item(item)


def _json_item(item: Item) -> JsonItem:
    if item.data is None:
        return cast("JsonItem", item)
    reason = item.data.finish_reason
    if reason is not None and reason.is_error:
        # A probe can't overlook an error item (row H2).
        return Annotated.from_error(Unknown(reason.message or "engine error"))
    return Annotated(to_builtins(item.data), item.id, item.event, item.comment)
