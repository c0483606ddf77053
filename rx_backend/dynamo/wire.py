"""Items in the form that the runtime takes: plain data that it can encode."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec

from operators.assembly import encodable_data
from rx_backend.protocols import Annotated, LLMEngineOutput, to_builtins

__all__ = ("wire_item",)


def wire_item(item: object) -> dict[str, Any]:
    """
    Return an item of a stream in the form that handlers of the runtime yield.

    An item that has only data is sent as its data; the runtime adds the envelope.
    """
    if isinstance(item, Annotated):
        typed = cast("Annotated[object]", item)
        if typed.data is None or not (
            typed.id is typed.event is typed.comment is typed.error is None
        ):
            return {"_dynamo_annotated": True, **_encodable(to_builtins(typed))}
        item = typed.data
    if isinstance(item, LLMEngineOutput) and item.finish_reason is None and item.unknown is None:
        # Null fields have no effect, but each would cost a crossing into Rust.
        wire: dict[str, Any] = msgspec.to_builtins(item)
        if "token_ids" not in wire:
            wire["token_ids"] = []
        # Most chunks have nothing else, and need no further check.
        return wire if len(wire) == 1 else _encodable(wire)
    # The names of its unknown fields are the engine's.
    return _encodable({encodable_data(name): value for name, value in to_builtins(item).items()})


def _encodable(wire: dict[str, Any]) -> dict[str, Any]:
    """
    Replace, in place, lone surrogates, which UTF-8 can't encode.

    A detokenizer that splits a character yields them, and the runtime would fail the request. A
    pair of surrogates becomes its character.
    """
    for name, value in wire.items():
        if name != "token_ids" and (type(value) is str or type(value) in _NESTED):
            wire[name] = encodable_data(value)
    return wire


_NESTED: Final = (dict, list, tuple)
