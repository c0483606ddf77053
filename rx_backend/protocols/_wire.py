"""
Conversion of structs from and to their wire form.

`msgspec` drops keys that a struct does not have. Structs here keep them in a field ``unknown``,
which is None in everything that this library creates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_type_hints

import msgspec
from msgspec import NODEFAULT

from rx_backend.errors import InvalidArgument
from rx_backend.protocols._finish_reason import FinishReason, parse_finish_reason

__all__ = (
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Sparse",
    "convert",
    "null",
    "plain",
    "to_wire",
)

U8 = Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)]
U16 = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
# The validator accepts no bounds above 63 bits.
U64 = Annotated[int, msgspec.Meta(ge=0)]
I32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
I64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

S = TypeVar("S", bound=msgspec.Struct)


def null() -> None:
    """
    Declare a field that is None by default, and written even then.

    Structs omit fields that equal their default, but not if the default comes from a factory.
    """
    return msgspec.field(default_factory=NoneType)


class Sparse(msgspec.Struct, omit_defaults=True):
    """A struct of many options, few of which are set; its repr omits the others."""

    def __repr__(self) -> str:
        shown = (
            (field.name, getattr(self, field.name))
            for field in msgspec.structs.fields(self)
            if getattr(self, field.name) != _default(field)
        )
        inside = ", ".join(f"{name}={value!r}" for name, value in shown)
        return f"{type(self).__name__}({inside})"


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is NODEFAULT else field.default_factory()


class _Shape(NamedTuple):
    """The keys of a struct, and its fields that are structs."""

    known: frozenset[str]
    nested: tuple[tuple[str, str, type[msgspec.Struct]], ...]


@cache
def _shape(cls: type[msgspec.Struct]) -> _Shape:
    hints = get_type_hints(cls)
    fields = [field for field in msgspec.structs.fields(cls) if field.name != "unknown"]
    nested = (
        (field.name, field.encode_name, kind)
        for field in fields
        for kind in (hints[field.name], *get_args(hints[field.name]))
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and _keeps(kind)
    )
    return _Shape(frozenset(field.encode_name for field in fields), tuple(nested))


def _keeps(cls: type[msgspec.Struct]) -> bool:
    """Return whether a struct keeps unknown keys."""
    return "unknown" in cls.__struct_fields__


def convert(value: object, cls: type[S], where: str = "$") -> S:
    """
    Return a checked *cls* from a mapping, with its unknown keys kept.

    Args:
        value: The mapping; an instance of *cls* is returned unchanged.
        cls: A struct with a field ``unknown``.
        where: Path of *value* for messages.

    Raises:
        InvalidArgument: The value is invalid; the message names the path and what was expected.
    """
    if type(value) is not dict:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise InvalidArgument(f"{where}: expected an object, got {type(value).__name__}")
        value = dict(cast("Mapping[str, Any]", value))
    fields = cast("dict[str, Any]", value)
    shape = _shape(cls)
    for _, name, kind in shape.nested:
        inner: object = fields.get(name)
        if isinstance(inner, Mapping):
            fields = {**fields, name: convert(cast("object", inner), kind, f"{where}.{name}")}
    if shape.known.issuperset(fields):
        return _checked(fields, cls, where)
    result = _checked({name: fields[name] for name in shape.known & fields.keys()}, cls, where)
    unknown = {name: item for name, item in fields.items() if name not in shape.known}
    msgspec.structs.force_setattr(result, "unknown", unknown)
    return result


def to_wire(struct: msgspec.Struct) -> dict[str, Any]:
    """Return the wire form of a struct as plain dicts, lists and scalars, unknown keys included."""
    wire = cast("dict[str, Any]", msgspec.to_builtins(struct, enc_hook=_plain))
    _spread(struct, wire)
    return wire


def plain(value: object) -> Any:
    """Return *value* as plain dicts, lists and scalars."""
    return msgspec.to_builtins(value, enc_hook=_plain)


def _spread(struct: msgspec.Struct, wire: dict[str, Any]) -> None:
    """Move the keys in ``unknown`` back to their place, here and in nested structs."""
    for attribute, name, kind in _shape(type(struct)).nested:
        inner: object = getattr(struct, attribute)
        if isinstance(inner, kind):
            _spread(inner, wire[name])
    unknown: dict[str, Any] | None = wire.pop("unknown", None)
    if unknown:
        for name, value in unknown.items():
            wire.setdefault(name, value)


def _checked(fields: dict[str, Any], cls: type[S], where: str) -> S:
    try:
        return msgspec.convert(fields, cls, dec_hook=_parse)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise InvalidArgument(_complaint(str(exc), fields, where)) from None


_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def _complaint(text: str, fields: object, where: str) -> str:
    """Move the path to the front, and add the value found if the validator does not name it."""
    text, _, path = text.partition(" - at ")
    steps = path.strip("`").removeprefix("$")
    if missing := _MISSING.fullmatch(text):
        return f"{where}{steps}.{missing[1]}: required, but missing"
    text = text.replace("`", "")
    if "got" not in text and text.startswith("Expected"):
        text += f", got {_at(fields, steps)!r}"
    return f"{where}{steps}: {text[:1].lower()}{text[1:]}"


def _at(value: Any, steps: str) -> object:
    for name, index in _STEP.findall(steps):
        value = value[int(index)] if index else value[name]
    return value


def _parse(kind: type[Any], value: object) -> FinishReason:
    if kind is FinishReason:
        return parse_finish_reason(value)
    raise TypeError(f"no wire form for {kind.__name__}")


def _plain(value: object) -> object:
    if isinstance(value, FinishReason):
        return value.to_json()
    raise TypeError(f"no wire form for {type(value).__name__}")
