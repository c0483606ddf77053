"""Copies of chunks that are safe to hold."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ("own_copy",)

A = TypeVar("A")

# Fields with lists or dicts of a known depth; and those whose content is up to the engine.
_NESTED = ("tokens", "log_probs", "top_logprobs", "content_parts")
_OPEN = (
    "disaggregated_params",
    "encoder_result",
    "extra_args",
    "engine_data",
    "routing_data",
    "unknown",
)


def own_copy(item: A) -> A:
    """
    Return a copy of a chunk that its engine can no longer change (row E6).

    For an operator that holds chunks beyond their pull: an engine that reuses a chunk, or a list in
    it, would change the held chunk. Chunks are recognised by their shape: anything with
    ``token_ids``. An item with ``data`` instead is an envelope around a chunk, such as
    ``rx_backend.Annotated``; the copy is in an envelope too. A dict of a chunk's shape is copied
    likewise.

    Lists and dicts are copied, deeply in fields of a known shape; other objects in them are shared.

    Args:
        item: The item to hold.

    Returns:
        The copy; *item* itself if it is frozen, or not a chunk.

    >>> from rx_backend import LLMEngineOutput
    >>> chunk = LLMEngineOutput([7])
    >>> held = own_copy(chunk)
    >>> chunk.token_ids.append(8)
    >>> held
    LLMEngineOutput(token_ids=[7])
    """
    if type(item) is dict:
        fields = cast("dict[str, object]", item)
        return cast("A", _own_fields(fields) if "token_ids" in fields else item)
    if not hasattr(item, "token_ids"):
        return _own_envelope(item)
    copied, rarely_set = _fields_of(type(item))
    own: Any = copied(item)
    try:
        if isinstance(own.token_ids, list):
            own.token_ids = own.token_ids[:]  # pyright: ignore[reportUnknownMemberType]
        if rarely_set is not None and _are_none(rarely_set(own)):
            return cast("A", own)
        for name in _NESTED:
            value = getattr(own, name, None)
            if value is not None:
                setattr(own, name, _copied(value))
        for name in _OPEN:
            value = getattr(own, name, None)
            if value is not None and type(value) in _CONTAINERS:
                setattr(own, name, value.copy())
    except AttributeError:
        # A frozen class.
        return item
    return cast("A", own)


_CONTAINERS = frozenset((list, dict))


@functools.lru_cache(maxsize=64)
def _fields_of(
    kind: type[Any],
) -> tuple[Callable[[Any], Any], Callable[[Any], tuple[Any, ...]] | None]:
    """
    Return a function that copies an object of a class, and one that reads all rarely set fields.

    The latter is None if the class does not declare its fields.
    """
    copied: Callable[[Any], Any] = getattr(kind, "__copy__", copy.copy)
    names = [name for name in (*_NESTED, *_OPEN) if hasattr(kind, name)]
    says_all = not kind.__dictoffset__ and len(names) > 1
    return copied, operator.attrgetter(*names) if says_all else None


def _are_none(values: tuple[Any, ...]) -> bool:
    return values.count(None) == len(values)


def _own_envelope(item: A) -> A:
    data = getattr(item, "data", None)
    if data is None:
        return item
    own_data = own_copy(data)
    if own_data is data:
        return item
    own: Any = _fields_of(type(item))[0](item)
    try:
        own.data = own_data
    except AttributeError:
        return item
    return cast("A", own)


def _own_fields(fields: dict[str, object]) -> dict[str, object]:
    own = {
        name: copy.copy(value) if type(value) in _CONTAINERS else value
        for name, value in fields.items()
    }
    for name in _NESTED:
        if own.get(name) is not None:
            own[name] = _copied(own[name])
    return own


def _copied(value: object) -> object:
    if type(value) is list:
        return [_copied(entry) for entry in cast("list[object]", value)]
    if type(value) is dict:
        return {key: _copied(entry) for key, entry in cast("dict[object, object]", value).items()}
    return value
