"""Items as the runtime takes them: plain data that it can encode."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec

from operators.assembly import encodable
from rx_backend.protocols import Annotated, LLMEngineOutput, to_builtins

__all__ = ("wire_item",)


def wire_item(item: object) -> dict[str, Any]:
    """
    Return an item of a stream as the runtime's handlers yield it.

    An item with nothing but data goes out as its data; the runtime puts the envelope around it.
    """
    if not isinstance(item, Annotated):
        return _wire_chunk(item)
    typed = cast("Annotated[object]", item)
    if typed.data is not None and typed.id is typed.event is typed.comment is typed.error is None:
        return _wire_chunk(typed.data)
    return {"_dynamo_annotated": True, **_encodable(to_builtins(typed))}


def _wire_chunk(chunk: object) -> dict[str, Any]:
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
