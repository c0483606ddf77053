"""Read items that are not yet validated, or already wrapped."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, cast

__all__ = ("answer_in", "field_of", "has_content", "is_terminal", "tokens_in")


def tokens_in(item: Any) -> int:
    """Return how many tokens an item has: a chunk, a mapping of its shape, or an item around one."""
    try:
        return len(item.token_ids)
    except (AttributeError, TypeError):
        token_ids = field_of(item, "token_ids")
        return len(token_ids) if isinstance(token_ids, Sized) else 0


def has_content(item: Any) -> bool:
    """Return whether an item has content (row F1): token ids or, without them, text or parts."""
    return tokens_in(item) > 0 or bool(field_of(item, "text") or field_of(item, "content_parts"))


def is_terminal(item: Any) -> bool:
    """Return whether an item ends its answer; some engines write an empty reason on every chunk."""
    reason = field_of(item, "finish_reason")
    return reason is not None and reason != ""


def answer_in(item: Any) -> int:
    """Return which of a request's answers an item belongs to: its ``index``, 0 without one."""
    index = field_of(item, "index")
    # Some items have a method of that name.
    return index if type(index) is int else 0


def field_of(item: Any, name: str) -> object:
    """Return a field of a chunk, a mapping of its shape, or the chunk in an item; None without it."""
    if isinstance(item, Mapping):
        return cast("Mapping[str, object]", item).get(name)
    missing = object()
    value = getattr(item, name, missing)
    if value is not missing:
        return value
    chunk = getattr(item, "data", None)
    return None if chunk is None else field_of(chunk, name)
