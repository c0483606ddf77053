"""Text that can be encoded: a lone surrogate would make a whole export or scrape fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

__all__ = ("encodable", "encodable_data")


def encodable(text: str) -> str:
    r"""
    Return *text* with U+FFFD for what UTF-8 can't express (row P10).

    >>> encodable("caf\u00e9"), encodable("cut \ud83d")
    ('café', 'cut �')
    """
    if text.isascii():
        return text
    # A pair of surrogates becomes its character.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encodable_data(value: Any) -> Any:
    """Return plain data with all its text `encodable`; a tuple becomes a list."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {encodable_data(name): encodable_data(each) for name, each in items}
    if isinstance(value, list | tuple):
        return [*map(encodable_data, cast("list[object]", value))]
    return value
