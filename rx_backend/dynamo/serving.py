"""An adapter as a handler of the runtime's endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, cast

import msgspec

from operators import coalesce as coalesce_chunks
from operators.assembly import encodable
from rx_backend.adapter import EngineAdapter
from rx_backend.dynamo.outlet import Outlet, ResponseSender
from rx_backend.dynamo.served_stream import Inside, ServedStream, alone
from rx_backend.errors import InvalidArgument
from rx_backend.probe import JsonProbeAdapter
from rx_backend.protocols import Annotated, LLMEngineOutput, convert_request, to_builtins
from rx_backend.stream import ResponseStream
from rx_backend.telemetry.metrics import COALESCED

__all__ = ("Handler", "open_stream", "serving", "wire_chunk", "wire_item")

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
    served = with_coalescing(adapter) if coalesce else adapter
    probes = JsonProbeAdapter(adapter)
    decode = adapter.mode.is_decode

    def handle(
        request: Mapping[str, Any], context: Any, response_sender: ResponseSender | None = None
    ) -> ServedStream:
        pushes = response_sender is not None
        return ServedStream(
            context,
            partial(open_stream, adapter if pushes else served, probes, request),
            outlet=Outlet(response_sender, merge=coalesce) if pushes else None,
            inside=inside,
            to_wire=wire_item,
            on_failure=_failed_item,
            decode=decode,
        )

    return handle


def _failed_item(error: Exception) -> dict[str, Any]:
    return wire_item(Annotated.from_error(error))


def with_coalescing(adapter: EngineAdapter) -> EngineAdapter:
    """Return *adapter* with its chunks merged where they wait for the runtime."""
    return adapter.with_operators(coalesce_chunks(counts=COALESCED, ahead_of_first=False))


async def open_stream(
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


def wire_item(item: object) -> dict[str, Any]:
    """
    Return an item of a stream as the runtime's handlers yield it.

    An item with nothing but data goes out as its data; the runtime puts the envelope around it.
    """
    if not isinstance(item, Annotated):
        return wire_chunk(item)
    typed = cast("Annotated[object]", item)
    if typed.data is not None and typed.id is typed.event is typed.comment is typed.error is None:
        return wire_chunk(typed.data)
    return {"_dynamo_annotated": True, **_encodable(to_builtins(typed))}


def wire_chunk(chunk: object) -> dict[str, Any]:
    """
    Return a chunk as a dict for the runtime, without the fields that are null.

    They would come out as they went in, at the price of a crossing for each.
    """
    if isinstance(chunk, LLMEngineOutput) and chunk.finish_reason is None and chunk.unknown is None:
        wire: dict[str, Any] = msgspec.to_builtins(chunk)
        if "token_ids" not in wire:
            wire["token_ids"] = []
    else:
        # Its unknown fields have names of the engine's own.
        wire = {_encodable_value(name): value for name, value in to_builtins(chunk).items()}
    return _encodable(wire)


def _encodable(wire: dict[str, Any]) -> dict[str, Any]:
    """
    Replace, in place, what UTF-8 has no bytes for: a surrogate without its other half.

    A detokenizer that cuts a character in two makes such text, and the runtime would fail the
    request. Two halves that are together become their character.
    """
    for name, value in wire.items():
        if name != "token_ids" and (type(value) is str or type(value) in _NESTED):
            wire[name] = _encodable_value(value)
    return wire


def _encodable_value(value: Any) -> Any:
    if type(value) is str:
        return encodable(value)
    if type(value) is dict:
        pairs = cast("dict[Any, Any]", value).items()
        return {_encodable_value(name): _encodable_value(each) for name, each in pairs}
    if type(value) in {list, tuple}:
        return [_encodable_value(each) for each in cast("list[Any]", value)]
    return value


_NESTED: Final = (dict, list, tuple)
