"""An adapter as a handler of the runtime's endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from operators import coalesce as coalesce_chunks
from rx_backend.adapter import EngineAdapter
from rx_backend.dynamo.outlet import Outlet, ResponseSender
from rx_backend.dynamo.served_stream import Inside, ServedStream, alone
from rx_backend.errors import InvalidArgument
from rx_backend.probe import JsonProbeAdapter
from rx_backend.protocols import convert_request
from rx_backend.stream import ResponseStream
from rx_backend.telemetry.metrics import COALESCED

__all__ = ("Handler", "serving")

Handler: TypeAlias = Callable[..., AsyncIterator[dict[str, Any]]]
"""What ``endpoint.serve_endpoint`` takes; called with a request, its context and ``response_sender``."""


def serving(
    adapter: EngineAdapter,
    *,
    coalesce: bool = True,
    inside: Inside = alone,
) -> Handler:
    """
    Return the handler with which the runtime serves an adapter.

    Use it as ``await endpoint.serve_endpoint(serving(adapter))``. Every request becomes a stream of
    the adapter. Its items are pushed where the runtime passes a ``response_sender`` (1.6), and
    pulled where it does not. A client that disconnects, and a stop or a kill by the runtime, reach
    the engine as at most one ``abort`` (row A2). A kill, which a disconnect is, closes the stream at
    once.

    Errors go out as items with their kind, all nine of them; a request that is none is answered by
    an `InvalidArgument` item (rows S5, S6). Clients take an instance out of their routing when they
    get one of `EngineShutdown`, and may send the request elsewhere. Health probes are answered as by
    `JsonProbeAdapter` (row H2).

    Args:
        adapter: What serves the requests.
        coalesce: Whether plain chunks of an answer that wait for the runtime become one. Pushed,
            those do that the engine has ready without a wait in between; pulled, those that come
            while the runtime is busy, see :func:`operators.coalesce`. The first token goes out at
            once, and nothing is held back.
        inside: What a request is served inside of, made from the runtime's context and a function
            that fails the request: to count requests, to refuse one by raising, which fails the
            request as it is, or to end one with an error of its own.
    """
    served = _with_coalescing(adapter) if coalesce else adapter
    probes = JsonProbeAdapter(adapter)
    decode = adapter.mode.is_decode

    def handle(
        request: Mapping[str, Any], context: Any, response_sender: ResponseSender | None = None
    ) -> ServedStream:
        pushes = response_sender is not None
        return ServedStream(
            context,
            partial(_open_stream, adapter if pushes else served, probes, request),
            outlet=Outlet(response_sender, merge=coalesce) if pushes else None,
            inside=inside,
            decode=decode,
        )

    return handle


def _with_coalescing(adapter: EngineAdapter) -> EngineAdapter:
    """Return *adapter* with its chunks merged where they wait for the runtime."""
    return adapter.with_operators(coalesce_chunks(counts=COALESCED, ahead_of_first=False))


async def _open_stream(
    served: EngineAdapter, probes: JsonProbeAdapter, request: Mapping[str, Any], context: Any
) -> ResponseStream[Any]:
    """
    Start a request that came over the wire.

    Args:
        served: Serves ordinary requests.
        probes: Serves health probes.
        request: As it arrived.
        context: Our context for it.

    Raises:
        InvalidArgument: *request* is none; names the field and what was expected.
        BackendError: The engine's set-up failed.
    """
    if not isinstance(request, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"$: expected an object, got {type(request).__name__}")
    typed = convert_request(request)
    if typed.is_probe:
        return await probes.generate(request, context)
    return await served.generate(typed, context)
