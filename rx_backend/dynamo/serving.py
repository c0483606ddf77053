"""An adapter as a handler for the runtime's endpoints."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from operators.authoring import FusedRun, operator
from rx_backend.adapter import EngineAdapter
from rx_backend.dynamo.outlet import Outlet, ResponseSender
from rx_backend.dynamo.served_stream import Admission, ServedStream, admit_all
from rx_backend.errors import InvalidArgument
from rx_backend.probe import JsonProbeAdapter
from rx_backend.protocols import Annotated, LLMEngineOutput, convert_request
from rx_backend.stream import ResponseStream

__all__ = ("Handler", "serving")

Handler: TypeAlias = Callable[..., AsyncIterator[dict[str, Any]]]
"""A handler for ``serve_endpoint``; called with a request, its context and ``response_sender``."""


def serving(
    adapter: EngineAdapter,
    *,
    coalesce: bool = True,
    admit: Admission = admit_all,
    context_length: Callable[[], int | None] = lambda: None,
) -> Handler:
    """
    Return the handler with which the runtime serves an adapter.

    Use it as ``await endpoint.serve_endpoint(serving(adapter))``. Every request becomes a stream of
    the adapter. Its items are pushed if the runtime passes a ``response_sender`` (1.6), otherwise
    pulled. A disconnect, a stop and a kill by the runtime reach the engine as at most one ``abort``
    (row A2). A kill, which a disconnect also is, closes the stream at once.

    Errors are sent as items with their kind, one of nine; an invalid request gets an
    `InvalidArgument` item (rows S5, S6). After an `EngineShutdown` item, clients stop routing to
    the instance and may send the request elsewhere.

    Health probes get one item, as from `JsonProbeAdapter`: the runtime checks the first only, and
    an engine that fails after its first token is not healthy (row H2).

    Args:
        adapter: What serves the requests.
        coalesce: Whether to merge plain chunks of an answer that the engine yields without waiting
            in between. The first token is sent at once, and nothing is delayed.
        admit: Makes a context manager around each request, from the runtime's context and a
            function that fails the request. With it you can count requests, reject one by raising,
            or end one with another error.
        context_length: Returns the maximum of a prompt's tokens, or None for no limit. A longer
            prompt is an `InvalidArgument`; the frontend does not check it.
    """
    probes = JsonProbeAdapter(adapter.with_operators(_verdict()))
    decode = adapter.mode.is_decode
    arriving: set[object] = set()

    def handle(
        request: Mapping[str, Any], context: Any, response_sender: ResponseSender | None = None
    ) -> ServedStream:
        return ServedStream(
            context,
            partial(_open_stream, adapter, probes, request, context_length()),
            admit=admit,
            decode=decode,
            arriving=arriving,
            outlet=None if response_sender is None else Outlet(response_sender, merge=coalesce),
        )

    return handle


@operator
async def _verdict(
    source: FusedRun[Annotated[LLMEngineOutput]],
) -> AsyncGenerator[Annotated[LLMEngineOutput]]:
    """Yield the first item of a failure, otherwise the last one."""
    item = None
    async for item in source:
        reason = None if item.data is None else item.data.finish_reason
        if item.is_error or (reason is not None and reason.is_error):
            break
    if item is not None:
        yield item


async def _open_stream(
    adapter: EngineAdapter,
    probes: JsonProbeAdapter,
    request: Mapping[str, Any],
    limit: int | None,
    context: Any,
) -> ResponseStream[Any]:
    """
    Start a request from the wire.

    Args:
        adapter: Serves ordinary requests.
        probes: Serves health probes.
        request: The request's wire form.
        limit: The maximum of the prompt's tokens.
        context: Our context for it.

    Raises:
        InvalidArgument: *request* is not a valid request (the message names the field and what was
            expected), or its prompt is too long.
        BackendError: The engine's set-up failed.
    """
    typed = convert_request(request)
    if typed.is_probe:
        return await probes.generate(request, context)
    if limit is not None and len(typed.token_ids) > limit:
        raise InvalidArgument(
            f"the prompt has {len(typed.token_ids)} tokens, more than the worker's context length "
            f"of {limit}"
        )
    return await adapter.generate(typed, context)
