"""Items as the runtime takes them: plain data that it can encode."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec

from operators.assembly import encodable_data
from rx_backend.protocols import Annotated, LLMEngineOutput, to_builtins

__all__ = ("wire_item",)


def wire_item(item: object) -> dict[str, Any]:
    """
    Return an item of a stream as the runtime's handlers yield it.

    An item with nothing but data goes out as its data; the runtime puts the envelope around it.
    """
    if isinstance(item, Annotated):
        typed = cast("Annotated[object]", item)
        if typed.data is None or not (
            typed.id is typed.event is typed.comment is typed.error is None
        ):
            return {"_dynamo_annotated": True, **_encodable(to_builtins(typed))}
        item = typed.data
    if isinstance(item, LLMEngineOutput) and item.finish_reason is None and item.unknown is None:
        # Fields that are null would come out as they went in, at the price of a crossing for each.
        wire: dict[str, Any] = msgspec.to_builtins(item)
        if "token_ids" not in wire:
            wire["token_ids"] = []
        # Most chunks have nothing else, and need no second look.
        return wire if len(wire) == 1 else _encodable(wire)
    # Its unknown fields have names of the engine's own.
    return _encodable({encodable_data(name): value for name, value in to_builtins(item).items()})


def _encodable(wire: dict[str, Any]) -> dict[str, Any]:
    """
    Replace, in place, what UTF-8 has no bytes for: a surrogate without its other half.

    A detokenizer that cuts a character in two makes such text, and the runtime would fail the
    request. Two halves that are together become their character.
    """
    for name, value in wire.items():
        if name != "token_ids" and (type(value) is str or type(value) in _NESTED):
            wire[name] = encodable_data(value)
    return wire


_NESTED: Final = (dict, list, tuple)
